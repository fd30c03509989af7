// KvCache through the public API, and every row of kv that this machine can run against the definition of the formats:
// what is appended, read, copied, saved and restored, and every call that is refused.
import { type Device, KvCache, type KvCacheOptions, type KvFormat, type Tensor } from 'lowbit'
import { native } from 'lowbit/native'
import { pairings } from 'lowbit/rope'
import { outputOf } from 'lowbit/tensor'
import { kvFormats } from 'lowbit/words'
import { RefCache, refEncode, refTurn, stepOf } from './ref/cache'
import { expectSame, type Float, floats } from './ref/compare'
import { onCpu, openTest } from './ref/device'
import { Random } from './ref/random'
import { eachRow, ints, numbers, place, read, refusal } from './ref/rows'

const { NaN: nan, POSITIVE_INFINITY: inf } = Number
let one: Device
let three: Device
beforeAll(() => {
  one = openTest({ threads: 1 })
  three = openTest({ threads: 3 })
})
afterAll(() => {
  for (const device of [one, three]) {
    device.syncSync()
    expect(native.deviceInfo(device).guardFaults).toBe(0)
    device.close()
  }
})

/** A cache, what it should hold, and its calls by a row of the registry. */
class Pair {
  readonly kv: KvCache
  readonly ref: RefCache
  constructor(
    readonly device: Device,
    readonly row: string | undefined,
    readonly options: KvCacheOptions,
  ) {
    this.kv = device.kvCache(options)
    const { format, prefix, pages, pageSize, kvHeads } = options
    this.ref = new RefCache(format, prefix?.dtype ?? 'bf16', pages, pageSize, kvHeads)
  }

  /** `k` is [tokens * kvHeads][headDim]. */
  append(
    k: readonly (readonly number[])[],
    v: readonly (readonly number[])[],
    slots: readonly number[],
    [dk, dv]: readonly [Float, Float],
    padded = false,
    rope?: { cos: number[][]; sin: number[][]; positions: number[]; pairing: 'half' | 'interleaved' },
  ): void {
    const { device, kv } = this
    const { kvHeads, headDim, headDimV } = kv
    const tokens = slots.length
    const table = (rows: number[][]) =>
      place(device, rows.flat(), [rows.length, rows[0]?.length ?? 0], 'f32', padded).view
    native.kvAppend(
      kv,
      place(device, k.flat(), [tokens, kvHeads, headDim], dk, padded).view,
      place(device, v.flat(), [tokens, kvHeads, headDimV], dv, padded).view,
      ints(device, slots),
      rope && table(rope.cos),
      rope && table(rope.sin),
      rope && ints(device, rope.positions),
      pairings.indexOf(rope?.pairing ?? 'half'),
      this.row,
    )
    for (const [t, slot] of slots.entries()) {
      if (slot < 0) continue
      const heads = (x: readonly (readonly number[])[]) => x.slice(t * kvHeads, (t + 1) * kvHeads)
      const keys = heads(k).map((x) =>
        rope === undefined
          ? x
          : refTurn(
              x,
              rope.cos[rope.positions[t] as number] as number[],
              rope.sin[rope.positions[t] as number] as number[],
              rope.pairing,
            ),
      )
      this.ref.write(slot, keys, heads(v))
    }
  }

  /** Every slot that was written reads as it should. */
  check(label: string): void {
    const { kv, ref } = this
    const slots: number[] = []
    const total = kv.pages * kv.pageSize + (kv.prefix === undefined ? 0 : kv.prefix.rows * kv.prefix.tokens)
    for (let slot = 0; slot < total; slot++) if (ref.has(slot)) slots.push(slot)
    const [k, v] = [outputOf(undefined, ''), outputOf(undefined, '')]
    native.kvRead(kv, ints(this.device, slots), k, v, this.row)
    const want = (of: (slot: number) => number[]) => slots.flatMap((slot) => of(slot).map(Math.fround))
    expectSame(plain(read(k)), plain(want((slot) => ref.k(slot))), `${label} k`)
    expectSame(plain(read(v)), plain(want((slot) => ref.v(slot))), `${label} v`)
  }
}

