import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  canonical,
  dequantize,
  deserialize,
  type Format,
  type GroupSize,
  type QuantizedWeight,
  quantize,
  type Scheme,
  serialize,
} from 'lowbit'
import { formats } from 'lowbit/words'
import { decodeFloat, encodeFloat, finiteValues, type Minifloat, minifloats } from './ref/floats'
import {
  codeBits,
  groupSizesOf,
  isAffine,
  isMx,
  mxElements,
  ownTables,
  type RefScheme,
  type RefWeight,
  readCode,
  refQuantize,
  type ScaleDtype,
  scaleDtypesOf,
  scaleValue,
  shrinkFactors,
  writeCode,
} from './ref/quantize'
import { Random } from './ref/random'
import { codebook, needs, scaled } from './ref/schemes'

/** Formats whose groups are the caller's choice. */
const free = scaled.filter((format) => !isMx(format) && format !== 'nvfp4')
const defaultGroup = (format: Format): GroupSize =>
  isMx(format)
    ? 32
    : format === 'nvfp4'
      ? 16
      : isAffine(format) || ['nf4', 'fp4', 'codebook4'].includes(format)
        ? 64
        : 'channel'

/** Floats as their bits, so that -0 is not 0 and any difference shows. */
const bits = (values: Float32Array) => new Uint32Array(values.buffer, values.byteOffset, values.length)

function scalesOf(q: QuantizedWeight): Float32Array {
  return Float32Array.from(q.scales ?? [], (stored) => scaleValue(q.scaleDtype as ScaleDtype, stored))
}

/** Codes as numbers: int8 signed, all others as stored. */
function codesOf(q: QuantizedWeight): Int32Array {
  const [n, k] = q.shape
  const width = codeBits[q.format]
  const out = new Int32Array(n * k)
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < k; j++) {
      const code = readCode(q.codes, i, j, k, width)
      out[i * k + j] = q.format === 'int8' ? (code << 24) >> 24 : code
    }
  }
  return out
}

function groupsOf(groupSize: GroupSize, n: number, k: number): { groupN: number; groupK: number } {
  if (groupSize === 'tensor') return { groupN: n, groupK: k }
  if (groupSize === 'channel') return { groupN: 1, groupK: k }
  if (groupSize === 'block') return { groupN: 128, groupK: 128 }
  return { groupN: 1, groupK: groupSize }
}

function expectEqual(q: QuantizedWeight, want: RefWeight, label: string): void {
  const differs = (what: string, at: number, got: unknown, expected: unknown) =>
    `${label}: ${what}[${at}] is ${got}, expected ${expected}`
  const check = (what: string, got: ArrayLike<number>, expected: ArrayLike<number>) => {
    expect(`${label}: ${got.length} ${what}`).toBe(`${label}: ${expected.length} ${what}`)
    for (let i = 0; i < expected.length; i++) {
      if (got[i] !== expected[i]) throw new Error(differs(what, i, got[i], expected[i]))
    }
  }
  check('scales', bits(scalesOf(q)), bits(want.scales))
  expect(`${label}: ${q.tensorScale ?? 1}`).toBe(`${label}: ${want.tensorScale}`)
  if (q.zeros !== undefined) check('zeros', bits(Float32Array.from(q.zeros)), bits(want.zeros))
  check('codes', codesOf(q), want.codes)
  check('values', bits(dequantize(q)), bits(want.values))
}

