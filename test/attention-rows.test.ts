// Every kernel row of attention that this machine can run, forced by name, against the float64 reference.
import type { Device, Tensor } from 'lowbit'
import { description, native } from 'lowbit/native'
import { scores } from 'lowbit/words'
import { expectAttention, type RefAttention, type RefSequence, refAttention, sees } from './ref/attention'
import { exact, expectClose, expectSame, type Float, floats, roundTo } from './ref/compare'
import { openTest } from './ref/device'
import { decodeFloat, encodeFloat, minifloats } from './ref/floats'
import { Random } from './ref/random'
import { eachRow, expectPadding, ints, numbers, place, read, room } from './ref/rows'

const { NaN: nan, NEGATIVE_INFINITY: minusInf, POSITIVE_INFINITY: inf } = Number
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

/** Plain: contiguous. Padded: NaN on all sides. Heads: each head's tokens lie together, as in a cache that is made so. */
type Placing = 'plain' | 'padded' | 'heads'
const placings: readonly Placing[] = ['plain', 'padded', 'heads']

interface Call extends RefAttention {
  /** How many positions of k and v each sequence has room for; absent: the packed form. */
  readonly batchedKv?: number | undefined
  readonly dtype: Float
  readonly outDtype: Float
  readonly placing: Placing
  /** Whether all heads and sequences of the batched form have one bias. */
  readonly sharedBias?: boolean
  /** q, k and v as e4m3 numbers, and their scales; q, k and v above are the products. */
  readonly coded?: readonly [Coded, Coded, Coded]
}
interface Coded {
  readonly codes: readonly number[]
  readonly shape: readonly number[]
  readonly scales: readonly number[]
}

interface Sizes {
  readonly lengths: readonly (readonly [seqQ: number, seqKv: number])[]
  readonly heads?: number
  readonly kvHeads?: number
  readonly headDim?: number
  readonly headDimV?: number
  readonly batched?: boolean
  readonly dtype?: Float
  readonly outDtype?: Float
  readonly placing?: Placing
  readonly range?: number
}
type Options = Pick<
  RefAttention,
  'causal' | 'windowLeft' | 'windowRight' | 'softcap' | 'alibiSlopes' | 'sinks' | 'softmaxScale' | 'sigmoid'
>

/** Random q, k and v for these sizes. The batched form has seqQ of the first sequence for all of them. */
function callOf(random: Random, sizes: Sizes, options: Options = {}): Call {
  const { heads = 2, kvHeads = 1, headDim = 16, headDimV = headDim, batched = false, range = 1 } = sizes
  const { dtype = 'f32', outDtype = dtype, placing = 'plain', lengths } = sizes
  const seqQ = lengths[0]?.[0] ?? 0
  const batchedKv = batched ? Math.max(0, ...lengths.map(([, kv]) => kv)) : undefined
  const sequences: RefSequence[] = []
  let [q0, kv0] = [0, 0]
  for (const [ownQ, seqKv] of lengths) {
    const own = batched ? seqQ : ownQ
    sequences.push({ q0, kv0, seqQ: own, seqKv })
    q0 += own
    kv0 += batchedKv ?? seqKv
  }
  return {
    ...options,
    q: numbers(random, q0 * heads * headDim, dtype, -range, range),
    k: numbers(random, kv0 * kvHeads * headDim, dtype, -range, range),
    v: numbers(random, kv0 * kvHeads * headDimV, dtype, -1, 1),
    sequences,
    heads,
    kvHeads,
    headDim,
    headDimV,
    batchedKv,
    dtype,
    outDtype,
    placing,
  }
}

const vector = (device: Device, values: readonly number[] | undefined) =>
  values && device.tensor(Float32Array.from(values), [values.length])

