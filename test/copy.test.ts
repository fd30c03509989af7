import { copy, type Device, type DType, type Tensor } from 'lowbit'
import { native } from 'lowbit/native'
import { outputOf } from 'lowbit/tensor'
import { dtypes } from 'lowbit/words'
import { expectSame, floats, roundTo } from './ref/compare'
import { openTest } from './ref/device'
import { decodeFloat, encodeFloat, minifloats } from './ref/floats'
import { Random } from './ref/random'
import { eachRow, expectPadding, numbers, place, read, refusal, room } from './ref/rows'

const random = new Random(0x636f7079)
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

function run(row: string, x: Tensor, dtype?: DType, into?: Tensor): Tensor {
  const out = outputOf(into, 'copy')
  native.copy(x, dtype === undefined ? undefined : dtypes.indexOf(dtype), out, row)
  return out
}

/** A view with its dimensions in another order; `order[i]` is the one that comes to stand at i. */
function permute(tensor: Tensor, order: readonly number[]): Tensor {
  const at = order.map((_, i) => i)
  let view = tensor
  for (const [i, wanted] of order.entries()) {
    const j = at.indexOf(wanted)
    if (i === j) continue
    view = view.transpose(i, j)
    ;[at[i], at[j]] = [at[j] as number, at[i] as number]
  }
  return view
}
const orders = (rank: number): number[][] =>
  rank === 0
    ? [[]]
    : orders(rank - 1).flatMap((o) =>
        Array.from({ length: rank }, (_, i) => [...o.slice(0, i), rank - 1, ...o.slice(i)]),
      )

eachRow('copy', (row) => {
  test('every float dtype to every other, rounded to nearest even', () => {
    // Every f16 and bf16 code is one of these numbers or lies between two of them.
    const x = Array.from({ length: 3001 }, (_, i) =>
      Math.fround((i % 2 ? -1 : 1) * 2 ** (i / 60 - 28) * random.float(1, 2)),
    )
    x.push(
      0,
      -0,
      Number.NaN,
      Number.POSITIVE_INFINITY,
      Number.NEGATIVE_INFINITY,
      65519,
      65520,
      1e30,
      2 ** -25,
    )
    for (const from of floats) {
      const values = x.map((v) => roundTo(from, v))
      const view = place(one, values, [values.length], from, true).view
      for (const to of floats) {
        expectSame(
          read(run(row, view, to)),
          values.map((v) => roundTo(to, v)),
          `${from} to ${to}`,
        )
      }
      for (const to of ['e4m3', 'e5m2'] as const) {
        const coded = run(row, view, to)
        const want = values.map((v) => decodeFloat(minifloats[to], encodeFloat(minifloats[to], v)))
        expectSame(read(coded), want, `${from} to ${to}`)
        expectSame(
          read(run(row, coded, from)),
          want.map((v) => roundTo(from, v)),
          `${to} back to ${from}`,
        )
      }
    }
  })

  test('equal dtypes keep their bits', () => {
    const bits = Uint32Array.of(0x7fc00001, 0xff800001, 0x80000000, 1, 0x7f800000)
    const t = one.tensor(new Float32Array(bits.buffer), [5])
    const got = run(row, t).readSync() as Float32Array
    expect(new Uint32Array(got.buffer)).toEqual(bits)
    const halves = Uint16Array.of(0x7c01, 0xfe00, 0x8000, 1)
    for (const dtype of ['f16', 'bf16'] as const) {
      expect(run(row, one.tensor(halves, [2, 2], dtype).transpose(0, 1)).readSync()).toEqual(
        Uint16Array.of(0x7c01, 0x8000, 0xfe00, 1),
      )
    }
    const whole = { i32: Int32Array, i8: Int8Array, u8: Uint8Array, e4m3: Uint8Array, e5m2: Uint8Array }
    for (const [dtype, Kind] of Object.entries(whole) as [keyof typeof whole, typeof Uint8Array][]) {
      const data = Kind.from({ length: 70 }, (_, i) => i * 37)
      const tensor = one.tensor(data, [7, 10], dtype)
      expect(run(row, tensor).readSync()).toEqual(data)
      const turned = Kind.from({ length: 70 }, (_, i) => ((i % 7) * 10 + Math.floor(i / 7)) * 37)
      expect(run(row, tensor.transpose(0, 1)).readSync()).toEqual(turned)
    }
  })

  test('any order of dimensions to any other, into the midst of a larger tensor', () => {
    const shapes = [[], [6], [3, 70], [70, 3], [5, 4, 33], [1, 65, 66], [2, 3, 4, 5], [2, 1, 3, 2, 9]]
    for (const shape of shapes) {
      for (const order of orders(shape.length).filter(() => shape.length < 4 || random.next() < 0.3)) {
        const [from, to] =
          random.next() < 0.5 ? (['f32', 'f32'] as const) : [random.pick(floats), random.pick(floats)]
        const values = numbers(
          random,
          shape.reduce((a, b) => a * b, 1),
          from,
        )
        const x = permute(place(one, values, shape, from, true).view, order)
        const want = read(x).map((v) => roundTo(to, v))
        const label = `[${shape}] by [${order}] ${from} ${to} seed ${random.seed}`
        expectSame(read(run(row, x, to)), want, label)
        // out's own memory in a random order, with gaps.
        const own = random.pick(orders(shape.length))
        const placed = room(
          one,
          own.map((d) => x.shape[d] as number),
          to,
          true,
        )
        const back = own.map((_, i) => own.indexOf(i))
        const out = permute(placed.view, back)
        run(row, x, undefined, out)
        expectSame(read(out), want, `${label} into [${own}]`)
        expectPadding(placed, label)
      }
    }
  })

  test('a slice of a cache', () => {
    const cache = one.tensor(new Float32Array(10 * 2 * 8).fill(-1), [10, 2, 8], 'bf16')
    const k = one.tensor(
      Float32Array.from({ length: 48 }, (_, i) => i),
      [3, 2, 8],
    )
    run(row, k, undefined, cache.slice(0, 4, 7))
    const got = read(cache)
    expect(got.slice(64, 112)).toEqual(Array.from({ length: 48 }, (_, i) => i))
    expect([...got.slice(0, 64), ...got.slice(112)]).toEqual(new Array(112).fill(-1))
    // From one part of a tensor to another.
    run(row, cache.slice(0, 4, 7), undefined, cache.slice(0, 7, 10))
    expect(read(cache.slice(0, 7, 10))).toEqual(read(k))
  })

  test('onto itself, and nothing', () => {
    const x = one.tensor(Float32Array.of(1, 2, 3, 4), [2, 2])
    run(row, x.transpose(0, 1), undefined, x.transpose(0, 1))
    expect(read(x)).toEqual([1, 2, 3, 4])
    expect(run(row, one.empty([3, 0, 2])).shape).toEqual([3, 0, 2])
    expect(read(run(row, one.tensor(Float32Array.of(9), [])))).toEqual([9])
  })

  test('the same bits for any number of threads', () => {
    const x = random.floats(300 * 500)
    const results = [one, three].map((device) => {
      const t = device.tensor(x, [300, 500])
      return [run(row, t, 'f16'), run(row, t.transpose(0, 1), 'bf16'), run(row, t.slice(1, 3, 400))].map(read)
    })
    for (const i of [0, 1, 2]) expectSame(results[0]?.[i] ?? [], results[1]?.[i] ?? [], `${i}`)
  })
})