/** Every scheme that there is for a format and a shape, apart from the search. */
function* schemesOf(
  format: Format,
  n: number,
  k: number,
): Generator<Scheme & { groupSize: GroupSize; scaleDtype: ScaleDtype }> {
  const random = new Random(15)
  for (const groupSize of groupSizesOf(format)) {
    for (const scaleDtype of scaleDtypesOf(format)) {
      if (format === 'codebook4') {
        const { groupN, groupK } = groupsOf(groupSize, n, k)
        const groups = Math.ceil(n / groupN) * Math.ceil(k / groupK)
        yield { format, groupSize, scaleDtype, table: codebook }
        yield { format, groupSize, scaleDtype, table: random.floats(16 * groups), tablePer: 'group' }
        if (groupN === 1)
          yield { format, groupSize, scaleDtype, table: random.floats(16 * n), tablePer: 'row' }
        continue
      }
      if (!isAffine(format)) {
        yield { format, groupSize, scaleDtype }
        continue
      }
      yield { format, groupSize, scaleDtype, symmetric: true }
      yield { format, groupSize, scaleDtype, zeroPoint: 'integer' }
      yield { format, groupSize, scaleDtype, zeroPoint: 'float' }
    }
  }
}

const refScheme = (
  s: ReturnType<typeof schemesOf> extends Generator<infer T> ? T : never,
  n: number,
  k: number,
): RefScheme => ({
  format: s.format,
  ...groupsOf(s.groupSize, n, k),
  zeroPoint: s.zeroPoint ?? 'none',
  scaleDtype: s.scaleDtype,
  ...(s.table === undefined ? {} : { table: s.table, tablePer: s.tablePer ?? 'tensor' }),
})

/** Weights with what rounding stumbles over: zeros, groups of zeros, outliers, one sign, exact halves. */
function awkward(random: Random, n: number, k: number): Float32Array {
  const kind = Array.from({ length: n * Math.ceil(k / 32) }, () => random.int(0, 5))
  return Float32Array.from({ length: n * k }, (_, at) => {
    const group = kind[Math.floor(at / k) * Math.ceil(k / 32) + Math.floor((at % k) / 32)]
    const w = random.float() * 0.1
    if (group === 0) return 0
    if (group === 1) return Math.abs(w)
    if (group === 2) return -Math.abs(w)
    if (group === 3) return random.int(-15, 15) / 2
    if (group === 4 && random.int(0, 31) === 0) return random.float(-3, 3)
    return random.int(0, 9) === 0 ? (random.int(0, 1) === 0 ? 0 : -0) : w
  })
}

describe('golden vectors', () => {
  const file = JSON.parse(readFileSync(join(process.cwd(), 'test/golden/quantize.json'), 'utf8')) as {
    shape: [number, number]
    weights: string
    cases: {
      format: Format
      group: number
      mode: 'symmetric' | 'integer' | 'float'
      codes: string
      scales: string
      zeros: string
    }[]
  }
  const [n, k] = file.shape
  const floats = (text: string) => new Float32Array(new Uint8Array(Buffer.from(text, 'base64')).buffer)
  const weights = floats(file.weights)

  test.each(file.cases.map((c) => [`${c.format} ${c.mode} ${c.group}`, c] as const))('%s', (_, c) => {
    const groupSize = c.group === k ? 'channel' : (c.group as GroupSize)
    const zero =
      c.mode === 'symmetric' ? (isAffine(c.format) ? { symmetric: true } : {}) : { zeroPoint: c.mode }
    const q = quantize(weights, [n, k], { format: c.format, groupSize, ...zero })
    const codes = Buffer.from(c.codes, 'base64')
    expect([...codesOf(q)].map((code) => code & 255)).toEqual([...codes])
    expect(q.scales).toEqual(floats(c.scales))
    if (q.zeros !== undefined) expect(Float32Array.from(q.zeros)).toEqual(floats(c.zeros))
  })
})

