import { type Device, embedding, type Tensor } from 'lowbit'
import { native } from 'lowbit/native'
import { outputOf } from 'lowbit/tensor'
import { expectSame, floats, roundTo } from './ref/compare'
import { openTest } from './ref/device'
import { Random } from './ref/random'
import { eachRow, expectPadding, ints, numbers, place, read, refusal, room } from './ref/rows'

const random = new Random(0x656d6265)
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

function run(row: string, table: Tensor, ids: Tensor, into?: Tensor): Tensor {
  const out = outputOf(into, 'embedding')
  native.embedding(table, ids, out, row)
  return out
}

eachRow('embedding', (row) => {
  test('every dtype to every dtype, any shape of ids', () => {
    for (const from of floats) {
      for (const to of floats) {
        for (const columns of [1, 3, 8, 17, 511, 513, 1040]) {
          for (const padded of [false, true]) {
            const shape = random.pick([[], [1], [5], [2, 3], [2, 1, 2, 2]])
            const count = shape.reduce((a, b) => a * b, 1)
            const table = numbers(random, 11 * columns, from)
            const ids = Array.from({ length: count }, () => random.int(0, 10))
            const out = room(one, [...shape, columns], to, padded)
            const label = `${from} ${to} [${shape}] ${columns} ${padded} seed ${random.seed}`
            const got = read(
              run(
                row,
                place(one, table, [11, columns], from, padded).view,
                place(one, ids, shape, 'i32', padded).view,
                out.view,
              ),
            )
            const want = ids.flatMap((id) => table.slice(id * columns, (id + 1) * columns))
            expectSame(
              got,
              want.map((v) => roundTo(to, v)),
              label,
            )
            expectPadding(out, label)
          }
        }
      }
    }
  })

  test('ids in any order of memory; nothing to do', () => {
    const table = one.tensor(Float32Array.of(10, 11, 12, 13, 14, 15), [6, 1])
    const ids = one.tensor(Int32Array.of(0, 1, 2, 3, 4, 5), [2, 3], 'i32')
    expect(read(run(row, table, ids.transpose(0, 1)))).toEqual([10, 13, 11, 14, 12, 15])
    expect(read(run(row, table, ids.slice(0, 0, 0)))).toEqual([])
    expect(run(row, one.empty([6, 0]), ids).shape).toEqual([2, 3, 0])
    expect(read(run(row, one.empty([0, 4]), ids.slice(1, 0, 0)))).toEqual([])
  })

  test('an id outside of the table poisons the result and nothing else', async () => {
    const table = one.empty([2048, 4])
    const ids = one.tensor(Int32Array.of(1, 2, 3, 70000), [2, 2], 'i32')
    const out = one.tensor(new Float32Array(16).fill(7), [2, 2, 4])
    run(row, table, ids, out)
    await expect(out.read()).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining('embedding: ids[1, 1] = 70000 is outside the table of 2048 rows'),
    })
    expect(read(ids)).toEqual([1, 2, 3, 70000])
    // What comes after works as before.
    expect(await run(row, table, ids.slice(1, 0, 1)).read()).toHaveLength(8)
  })

  test('the same bits for any number of threads', () => {
    const table = random.floats(64 * 300)
    const ids = Int32Array.from({ length: 400 }, () => random.int(0, 63))
    const [a, b] = [one, three].map((device) =>
      read(run(row, device.tensor(table, [64, 300], 'f16'), device.tensor(ids, [400], 'i32'))),
    )
    expectSame(a ?? [], b ?? [], 'embedding')
  })
})

describe('refused', () => {
  const table = () => one.empty([6, 4])
  const i32 = (...values: number[]) => ints(one, values)
  const cases: [string, string, () => Tensor, RegExp][] = [
    [
      'a table of one dimension',
      'ERR_SHAPE',
      () => embedding(one.empty([6]), i32(0)),
      /table as \[rows, columns\] but got \[6\]/,
    ],
    [
      'a table of integers',
      'ERR_DTYPE',
      () => embedding(one.empty([6, 4], 'i8'), i32(0)),
      /table in f32, f16 or bf16 but got i8/,
    ],
    ['float ids', 'ERR_DTYPE', () => embedding(table(), one.empty([2])), /ids in i32 but got f32/],
    [
      'ids of five dimensions',
      'ERR_SHAPE',
      () => embedding(table(), one.empty([1, 1, 1, 1, 1], 'i32')),
      /ids of at most 4 dimensions/,
    ],
    [
      'columns as rows',
      'ERR_STRIDES',
      () => embedding(table().transpose(0, 1), i32(0)),
      /table with a contiguous last dimension/,
    ],
    [
      'another out shape',
      'ERR_SHAPE',
      () => embedding(table(), i32(0), { out: one.empty([4]) }),
      /out of shape \[1, 4\] \(ids, then the columns of table\) but got \[4\]/,
    ],
    [
      'an integer out',
      'ERR_DTYPE',
      () => embedding(table(), i32(0), { out: one.empty([1, 4], 'i32') }),
      /out in f32/,
    ],
    [
      'out in the table',
      'ERR_ARGUMENT',
      () => {
        const t = table()
        return embedding(t, i32(0), { out: t.slice(0, 3, 4) })
      },
      /out in memory of its own but it overlaps table/,
    ],
    [
      'a negative id',
      'ERR_ARGUMENT',
      () => embedding(table(), i32(0, -1)),
      /ids\[1\] = -1 is outside the table of 6 rows/,
    ],
    [
      'an id of an empty table',
      'ERR_ARGUMENT',
      () => embedding(one.empty([0, 4]), i32(0)),
      /outside the table of 0 rows/,
    ],
    [
      'another device',
      'ERR_DEVICE',
      () => embedding(table(), three.empty([2], 'i32')),
      /ids is on another device than table/,
    ],
  ]
  test.each(cases)('%s: %s', (_name, code, call, sentence) => {
    const error = refusal(call)
    expect(error.code).toBe(code)
    expect(error.message).toMatch(sentence)
  })
})
