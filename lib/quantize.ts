/** Canonical weights: what floats become under a scheme, independent of any device. */
import { kindOf, LowbitError, LowbitTypeError, wordIndex } from './errors'
import { type FormatSizes, type NativeCanonical, type NativeFormat, native } from './native'
import { dtypes, type Format, formats, type ZeroPoint, zeroPoints } from './words'

/** The dtypes of weights and scales. */
export type FloatDType = 'f32' | 'f16' | 'bf16'
const floatDTypes = ['f32', 'f16', 'bf16'] as const satisfies FloatDType[]

/**
 * Values that share a scale: 32, 64 or 128 columns of a row, a whole row ('channel'), the whole matrix ('tensor'), or a
 * block of 128 rows by 128 columns ('block': int8, fp8_e4m3 and fp8_e5m2). At ragged ends groups are smaller.
 */
export type GroupSize = 32 | 64 | 128 | 'channel' | 'tensor' | 'block'

/** How {@link quantize} turns floats into codes. */
export interface Scheme {
  /** What the codes mean. */
  readonly format: Format
  /** Default: 64 for int4, int3 and int2, 'channel' for the others. f32, f16 and bf16 have no groups. */
  readonly groupSize?: GroupSize | undefined
  /** int4, int3, int2: no zero points, codes on both sides of the middle. Default: false. The others always are. */
  readonly symmetric?: boolean | undefined
  /** int4, int3, int2 that are not symmetric: zero points rounded to codes (default) or kept as f32. */
  readonly zeroPoint?: 'integer' | 'float' | undefined
  /** Scales are rounded to this dtype before the codes are made. Default: f32. */
  readonly scaleDtype?: FloatDType | undefined
  /**
   * true or 'search': choose the range of each group out of 25 by least squared error instead of taking the full
   * range. Never worse in that measure, and about 20 times slower. Default: false.
   */
  readonly clip?: boolean | 'search' | undefined
  /** What a Uint16Array holds. */
  readonly dtype?: FloatDType | undefined
}

/** Typed arrays that weights come in; newer versions of Node have Float16Array. */
export type WeightArray =
  | Float32Array
  | Uint16Array
  | (ArrayBufferView & { readonly [Symbol.toStringTag]: 'Float16Array' })

/** The fields of a {@link QuantizedWeight}, as {@link canonical} takes them. */
export interface CanonicalFields {
  /** What the codes mean. */
  readonly format: Format
  /** [N, K]: N outputs, K inputs. */
  readonly shape: readonly [number, number] | readonly number[]
  /** Default as in {@link Scheme}. */
  readonly groupSize?: GroupSize | undefined
  /** Default: 'none'. */
  readonly zeroPoint?: ZeroPoint | undefined
  /** Default: 'f32'. */
  readonly scaleDtype?: FloatDType | undefined
  /**
   * Row-major codes, each row beginning at a whole byte; the code of column k starts at bit k * bits of its row, least
   * significant bit first. See {@link QuantizedWeight} for the codes of each format.
   */
  readonly codes: ArrayBufferView
  /** Float32Array, or Uint16Array (Float16Array) for f16 and bf16; a row of groups after the other. */
  readonly scales?: ArrayBufferView | undefined
  /** Uint8Array for 'integer', Float32Array for 'float'; in the order of the scales. */
  readonly zeros?: ArrayBufferView | undefined
}

const fieldNames = ['format', 'shape', 'groupSize', 'zeroPoint', 'scaleDtype', 'codes', 'scales', 'zeros']
const schemeNames = ['format', 'groupSize', 'symmetric', 'zeroPoint', 'scaleDtype', 'clip', 'dtype']

const isFloat = (format: Format): boolean => format === 'f32' || format === 'f16' || format === 'bf16'
const isAffine = (format: Format): boolean => format === 'int4' || format === 'int3' || format === 'int2'

/** A misspelt option would otherwise be an option that silently does nothing. */
function refuseOthers(value: object, names: readonly string[], op: string): void {
  for (const name of Object.keys(value)) {
    if (!names.includes(name)) {
      throw new LowbitError('ERR_ARGUMENT', `${op}: expected ${names.join(', ')} but got '${name}' too`)
    }
  }
}

function objectOf<T extends object>(value: T, op: string, name: string): T {
  if (typeof value !== 'object' || value === null) {
    throw new LowbitTypeError(`${op}: expected ${name} to be an object but got ${kindOf(value)}`)
  }
  return value
}