describe('golden vectors of table and MX formats', () => {
  const file = JSON.parse(readFileSync(join(process.cwd(), 'test/golden/formats.json'), 'utf8')) as {
    shape: [number, number]
    weights: string
    quantiles: number[]
    cases: {
      format: Format
      group: number
      codes: string
      scales: string
      values: string
      tensorScale?: number
    }[]
  }
  const [n, k] = file.shape
  const floats = (text: string) => new Float32Array(new Uint8Array(Buffer.from(text, 'base64')).buffer)

  test.each(file.cases.map((c) => [`${c.format} ${c.group}`, c] as const))('%s', (_, c) => {
    const groupSize = c.group === k ? 'channel' : (c.group as GroupSize)
    const q = quantize(floats(file.weights), [n, k], { format: c.format, groupSize })
    expect([...codesOf(q)].map((code) => code & 255)).toEqual([...Buffer.from(c.codes, 'base64')])
    expect(scalesOf(q)).toEqual(floats(c.scales))
    expect(q.tensorScale).toBe(c.tensorScale)
    expect(bits(dequantize(q))).toEqual(bits(floats(c.values)))
  })

  test('nf4 is made of quantiles of the normal distribution', () => {
    for (const [code, quantile] of file.quantiles.entries())
      expect(ownTables.nf4?.[code]).toBeCloseTo(quantile, 6)
  })
})

describe('codes, scales, zeros and values are those of the formulas, bit for bit', () => {
  const shapes = [
    [1, 1],
    [7, 5],
    [17, 31],
    [1, 64],
    [33, 36],
    [3, 130],
    [2, 600],
    [130, 129],
  ] as const
  test.each(scaled)('%s', (format) => {
    const random = new Random(20261122)
    for (const [n, k] of shapes) {
      const weights = awkward(random, n, k)
      for (const scheme of schemesOf(format, n, k)) {
        const q = quantize(weights, [n, k], scheme)
        const label = `seed ${random.seed} [${n}, ${k}] ${JSON.stringify(scheme)}`
        expectEqual(q, refQuantize(weights, n, k, refScheme(scheme, n, k)), label)
      }
    }
  })

  test.each(['f16', 'bf16'] as const)('%s weights are read as what they are', (dtype) => {
    const random = new Random(7)
    const type = minifloats[dtype]
    for (const format of scaled) {
      const [n, k] = [9, 300]
      const words = Uint16Array.from(awkward(random, n, k), (w) => encodeFloat(type, w))
      const values = Float32Array.from(words, (code) => decodeFloat(type, code))
      const groupSize = defaultGroup(format)
      const q = quantize(words, [n, k], { format, dtype, ...needs(format) })
      const zeroPoint = isAffine(format) ? 'integer' : 'none'
      const scaleDtype = scaleDtypesOf(format)[0] as ScaleDtype
      const groups = groupsOf(groupSize, n, k)
      const want = { format, ...groups, zeroPoint, scaleDtype, ...needs(format) } as const
      expectEqual(q, refQuantize(values, n, k, want), `${dtype} ${format}`)
    }
  })

  test('rows do not depend on each other, nor on how many there are', () => {
    const random = new Random(3)
    const [n, k] = [300, 520]
    const weights = awkward(random, n, k)
    // nvfp4 has a factor of the whole matrix.
    for (const format of scaled.filter((name) => name !== 'nvfp4')) {
      const scheme = { format, groupSize: 32, ...needs(format) } as const
      const all = quantize(weights, [n, k], scheme)
      const rowBytes = all.codes.length / n
      for (const row of [0, 17, n - 1]) {
        const one = quantize(weights.subarray(row * k, (row + 1) * k), [1, k], scheme)
        expect(one.codes).toEqual(all.codes.subarray(row * rowBytes, (row + 1) * rowBytes))
      }
    }
  })
})

