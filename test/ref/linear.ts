/**
 * Linear layers from the formula in csrc/linear/linear.h: in float64, and by a plain loop in float32. The first is what a
 * kernel is held against, the second says how much rounding is to be expected. None of csrc's code is used.
 */
import type { Activation, Compute, Format, QuantizedWeight } from 'lowbit'
import { decodeFloat, encodeFloat, minifloats } from './floats'
import { codeBits, mxElements, readCode, roundEven, scaleValue, tableOf } from './quantize'

// jest runs tests in a context whose globals are looked up slowly.
const { abs, ceil, exp, floor, fround, log2, max, min, PI: pi, SQRT1_2, sqrt, tanh, trunc } = Math
const { isFinite: finite, isNaN: isNan } = Number
const { is: same } = Object
const [inf, nan] = [Number.POSITIVE_INFINITY, Number.NaN]

export type FloatName = 'f32' | 'f16' | 'bf16'
export type CodeName = 'i8' | 'e4m3' | 'e5m2'

const sized = (count: number) => new Float32Array(count)

// ---- dtypes --------------------------------------------------------------------------------------------------------

/** The bits of floats in a dtype, as `device.tensor` takes them. */
export function encodeFloats(dtype: FloatName, values: Float32Array): Float32Array | Uint16Array {
  if (dtype === 'f32') return values
  const type = minifloats[dtype]
  return Uint16Array.from(values, (value) => encodeFloat(type, value))
}

/** The nearest value of a dtype. */
export function roundTo(dtype: FloatName, value: number): number {
  if (dtype === 'f32') return fround(value)
  return decodeFloat(minifloats[dtype], encodeFloat(minifloats[dtype], value))
}

export function roundAll(dtype: FloatName, values: Float32Array): Float32Array {
  return dtype === 'f32' ? values : values.map((value) => roundTo(dtype, value))
}

/** The value of a code of quantised rows, given as its byte. */
export function codeValue(dtype: CodeName, byte: number): number {
  return dtype === 'i8' ? (byte << 24) >> 24 : decodeFloat(minifloats[dtype], byte & 255)
}

const digits = { f32: 23, f16: 10, bf16: 7 } as const
const leastExponent = { f32: -126, f16: -14, bf16: -126 } as const

/** The distance of neighbours of a dtype around a value. */
export function ulp(dtype: FloatName, value: number): number {
  const exponent = value === 0 ? leastExponent[dtype] : floor(log2(abs(value)))
  return 2 ** (max(exponent, leastExponent[dtype]) - digits[dtype])
}

// ---- quantised rows ------------------------------------------------------------------------------------------------

export const codeLimit = { i8: 127, e4m3: 448, e5m2: 57344 } as const
/** Columns that share a scale where scales are per block. */
export const scaleBlock = 128

/** Codes [m, k] as values (NaN rows: 0) and bytes, scales [m, blocks]; blocks is 1 where a row has one scale. */
export interface RefRows {
  readonly values: Float32Array
  readonly bytes: Uint8Array
  readonly scales: Float32Array
  readonly blocks: number
}

/** scale = max(max|x| / limit, 1e-12), code = x / scale to nearest even, in float32. */
export function refQuantizeRows(
  x: Float32Array,
  m: number,
  k: number,
  dtype: CodeName,
  per: 'row' | 'block',
): RefRows {
  const blocks = per === 'row' ? 1 : ceil(k / scaleBlock)
  const width = per === 'row' ? k : scaleBlock
  const values = sized(m * k)
  const bytes = new Uint8Array(m * k)
  const scales = sized(m * blocks)
  for (let row = 0; row < m; row++) {
    for (let block = 0; block < blocks; block++) {
      const begin = row * k + block * width
      const end = min(begin + width, (row + 1) * k)
      let largest = 0
      let usable = true
      for (let i = begin; i < end; i++) {
        const magnitude = abs(x[i] as number)
        usable &&= magnitude < inf
        largest = max(largest, magnitude)
      }
      const scale = usable ? max(fround(largest / codeLimit[dtype]), fround(1e-12)) : nan
      scales[row * blocks + block] = scale
      if (!usable) continue
      for (let i = begin; i < end; i++) {
        const exact = fround((x[i] as number) / scale)
        bytes[i] = dtype === 'i8' ? min(roundEven(exact), 127) : encodeFloat(minifloats[dtype], exact)
        values[i] = codeValue(dtype, bytes[i] as number)
      }
    }
  }
  return { values, bytes, scales, blocks }
}

