/** Canonical weights: what floats become under a scheme, independent of any device. */
import { kindOf, LowbitError, LowbitTypeError, wordIndex } from './errors'
import {
  type FormatSizes,
  type NativeArrays,
  type NativeCanonical,
  type NativeFormat,
  native,
} from './native'
import { dtypes, type Format, formats, type TablePer, tables, type ZeroPoint, zeroPoints } from './words'

/** The dtypes of weights. */
export type FloatDType = 'f32' | 'f16' | 'bf16'
const floatDTypes = ['f32', 'f16', 'bf16'] as const satisfies FloatDType[]

/** The dtypes of scales: e8m0 those of the MX formats, e4m3 those of nvfp4, the floats all others. */
export type ScaleDType = FloatDType | 'e8m0' | 'e4m3'

/**
 * Values that share a scale: 32, 64 or 128 columns of a row, a whole row ('channel'), the whole matrix ('tensor'), or a
 * block of 128 rows by 128 columns ('block': int8, fp8_e4m3 and fp8_e5m2). At ragged ends groups are smaller. The MX
 * formats always have 32 and nvfp4 16.
 */
export type GroupSize = 16 | 32 | 64 | 128 | 'channel' | 'tensor' | 'block'

/** How {@link quantize} turns floats into codes. */
export interface Scheme {
  /** What the codes mean. */
  readonly format: Format
  /**
   * Default: 64 for int4, int3, int2, nf4, fp4 and codebook4, 32 for the MX formats, 16 for nvfp4 (those are the only
   * sizes they have), 'channel' for the others. f32, f16 and bf16 have no groups.
   */
  readonly groupSize?: GroupSize | undefined
  /** int4, int3, int2: no zero points, codes on both sides of the middle. Default: false. The others always are. */
  readonly symmetric?: boolean | undefined
  /** int4, int3, int2 that are not symmetric: zero points rounded to codes (default) or kept as f32. */
  readonly zeroPoint?: 'integer' | 'float' | undefined
  /** Scales are rounded to this dtype before the codes are made. Default: f32; e8m0 for MX formats, e4m3 for nvfp4. */
  readonly scaleDtype?: ScaleDType | undefined
  /** codebook4: 16 finite numbers in the order of codes, or as many times that as {@link tablePer} asks for. It is copied. */
  readonly table?: Float32Array | undefined
  /** codebook4: one table for the matrix (default), one for each row, or one for each scale. */
  readonly tablePer?: 'tensor' | 'row' | 'group' | undefined
  /** int1: how many planes of signs add up to the weight, 1 (default) to 8; see {@link QuantizedWeight.planes}. */
  readonly planes?: number | undefined
  /**
   * true or 'search': choose the range of each group out of 25 by least squared error instead of taking the full
   * range. Never worse in that measure, and about 20 times slower. Planes of int1: improve signs and scales in turn, as
   * long as the squared error falls. The scales of MX formats are powers of two by the
   * standard's rule: they refuse it. Default: false.
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
  /** Default as in {@link Scheme}. */
  readonly scaleDtype?: ScaleDType | undefined
  /** Default: 'tensor' for codebook4, else 'none'. */
  readonly tablePer?: TablePer | undefined
  /** int1: planes that add up to the weight, 1 (default) to 8. */
  readonly planes?: number | undefined
  /**
   * Row-major codes, each row beginning at a whole byte; the code of column k starts at bit k * bits of its row, least
   * significant bit first. See {@link QuantizedWeight} for the codes of each format.
   */
  readonly codes: ArrayBufferView
  /**
   * Float32Array, Uint16Array (Float16Array) for f16 and bf16, or Uint8Array for e8m0 and e4m3; a row of groups after the
   * other.
   */
  readonly scales?: ArrayBufferView | undefined
  /** Uint8Array for 'integer', Float32Array for 'float'; in the order of the scales. */
  readonly zeros?: ArrayBufferView | undefined
  /** codebook4: Float32Array of 16 numbers for the matrix, each row, or each scale in their order. */
  readonly table?: ArrayBufferView | undefined
  /** nvfp4: what multiplies every value, rounded to f32. */
  readonly tensorScale?: number | undefined
}