/** Codes have one zero. */
const plain = (x: readonly number[]) => x.map((y) => (y === 0 ? 0 : y))
const rowsOf = (random: Random, rows: number, dim: number, dtype: Float, low = -4, high = 4) =>
  Array.from({ length: rows }, () => numbers(random, dim, dtype, low, high))

/** Distinct slots, and some that leave out. */
function slotsOf(random: Random, tokens: number, total: number): number[] {
  const all = Array.from({ length: total }, (_, i) => i)
  for (let i = total - 1; i > 0; i--) {
    const j = random.int(0, i)
    ;[all[i], all[j]] = [all[j] as number, all[i] as number]
  }
  return all.slice(0, tokens).map((slot) => (random.next() < 0.1 ? -1 : slot))
}

eachRow('kv', (row) => {
  const sizes = [
    [16, 16],
    [64, 64],
    [128, 80],
    [34, 2],
    [8, 72],
    [256, 256],
    [1024, 66],
  ] as const

  test.each(kvFormats)('%s: appended and read, over page sizes, dims and dtypes', (format) => {
    const random = new Random(0x6b76)
    for (const pageSize of [8, 16, 32, 64, 128, 256]) {
      for (const [headDim, headDimV] of [random.pick(sizes), random.pick(sizes)]) {
        const kvHeads = random.int(1, 3)
        const prefix = random.next() < 0.5 ? { rows: 2, tokens: 5, dtype: random.pick(floats) } : undefined
        const pair = new Pair(random.pick([one, three]), row, {
          ...{ pages: 3, pageSize, kvHeads, headDim, headDimV, format, prefix },
        })
        const total = 3 * pageSize + (prefix === undefined ? 0 : 10)
        for (let call = 0; call < 3; call++) {
          const tokens = random.int(1, Math.min(total, 20))
          const dtypes = [random.pick(floats), random.pick(floats)] as const
          pair.append(
            rowsOf(random, tokens * kvHeads, headDim, dtypes[0]),
            rowsOf(random, tokens * kvHeads, headDimV, dtypes[1]),
            slotsOf(random, tokens, total),
            dtypes,
            random.next() < 0.5,
          )
        }
        pair.check(`${format} ${pageSize} ${headDim} ${headDimV} seed ${random.seed}`)
      }
    }
  })

  test.each(kvFormats)('%s: RoPE in both pairings, whole and in part', (format) => {
    const random = new Random(0x726f)
    for (const pairing of pairings) {
      for (const [headDim, rotaryDim] of [
        [16, 16],
        [64, 64],
        [128, 128],
        [80, 34],
        [34, 2],
        [130, 98],
      ] as const) {
        for (const dtype of floats) {
          const pair = new Pair(one, row, { pages: 2, pageSize: 8, kvHeads: 2, headDim, format })
          const table = () => Array.from({ length: 9 }, () => numbers(random, rotaryDim / 2, 'f32', -1, 1))
          const positions = Array.from({ length: 6 }, () => random.int(0, 8))
          const slots = [3, 0, -1, 15, 9, 7]
          positions[2] = 99 // nobody looks at that of a token that is left out
          pair.append(
            rowsOf(random, 12, headDim, dtype),
            rowsOf(random, 12, headDim, dtype),
            slots,
            [dtype, dtype],
            random.next() < 0.5,
            { cos: table(), sin: table(), positions, pairing },
          )
          pair.check(`${format} ${pairing} ${headDim} ${rotaryDim} ${dtype} seed ${random.seed}`)
        }
      }
    }
  })

  test.each(kvFormats)('%s: zeros, tiny, huge and special numbers', (format) => {
    const random = new Random(0x7a)
    const dim = 32
    const pair = new Pair(one, row, { pages: 4, pageSize: 16, kvHeads: 1, headDim: dim, format })
    const fill = (f: (i: number) => number) => Array.from({ length: dim }, (_, i) => Math.fround(f(i)))
    const rows = [
      fill(() => 0),
      fill(() => -0),
      fill((i) => (i === 3 ? 5 : 0)),
      fill(() => 100),
      fill(() => -100),
      fill(() => random.float() * 1e-7),
      fill(() => random.float() * 1e-12),
      fill(() => random.float() * 1e6),
      fill(() => random.float() * 3e38),
      fill((i) => (i % 2 ? 3.4e38 : -3.4e38)),
      fill(() => 1e-45),
      fill((i) => (i === 31 ? nan : i)),
      fill((i) => (i === 0 ? inf : i)),
      fill((i) => (i === 17 ? -inf : -i)),
      // Halves between codes of int8, int4 and e4m3.
      fill((i) => (i === 0 ? 127 : i - 15.5)),
      fill((i) => (i === 0 ? 15 : (i % 15) + 0.5)),
      fill((i) => (i === 0 ? 448 : 16 + i)),
    ]
    const slots = rows.map((_, i) => (i * 5) % 64)
    pair.append(rows, [...rows].reverse(), slots, ['f32', 'f32'])
    pair.check(`${format} special`)
  })

  test.each(kvFormats)('%s: pages copied, tokens saved and restored bit for bit', (format) => {
    const random = new Random(0x73)
    const options = { pages: 6, pageSize: 8, kvHeads: 2, headDim: 24, headDimV: 10, format }
    const prefix = { rows: 2, tokens: 3, dtype: 'f32' } as const
    const pair = new Pair(three, row, { ...options, prefix })
    const slots = Array.from({ length: 24 }, (_, i) => i).concat([48, 49, 53])
    pair.append(
      rowsOf(random, slots.length * 2, 24, 'f32'),
      rowsOf(random, slots.length * 2, 10, 'f32'),
      slots,
      ['f32', 'f32'],
    )
    native.kvCopyPages(pair.kv, ints(three, [0, 2]), ints(three, [5, 3]), row)
    pair.ref.copyPage(0, 5)
    pair.ref.copyPage(2, 3)
    pair.check(`${format} copied`)
    const saved = outputOf(undefined, '')
    native.kvSave(pair.kv, ints(three, slots), saved, row)
    expect([saved.dtype, saved.shape]).toEqual(['u8', [slots.length, pair.kv.savedBytes]])
    const other = new Pair(three, row, { ...options, prefix })
    const places = slots.map((slot, i) => (i === 4 ? -1 : slot < 48 ? 47 - slot : slot))
    native.kvRestore(other.kv, saved, ints(three, places), row)
    const kept = slots.flatMap((slot, i) => (i === 4 ? [] : [[slot, places[i] as number] as const]))
    const from = pair.kv.read(kept.map(([slot]) => slot))
    const to = other.kv.read(kept.map(([, place]) => place))
    expectSame(read(to.k), read(from.k), 'k')
    expectSame(read(to.v), read(from.v), 'v')
    const again = outputOf(undefined, '')
    native.kvSave(
      other.kv,
      ints(
        three,
        kept.map(([, place]) => place),
      ),
      again,
      row,
    )
    const width = pair.kv.savedBytes
    const bytes = Array.from(saved.readSync()).filter((_, i) => Math.floor(i / width) !== 4)
    expectSame(Array.from(again.readSync()), bytes, 'bytes')
  })

  test('the bytes of a cache are the same for every row and any number of threads', () => {
    const random = new Random(0x74)
    for (const format of kvFormats) {
      const [k, v] = [random.floats(70 * 2 * 96), random.floats(70 * 2 * 64)]
      const [cos, sin] = [random.floats(70 * 48), random.floats(70 * 48)]
      const slots = Int32Array.from({ length: 70 }, (_, i) => (i * 37) % 128)
      const results = [
        [one, row],
        [three, row],
        [one, onCpu ? 'kv_ref' : row],
      ].map(([on, by]) => {
        const device = on as Device
        using kv = device.kvCache({ pages: 8, pageSize: 16, kvHeads: 2, headDim: 96, headDimV: 64, format })
        native.kvAppend(
          kv,
          device.tensor(k, [70, 2, 96], 'bf16'),
          device.tensor(v, [70, 2, 64], 'bf16'),
          device.tensor(slots, [70], 'i32'),
          device.tensor(cos, [70, 48]),
          device.tensor(sin, [70, 48]),
          ints(device, [...slots.keys()]),
          0,
          by as string,
        )
        return Array.from(kv.save(slots).readSync())
      })
      for (const other of results) expectSame(other, results[0] as number[], format)
    }
  })
})

