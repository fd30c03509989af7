// linear through the public API: every option, against test/ref in float64 by the house's error rule. Each kernel row is
// walked by name in kernels.test.ts; here the library chooses, so what is tested is that an option reaches the row that
// serves it, and the parts around the rows: outputs, re-quantised results, views and what a call may not say.
import {
  type Activation,
  type CodeDType,
  type Compute,
  type Device,
  type Format,
  type GroupSize,
  linear,
  QuantizedRows,
  type QuantizedWeight,
  quantize,
  quantizeRows,
  type RowQuantization,
  type Scheme,
  type Tensor,
} from 'lowbit'
import { description, native } from 'lowbit/native'
import { activations, computes, formats } from 'lowbit/words'
import { expectSame } from './ref/compare'
import { openTest } from './ref/device'
import {
  columnsOf,
  encodeFloats,
  enough,
  type FloatName,
  isGated,
  judge,
  type RefCall,
  refQuantizeRows,
  refWeight,
  roundAll,
} from './ref/linear'
import { groupSizesOf } from './ref/quantize'
import { Random } from './ref/random'
import { read, refusal } from './ref/rows'

const { ceil, max } = Math
const floats: readonly FloatName[] = ['f32', 'f16', 'bf16']
const codeDTypes: readonly CodeDType[] = ['i8', 'e4m3', 'e5m2']
const pers = ['row', 'block'] as const

let device: Device
beforeAll(() => {
  device = openTest({ threads: 2 })
})
afterAll(() => device.close())

const tensor = (values: Float32Array, shape: readonly number[], dtype: FloatName = 'f32') =>
  device.tensor(encodeFloats(dtype, values), shape, dtype) as Tensor

/** A matrix whose rows are further apart than they are long: the middle columns of a wider one full of NaN. */
function strided(values: Float32Array, [m, n]: readonly [number, number], dtype: FloatName): Tensor {
  const wide = new Float32Array(m * (n + 7)).fill(Number.NaN)
  for (let i = 0; i < m; i++) wide.set(values.subarray(i * n, (i + 1) * n), i * (n + 7) + 3)
  return tensor(wide, [m, n + 7], dtype).slice(1, 3, 3 + n)
}

/** The scheme that the tests use for a format: the smallest groups, which do not divide the ragged K, or whole rows. */
function schemeOf(format: Format): Scheme {
  if (floats.includes(format as FloatName)) return { format }
  const sizes = groupSizesOf(format)
  const groupSize = sizes.includes('block') ? 'channel' : (sizes[0] as GroupSize)
  const table = Float32Array.from({ length: 16 }, (_, i) => ((i - 7) * (24 - Math.abs(i - 7))) / 136)
  return { format, groupSize, ...(format === 'codebook4' ? { table } : {}) }
}

interface Wanted {
  readonly m: number
  readonly n: number
  readonly k: number
  readonly scheme: Scheme
  readonly x?: FloatName
  /** x is given as codes. */
  readonly codes?: { readonly dtype: CodeDType; readonly per: 'row' | 'block' }
  readonly compute?: Compute
  readonly activation?: Activation
  readonly bias?: FloatName
  readonly residual?: FloatName
  readonly dtype?: FloatName
  /** x and residual are views with gaps between their rows. */
  readonly views?: boolean
}

/** A call as numbers, and as what `linear` takes. */
function make(random: Random, wanted: Wanted) {
  const { m, n, k, scheme, codes, compute = 'float', activation = 'none', views = false } = wanted
  const xDtype = wanted.x ?? 'f32'
  const q: QuantizedWeight = quantize(random.floats(n * k), [n, k], scheme)
  const columns = isGated(activation) ? n / 2 : n
  const rows = max(m, ceil(enough / max(columns, 1)))
  const values = (count: number, dtype: FloatName) => roundAll(dtype, random.floats(count))
  const plain = values(rows * k, xDtype)
  const coded = codes && refQuantizeRows(plain, rows, k, codes.dtype, codes.per)
  const bias = wanted.bias && values(n, wanted.bias)
  const residual = wanted.residual && values(rows * columns, wanted.residual)
  const place = (of: Float32Array, width: number, dtype: FloatName) =>
    (views ? strided : tensor)(of.subarray(0, m * width), [m, width], dtype)
  const x = coded
    ? new QuantizedRows(
        device.tensor(
          codes.dtype === 'i8' ? new Int8Array(coded.bytes.buffer, 0, m * k) : coded.bytes.subarray(0, m * k),
          [m, k],
          codes.dtype,
        ),
        tensor(coded.scales.subarray(0, m * coded.blocks), codes.per === 'row' ? [m] : [m, coded.blocks]),
      )
    : place(plain, k, xDtype)
  const options = {
    activation,
    compute,
    bias: bias && tensor(bias, [n], wanted.bias),
    residual: residual && place(residual, columns, wanted.residual as FloatName),
  }
  const ref = (exact: boolean, out: FloatName, fp8Sums = false): RefCall => ({
    m: rows,
    w: refWeight(q),
    x: coded ? coded.values : plain,
    ...{ compute, exact, fp8Sums, activation, out },
    ...(coded
      ? { codes: { dtype: codes?.dtype as CodeDType, scales: coded.scales, per: codes?.per ?? 'row' } }
      : {}),
    bias: bias || undefined,
    residual: residual || undefined,
  })
  return { x, w: device.load(q), options, ref, columns }
}

