// The pages of sequences: after any mixture of joins, forks and leaves each page is counted once for each sequence that has
// it, holds what was written through that sequence, and is free when nobody has it.
import { type KvSequence, PagePool } from 'lowbit'
import { audit } from './ref/pool'
import { Random } from './ref/random'
import { refusal } from './ref/refusal'

/** A cache that holds one number a slot. */
class Slots {
  readonly held: (number | undefined)[]
  constructor(private readonly pool: PagePool) {
    this.held = new Array(pool.pages * pool.pageSize + pool.prefixRows * pool.prefixTokens).fill(undefined)
  }
  /** What a model does with what `grow` says. */
  append(sequence: KvSequence, values: readonly number[]): void {
    const { copies, moves, slots } = sequence.grow(values.length)
    const { pageSize } = this.pool
    for (const [from, to] of copies)
      for (let t = 0; t < pageSize; t++) this.held[to * pageSize + t] = this.held[from * pageSize + t]
    for (const [from, to] of moves) this.held[to] = this.held[from]
    if (slots.length !== values.length) throw new Error('grow: as many slots as tokens')
    for (const [i, slot] of slots.entries()) this.held[slot] = values[i]
  }
  read(sequence: KvSequence): (number | undefined)[] {
    return [...sequence.slots()].map((slot) => this.held[slot])
  }
}

describe('random joins, growths, forks, trims and leaves', () => {
  const prefixes = [undefined, { rows: 5, tokens: 3 }, { rows: 6, tokens: 8 }, { rows: 7, tokens: 21 }]
  test.each(prefixes.flatMap((prefix) => [1, 2].map((seed) => [seed, prefix] as const)))(
    'seed %i, prefix %j',
    (seed, prefix) => {
      const random = new Random(seed)
      const pool = new PagePool({ pages: 24, pageSize: 8, prefix })
      const slots = new Slots(pool)
      const live = new Map<KvSequence, number[]>()
      let next = 0
      let refused = 0
      for (let step = 0; step < 2000; step++) {
        const [sequence, tokens] = live.size > 0 ? random.pick([...live]) : [undefined, []]
        const what = random.next()
        if (sequence === undefined || (what < 0.12 && live.size < 8)) {
          live.set(pool.open(), [])
        } else if (what < 0.6) {
          const more = Array.from({ length: random.int(0, 12) }, () => next++)
          const before = [sequence.length, sequence.prefixRow, pool.free, ...sequence.pageTable].join()
          try {
            slots.append(sequence, more)
            tokens.push(...more)
          } catch (error) {
            expect(error).toMatchObject({ code: 'ERR_PAGES' })
            expect([sequence.length, sequence.prefixRow, pool.free, ...sequence.pageTable].join()).toBe(
              before,
            )
            refused++
          }
        } else if (what < 0.75) {
          if (live.size < 8) live.set(sequence.fork(), [...tokens])
        } else if (what < 0.85) {
          const length = random.int(0, tokens.length)
          sequence.trim(length)
          tokens.length = length
        } else {
          sequence.close()
          live.delete(sequence)
        }
        if (step % 5 === 0) audit(pool, live.keys())
        const wrong = [...live].filter(([one, expected]) => slots.read(one).join() !== expected.join())
        if (wrong.length > 0) expect(wrong.map(([one]) => slots.read(one))).toEqual(wrong.map(([, t]) => t))
      }
      expect(refused).toBeGreaterThan(20)
      for (const sequence of live.keys()) sequence.close()
      audit(pool, [])
      expect(pool.free).toBe(24)
    },
  )
})

test('a fork shares every page until it writes, and only the page that it writes is copied', () => {
  const pool = new PagePool({ pages: 8, pageSize: 8 })
  const first = pool.open()
  first.grow(20)
  const second = first.fork()
  expect(pool.free).toBe(5)
  expect(second.pageTable).toEqual(first.pageTable)
  const { copies, slots } = second.grow(1)
  expect(copies).toEqual([[first.pageTable[2], second.pageTable[2]]])
  expect([...slots]).toEqual([(second.pageTable[2] ?? 0) * 8 + 4])
  expect(second.pageTable.slice(0, 2)).toEqual(first.pageTable.slice(0, 2))
  // The first one is alone with its last page now, and a full last page needs no copy.
  expect(first.grow(4).copies).toEqual([])
  expect(first.fork().grow(1).copies).toEqual([])
})

test('what does not fit is refused whole, with what was wanted and what is free', () => {
  const pool = new PagePool({ pages: 4, pageSize: 16, prefix: { rows: 1, tokens: 16 } })
  const sequence = pool.open()
  sequence.grow(48)
  expect(pool.free).toBe(2)
  const error = refusal(() => sequence.grow(33))
  expect(error.code).toBe('ERR_PAGES')
  expect(error.message).toBe('grow: 33 more tokens need 3 pages but 2 of 4 are free')
  expect(sequence.length).toBe(48)
  expect(refusal(() => pool.open().grow(1)).message).toContain('0 of 1 are free')
  expect(pool.pagesOf(48)).toBe(2)
  expect(refusal(() => sequence.trim(49)).message).toContain('expected a length from 0 to 48 but got 49')
  sequence.close()
  sequence.close()
  for (const f of [() => sequence.grow(1), () => sequence.fork(), () => sequence.trim(0)])
    expect(refusal(f).code).toBe('ERR_DISPOSED')
  for (const options of [
    { pages: 0, pageSize: 16 },
    { pages: 4, pageSize: 12 },
    { pages: 4, pageSize: 512 },
    { pages: 4, pageSize: 16, prefix: { rows: 0, tokens: 8 } },
  ])
    expect(refusal(() => new PagePool(options)).code).toBe('ERR_ARGUMENT')
})
