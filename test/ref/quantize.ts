/**
 * Quantisation from its formulas, one value after the other: the oracle of csrc/format. Numbers are float32 (every
 * operation followed by Math.fround, which is what float32 arithmetic gives), sums of errors are float64.
 * The formulas are those of the pages in csrc/format; none of its code is used.
 */
import type { Format, GroupSize, QuantizedWeight } from 'lowbit'
import { decodeE8m0, decodeFloat, encodeFloat, finiteValues, type Minifloat, minifloats } from './floats'

// jest runs tests in a context whose globals are looked up slowly.
const { abs, ceil, floor, fround: f32, log2, max, min } = Math

/** Round to nearest, ties to even. */
export function roundEven(x: number): number {
  const below = floor(x)
  const rest = x - below
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1
  return below % 2 === 0 ? below : below + 1
}

const clamp = (x: number, lo: number, hi: number): number => min(max(x, lo), hi)

export type ScaleDtype = 'f32' | 'f16' | 'bf16' | 'e8m0' | 'e4m3'

export interface RefScheme {
  readonly format: Format
  /** Rows and columns that share a scale. */
  readonly groupN: number
  readonly groupK: number
  readonly zeroPoint: 'none' | 'integer' | 'float'
  readonly scaleDtype: ScaleDtype
  /** Sixteen numbers for the matrix, each row or each scale. */
  readonly table?: Float32Array
  readonly tablePer?: 'tensor' | 'row' | 'group'
  /** Shrinks the range, as the clipping search does; 1: the full range. */
  readonly shrink?: number
}

/** Codes one an element, scales and zeros one a group, all as numbers. */
export interface RefWeight {
  readonly codes: Int32Array
  readonly scales: Float32Array
  readonly zeros: Float32Array
  readonly values: Float32Array
  /** Of nvfp4; 1 for all others. */
  readonly tensorScale: number
}

export const codeBits: Record<Format, number> = {
  f32: 32,
  f16: 16,
  bf16: 16,
  int8: 8,
  int4: 4,
  int3: 3,
  int2: 2,
  int1: 1,
  ternary: 2,
  fp8_e4m3: 8,
  fp8_e5m2: 8,
  nf4: 4,
  fp4: 4,
  codebook4: 4,
  mxfp8_e4m3: 8,
  mxfp8_e5m2: 8,
  mxfp6_e2m3: 6,
  mxfp6_e3m2: 6,
  mxfp4: 4,
  mxint8: 8,
  nvfp4: 4,
}

/** Elements of the OCP MX formats, apart from mxint8. */
export const mxElements: { readonly [F in Format]?: Minifloat } = {
  mxfp8_e4m3: minifloats.e4m3,
  mxfp8_e5m2: minifloats.e5m2,
  mxfp6_e2m3: minifloats.e2m3,
  mxfp6_e3m2: minifloats.e3m2,
  mxfp4: minifloats.e2m1,
}
export const isMx = (format: Format) => format.startsWith('mx')
export const isAffine = (format: Format) => format === 'int4' || format === 'int3' || format === 'int2'
/** What a scheme may choose for a format with scales. */
export function groupSizesOf(format: Format): GroupSize[] {
  if (isMx(format)) return [32]
  if (format === 'nvfp4') return [16]
  const blocks = ['int8', 'fp8_e4m3', 'fp8_e5m2'].includes(format)
  return [32, 64, 128, 'channel', 'tensor', ...(blocks ? ['block' as const] : [])]
}
export function scaleDtypesOf(format: Format): ScaleDtype[] {
  return isMx(format) ? ['e8m0'] : format === 'nvfp4' ? ['e4m3'] : ['f32', 'f16', 'bf16']
}

/** The number that a stored scale is. */
export function scaleValue(dtype: ScaleDtype, stored: number): number {
  if (dtype === 'f32') return stored
  return dtype === 'e8m0' ? decodeE8m0(stored) : decodeFloat(minifloats[dtype], stored)
}