/** How the row that ran adds products of codes: the plain loop that judges it does so too. */
function sumsOfRow(): { integers: boolean; fp8Sums: boolean } {
  const ran = native.chosenRow()
  const row = description.kernels.find(({ name }) => name === ran)
  const { computes, fp8Sums } = row as unknown as { computes: Compute[]; fp8Sums: boolean }
  return { integers: computes.every((compute) => compute === 'int8'), fp8Sums }
}

/** Holds a result against the reference. */
function expectRight(made: ReturnType<typeof make>, m: number, y: Tensor, label: string): void {
  const { integers, fp8Sums } = sumsOfRow()
  const call = made.ref(integers, y.dtype as FloatName, fp8Sums)
  expect([label, y.shape]).toEqual([label, [m, columnsOf(call)]])
  const wrong = judge(call, m, Float32Array.from(read(y)))
  if (wrong !== undefined) throw new Error(`${label} on ${native.chosenRow()}: ${wrong}`)
}

function check(random: Random, wanted: Wanted): void {
  const made = make(random, wanted)
  const dtype = wanted.dtype === undefined ? {} : { dtype: wanted.dtype }
  const y = linear(made.x, made.w, { ...made.options, ...dtype })
  expect(y.dtype).toBe(wanted.dtype ?? (wanted.codes ? 'f32' : (wanted.x ?? 'f32')))
  expectRight(made, wanted.m, y, `seed ${random.seed} ${JSON.stringify(wanted)}`)
  made.w.dispose()
}

