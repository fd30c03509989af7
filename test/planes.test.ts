import {
  bitPlanes,
  canonical,
  type Device,
  dequantize,
  deserialize,
  type GroupSize,
  LowbitError,
  LowbitTypeError,
  linear,
  lowRankPlanes,
  lowRankTerms,
  mul,
  parseSafetensors,
  type QuantizedWeight,
  quantize,
  rmsNorm,
  type Scheme,
  serialize,
  serializeSafetensors,
  signPlanes,
  type Tensor,
} from 'lowbit'
import { selectLinear } from 'lowbit/select'
import { openTest } from './ref/device'
import { readCode, refPlanes, scaleValue } from './ref/quantize'
import { Random } from './ref/random'
import { refusal } from './ref/refusal'

let device: Device
beforeAll(() => {
  device = openTest({ threads: 2 })
})
afterAll(() => device.close())

const groupSizes: readonly GroupSize[] = [32, 64, 128, 'channel', 'tensor']
const scaleDtypes = ['f32', 'f16', 'bf16'] as const

/** Weights of different spread by group, with zeros, outliers and groups of one sign. */
function weightsOf(random: Random, n: number, k: number): Float32Array {
  return random.floats(n * k).map((w, i) => {
    const kind = Math.floor(i / 32) % 5
    if (kind === 0) return i % 7 === 0 ? 0 : w * 0.01
    if (kind === 1) return Math.abs(w)
    return i % 97 === 0 ? 8 * w : w
  })
}

const bits = (values: Float32Array) => new Uint32Array(values.buffer, values.byteOffset, values.length)
const scalesOf = (q: QuantizedWeight) =>
  Float32Array.from(q.scales ?? [], (stored) => scaleValue(q.scaleDtype as 'f32', stored))
const squaredError = (q: QuantizedWeight, w: Float32Array) =>
  dequantize(q).reduce((sum, value, i) => sum + (value - (w[i] as number)) ** 2, 0)

function codesOf(q: QuantizedWeight): Int32Array {
  const [n, k] = q.shape
  const width = q.planes * k
  return Int32Array.from({ length: n * width }, (_, i) =>
    readCode(q.codes, Math.floor(i / width), i % width, width, 1),
  )
}

describe('codes, scales and values of planes are those of the formulas, bit for bit', () => {
  test.each([
    [2, false],
    [3, false],
    [8, false],
    [2, true],
    [3, true],
    [8, true],
  ])('%d planes, search %s', (planes, search) => {
    const random = new Random(20261126)
    for (const [n, k] of [
      [1, 32],
      [7, 64],
      [5, 384],
      [70, 64],
    ] as const) {
      const weights = weightsOf(random, n, k)
      for (const groupSize of groupSizes) {
        if (typeof groupSize === 'number' && k % Math.min(groupSize, k) !== 0) continue
        const scaleDtype = random.pick(scaleDtypes)
        const q = quantize(weights, [n, k], {
          format: 'int1',
          ...{ planes, groupSize, scaleDtype, clip: search },
        })
        const want = refPlanes(weights, n, k, {
          ...{ planes, scaleDtype, search },
          groupN: groupSize === 'tensor' ? n : 1,
          groupK: typeof groupSize === 'number' ? Math.min(groupSize, k) : k,
        })
        const label = { seed: random.seed, n, k, groupSize, scaleDtype }
        expect({ ...label, scales: bits(scalesOf(q)) }).toEqual({ ...label, scales: bits(want.scales) })
        expect({ ...label, codes: codesOf(q) }).toEqual({ ...label, codes: want.codes })
        expect({ ...label, values: bits(dequantize(q)) }).toEqual({ ...label, values: bits(want.values) })
      }
    }
  })
})

test('one plane is plain int1', () => {
  const weights = new Random(2).floats(3 * 64)
  const plain = quantize(weights, [3, 64], { format: 'int1' })
  expect(plain.planes).toBe(1)
  expect(quantize(weights, [3, 64], { format: 'int1', planes: 1 })).toEqual(plain)
})

test('each plane and the search make the squared error smaller', () => {
  const random = new Random(3)
  const weights = weightsOf(random, 16, 512)
  for (const groupSize of groupSizes) {
    let before = Number.POSITIVE_INFINITY
    for (let planes = 1; planes <= 8; planes++) {
      const scheme: Scheme = { format: 'int1', groupSize, planes }
      const greedy = squaredError(quantize(weights, [16, 512], scheme), weights)
      const found = squaredError(quantize(weights, [16, 512], { ...scheme, clip: 'search' }), weights)
      expect(greedy).toBeLessThan(before)
      expect(found).toBeLessThanOrEqual(greedy * (1 + 1e-6))
      before = greedy
    }
  }
})