test('the defaults are the schemes of round to nearest', () => {
  const weights = new Random(1).floats(4 * 128)
  for (const format of scaled) {
    const q = quantize(weights, [4, 128], { format, ...needs(format) })
    const group = defaultGroup(format)
    expect(q.groupSize).toBe(group)
    expect(q.zeroPoint).toBe(isAffine(format) ? 'integer' : 'none')
    expect(q.symmetric).toBe(!isAffine(format))
    expect(q.scaleDtype).toBe(scaleDtypesOf(format)[0])
    expect(q.tablePer).toBe(format === 'codebook4' ? 'tensor' : 'none')
    expect(q.scaleShape).toEqual([4, typeof group === 'number' ? 128 / group : 1])
    expect(Object.isFrozen(q)).toBe(true)
  }
  expect(quantize(weights, [4, 128], { format: 'int4' }).bitsPerWeight).toBe(4 + 40 / 64)
  expect(quantize(weights, [4, 128], { format: 'int4' }).byteLength).toBe((512 * (4 + 40 / 64)) / 8)
  expect(quantize(weights, [4, 128], { format: 'int8' }).bitsPerWeight).toBe(8 + 32 / 128)
  expect(quantize(weights, [4, 128], { format: 'bf16' }).bitsPerWeight).toBe(16)
  expect(quantize(weights, [4, 128], { format: 'mxfp6_e3m2' }).bitsPerWeight).toBe(6 + 8 / 32)
  expect(quantize(weights, [4, 128], { format: 'nvfp4' }).byteLength).toBe((512 * (4 + 8 / 16)) / 8 + 4)
  const { byteLength } = quantize(weights, [4, 128], { format: 'codebook4', table: codebook })
  expect(byteLength).toBe((512 * (4 + 32 / 64)) / 8 + 64)
})

/** Every finite value of a type, what lies halfway between neighbours, and the float32 numbers around that. */
function roundingCases(type: Minifloat): Float32Array {
  const table = finiteValues(type)
  const out: number[] = []
  const next = (value: number, by: number): number => {
    const word = new Float32Array([value])
    const u = new Uint32Array(word.buffer)
    u[0] = (u[0] as number) + by
    return word[0] as number
  }
  for (let i = 0; i + 1 < table.length; i++) {
    const low = table[i] as number
    const half = (low + (table[i + 1] as number)) / 2
    out.push(low, half, next(half, 1))
    if (half > 0) out.push(next(half, -1))
  }
  out.push(table.at(-1) as number)
  return Float32Array.from([...out, ...out.map((x) => -x)])
}

describe('small floats', () => {
  test.each(['fp8_e4m3', 'fp8_e5m2'] as const)('%s: every code decodes as defined', (format) => {
    const type = minifloats[format === 'fp8_e4m3' ? 'e4m3' : 'e5m2']
    const codes = Uint8Array.from({ length: 256 }, (_, i) => i)
    const q = canonical({ format, shape: [1, 256], codes, scales: new Float32Array([1]) })
    expect(dequantize(q)).toEqual(Float32Array.from(codes, (code) => decodeFloat(type, code)))
  })

  test.each(['fp8_e4m3', 'fp8_e5m2'] as const)('%s: every midpoint rounds to even', (format) => {
    const type = minifloats[format === 'fp8_e4m3' ? 'e4m3' : 'e5m2']
    const values = roundingCases(type)
    const q = quantize(values, [1, values.length], { format })
    expect(q.scales).toEqual(new Float32Array([1]))
    expect(q.codes).toEqual(Uint8Array.from(values, (x) => encodeFloat(type, x)))
  })

  test.each(['f16', 'bf16'] as const)('%s: every code decodes as defined', (format) => {
    const codes = Uint16Array.from({ length: 65536 }, (_, i) => i)
    const q = canonical({ format, shape: [256, 256], codes })
    const want = Float32Array.from(codes, (code) => decodeFloat(minifloats[format], code))
    expect(dequantize(q)).toEqual(want)
    const back = dequantize(q, format)
    const finite = codes.filter((code) => !Number.isNaN(want[code] as number))
    expect(back.filter((_, i) => !Number.isNaN(want[i] as number))).toEqual(finite)
  })

  test.each(['f16', 'bf16'] as const)('%s: every midpoint rounds to even', (format) => {
    const type = minifloats[format]
    const values = roundingCases(type)
    const q = quantize(values, [1, values.length], { format })
    const words = new Uint16Array(q.codes.buffer, q.codes.byteOffset, values.length)
    expect(words).toEqual(Uint16Array.from(values, (x) => encodeFloat(type, x)))
  })

  test('f16 to bf16 and back by way of f32', () => {
    const random = new Random(5)
    const halves = Uint16Array.from({ length: 1000 }, () => encodeFloat(minifloats.f16, random.float(-9, 9)))
    const q = quantize(halves, [10, 100], { format: 'bf16', dtype: 'f16' })
    const words = new Uint16Array(q.codes.buffer, q.codes.byteOffset, 1000)
    const want = (code: number) => encodeFloat(minifloats.bf16, decodeFloat(minifloats.f16, code))
    expect(words).toEqual(halves.map(want))
    expect(dequantize(q, 'f16')).toEqual(
      words.map((code) => encodeFloat(minifloats.f16, decodeFloat(minifloats.bf16, code))),
    )
  })

  test('f32 is a copy', () => {
    const weights = Float32Array.from([1, -0, 2 ** -149, 3.4e38, -1e-30, 0.1])
    const q = quantize(weights, [2, 3], { format: 'f32' })
    expect(bits(dequantize(q))).toEqual(bits(weights))
    expect(q.codes.buffer).not.toBe(weights.buffer)
  })

  test('dequantize rounds its results to f16 and bf16', () => {
    const weights = new Random(6).floats(64 * 5)
    for (const format of scaled) {
      const q = quantize(weights, [5, 64], { format, ...needs(format) })
      const exact = dequantize(q)
      for (const dtype of ['f16', 'bf16'] as const) {
        expect(dequantize(q, dtype)).toEqual(
          Uint16Array.from(exact, (x) => encodeFloat(minifloats[dtype], x)),
        )
      }
    }
  })
})

