// quantizeRows and dequantizeRows through the public API against test/ref: codes and scales are exact, so they are equal.
// Each kernel row is walked by name in kernels.test.ts.
import {
  type CodeDType,
  type Device,
  dequantizeRows,
  linear,
  QuantizedRows,
  quantize,
  quantizeRows,
  type Tensor,
} from 'lowbit'
import { expectSame } from './ref/compare'
import { openTest } from './ref/device'
import { codeValue, encodeFloats, type FloatName, refQuantizeRows, roundAll, roundTo } from './ref/linear'
import { Random } from './ref/random'
import { read, refusal } from './ref/rows'

const floats: readonly FloatName[] = ['f32', 'f16', 'bf16']
const codeDTypes: readonly CodeDType[] = ['i8', 'e4m3', 'e5m2']
const pers = ['row', 'block'] as const
const { NaN: nan, POSITIVE_INFINITY: inf } = Number

let device: Device
beforeAll(() => {
  device = openTest({ threads: 2 })
})
afterAll(() => device.close())

const tensor = (values: Float32Array, shape: readonly number[], dtype: FloatName = 'f32') =>
  device.tensor(encodeFloats(dtype, values), shape, dtype) as Tensor
const bytesOf = (codes: Tensor) => new Uint8Array(codes.readSync().buffer)

describe.each(codeDTypes)('codes in %s', (dtype) => {
  describe.each(pers)('scales per %s', (per) => {
    test('codes and scales are those of the formula, for every float dtype and ragged K', () => {
      const random = new Random(201)
      for (const x of floats) {
        for (const k of [1, 5, 127, 128, 129, 384, 500]) {
          const m = random.int(1, 7)
          const values = roundAll(x, random.floats(m * k, -3, 3))
          const got = quantizeRows(tensor(values, [m, k], x), { dtype, per })
          const want = refQuantizeRows(values, m, k, dtype, per)
          const label = JSON.stringify({ seed: random.seed, x, k, m })
          expect([got.codes.dtype, got.codes.shape]).toEqual([dtype, [m, k]])
          expect([got.scales.dtype, got.scales.shape]).toEqual([
            'f32',
            per === 'row' ? [m] : [m, want.blocks],
          ])
          expectSame(bytesOf(got.codes), want.bytes, `${label} codes`)
          expectSame(got.scales.readSync(), want.scales, `${label} scales`)
          for (const back of floats) {
            const values = read(dequantizeRows(got, { dtype: back }))
            const expected = Array.from(want.bytes, (byte, i) => {
              const block = per === 'row' ? 0 : Math.floor((i % k) / 128)
              const scale = want.scales[Math.floor(i / k) * want.blocks + block] as number
              return roundTo(back, Math.fround(codeValue(dtype, byte) * scale))
            })
            expectSame(values, expected, `${label} back in ${back}`)
          }
        }
      }
    })

    test('halves go to even, a run of zeros has the least scale, NaN and inf spoil their run alone', () => {
      const limit = { i8: 127, e4m3: 448, e5m2: 57344 }[dtype]
      const k = 256
      const rows = [
        Float32Array.from({ length: k }, (_, i) => (i % 128 === 0 ? limit : (i % 64) - 31.5)),
        new Float32Array(k),
        Float32Array.from({ length: k }, (_, i) => (i === 3 ? nan : i === 128 ? 2 : 1)),
        Float32Array.from({ length: k }, (_, i) => (i === 200 ? -inf : 1)),
      ]
      const values = Float32Array.from(rows.flatMap((row) => [...row]))
      const got = quantizeRows(tensor(values, [4, k]), { dtype, per })
      const want = refQuantizeRows(values, 4, k, dtype, per)
      expectSame(bytesOf(got.codes), want.bytes, 'codes')
      expectSame(got.scales.readSync(), want.scales, 'scales')
      const spoiled = Array.from(want.scales, Number.isNaN)
      expect(spoiled).toEqual(
        per === 'row' ? [false, false, true, true] : [false, false, false, false, true, false, false, true],
      )
      expect(want.scales[per === 'row' ? 1 : 2]).toBe(Math.fround(1e-12))
    })

    test('x and out as views; nothing beside them is read or written', () => {
      const random = new Random(202)
      const [m, k] = [5, 260]
      const values = random.floats(m * k)
      const wide = new Float32Array(m * (k + 4)).fill(nan)
      for (let i = 0; i < m; i++) wide.set(values.subarray(i * k, (i + 1) * k), i * (k + 4) + 3)
      const x = tensor(wide, [m, k + 4]).slice(1, 3, k + 3)
      const wholeCodes = device.tensor(
        new Uint8Array(m * (k + 9)).fill(85),
        [m, k + 9],
        dtype === 'i8' ? 'u8' : dtype,
      )
      const codes = dtype === 'i8' ? device.empty([m, k], 'i8') : (wholeCodes.slice(1, 9, k + 9) as Tensor)
      const scales = per === 'row' ? device.empty([m]) : device.empty([m, 7]).slice(1, 2, 5)
      const out = new QuantizedRows(codes, scales)
      expect(quantizeRows(x, { dtype, per, out })).toBe(out)
      const want = refQuantizeRows(values, m, k, dtype, per)
      expectSame(bytesOf(codes), want.bytes, 'codes')
      expectSame(scales.readSync(), want.scales, 'scales')
      expect(new Set(bytesOf(wholeCodes.slice(1, 0, 9)))).toEqual(new Set([85]))
      const back = device.tensor(new Float32Array(m * (k + 1)).fill(-77), [m, k + 1])
      const view = back.slice(1, 0, k)
      expect(dequantizeRows(out, { out: view })).toBe(view)
      expectSame(read(view), read(dequantizeRows(out)), 'back')
      expect(new Set(read(back.slice(1, k, k + 1)))).toEqual(new Set([-77]))
    })

    test('nothing to do', () => {
      for (const [m, k] of [
        [0, 5],
        [3, 0],
        [0, 0],
      ] as const) {
        const got = quantizeRows(device.empty([m, k]), { dtype, per })
        expect(got.codes.shape).toEqual([m, k])
        expect(got.scales.shape).toEqual(per === 'row' ? [m] : [m, Math.ceil(k / 128)])
        expect(dequantizeRows(got).shape).toEqual([m, k])
      }
      const empty = quantizeRows(device.empty([2, 0]))
      expect(Array.from(empty.scales.readSync())).toEqual([Math.fround(1e-12), Math.fround(1e-12)])
    })
  })

  test('the same bits for any number of threads', () => {
    const values = new Random(203).floats(97 * 600)
    const results = [1, 2, 3].map((threads) => {
      const own = openTest({ threads })
      const { codes, scales } = quantizeRows(own.tensor(values, [97, 600]), { dtype, per: 'block' })
      const bytes = [bytesOf(codes), new Uint8Array(scales.readSync().buffer)]
      own.close()
      return Buffer.concat(bytes).toString('base64')
    })
    expect(new Set(results).size).toBe(1)
  })
})