/** Rows and columns of a group; 0 stands for all of them. */
function groupOf(size: GroupSize, op: string): readonly [number, number] {
  if (size === 'channel') return [1, 0]
  if (size === 'tensor') return [0, 0]
  if (size === 'block') return [128, 128]
  if (size === 32 || size === 64 || size === 128) return [1, size]
  throw new LowbitError(
    'ERR_ARGUMENT',
    `${op}: expected groupSize to be 32, 64, 128, 'channel', 'tensor' or 'block' but got ${kindOf(size)}`,
  )
}

/** What a weight means, as the positions of a native call. */
export function formatOf(
  fields: Pick<CanonicalFields, 'format' | 'shape' | 'groupSize' | 'zeroPoint' | 'scaleDtype'>,
  op: string,
): NativeFormat {
  const { format, shape, groupSize, zeroPoint = 'none', scaleDtype } = fields
  const kind = wordIndex(formats, format, `${op}: format`)
  const zero = wordIndex(zeroPoints, zeroPoint, `${op}: zeroPoint`)
  if (isFloat(format)) {
    if (groupSize !== undefined || scaleDtype !== undefined || zeroPoint !== 'none') {
      throw new LowbitError(
        'ERR_ARGUMENT',
        `${op}: expected no groupSize, scaleDtype or zeroPoint, since ${format} has no scales`,
      )
    }
    return [shape, kind, 0, 0, dtypes.length, 0]
  }
  const [groupN, groupK] = groupOf(groupSize ?? defaultGroup(format), op)
  const scale = wordIndex(floatDTypes, scaleDtype ?? 'f32', `${op}: scaleDtype`)
  return [shape, kind, groupN, groupK, dtypes.indexOf(floatDTypes[scale] as FloatDType), zero]
}

const defaultGroup = (format: Format): GroupSize => (isAffine(format) ? 64 : 'channel')

function bytesOf(view: ArrayBufferView, op: string, name: string): Uint8Array<ArrayBufferLike> {
  if (!ArrayBuffer.isView(view)) {
    throw new LowbitTypeError(`${op}: expected ${name} to be a typed array but got ${kindOf(view)}`)
  }
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
}

/** The same memory as elements of `type`; what is no such array natively is refused there, by name. */
function halvesOf(view: ArrayBufferView | undefined, dtype: FloatDType): ArrayBufferView | undefined {
  const float16 = view !== undefined && Object.prototype.toString.call(view) === '[object Float16Array]'
  return float16 && dtype === 'f16'
    ? new Uint16Array(view.buffer, view.byteOffset, view.byteLength / 2)
    : view
}

/**
 * A weight [N, K] as it is saved and exchanged: codes, scales and zeros, with nothing of a device in it. Made by
 * {@link quantize}, {@link canonical}, {@link Weight.unpack}, `deserialize` and importers; frozen. Its value at (n, k) is
 *
 * | format | value | codes |
 * |---|---|---|
 * | f32, f16, bf16 | the element | the bits of the float, little endian |
 * | int8 | scale * code | -127..127, two's complement |
 * | int4, int3, int2 | scale * (code - zero) | unsigned; a symmetric zero is 8, 4, 2 |
 * | ternary | scale * (code - 1) | 0, 1, 2 |
 * | int1 | scale * (2 * code - 1) | 0, 1 |
 * | fp8_e4m3, fp8_e5m2 | scale * float(code) | OCP FP8 |
 *
 * with the scale and zero of its group.
 */
export class QuantizedWeight {
  /** What the codes mean. */
  readonly format: Format
  /** [N, K]. */
  readonly shape: readonly [number, number]
  /** Undefined for f32, f16 and bf16. */
  readonly groupSize: GroupSize | undefined
  /** How zero points are stored; 'none' where the weight is symmetric. */
  readonly zeroPoint: ZeroPoint
  /** Undefined for f32, f16 and bf16. */
  readonly scaleDtype: FloatDType | undefined
  /** Rows of codes; each begins at a whole byte, the least significant bits first. */
  readonly codes: Uint8Array<ArrayBufferLike>
  /** Groups of a row side by side, rows below each other: [rows, columns] is {@link scaleShape}. */
  readonly scales: Float32Array | Uint16Array | undefined
  /** Zero points in the order of the scales; undefined where the weight is symmetric. */
  readonly zeros: Uint8Array | Float32Array | undefined
  /** Rows and columns of scales; [0, 0] for f32, f16 and bf16. */
  readonly scaleShape: readonly [number, number]