describe('the ends of the ranges', () => {
  test('a group of zeros is exact, in every format but int1', () => {
    for (const format of scaled) {
      for (const scheme of schemesOf(format, 3, 128)) {
        const q = quantize(new Float32Array(3 * 128), [3, 128], scheme)
        const least = scheme.scaleDtype === 'f16' ? 2 ** -24 : 1e-12
        const values = dequantize(q)
        expect(scalesOf(q).every((s) => s > 0 && Number.isFinite(s))).toBe(true)
        // A table of random numbers has no zero.
        if (scheme.tablePer !== undefined) expect(values.every((x) => Math.abs(x) <= least)).toBe(true)
        else if (format === 'int1') expect(Math.abs(values[0] as number)).toBeCloseTo(least, 13)
        else expect(values.every((x) => x === 0)).toBe(true)
      }
    }
  })

  test('scales that leave f16 stay finite and above zero', () => {
    for (const format of scaled) {
      for (const factor of [1e-12, 1e-7, 1e7, 1e30]) {
        const weights = new Random(8).floats(64 * 4).map((w) => w * factor)
        for (const scheme of schemesOf(format, 4, 64)) {
          const q = quantize(weights, [4, 64], scheme)
          expect(scalesOf(q).every((s) => s > 0 && Number.isFinite(s))).toBe(true)
          expectEqual(
            q,
            refQuantize(weights, 4, 64, refScheme(scheme, 4, 64)),
            `${factor} ${JSON.stringify(scheme)}`,
          )
        }
      }
    }
  })

  test('the largest floats of both signs in one group', () => {
    const largest = 3.4028234663852886e38
    const q = quantize(Float32Array.from([largest, -largest, 0, 1]), [1, 4], { format: 'int4' })
    const values = dequantize(q)
    expect(Number.isFinite(q.scales?.[0])).toBe(true)
    for (const x of values) expect(Number.isNaN(x)).toBe(false)
    expect(values[2]).toBe(0)
  })

  test('weights without rows or columns', () => {
    for (const shape of [
      [0, 64],
      [4, 0],
      [0, 0],
    ] as const) {
      for (const format of ['bf16', ...scaled] as const) {
        const q = quantize(new Float32Array(0), shape, { format, ...needs(format) })
        expect(q.codes.length).toBe(0)
        expect(q.bitsPerWeight).toBe(0)
        expect(dequantize(q)).toEqual(new Float32Array(0))
      }
    }
  })
})