// ---- weights -------------------------------------------------------------------------------------------------------

/**
 * A canonical weight as plain numbers: value = scale * (code - zero), summed over planes; codes of a table are its
 * numbers.
 */
export interface RefWeight {
  readonly n: number
  readonly k: number
  readonly planes: number
  /** Columns that share a scale. */
  readonly groupK: number
  /** [n, planes, k] */
  readonly codes: Float32Array
  /** [n, planes, groups]; one group for f32, f16 and bf16. */
  readonly scales: Float64Array
  readonly zeros: Float32Array
}

const middle: Partial<Record<Format, number>> = { int4: 8, int3: 4, int2: 2, int1: 1, ternary: 1 }

/** Reads the arrays of a canonical weight. */
export function refWeight(q: QuantizedWeight): RefWeight {
  const [n, k] = q.shape
  const { planes } = q
  const width = planes * k
  const bits = codeBits[q.format]
  const scaled = q.scales !== undefined
  const codes = sized(n * width)
  const view = new DataView(q.codes.buffer, q.codes.byteOffset, q.codes.byteLength)
  const size = q.groupSize
  const groupK =
    size === undefined || size === 'channel' || size === 'tensor' ? max(k, 1) : size === 'block' ? 128 : size
  const element = mxElements[q.format]
  for (let row = 0; row < n; row++) {
    for (let col = 0; col < width; col++) {
      const at = row * width + col
      if (q.format === 'f32') codes[at] = view.getFloat32(at * 4, true)
      else if (q.format === 'f16' || q.format === 'bf16')
        codes[at] = decodeFloat(minifloats[q.format], view.getUint16(at * 2, true))
      else {
        const code = readCode(q.codes, row, col, width, bits)
        if (q.format === 'int8') codes[at] = codeValue('i8', code)
        else if (q.format === 'int1') codes[at] = 2 * code
        else if (q.format === 'fp8_e4m3') codes[at] = decodeFloat(minifloats.e4m3, code)
        else if (q.format === 'fp8_e5m2') codes[at] = decodeFloat(minifloats.e5m2, code)
        else if (q.format === 'mxint8') codes[at] = codeValue('i8', code) / 64
        else if (element !== undefined) codes[at] = decodeFloat(element, code)
        else if (['nf4', 'fp4', 'codebook4', 'nvfp4'].includes(q.format))
          codes[at] = tableOf(q, row, floor(col / groupK))[code] as number
        else codes[at] = code
      }
    }
  }
  const groupN = size === 'tensor' ? n : size === 'block' ? 128 : 1
  const groups = planes * ceil(k / groupK)
  const scales = new Float64Array(n * groups).fill(1)
  const zeros = sized(n * groups).fill(middle[q.format] ?? 0)
  if (scaled) {
    for (let row = 0; row < n; row++) {
      for (let g = 0; g < groups; g++) {
        const from = floor(row / groupN) * groups + g
        const stored = q.scales?.[from] as number
        scales[row * groups + g] = scaleValue(q.scaleDtype ?? 'f32', stored) * (q.tensorScale ?? 1)
        if (q.zeros !== undefined) zeros[row * groups + g] = q.zeros[from] as number
      }
    }
  }
  return { n, k, planes, groupK, codes, scales, zeros }
}

// ---- activations ---------------------------------------------------------------------------------------------------

