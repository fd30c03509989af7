import { add, type Device, layerNorm, rmsNorm, type Tensor } from 'lowbit'
import { native } from 'lowbit/native'
import { outputOf } from 'lowbit/tensor'
import { exact, expectClose, expectSame, type Float, floats, roundTo } from './ref/compare'
import { openTest } from './ref/device'
import { layerNormRow, rmsNormRow } from './ref/norm'
import { Random } from './ref/random'
import { eachRow, expectPadding, numbers, type Placed, place, read, refusal, room } from './ref/rows'

const lengths = [1, 2, 7, 8, 9, 31, 32, 33, 63, 65, 127, 511, 512, 513, 1025, 2081]
const random = new Random(0x6e6f726d)
let one: Device
let three: Device
beforeAll(() => {
  one = openTest({ threads: 1 })
  three = openTest({ threads: 3 })
})
afterAll(() => {
  one.close()
  three.close()
})

type Kind = 'rmsNorm' | 'layerNorm'
interface Call {
  kind: Kind
  x: Tensor
  weight?: Tensor | undefined
  bias?: Tensor | undefined
  residual?: Tensor | undefined
  residualOut?: Tensor | undefined
  out?: Tensor | undefined
  eps?: number
}

function run(
  row: string,
  { kind, x, weight, bias, residual, residualOut, eps = 1e-5, ...rest }: Call,
): Tensor {
  const out = outputOf(rest.out, kind)
  if (kind === 'rmsNorm') native.rmsNorm(x, weight, residual, out, residualOut, eps, row)
  else native.layerNorm(x, weight, bias, residual, out, residualOut, eps, row)
  return out
}

/** Rows of numbers. */
const rowsOf = (values: readonly number[], length: number) =>
  Array.from({ length: values.length / length }, (_, i) => values.slice(i * length, (i + 1) * length))

function expectNorm(
  kind: Kind,
  got: readonly number[],
  u: readonly number[],
  weight: readonly number[],
  bias: readonly number[],
  dtype: Float,
  label: string,
  eps = 1e-5,
): void {
  const length = weight.length
  const results = rowsOf(got, length)
  for (const [i, row] of rowsOf(u, length).entries()) {
    const norm = (r: (v: number) => number) =>
      kind === 'rmsNorm' ? rmsNormRow(row, weight, eps, r) : layerNormRow(row, weight, bias, eps, r)
    expectClose(results[i] ?? [], norm(exact), norm(Math.fround), dtype, `${label}, row ${i}`)
  }
}

