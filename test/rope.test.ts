import { type Device, type Pairing, rope, type Tensor } from 'lowbit'
import { native } from 'lowbit/native'
import { outputOf } from 'lowbit/tensor'
import { exact, expectClose, expectSame, floats } from './ref/compare'
import { openTest } from './ref/device'
import { Random } from './ref/random'
import { ropeHead } from './ref/rope'
import { eachRow, expectPadding, ints, numbers, place, read, refusal, room } from './ref/rows'

const pairings = ['half', 'interleaved'] as const
const random = new Random(0x726f7065)
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

interface Tables {
  cos: Tensor
  sin: Tensor
}

function run(
  row: string,
  x: Tensor,
  { cos, sin }: Tables,
  pairing: Pairing,
  positions: Tensor | number = 0,
  into?: Tensor,
): Tensor {
  const out = outputOf(into, 'rope')
  const number = typeof positions === 'number'
  native.rope(
    x,
    cos,
    sin,
    number ? undefined : positions,
    number ? positions : 0,
    pairings.indexOf(pairing),
    out,
    row,
  )
  return out
}

eachRow('rope', (row) => {
  // [headDim, rotaryDim]
  const sizes: [number, number][] = [
    [2, 2],
    [8, 8],
    [16, 2],
    [30, 14],
    [33, 32],
    [64, 64],
    [80, 34],
    [128, 128],
    [1100, 1064],
  ]
  test.each(pairings)('%s against the reference', (pairing) => {
    for (const [headDim, rotaryDim] of sizes) {
      for (const form of ['offset', 'positions', 'batched', 'batched offset', 'batched positions'] as const) {
        const padded = random.next() < 0.5
        const [dx, dout] = [random.pick(floats), random.pick(floats)]
        const [batch, seq, heads, table] = [form.startsWith('batched') ? 2 : 1, 3, random.int(1, 3), 9]
        const shape = form.startsWith('batched') ? [batch, seq, heads, headDim] : [seq, heads, headDim]
        const count = batch * seq * heads * headDim
        const x = numbers(random, count, dx)
        const cos = numbers(random, (table * rotaryDim) / 2, 'f32', -1, 1)
        const sin = numbers(random, (table * rotaryDim) / 2, 'f32', -1, 1)
        const start = random.int(0, table - seq)
        const perBatch = form === 'batched positions'
        const at = form.endsWith('offset')
          ? [0, 1, 2].map((i) => start + i)
          : Array.from({ length: perBatch ? batch * seq : seq }, () => random.int(0, table - 1))
        const positions = form.endsWith('offset')
          ? start
          : place(one, at, perBatch ? [batch, seq] : [seq], 'i32', padded).view
        const tables = {
          cos: place(one, cos, [table, rotaryDim / 2], 'f32', padded).view,
          sin: place(one, sin, [table, rotaryDim / 2], 'f32', !padded).view,
        }
        const out = room(one, shape, dout, padded)
        const label = `${pairing} ${form} ${headDim} ${rotaryDim} ${dx} ${dout} seed ${random.seed}`
        const got = read(
          run(row, place(one, x, shape, dx, padded).view, tables, pairing, positions, out.view),
        )
        expectPadding(out, label)
        for (let head = 0; head < batch * seq * heads; head++) {
          const token = Math.floor(head / heads)
          const position = at[perBatch ? token : token % seq] as number
          const from = x.slice(head * headDim, (head + 1) * headDim)
          const angles = [cos, sin].map((t) =>
            t.slice((position * rotaryDim) / 2, ((position + 1) * rotaryDim) / 2),
          ) as [number[], number[]]
          const want = ropeHead(from, ...angles, pairing, exact)
          const plain = ropeHead(from, ...angles, pairing, Math.fround)
          expectClose(got.slice(head * headDim, (head + 1) * headDim), want, plain, dout, label)
        }
      }
    }
  })

  test('in place; empty; NaN stays in its pair', () => {
    const table = (value: number, columns: number) =>
      one.tensor(new Float32Array(4 * columns).fill(value), [4, columns])
    const tables = { cos: table(0.6, 16), sin: table(0.8, 16) }
    for (const dtype of floats) {
      for (const pairing of pairings) {
        const x = place(one, numbers(random, 4 * 2 * 40, dtype), [4, 2, 40], dtype, true)
        const want = read(run(row, x.view, tables, pairing))
        run(row, x.view, tables, pairing, 0, x.view)
        expectSame(read(x.view), want, `${dtype} ${pairing}`)
        expectPadding(x, `${dtype} ${pairing}`)
      }
    }
    expect(read(run(row, one.empty([0, 2, 40]), tables, 'half', 4))).toEqual([])
    expect(read(run(row, one.empty([2, 0, 40]), tables, 'half'))).toEqual([])
    const small = { cos: table(1, 2), sin: table(0, 2) }
    const x = one.tensor(Float32Array.of(1, Number.NaN, 3, 4, 5), [1, 1, 5])
    expect(read(run(row, x, small, 'half'))).toEqual([1, Number.NaN, 3, Number.NaN, 5])
    expect(read(run(row, x, small, 'interleaved'))).toEqual([Number.NaN, Number.NaN, 3, 4, 5])
  })

  test('the same bits for any number of threads', () => {
    const x = random.floats(130 * 5 * 64)
    const angles = random.floats(130 * 32)
    const results = [one, three].map((device) => {
      const tables = { cos: device.tensor(angles, [130, 32]), sin: device.tensor(angles, [130, 32]) }
      return pairings.map((p) => read(run(row, device.tensor(x, [130, 5, 64], 'bf16'), tables, p)))
    })
    for (const i of [0, 1]) expectSame(results[0]?.[i] ?? [], results[1]?.[i] ?? [], `${i}`)
  })
})