/** The fields that say what the arrays mean. */
export type FormatFields = Pick<
  CanonicalFields,
  'format' | 'shape' | 'groupSize' | 'zeroPoint' | 'scaleDtype' | 'tablePer' | 'planes'
>

const fieldNames = [
  ...['format', 'shape', 'groupSize', 'zeroPoint', 'scaleDtype', 'tablePer', 'planes'],
  ...['codes', 'scales', 'zeros', 'table', 'tensorScale'],
]
const schemeNames = [
  ...['format', 'groupSize', 'symmetric', 'zeroPoint', 'scaleDtype', 'table', 'tablePer'],
  ...['planes', 'clip', 'dtype'],
]

const isFloat = (format: Format): boolean => format === 'f32' || format === 'f16' || format === 'bf16'
const isAffine = (format: Format): boolean => format === 'int4' || format === 'int3' || format === 'int2'

/** Groups and scales of the formats that leave no choice. */
const fixed: { readonly [F in Format]?: { readonly groupSize: GroupSize; readonly scaleDtype: ScaleDType } } =
  {
    mxfp8_e4m3: { groupSize: 32, scaleDtype: 'e8m0' },
    mxfp8_e5m2: { groupSize: 32, scaleDtype: 'e8m0' },
    mxfp6_e2m3: { groupSize: 32, scaleDtype: 'e8m0' },
    mxfp6_e3m2: { groupSize: 32, scaleDtype: 'e8m0' },
    mxfp4: { groupSize: 32, scaleDtype: 'e8m0' },
    mxint8: { groupSize: 32, scaleDtype: 'e8m0' },
    nvfp4: { groupSize: 16, scaleDtype: 'e4m3' },
  }

/** What the fields mean where they are left out. */
const defaultGroup = (format: Format): GroupSize =>
  fixed[format]?.groupSize ??
  (isAffine(format) || format === 'nf4' || format === 'fp4' || format === 'codebook4' ? 64 : 'channel')
const defaultScale = (format: Format): ScaleDType => fixed[format]?.scaleDtype ?? 'f32'
const defaultTable = (format: Format): TablePer => (format === 'codebook4' ? 'tensor' : 'none')

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
  if (size === 16 || size === 32 || size === 64 || size === 128) return [1, size]
  throw new LowbitError(
    'ERR_ARGUMENT',
    `${op}: expected groupSize to be 16 (nvfp4), 32, 64, 128, 'channel', 'tensor' or 'block' but got ${kindOf(size)}`,
  )
}

/** What a weight means, as the positions of a native call. */
export function formatOf(fields: FormatFields, op: string): NativeFormat {
  const { format, shape, groupSize, zeroPoint = 'none', scaleDtype, tablePer, planes = 1 } = fields
  const kind = wordIndex(formats, format, `${op}: format`)
  const zero = wordIndex(zeroPoints, zeroPoint, `${op}: zeroPoint`)
  const table = wordIndex(tables, tablePer ?? defaultTable(format), `${op}: tablePer`)
  if (isFloat(format)) {
    if (groupSize !== undefined || scaleDtype !== undefined || zeroPoint !== 'none' || table !== 0) {
      throw new LowbitError(
        'ERR_ARGUMENT',
        `${op}: expected no groupSize, scaleDtype, zeroPoint or tablePer, since ${format} has no scales`,
      )
    }
    return [shape, kind, 0, 0, dtypes.length, 0, 0, planes]
  }
  const [groupN, groupK] = groupOf(groupSize ?? defaultGroup(format), op)
  const scales = fixed[format] === undefined ? floatDTypes : [defaultScale(format)]
  const scale = scales[wordIndex(scales, scaleDtype ?? defaultScale(format), `${op}: scaleDtype`)]
  return [shape, kind, groupN, groupK, dtypes.indexOf(scale as ScaleDType), zero, table, planes]
}

function bytesOf(view: ArrayBufferView, op: string, name: string): Uint8Array<ArrayBufferLike> {
  if (!ArrayBuffer.isView(view)) {
    throw new LowbitTypeError(`${op}: expected ${name} to be a typed array but got ${kindOf(view)}`)
  }
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
}