describe.each(formats)('weights in %s', (format) => {
  const scheme = schemeOf(format)

  test.each(activations)('activation %s, with bias and residual in every dtype', (activation) => {
    const random = new Random(101)
    for (const [i, m] of [1, 3, 9].entries()) {
      const next = (step: number) => floats[(i + step) % 3] as FloatName
      const n = isGated(activation) ? 38 : 37
      check(random, { m, n, k: 70, scheme, activation })
      check(random, { m, n, k: 70, scheme, activation, bias: next(0), residual: next(1), x: next(2) })
    }
  })

  test.each(computes)('compute %s of floats in every dtype, results in every dtype', (compute) => {
    const random = new Random(102)
    for (const x of floats) {
      for (const dtype of floats) {
        for (const m of [1, 6, 17]) check(random, { m, n: 19, k: 96, scheme, compute, x, dtype, bias: x })
      }
    }
  })

  test('x as codes and scales, per row and per block', () => {
    const random = new Random(103)
    for (const dtype of codeDTypes) {
      for (const per of pers) {
        for (const compute of computes) {
          if (compute === 'int8' && (dtype !== 'i8' || per === 'block')) continue
          if (compute.startsWith('fp8') && dtype === 'i8') continue
          for (const m of [1, 5]) {
            check(random, { m, n: 21, k: 300, scheme, compute, codes: { dtype, per } })
          }
        }
      }
    }
  })

  test('N and K that fill no vector, tile or group', () => {
    const random = new Random(104)
    for (const n of [1, 2, 15, 16, 17, 31, 33, 130]) {
      for (const compute of computes) {
        const k = random.pick([1, 7, 31, 33, 64, 129, 257])
        check(random, { m: random.pick([1, 2, 8]), n, k, scheme, compute, bias: 'f32', residual: 'f32' })
      }
    }
  })

  test('views: rows of x and residual with gaps between them', () => {
    const random = new Random(105)
    for (const compute of computes) {
      for (const x of floats)
        check(random, { m: 5, n: 20, k: 67, scheme, compute, x, residual: x, views: true })
    }
  })

  test('out with gaps between its rows, the residual in it or apart, and nothing written beside it', () => {
    const random = new Random(106)
    for (const dtype of floats) {
      for (const compute of computes) {
        const wanted = { m: 4, n: 18, k: 64, scheme, compute, x: dtype, residual: dtype }
        const made = make(random, wanted)
        const label = JSON.stringify(wanted)
        const apart = strided(new Float32Array(4 * 18), [4, 18], dtype)
        expect(linear(made.x, made.w, { ...made.options, out: apart })).toBe(apart)
        expectRight(made, 4, apart, `apart ${label}`)
        const before = Float32Array.from(read(made.options.residual as Tensor))
        const wide = new Float32Array(4 * 20).fill(-77)
        for (let i = 0; i < 4; i++) wide.set(before.subarray(i * 18, (i + 1) * 18), i * 20 + 1)
        const whole = tensor(wide, [4, 20], dtype)
        const out = whole.slice(1, 1, 19)
        linear(made.x, made.w, { ...made.options, residual: out, out })
        expectSame(read(out), read(apart), `in place ${label}`)
        const beside = [...read(whole.slice(1, 0, 1)), ...read(whole.slice(1, 19, 20))]
        expect(new Set(beside)).toEqual(new Set([-77]))
      }
    }
  })

  test('outQuant is the float32 result through quantizeRows, and goes into the next call', () => {
    const random = new Random(107)
    for (const dtype of codeDTypes) {
      for (const per of pers) {
        for (const activation of ['none', 'silu', 'swiglu'] as const) {
          const n = activation === 'swiglu' ? 520 : 260
          const made = make(random, { m: 3, n, k: 64, scheme, activation, bias: 'f32', residual: 'bf16' })
          const label = `${dtype} ${per} ${activation}`
          const plain = linear(made.x, made.w, { ...made.options, dtype: 'f32' })
          expectRight(made, 3, plain, label)
          const y = linear(made.x, made.w, { ...made.options, outQuant: { dtype, per } })
          const want = refQuantizeRows(Float32Array.from(read(plain)), 3, 260, dtype, per)
          expect([y.codes.dtype, y.codes.shape]).toEqual([dtype, [3, 260]])
          expect(y.scales.shape).toEqual(per === 'row' ? [3] : [3, 3])
          expectSame(new Uint8Array(y.codes.readSync().buffer), want.bytes, `${label} codes`)
          expectSame(y.scales.readSync(), want.scales, `${label} scales`)
          const second = device.load(quantize(random.floats(8 * 260), [8, 260], { format: 'f32' }))
          expect(linear(y, second).shape).toEqual([3, 8])
          second.dispose()
        }
      }
    }
  })

  test('nothing in a dimension', () => {
    const random = new Random(108)
    const empty = make(random, { m: 0, n: 18, k: 64, scheme, bias: 'f32', residual: 'f32' })
    expect(linear(empty.x, empty.w, empty.options).shape).toEqual([0, 18])
    const quantised = linear(empty.x, empty.w, { ...empty.options, outQuant: { per: 'block' } })
    expect([quantised.codes.shape, quantised.scales.shape]).toEqual([
      [0, 18],
      [0, 1],
    ])
    // K = 0 leaves act(bias) + residual.
    for (const activation of ['none', 'gelu', 'swiglu'] as const) {
      for (const compute of computes) {
        check(random, { m: 3, n: 18, k: 0, scheme, activation, compute, bias: 'f32', residual: 'f32' })
      }
    }
    const none = device.load(quantize(new Float32Array(0), [0, 64], scheme))
    expect(linear(tensor(random.floats(128), [2, 64]), none).shape).toEqual([2, 0])
  })
})

test('the dtype of the result: said, or that of x, or f32 for codes', () => {
  const w = device.load(quantize(new Float32Array(32).fill(0.5), [4, 8], { format: 'int8' }))
  const x = tensor(new Float32Array(16).fill(1), [2, 8], 'bf16')
  expect(linear(x, w).dtype).toBe('bf16')
  expect(linear(x, w, { dtype: 'f16' }).dtype).toBe('f16')
  expect(linear(quantizeRows(x), w).dtype).toBe('f32')
  expect(linear(quantizeRows(x), w, { dtype: 'bf16' }).dtype).toBe('bf16')
  const out = device.empty([2, 4], 'f16')
  expect(linear(x, w, { out, dtype: 'f16' })).toBe(out)
})

