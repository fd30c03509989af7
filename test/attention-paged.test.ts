// Attention on paged caches: every kernel row that this machine can run, forced by name, over formats, page sizes and
// options against the float64 reference; the public forms; and every call that is refused.
import {
  attention,
  type Device,
  type KvCache,
  type KvFormat,
  type PagedAttentionOptions,
  type Tensor,
} from 'lowbit'
import { description, native } from 'lowbit/native'
import { kvFormats, scores } from 'lowbit/words'
import { expectAttention, type RefAttention, type RefSequence } from './ref/attention'
import { RefCache } from './ref/cache'
import { expectSame, type Float, floats } from './ref/compare'
import { openTest } from './ref/device'
import { Random } from './ref/random'
import { eachRow, expectPadding, ints, numbers, place, read, refusal, room } from './ref/rows'

const { NaN: nan, POSITIVE_INFINITY: inf } = Number
let one: Device
let two: Device
let three: Device
beforeAll(() => {
  one = openTest({ threads: 1 })
  two = openTest({ threads: 2 })
  three = openTest({ threads: 3 })
})
afterAll(() => {
  for (const device of [one, two, three]) device.close()
})

/** A cache's call: what the reference needs, and where its keys stand. */
interface Call extends RefAttention {
  readonly format: KvFormat
  readonly pages: number
  readonly pageSize: number
  readonly prefix?: { readonly rows: number; readonly tokens: number; readonly dtype: Float } | undefined
  /** The slots of all keys of all sequences. */
  readonly slots: readonly (readonly number[])[]
  /** Keys and values as they are appended. */
  readonly rawK: readonly number[]
  readonly rawV: readonly number[]
  readonly table: readonly (readonly number[])[]
  readonly prefixRows?: readonly number[] | undefined
  readonly prefixLens?: readonly number[] | undefined
  readonly batched: boolean
  readonly dtype: Float
  readonly outDtype: Float
  readonly padded: boolean
}

interface Sizes {
  readonly lengths: readonly (readonly [seqQ: number, seqKv: number])[]
  readonly format: KvFormat
  readonly pageSize?: number
  readonly heads?: number
  readonly kvHeads?: number
  readonly headDim?: number
  readonly headDimV?: number
  readonly batched?: boolean
  readonly prefix?: { readonly tokens: number; readonly dtype: Float } | undefined
  readonly dtype?: Float
  readonly outDtype?: Float
  readonly padded?: boolean
}
type Options = Pick<
  RefAttention,
  | 'causal'
  | 'windowLeft'
  | 'windowRight'
  | 'softcap'
  | 'alibiSlopes'
  | 'sinks'
  | 'softmaxScale'
  | 'sigmoid'
  | 'bias'
>