/** 1 - erf(x) for x >= 0: a series below 3, a continued fraction above. Relative error below 1e-11. */
function erfc(x: number): number {
  if (x < 3) {
    // erf x = 2 / sqrt(pi) e^(-x^2) (x + 2 x^3 / 3 + 4 x^5 / 15 + ...)
    let term = x
    let sum = x
    for (let i = 1; term > sum * 1e-18; i++) {
      term *= (2 * x * x) / (2 * i + 1)
      sum += term
    }
    return 1 - (2 / sqrt(pi)) * exp(-x * x) * sum
  }
  let tail = 0
  for (let i = 60; i > 0; i--) tail = i / 2 / (x + tail)
  return exp(-x * x) / sqrt(pi) / (x + tail)
}

/** The integral of the normal distribution up to x. */
export function normalCdf(x: number): number {
  if (isNan(x)) return nan
  const half = 0.5 * erfc(abs(x) / sqrt(2))
  return x < 0 ? half : 1 - half
}

const root2OverPi = sqrt(2 / pi)
const relu = (v: number) => max(v, 0)
const silu = (v: number) => v / (1 + exp(-v))
const gelu = (v: number) => v * normalCdf(v)

const activations64: Record<Activation, (v: number) => number> = {
  none: (v) => v,
  relu,
  relu2: (v) => relu(v) ** 2,
  gelu,
  gelu_tanh: (v) => v / (1 + exp(-2 * root2OverPi * (v + 0.044715 * v * v * v))),
  silu,
  swiglu: silu,
  geglu: gelu,
}

// As they are written in float32, every step rounded.
const f = fround
const silu32 = (v: number) => f(v / f(1 + f(exp(-v))))
const erf32 = (v: number) => f(v < 0 ? erfc(-v) - 1 : 1 - erfc(v))
const gelu32 = (v: number) => f(f(f(0.5) * v) * f(1 + erf32(f(v * f(SQRT1_2)))))
const activations32: Record<Activation, (v: number) => number> = {
  none: (v) => v,
  relu,
  relu2: (v) => f(relu(v) ** 2),
  gelu: gelu32,
  gelu_tanh: (v) => {
    const cube = f(f(f(0.044715) * v) * f(v * v))
    return f(f(f(0.5) * v) * f(1 + f(tanh(f(f(root2OverPi) * f(v + cube))))))
  },
  silu: silu32,
  swiglu: silu32,
  geglu: gelu32,
}

export const isGated = (activation: Activation) => activation === 'swiglu' || activation === 'geglu'

// ---- the call ------------------------------------------------------------------------------------------------------

/** One call, as numbers. It may have more rows than are given to a kernel: see {@link judge}. */
export interface RefCall {
  readonly m: number
  readonly w: RefWeight
  /** [m, k]: values in x's dtype, or codes. */
  readonly x: Float32Array
  /** Where x holds codes: their dtype, and scales [m] or [m, blocks]. */
  readonly codes?: { readonly dtype: CodeName; readonly scales: Float32Array; readonly per: 'row' | 'block' }
  readonly compute: Compute
  /** Whether products of codes are added exactly within a group, as integer rows do; else in float32. */
  readonly exact: boolean
  /** Whether runs of products are added as the tensor cores for fp8 do it (fp8_sums in csrc/linear/linear.h). */
  readonly fp8Sums?: boolean
  readonly bias?: Float32Array | undefined
  readonly activation: Activation
  /** The shape of the result. */
  readonly residual?: Float32Array | undefined
  readonly out: FloatName
}

export const columnsOf = (call: RefCall) => (isGated(call.activation) ? call.w.n / 2 : call.w.n)

/** What is multiplied: values or codes [m, k], and their factors [m] or, per block of columns, [m, blocks]. */
function staged(call: RefCall): { x: Float32Array; scales: Float32Array; byBlock: boolean } {
  const { m, compute, codes } = call
  if (codes !== undefined) {
    return { x: call.x, scales: codes.scales, byBlock: codes.per === 'block' }
  }
  if (compute === 'float') return { x: call.x, scales: sized(m).fill(1), byBlock: false }
  const rows = refQuantizeRows(call.x, m, call.w.k, compute === 'int8' ? 'i8' : 'e4m3', 'row')
  return { x: rows.values, scales: rows.scales, byBlock: false }
}