/** QLoRA, appendix E. */
const nf4 = [
  ...[-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635],
  ...[-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725],
  ...[0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941],
  ...[0.7229568362236023, 1.0],
]
/** bitsandbytes: sign, two bits of exponent, one of mantissa, with a subnormal of 1/16; all of it over 12. */
const fp4 = [0, 0.0625, 8, 12, 4, 6, 2, 3].map((v) => v / 12)
const e2m1 = Array.from({ length: 16 }, (_, code) => decodeFloat(minifloats.e2m1, code))
/** The table that a format has of its own. */
export const ownTables: { readonly [F in Format]?: Float32Array } = {
  nf4: Float32Array.from(nf4),
  fp4: Float32Array.from([...fp4, ...fp4.map((v) => -v)]),
  mxfp4: Float32Array.from(e2m1),
  nvfp4: Float32Array.from(e2m1),
}

/** The table for row n and column group g of a weight of table codes. */
export function tableOf(q: QuantizedWeight, n: number, g: number): Float32Array {
  if (q.table === undefined) return ownTables[q.format] as Float32Array
  const [rows, cols] = q.scaleShape
  const at = q.tablePer === 'row' ? n : q.tablePer === 'group' ? (rows === q.shape[0] ? n : 0) * cols + g : 0
  return q.table.subarray(at * 16, at * 16 + 16)
}

function roundScale(scale: number, dtype: 'f32' | 'f16' | 'bf16'): number {
  const atLeast = max(scale, f32(1e-12))
  if (dtype === 'f32') return min(atLeast, 3.4028234663852886e38)
  const type: Minifloat = minifloats[dtype]
  const largest = dtype === 'f16' ? 65504 : 2 ** 127 * (2 - 2 ** -7)
  const least = dtype === 'f16' ? 2 ** -24 : 0
  return decodeFloat(type, encodeFloat(type, clamp(atLeast, least, largest)))
}

interface Group {
  scale: number
  zero: number
  encode(w: number): number
  decode(code: number): number
}

function floatGroup(type: Minifloat, scale: number): Group {
  return {
    scale,
    zero: 0,
    encode: (w) => encodeFloat(type, f32(w / scale)),
    decode: (code) => f32(scale * decodeFloat(type, code)),
  }
}

/** The e with 2^e <= x < 2^(e + 1). */
function exponentOf(x: number): number {
  let e = floor(log2(x))
  while (2 ** e > x) e--
  while (2 ** (e + 1) <= x) e++
  return e
}

/** OCP MX 1.0, section 6.3. Everything here is exact in float64. */
function mxGroup(format: Format, maxAbs: number): Group {
  const type = mxElements[format]
  const emax = type === undefined ? 0 : exponentOf(finiteValues(type).at(-1) as number)
  const scale = maxAbs === 0 ? 2 ** -127 : 2 ** max(exponentOf(maxAbs) - emax, -127)
  if (type === undefined) {
    return {
      scale,
      zero: 0,
      encode: (w) => clamp(roundEven((w / scale) * 64), -127, 127) & 255,
      decode: (code) => f32(scale * (((code << 24) >> 24) / 64)),
    }
  }
  return {
    scale,
    zero: 0,
    encode: (w) => encodeFloat(type, w / scale),
    decode: (code) => f32(scale * decodeFloat(type, code)),
  }
}

/** The nearest number of a table: halfway the lower one, of equal ones the first. */
function tableGroup(table: Float32Array, scale: number): Group {
  const order = [...table.keys()].sort((a, b) => (table[a] as number) - (table[b] as number) || a - b)
  return {
    scale,
    zero: 0,
    encode: (w) => {
      // Beyond the ends distances would round to the same number.
      const t = clamp(
        f32(w / scale),
        table[order[0] as number] as number,
        table[order[15] as number] as number,
      )
      const far = (code: number) => abs(t - (table[code] as number))
      return order.reduce((best, code) => (far(code) < far(best) ? code : best))
    },
    decode: (code) => f32(scale * (table[code] as number)),
  }
}