/** Random numbers for these sizes; pages in random order, full pages of one sequence shared with the next. */
function callOf(random: Random, sizes: Sizes, options: Options = {}): Call {
  const { heads = 2, kvHeads = 1, headDim = 16, headDimV = headDim, batched = false, pageSize = 16 } = sizes
  const { dtype = 'f32', outDtype = dtype, padded = false, lengths, format } = sizes
  const batch = lengths.length
  const prefix = sizes.prefix && { ...sizes.prefix, rows: batch + 1 }
  const width = Math.max(0, ...lengths.map(([, kv]) => Math.ceil(kv / pageSize))) + (padded ? 1 : 0)
  const pages = Math.max(1, batch * width) + 1
  const free = Array.from({ length: pages }, (_, i) => i)
  for (let i = pages - 1; i > 0; i--) {
    const j = random.int(0, i)
    ;[free[i], free[j]] = [free[j] as number, free[i] as number]
  }
  const prefixRows = prefix && lengths.map((_, b) => (random.next() < 0.7 ? b : -1))
  const prefixLens =
    prefix && random.next() < 0.6 ? lengths.map(() => random.int(0, prefix.tokens)) : undefined
  const table: number[][] = []
  const slots: number[][] = []
  const sequences: RefSequence[] = []
  const known = new Map<number, { k: number[]; v: number[] }>()
  const [k, v, rawK, rawV]: [number[], number[], number[], number[]] = [[], [], [], []]
  const ref = new RefCache(format, prefix?.dtype ?? 'bf16', pages, pageSize, kvHeads)
  let [q0, kv0] = [0, 0]
  for (const [b, [ownQ, seqKv]] of lengths.entries()) {
    const seqQ = batched ? (lengths[0]?.[0] ?? 0) : ownQ
    sequences.push({ q0, kv0, seqQ, seqKv })
    q0 += seqQ
    kv0 += seqKv
    const row = prefixRows?.[b] ?? -1
    const own = row < 0 ? 0 : Math.min(seqKv, prefixLens?.[b] ?? prefix?.tokens ?? 0)
    const shares = b > 0 && random.next() < 0.3 ? Math.min(Math.floor(seqKv / pageSize), 2) : 0
    const line = Array.from({ length: width }, (_, p) => {
      // Nobody looks at pages under a prefix, nor at those past the end.
      if ((p + 1) * pageSize <= own || p * pageSize >= seqKv) return -7
      const shared = table[b - 1]?.[p] ?? -1
      const before = sequences[b - 1]?.seqKv ?? 0
      if (p < shares && shared >= 0 && (p + 1) * pageSize <= before) return shared
      return free.pop() as number
    })
    table.push(line)
    slots.push(
      Array.from({ length: seqKv }, (_, j) =>
        j < own
          ? pages * pageSize + row * (prefix?.tokens ?? 0) + j
          : (line[Math.floor(j / pageSize)] as number) * pageSize + (j % pageSize),
      ),
    )
    for (const slot of slots[b] as number[]) {
      let token = known.get(slot)
      if (token === undefined) {
        token = {
          k: numbers(random, kvHeads * headDim, dtype, -1, 1),
          v: numbers(random, kvHeads * headDimV, dtype, -1, 1),
        }
        known.set(slot, token)
        const heads = (x: number[], dim: number) =>
          Array.from({ length: kvHeads }, (_, h) => x.slice(h * dim, (h + 1) * dim))
        ref.write(slot, heads(token.k, headDim), heads(token.v, headDimV))
      }
      rawK.push(...token.k)
      rawV.push(...token.v)
      k.push(...ref.k(slot))
      v.push(...ref.v(slot))
    }
  }
  return {
    ...options,
    ...{
      q: numbers(random, q0 * heads * headDim, dtype, -1, 1),
      k,
      v,
      rawK,
      rawV,
      sequences,
      heads,
      kvHeads,
    },
    ...{ headDim, headDimV, format, pages, pageSize, prefix, slots, table, prefixRows, prefixLens },
    ...{ batched, dtype, outDtype, padded },
  }
}

/** The cache of a call, every number of which that the call must not see is NaN. */
function cacheOf(device: Device, call: Call): KvCache {
  const { pages, pageSize, kvHeads, headDim, headDimV, format, prefix, dtype } = call
  const kv = device.kvCache({ pages, pageSize, kvHeads, headDim, headDimV, format, prefix })
  const total = pages * pageSize + (prefix === undefined ? 0 : prefix.rows * prefix.tokens)
  const tensor = (values: readonly number[], dim: number) =>
    device.tensor(Float32Array.from(values), [values.length / (kvHeads * dim), kvHeads, dim], dtype)
  const nothing = (dim: number) => tensor(new Array<number>(total * kvHeads * dim).fill(nan), dim)
  kv.append(
    nothing(headDim),
    nothing(headDimV),
    Int32Array.from({ length: total }, (_, i) => i),
  )
  const seen = new Set<number>()
  const slots = call.slots.flat().map((slot) => {
    if (seen.has(slot)) return -1
    seen.add(slot)
    return slot
  })
  kv.append(tensor(call.rawK, headDim), tensor(call.rawV, headDimV), slots)
  return kv
}

const vector = (device: Device, values: readonly number[] | undefined) =>
  values && device.tensor(Float32Array.from(values), [values.length])