describe('refused', () => {
  const x = () => one.empty([2, 3, 8])
  const tables = () => ({ cos: one.empty([6, 4]), sin: one.empty([6, 4]) })
  const i32 = (...values: number[]) => ints(one, values)
  const cases: [string, string, () => Tensor, RegExp][] = [
    [
      'two dimensions',
      'ERR_SHAPE',
      () => rope(one.empty([2, 8]), tables()),
      /\[tokens, heads, headDim\].* but got \[2, 8\]/,
    ],
    [
      'integers',
      'ERR_DTYPE',
      () => rope(one.empty([2, 3, 8], 'i8'), tables()),
      /x in f32, f16 or bf16 but got i8/,
    ],
    [
      'half tables',
      'ERR_DTYPE',
      () => rope(x(), { ...tables(), cos: one.empty([6, 4], 'f16') }),
      /cos in f32 but got f16/,
    ],
    [
      'wide tables',
      'ERR_SHAPE',
      () => rope(x(), { cos: one.empty([6, 5]), sin: one.empty([6, 5]) }),
      /rotaryDim from 2 to headDim = 8 but got \[6, 5\]/,
    ],
    [
      'empty tables',
      'ERR_SHAPE',
      () => rope(x(), { cos: one.empty([6, 0]), sin: one.empty([6, 0]) }),
      /rotaryDim from 2/,
    ],
    [
      'sin of another shape',
      'ERR_SHAPE',
      () => rope(x(), { ...tables(), sin: one.empty([5, 4]) }),
      /sin of shape \[6, 4\] \(as cos\) but got \[5, 4\]/,
    ],
    [
      'an offset past the end',
      'ERR_ARGUMENT',
      () => rope(x(), { ...tables(), positions: 5 }),
      /positions within the tables, 0 to 5, but got 5 to 6/,
    ],
    ['a negative offset', 'ERR_ARGUMENT', () => rope(x(), { ...tables(), positions: -1 }), /but got -1 to 0/],
    [
      'half an offset',
      'ERR_TYPE',
      () => rope(x(), { ...tables(), positions: 0.5 }),
      /offset to be a whole number/,
    ],
    [
      'too few positions',
      'ERR_SHAPE',
      () => rope(x(), { ...tables(), positions: i32(1) }),
      /positions of shape \[2\] \(the tokens of x\) but got \[1\]/,
    ],
    [
      'positions of no batch',
      'ERR_SHAPE',
      () => rope(one.empty([2, 3, 1, 8]), { ...tables(), positions: i32(1) }),
      /\[3\] or \[2, 3\]/,
    ],
    [
      'float positions',
      'ERR_DTYPE',
      () => rope(x(), { ...tables(), positions: one.empty([2]) }),
      /positions in i32 but got f32/,
    ],
    [
      'a position past the end',
      'ERR_ARGUMENT',
      () => rope(x(), { ...tables(), positions: i32(0, 6) }),
      /rope: positions\[1\] = 6 is outside the tables of 6 positions/,
    ],
    [
      'a negative position',
      'ERR_ARGUMENT',
      () => rope(x(), { ...tables(), positions: i32(-3, 0) }),
      /positions\[0\] = -3/,
    ],
    [
      'an unknown pairing',
      'ERR_ARGUMENT',
      () => rope(x(), { ...tables(), pairing: 'both' as Pairing }),
      /rope: pairing: expected one of half, interleaved but got 'both'/,
    ],
    [
      'another out shape',
      'ERR_SHAPE',
      () => rope(x(), { ...tables(), out: one.empty([2, 3, 9]) }),
      /out of shape/,
    ],
    [
      'columns as rows',
      'ERR_STRIDES',
      () => rope(one.empty([2, 8, 3]).transpose(1, 2), tables()),
      /x with a contiguous last dimension/,
    ],
    [
      'out one token on',
      'ERR_ARGUMENT',
      () => {
        const whole = one.empty([3, 3, 8])
        return rope(whole.slice(0, 0, 2), { ...tables(), out: whole.slice(0, 1, 3) })
      },
      /out to be x itself or in memory of its own but it overlaps x/,
    ],
  ]
  test.each(cases)('%s: %s', (_name, code, f, sentence) => {
    const error = refusal(f)
    expect(error.code).toBe(code)
    expect(error.message).toMatch(sentence)
  })
})