test('shapes, bits and layouts', () => {
  const random = new Random(4)
  const weights = weightsOf(random, 17, 96)
  for (const groupSize of [32, 'channel', 'tensor'] as const) {
    for (const planes of [2, 3, 8]) {
      const q = quantize(weights, [17, 96], { format: 'int1', planes, groupSize, scaleDtype: 'f16' })
      const groups = groupSize === 32 ? 3 : 1
      expect(q.scaleShape).toEqual([groupSize === 'tensor' ? 1 : 17, planes * groups])
      expect(q.shape).toEqual([17, 96])
      expect(q.codes.length).toBe((17 * planes * 96) / 8)
      expect(canonical(structuredClone(q) as QuantizedWeight)).toEqual(q)
      expect(deserialize(serialize({ q }))).toEqual({ q })
      for (const layout of ['rows', 'panel16', undefined] as const) {
        using w = device.load(q, { layout })
        expect(w.planes).toBe(planes)
        expect(w.unpack()).toEqual(q)
        if (layout === undefined && device.info.archs.includes('avx2')) expect(w.layout).toBe('panel16')
      }
    }
  }
  expect(quantize(weights, [17, 96], { format: 'int1', planes: 2, groupSize: 32 }).bitsPerWeight).toBe(4)
  const empty = quantize(new Float32Array(0), [0, 96], { format: 'int1', planes: 3 })
  expect([empty.codes.length, empty.bitsPerWeight]).toEqual([0, 0])
  expect(dequantize(quantize(new Float32Array(0), [5, 0], { format: 'int1', planes: 3 })).length).toBe(0)
})

test('zeros: planes of {0, 1}, and any two values', () => {
  const [n, k] = [2, 64]
  const random = new Random(5)
  const codes = Uint8Array.from({ length: (n * 2 * k) / 8 }, () => random.int(0, 255))
  const scales = random.floats(n * 2 * 2)
  const integers = Uint8Array.from({ length: 8 }, (_, i) => i % 3)
  const floats = random.floats(8)
  for (const [zeroPoint, zeros] of [
    ['integer', integers],
    ['float', floats],
  ] as const) {
    const q = canonical({
      ...{ format: 'int1', shape: [n, k], planes: 2, groupSize: 32 },
      ...{ codes, scales, zeroPoint, zeros },
    })
    const want = Float32Array.from({ length: n * k }, (_, i) => {
      const [row, col] = [Math.floor(i / k), i % k]
      const plane = (p: number) => {
        const g = row * 4 + p * 2 + Math.floor(col / 32)
        const code = readCode(codes, row, p * k + col, 2 * k, 1)
        return Math.fround((scales[g] as number) * Math.fround(2 * code - (zeros[g] as number)))
      }
      return Math.fround(plane(0) + plane(1))
    })
    expect(dequantize(q)).toEqual(want)
    using w = device.load(q)
    expect(w.unpack()).toEqual(q)
    expect(deserialize(serialize({ q }))).toEqual({ q })
  }
})

test('planes take the rows of int1, and those by tables where these serve one plane', () => {
  const row = (arch: string, call: object) =>
    selectLinear(
      { m: 1, n: 64, k: 256, format: 'int1', compute: 'int8', planes: 3, groupSize: 64, ...call },
      { archs: [arch] },
    ).row
  expect(row('avx512vbmi', {})).toBe('linear_int1_lut_i8_avx512vbmi')
  expect(row('avx512vbmi', { groupSize: 'tensor' })).toBe('linear_int1_lut_i8_avx512vbmi')
  expect(row('avx512vbmi', { zeroPoint: 'integer' })).toBe('linear_int1_lut_i8_avx512vbmi')
  expect(row('avx512vnni', { m: 9 })).toBe('linear_int1_i8_avx512vnni')
  expect(row('avx2', {})).toBe('linear_int1_i8_avx2')
  expect(row('avx2', { groupSize: 'channel' })).toBe('linear_int1_lut_i8_avx2')
  expect(row('avx2', { groupSize: 'channel', zeroPoint: 'float' })).toBe('linear_int1_lut_i8_avx2')
  expect(row('avx512', { compute: 'float' })).toBe('linear_narrow_f32_avx512')
  expect(row('avx512bf16', { compute: 'float', x: 'bf16' })).toBe('linear_narrow_bf16_avx512bf16')
  expect(row('avx2', { compute: 'fp8' })).toBe('linear_narrow_f32_avx2')
  expect(row('cpu', {})).toBe('linear_ref')
})