function run(row: string, device: Device, call: Call, label = ''): { out: number[]; lse: number[] } {
  const { sequences, heads, headDim, headDimV, batched, dtype, padded, table, bias } = call
  const batch = sequences.length
  const tokens = sequences.reduce((sum, s) => sum + s.seqQ, 0)
  const seqQ = sequences[0]?.seqQ ?? 0
  const shape = (dim: number) => (batched ? [batch, seqQ, heads, dim] : [tokens, heads, dim])
  const out = room(device, shape(headDimV), call.outDtype, padded)
  const lse = room(device, batched ? [batch, heads, seqQ] : [heads, tokens], 'f32', padded)
  const width = table[0]?.length ?? 0
  const columns = Math.max(0, ...sequences.map((s) => s.seqKv))
  const biases = bias && new Array<number>(heads * tokens * columns).fill(nan)
  for (const [b, { q0, seqQ: own, seqKv }] of sequences.entries()) {
    for (let h = 0; h < heads && bias !== undefined; h++) {
      for (let i = 0; i < own; i++) {
        const at = batched ? (b * heads + h) * seqQ + i : h * tokens + q0 + i
        for (let j = 0; j < seqKv; j++) (biases as number[])[at * columns + j] = bias(b, i, h, j)
      }
    }
  }
  using kv = cacheOf(device, call)
  native.attention(
    place(device, call.q, shape(headDim), dtype, padded).view,
    kv,
    undefined,
    batched || (batch === 1 && !padded)
      ? undefined
      : ints(device, [0, ...sequences.map((s) => s.q0 + s.seqQ)]),
    undefined,
    ints(
      device,
      sequences.map((s) => s.seqKv),
    ),
    vector(device, call.alibiSlopes),
    vector(device, call.sinks),
    biases &&
      place(device, biases, batched ? [batch, heads, seqQ, columns] : [heads, tokens, columns], 'f32', padded)
        .view,
    place(device, table.flat(), [batch, width], 'i32', padded).view,
    call.prefixRows && ints(device, call.prefixRows),
    call.prefixLens && ints(device, call.prefixLens),
    call.softmaxScale ?? 0,
    call.softcap ?? 0,
    call.windowLeft ?? -1,
    call.windowRight ?? -1,
    call.causal ?? false,
    scores.indexOf(call.sigmoid ? 'sigmoid' : 'softmax'),
    undefined,
    undefined,
    undefined,
    out.view,
    call.sigmoid ? undefined : lse.view,
    row,
  )
  const flat = read(lse.view)
  const turned = flat.map((_, i) => {
    const [t, h] = [Math.floor(i / heads), i % heads]
    if (!batched) return flat[h * tokens + t] as number
    return flat[(Math.floor(t / seqQ) * heads + h) * seqQ + (t % seqQ)] as number
  })
  const result = { out: read(out.view), lse: turned }
  expectPadding(out, label)
  expectPadding(lse, label)
  return result
}

const describeCall = (call: Call, seed: number) => {
  const { q, k, v, rawK, rawV, slots, ...rest } = call
  return `${JSON.stringify(rest)} seed ${seed}`
}
function check(row: string, device: Device, call: Call, seed: number): void {
  const label = describeCall(call, seed)
  expectAttention(row, call, run(row, device, call, label), call.outDtype, label)
}

/** Options drawn at random, all of which may stand together. */
function randomOptions(random: Random, heads: number, bias: boolean): Options {
  const chance = (p: number) => random.next() < p
  const sigmoid = chance(0.15)
  const phase = random.float(0, 9)
  return {
    causal: chance(0.5),
    windowLeft: chance(0.3) ? random.int(0, 40) : -1,
    windowRight: chance(0.2) ? random.int(0, 40) : -1,
    softcap: chance(0.2) ? random.pick([0.5, 8, 30]) : 0,
    alibiSlopes: chance(0.2) ? numbers(random, heads, 'f32', -0.5, 0.5) : undefined,
    sinks: !sigmoid && chance(0.2) ? numbers(random, heads, 'f32', -3, 3) : undefined,
    softmaxScale: chance(0.3) ? Math.fround(random.float(-0.5, 0.5)) : undefined,
    sigmoid,
    bias:
      bias && chance(0.2)
        ? (b, i, h, j) => Math.fround(2 * Math.sin(phase + b + 3 * i + 5 * h + 7 * j))
        : undefined,
  }
}