/** How one group of values is coded. `table` is that of the group, `tensorScale` that of the matrix. */
export function groupOf(
  values: readonly number[],
  s: RefScheme,
  table?: Float32Array,
  tensorScale = 1,
): Group {
  const shrink = f32(s.shrink ?? 1)
  const maxAbs = values.reduce((m, w) => max(m, abs(w)), 0)
  const scaleDtype = s.scaleDtype as 'f32' | 'f16' | 'bf16'
  const scaleBy = (largest: number) => roundScale(f32(f32(maxAbs * shrink) / largest), scaleDtype)
  if (isMx(s.format)) return mxGroup(s.format, maxAbs)
  switch (s.format) {
    case 'nf4':
    case 'fp4':
    case 'codebook4': {
      const numbers = table ?? (ownTables[s.format] as Float32Array)
      const largest = numbers.reduce((m, v) => max(m, abs(v)), 0)
      return tableGroup(numbers, largest === 0 ? f32(1e-12) : scaleBy(largest))
    }
    case 'nvfp4': {
      const exact = f32(f32(f32(maxAbs * shrink) / 6) / tensorScale)
      const scale = max(decodeFloat(minifloats.e4m3, encodeFloat(minifloats.e4m3, exact)), 2 ** -9)
      const unit = f32(scale * tensorScale)
      return {
        scale,
        zero: 0,
        encode: (w) => encodeFloat(minifloats.e2m1, f32(w / unit)),
        decode: (code) => f32(tensorScale * (scale * decodeFloat(minifloats.e2m1, code))),
      }
    }
    case 'int8': {
      const scale = scaleBy(127)
      return {
        scale,
        zero: 0,
        encode: (w) => clamp(roundEven(f32(w / scale)), -127, 127),
        decode: (code) => f32(scale * code),
      }
    }
    case 'fp8_e4m3':
      return floatGroup(minifloats.e4m3, scaleBy(448))
    case 'fp8_e5m2':
      return floatGroup(minifloats.e5m2, scaleBy(57344))
    case 'ternary':
    case 'int1': {
      const mean = values.reduce((sum, w) => sum + abs(w), 0) / values.length
      const scale = roundScale(f32(f32(mean) * shrink), scaleDtype)
      if (s.format === 'int1') {
        return {
          scale,
          zero: 0,
          encode: (w) => (w < 0 ? 0 : 1),
          decode: (code) => f32(scale * (2 * code - 1)),
        }
      }
      return {
        scale,
        zero: 0,
        encode: (w) => clamp(roundEven(f32(w / scale)), -1, 1) + 1,
        decode: (code) => f32(scale * (code - 1)),
      }
    }
    case 'int4':
    case 'int3':
    case 'int2': {
      const mid = 2 ** (codeBits[s.format] - 1)
      const top = 2 * mid - 1
      if (s.zeroPoint === 'none') {
        const scale = scaleBy(mid - 1)
        return {
          scale,
          zero: mid,
          encode: (w) => clamp(roundEven(f32(w / scale)), 1 - mid, mid - 1) + mid,
          decode: (code) => f32(scale * (code - mid)),
        }
      }
      const lo = f32(min(0, ...values) * shrink)
      const hi = f32(max(0, ...values) * shrink)
      const scale = roundScale(f32(f32(hi - lo) / top), scaleDtype)
      const exact = f32((0 - lo) / scale)
      if (s.zeroPoint === 'float') {
        return {
          scale,
          zero: exact,
          encode: (w) => clamp(roundEven(f32(f32(w - lo) / scale)), 0, top),
          decode: (code) => f32(scale * f32(code - exact)),
        }
      }
      const zero = min(roundEven(exact), top)
      return {
        scale,
        zero,
        encode: (w) => clamp(roundEven(f32(w / scale)) + zero, 0, top),
        decode: (code) => f32(scale * (code - zero)),
      }
    }
    default:
      throw new Error(`${s.format} has no groups`)
  }
}