test('the defaults are i8 and one scale a row; what linear takes', () => {
  const x = tensor(new Float32Array([1, -2, 4, 0.5, 0, 127]), [2, 3])
  const rows = quantizeRows(x)
  expect([rows.codes.dtype, rows.scales.shape]).toEqual(['i8', [2]])
  expect([...rows.codes.readSync()]).toEqual([32, -64, 127, 0, 0, 127])
  const w = device.load(quantize(new Float32Array([1, 0, 0, 0, 0, 1]), [2, 3], { format: 'f32' }))
  expectSame(read(linear(rows, w)), read(linear(dequantizeRows(rows), w)), 'linear of codes')
  rows.dispose()
  expect([rows.codes.disposed, rows.scales.disposed]).toEqual([true, true])
})

test('out may say what is not said', () => {
  const x = tensor(new Float32Array(512).fill(3), [2, 256])
  const out = new QuantizedRows(device.empty([2, 256], 'e5m2'), device.empty([2, 2]))
  expect(quantizeRows(x, { out })).toBe(out)
  expectSame(
    bytesOf(out.codes),
    refQuantizeRows(new Float32Array(512).fill(3), 2, 256, 'e5m2', 'block').bytes,
    'e5m2',
  )
  const half = device.empty([2, 256], 'f16')
  expect(dequantizeRows(out, { out: half })).toBe(half)
  expect(dequantizeRows(out, { out: half, dtype: 'f16' })).toBe(half)
})