/** The same memory as elements of `type`; what is no such array natively is refused there, by name. */
function halvesOf(view: ArrayBufferView | undefined, dtype: ScaleDType): ArrayBufferView | undefined {
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
 * | int1 | scale * (2 * code - zero), summed over its planes | 0, 1; a symmetric zero is 1: signs |
 * | fp8_e4m3, fp8_e5m2 | scale * float(code) | OCP FP8 |
 * | nf4, fp4 | scale * table[code] | 0..15, the table of the format |
 * | codebook4 | scale * table[code] | 0..15, the stored table of the matrix, the row or the group |
 * | mxfp8, mxfp6, mxfp4, mxint8 | 2^(scale - 127) * element(code) | OCP MX elements |
 * | nvfp4 | tensorScale * scale * e2m1(code) | 0..15: sign, two exponent bits, one mantissa bit |
 *
 * with the scale and zero of its group. csrc/format has a page for each: bytes, limits, rounding, special values.
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
  readonly scaleDtype: ScaleDType | undefined
  /** What each table of codebook4 belongs to; 'none' for all others. */
  readonly tablePer: TablePer
  /**
   * int1: how many planes of signs add up to the weight; 1 for all others. Planes have scales and zeros of their own. A row
   * of codes is K bits of the first plane, then K of the next; scales and zeros of a row follow the same order. With more than one, K is a
   * multiple of 32 and of the group.
   */
  readonly planes: number
  /** Rows of codes; each begins at a whole byte, the least significant bits first. */
  readonly codes: Uint8Array<ArrayBufferLike>
  /** Groups of a row side by side, rows below each other: [rows, columns] is {@link scaleShape}. */
  readonly scales: Float32Array | Uint16Array | Uint8Array | undefined
  /** Zero points in the order of the scales; undefined where the weight is symmetric. */
  readonly zeros: Uint8Array | Float32Array | undefined
  /** codebook4: 16 numbers for each of {@link tablePer}; undefined for all others. */
  readonly table: Float32Array | undefined
  /** nvfp4: a float32 number; undefined for all others. */
  readonly tensorScale: number | undefined
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
    this.scaleDtype = scaled ? (fields.scaleDtype ?? defaultScale(fields.format)) : undefined
    this.tablePer = fields.tablePer ?? defaultTable(fields.format)
    this.planes = fields.planes ?? 1
    this.codes = bytesOf(fields.codes, 'canonical', 'codes')
    this.scales = fields.scales as Float32Array | Uint16Array | Uint8Array | undefined
    this.zeros = fields.zeros as Uint8Array | Float32Array | undefined
    this.table = fields.table as Float32Array | undefined
    this.tensorScale = fields.tensorScale === undefined ? undefined : Math.fround(fields.tensorScale)
    this.scaleShape = Object.freeze([sizes.scaleRows, sizes.scaleCols] as const)
    Object.freeze(this)
  }

  /** Whether there are no stored zero points. */
  get symmetric(): boolean {
    return this.zeroPoint === 'none'
  }
  /** Bytes of codes, scales, zeros, tables and the tensor's scale. */
  get byteLength(): number {
    const { codes, scales, zeros, table, tensorScale } = this
    const rest = [scales, zeros, table].reduce((sum, array) => sum + (array?.byteLength ?? 0), 0)
    return codes.byteLength + rest + (tensorScale === undefined ? 0 : 4)
  }
  /** Stored bits for each value, all of {@link byteLength} counted in; 0 for an empty weight. */
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
  return [...formatOf(q, op), q.codes, q.scales, q.zeros, q.table, scalarOf(q.tensorScale)]
}

/** A number as native code takes what it may also write. */
function scalarOf(value: number | undefined): Float32Array | undefined {
  return value === undefined ? undefined : new Float32Array([value])
}

const scaleArrays = {
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  e8m0: Uint8Array,
  e4m3: Uint8Array,
}