/** Quantises w [n, k]; groups at the ragged ends are smaller. */
export function refQuantize(w: ArrayLike<number>, n: number, k: number, s: RefScheme): RefWeight {
  const rows = ceil(n / s.groupN)
  const cols = ceil(k / s.groupK)
  const codes = new Int32Array(n * k)
  const values = new Float32Array(n * k)
  const scales = new Float32Array(rows * cols)
  const zeros = new Float32Array(rows * cols)
  let tensorScale = 1
  if (s.format === 'nvfp4') {
    let largest = 0
    for (let at = 0; at < n * k; at++) largest = max(largest, abs(w[at] as number))
    tensorScale = max(f32(largest / 2688), f32(1e-12))
  }
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) {
      const members: number[] = []
      for (let r = i * s.groupN; r < min(n, (i + 1) * s.groupN); r++) {
        for (let c = j * s.groupK; c < min(k, (j + 1) * s.groupK); c++) members.push(r * k + c)
      }
      const group = groupOf(
        members.map((at) => w[at] as number),
        s,
        s.table?.subarray(...spanOf(s, i * s.groupN, i * cols + j)),
        tensorScale,
      )
      scales[i * cols + j] = group.scale
      zeros[i * cols + j] = group.zero
      for (const at of members) {
        codes[at] = group.encode(w[at] as number)
        values[at] = group.decode(codes[at] as number)
      }
    }
  }
  return { codes, scales, zeros, values, tensorScale }
}

/** What planes of signs add up to, in order. */
const planeSum = (scales: readonly number[], code: number): number =>
  scales.reduce((sum, scale, p) => sum + ((code >> p) & 1 ? scale : -scale), 0)

/** The scales of least squares where `sum[c]` and `count[c]` are those of the values of code c; undefined if they are open. */
function leastSquares(planes: number, sum: Float64Array, count: Float64Array): number[] | undefined {
  const sign = (code: number, p: number) => ((code >> p) & 1 ? 1 : -1)
  const over = (of: (code: number) => number) => sum.reduce((total, _, code) => total + of(code), 0)
  const rows = Array.from({ length: planes }, (_, p) => [
    ...Array.from({ length: planes }, (_, q) => over((c) => sign(c, p) * sign(c, q) * (count[c] as number))),
    over((c) => sign(c, p) * (sum[c] as number)),
  ])
  const total = over((c) => count[c] as number)
  const at = (r: number, c: number) => rows[r]?.[c] as number
  for (let p = 0; p < planes; p++) {
    if (!(at(p, p) > 1e-6 * total)) return undefined
    for (let q = p + 1; q < planes; q++) {
      const factor = at(q, p) / at(p, p)
      rows[q] = (rows[q] as number[]).map((value, i) => (i < p ? value : value - factor * at(p, i)))
    }
  }
  const out: number[] = []
  for (let p = planes - 1; p >= 0; p--) {
    let left = at(p, planes)
    for (let q = p + 1; q < planes; q++) left -= at(p, q) * (out[q] as number)
    out[p] = left / at(p, p)
  }
  return out
}