describe('the forms of papers', () => {
  const [m, n, k] = [5, 33, 128]
  const random = new Random(8)
  const signs = () => Int8Array.from({ length: n * k }, () => random.pick([-1, 1]))
  const tensor = (values: Float32Array, shape: readonly number[]) => device.tensor(values, shape) as Tensor
  const x = random.floats(m * k)

  /** x [m, k] times weights [n, k] in float64, and the largest sum of magnitudes: what rounding errors are in proportion to. */
  function product(w: (row: number, col: number) => number): { want: Float64Array; size: number } {
    const want = new Float64Array(m * n)
    let size = 0
    for (let i = 0; i < m * n; i++) {
      let magnitude = 0
      for (let col = 0; col < k; col++) {
        const term = (x[Math.floor(i / n) * k + col] as number) * w(i % n, col)
        want[i] = (want[i] as number) + term
        magnitude += Math.abs(term)
      }
      size = Math.max(size, magnitude)
    }
    return { want, size }
  }

  /** Sums of `terms` products, each rounded in float32, one after the other at worst. */
  function expectProduct(got: Tensor, w: (row: number, col: number) => number, terms = k): void {
    const { want, size } = product(w)
    const values = got.readSync() as Float32Array
    for (const [i, value] of values.entries())
      expect(Math.abs(value - (want[i] as number))).toBeLessThanOrEqual(terms * 2 ** -24 * size)
  }

  test('OneBit: signs between an input and an output vector', () => {
    const s = signs()
    const [g, h] = [random.floats(k), random.floats(n)]
    const q = signPlanes([{ codes: s, scales: h }], [n, k])
    expect([q.planes, q.groupSize, q.bitsPerWeight]).toEqual([1, 'channel', 1 + 32 / k])
    using w = device.load(q)
    const y = linear(mul(tensor(x, [m, k]), tensor(g, [k])), w)
    expectProduct(
      y,
      (row, col) => (h[row] as number) * (s[row * k + col] as number) * (g[col] as number),
      k + 3,
    )
  })

  test('OneBit: the input vector as part of a norm before it', () => {
    const [g, gamma] = [random.floats(k), random.floats(k)]
    const xs = tensor(x, [m, k])
    const apart = mul(rmsNorm(xs, tensor(gamma, [k])), tensor(g, [k])).readSync() as Float32Array
    const folded = rmsNorm(
      xs,
      tensor(
        gamma.map((v, i) => v * (g[i] as number)),
        [k],
      ),
    ).readSync() as Float32Array
    for (const [i, value] of folded.entries())
      expect(Math.abs(value - (apart[i] as number))).toBeLessThanOrEqual(4 * 2 ** -24 * Math.abs(value))
  })

  test('BinaryDM: two scaled signs, which are also what quantize makes', () => {
    const weights = random.floats(n * k)
    const q = quantize(weights, [n, k], { format: 'int1', planes: 2, groupSize: 'channel' })
    const first = Float32Array.from({ length: n }, (_, row) => (q.scales as Float32Array)[row * 2] as number)
    const second = Float32Array.from(
      { length: n },
      (_, row) => (q.scales as Float32Array)[row * 2 + 1] as number,
    )
    const rest = weights.map((w, i) => w - (w < 0 ? -1 : 1) * (first[Math.floor(i / k)] as number))
    const made = signPlanes(
      [
        { codes: weights, scales: first },
        { codes: rest, scales: second },
      ],
      [n, k],
    )
    expect(made).toEqual(q)
    using w = device.load(made)
    const values = dequantize(made)
    expectProduct(linear(tensor(x, [m, k]), w), (row, col) => values[row * k + col] as number, 2 * k)
  })

  test('DB-LLM: two planes of {0, 1}', () => {
    const bits = () => Uint8Array.from({ length: n * k }, () => random.int(0, 1))
    const [b1, b2] = [bits(), bits()]
    // The paper begins at 2s and -s, which with both bits make the levels of two-bit codes.
    const [a1, a2] = [random.floats(n * 2, 0.5, 1), random.floats(n * 2, -0.5, -0.1)]
    const planes = [
      { codes: b1, scales: a1 },
      { codes: b2, scales: a2 },
    ]
    const value = (row: number, col: number) => {
      const g = row * 2 + Math.floor(col / 64)
      return (
        (a1[g] as number) * (b1[row * k + col] as number) + (a2[g] as number) * (b2[row * k + col] as number)
      )
    }
    const q = bitPlanes(planes, [n, k], { groupSize: 64 })
    const want = Float32Array.from({ length: n * k }, (_, i) => value(Math.floor(i / k), i % k))
    expect(dequantize(q)).toEqual(want)
    using w = device.load(q)
    expectProduct(linear(tensor(x, [m, k]), w), value, 4 * k)
    const narrow = bitPlanes(planes, [n, k], { groupSize: 64, scaleDtype: 'f16' })
    expect(scalesOf(narrow)[0]).toBeCloseTo((a1[0] as number) / 2, 3)
  })

  test('BitStack: low-rank terms exactly, and as planes', () => {
    const terms = [3, 1].map((rank) => ({
      ...{ rank, signs: signs() },
      ...{ u: random.floats(n * rank, 0, 1), v: random.floats(k * rank, 0, 1) },
    }))
    const value = (row: number, col: number) =>
      terms.reduce((sum, { signs: s, u, v, rank }) => {
        let size = 0
        for (let r = 0; r < rank; r++) size += (u[row * rank + r] as number) * (v[col * rank + r] as number)
        return sum + (s[row * k + col] as number) * size
      }, 0)
    const layers = lowRankTerms(terms, [n, k])
    expect(layers.length).toBe(4)
    let y: Tensor | undefined
    for (const { weight, g } of layers) {
      const w = device.load(weight)
      y = linear(mul(tensor(x, [m, k]), tensor(g, [k])), w, { residual: y, out: y })
    }
    expectProduct(y as Tensor, value, 4 * k + 8)
    for (const groupSize of [32, 'channel', 'tensor'] as const) {
      const q = lowRankPlanes(terms, [n, k], { groupSize })
      expect(q.planes).toBe(2)
      // Where v, and for a tensor u too, are the same all over a group, nothing is lost.
      const level = terms.map((term) => ({
        ...term,
        v: term.v.map(() => 0.5),
        u: groupSize === 'tensor' ? term.u.map(() => 0.5) : term.u,
      }))
      const same = dequantize(lowRankPlanes(level, [n, k], { groupSize }))
      for (const [i, got] of same.entries()) {
        const [row, col] = [Math.floor(i / k), i % k]
        const want = level.reduce((sum, { signs: s, u, rank }) => {
          let size = 0
          for (let r = 0; r < rank; r++) size += 0.5 * (u[row * rank + r] as number)
          return sum + (s[row * k + col] as number) * size
        }, 0)
        expect(Math.abs(got - want)).toBeLessThanOrEqual(1e-6)
      }
      // The mean is the best scale for the signs of one term: any other is further off.
      const one = [terms[0] as (typeof terms)[0]]
      const exact = Float32Array.from({ length: n * k }, (_, i) => {
        const { signs: s, u, v } = one[0] as (typeof terms)[0]
        let size = 0
        for (let r = 0; r < 3; r++)
          size += (u[Math.floor(i / k) * 3 + r] as number) * (v[(i % k) * 3 + r] as number)
        return (s[i] as number) * size
      })
      const best = lowRankPlanes(one, [n, k], { groupSize })
      for (const by of [0.99, 1.01]) {
        const scales = (best.scales as Float32Array).map((scale) => scale * by)
        const other = canonical({ ...(structuredClone(best) as QuantizedWeight), scales })
        expect(squaredError(best, exact)).toBeLessThan(squaredError(other, exact))
      }
    }
  })

  test('no rows, no columns', () => {
    expect(signPlanes([{ codes: [], scales: [] }], [0, 5]).shape).toEqual([0, 5])
    expect(signPlanes([{ codes: [], scales: [] }], [5, 0]).shape).toEqual([5, 0])
    expect(lowRankPlanes([{ signs: [], u: [1, 1], v: [], rank: 1 }], [2, 0]).shape).toEqual([2, 0])
  })

  test.each([
    [
      () => signPlanes([{ codes: [1], scales: [1] }], [1, 2]),
      'ERR_SHAPE',
      /expected 2 codes of plane 0 but got 1/,
    ],
    [
      () => signPlanes([{ codes: [1, 1], scales: [1, 1] }], [1, 2]),
      'ERR_SHAPE',
      /expected 1 scales of plane 0 but got 2/,
    ],
    [
      () => signPlanes([{ codes: [1, Number.NaN], scales: [1] }], [1, 2]),
      'ERR_ARGUMENT',
      /hold numbers but got NaN at \[0, 1\]/,
    ],
    [
      () => bitPlanes([{ codes: [1, -1], scales: [1] }], [1, 2]),
      'ERR_ARGUMENT',
      /hold 0 and 1 but got -1 at \[0, 1\]/,
    ],
    [
      () => signPlanes([{ codes: [1, 1], scales: [Infinity] }], [1, 2]),
      'ERR_ARGUMENT',
      /finite scales but got inf/,
    ],
    [() => signPlanes([], [1, 2]), 'ERR_ARGUMENT', /1 to 8 planes but got 0/],
    [() => signPlanes([{ codes: [1], scales: [1] }], [1]), 'ERR_SHAPE', /shape to be \[N, K\] but got \[1\]/],
    [
      () => lowRankTerms([{ signs: [1], u: [1], v: [1], rank: 0 }], [1, 1]),
      'ERR_ARGUMENT',
      /rank of 1 or more but got 0/,
    ],
    [
      () => lowRankPlanes([{ signs: [1], u: [1], v: [1, 2], rank: 1 }], [1, 1]),
      'ERR_SHAPE',
      /1 numbers in v of term 0 but got 2/,
    ],
  ])('refused %#', (call, code, text) => {
    expect(refusal(call)).toMatchObject({ code, message: expect.stringMatching(text) })
  })
})