/** The call in float64, nothing rounded but what the contract says is: x, where compute quantises it. */
export function linear64(call: RefCall): Float64Array {
  const { m, w, bias, residual } = call
  const { n, k, planes, groupK } = w
  const { x, scales, byBlock } = staged(call)
  const blocks = byBlock ? ceil(k / scaleBlock) : 1
  const groups = ceil(k / groupK)
  const values = new Float64Array(n * planes * k)
  for (let row = 0, at = 0; row < n * planes; row++) {
    for (let col = 0; col < k; col++, at++) {
      const g = row * groups + floor(col / groupK)
      values[at] = (w.scales[g] as number) * ((w.codes[at] as number) - (w.zeros[g] as number))
    }
  }
  const act = activations64[call.activation]
  const gated = isGated(call.activation)
  const columns = columnsOf(call)
  const out = new Float64Array(m * columns)
  const xRow = new Float64Array(k)
  const sums = new Float64Array(n)
  for (let row = 0; row < m; row++) {
    for (let col = 0; col < k; col++) {
      const block = byBlock ? floor(col / scaleBlock) : 0
      xRow[col] = (x[row * k + col] as number) * (scales[row * blocks + block] as number)
    }
    for (let j = 0; j < n; j++) {
      let sum = 0
      for (let plane = 0, at = j * planes * k; plane < planes; plane++, at += k) {
        for (let i = 0; i < k; i++) sum += (xRow[i] as number) * (values[at + i] as number)
      }
      sums[j] = sum + (bias?.[j] ?? 0)
    }
    for (let j = 0; j < columns; j++) {
      const value = gated ? act(sums[2 * j] as number) * (sums[2 * j + 1] as number) : act(sums[j] as number)
      out[row * columns + j] = value + (residual?.[row * columns + j] ?? 0)
    }
  }
  return out
}

/** The last of 14 bits of which x has the first. */
const lastOf14 = (x: number) => 2 ** (floor(log2(abs(x))) - 13)

/**
 * A run of products of codes in the sums of fp8 tensor cores: 32 at a time in fixed point, 13 bits below the first bit of
 * the largest product or of the sum so far; what is smaller is cut off, and of the new sum what is 13 bits below its own.
 */
export function fp8Run(x: Float32Array, w: Float32Array, from: number, at: number, count: number): number {
  let sum = 0
  for (let i = 0; i < count; i += 32) {
    const end = min(i + 32, count)
    let largest = abs(sum)
    for (let j = i; j < end; j++) largest = max(largest, abs((x[from + j] as number) * (w[at + j] as number)))
    if (largest === 0 || !finite(largest)) {
      for (let j = i; j < end; j++) sum += (x[from + j] as number) * (w[at + j] as number)
      continue
    }
    const unit = lastOf14(largest)
    sum = trunc(sum / unit)
    for (let j = i; j < end; j++) sum += trunc(((x[from + j] as number) * (w[at + j] as number)) / unit)
    sum *= unit
    if (sum !== 0) sum -= sum % lastOf14(sum)
  }
  return sum
}

/**
 * The call by a plain loop: one float32 sum in the order of planes and K, every product and sum rounded; the scale of a row of x
 * comes after its sums, those of blocks come before. Not yet rounded to the output's dtype.
 */