/** The planes of one group whose values come in parts, over which sums are taken one by one. */
function planesOf(
  parts: readonly (readonly number[])[],
  planes: number,
  scaleDtype: 'f32' | 'f16' | 'bf16',
  search: boolean,
): { scales: number[]; encode(w: number): number } {
  const values = parts.flat()
  let scales: number[] = []
  const greedy = (w: number): { code: number; left: number } => {
    let [code, left] = [0, w]
    for (const [p, scale] of scales.entries()) {
      const plus = !(left < 0)
      if (plus) code |= 1 << p
      left = f32(left - (plus ? scale : -scale))
    }
    return { code, left }
  }
  for (let p = 0; p < planes; p++) {
    const mean = values.reduce((sum, w) => sum + abs(greedy(w).left), 0) / values.length
    scales = [...scales, roundScale(f32(mean), scaleDtype)]
  }
  if (!search) return { scales, encode: (w) => greedy(w).code }
  const nearest = (of: readonly number[]) => {
    const levels = Array.from({ length: 2 ** planes }, (_, code) => ({ code, level: planeSum(of, code) }))
    levels.sort((a, b) => a.level - b.level || a.code - b.code)
    const middles = levels.slice(1).map(({ level }, i) => ((levels[i]?.level as number) + level) / 2)
    return (w: number) => {
      let [first, last] = [0, middles.length]
      while (first < last) {
        const middle = (first + last) >> 1
        if ((middles[middle] as number) < w) first = middle + 1
        else last = middle
      }
      return levels[first] as (typeof levels)[number]
    }
  }
  const pass = (of: readonly number[]) => {
    const take = nearest(of)
    let error = 0
    const sum = new Float64Array(2 ** planes)
    const count = new Float64Array(2 ** planes)
    for (const part of parts) {
      let own = 0
      const sums = new Float64Array(2 ** planes)
      for (const w of part) {
        const { code, level } = take(w)
        own += (w - level) ** 2
        sums[code] = (sums[code] as number) + w
        count[code] = (count[code] as number) + 1
      }
      error += own
      for (const [code, value] of sums.entries()) sum[code] = (sum[code] as number) + value
    }
    return { error, sum, count }
  }
  let best = pass(scales)
  for (let round = 0; round < 10; round++) {
    const exact = leastSquares(planes, best.sum, best.count)
    if (exact === undefined) break
    const next = exact.map((scale) => roundScale(f32(abs(scale)), scaleDtype))
    const found = pass(next)
    if (!(found.error < best.error)) break
    scales = next
    best = found
  }
  const take = nearest(scales)
  return { scales, encode: (w) => take(w).code }
}

/** Quantises w [n, k] to planes of signs: codes [n, planes, k], scales [rows, planes, groups of a plane], values [n, k]. */
export function refPlanes(
  w: ArrayLike<number>,
  n: number,
  k: number,
  s: {
    readonly planes: number
    readonly groupN: number
    readonly groupK: number
    readonly scaleDtype: 'f32' | 'f16' | 'bf16'
    readonly search: boolean
  },
): { codes: Int32Array; scales: Float32Array; values: Float32Array } {
  const { planes, groupN, groupK } = s
  const [rows, cols] = [ceil(n / groupN), k / groupK]
  const codes = new Int32Array(n * planes * k)
  const scales = new Float32Array(rows * planes * cols)
  const values = new Float32Array(n * k)
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) {
      const inRow = (r: number) => Array.from({ length: groupK }, (_, c) => r * k + j * groupK + c)
      const rowsOf = (from: number, to: number) => Array.from({ length: to - from }, (_, r) => from + r)
      const parts: number[][] = []
      for (let r = i * groupN; r < min(n, (i + 1) * groupN); r += 64) {
        const end = min(n, (i + 1) * groupN, r + 64)
        parts.push(rowsOf(r, end).flatMap((row) => inRow(row)))
      }
      const group = planesOf(
        parts.map((part) => part.map((at) => w[at] as number)),
        planes,
        s.scaleDtype,
        s.search,
      )
      for (const [p, scale] of group.scales.entries()) scales[(i * planes + p) * cols + j] = scale
      for (const at of parts.flat()) {
        const code = group.encode(w[at] as number)
        const row = floor(at / k)
        let value = 0
        for (const [p, scale] of group.scales.entries()) {
          const bit = (code >> p) & 1
          codes[(row * planes + p) * k + (at % k)] = bit
          value = f32(value + (bit ? scale : -scale))
        }
        values[at] = value
      }
    }
  }
  return { codes, scales, values }
}