/** The bias of a call as a tensor: each sequence's own rows where they differ. */
function biasTensor(device: Device, call: Call, queries: number): Tensor | undefined {
  const { bias, heads, sequences, batchedKv, placing, sharedBias = false } = call
  if (bias === undefined) return undefined
  const columns = Math.max(0, ...sequences.map((s) => s.seqKv)) + 3
  const shape =
    batchedKv === undefined ? [heads, queries, columns] : [sequences.length, heads, queries, columns]
  const values = new Array<number>(shape.reduce((a, b) => a * b, 1)).fill(nan)
  for (const [b, { q0, seqQ, seqKv }] of sequences.entries()) {
    for (let h = 0; h < heads; h++) {
      for (let i = 0; i < seqQ; i++) {
        const row = batchedKv === undefined ? h * queries + q0 + i : (b * heads + h) * queries + i
        for (let j = 0; j < seqKv; j++) values[row * columns + j] = bias(b, i, h, j)
      }
    }
  }
  const { view } = place(device, values, shape, 'f32', placing === 'padded')
  if (!sharedBias) return view
  // One head, and in the batched form one sequence, serve all.
  const one = view.slice(view.shape.length - 3, 0, Math.min(1, heads))
  return batchedKv === undefined ? one : one.slice(0, 0, Math.min(1, sequences.length))
}

/** Runs a call on a row of the registry. Results as the reference has them: [tokens, heads, ...]. */
function run(row: string, device: Device, call: Call, label = ''): { out: number[]; lse: number[] } {
  const { sequences, heads, kvHeads, headDim, headDimV, batchedKv, dtype, placing, coded } = call
  const batch = sequences.length
  const tokensQ = sequences.reduce((sum, s) => sum + s.seqQ, 0)
  const tokensKv = call.k.length / (kvHeads * headDim)
  const seqQ = sequences[0]?.seqQ ?? 0
  const packed = batchedKv === undefined
  const shapeOf = (tokens: number, seq: number, h: number, dim: number) =>
    packed ? [tokens, h, dim] : [batch, seq, h, dim]
  const token = packed ? 0 : 1
  const padded = placing === 'padded'
  // Heads outside of tokens in memory: the same values, placed with the two dimensions exchanged.
  const input = (values: readonly number[], shape: readonly number[]) => {
    const own = coded === undefined ? dtype : 'e4m3'
    if (placing !== 'heads') return place(device, values, shape, own, padded).view
    const [seq = 0, h = 0, dim = 0] = shape.slice(token)
    const turned = values.map((_, i) => {
      const [d, t] = [i % dim, Math.floor(i / dim) % seq]
      const [j, b] = [Math.floor(i / dim / seq) % h, Math.floor(i / dim / seq / h)]
      return values[((b * seq + t) * h + j) * dim + d] as number
    })
    const outer = [...shape.slice(0, token), h, seq, dim]
    return place(device, turned, outer, own, false).view.transpose(token, token + 1)
  }
  const maxKv = batchedKv ?? 0
  const q = input(coded?.[0].codes ?? call.q, shapeOf(tokensQ, seqQ, heads, headDim))
  const k = input(coded?.[1].codes ?? call.k, shapeOf(tokensKv, maxKv, kvHeads, headDim))
  const v = input(coded?.[2].codes ?? call.v, shapeOf(tokensKv, maxKv, kvHeads, headDimV))
  const scales = [0, 1, 2].map((i) => {
    const of = coded?.[i]
    return of && place(device, of.scales, of.shape, 'f32', padded).view
  })
  const out = room(device, shapeOf(tokensQ, seqQ, heads, headDimV), call.outDtype, padded)
  const lse = room(device, packed ? [heads, tokensQ] : [batch, heads, seqQ], 'f32', padded)
  const ends = (of: (s: RefSequence) => number) => [0, ...sequences.map(of)]
  const single = packed && batch === 1 && placing === 'plain' // needs no cuSeqlens
  native.attention(
    q,
    k,
    v,
    packed && !single
      ? ints(
          device,
          ends((s) => s.q0 + s.seqQ),
        )
      : undefined,
    packed && !single
      ? ints(
          device,
          ends((s) => s.kv0 + s.seqKv),
        )
      : undefined,
    packed
      ? undefined
      : ints(
          device,
          sequences.map((s) => s.seqKv),
        ),
    vector(device, call.alibiSlopes),
    vector(device, call.sinks),
    biasTensor(device, call, packed ? tokensQ : seqQ),
    undefined,
    undefined,
    undefined,
    call.softmaxScale ?? 0,
    call.softcap ?? 0,
    call.windowLeft ?? -1,
    call.windowRight ?? -1,
    call.causal ?? false,
    scores.indexOf(call.sigmoid ? 'sigmoid' : 'softmax'),
    scales[0],
    scales[1],
    scales[2],
    out.view,
    call.sigmoid ? undefined : lse.view,
    row,
  )
  const flat = read(lse.view)
  const turned = flat.map((_, i) => {
    const [t, h] = [Math.floor(i / heads), i % heads]
    if (packed) return flat[h * tokensQ + t] as number
    return flat[(Math.floor(t / seqQ) * heads + h) * seqQ + (t % seqQ)] as number
  })
  const result = { out: read(out.view), lse: turned }
  expectPadding(out, label)
  expectPadding(lse, label)
  return result
}