test('a file whose planes are not those of its arrays', () => {
  const q = quantize(new Random(9).floats(2 * 64), [2, 64], { format: 'int1', planes: 2, groupSize: 32 })
  const { tensors, metadata } = parseSafetensors(serialize({ q }))
  const line = metadata.get('lowbit:q') as string
  for (const [planes, text] of [
    ['3', /'q': .*expected 48 bytes of codes but got 32/],
    ['1', /'q': .*expected 16 bytes of codes but got 32/],
    ['99', /'q': .*1 to 8 planes but got 99/],
    ['"2"', /'q': .*planes to be a whole number/],
  ] as const) {
    const words = new Map(metadata).set('lowbit:q', line.replace('"planes":2', `"planes":${planes}`))
    const error = refusal(() => deserialize(serializeSafetensors(tensors, words)))
    expect(error).toMatchObject({ code: 'ERR_FILE', message: expect.stringMatching(text) })
  }
})

describe('refusals', () => {
  const weights = new Random(6).floats(2 * 100)
  const scheme: Scheme = { format: 'int1', planes: 2 }
  test.each([
    [
      () => quantize(weights, [2, 100], scheme),
      'ERR_SHAPE',
      /K to be a multiple of 32 for 2 planes but got 100/,
    ],
    [
      () => quantize(weights.subarray(0, 192), [2, 96], { ...scheme, groupSize: 64 }),
      'ERR_SHAPE',
      /K to be a multiple of 64 for 2 planes but got 96/,
    ],
    [() => quantize(weights, [2, 100], { ...scheme, planes: 0 }), 'ERR_ARGUMENT', /1 to 8 planes but got 0/],
    [() => quantize(weights, [2, 100], { ...scheme, planes: 9 }), 'ERR_ARGUMENT', /1 to 8 planes but got 9/],
    [() => quantize(weights, [2, 100], { ...scheme, planes: -1 }), 'ERR_ARGUMENT', /1 to 8 planes/],
    [
      () => quantize(weights, [2, 100], { format: 'int4', planes: 2 }),
      'ERR_ARGUMENT',
      /only int1 has more, but got 2 int4/,
    ],
    [
      () => quantize(weights, [2, 100], { format: 'int1', zeroPoint: 'integer' }),
      'ERR_ARGUMENT',
      /no zero points for int1/,
    ],
    [
      () => quantize(weights.subarray(0, 128).fill(Number.NaN, 70, 71), [2, 64], scheme),
      'ERR_ARGUMENT',
      /NaN at \[1, 6\]/,
    ],
    [
      () =>
        quantize(weights.subarray(0, 128).fill(Infinity, 70, 71), [2, 64], {
          ...scheme,
          groupSize: 'tensor',
        }),
      'ERR_ARGUMENT',
      /inf at \[1, 6\]/,
    ],
  ])('%#', (call, code, text) => {
    const error = refusal(call)
    expect(error).toBeInstanceOf(LowbitError)
    expect(error).toMatchObject({ code, message: expect.stringMatching(text) })
  })
  test('a number of planes that is no whole number', () => {
    expect(() => quantize(weights, [2, 100], { ...scheme, planes: 1.5 })).toThrow(LowbitTypeError)
  })
  test('arrays of another size', () => {
    const q = quantize(new Random(7).floats(64), [1, 64], scheme)
    const fields = { format: 'int1', shape: [1, 64], planes: 2, codes: q.codes, scales: q.scales } as const
    expect(canonical(fields)).toEqual(q)
    expect(refusal(() => canonical({ ...fields, planes: 3 }))).toMatchObject({
      code: 'ERR_SHAPE',
      message: expect.stringMatching(/24 bytes of codes but got 16/),
    })
  })
})