describe('MX formats and nvfp4', () => {
  const mx = formats.filter(isMx)
  const every = (format: Format) => Uint8Array.from({ length: 2 ** codeBits[format] }, (_, code) => code)
  /** One row with the codes given, each group with the scale given. */
  const rowOf = (format: Format, codes: Uint8Array, scales: Uint8Array) => {
    const packed = new Uint8Array(Math.ceil((codes.length * codeBits[format]) / 8))
    for (const [k, code] of codes.entries()) writeCode(packed, 0, k, codes.length, codeBits[format], code)
    return canonical({ format, shape: [1, codes.length], codes: packed, scales })
  }

  test.each(mx)('%s: every element decodes as the standard says, under every scale', (format) => {
    const codes = every(format)
    const groups = Math.ceil(codes.length / 32)
    const element = mxElements[format]
    for (let scale = 0; scale < 256; scale += scale < 3 || scale > 250 ? 1 : 31) {
      const got = dequantize(rowOf(format, codes, new Uint8Array(groups).fill(scale)))
      const factor = scale === 255 ? Number.NaN : 2 ** (scale - 127)
      const value = (code: number) =>
        element === undefined ? ((code << 24) >> 24) / 64 : decodeFloat(element, code)
      expect(got).toEqual(Float32Array.from(codes, (code) => factor * value(code)))
    }
  })

  test.each(mx)('%s: every midpoint rounds to even, beyond the largest comes the largest', (format) => {
    const element = mxElements[format]
    const halves = Array.from({ length: 511 }, (_, i) => (i - 255) / 128)
    const cases = element === undefined ? Float32Array.from(halves) : roundingCases(element)
    const largest = element === undefined ? 127 / 64 : (finiteValues(element).at(-1) as number)
    // The largest power of two in each group holds the scale at 1: it leaves room for what is beyond the largest.
    const top = 2 ** Math.floor(Math.log2(largest))
    const rows = Math.ceil(cases.length / 31)
    const weights = new Float32Array(rows * 32)
    for (let i = 0; i < rows * 31; i++) weights[Math.floor(i / 31) * 32 + (i % 31)] = cases[i] ?? 0
    for (let row = 0; row < rows; row++) weights[row * 32 + 31] = top * 1.999
    const q = quantize(weights, [rows, 32], { format })
    expect(new Set(q.scales)).toEqual(new Set([127]))
    const want = weights.map((w) => {
      if (element !== undefined) return decodeFloat(element, encodeFloat(element, w))
      const at = w * 64
      const even = Math.abs(at % 1) === 0.5 ? 2 * Math.round(at / 2) : Math.round(at)
      return Math.min(Math.max(even, -127), 127) / 64
    })
    expect(dequantize(q).map((x) => x + 0)).toEqual(want.map((x) => x + 0))
  })

  test.each(mx)('%s: scales at both ends of e8m0', (format) => {
    const q = quantize(Float32Array.from([2 ** -149, 0, 3.4e38, -3.4e38]), [4, 1], { format })
    const emax = { mxfp8_e4m3: 8, mxfp8_e5m2: 15, mxfp6_e3m2: 4, mxint8: 0 }[format as string] ?? 2
    expect([...(q.scales ?? [])]).toEqual([0, 0, 254 - emax, 254 - emax])
    const [small, zero, high, low] = dequantize(q)
    expect([zero, low]).toEqual([0, -(high as number)])
    expect(Math.abs(small as number)).toBeLessThan(2 ** -126)
    // 3.4e38 lies above the largest element of every format under this scale.
    const element = mxElements[format]
    const largest = element === undefined ? 127 / 64 : (finiteValues(element).at(-1) as number)
    expect(high).toBe(largest * 2 ** (127 - emax))
  })

  test('the scale 0xff is kept, and its group alone is NaN', () => {
    for (const format of mx) {
      const scales = new Uint8Array([127, 255, 127])
      const q = rowOf(format, new Uint8Array(96), scales)
      const values = dequantize(q)
      expect([...values.keys()].filter((i) => Number.isNaN(values[i]))).toEqual(
        Array.from({ length: 32 }, (_, i) => 32 + i),
      )
      expect(deserialize(serialize({ q })).q).toEqual(q)
    }
  })

  test('nvfp4: the matrix has one factor, and small groups keep the least scale', () => {
    const weights = new Float32Array(64)
    weights.fill(2688, 0, 16)
    weights.fill(1e-6, 16, 32)
    weights.fill(6 / 512, 32, 48)
    const q = quantize(weights, [1, 64], { format: 'nvfp4' })
    expect(q.tensorScale).toBe(1)
    expect([...scalesOf(q)]).toEqual([448, 2 ** -9, 2 ** -9, 2 ** -9])
    expect([...new Set(dequantize(q))]).toEqual([2688, 0, 6 / 512])
    const zeros = quantize(new Float32Array(16), [1, 16], { format: 'nvfp4' })
    expect(zeros.tensorScale).toBe(Math.fround(1e-12))
  })

  test('codes of codebook4 are those of the table that belongs to them', () => {
    const table = Float32Array.from({ length: 64 }, (_, i) => (i % 16) + 100 * Math.floor(i / 16))
    const codes = new Uint8Array(66).map((_, i) => (i * 37) & 255)
    const row = new Float32Array(2).fill(1)
    const read = (k: number) => ((codes[k >> 1] as number) >> (4 * (k & 1))) & 15
    const byRow = canonical({
      ...{ format: 'codebook4', shape: [2, 66], groupSize: 'channel', codes, scales: row },
      ...{ table: table.subarray(0, 32), tablePer: 'row' },
    })
    expect(dequantize(byRow)).toEqual(
      Float32Array.from({ length: 132 }, (_, i) => read(i) + (i >= 66 ? 100 : 0)),
    )
    const byGroup = canonical({
      ...{ format: 'codebook4', shape: [2, 66], codes, scales: new Float32Array(4).fill(1), table },
      tablePer: 'group',
    })
    expect(dequantize(byGroup)).toEqual(
      Float32Array.from({ length: 132 }, (_, i) => read(i) + (i >= 66 ? 200 : 0) + (i % 66 >= 64 ? 100 : 0)),
    )
  })
})

