import { argmax, crossEntropy, type Device, softmax, type Tensor } from 'lowbit'
import { native } from 'lowbit/native'
import { outputOf } from 'lowbit/tensor'
import { exact, expectClose, expectSame, floats, roundTo } from './ref/compare'
import { openTest } from './ref/device'
import { Random } from './ref/random'
import { eachRow, expectPadding, ints, numbers, place, read, refusal, room } from './ref/rows'
import { argmaxRow, crossEntropyRow, softmaxRow } from './ref/softmax'

const lengths = [1, 2, 7, 8, 9, 31, 32, 33, 64, 511, 512, 513, 1024, 2100]
const { NaN: nan, POSITIVE_INFINITY: inf } = Number
const random = new Random(0x736f6674)
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

interface Scaled {
  scale?: number
  out?: Tensor
}
function runSoftmax(row: string, x: Tensor, { scale = 1, out: into }: Scaled = {}): Tensor {
  const out = outputOf(into, 'softmax')
  native.softmax(x, out, scale, row)
  return out
}
function runArgmax(row: string, x: Tensor, into?: Tensor): Tensor {
  const out = outputOf(into, 'argmax')
  native.argmax(x, out, row)
  return out
}
function runCrossEntropy(row: string, x: Tensor, targets: Tensor, into?: Tensor): Tensor {
  const out = outputOf(into, 'crossEntropy')
  native.crossEntropy(x, targets, out, row)
  return out
}

eachRow('softmax', (row) => {
  test('softmax, argmax and crossEntropy against the reference', () => {
    for (const length of lengths) {
      for (const padded of [false, true]) {
        const [dx, dout] = [random.pick(floats), random.pick(floats)]
        const leading = random.pick([[], [3], [2, 2]])
        const rows = leading.reduce((a, b) => a * b, 1)
        const scale = random.pick([1, 0.125, -1.5, 0])
        const x = numbers(random, rows * length, dx, -6, 6)
        const view = place(one, x, [...leading, length], dx, padded).view
        const label = `[${leading}] ${length} ${dx} ${dout} ${scale} seed ${random.seed}`
        const rowsOf = <T>(f: (v: number[], i: number) => T) =>
          Array.from({ length: rows }, (_, i) => f(x.slice(i * length, (i + 1) * length), i))

        const p = room(one, [...leading, length], dout, padded)
        const got = read(runSoftmax(row, view, { scale, out: p.view }))
        expectPadding(p, label)
        rowsOf((v, i) =>
          expectClose(
            got.slice(i * length, (i + 1) * length),
            softmaxRow(v, scale, exact),
            softmaxRow(v, scale, Math.fround),
            dout,
            label,
          ),
        )

        const best = room(one, leading, 'i32', padded)
        expectSame(read(runArgmax(row, view, best.view)), rowsOf(argmaxRow), label)
        expectPadding(best, label)

        const targets = rowsOf(() => random.int(0, length - 1))
        const loss = room(one, leading, 'f32', padded)
        const losses = read(
          runCrossEntropy(row, view, place(one, targets, leading, 'i32', padded).view, loss.view),
        )
        expectPadding(loss, label)
        const entropy = (r: (v: number) => number) =>
          rowsOf((v, i) => crossEntropyRow(v, targets[i] as number, r))
        expectClose(losses, entropy(exact), entropy(Math.fround), 'f32', label)
      }
    }
  })

  test('softmax in place', () => {
    for (const dtype of floats) {
      const x = place(one, numbers(random, 3 * 600, dtype), [3, 600], dtype, true)
      const want = read(runSoftmax(row, x.view, { scale: 2 }))
      runSoftmax(row, x.view, { scale: 2, out: x.view })
      expectSame(read(x.view), want, dtype)
      expectPadding(x, dtype)
    }
  })

  test('argmax: the first of equal maxima, wherever it stands', () => {
    for (const dtype of floats) {
      for (const length of [5, 40, 700, 1500]) {
        for (let round = 0; round < 12; round++) {
          const x = numbers(random, length, dtype, -2, 1)
          const at = random.int(0, length - 1)
          x[at] = 1.5
          x[random.int(at, length - 1)] = 1.5
          const t = one.tensor(Float32Array.from(x), [length], dtype)
          expect([length, round, ...read(runArgmax(row, t))]).toEqual([length, round, at])
        }
      }
    }
    const of = (...v: number[]) => read(runArgmax(row, one.tensor(Float32Array.from(v), [v.length])))[0]
    expect(of(-0, 0)).toBe(0)
    expect(of(-inf, -inf)).toBe(0)
    expect(of(-inf, -1e30, -inf)).toBe(1)
    expect(of(3, inf, nan, nan)).toBe(2)
    const long = new Array<number>(600).fill(1)
    expect(of(...long, inf, ...long, nan, ...long, nan)).toBe(1201)
    expect(of(nan, ...long)).toBe(0)
  })

  test('NaN, inf and rows of -inf', () => {
    const soft = (v: number[], scale = 1) =>
      read(runSoftmax(row, one.tensor(Float32Array.from(v), [1, v.length]), { scale }))
    const long = new Array<number>(64).fill(-inf)
    expect(soft([-inf, -inf, -inf])).toEqual([0, 0, 0])
    expect(soft(long)).toEqual(long.map(() => 0))
    expect(soft([...long, 5])).toEqual([...long.map(() => 0), 1])
    expect(soft([...long, nan])).toEqual(new Array(65).fill(nan))
    expect(soft([nan, 1, 2])).toEqual([nan, nan, nan])
    expect(soft([inf, 1])).toEqual([nan, nan])
    expect(soft([-inf, 1], -1)).toEqual([nan, nan])
    expect(soft([inf, inf], -1)).toEqual([0, 0])
    expect(soft([1e30, -1e30], 1e30)).toEqual([nan, nan])
    expect(soft([-inf, 1], 0)).toEqual([nan, nan])
    expect(soft([100, -100, 100])).toEqual([0.5, 0, 0.5])
    expect(soft([])).toEqual([])
    const loss = (v: number[], target: number) =>
      read(
        runCrossEntropy(
          row,
          one.tensor(Float32Array.from(v), [v.length]),
          one.tensor(Int32Array.of(target), [], 'i32'),
        ),
      )[0]
    expect(loss([0, -inf], 1)).toBe(inf)
    expect(loss([0, -inf], 0)).toBe(0)
    expect(loss([7], 0)).toBe(0)
    expect(loss([-inf, -inf], 0)).toBe(nan)
    expect(loss([inf, 0], 0)).toBe(nan)
    expect(loss([nan, 0], 1)).toBe(nan)
    expect(loss([1e30, -1e30], 1)).toBe(Math.fround(2e30))
  })

  test('crossEntropy keeps its digits over 200000 classes', () => {
    const x = Array.from({ length: 200_000 }, () => Math.fround(random.float(-0.01, 0.01)))
    const got = read(
      runCrossEntropy(
        row,
        one.tensor(Float32Array.from(x), [1, x.length]),
        one.tensor(Int32Array.of(77), [1], 'i32'),
      ),
    )
    const want = crossEntropyRow(x, 77, exact)
    expectClose(got, [want], [roundTo('f32', want)], 'f32', 'crossEntropy')
  })

  test('the same bits for any number of threads', () => {
    const x = random.floats(200 * 300, -5, 5)
    const results = [one, three].map((device) => {
      const t = device.tensor(x, [200, 300], 'bf16')
      const targets = device.tensor(new Int32Array(200).fill(7), [200], 'i32')
      return [runSoftmax(row, t), runArgmax(row, t), runCrossEntropy(row, t, targets)].map(read)
    })
    for (const i of [0, 1, 2]) expectSame(results[0]?.[i] ?? [], results[1]?.[i] ?? [], `${i}`)
  })
})