/** Holds a call on a row against the reference. */
function check(row: string, device: Device, call: Call, label: string): void {
  expectAttention(row, call, run(row, device, call, label), call.outDtype, label)
}

const describeCall = (call: Call, seed: number) => {
  const { q, k, v, coded, codes, ...rest } = call
  return `${JSON.stringify(rest)} sizes ${q.length} ${k.length} ${v.length} seed ${seed}`
}

/** The same call with q, k and v as e4m3 codes and scales: one a token and head, one a head, one for all, by turns. */
function coded(random: Random, call: Call, ofTokens: boolean): Call {
  const { sequences, heads, kvHeads, headDim, headDimV, batchedKv } = call
  const packed = batchedKv === undefined
  const part = (x: readonly number[], h: number, dim: number, perToken: boolean, perHead: boolean) => {
    const codes = x.map((value) => {
      const code = encodeFloat(minifloats.e4m3, value * 100)
      return decodeFloat(minifloats.e4m3, code)
    })
    const tokens = x.length / (h * dim)
    const batch = packed ? 1 : sequences.length
    const shape = [
      ...(packed ? [] : [perToken ? batch : 1]),
      perToken && batch > 0 ? tokens / batch : 1,
      perHead ? h : 1,
    ]
    const count = shape.reduce((a, b) => a * b, 1)
    const scales = Array.from({ length: count }, () => Math.fround(random.float(0.005, 0.02)))
    const scaleOf = (row: number) =>
      scales[(perToken ? Math.floor(row / h) : 0) * (perHead ? h : 1) + (perHead ? row % h : 0)] as number
    const values = codes.map((c, i) => c * scaleOf(Math.floor(i / dim)))
    return { codes, shape, scales, scaleOf, values }
  }
  const q = part(call.q, heads, headDim, random.next() < 0.7, random.next() < 0.7)
  const k = part(call.k, kvHeads, headDim, ofTokens, random.next() < 0.5)
  const v = part(call.v, kvHeads, headDimV, ofTokens, random.next() < 0.5)
  return {
    ...call,
    ...{ q: q.values, k: k.values, v: v.values, coded: [q, k, v], dtype: 'f32' },
    outDtype: random.pick(['bf16', 'f16', 'f32'] as const),
    codes: {
      q: Float32Array.from(q.codes),
      k: Float32Array.from(k.codes),
      scale: (i, j) => Math.fround(q.scaleOf(i) * k.scaleOf(j)),
    },
  }
}