describe('the clipping search', () => {
  const squares = (values: ArrayLike<number>, weights: ArrayLike<number>, members: readonly number[]) =>
    members.reduce((sum, at) => sum + ((values[at] as number) - (weights[at] as number)) ** 2, 0)

  test.each(free)('%s: takes the best of the grid for each group', (format) => {
    const random = new Random(11)
    const [n, k] = [3, 160]
    const weights = Float32Array.from(
      { length: n * k },
      () => random.float() * random.float() * random.float(),
    )
    for (const scheme of schemesOf(format, n, k)) {
      if (scheme.groupSize === 'block' || scheme.scaleDtype === 'bf16') continue
      const q = quantize(weights, [n, k], { ...scheme, clip: 'search' })
      const values = dequantize(q)
      const ref = refScheme(scheme, n, k)
      const tries = shrinkFactors(format).map((shrink) => refQuantize(weights, n, k, { ...ref, shrink }))
      for (let row = 0; row < n; row += ref.groupN) {
        for (let col = 0; col < k; col += ref.groupK) {
          const members: number[] = []
          for (let i = row; i < Math.min(n, row + ref.groupN); i++)
            for (let j = col; j < Math.min(k, col + ref.groupK); j++) members.push(i * k + j)
          const best = Math.min(...tries.map((t) => squares(t.values, weights, members)))
          // Sums of the same terms in another order.
          expect(squares(values, weights, members) / best).toBeCloseTo(1, 12)
        }
      }
    }
  })

  test('true means search, and the same weights give the same codes', () => {
    const weights = new Random(12).floats(8 * 256)
    const a = quantize(weights, [8, 256], { format: 'int3', clip: true })
    const b = quantize(weights, [8, 256], { format: 'int3', clip: 'search' })
    expect(a).toEqual(b)
    expect(a.codes).not.toEqual(quantize(weights, [8, 256], { format: 'int3' }).codes)
  })
})
