import { kindOf, LowbitTypeError, wordIndex } from './errors'
import { native } from './native'
import { outputOf, Tensor } from './tensor'
import { dtypes } from './words'

/** Element types of quantised rows. */
export type CodeDType = 'i8' | 'e4m3' | 'e5m2'

/** How rows are quantised. */
export interface RowQuantization {
  /** Type of the codes. Default: that of `out`, else 'i8'. */
  readonly dtype?: CodeDType | undefined
  /** What shares a scale: a whole row (a token), or each block of 128 columns of it. Default: as in `out`, else 'row'. */
  readonly per?: 'row' | 'block' | undefined
}

const codeDTypes: readonly CodeDType[] = ['i8', 'e4m3', 'e5m2']
const pers = ['row', 'block'] as const

/**
 * Activations as codes and scales: `value = code * scale`. Taken by {@link linear} in place of x, and by {@link attention},
 * which says what shapes it wants, in place of q, k and v.
 */
export class QuantizedRows implements Disposable {
  /**
   * @param codes [M, K], i8, e4m3 or e5m2.
   * @param scales f32 [M], or [M, ceil(K / 128)].
   */
  constructor(
    /** [M, K], i8, e4m3 or e5m2. */
    readonly codes: Tensor,
    /** f32 [M], or [M, ceil(K / 128)]. */
    readonly scales: Tensor,
  ) {}

  /** What a call writes: the caller's, or tensors for the call to fill. @internal */
  static outputOf(out: QuantizedRows | undefined, op: string): QuantizedRows {
    if (out === undefined) return new QuantizedRows(Tensor.shell(), Tensor.shell())
    if (out instanceof QuantizedRows) return out
    throw new LowbitTypeError(`${op}: expected out to be QuantizedRows but got ${kindOf(out)}`)
  }

  /** What the caller says, or the defaults where no `out` says it. @internal */
  static read(
    quant: RowQuantization,
    where: string,
    out: QuantizedRows | undefined,
  ): { dtype: number | undefined; block: boolean | undefined } {
    if (typeof quant !== 'object' || quant === null)
      throw new LowbitTypeError(`${where}: expected { dtype, per } but got ${kindOf(quant)}`)
    const fresh = out === undefined
    const { dtype = fresh ? 'i8' : undefined, per = fresh ? 'row' : undefined } = quant
    if (dtype !== undefined) wordIndex(codeDTypes, dtype, `${where}.dtype`)
    return {
      dtype: dtype === undefined ? undefined : dtypes.indexOf(dtype),
      block: per === undefined ? undefined : wordIndex(pers, per, `${where}.per`) === 1,
    }
  }

  /** Disposes both tensors. */
  dispose(): void {
    this.codes.dispose()
    this.scales.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** Options of {@link quantizeRows}. */
export interface QuantizeRowsOptions extends RowQuantization {
  /** Receives codes and scales. Default: new tensors. */
  readonly out?: QuantizedRows | undefined
}

/**
 * Quantises activations: `scale = max|x| / limit` per row or per 128 columns, codes rounded to nearest even; the limit is
 * 127 for i8, 448 for e4m3, 57344 for e5m2 (Micikevicius et al., FP8 Formats for Deep Learning, 2022).
 *
 * @param x [M, K], f32, f16 or bf16, rows contiguous. A run that holds NaN or inf gets a NaN scale.
 * @throws LowbitError ERR_SHAPE and ERR_DTYPE, also where `out` is not what `per` or `dtype` say; ERR_STRIDES,
 *   ERR_DEVICE, ERR_ARGUMENT; LowbitTypeError.
 */
export function quantizeRows(x: Tensor, options: QuantizeRowsOptions = {}): QuantizedRows {
  const out = QuantizedRows.outputOf(options.out, 'quantizeRows')
  const { dtype, block } = QuantizedRows.read(options, 'quantizeRows', options.out)
  native.quantizeRows(x, dtype, block, out.codes, out.scales)
  return out
}

/** Options of {@link dequantizeRows}. */
export interface DequantizeRowsOptions {
  /** Dtype of the result. Default: that of `out`, else 'f32'. */
  readonly dtype?: 'f32' | 'f16' | 'bf16' | undefined
  /** Receives the result. */
  readonly out?: Tensor | undefined
}

/**
 * Codes times scales, as floats.
 *
 * @throws LowbitError ERR_SHAPE; ERR_DTYPE, also where `out` is not what `dtype` says; ERR_STRIDES, ERR_DEVICE; LowbitTypeError.
 */
export function dequantizeRows(x: QuantizedRows, options: DequantizeRowsOptions = {}): Tensor {
  const out = outputOf(options.out, 'dequantizeRows')
  const { dtype } = options
  if (!(x instanceof QuantizedRows))
    throw new LowbitTypeError(`dequantizeRows: expected x to be QuantizedRows but got ${kindOf(x)}`)
  native.dequantizeRows(
    x.codes,
    x.scales,
    dtype === undefined ? undefined : wordIndex(dtypes, dtype, 'dequantizeRows: dtype'),
    out,
  )
  return out
}