/** A call with options drawn at random. */
function randomCall(random: Random, dtypes: readonly Float[]): Call {
  const chance = (p: number) => random.next() < p
  const kvHeads = random.int(1, 3)
  const heads = kvHeads * random.pick([1, 1, 2, 3, 4, 5, 8, 13])
  const headDim = random.pick([1, 7, 8, 16, 24, 33, 64])
  const length = () => random.pick([0, 1, 2, 5, 15, 16, 17, 31, 33, 63, 64, 65, 80])
  const batch = random.pick([0, 1, 1, 2, 3])
  const few = chance(0.4)
  const lengths = Array.from({ length: batch }, () => {
    const seqKv = length()
    return [few ? random.int(0, 3) : Math.min(length(), Math.ceil(400 / heads)), seqKv] as const
  })
  const dtype = random.pick(dtypes)
  const sigmoid = chance(0.15)
  return callOf(
    random,
    {
      lengths,
      heads,
      kvHeads,
      headDim,
      headDimV: chance(0.6) ? headDim : random.pick([1, 8, 20, 40]),
      batched: chance(0.5),
      dtype,
      outDtype: chance(0.6) ? dtype : 'f32',
      placing: random.pick(placings),
      range: random.pick([1, 1, 3]),
    },
    {
      causal: chance(0.5),
      windowLeft: chance(0.3) ? random.int(0, 40) : -1,
      windowRight: chance(0.2) ? random.int(0, 40) : -1,
      softcap: chance(0.2) ? random.pick([0.5, 8, 30]) : 0,
      alibiSlopes: chance(0.2) ? numbers(random, heads, 'f32', -0.5, 0.5) : undefined,
      sinks: !sigmoid && chance(0.2) ? numbers(random, heads, 'f32', -3, 3) : undefined,
      softmaxScale: chance(0.3) ? Math.fround(random.float(-0.5, 0.5)) : undefined,
      sigmoid,
    },
  )
}

