import { wordIndex } from './errors'
import { native } from './native'
import { QuantizedRows, type RowQuantization } from './quantize-rows'
import { outputOf, type Tensor } from './tensor'
import type { Weight } from './weight'
import { type Activation, activations, type Compute, computes, dtypes } from './words'

/** Options of {@link linear}. */
export interface LinearOptions {
  /** [N], f32, f16 or bf16: added before the activation. */
  readonly bias?: Tensor | undefined
  /** Default 'none'. swiglu and geglu read w's rows in pairs, gate then value, and give N/2 columns. */
  readonly activation?: Activation | undefined
  /** The shape of the result, f32, f16 or bf16: added last. May be `out` itself. */
  readonly residual?: Tensor | undefined
  /** What may happen to x on the way: nothing ('float', the default), or quantisation per row to 'int8' or 'fp8', 'fp8_unpromoted' with shorter sums on GPUs. */
  readonly compute?: Compute | undefined
  /** Receives the result. Default: a new tensor. */
  readonly out?: Tensor | undefined
  /** f32, f16 or bf16: the dtype of the result. Default: that of `out`, else x's (f32 where x is quantised). */
  readonly dtype?: 'f32' | 'f16' | 'bf16' | undefined
}

/** Options of {@link linear} that give codes for the next GEMM. */
export interface LinearQuantOptions extends Omit<LinearOptions, 'out' | 'dtype'> {
  /** Re-quantise the result, per row or per block of 128 columns. Defaults: what `out` has, else 'i8' and 'row'. */
  readonly outQuant: RowQuantization
  /** Receives codes and scales. Default: new tensors. */
  readonly out?: QuantizedRows | undefined
}

/**
 * `act(x wᵀ + bias) + residual`, where w may have any {@link Format}. One call, one pass over w.
 *
 * @param x [M, K]: f32, f16 or bf16 with contiguous rows, or the codes and scales of {@link quantizeRows}.
 * @param w [N, K], from `device.load`.
 * @returns [M, N], or [M, N/2] for swiglu and geglu; with `outQuant` its codes and scales.
 * @throws LowbitError ERR_SHAPE and ERR_DTYPE, also where `out` is not what `dtype` or `outQuant` say; ERR_STRIDES, ERR_DEVICE, ERR_DISPOSED, ERR_MEMORY, ERR_ARGUMENT;
 *   LowbitTypeError.
 * @see csrc/linear/linear.h for the exact arithmetic; Dettmers et al., LLM.int8(), 2022, for quantised rows; Shazeer,
 *   GLU Variants Improve Transformer, 2020, for the gated activations.
 */
export function linear(x: Tensor | QuantizedRows, w: Weight, options?: LinearOptions): Tensor
export function linear(x: Tensor | QuantizedRows, w: Weight, options: LinearQuantOptions): QuantizedRows
export function linear(
  x: Tensor | QuantizedRows,
  w: Weight,
  options: LinearOptions | LinearQuantOptions = {},
): Tensor | QuantizedRows {
  const quantised = x instanceof QuantizedRows
  const { activation = 'none', compute = 'float' } = options
  let out: Tensor
  let scales: Tensor | undefined
  let dtype: number | undefined
  let block: boolean | undefined
  let result: Tensor | QuantizedRows
  if ('outQuant' in options && options.outQuant !== undefined) {
    const rows = QuantizedRows.outputOf(options.out, 'linear')
    ;({ dtype, block } = QuantizedRows.read(options.outQuant, 'linear: outQuant', options.out))
    out = rows.codes
    scales = rows.scales
    result = rows
  } else {
    const plain = options as LinearOptions
    out = outputOf(plain.out, 'linear')
    if (plain.dtype !== undefined) dtype = wordIndex(dtypes, plain.dtype, 'linear: dtype')
    result = out
  }
  native.linear(
    quantised ? x.codes : x,
    quantised ? x.scales : undefined,
    w,
    options.bias,
    options.residual,
    activation === 'none' ? 0 : wordIndex(activations, activation, 'linear: activation'),
    compute === 'float' ? 0 : wordIndex(computes, compute, 'linear: compute'),
    dtype,
    block,
    out,
    scales,
  )
  return result
}