  /** @internal */
  constructor(fields: CanonicalFields, sizes: FormatSizes) {
    const [n, k] = fields.shape
    this.format = fields.format
    this.shape = Object.freeze([n as number, k as number] as const)
    const scaled = !isFloat(fields.format)
    this.groupSize = scaled ? (fields.groupSize ?? defaultGroup(fields.format)) : undefined
    this.zeroPoint = fields.zeroPoint ?? 'none'
    this.scaleDtype = scaled ? (fields.scaleDtype ?? 'f32') : undefined
    this.codes = bytesOf(fields.codes, 'canonical', 'codes')
    this.scales = fields.scales as Float32Array | Uint16Array | undefined
    this.zeros = fields.zeros as Uint8Array | Float32Array | undefined
    this.scaleShape = Object.freeze([sizes.scaleRows, sizes.scaleCols] as const)
    Object.freeze(this)
  }

  /** Whether there are no stored zero points. */
  get symmetric(): boolean {
    return this.zeroPoint === 'none'
  }
  /** Bytes of codes, scales and zeros. */
  get byteLength(): number {
    return this.codes.byteLength + (this.scales?.byteLength ?? 0) + (this.zeros?.byteLength ?? 0)
  }
  /** Stored bits for each value, scales and zeros counted in; 0 for an empty weight. */
  get bitsPerWeight(): number {
    const count = this.shape[0] * this.shape[1]
    return count === 0 ? 0 : (this.byteLength * 8) / count
  }
}

/** A weight as the positions of a native call. */
export function nativeCanonical(q: QuantizedWeight, op: string): NativeCanonical {
  if (!(q instanceof QuantizedWeight)) {
    throw new LowbitTypeError(
      `${op}: expected a QuantizedWeight (what quantize and canonical return) but got ${kindOf(q)}`,
    )
  }
  return [...formatOf(q, op), q.codes, q.scales, q.zeros]
}

/** Arrays for a weight of this format, to be filled. */
export function roomFor(
  fields: Pick<CanonicalFields, 'format' | 'shape' | 'groupSize' | 'zeroPoint' | 'scaleDtype'>,
  op: string,
): { native: NativeCanonical; weight: QuantizedWeight } {
  const format = formatOf(fields, op)
  const sizes = native.formatSizes(...format)
  const groups = sizes.scaleRows * sizes.scaleCols
  const { zeroPoint, scaleDtype } = fields
  const codes = new Uint8Array(sizes.codes)
  const scales = isFloat(fields.format)
    ? undefined
    : new ((scaleDtype ?? 'f32') === 'f32' ? Float32Array : Uint16Array)(groups)
  const zeros =
    zeroPoint === 'integer'
      ? new Uint8Array(groups)
      : zeroPoint === 'float'
        ? new Float32Array(groups)
        : undefined
  const weight = new QuantizedWeight({ ...fields, codes, scales, zeros }, sizes)
  return { native: [...format, codes, scales, zeros], weight }
}

function weightDType(weights: ArrayBufferView, dtype: FloatDType | undefined): number {
  const fail = (what: string): never => {
    throw new LowbitError('ERR_DTYPE', `quantize: ${what}`)
  }
  if (dtype !== undefined) wordIndex(floatDTypes, dtype, 'quantize: dtype')
  const array = ArrayBuffer.isView(weights) ? Object.prototype.toString.call(weights).slice(8, -1) : ''
  const held = array === 'Float32Array' ? 'f32' : array === 'Float16Array' ? 'f16' : undefined
  if (held !== undefined) {
    if (dtype !== undefined && dtype !== held)
      fail(`expected dtype to be ${held}, which a ${array} holds, but got ${dtype}`)
    return dtypes.indexOf(held)
  }
  if (array !== 'Uint16Array') {
    throw new LowbitTypeError(
      `quantize: expected weights to be a Float32Array, Float16Array or Uint16Array but got ${kindOf(weights)}`,
    )
  }
  if (dtype !== 'f16' && dtype !== 'bf16')
    fail(`expected dtype to be f16 or bf16, since a Uint16Array may hold either, but got ${dtype}`)
  return dtypes.indexOf(dtype as FloatDType)
}