/** Where the table of a group begins and ends: its first row, and its position among the scales. */
function spanOf(s: RefScheme, row: number, group: number): [number, number] {
  const at = s.tablePer === 'row' ? row : s.tablePer === 'group' ? group : 0
  return [at * 16, at * 16 + 16]
}

/** Shrink factors of the clipping search, the full range first. */
export function shrinkFactors(format: Format): number[] {
  if (format === 'int1') return [1]
  if (format === 'ternary') {
    const up = Array.from({ length: 17 }, (_, i) => f32((20 + i) / 20))
    const down = Array.from({ length: 8 }, (_, i) => f32((19 - i) / 20))
    return [...up, ...down]
  }
  return Array.from({ length: 25 }, (_, i) => f32((40 - i) / 40))
}

/** Code k of row n in canonical bytes, 8 bits or fewer: bit k * bits of the row, least significant bit first. */
export function readCode(bytes: Uint8Array, n: number, k: number, cols: number, bits: number): number {
  const rowBytes = ceil((cols * bits) / 8)
  const bit = k * bits
  const at = n * rowBytes + (bit >> 3)
  const two = (bytes[at] as number) | ((bytes[at + 1] ?? 0) << 8)
  return (two >> (bit & 7)) & (2 ** bits - 1)
}

/** Writes such a code into bytes that are zero. */
export function writeCode(
  bytes: Uint8Array,
  n: number,
  k: number,
  cols: number,
  bits: number,
  code: number,
): void {
  const bit = k * bits
  const at = n * ceil((cols * bits) / 8) + (bit >> 3)
  const two = code << (bit & 7)
  bytes[at] = (bytes[at] as number) | (two & 255)
  if (two > 255) bytes[at + 1] = (bytes[at + 1] as number) | (two >> 8)
}

/** Columns that whole vectors of panel16 hold, by the bits of a code. */
const unitOfBits: Readonly<Record<number, number>> = { 32: 2, 16: 2, 8: 8, 4: 8, 3: 32, 2: 16, 1: 32 }
/** The same by format; undefined where panel16 does not hold it. */
export const panelUnit = (format: Format): number | undefined => unitOfBits[codeBits[format]]

/**
 * Where panel16 has a code: byte and lowest bit, from the picture in csrc/format/layout.h. `high` is the place of the
 * third bit of int3.
 */
export function panelPlace(
  format: Format,
  groupK: number,
  blockBytes: number,
  groups: number,
  n: number,
  k: number,
): { byte: number; bit: number; high?: { byte: number; bit: number } } {
  const block = (floor(n / 16) * groups + floor(k / groupK)) * blockBytes
  const lane = (n % 16) * 4
  const i = k % groupK
  switch (codeBits[format]) {
    case 32:
      return { byte: block + 64 * i + lane, bit: 0 }
    case 16:
      return { byte: block + 64 * floor(i / 2) + lane + 2 * (i % 2), bit: 0 }
    case 8:
      return { byte: block + 64 * floor(i / 4) + lane + (i % 4), bit: 0 }
    case 4:
      return { byte: block + 64 * floor(i / 8) + lane + (i % 4), bit: i % 8 < 4 ? 0 : 4 }
    case 2:
      return { byte: block + 64 * floor(i / 16) + lane + (i % 4), bit: 2 * floor((i % 16) / 4) }
    case 1:
      return { byte: block + 64 * floor(i / 32) + lane + (i % 4), bit: floor((i % 32) / 4) }
    case 3: {
      const [three, h, f, b] = [floor(i / 32) * 3, floor((i % 32) / 16), floor((i % 16) / 4), i % 4]
      return {
        byte: block + 64 * (three + h) + lane + b,
        bit: 2 * f,
        high: { byte: block + 64 * (three + 2) + lane + b, bit: 2 * f + h },
      }
    }
    default:
      throw new Error(`panel16 has no ${format}`)
  }
}