eachRow('attention', (row) => {
  const about = description.kernels.find(({ name }) => name === row) as unknown as {
    dtypes: string[]
    bias: boolean
    tensors: boolean
  }
  const known = about.dtypes
  const dtypes = floats.filter((dtype) => known.includes(dtype))
  if (about.tensors === false) {
    test.skip('reads pages alone', () => {})
    return
  }
  const makeCall = (random: Random, sizes: Sizes, options?: Options) =>
    callOf(random, { dtype: dtypes[0] ?? 'f32', ...sizes }, options)

  ;(known.includes('e4m3') ? test : test.skip)('e4m3 with scales, around the tiles and at random', () => {
    const random = new Random(9)
    for (const headDim of [16, 64, 128]) {
      for (const n of [1, 63, 64, 65, 127, 128, 129, 200]) {
        const sizes = { heads: 2, kvHeads: 1, headDim, lengths: [[n > 64 ? 70 : n, n]] as const }
        for (const causal of [true, false]) {
          const call = coded(random, callOf(random, sizes, { causal }), n % 2 === 0)
          check(row, two, call, `D${headDim} ${n} causal ${causal} seed 9`)
        }
      }
    }
    for (let seed = 3000; seed < 3040; seed++) {
      const own = new Random(seed)
      const call = randomCall(own, ['f32'])
      check(row, two, coded(own, call, own.next() < 0.5), describeCall(call, seed))
    }
  })

  if (dtypes.length === 0) return // e4m3 alone

  test('lengths around the blocks: one token, vectors, tiles of 64 keys, blocks of 144 and 192 rows', () => {
    const random = new Random(1)
    const edges = [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 143, 144, 145, 191, 192, 193]
    for (const causal of [true, false]) {
      for (const n of edges) {
        const label = `${n} causal ${causal} seed 1`
        const sizes = { heads: 1, headDim: 8, dtype: random.pick(dtypes) }
        check(row, two, makeCall(random, { ...sizes, lengths: [[n, n]] }, { causal }), `q ${label}`)
        check(row, two, makeCall(random, { ...sizes, lengths: [[1, n]] }, { causal }), `decode ${label}`)
        check(row, two, makeCall(random, { ...sizes, lengths: [[9, n]] }, { causal }), `nine on ${label}`)
      }
    }
  })

  test('MHA, GQA and MQA, few rows and many, head dims that differ', () => {
    const random = new Random(2)
    for (const [heads, kvHeads] of [
      [4, 4],
      [8, 2],
      [6, 2],
      [5, 1],
      [7, 1],
      [40, 1],
      [150, 1],
    ] as const) {
      for (const [headDim, headDimV] of [
        [64, 64],
        [128, 80],
        [40, 24],
        [12, 33],
      ] as const) {
        if (heads > 8 && headDim > 40) continue // the reference is slow
        for (const seqQ of [1, 2, 7]) {
          const dtype = random.pick(dtypes)
          const sizes = { lengths: [[seqQ, 37]] as const, heads, kvHeads, headDim, headDimV, dtype }
          const call = makeCall(random, { ...sizes, placing: random.pick(placings) }, { causal: true })
          check(row, two, call, describeCall(call, 2))
        }
      }
    }
  })

  ;(about.bias ? test : test.skip)('an additive bias, of all heads or of each, with everything else', () => {
    for (let seed = 2000; seed < 2060; seed++) {
      const random = new Random(seed)
      const call = randomCall(random, dtypes)
      const shared = random.next() < 0.4 && (call.batchedKv !== undefined || call.sequences.length === 1)
      const masks = random.next() < 0.3
      const known = new Map<string, number>()
      const bias = (b: number, i: number, h: number, j: number) => {
        const key = shared ? `0 ${i} 0 ${j}` : `${b} ${i} ${h} ${j}`
        let value = known.get(key)
        if (value === undefined) {
          value = masks && random.next() < 0.2 ? minusInf : Math.fround(random.float(-3, 3))
          known.set(key, value)
        }
        return value
      }
      // A batch that shares its bias needs columns for the longest of its sequences: make those up first.
      const { batchedKv = 0, sequences } = call
      for (const { seqQ } of sequences)
        for (let i = 0; i < seqQ; i++) for (let j = 0; j < batchedKv; j++) bias(0, i, 0, j)
      const longest = sequences.every(({ seqKv }) => seqKv === sequences[0]?.seqKv)
      check(row, two, { ...call, bias, sharedBias: shared && longest }, describeCall(call, seed))
    }
    // More rows than a block, more keys than a split.
    const random = new Random(2)
    for (const lengths of [[[200, 200]], [[2, 1300]]] as const) {
      const sizes = { lengths, heads: 4, kvHeads: 2 }
      const call = makeCall(random, sizes, { causal: true })
      const bias = (_: number, i: number, h: number, j: number) => Math.fround(Math.sin(i * 7 + h * 3 + j))
      check(row, two, { ...call, bias }, `${lengths} seed 2`)
    }
  })

  test('long keys: split for few rows, walked for many', () => {
    const random = new Random(3)
    for (const dtype of dtypes) {
      for (const placing of placings) {
        const sizes = { heads: 4, kvHeads: 2, headDim: 16, dtype, placing }
        const decode = makeCall(
          random,
          {
            ...sizes,
            lengths: [
              [1, 1300],
              [1, 5],
              [2, 700],
            ],
          },
          { causal: true },
        )
        check(row, three, decode, `decode ${dtype} ${placing} seed 3`)
        const sinks = numbers(random, 4, 'f32', 0, 4)
        const window = makeCall(random, { ...sizes, lengths: [[3, 900]] }, { windowLeft: 600, sinks })
        check(row, three, window, `window ${dtype} ${placing} seed 3`)
        const sigmoid = makeCall(
          random,
          { ...sizes, lengths: [[2, 700]] },
          { sigmoid: true, softmaxScale: 0.5 },
        )
        check(row, three, sigmoid, `sigmoid ${dtype} ${placing} seed 3`)
        const draft = makeCall(random, { ...sizes, lengths: [[11, 600]] }, { causal: true })
        check(row, three, draft, `draft ${dtype} ${placing} seed 3`)
      }
      const prompt = makeCall(random, { dtype, heads: 4, kvHeads: 2, lengths: [[90, 300]] }, { causal: true })
      check(row, three, prompt, `prompt ${dtype} seed 3`)
    }
  })

  test('a random walk over forms, sizes, layouts and options', () => {
    for (let seed = 1000; seed < 1120; seed++) {
      const call = randomCall(new Random(seed), dtypes)
      check(row, two, call, describeCall(call, seed))
    }
  })

  test('the same bits for one, two and three threads', () => {
    const random = new Random(4)
    const lengths = [
      [1, 1500],
      [300, 300],
      [5, 900],
      [0, 10],
      [160, 160],
    ] as const
    for (const dtype of dtypes) {
      const call = makeCall(random, { lengths, heads: 4, kvHeads: 2, headDim: 24, dtype }, { causal: true })
      const want = run(row, one, call)
      for (const device of [two, three, three]) {
        const got = run(row, device, call)
        expectSame(got.out, want.out, `${dtype} out seed 4`)
        expectSame(got.lse, want.lse, `${dtype} lse seed 4`)
      }
    }
  })

  test('NaN and inf reach the rows that see them and no other', () => {
    const random = new Random(5)
    const cases: [Sizes, Options][] = [
      [{ lengths: [[70, 70]], heads: 2 }, { causal: true }],
      [
        { lengths: [[150, 200]], heads: 2 },
        { causal: true, windowLeft: 40 },
      ],
      [
        { lengths: [[3, 300]], heads: 4 },
        { windowLeft: 10, windowRight: 3 },
      ],
      [
        {
          lengths: [
            [1, 40],
            [2, 50],
          ],
          heads: 2,
          batched: true,
        },
        { causal: true },
      ],
      [
        { lengths: [[90, 90]], heads: 2 },
        { causal: true, sigmoid: true },
      ],
      [
        { lengths: [[33, 90]], heads: 2 },
        { causal: true, softcap: 5, sinks: [1, -1] },
      ],
    ]
    for (const [sizes, options] of cases) {
      for (const bad of [nan, inf, minusInf]) {
        for (const where of ['k', 'v'] as const) {
          const clean = makeCall(random, { ...sizes, headDim: 16, dtype: random.pick(dtypes) }, options)
          const { seqKv, seqQ, q0, kv0 } = random.pick(clean.sequences)
          const j = random.int(Math.max(0, seqKv - seqQ - 5), seqKv - 1)
          const at = (kv0 + j) * 16 + random.int(0, 15)
          const dirty = { ...clean, [where]: clean[where].map((x, i) => (i === at ? bad : x)) }
          const [want, got] = [run(row, two, clean), run(row, two, dirty)]
          const label = `${where} ${bad} ${describeCall(clean, 5)}`
          const reached = new Set<number>()
          for (let i = 0; i < seqQ; i++) if (sees(clean, i + seqKv - seqQ, j)) reached.add(q0 + i)
          const width = clean.heads * 16
          const kept = (x: number[]) => x.filter((_, i) => !reached.has(Math.floor(i / width)))
          expectSame(kept(got.out), kept(want.out), label)
          for (const token of reached) {
            // A score of -inf is no NaN: its key counts for nothing. The reference says which it is.
            if (where === 'k') continue
            const values = got.out.slice(token * width, (token + 1) * width)
            for (const [i, x] of values.entries()) {
              if (i % 16 === at % 16 && Number.isFinite(x))
                throw new Error(`${label}: token ${token} has ${x}`)
            }
          }
          if (where === 'k') {
            const reference = refAttention(dirty, exact).out
            for (const [i, x] of reference.entries()) {
              if (Number.isNaN(x) !== Number.isNaN(got.out[i]))
                throw new Error(`${label}: [${i}] ${got.out[i]}`)
            }
          }
        }
      }
    }
  })

  test('subnormal, tiny and huge numbers', () => {
    const random = new Random(8)
    for (const dtype of dtypes) {
      const limit = dtype === 'f16' ? 24 : 140
      for (const exponent of [-limit, -limit / 2, limit === 24 ? 12 : 55]) {
        for (const seqQ of [1, 20]) {
          const call = makeCall(
            random,
            { lengths: [[seqQ, 70]], heads: 2, dtype, outDtype: 'f32' },
            { causal: true },
          )
          const scaled = (x: readonly number[]) => x.map((y) => roundTo(dtype, y * 2 ** exponent))
          const label = `${dtype} 2^${exponent} ${seqQ} queries seed 8`
          check(row, two, { ...call, v: scaled(call.v) }, `${label} v`)
          const scales = { softmaxScale: Math.fround(2 ** -Math.max(-120, exponent)) }
          check(row, two, { ...call, ...scales, k: scaled(call.k) }, `${label} k`)
          check(row, two, { ...call, ...scales, q: scaled(call.q) }, `${label} q`)
        }
      }
    }
  })

  test('rows that see nothing, or one key, or only -inf', () => {
    const random = new Random(6)
    // More queries than keys: under a causal mask the first stand before every key.
    const early = makeCall(
      random,
      { lengths: [[12, 4]], heads: 4, kvHeads: 2, placing: 'padded' },
      { causal: true },
    )
    const first = run(row, two, early)
    expect(first.out.slice(0, 8 * 4 * 16).every((x) => Object.is(x, 0))).toBe(true)
    expect(first.lse.slice(0, 8 * 4).every((x) => x === minusInf)).toBe(true)
    // A query that is NaN and sees nothing.
    const bad = { ...early, q: early.q.map((x, i) => (i < 8 * 4 * 16 ? nan : x)) }
    expectSame(run(row, two, bad).out, first.out, 'NaN queries without keys')
    // No keys at all, with sinks.
    const sinks = [0.5, -2, minusInf, 7]
    const none = makeCall(
      random,
      {
        lengths: [
          [3, 0],
          [2, 0],
        ],
        heads: 4,
        kvHeads: 4,
      },
      { sinks },
    )
    expect(new Set(run(row, two, none).out)).toEqual(new Set([0]))
    expect(run(row, two, none).lse.slice(0, 4)).toEqual(sinks)
    // Each query sees its own key: the value comes out as it is.
    for (const seqQ of [2, 40]) {
      const own = makeCall(random, { lengths: [[seqQ, seqQ]], range: 9 }, { windowLeft: 0, windowRight: 0 })
      const values = run(row, two, own).out
      expectSame(
        values,
        values.map((_, i) => own.v[Math.floor(i / 32) * 16 + (i % 16)] as number),
        'own key',
      )
    }
    // All scores -inf: nothing to weigh, 0 / 0.
    for (const seqQ of [1, 30]) {
      const cold = makeCall(random, { lengths: [[seqQ, 3]], headDim: 8 })
      const ones = { ...cold, q: cold.q.map(() => 1), k: cold.k.map(() => minusInf) }
      const { out, lse } = run(row, two, ones)
      expect(out.every(Number.isNaN)).toBe(true)
      expect(lse.every((x) => x === minusInf)).toBe(true)
      const kept = run(row, two, { ...ones, sinks: [0, 1] })
      expect(new Set(kept.out)).toEqual(new Set([0]))
      expectClose(kept.lse.slice(0, 2), [0, 1], [0, 1], 'f32', 'lse of sinks')
    }
  })

  test('nothing to do', () => {
    const random = new Random(7)
    for (const batched of [true, false]) {
      expect(run(row, two, makeCall(random, { lengths: [], batched })).out).toEqual([])
      expect(
        run(
          row,
          two,
          makeCall(random, {
            lengths: [
              [0, 5],
              [0, 0],
            ],
            batched,
          }),
        ).out,
      ).toEqual([])
    }
    expect(run(row, two, makeCall(random, { lengths: [[3, 3]], heads: 0 })).out).toEqual([])
  })
})