describe('refused', () => {
  const f = (...shape: number[]) => one.empty(shape)
  const cases: [string, string, () => Tensor, RegExp][] = [
    ['floats to integers', 'ERR_DTYPE', () => copy(f(4), { dtype: 'i32' }), /copy: f32 can't become i32/],
    [
      'integers to floats',
      'ERR_DTYPE',
      () => copy(one.empty([4], 'u8'), { dtype: 'f32' }),
      /copy: u8 can't become f32/,
    ],
    [
      'integers to others',
      'ERR_DTYPE',
      () => copy(one.empty([4], 'u8'), { out: one.empty([4], 'i8') }),
      /copy: u8 can't become i8/,
    ],
    [
      'two dtypes',
      'ERR_DTYPE',
      () => copy(f(4), { dtype: 'f16', out: one.empty([4], 'bf16') }),
      /out in f16 but got bf16/,
    ],
    [
      'an unknown dtype',
      'ERR_ARGUMENT',
      () => copy(f(4), { dtype: 'f64' as DType }),
      /copy: dtype: expected one of f32.* but got 'f64'/,
    ],
    [
      'another shape',
      'ERR_SHAPE',
      () => copy(f(2, 4), { out: f(8) }),
      /out of shape \[2, 4\] \(as x\) but got \[8\]/,
    ],
    [
      'one element on',
      'ERR_ARGUMENT',
      () => {
        const whole = f(9)
        return copy(whole.slice(0, 0, 8), { out: whole.slice(0, 1, 9) })
      },
      /out to be x itself or in memory of its own but it overlaps x/,
    ],
    [
      'its own transpose',
      'ERR_ARGUMENT',
      () => {
        const x = f(4, 4)
        return copy(x, { out: x.transpose(0, 1) })
      },
      /overlaps x/,
    ],
    [
      'another device',
      'ERR_DEVICE',
      () => copy(f(4), { out: three.empty([4]) }),
      /out is on another device than x/,
    ],
  ]
  test.each(cases)('%s: %s', (_name, code, call, sentence) => {
    const error = refusal(call)
    expect(error.code).toBe(code)
    expect(error.message).toMatch(sentence)
  })
})
