import { add, type Device, geluMul, mul, siluMul, type Tensor } from 'lowbit'
import { native } from 'lowbit/native'
import { outputOf } from 'lowbit/tensor'
import { exact, expectClose, expectSame, type Float, floats, type Round } from './ref/compare'
import { openTest } from './ref/device'
import { gelu, geluTanh, silu } from './ref/elementwise'
import { Random } from './ref/random'
import { eachRow, expectPadding, numbers, place, read, refusal, room } from './ref/rows'

const lengths = [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1300]
const random = new Random(0x656c656d)
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

type Op = 'add' | 'mul' | 'siluMul' | 'geluMul' | 'geluMul, tanh'
const formulas: { [name in Op]: (a: number, b: number, r: Round) => number } = {
  add: (a, b, r) => r(a + b),
  mul: (a, b, r) => r(a * b),
  siluMul: (a, b, r) => r(silu(a, r) * b),
  geluMul: (a, b, r) => r(gelu(a, r) * b),
  'geluMul, tanh': (a, b, r) => r(geluTanh(a, r) * b),
}
const ops = Object.keys(formulas) as Op[]

function run(row: string, op: Op, a: Tensor, b: Tensor, into?: Tensor): Tensor {
  const out = outputOf(into, op)
  if (op === 'add') native.add(a, b, out, row)
  else if (op === 'mul') native.mul(a, b, out, row)
  else if (op === 'siluMul') native.siluMul(a, b, out, row)
  else native.geluMul(a, b, op !== 'geluMul', out, row)
  return out
}

function expectOp(
  op: Op,
  got: readonly number[],
  a: readonly number[],
  b: readonly number[],
  dtype: Float,
  label: string,
): void {
  const apply = (r: Round) => a.map((v, i) => formulas[op](v, b[i] as number, r))
  expectClose(got, apply(exact), apply(Math.fround), dtype, `${op} ${label} seed ${random.seed}`)
}

eachRow('elementwise', (row) => {
  test.each(ops)('%s against the reference', (op) => {
    for (const length of lengths) {
      for (const padded of [false, true]) {
        const [da, db, dout] = [random.pick(floats), random.pick(floats), random.pick(floats)]
        const shape = random.pick([[length], [2, length], [2, 3, length], [length, 1]])
        const count = shape.reduce((x, y) => x * y, 1)
        const [a, b] = [numbers(random, count, da, -9, 9), numbers(random, count, db)]
        const out = room(one, shape, dout, padded)
        const [ta, tb] = [place(one, a, shape, da, padded).view, place(one, b, shape, db, padded).view]
        const label = `[${shape}] ${da} ${db} ${dout}`
        expectOp(op, read(run(row, op, ta, tb, out.view)), a, b, dout, label)
        expectPadding(out, label)
      }
    }
  })

  test.each(ops)('%s over the whole range', (op) => {
    // 2^-30 to 2^12, both signs: where each function bends, is nearly linear, and is flat.
    const a = Array.from({ length: 4096 }, (_, i) =>
      Math.fround((i % 2 ? -1 : 1) * 2 ** ((i >> 1) / 48.8 - 30)),
    )
    const b = a.map(() => 1)
    const [ta, tb] = [a, b].map((v) => one.tensor(Float32Array.from(v), [4096])) as [Tensor, Tensor]
    const got = read(run(row, op, ta, tb))
    // In runs of 64, so that the error of large results allows none to small ones.
    for (let i = 0; i < 4096; i += 64) {
      expectOp(op, got.slice(i, i + 64), a.slice(i, i + 64), b.slice(i, i + 64), 'f32', `run ${i}`)
    }
  })

  test.each(ops)('%s in place, and on slices of one matrix', (op) => {
    for (const dtype of floats) {
      const both = place(one, numbers(random, 6 * 2 * 70, dtype), [6, 140], dtype, true)
      const [a, b] = [both.view.slice(1, 0, 70), both.view.slice(1, 70, 140)]
      const want = read(run(row, op, a, b))
      const before = read(a)
      run(row, op, a, b, b)
      expectSame(read(b), want, `${op} ${dtype} into b`)
      expectSame(read(a), before, `${op} ${dtype} a`)
      const again = read(run(row, op, a, b))
      run(row, op, a, b, a)
      expectSame(read(a), again, `${op} ${dtype} into a`)
      expectPadding(both, `${op} ${dtype}`)
    }
  })

  test.each(['add', 'mul'] as const)('%s repeats b along leading dimensions', (op) => {
    for (const [shape, of] of [
      [[4, 3, 10], [10]],
      [
        [4, 3, 10],
        [3, 10],
      ],
      [
        [4, 3, 10],
        [1, 3, 10],
      ],
      [
        [4, 3, 10],
        [4, 1, 10],
      ],
      [
        [4, 3, 10],
        [1, 1, 10],
      ],
      [[5, 1], [1]],
      [[2, 0, 4], [4]],
    ] as const) {
      const size = (s: readonly number[]) => s.reduce((x, y) => x * y, 1)
      const [a, b] = [numbers(random, size(shape), 'f32'), numbers(random, size(of), 'f32')]
      const index = (i: number) => {
        let rest = i
        let at = 0
        let step = 1
        for (let d = 1; d <= shape.length; d++) {
          const [n, m] = [shape[shape.length - d] as number, of[of.length - d] ?? 1]
          at += m === 1 ? 0 : (rest % n) * step
          step *= m
          rest = Math.floor(rest / n)
        }
        return at
      }
      for (const padded of [false, true]) {
        const got = read(
          run(row, op, place(one, a, shape, 'f32', padded).view, place(one, b, of, 'f32', padded).view),
        )
        expectSame(
          got,
          a.map((v, i) => formulas[op](v, b[index(i)] as number, Math.fround)),
          `[${shape}] ${op} [${of}]`,
        )
      }
    }
  })

  test('NaN, inf, nothing and single numbers', () => {
    const inf = Number.POSITIVE_INFINITY
    const t = (...v: number[]) => one.tensor(Float32Array.from(v), [v.length])
    for (const op of ops) {
      if (op === 'add' || op === 'mul') continue
      expect(read(run(row, op, t(Number.NaN, inf, -inf, 0, 1e30, -1e30), t(1, 1, 1, 5, 1, 1)))).toEqual([
        Number.NaN,
        inf,
        Number.NaN,
        0,
        Math.fround(1e30),
        -0,
      ])
    }
    expect(read(run(row, 'add', t(Number.NaN, inf, inf, -0), t(1, 1, -inf, -0)))).toEqual([
      Number.NaN,
      inf,
      Number.NaN,
      -0,
    ])
    expect(read(run(row, 'mul', t(Number.NaN, inf, inf, -0), t(1, -1, 0, 5)))).toEqual([
      Number.NaN,
      -inf,
      Number.NaN,
      -0,
    ])
    expect(read(run(row, 'add', one.empty([0, 4]), one.empty([4])))).toEqual([])
    const scalar = one.tensor(Float32Array.of(2), [])
    expect(read(run(row, 'add', scalar, scalar))).toEqual([4])
  })

  test('the same bits for any number of threads', () => {
    const x = random.floats(3 * 40001, -5, 5)
    for (const op of ops) {
      const results = [one, three].map((device) => {
        const t = device.tensor(x, [3, 40001], 'f16')
        return [read(run(row, op, t, t)), read(run(row, op, t.slice(1, 1, 40000), t.slice(1, 0, 39999)))]
      })
      for (const i of [0, 1]) expectSame(results[0]?.[i] ?? [], results[1]?.[i] ?? [], `${op} ${i}`)
    }
  })
})