function randomCall(
  random: Random,
  format: KvFormat,
  pageSize: number,
  dtypes: readonly Float[],
  bias: boolean,
): Call {
  const chance = (p: number) => random.next() < p
  const kvHeads = random.int(1, 3)
  const heads = kvHeads * random.pick([1, 1, 2, 4, 5, 8])
  const headDim = random.pick([8, 16, 34, 64, 128])
  const length = () => random.pick([0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 80, 130])
  const few = chance(0.6)
  const lengths = Array.from({ length: random.pick([0, 1, 1, 2, 3]) }, () => {
    const seqKv = length()
    return [few ? random.int(0, 3) : Math.min(length(), Math.ceil(200 / heads)), seqKv] as const
  })
  const dtype = random.pick(dtypes)
  return callOf(
    random,
    {
      ...{ lengths, format, pageSize, heads, kvHeads, headDim, dtype },
      headDimV: chance(0.6) ? headDim : random.pick([2, 8, 20, 40]),
      batched: chance(0.4),
      prefix: chance(0.4) ? { tokens: random.int(1, 20), dtype: random.pick(floats) } : undefined,
      outDtype: chance(0.6) ? dtype : 'f32',
      padded: chance(0.5),
    },
    randomOptions(random, heads, bias),
  )
}

eachRow('attention', (row) => {
  const about = description.kernels.find(({ name }) => name === row) as unknown as {
    dtypes: string[]
    kvFormats: KvFormat[]
    bias: boolean
  }
  const dtypes = floats.filter((dtype) => about.dtypes.includes(dtype))
  if (about.kvFormats.length === 0) {
    test.skip('reads no pages', () => {})
    return
  }
  const all = kvFormats.every((format) => about.kvFormats.includes(format))

  test.each(about.kvFormats)('%s: a random walk over page sizes, forms, sizes and options', (format) => {
    let seed = 3000
    for (const pageSize of [8, 16, 32, 64, 128, 256]) {
      for (let n = 0; n < 6; n++) {
        const call = randomCall(new Random(++seed), format, pageSize, dtypes, about.bias)
        if (call.prefix !== undefined && !about.kvFormats.includes(call.prefix.dtype)) continue
        check(row, two, call, seed)
      }
    }
  })

  test.each(about.kvFormats)('%s: lengths around tiles, pages and splits', (format) => {
    const random = new Random(31)
    for (const [seqQ, seqKv] of [
      [1, 63],
      [1, 64],
      [1, 65],
      [2, 257],
      [5, 700],
      [9, 300],
      [1, 1300],
      [70, 200],
      [193, 193],
    ] as const) {
      for (const headDim of seqQ < 70 ? [32, 64, 128] : [64]) {
        const sizes = { lengths: [[seqQ, seqKv]] as const, format, heads: 4, kvHeads: 2, headDim }
        const dtype = random.pick(dtypes)
        check(
          row,
          two,
          callOf(random, { ...sizes, dtype, pageSize: random.pick([8, 32, 256]) }, { causal: true }),
          31,
        )
      }
    }
    const mixed = [
      [1, 900],
      [40, 40],
      [0, 3],
      [1, 0],
      [3, 1],
      [2, 260],
    ] as const
    const sizes = {
      lengths: mixed,
      format,
      heads: 8,
      kvHeads: 2,
      headDim: 64,
      headDimV: 48,
      dtype: random.pick(dtypes),
    }
    check(row, three, callOf(random, sizes, { causal: true, windowLeft: 500 }), 31)
    check(row, three, callOf(random, { ...sizes, headDimV: 64 }, { causal: true, windowLeft: 500 }), 31)
    const prefix = { tokens: 7, dtype: all ? 'bf16' : (about.kvFormats[0] as Float) } as const
    check(
      row,
      three,
      callOf(random, { ...sizes, prefix }, { causal: true, sinks: numbers(random, 8, 'f32', 0, 4) }),
      31,
    )
    check(row, three, callOf(random, { ...sizes, headDimV: 64, prefix }, { causal: true }), 31)
  })

  test('more work than a GPU has blocks for', () => {
    const format = about.kvFormats.at(-1) as KvFormat
    const random = new Random(17)
    const lengths = Array.from({ length: 40 }, (_, i) => [9 + (i % 3), 60 + 2 * i] as const)
    const dtype = random.pick(dtypes)
    const sizes = { lengths, format, heads: 4, kvHeads: 2, headDim: 128, dtype, pageSize: 32 }
    check(row, two, callOf(random, sizes, { causal: true }), 17)
  })

  test.each(about.kvFormats)('%s: the same bits for one, two and three threads', (format) => {
    const random = new Random(4)
    const lengths = [
      [1, 1100],
      [150, 150],
      [5, 700],
      [0, 10],
    ] as const
    const sizes = { lengths, format, heads: 4, kvHeads: 2, headDim: 24, dtype: dtypes[0] ?? 'f32' }
    const call = callOf(random, sizes, { causal: true })
    const want = run(row, one, call)
    for (const device of [two, three]) {
      const got = run(row, device, call)
      expectSame(got.out, want.out, `${format} out`)
      expectSame(got.lse, want.lse, `${format} lse`)
    }
  })

  test.each(about.kvFormats)(
    '%s: a token that holds NaN or inf reaches the rows that see it and no other',
    (format) => {
      const random = new Random(5)
      for (const [seqQ, headDim] of [
        [2, 16],
        [40, 16],
        [7, 64],
        [40, 128],
      ] as const) {
        for (const bad of [nan, inf]) {
          const sizes = {
            lengths: [[seqQ, 60]] as const,
            format,
            heads: 2,
            headDim,
            dtype: dtypes[0] ?? 'f32',
          }
          const clean = callOf(random, sizes, { causal: true })
          const j = 60 - Math.ceil(seqQ / 2)
          const rawV = clean.rawV.map((x, i) => (i === j * headDim + 5 ? bad : x))
          const [want, got] = [run(row, two, clean), run(row, two, { ...clean, rawV })]
          const width = 2 * headDim
          const before = (j - (60 - seqQ)) * width // of the first query that sees it
          expectSame(got.out.slice(0, before), want.out.slice(0, before), `${format} ${bad} before`)
          for (let at = before; at < seqQ * width; at += width)
            expect([format, bad, at, Number.isFinite(got.out[at + 5])]).toEqual([format, bad, at, false])
        }
      }
    },
  )

  test('rows that see nothing', () => {
    const format = about.kvFormats[0] as KvFormat
    const random = new Random(6)
    const lengths = [
      [6, 2],
      [2, 0],
    ] as const
    const sizes = { lengths, format, heads: 4, kvHeads: 2, dtype: dtypes[0] ?? 'f32' }
    const { out, lse } = run(row, two, callOf(random, sizes, { causal: true }))
    expect(out.slice(0, 4 * 64).every((x) => Object.is(x, 0))).toBe(true)
    expect(lse.slice(0, 16).every((x) => x === -inf)).toBe(true)
    expect(new Set(out.slice(6 * 64))).toEqual(new Set([0]))
    const sinks = [0.5, -2, -inf, 7]
    expect(run(row, two, callOf(random, sizes, { causal: true, sinks })).lse.slice(24)).toEqual([
      ...sinks,
      ...sinks,
    ])
  })
})