eachRow('norm', (row) => {
  test.each(['rmsNorm', 'layerNorm'] as const)('%s against the reference', (kind) => {
    for (const length of lengths) {
      for (const padded of [false, true]) {
        const [dx, dw, db, dr, ds, dout] = Array.from({ length: 6 }, () => random.pick(floats)) as [
          Float,
          Float,
          Float,
          Float,
          Float,
          Float,
        ]
        const shape = random.pick([[length], [3, length], [2, 2, length]])
        const count = shape.reduce((a, b) => a * b, 1)
        const [x, residual] = [numbers(random, count, dx), numbers(random, count, dr)]
        const [weight, bias] = [numbers(random, length, dw), numbers(random, length, db)]
        const given = random.next() < 0.8
        const put = (values: readonly number[], s: readonly number[], dtype: Float) =>
          place(one, values, s, dtype, padded).view
        const call: Call = { kind, x: put(x, shape, dx) }
        if (given) call.weight = put(weight, [length], dw)
        if (given && kind === 'layerNorm') call.bias = put(bias, [length], db)
        const [w, b] = given ? [weight, bias] : [weight.map(() => 1), bias.map(() => 0)]
        const out: Placed = room(one, shape, dout, padded)
        call.out = out.view
        const label = `${kind} ${length} ${dx} ${dw} ${dr} ${dout} ${padded} seed ${random.seed}`

        expectNorm(kind, read(run(row, call)), x, w, b, dout, label)
        expectPadding(out, label)

        // With a residual that is only read: its sum is not rounded.
        call.residual = put(residual, shape, dr)
        const sum = x.map((v, i) => v + (residual[i] as number))
        expectNorm(kind, read(run(row, call)), sum.map(Math.fround), w, b, dout, `${label}, residual`)

        // With residualOut: the norm of what it holds.
        const kept = room(one, shape, ds, padded)
        call.residualOut = kept.view
        const norm = read(run(row, call))
        const stored = sum.map((v) => roundTo(ds, Math.fround(v)))
        expectSame(read(kept.view), stored, `${label}, residualOut`)
        expectNorm(kind, norm, stored, w, b, dout, `${label}, of residualOut`)
        expectPadding(out, label)
        expectPadding(kept, label)
      }
    }
  })

  test('in place, and the same as an addition and a norm in turn', () => {
    for (const dtype of floats) {
      const [x, h] = [numbers(random, 5 * 96, dtype), numbers(random, 5 * 96, dtype)]
      const w = one.tensor(Float32Array.from(numbers(random, 96, dtype)), [96], dtype)
      const tensor = (v: number[]) => one.tensor(Float32Array.from(v), [5, 96], dtype)
      const sum = add(tensor(x), tensor(h))
      const want = read(run(row, { kind: 'rmsNorm', x: sum, weight: w }))
      for (const into of ['residual', 'x'] as const) {
        const [delta, stream] = [tensor(x), tensor(h)]
        const kept = into === 'residual' ? stream : delta
        const other = into === 'residual' ? delta : stream
        run(row, { kind: 'rmsNorm', x: delta, weight: w, residual: stream, residualOut: kept, out: other })
        expectSame(read(kept), read(sum), `${dtype} sum into ${into}`)
        expectSame(read(other), want, `${dtype} norm beside ${into}`)
      }
      const self = tensor(x)
      const apart = read(run(row, { kind: 'layerNorm', x: self }))
      run(row, { kind: 'layerNorm', x: self, out: self })
      expectSame(read(self), apart, `${dtype} layerNorm in place`)
    }
  })

  test('numbers whose squares leave the range of f32', () => {
    const shapes: [string, (i: number) => number][] = [
      ['large', (i) => (i % 2 ? -1 : 1) * (i + 1) * 1e30],
      ['small', (i) => (i % 2 ? -1 : 1) * (i + 1) * 1e-30],
      ['subnormal', (i) => (i % 3) * 1e-40],
      ['far from zero', (i) => 1000 + Math.fround(i / 64)],
    ]
    for (const [name, f] of shapes) {
      const x = Array.from({ length: 40 }, (_, i) => Math.fround(f(i)))
      const ones = x.map(() => 1)
      const zeros = x.map(() => 0)
      for (const kind of ['rmsNorm', 'layerNorm'] as const) {
        const got = read(run(row, { kind, x: one.tensor(Float32Array.from(x), [40]), eps: 0 }))
        // Here float64 itself is the measure: a plain loop in f32 has no digits left.
        const want =
          kind === 'rmsNorm' ? rmsNormRow(x, ones, 0, exact) : layerNormRow(x, ones, zeros, 0, exact)
        expectClose(got, want, want, 'f32', `${kind} ${name}`)
      }
    }
  })

  test('NaN, inf and zeros', () => {
    const norm = (kind: Kind, v: number[], eps = 1e-5) =>
      read(run(row, { kind, x: one.tensor(Float32Array.from(v), [1, v.length]), eps }))
    const long = new Array<number>(64).fill(1)
    expect(norm('rmsNorm', [...long, Number.NaN])).toEqual(new Array(65).fill(Number.NaN))
    expect(norm('layerNorm', [Number.NaN, ...long])).toEqual(new Array(65).fill(Number.NaN))
    expect(norm('rmsNorm', [2, Number.POSITIVE_INFINITY, 0])).toEqual([0, Number.NaN, 0])
    expect(norm('layerNorm', [2, Number.POSITIVE_INFINITY, 0])).toEqual(new Array(3).fill(Number.NaN))
    expect(norm('rmsNorm', [0, 0, 0])).toEqual([0, 0, 0])
    expect(norm('layerNorm', [3, 3, 3])).toEqual([0, 0, 0])
    expect(norm('rmsNorm', [0, 0], 0)).toEqual([Number.NaN, Number.NaN])
    expect(norm('rmsNorm', [])).toEqual([])
    expect(read(run(row, { kind: 'rmsNorm', x: one.empty([0, 8]) }))).toEqual([])
  })

  test('the same bits for any number of threads', () => {
    for (const dtype of floats) {
      const x = random.floats(301 * 200)
      const results = [one, three].map((device) => {
        const t = device.tensor(x, [301, 200], dtype)
        return (['rmsNorm', 'layerNorm'] as const).map((kind) => read(run(row, { kind, x: t, residual: t })))
      })
      for (const i of [0, 1]) expectSame(results[0]?.[i] ?? [], results[1]?.[i] ?? [], `${dtype} ${i}`)
    }
  })
})

