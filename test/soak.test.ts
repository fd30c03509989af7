// Decoding for long: sequences join, fork, are cut short and leave at random while all of them go on, a token a step, in
// caches of every format at once. Every so many steps what the caches hold and what attention makes of it are held against
// the reference, and the pages are counted anew. LB_SOAK=100000 takes as many steps, and looks at every 1000th.
import { attention, type KvSequence, PagePool } from 'lowbit'
import { native } from 'lowbit/native'
import { kvFormats } from 'lowbit/words'
import { expectAttention } from './ref/attention'
import { refEncode, refTurn } from './ref/cache'
import { expectSame, roundTo } from './ref/compare'
import { openTest } from './ref/device'
import { audit } from './ref/pool'
import { Random } from './ref/random'
import { read } from './ref/rows'

const steps = Number(process.env.LB_SOAK ?? 300)
const every = steps >= 10000 ? 1000 : 50
const [heads, kvHeads, headDim, pageSize, pages, most] = [4, 2, 32, 8, 40, 10] as const
const prefix = { rows: most, tokens: 5, dtype: 'bf16' } as const
const longest = 96
const width = longest / pageSize
const rowDim = kvHeads * headDim

/** One text: its pages and, for each position, which token stands there. */
interface Text {
  readonly sequence: KvSequence
  readonly tokens: number[]
}

// Numbers of a token are made from its id whenever they are wanted, so that a long run takes no more memory than a short one.
const numbersOf = (id: number, part: number, count: number, spread: number): number[] => {
  const random = new Random(id * 4 + part)
  return Array.from({ length: count }, () => roundTo('bf16', random.float(-spread, spread)))
}
const keysOf = (id: number) => numbersOf(id, 0, rowDim, 2)
const valuesOf = (id: number) => numbersOf(id, 1, rowDim, 1)
const queryOf = (id: number) => numbersOf(id, 2, heads * headDim, 2)

const bits = new Float32Array(1)
const words = new Uint32Array(bits.buffer)
const bf16 = (values: readonly number[]) =>
  Uint16Array.from(values, (x) => {
    bits[0] = x
    return (words[0] as number) >>> 16
  })

// Angles of RoPE, as numbers of 32 bits.
const angles = Array.from({ length: longest }, (_, p) =>
  Array.from({ length: headDim / 2 }, (_, i) => p / 100 ** ((2 * i) / headDim)),
)
const [cosines, sines] = [Math.cos, Math.sin].map((f) =>
  angles.map((row) => row.map((x) => Math.fround(f(x)))),
)