describe('the public function', () => {
  const f32 = (shape: number[], value = 0.5, device = two) =>
    device.tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value), shape)
  const cache = (more: object = {}) => {
    const kv = two.kvCache({ pages: 4, pageSize: 8, kvHeads: 2, headDim: 8, format: 'f32', ...more })
    const slots = Array.from({ length: 32 }, (_, i) => i)
    const random = new Random(12)
    const tensor = () => two.tensor(random.floats(32 * 2 * kv.headDim), [32, 2, kv.headDim])
    return kv.append(tensor(), tensor(), slots)
  }

  test('pages mean what the same keys mean as tensors; lists, tensors and options', () => {
    const random = new Random(13)
    using kv = cache()
    const q = two.tensor(random.floats(5 * 4 * 8), [5, 4, 8])
    const { k, v } = kv.read([16, 17, 18, 19, 20, 21, 22, 23, 0, 1, 8, 9, 10])
    const options = { causal: true, returnLse: true, cuSeqlensQ: [0, 2, 5], sinks: f32([4]) } as const
    const want = attention(q, k, v, { ...options, cuSeqlensKv: [0, 10, 13] })
    const paged = { pageTable: [[2, 0], [1]], kvLens: [10, 3] }
    const got = attention(q, kv, { ...options, ...paged })
    for (const part of ['out', 'lse'] as const) {
      const expected = read(want[part])
      for (const [i, x] of read(got[part]).entries()) expect(x).toBeCloseTo(expected[i] as number, 5)
    }
    const pageTable = ints(two, [2, 0, 1, -1]).reshape([2, 2])
    const tensors = attention(q, kv, { ...options, pageTable, kvLens: ints(two, [10, 3]) })
    expectSame(read(tensors.out), read(got.out), 'tensors')
    const out = two.empty([2, 1, 4, 8])
    const batched = q.slice(0, 0, 2).reshape([2, 1, 4, 8])
    expect(attention(batched, kv, { ...paged, out })).toBe(out)
    const alone = attention(q.slice(0, 1, 2), kv, { pageTable: [[1]], kvLens: [3] })
    expectSame(read(out).slice(32), read(alone), 'batched, and packed of one sequence')
  })

  test('memory goes back, also that of lists', () => {
    const kv = cache()
    const q = f32([1, 2, 8])
    two.syncSync()
    const before = two.memoryUsage().used
    attention(q, kv, { pageTable: [[0]], kvLens: [3], prefixRows: undefined }).dispose()
    two.syncSync()
    expect(two.memoryUsage().used).toBe(before)
    const o = attention(q, kv, { pageTable: [[0]], kvLens: [3] })
    kv.dispose()
    expect(read(o).every(Number.isFinite)).toBe(true)
  })

  const any = <T>(value: unknown): T => value as T
  const q = () => f32([3, 4, 8])
  const good = { pageTable: [[0, 1]], kvLens: [9] }
  const call = (more: object, of: object = {}, queries: Tensor = q()) =>
    attention(queries, cache(of), { ...good, ...more } as PagedAttentionOptions)
  const prefix = { prefix: { rows: 2, tokens: 4 } }
  const refused: [what: string, code: string, text: RegExp, act: () => Tensor][] = [
    ['no page table', 'ERR_ARGUMENT', /a KvCache needs pageTable/, () => call({ pageTable: undefined })],
    ['no lengths', 'ERR_ARGUMENT', /a KvCache needs kvLens/, () => call({ kvLens: undefined })],
    [
      'cuSeqlensKv',
      'ERR_ARGUMENT',
      /cuSeqlensKv goes with tensors; kvLens says/,
      () => call({ cuSeqlensKv: [0, 3] }),
    ],
    [
      'another head dim',
      'ERR_SHAPE',
      /q with the headDim 8 of the cache but got \[3, 4, 9\]/,
      () => call({}, {}, f32([3, 4, 9])),
    ],
    [
      'heads and kv heads',
      'ERR_SHAPE',
      /a multiple of kvHeads = 2 but got 3/,
      () => call({}, {}, f32([3, 3, 8])),
    ],
    ['integers', 'ERR_DTYPE', /q in f32, f16 or bf16/, () => call({}, {}, two.empty([3, 4, 8], 'i32'))],
    [
      'a table of two rows',
      'ERR_SHAPE',
      /pageTable of shape \[1, pages\] \(one sequence, as cuSeqlensQ is absent\) but got \[2, 1\]/,
      () => call({ pageTable: [[0], [1]] }),
    ],
    [
      'a table of another batch',
      'ERR_SHAPE',
      /pageTable of shape \[3, pages\] \(the batch of q\)/,
      () => call({}, {}, f32([3, 1, 4, 8])),
    ],
    [
      'a table of fewer sequences',
      'ERR_SHAPE',
      /\(the sequences of cuSeqlensQ\)/,
      () => call({ cuSeqlensQ: [0, 1, 3] }),
    ],
    [
      'a flat table',
      'ERR_TYPE',
      /pageTable: expected a Tensor or a list of rows/,
      () => call({ pageTable: any([0, 1]) }),
    ],
    ['a table of floats', 'ERR_DTYPE', /pageTable in i32/, () => call({ pageTable: f32([1, 2]) })],
    [
      'a table of columns',
      'ERR_STRIDES',
      /pageTable with a contiguous last/,
      () => call({ pageTable: two.empty([2, 2], 'i32').transpose(0, 1).slice(0, 0, 1) }),
    ],
    [
      'lengths of another batch',
      'ERR_SHAPE',
      /kvLens of shape \[1\] \(the sequences of pageTable\)/,
      () => call({ kvLens: [9, 9] }),
    ],
    [
      'a length past the table',
      'ERR_ARGUMENT',
      /kvLens\[0\] in 0 to 16 but got 17/,
      () => call({ kvLens: [17] }),
    ],
    ['a negative length', 'ERR_ARGUMENT', /kvLens\[0\] in 0 to 16 but got -1/, () => call({ kvLens: [-1] })],
    [
      'a page that is not there',
      'ERR_ARGUMENT',
      /pageTable\[0, 1\] = 4 is no page of the cache, 0 to 3/,
      () => call({ pageTable: [[0, 4]] }),
    ],
    ['a negative page', 'ERR_ARGUMENT', /pageTable\[0, 0\] = -1/, () => call({ pageTable: [[-1, 0]] })],
    [
      'prefixes without a region',
      'ERR_ARGUMENT',
      /the cache has no prefix region/,
      () => call({ prefixRows: [0] }),
    ],
    [
      'lengths of prefixes alone',
      'ERR_ARGUMENT',
      /prefixLens was given without prefixRows/,
      () => call({ prefixLens: [0] }, prefix),
    ],
    [
      'a prefix row that is not there',
      'ERR_ARGUMENT',
      /prefixRows\[0\] in -1 to 1 but got 2/,
      () => call({ prefixRows: [2] }, prefix),
    ],
    [
      'a prefix too long',
      'ERR_ARGUMENT',
      /prefixLens\[0\] in 0 to 4 but got 5/,
      () => call({ prefixRows: [0], prefixLens: [5] }, prefix),
    ],
    [
      'prefix rows of another batch',
      'ERR_SHAPE',
      /prefixRows of shape \[1\]/,
      () => call({ prefixRows: [0, 0] }, prefix),
    ],
    [
      'pages of tensors',
      'ERR_ARGUMENT',
      /pageTable goes with a KvCache but k is a tensor/,
      () =>
        attention(
          f32([3, 2, 8]),
          f32([3, 2, 8]),
          f32([3, 2, 8]),
          any<object>({ pageTable: ints(two, [0]).reshape([1, 1]) }),
        ),
    ],
    [
      'bias in bf16',
      'ERR_DTYPE',
      /bias in f32 but got bf16/,
      () => call({ bias: two.empty([4, 3, 9], 'bf16') }),
    ],
    [
      'bias of other queries',
      'ERR_SHAPE',
      /bias of shape \[4 or 1, 3, keys\] \(heads and tokens of q\) but got \[4, 2, 9\]/,
      () => call({ bias: f32([4, 2, 9]) }),
    ],
    [
      'bias of other heads',
      'ERR_SHAPE',
      /bias of shape \[4 or 1, 3, keys\]/,
      () => call({ bias: f32([2, 3, 9]) }),
    ],
    [
      'bias of another batch',
      'ERR_SHAPE',
      /\[1 or 1, 4 or 1, 3, keys\] \(batch, heads and queries of q\) but got \[2, 4, 3, 9\]/,
      () => call({ bias: f32([2, 4, 3, 9]) }, {}, f32([1, 3, 4, 8])),
    ],
    [
      'bias with too few columns',
      'ERR_ARGUMENT',
      /each of the 9 keys of sequence 0 but got \[4, 3, 8\]/,
      () => call({ bias: f32([4, 3, 8]) }),
    ],
    [
      'bias of columns',
      'ERR_STRIDES',
      /bias with a contiguous last/,
      () => call({ bias: f32([4, 9, 3]).transpose(1, 2) }),
    ],
    [
      'out in the memory of bias',
      'ERR_ARGUMENT',
      /memory of its own but it overlaps bias/,
      () => {
        const bias = f32([1, 3, 32])
        return call({ bias, out: bias.reshape([3, 4, 8]) })
      },
    ],
    [
      'q of another device',
      'ERR_DEVICE',
      /kv is on another device than q/,
      () => call({}, {}, f32([3, 4, 8], 0.5, one)),
    ],
    [
      'a disposed cache',
      'ERR_DISPOSED',
      /kv is disposed/,
      () => {
        const kv = cache()
        kv.dispose()
        return attention(q(), kv, good)
      },
    ],
    [
      'a cache that is none',
      'ERR_TYPE',
      /expected k to be a Tensor/,
      () => attention(q(), any({}), any(f32([3, 2, 8]))),
    ],
  ]
  test.each(refused)('refuses %s', (_what, code, text, act) => {
    const error = refusal(act)
    expect(error.code).toBe(code)
    expect(error.message).toMatch(text)
  })
})