describe('refused', () => {
  const x = () => one.empty([3, 8])
  const w = () => one.empty([8])
  const cases: [string, string, () => Tensor, RegExp][] = [
    [
      'no dimension',
      'ERR_SHAPE',
      () => rmsNorm(one.empty([]), w()),
      /rmsNorm: expected x of at least one dimension/,
    ],
    [
      'integers',
      'ERR_DTYPE',
      () => rmsNorm(one.empty([3, 8], 'i32'), w()),
      /x in f32, f16 or bf16 but got i32/,
    ],
    [
      'a short weight',
      'ERR_SHAPE',
      () => rmsNorm(x(), one.empty([7])),
      /weight of shape \[8\] \(the columns of x\) but got \[7\]/,
    ],
    [
      'a weight of two dimensions',
      'ERR_SHAPE',
      () => layerNorm(x(), one.empty([1, 8])),
      /layerNorm: expected weight/,
    ],
    [
      'an integer weight',
      'ERR_DTYPE',
      () => rmsNorm(x(), one.empty([8], 'i8')),
      /weight in f32, f16 or bf16/,
    ],
    ['a short bias', 'ERR_SHAPE', () => layerNorm(x(), w(), one.empty([9])), /bias of shape \[8\]/],
    ['a negative eps', 'ERR_ARGUMENT', () => rmsNorm(x(), w(), { eps: -1 }), /finite eps >= 0 but got -1/],
    ['a NaN eps', 'ERR_ARGUMENT', () => layerNorm(x(), w(), w(), { eps: Number.NaN }), /finite eps/],
    [
      'another out shape',
      'ERR_SHAPE',
      () => rmsNorm(x(), w(), { out: one.empty([3, 9]) }),
      /out of shape \[3, 8\] \(as x\) but got \[3, 9\]/,
    ],
    ['an integer out', 'ERR_DTYPE', () => rmsNorm(x(), w(), { out: one.empty([3, 8], 'u8') }), /out in f32/],
    [
      'another residual shape',
      'ERR_SHAPE',
      () => rmsNorm(x(), w(), { residual: one.empty([8]) }),
      /residual of shape/,
    ],
    [
      'residualOut alone',
      'ERR_ARGUMENT',
      () => rmsNorm(x(), w(), { residualOut: x() }),
      /residualOut was given without residual/,
    ],
    [
      'columns as rows',
      'ERR_STRIDES',
      () => rmsNorm(one.empty([8, 3]).transpose(0, 1), w()),
      /x with a contiguous last dimension but its stride is 3/,
    ],
    [
      'out over half of x',
      'ERR_ARGUMENT',
      () => {
        const whole = one.empty([4, 8])
        return rmsNorm(whole.slice(0, 0, 3), w(), { out: whole.slice(0, 1, 4) })
      },
      /out to be x itself or in memory of its own but it overlaps x/,
    ],
    [
      'out over weight',
      'ERR_ARGUMENT',
      () => {
        const whole = one.empty([8])
        return rmsNorm(whole.reshape([1, 8]), whole, { out: whole.reshape([1, 8]) })
      },
      /out in memory of its own but it overlaps weight/,
    ],
    [
      'one memory for both outputs',
      'ERR_ARGUMENT',
      () => {
        const out = x()
        return rmsNorm(x(), w(), { residual: x(), residualOut: out, out })
      },
      /residualOut in memory of its own but it overlaps out/,
    ],
    [
      'another device',
      'ERR_DEVICE',
      () => rmsNorm(x(), three.empty([8])),
      /weight is on another device than x/,
    ],
  ]
  test.each(cases)('%s: %s', (_name, code, f, sentence) => {
    const error = refusal(f)
    expect(error.code).toBe(code)
    expect(error.message).toMatch(sentence)
  })
})