describe('refused', () => {
  const x = () => tensor(new Float32Array(512), [2, 256])
  const rows = (codes: 'i8' | 'e4m3' | 'f32' | 'i32', scales: readonly number[], shape = [2, 256]) =>
    new QuantizedRows(device.empty(shape, codes), device.empty(scales))
  const any = <T>(value: unknown): T => value as T
  const cases: [what: string, code: string, text: RegExp, act: () => QuantizedRows | Tensor][] = [
    [
      'dtype and codes of another',
      'ERR_DTYPE',
      /^quantizeRows: expected out\.codes in e4m3, as dtype says, but got i8$/,
      () => quantizeRows(x(), { dtype: 'e4m3', out: rows('i8', [2]) }),
    ],
    [
      'per row and scales by block',
      'ERR_SHAPE',
      /^quantizeRows: expected out\.scales of shape \[M\], as per says, but got \[2, 2\]$/,
      () => quantizeRows(x(), { per: 'row', out: rows('i8', [2, 2]) }),
    ],
    [
      'per block and scales by row',
      'ERR_SHAPE',
      /of shape \[M, blocks of 128 columns\], as per says, but got \[2\]/,
      () => quantizeRows(x(), { per: 'block', out: rows('i8', [2]) }),
    ],
    [
      'floats as codes',
      'ERR_DTYPE',
      /out\.codes in i8, e4m3 or e5m2 but got f32/,
      () => quantizeRows(x(), { out: rows('f32', [2]) }),
    ],
    [
      'codes of another shape',
      'ERR_SHAPE',
      /out\.codes of shape \[2, 256\]/,
      () => quantizeRows(x(), { out: rows('i8', [2], [2, 255]) }),
    ],
    [
      'scales of neither shape',
      'ERR_SHAPE',
      /out\.scales of shape \[2\] or \[2, 2\] but got \[3\]/,
      () => quantizeRows(x(), { out: rows('i8', [3]) }),
    ],
    [
      'an unknown dtype',
      'ERR_ARGUMENT',
      /one of i8, e4m3, e5m2 but got 'i4'/,
      () => quantizeRows(x(), { dtype: any('i4') }),
    ],
    [
      'an unknown per',
      'ERR_ARGUMENT',
      /one of row, block but got 'token'/,
      () => quantizeRows(x(), { per: any('token') }),
    ],
    [
      'a Tensor as out',
      'ERR_TYPE',
      /expected out to be QuantizedRows/,
      () => quantizeRows(x(), { out: any(x()) }),
    ],
    [
      'x of rank 3',
      'ERR_SHAPE',
      /x of shape \[M, K\] but got \[2, 2, 128\]/,
      () => quantizeRows(x().reshape([2, 2, 128])),
    ],
    [
      'x of integers',
      'ERR_DTYPE',
      /x in f32, f16 or bf16 but got i32/,
      () => quantizeRows(device.empty([2, 2], 'i32')),
    ],
    ['columns of x', 'ERR_STRIDES', /x/, () => quantizeRows(x().transpose(0, 1))],
    [
      'out in the memory of x',
      'ERR_ARGUMENT',
      /overlap/,
      () => {
        const own = tensor(new Float32Array(8), [2, 4])
        return quantizeRows(own, {
          out: new QuantizedRows(device.empty([2, 4], 'i8'), own.reshape([8]).slice(0, 0, 2)),
        })
      },
    ],
    [
      'dequantizeRows: dtype and an out of another',
      'ERR_DTYPE',
      /^dequantizeRows: expected out in bf16, as dtype says, but got f32$/,
      () => dequantizeRows(quantizeRows(x()), { dtype: 'bf16', out: device.empty([2, 256]) }),
    ],
    [
      'dequantizeRows: a Tensor',
      'ERR_TYPE',
      /^dequantizeRows: expected x to be QuantizedRows/,
      () => dequantizeRows(any(x())),
    ],
    [
      'dequantizeRows: integers as out',
      'ERR_DTYPE',
      /out/,
      () => dequantizeRows(quantizeRows(x()), { out: device.empty([2, 256], 'i32') }),
    ],
    [
      'disposed codes',
      'ERR_DISPOSED',
      /x\.codes is disposed/,
      () => {
        const gone = quantizeRows(x())
        gone.dispose()
        return dequantizeRows(gone)
      },
    ],
  ]
  test.each(cases)('%s', (_, code, text, act) => {
    const error = refusal(() => {
      act()
      return undefined
    })
    expect(error.message).toMatch(text)
    expect(error.code).toBe(code)
  })
})