/**
 * Quantises weights [N, K], row-major, by rounding to nearest even; the arithmetic is float32. Runs at once, on every
 * core. f32, f16 and bf16 are formats too: a conversion.
 *
 * | format | scale of a group | code |
 * |---|---|---|
 * | int8 | max\|w\| / 127 | round(w / scale) |
 * | int4, int3, int2 | (hi - lo) / (2^bits - 1), lo = min(w, 0), hi = max(w, 0) | round(w / scale) + round(-lo / scale) |
 * | the same, symmetric | max\|w\| / 7, / 3, / 1 | round(w / scale) |
 * | the same, zeroPoint 'float' | as asymmetric | round((w - lo) / scale) |
 * | fp8_e4m3, fp8_e5m2 | max\|w\| / 448, / 57344 | nearest FP8 of w / scale, saturating |
 * | ternary | mean\|w\| | round(w / scale) in -1..1 |
 * | int1 | mean\|w\| | the sign; 0 counts as positive |
 *
 * Scales are at least 1e-12, so a group of zeros is exact (int1: 1e-12).
 *
 * @param weights Float32Array, Float16Array, or Uint16Array with `dtype` in the scheme.
 * @param shape [N, K]: N outputs, K inputs.
 * @throws LowbitError ERR_SHAPE if weights are not N * K; ERR_ARGUMENT for NaN or inf among them (with the position), a
 *   number that f16 or bf16 can't hold, or a scheme that there is not; ERR_DTYPE.
 * @throws LowbitTypeError for arguments of the wrong kind.
 *
 * Papers: Jacob et al. 2018 (affine codes); Micikevicius et al. 2022 (FP8); Ma et al. 2024 (ternary); Rastegari et al. 2016
 * (int1).
 */
export function quantize(weights: WeightArray, shape: readonly number[], scheme: Scheme): QuantizedWeight {
  refuseOthers(objectOf(scheme, 'quantize', 'scheme'), schemeNames, 'quantize')
  const { format, groupSize, symmetric, scaleDtype, clip = false, dtype } = scheme
  const from = weightDType(weights, dtype)
  wordIndex(formats, format, 'quantize: format')
  if (symmetric !== undefined && typeof symmetric !== 'boolean')
    throw new LowbitTypeError(`quantize: expected symmetric to be a boolean but got ${kindOf(symmetric)}`)
  if (clip !== 'search' && typeof clip !== 'boolean')
    throw new LowbitTypeError(`quantize: expected clip to be a boolean or 'search' but got ${kindOf(clip)}`)
  if (symmetric === true && scheme.zeroPoint !== undefined)
    throw new LowbitError('ERR_ARGUMENT', 'quantize: expected symmetric or zeroPoint but got both')
  if (symmetric === false && !isAffine(format)) {
    throw new LowbitError('ERR_ARGUMENT', `quantize: expected symmetric, since ${format} has no zero points`)
  }
  const zeroPoint = scheme.zeroPoint ?? (isAffine(format) && symmetric !== true ? 'integer' : 'none')
  const room = roomFor({ format, shape, groupSize, zeroPoint, scaleDtype }, 'quantize')
  native.quantizeWeight(weights, from, clip !== false, ...room.native)
  return room.weight
}

/**
 * The float weights [N, K] that a canonical weight stands for, row-major: a Float32Array, or a Uint16Array of the bits
 * of f16 or bf16, rounded to nearest even (beyond f16's range: inf).
 *
 * @throws LowbitError ERR_ARGUMENT if its arrays were overwritten with what no weight may hold.
 */
export function dequantize(q: QuantizedWeight): Float32Array
export function dequantize<D extends FloatDType>(
  q: QuantizedWeight,
  dtype: D,
): D extends 'f32' ? Float32Array : Uint16Array
export function dequantize(q: QuantizedWeight, dtype: FloatDType = 'f32'): Float32Array | Uint16Array {
  const weight = nativeCanonical(q, 'dequantize')
  const to = floatDTypes[wordIndex(floatDTypes, dtype, 'dequantize: dtype')] as FloatDType
  const count = q.shape[0] * q.shape[1]
  const out = to === 'f32' ? new Float32Array(count) : new Uint16Array(count)
  native.dequantizeWeight(out, dtypes.indexOf(to), ...weight)
  return out
}

/**
 * A canonical weight from its parts, checked: for importers and tests. The arrays are not copied. A
 * {@link QuantizedWeight} that lost its class on the way through `postMessage` or `structuredClone` is one of the things
 * that it takes.
 *
 * @throws LowbitError ERR_SHAPE for arrays of the wrong size; ERR_DTYPE for arrays of the wrong element; ERR_ARGUMENT for
 *   NaN or inf in scales or zeros, codes that the format has not, bits behind the last code of a row, or a format that
 *   there is not.
 * @throws LowbitTypeError for arguments of the wrong kind.
 */
export function canonical(fields: CanonicalFields): QuantizedWeight {
  refuseOthers(
    objectOf(fields, 'canonical', 'the weight'),
    [...fieldNames, 'symmetric', 'scaleShape'],
    'canonical',
  )
  const format = formatOf(fields, 'canonical')
  const codes = bytesOf(fields.codes, 'canonical', 'codes')
  const scales = halvesOf(fields.scales, fields.scaleDtype ?? 'f32')
  native.checkWeight(...format, codes, scales, fields.zeros)
  return new QuantizedWeight({ ...fields, codes, scales }, native.formatSizes(...format))
}
