import { wordIndex } from './errors'
import { native } from './native'
import { outputOf, Tensor } from './tensor'
import { dtypes } from './words'

/** Element types of quantised rows. */
export type CodeDType = 'i8' | 'e4m3' | 'e5m2'

/** How rows are quantised. */
export interface RowQuantization {
  /** Type of the codes. Default 'i8'. */
  readonly dtype?: CodeDType
  /** What shares a scale: a whole row (a token), or each block of 128 columns of it. Default 'row'. */
  readonly per?: 'row' | 'block'
}

const codeDTypes: readonly CodeDType[] = ['i8', 'e4m3', 'e5m2']
const pers = ['row', 'block'] as const

/** Activations as codes and scales: `value = code * scale`. Taken by {@link linear} in place of x. */
export class QuantizedRows implements Disposable {
  /**
   * @param codes [M, K], i8, e4m3 or e5m2.
   * @param scales f32 [M], or [M, ceil(K / 128)].
   */
  constructor(
    readonly codes: Tensor,
    readonly scales: Tensor,
  ) {}

  /** @internal */
  static shell(): QuantizedRows {
    return new QuantizedRows(Tensor.shell(), Tensor.shell())
  }

  /** @internal */
  static read(quant: RowQuantization, where: string): { dtype: number; block: boolean } {
    const { dtype = 'i8', per = 'row' } = quant
    wordIndex(codeDTypes, dtype, `${where}.dtype`)
    return { dtype: wordIndex(dtypes, dtype, where), block: wordIndex(pers, per, `${where}.per`) === 1 }
  }

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
  readonly out?: QuantizedRows
}

/**
 * Quantises activations: `scale = max|x| / limit` per row or per 128 columns, codes rounded to nearest even; the limit is
 * 127 for i8, 448 for e4m3, 57344 for e5m2 (Micikevicius et al., FP8 Formats for Deep Learning, 2022).
 *
 * @param x [M, K], f32, f16 or bf16, rows contiguous. A run that holds NaN or inf gets a NaN scale.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE, ERR_ARGUMENT; LowbitTypeError.
 */
export function quantizeRows(x: Tensor, options: QuantizeRowsOptions = {}): QuantizedRows {
  const { dtype, block } = QuantizedRows.read(options, 'quantizeRows')
  const out = options.out ?? QuantizedRows.shell()
  native.quantizeRows(x, dtype, block, out.codes, out.scales)
  return out
}

/** Options of {@link dequantizeRows}. */
export interface DequantizeRowsOptions {
  /** Dtype of the new tensor. Default 'f32'. */
  readonly dtype?: 'f32' | 'f16' | 'bf16'
  /** Receives the result. */
  readonly out?: Tensor
}

/**
 * Codes times scales, as floats.
 *
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE; LowbitTypeError.
 */
export function dequantizeRows(x: QuantizedRows, options: DequantizeRowsOptions = {}): Tensor {
  const out = outputOf(options.out, 'dequantizeRows')
  const dtype = wordIndex(dtypes, options.dtype ?? 'f32', 'dequantizeRows: dtype')
  native.dequantizeRows(x.codes, x.scales, dtype, out)
  return out
}