export function linear32(call: RefCall): Float32Array {
  const { m, w, exact, bias, residual } = call
  const { n, k, planes, groupK } = w
  const width = planes * k
  const { x, scales, byBlock } = staged(call)
  const blocks = byBlock ? ceil(k / scaleBlock) : 1
  const groups = ceil(width / groupK)
  const values = sized(n * width)
  for (let row = 0, at = 0; row < n && !exact; row++) {
    for (let col = 0; col < width; col++, at++) {
      const g = row * groups + floor(col / groupK)
      values[at] = (w.scales[g] as number) * f((w.codes[at] as number) - (w.zeros[g] as number))
    }
  }
  const act = activations32[call.activation]
  const gated = isGated(call.activation)
  const columns = columnsOf(call)
  const out = sized(m * columns)
  const xRow = sized(width)
  const sums = sized(n)
  const codes = w.codes
  const length = call.compute === 'fp8_unpromoted' && !byBlock && groupK >= k ? k : scaleBlock
  for (let row = 0; row < m; row++) {
    const rowScale = byBlock ? 1 : (scales[row] as number)
    for (let col = 0; col < k; col++) {
      const value = x[row * k + col] as number
      xRow[col] = byBlock ? value * (scales[row * blocks + floor(col / scaleBlock)] as number) : value
    }
    for (let col = k; col < width; col++) xRow[col] = xRow[col - k] as number
    for (let j = 0; j < n; j++) {
      let sum = 0
      if (call.fp8Sums) {
        for (let i = 0; i < k; i += length) {
          const run = fp8Run(x, codes, row * k + i, j * k + i, min(length, k - i))
          const xScale = byBlock ? (scales[row * blocks + i / scaleBlock] as number) : 1
          const factor = f((w.scales[j * groups + floor(i / groupK)] as number) * xScale)
          sum = f(sum + f(f(run) * factor))
        }
      } else if (exact) {
        for (let g = 0; g < groups; g++) {
          const end = min((g + 1) * groupK, width)
          let products = 0
          let total = 0
          for (let i = g * groupK; i < end; i++) {
            products += (xRow[i] as number) * (codes[j * width + i] as number)
            total += xRow[i] as number
          }
          const zero = w.zeros[j * groups + g] as number
          const inner = floor(zero) === zero ? products - zero * total : f(products) - f(zero * f(total))
          sum = f(sum + f((w.scales[j * groups + g] as number) * f(inner)))
        }
      } else {
        for (let i = 0, at = j * width; i < width; i++)
          sum = f(sum + f((xRow[i] as number) * (values[at + i] as number)))
      }
      sums[j] = f(sum * rowScale)
      if (bias !== undefined) sums[j] = f((sums[j] as number) + (bias[j] as number))
    }
    for (let j = 0; j < columns; j++) {
      let value = act(sums[gated ? 2 * j : j] as number)
      if (gated) value = f(value * (sums[2 * j + 1] as number))
      if (residual !== undefined) value = f(value + (residual[row * columns + j] as number))
      out[row * columns + j] = value
    }
  }
  return out
}

/** Results that the plain loop's largest error should be taken from, so that a lucky loop does not judge. */
export const enough = 64

/**
 * The error rule: an error against float64 is at most twice the largest error of the plain loop in the call, plus two
 * units in the last place of the output, in its dtype. (What the loop loses when its results become f16 or bf16 is not
 * counted as its error: the two units are for that.) NaN and inf stand where float64 has them. No tolerance is set by
 * hand.
 *
 * A call of few results is given more rows of the same kind by its maker (`call.m` rows, of which the kernel saw the
 * first `m`), so that the loop's largest error is one of {@link enough} and not luck.
 *
 * @param got [m, columns] in the order of rows.
 * @returns what is wrong, or undefined.
 */
export function judge(call: RefCall, m: number, got: Float32Array): string | undefined {
  const columns = columnsOf(call)
  const want = linear64(call)
  const loop = linear32(call)
  let loopError = 0
  for (let i = 0; i < want.length; i++) {
    const error = abs((loop[i] as number) - (want[i] as number))
    if (error < inf) loopError = max(loopError, error)
  }
  for (let i = 0; i < m * columns; i++) {
    const expected = want[i] as number
    const value = got[i] as number
    const rounded = roundTo(call.out, expected)
    if (same(value, rounded)) continue
    const bound = 2 * loopError + 2 * ulp(call.out, expected)
    if (finite(rounded) && abs(value - expected) <= bound) continue
    return (
      `[${floor(i / columns)}, ${i % columns}] is ${value}, expected ${expected} (error ${abs(value - expected)}, ` +
      `the plain loop's largest ${loopError}, allowed ${bound})`
    )
  }
  return undefined
}