describe('refused', () => {
  const f = (...shape: number[]) => one.empty(shape)
  const cases: [string, string, () => Tensor, RegExp][] = [
    [
      'b of other columns',
      'ERR_SHAPE',
      () => add(f(2, 4), f(3)),
      /add: expected b of the shape of a, \[2, 4\], or of its last dimensions but got \[3\]/,
    ],
    [
      'mul by other columns',
      'ERR_SHAPE',
      () => mul(f(2, 4), f(3)),
      /mul: expected b of the shape of a, \[2, 4\], or of its last dimensions but got \[3\]/,
    ],
    ['b of more dimensions', 'ERR_SHAPE', () => add(f(4), f(1, 4)), /but got \[1, 4\]/],
    ['one column for all', 'ERR_SHAPE', () => add(f(2, 4), f(2, 1)), /but got \[2, 1\]/],
    ['a single number for all', 'ERR_SHAPE', () => add(f(4), f()), /but got \[\]/],
    [
      'integers',
      'ERR_DTYPE',
      () => add(one.empty([4], 'i32'), f(4)),
      /add: expected a in f32, f16 or bf16 but got i32/,
    ],
    ['integers as b', 'ERR_DTYPE', () => siluMul(f(4), one.empty([4], 'u8')), /siluMul: expected up in f32/],
    [
      'up of another shape',
      'ERR_SHAPE',
      () => siluMul(f(2, 4), f(4)),
      /siluMul: expected up of shape \[2, 4\] \(as gate\) but got \[4\]/,
    ],
    [
      'gate as columns',
      'ERR_STRIDES',
      () => geluMul(f(4, 2).transpose(0, 1), f(2, 4)),
      /geluMul: expected gate with a contiguous last dimension/,
    ],
    [
      'another out shape',
      'ERR_SHAPE',
      () => add(f(2, 4), f(4), { out: f(8) }),
      /out of shape \[2, 4\] \(as a\) but got \[8\]/,
    ],
    ['an integer out', 'ERR_DTYPE', () => add(f(4), f(4), { out: one.empty([4], 'i32') }), /out in f32/],
    [
      'out one row on',
      'ERR_ARGUMENT',
      () => {
        const whole = f(3, 4)
        return add(whole.slice(0, 0, 2), f(4), { out: whole.slice(0, 1, 3) })
      },
      /out to be a itself or in memory of its own but it overlaps a/,
    ],
    [
      'out over a repeated b',
      'ERR_ARGUMENT',
      () => {
        const whole = f(2, 4)
        return add(f(2, 4), whole.slice(0, 0, 1), { out: whole })
      },
      /overlaps b/,
    ],
    [
      'out as columns',
      'ERR_STRIDES',
      () => {
        const whole = f(4, 4)
        return add(whole, whole, { out: whole.transpose(0, 1) })
      },
      /out with a contiguous last dimension/,
    ],
    ['another device', 'ERR_DEVICE', () => add(f(4), three.empty([4])), /b is on another device than a/],
    [
      'tanh as a word',
      'ERR_TYPE',
      () => geluMul(f(4), f(4), { tanh: 'yes' as unknown as boolean }),
      /tanh to be a boolean/,
    ],
  ]
  test.each(cases)('%s: %s', (_name, code, call, sentence) => {
    const error = refusal(call)
    expect(error.code).toBe(code)
    expect(error.message).toMatch(sentence)
  })
})