/** Arrays for a weight of this format, to be filled, and then the weight. A table may be given: it is copied. */
export function roomFor(
  fields: FormatFields,
  op: string,
  given?: Float32Array,
): { format: NativeFormat; arrays: NativeArrays; weight(): QuantizedWeight } {
  const format = formatOf(fields, op)
  const sizes = native.formatSizes(...format)
  const groups = sizes.scaleRows * sizes.scaleCols
  const { zeroPoint, scaleDtype } = fields
  const codes = new Uint8Array(sizes.codes)
  const scales = isFloat(fields.format)
    ? undefined
    : new scaleArrays[scaleDtype ?? defaultScale(fields.format)](groups)
  const zeros =
    zeroPoint === 'integer'
      ? new Uint8Array(groups)
      : zeroPoint === 'float'
        ? new Float32Array(groups)
        : undefined
  const stored = fields.format === 'codebook4'
  const table = given?.slice() ?? (stored ? new Float32Array(sizes.tables * 16) : undefined)
  const tensorScale = fields.format === 'nvfp4' ? new Float32Array(1) : undefined
  return {
    format,
    arrays: [codes, scales, zeros, table, tensorScale],
    weight: () =>
      new QuantizedWeight({ ...fields, codes, scales, zeros, table, tensorScale: tensorScale?.[0] }, sizes),
  }
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
 * | int1 | mean\|w\| | the sign; 0 counts as positive. The next plane takes what is left |
 * | nf4, fp4, codebook4 | max\|w\| / max\|table\| | nearest number of the table to w / scale; halfway: the lower |
 * | MX formats | 2^(floor(log2(max\|w\|)) - emax) | nearest element of w / scale, saturating |
 * | nvfp4 | max\|w\| / 6 / tensorScale in e4m3; tensorScale = max\|w\| of all / 2688 | nearest e2m1 |
 *
 * emax is the exponent of the format's largest element: 8 for e4m3, 15 for e5m2, 2 for e2m3 and e2m1, 4 for e3m2, 0 for
 * mxint8. Scales are at least 1e-12 (MX: 2^-127), so a group of zeros is exact (int1: 1e-12; codebook4: what is nearest).
 *
 * @param weights Float32Array, Float16Array, or Uint16Array with `dtype` in the scheme.
 * @param shape [N, K]: N outputs, K inputs.
 * @throws LowbitError ERR_SHAPE if weights are not N * K; ERR_ARGUMENT for NaN or inf among them (with the position), a
 *   number that f16 or bf16 can't hold, or a scheme that there is not; ERR_DTYPE.
 * @throws LowbitTypeError for arguments of the wrong kind.
 *
 * Papers: Jacob et al. 2018 (affine codes); Micikevicius et al. 2022 (FP8); Ma et al. 2024 (ternary); Rastegari et al. 2016
 * (int1); Guo et al. 2017, Xu et al. 2018 (its planes, greedy and 'search'); Dettmers et al. 2023 (nf4); OCP Microscaling Formats 1.0 (MX); NVIDIA 2025 (nvfp4).
 */
export function quantize(weights: WeightArray, shape: readonly number[], scheme: Scheme): QuantizedWeight {
  refuseOthers(objectOf(scheme, 'quantize', 'scheme'), schemeNames, 'quantize')
  const { format, groupSize, symmetric, scaleDtype, table, tablePer, planes, clip = false, dtype } = scheme
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
  if (table !== undefined && !(table instanceof Float32Array))
    throw new LowbitTypeError(`quantize: expected table to be a Float32Array but got ${kindOf(table)}`)
  if ((format === 'codebook4') !== (table !== undefined)) {
    throw new LowbitError(
      'ERR_ARGUMENT',
      `quantize: expected ${table === undefined ? 'a table for codebook4' : `no table, since ${format} stores none`}`,
    )
  }
  const room = roomFor(
    { format, shape, groupSize, zeroPoint, scaleDtype, tablePer, planes },
    'quantize',
    table,
  )
  native.quantizeWeight(weights, from, clip !== false, ...room.format, ...room.arrays)
  return room.weight()
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
 *   NaN or inf in scales, zeros or tables (the e8m0 scale 0xff is kept: its group is NaN), codes that the format has not, bits behind the last code of a row, or a format that
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
  const { zeros, table, tensorScale } = fields
  if (tensorScale !== undefined && typeof tensorScale !== 'number')
    throw new LowbitTypeError(`canonical: expected tensorScale to be a number but got ${kindOf(tensorScale)}`)
  native.checkWeight(...format, codes, scales, zeros, table, scalarOf(tensorScale))
  return new QuantizedWeight({ ...fields, codes, scales }, native.formatSizes(...format))
}
