/**
 * Quantisation from its formulas, one value after the other: the oracle of csrc/format. Numbers are float32 (every
 * operation followed by Math.fround, which is what float32 arithmetic gives), sums of errors are float64.
 * The formulas are those of the pages in csrc/format; none of its code is used.
 */
import type { Format } from 'lowbit'
import { decodeFloat, encodeFloat, type Minifloat, minifloats } from './floats'

// jest runs tests in a context whose globals are looked up slowly.
const { abs, ceil, floor, fround: f32, max, min } = Math

/** Round to nearest, ties to even. */
export function roundEven(x: number): number {
  const below = floor(x)
  const rest = x - below
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1
  return below % 2 === 0 ? below : below + 1
}

const clamp = (x: number, lo: number, hi: number): number => min(max(x, lo), hi)

export type ScaleDtype = 'f32' | 'f16' | 'bf16'

export interface RefScheme {
  readonly format: Format
  /** Rows and columns that share a scale. */
  readonly groupN: number
  readonly groupK: number
  readonly zeroPoint: 'none' | 'integer' | 'float'
  readonly scaleDtype: ScaleDtype
  /** Shrinks the range, as the clipping search does; 1: the full range. */
  readonly shrink?: number
}

/** Codes one an element, scales and zeros one a group, all as numbers. */
export interface RefWeight {
  readonly codes: Int32Array
  readonly scales: Float32Array
  readonly zeros: Float32Array
  readonly values: Float32Array
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
}

function roundScale(scale: number, dtype: ScaleDtype): number {
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

/** How one group of values is coded. */
export function groupOf(values: readonly number[], s: RefScheme): Group {
  const shrink = f32(s.shrink ?? 1)
  const maxAbs = values.reduce((m, w) => max(m, abs(w)), 0)
  const scaleBy = (largest: number) => roundScale(f32(f32(maxAbs * shrink) / largest), s.scaleDtype)
  switch (s.format) {
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
      const scale = roundScale(f32(f32(mean) * shrink), s.scaleDtype)
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
      const scale = roundScale(f32(f32(hi - lo) / top), s.scaleDtype)
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
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) {
      const members: number[] = []
      for (let r = i * s.groupN; r < min(n, (i + 1) * s.groupN); r++) {
        for (let c = j * s.groupK; c < min(k, (j + 1) * s.groupK); c++) members.push(r * k + c)
      }
      const group = groupOf(
        members.map((at) => w[at] as number),
        s,
      )
      scales[i * cols + j] = group.scale
      zeros[i * cols + j] = group.zero
      for (const at of members) {
        codes[at] = group.encode(w[at] as number)
        values[at] = group.decode(codes[at] as number)
      }
    }
  }
  return { codes, scales, zeros, values }
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

/** Columns that whole vectors of panel16 hold. */
export const panelUnit: Partial<Record<Format, number>> = {
  f32: 2,
  f16: 2,
  bf16: 2,
  int8: 8,
  int4: 8,
  int3: 32,
  int2: 16,
  int1: 32,
  ternary: 16,
}

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
  switch (format) {
    case 'f32':
      return { byte: block + 64 * i + lane, bit: 0 }
    case 'f16':
    case 'bf16':
      return { byte: block + 64 * floor(i / 2) + lane + 2 * (i % 2), bit: 0 }
    case 'int8':
      return { byte: block + 64 * floor(i / 4) + lane + (i % 4), bit: 0 }
    case 'int4':
      return { byte: block + 64 * floor(i / 8) + lane + (i % 4), bit: i % 8 < 4 ? 0 : 4 }
    case 'int2':
    case 'ternary':
      return { byte: block + 64 * floor(i / 16) + lane + (i % 4), bit: 2 * floor((i % 16) / 4) }
    case 'int1':
      return { byte: block + 64 * floor(i / 32) + lane + (i % 4), bit: floor((i % 32) / 4) }
    case 'int3': {
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