test('the same bits for any number of threads, on every rerun', () => {
  const random = new Random(109)
  const values = random.floats(33 * 512)
  const weights = random.floats(200 * 512)
  for (const format of formats) {
    const q = quantize(weights, [200, 512], schemeOf(format))
    for (const compute of computes) {
      const results = [1, 2, 3, 3].map((threads) => {
        const own = openTest({ threads })
        const y = linear(own.tensor(values, [33, 512]), own.load(q), { compute }).readSync()
        own.close()
        return Buffer.from(y.buffer).toString('base64')
      })
      expect([format, compute, new Set(results).size]).toEqual([format, compute, 1])
    }
  }
})

describe('a call that contradicts itself is refused', () => {
  const x = () => tensor(new Float32Array(16), [2, 8])
  const w = () => device.load(quantize(new Float32Array(32), [4, 8], { format: 'int8' }))
  const rows = (dtype: CodeDType, scales: readonly number[]) =>
    new QuantizedRows(device.empty([2, 4], dtype), device.empty(scales))
  const any = <T>(value: unknown): T => value as T
  const cases: [what: string, code: string, text: RegExp, act: () => Tensor | undefined][] = [
    [
      'dtype and an out of another',
      'ERR_DTYPE',
      /^linear: expected out in bf16, as dtype says, but got f32$/,
      () => linear(x(), w(), { dtype: 'bf16', out: device.empty([2, 4]) }),
    ],
    [
      'outQuant.dtype and codes of another',
      'ERR_DTYPE',
      /^linear: expected out in e4m3, as outQuant\.dtype says, but got i8$/,
      () => linear(x(), w(), { outQuant: { dtype: 'e4m3' }, out: rows('i8', [2]) }).codes,
    ],
    [
      'outQuant.per row and scales by block',
      'ERR_SHAPE',
      /^linear: expected out\.scales of shape \[M\], as outQuant\.per says, but got \[2, 1\]$/,
      () => linear(x(), w(), { outQuant: { per: 'row' }, out: rows('i8', [2, 1]) }).codes,
    ],
    [
      'outQuant.per block and scales by row',
      'ERR_SHAPE',
      /out\.scales of shape \[M, blocks of 128 columns\], as outQuant\.per says, but got \[2\]/,
      () => linear(x(), w(), { outQuant: { per: 'block' }, out: rows('i8', [2]) }).codes,
    ],
    [
      'outQuant and a Tensor as out',
      'ERR_TYPE',
      /^linear: expected out to be QuantizedRows/,
      () => linear(x(), w(), { outQuant: {}, out: any<QuantizedRows>(device.empty([2, 4])) }).codes,
    ],
    [
      'outQuant that is a word',
      'ERR_TYPE',
      /^linear: outQuant: expected \{ dtype, per \} but got 'int8'/,
      () => linear(x(), w(), { outQuant: any<RowQuantization>('int8') }).codes,
    ],
    [
      'codes as out without outQuant',
      'ERR_TYPE',
      /^linear: expected out to be a Tensor/,
      () => linear(x(), w(), { out: any(rows('i8', [2])) }),
    ],
    [
      'scales that are neither',
      'ERR_SHAPE',
      /out\.scales of shape \[2\] or \[2, 1\] but got \[3\]/,
      () => linear(x(), w(), { outQuant: {}, out: rows('i8', [3]) }).codes,
    ],
  ]
  test.each(cases)('%s', (_, code, text, act) => {
    const error = refusal(act)
    expect(error.message).toMatch(text)
    expect(error.code).toBe(code)
  })

  test('what out has goes where nothing is said', () => {
    const e4m3 = rows('e4m3', [2, 1])
    expect(linear(x(), w(), { outQuant: {}, out: e4m3 })).toBe(e4m3)
    expect(Array.from(e4m3.codes.readSync())).toEqual(new Array(8).fill(0))
    const said = rows('e5m2', [2])
    expect(linear(x(), w(), { outQuant: { dtype: 'e5m2', per: 'row' }, out: said })).toBe(said)
  })
})