test(
  `${steps} steps`,
  async () => {
    const random = new Random(20)
    const device = openTest({ threads: 2 })
    const table = (rows: number[][]) => device.tensor(Float32Array.from(rows.flat()), [longest, headDim / 2])
    const [cos, sin] = [table(cosines as number[][]), table(sines as number[][])]
    const pool = new PagePool({ pages, pageSize, prefix })
    const caches = kvFormats.map((format) =>
      device.kvCache({ pages, pageSize, kvHeads, headDim, format, prefix }),
    )
    const live: Text[] = []
    let next = 0
    const did = { joined: 0, forked: 0, cut: 0, left: 0, refused: 0, checked: 0 }

    const drop = (text: Text) => {
      live.splice(live.indexOf(text), 1)
      text.sequence.close()
    }
    /** Room for more tokens; whoever came first leaves when there is none. */
    const grow = (text: Text, count: number): Int32Array | undefined => {
      for (;;) {
        const { length, pageTable, prefixRow } = text.sequence
        const before = [length, prefixRow, ...pageTable].join()
        try {
          const { copies, moves, slots } = text.sequence.grow(count)
          for (const cache of caches) {
            const [from, to] = [copies.map(([a]) => a), copies.map(([, b]) => b)]
            if (copies.length > 0) cache.copyPages(from, to)
            if (moves.length === 0) continue
            using saved = cache.save(moves.map(([a]) => a))
            const into = moves.map(([, b]) => b)
            cache.restore(saved, into)
          }
          return slots
        } catch (error) {
          expect(error).toMatchObject({ code: 'ERR_PAGES' })
          expect([text.sequence.length, text.sequence.prefixRow, ...text.sequence.pageTable].join()).toBe(
            before,
          )
          did.refused++
          const [oldest] = live
          if (oldest === undefined || oldest === text) return undefined
          drop(oldest)
        }
      }
    }

    for (let step = 1; step <= steps; step++) {
      // What happens to the sequences before this step.
      const what = random.next()
      const one = live.length > 0 ? random.pick(live) : undefined
      let begins: Text | undefined
      if (one === undefined || (what < 0.1 && live.length < most)) {
        begins = { sequence: pool.open(), tokens: [] }
        live.push(begins)
        did.joined++
      } else if (what < 0.17 && live.length < most) {
        live.push({ sequence: one.sequence.fork(), tokens: [...one.tokens] })
        did.forked++
      } else if (what < 0.21) {
        const length = random.int(1, one.tokens.length)
        one.sequence.trim(length)
        one.tokens.length = length
        did.cut++
      } else if (what < 0.27) {
        drop(one)
        did.left++
      }
      for (const text of [...live]) if (text.tokens.length + 24 > longest) drop(text)

      // Each gets a token, who just began a prompt.
      const parts: { text: Text; slots: Int32Array }[] = []
      for (const text of [...live]) {
        if (!live.includes(text)) continue
        const count = text === begins ? random.int(1, 20) : 1
        const slots = grow(text, count)
        if (slots === undefined) {
          drop(text)
          continue
        }
        for (let i = 0; i < count; i++) text.tokens.push(next++)
        parts.push({ text, slots })
      }
      const running = parts.filter(({ text }) => live.includes(text))
      if (running.length === 0) continue
      const ids = running.flatMap(({ text, slots }) => text.tokens.slice(-slots.length))
      const counts = running.map(({ slots }) => slots.length)
      const positions = running.flatMap(({ text, slots }) =>
        Array.from(slots, (_, i) => text.tokens.length - slots.length + i),
      )
      const slots = running.flatMap(({ slots }) => [...slots])
      const batched = counts.every((count) => count === 1)
      const kvLens = running.map(({ text }) => text.tokens.length)
      const starts = [0]
      for (const count of counts) starts.push((starts[starts.length - 1] as number) + count)
      const form = batched ? [running.length, 1] : [ids.length]
      using k = device.tensor(bf16(ids.flatMap(keysOf)), [ids.length, kvHeads, headDim], 'bf16')
      using v = device.tensor(bf16(ids.flatMap(valuesOf)), [ids.length, kvHeads, headDim], 'bf16')
      using q = device.tensor(bf16(ids.flatMap(queryOf)), [...form, heads, headDim], 'bf16')
      using pageTable = device.tensor(
        Int32Array.from(
          running.flatMap(({ text: { sequence } }) =>
            Array.from({ length: width }, (_, p) => sequence.pageTable[p] ?? -1),
          ),
        ),
        [running.length, width],
        'i32',
      )
      const prefixRows = running.map(({ text }) => text.sequence.prefixRow)
      const look = step % every === 0
      const lseToo = Math.floor(step / every) % 2 === 0
      for (const [c, cache] of caches.entries()) {
        const format = kvFormats[c] as (typeof kvFormats)[number]
        cache.append(k, v, slots, { rope: { cos, sin, positions } })
        using out = device.empty([...form, heads, headDim], 'f32')
        const options = { causal: true, pageTable, kvLens, prefixRows, out } as const
        const given = batched ? options : { ...options, cuSeqlensQ: starts }
        // Some rows go another way where lse is wanted.
        using lse = lseToo ? attention(q, cache, { ...given, returnLse: true }).lse : undefined
        if (lse === undefined) attention(q, cache, given)
        const row = native.chosenRow()
        if (look) {
          // What each text's slots hold, to the last bit, and what attention makes of it.
          const stored = running.map(({ text }) =>
            text.tokens.map((id, position) => {
              const own = position < prefix.tokens ? prefix.dtype : format
              const rows = (x: number[], turn: boolean) =>
                Array.from({ length: kvHeads }, (_, h) => {
                  const head = x.slice(h * headDim, (h + 1) * headDim)
                  const turned = turn
                    ? refTurn(head, cosines?.[position] ?? [], sines?.[position] ?? [], 'half')
                    : head
                  return refEncode(own, turned).values
                }).flat()
              return { k: rows(keysOf(id), true), v: rows(valuesOf(id), false) }
            }),
          )
          const plain = (x: readonly number[]) => x.map((y) => (y === 0 ? 0 : Math.fround(y)))
          for (const [b, { text }] of running.entries()) {
            const held = cache.read(text.sequence.slots())
            const label = `step ${step}, ${format}, sequence ${b}`
            expectSame(plain(read(held.k)), plain((stored[b] ?? []).flatMap((row) => row.k)), `${label} k`)
            expectSame(plain(read(held.v)), plain((stored[b] ?? []).flatMap((row) => row.v)), `${label} v`)
            held.k.dispose()
            held.v.dispose()
          }
          let kv0 = 0
          const sequences = running.map(({ text, slots }, b) => {
            const seqKv = text.tokens.length
            kv0 += seqKv
            return { q0: starts[b] as number, kv0: kv0 - seqKv, seqQ: slots.length, seqKv }
          })
          const call = {
            q: ids.flatMap(queryOf),
            k: stored.flat().flatMap((rows) => rows.k),
            v: stored.flat().flatMap((rows) => rows.v),
            ...{ sequences, heads, kvHeads, headDim, headDimV: headDim, causal: true },
          }
          // Of packed tokens lse is [heads, tokens].
          const flat = lse && read(lse)
          const byToken = batched
            ? flat
            : flat &&
              ids.flatMap((_, t) =>
                Array.from({ length: heads }, (_, h) => flat[h * ids.length + t] as number),
              )
          expectAttention(row, call, { out: read(out), lse: byToken }, 'f32', `step ${step}, ${format}`)
        }
      }
      if (look) {
        audit(
          pool,
          live.map(({ sequence }) => sequence),
        )
        did.checked++
      }
      if (step % 8 === 0) await device.sync()
    }
    for (const text of [...live]) drop(text)
    audit(pool, [])
    await device.sync()
    // A run in which nothing happened shows nothing.
    for (const count of Object.values(did)) expect(count).toBeGreaterThan(0)
    for (const thing of [...caches, cos, sin]) thing.dispose()
    device.close()
  },
  60_000 + steps * 20,
)