describe('the public class', () => {
  const options: KvCacheOptions = { pages: 4, pageSize: 16, kvHeads: 2, headDim: 8, format: 'int8' }
  const fill = (device: Device, shape: number[], dtype: Float = 'f32') =>
    device.tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.5), shape, dtype)

  test('says what it is, and how large', () => {
    using kv = one.kvCache({ ...options, headDimV: 6, prefix: { rows: 3, tokens: 4 } })
    expect(kv).toBeInstanceOf(KvCache)
    const { format, pages, pageSize, kvHeads, headDim, headDimV, prefix, device, disposed } = kv
    expect({ format, pages, pageSize, kvHeads, headDim, headDimV, prefix, device, disposed }).toEqual({
      ...options,
      headDimV: 6,
      prefix: { rows: 3, tokens: 4, dtype: 'bf16' },
      device: one.name,
      disposed: false,
    })
    // K 16 * 8, V 16 * 6, two rows of 16 scales: 288, in whole runs of 128; prefix: K 64, V 48 in bf16: 112.
    expect(kv.bytes).toBe(4 * 2 * 384 + 3 * 2 * 128)
    expect(kv.savedBytes).toBe(16 + 64)
    expect(String(kv)).toBe('KvCache(int8, 4 pages of 16)')
  })

  test('memory is counted, and goes back after the ops that use it', () => {
    one.syncSync()
    const [before, external] = [one.memoryUsage().used, native.externalMemory()]
    const kv = one.kvCache({ ...options, pages: 1000 })
    expect(one.memoryUsage().used - before).toBeGreaterThanOrEqual(kv.bytes)
    expect(native.externalMemory() - external).toBeGreaterThanOrEqual(kv.bytes)
    kv.append(fill(one, [2, 2, 8]), fill(one, [2, 2, 8]), [0, 999 * 16])
    const { k } = kv.read([999 * 16])
    kv.dispose()
    kv.dispose()
    expect(kv.disposed).toBe(true)
    expect(String(kv)).toContain('disposed')
    expect(read(k)[0]).toBeCloseTo(0.5, 2)
    k.dispose()
    expect(refusal(() => kv.read([0]).k)).toMatchObject({
      code: 'ERR_DISPOSED',
      message: expect.stringContaining('the KvCache is disposed'),
    })
  })

  test('lists and tensors of slots mean the same; results may be given', () => {
    using kv = one.kvCache({ ...options, format: 'f32' })
    const x = one.tensor(
      Float32Array.from({ length: 32 }, (_, i) => i),
      [2, 2, 8],
    )
    expect(kv.append(x, x, [5, 17])).toBe(kv)
    kv.append(x, x, ints(one, [6, 18])).append(x, x, Int32Array.of(7, 19))
    for (const slots of [
      [5, 17],
      [6, 18],
      [7, 19],
    ])
      expectSame(read(kv.read(slots).v), read(x), `${slots}`)
    const [k, v] = [one.empty([2, 2, 8]), one.empty([2, 2, 8])]
    expect(kv.read([5, 17], { k, v })).toEqual({ k, v })
    expectSame(read(k), read(x), 'k')
    const out = one.empty([1, kv.savedBytes], 'u8')
    expect(kv.save([17], { out })).toBe(out)
    kv.restore(out, [40]).copyPages([2], [3])
    expectSame(read(kv.read([56]).k), read(x).slice(16), 'restored and copied')
    expect(read(kv.read([]).k)).toEqual([])
    kv.append(one.empty([0, 2, 8]), one.empty([0, 2, 8]), [])
  })

  test('what quantising costs stays within half a step', () => {
    const random = new Random(9)
    for (const format of kvFormats) {
      const x = numbers(random, 128, 'f32')
      const step = stepOf(format, x)
      const { values } = refEncode(format, x)
      for (const [i, y] of values.entries())
        expect(Math.abs(y - (x[i] as number))).toBeLessThanOrEqual(0.52 * step)
    }
  })

  test('numbers out of range poison what reads the cache, and nothing is written', () => {
    const x = fill(one, [2, 2, 8])
    const bad = (act: (kv: KvCache) => Tensor | undefined, code: string, text: RegExp) => {
      using kv = one.kvCache({ ...options, prefix: { rows: 1, tokens: 2, dtype: 'f32' } })
      const error = refusal(() => act(kv))
      expect(error.code).toBe(code)
      expect(error.message).toMatch(text)
    }
    const later = (kv: KvCache) => kv.read([0]).k
    const rope = (positions: number[]) => ({
      rope: { cos: fill(one, [3, 4]), sin: fill(one, [3, 4]), positions },
    })
    bad(
      (kv) => later(kv.append(x, x, [0, 66])),
      'ERR_ARGUMENT',
      /append: slots\[1\] = 66 is no slot of the cache, 0 to 65/,
    )
    bad((kv) => later(kv.append(x, x, [-2, 0])), 'ERR_ARGUMENT', /slots\[0\] = -2/)
    bad((kv) => later(kv.append(x, x, [0, 1], rope([0, 3]))), 'ERR_ARGUMENT', /positions\[1\] = 3 is outside/)
    bad((kv) => kv.read([0, -1]).k, 'ERR_ARGUMENT', /read: slots\[1\] = -1/)
    bad((kv) => kv.save([70]), 'ERR_ARGUMENT', /save: slots\[0\] = 70/)
    bad((kv) => later(kv.copyPages([4], [0])), 'ERR_ARGUMENT', /copyPages: from\[0\] = 4 is no page/)
    bad((kv) => later(kv.copyPages([0], [-1])), 'ERR_ARGUMENT', /copyPages: to\[0\] = -1 is no page/)
    bad(
      (kv) => later(kv.restore(kv.append(x, x, [1, 64]).save([1, 64]), [64, 2])),
      'ERR_ARGUMENT',
      /restore: expected token 0 to be saved in the format of its slot/,
    )
  })

  const any = <T>(value: unknown): T => value as T
  const shaped = (shape: number[], dtype: Float = 'f32') => fill(one, shape, dtype)
  const x = () => shaped([2, 2, 8])
  const make = (more: Partial<Record<keyof KvCacheOptions, unknown>>) => {
    one.kvCache({ ...options, ...more } as KvCacheOptions).dispose()
    return undefined
  }
  const on = (act: (kv: KvCache) => unknown) => {
    using kv = one.kvCache(options)
    act(kv)
    return undefined
  }
  const rope = (more: object) => ({
    rope: { cos: shaped([3, 4]), sin: shaped([3, 4]), positions: [0, 1], ...more },
  })
  const refused: [string, string, RegExp, () => undefined][] = [
    [
      'an unknown format',
      'ERR_ARGUMENT',
      /kvCache: format.*int4 but got 'nf4'/,
      () => make({ format: 'nf4' }),
    ],
    ['a page of 7', 'ERR_ARGUMENT', /pageSize from 8 to 256 but got 7/, () => make({ pageSize: 7 })],
    [
      'a page of 24',
      'ERR_ARGUMENT',
      /pageSize to be a power of two but got 24/,
      () => make({ pageSize: 24 }),
    ],
    ['half a page', 'ERR_TYPE', /pageSize to be a whole number/, () => make({ pageSize: 8.5 })],
    ['pages below 0', 'ERR_ARGUMENT', /pages from 0 to 2147483647 but got -1/, () => make({ pages: -1 })],
    ['too many slots', 'ERR_ARGUMENT', /at most 2147483647 tokens/, () => make({ pages: 2 ** 31 / 16 })],
    ['no heads', 'ERR_ARGUMENT', /kvHeads from 1/, () => make({ kvHeads: 0 })],
    ['a head dim of 0', 'ERR_ARGUMENT', /headDim from 1 to 1024 but got 0/, () => make({ headDim: 0 })],
    ['a head dim of 1025', 'ERR_ARGUMENT', /headDimV from 1 to 1024/, () => make({ headDimV: 1025 })],
    ['no head dim', 'ERR_TYPE', /headDim to be a whole number/, () => make({ headDim: undefined })],
    [
      'odd int4',
      'ERR_ARGUMENT',
      /to be even for int4 but got 7 and 7/,
      () => make({ headDim: 7, format: 'int4' }),
    ],
    [
      'a quantised prefix',
      'ERR_ARGUMENT',
      /prefix.dtype to be f32, f16 or bf16 but got int8/,
      () => make({ prefix: { rows: 1, tokens: 1, dtype: 'int8' } }),
    ],
    [
      'a prefix of no tokens',
      'ERR_ARGUMENT',
      /prefix.tokens from 1/,
      () => make({ prefix: { rows: 1, tokens: 0 } }),
    ],
    [
      'more memory than there is',
      'ERR_MEMORY',
      /kvCache: /,
      () => make({ pages: 2 ** 22, pageSize: 256, kvHeads: 4096, headDim: 1024 }),
    ],
    [
      'k of rank 2',
      'ERR_SHAPE',
      /append: expected k of shape \[2, 2, 8\]/,
      () => on((kv) => kv.append(shaped([2, 16]), x(), [0, 1])),
    ],
    [
      'other heads',
      'ERR_SHAPE',
      /append: expected v of shape/,
      () => on((kv) => kv.append(x(), shaped([2, 1, 8]), [0, 1])),
    ],
    [
      'other tokens',
      'ERR_SHAPE',
      /append: expected v of shape/,
      () => on((kv) => kv.append(x(), shaped([3, 2, 8]), [0, 1])),
    ],
    [
      'slots too few',
      'ERR_SHAPE',
      /slots of shape \[2\] \(the tokens of k\) but got \[1\]/,
      () => on((kv) => kv.append(x(), x(), [0])),
    ],
    [
      'slots of floats',
      'ERR_DTYPE',
      /slots in i32 but got f32/,
      () => on((kv) => kv.append(x(), x(), shaped([2]))),
    ],
    [
      'slots of fractions',
      'ERR_ARGUMENT',
      /append: slots\[1\]: expected a whole number/,
      () => on((kv) => kv.append(x(), x(), [0, 0.5])),
    ],
    [
      'slots of rank 2',
      'ERR_SHAPE',
      /read: expected slots of shape \[n\]/,
      () => on((kv) => kv.read(ints(one, [0, 1]).reshape([2, 1]))),
    ],
    [
      'integers',
      'ERR_DTYPE',
      /append: expected k in f32, f16 or bf16 but got i8/,
      () => on((kv) => kv.append(one.empty([2, 2, 8], 'i8'), x(), [0, 1])),
    ],
    [
      'columns as rows',
      'ERR_STRIDES',
      /append: expected k with a contiguous last/,
      () => on((kv) => kv.append(shaped([2, 8, 2]).transpose(1, 2), x(), [0, 1])),
    ],
    [
      'k of another device',
      'ERR_DEVICE',
      /k/,
      () => on((kv) => kv.append(fill(three, [2, 2, 8]), x(), [0, 1])),
    ],
    [
      'no tensor',
      'ERR_TYPE',
      /append: expected k to be a Tensor/,
      () => on((kv) => kv.append(any(1), x(), [0, 1])),
    ],
    [
      'cos without sin',
      'ERR_TYPE',
      /append: sin must be given/,
      () => on((kv) => kv.append(x(), x(), [0, 1], rope({ sin: undefined }))),
    ],
    [
      'wide tables',
      'ERR_SHAPE',
      /rotaryDim from 2 to headDim = 8 but got \[3, 5\]/,
      () => on((kv) => kv.append(x(), x(), [0, 1], rope({ cos: shaped([3, 5]), sin: shaped([3, 5]) }))),
    ],
    [
      'sin of another shape',
      'ERR_SHAPE',
      /sin of shape \[3, 4\] \(as cos\)/,
      () => on((kv) => kv.append(x(), x(), [0, 1], rope({ sin: shaped([4, 4]) }))),
    ],
    [
      'positions too few',
      'ERR_SHAPE',
      /positions of shape \[2\] \(the tokens of k\)/,
      () => on((kv) => kv.append(x(), x(), [0, 1], rope({ positions: [0] }))),
    ],
    [
      'half tables',
      'ERR_DTYPE',
      /cos in f32 but got f16/,
      () => on((kv) => kv.append(x(), x(), [0, 1], rope({ cos: shaped([3, 4], 'f16') }))),
    ],
    [
      'an unknown pairing',
      'ERR_ARGUMENT',
      /append: rope.pairing/,
      () => on((kv) => kv.append(x(), x(), [0, 1], rope({ pairing: any('both') }))),
    ],
    [
      'pages of different numbers',
      'ERR_SHAPE',
      /copyPages: expected to of shape \[2\]/,
      () => on((kv) => kv.copyPages([0, 1], [2])),
    ],
    [
      'bytes of another width',
      'ERR_SHAPE',
      /restore: expected bytes of shape \[1, 64\]/,
      () => on((kv) => kv.restore(one.empty([1, 63], 'u8'), [0])),
    ],
    [
      'bytes that are floats',
      'ERR_DTYPE',
      /restore: expected bytes in u8/,
      () => on((kv) => kv.restore(one.empty([1, 64]), [0])),
    ],
    [
      'results of another shape',
      'ERR_SHAPE',
      /read: expected k of shape \[1, 2, 8\]/,
      () => on((kv) => kv.read([0], { k: shaped([2, 2, 8]) })),
    ],
    [
      'results in bf16',
      'ERR_DTYPE',
      /read: expected v in f32/,
      () => on((kv) => kv.read([0], { v: shaped([1, 2, 8], 'bf16') })),
    ],
    [
      'one place for both results',
      'ERR_ARGUMENT',
      /k in memory of its own but it overlaps v/,
      () =>
        on((kv) => {
          const both = shaped([1, 2, 8])
          kv.read([0], { k: both, v: both })
        }),
    ],
    [
      'a device that is closed',
      'ERR_DISPOSED',
      /closed/,
      () => {
        const device = openTest()
        const kv = device.kvCache(options)
        device.close()
        kv.read([0])
        return undefined
      },
    ],
  ]
  test.each(refused)('refuses %s', (_what, code, text, act) => {
    const error = refusal(act)
    expect(error.code).toBe(code)
    expect(error.message).toMatch(text)
  })
})

test('formats are those of the native table', () => {
  const all: readonly KvFormat[] = kvFormats
  expect(all).toEqual(['f32', 'f16', 'bf16', 'fp8_e4m3', 'int8', 'int4'])
})
