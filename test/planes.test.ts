import {
  canonical,
  type Device,
  dequantize,
  deserialize,
  type GroupSize,
  LowbitError,
  LowbitTypeError,
  type QuantizedWeight,
  quantize,
  type Scheme,
  serialize,
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
      [130, 128],
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
  expect(row('avx512vbmi', { zeroPoint: 'integer' })).toBe('linear_int1_i8_avx512vnni')
  expect(row('avx512vnni', { m: 9 })).toBe('linear_int1_i8_avx512vnni')
  expect(row('avx2', {})).toBe('linear_int1_i8_avx2')
  expect(row('avx2', { groupSize: 'channel' })).toBe('linear_int1_lut_i8_avx2')
  expect(row('avx2', { groupSize: 'channel', zeroPoint: 'float' })).toBe('linear_int1_i8_avx2')
  expect(row('avx512', { compute: 'float' })).toBe('linear_narrow_f32_avx512')
  expect(row('avx512bf16', { compute: 'float', x: 'bf16' })).toBe('linear_narrow_bf16_avx512bf16')
  expect(row('avx2', { compute: 'fp8' })).toBe('linear_narrow_f32_avx2')
  expect(row('cpu', {})).toBe('linear_ref')
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