describe('refused', () => {
  const f = (...shape: number[]) => one.empty(shape)
  const i32 = (...values: number[]) => ints(one, values)
  const cases: [string, string, () => Tensor, RegExp][] = [
    [
      'softmax of a single number',
      'ERR_SHAPE',
      () => softmax(f()),
      /softmax: expected x of at least one dimension/,
    ],
    ['softmax of integers', 'ERR_DTYPE', () => softmax(i32(1)), /x in f32, f16 or bf16 but got i32/],
    ['a NaN scale', 'ERR_ARGUMENT', () => softmax(f(2), { scale: nan }), /finite scale but got/],
    ['a scale beyond f32', 'ERR_ARGUMENT', () => softmax(f(2), { scale: 1e39 }), /finite scale but got inf/],
    [
      'softmax over columns',
      'ERR_STRIDES',
      () => softmax(f(4, 2).transpose(0, 1)),
      /x with a contiguous last dimension/,
    ],
    ['softmax into integers', 'ERR_DTYPE', () => softmax(f(2), { out: one.empty([2], 'i8') }), /out in f32/],
    [
      'softmax into another shape',
      'ERR_SHAPE',
      () => softmax(f(2), { out: f(1, 2) }),
      /out of shape \[2\] \(as x\) but got \[1, 2\]/,
    ],
    [
      'softmax one row on',
      'ERR_ARGUMENT',
      () => {
        const whole = f(3, 4)
        return softmax(whole.slice(0, 0, 2), { out: whole.slice(0, 1, 3) })
      },
      /out to be x itself/,
    ],
    [
      'argmax of no classes',
      'ERR_SHAPE',
      () => argmax(f(3, 0)),
      /argmax: expected x with at least one class but got \[3, 0\]/,
    ],
    [
      'argmax into floats',
      'ERR_DTYPE',
      () => argmax(f(3, 2), { out: f(3) as Tensor as Tensor<'i32'> }),
      /argmax: expected out in i32 but got f32/,
    ],
    [
      'argmax into another shape',
      'ERR_SHAPE',
      () => argmax(f(3, 2), { out: one.empty([3, 1], 'i32') }),
      /out of shape \[3\] \(x without its last dimension\)/,
    ],
    [
      'crossEntropy of no classes',
      'ERR_SHAPE',
      () => crossEntropy(f(3, 0), i32(0, 0, 0)),
      /crossEntropy: expected logits with at least one class/,
    ],
    [
      'float targets',
      'ERR_DTYPE',
      () => crossEntropy(f(2, 3), f(2)),
      /crossEntropy: expected targets in i32 but got f32/,
    ],
    ['too few targets', 'ERR_SHAPE', () => crossEntropy(f(2, 3), i32(1)), /targets of shape \[2\]/],
    [
      'a target past the end',
      'ERR_ARGUMENT',
      () => crossEntropy(f(2, 3), i32(1, 3)),
      /crossEntropy: targets\[1\] = 3 is none of the 3 classes/,
    ],
    ['a negative target', 'ERR_ARGUMENT', () => crossEntropy(f(2, 3), i32(-1, 0)), /targets\[0\] = -1/],
    [
      'another device',
      'ERR_DEVICE',
      () => crossEntropy(f(2, 3), three.tensor(Int32Array.of(0, 0), [2], 'i32')),
      /targets is on another device than logits/,
    ],
  ]
  test.each(cases)('%s: %s', (_name, code, call, sentence) => {
    const error = refusal(call)
    expect(error.code).toBe(code)
    expect(error.message).toMatch(sentence)
  })
})
