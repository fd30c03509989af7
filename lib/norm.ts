import { native } from './native'
import { outputOf, type Tensor } from './tensor'

/** Options of {@link rmsNorm} and {@link layerNorm}. */
export interface NormOptions {
  /** Added to the mean square before the root. Finite, not negative; default 1e-5. */
  readonly eps?: number | undefined
  /** Added to x first; the shape of x. */
  readonly residual?: Tensor | undefined
  /**
   * Receives x + residual; may be `residual` or `x` itself. The norm is then that of the sum as rounded to this tensor's
   * dtype: the same numbers as {@link add} and a norm in turn, in one pass over memory.
   */
  readonly residualOut?: Tensor | undefined
  /** Receives the result; may be `x` or `residual` itself. Default: a new tensor in x's dtype. */
  readonly out?: Tensor | undefined
}

/**
 * `u / sqrt(mean(u²) + eps) * weight` over the last dimension, with `u = x + residual`
 * (Zhang and Sennrich, Root Mean Square Layer Normalization, 2019).
 *
 * @param x `[..., D]`; f32, f16 or bf16, contiguous last dimension, any other strides.
 * @param weight `[D]` in any of these dtypes, or undefined for 1.
 * @returns `[..., D]`. Sums are taken in f32 or better and the result is rounded once. A NaN makes its row NaN.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE; ERR_ARGUMENT for eps, and if an output overlaps
 *   another tensor without being it; LowbitTypeError.
 *
 * @example
 * ```ts
 * // The step between two layers of a decoder: h += delta, then x = norm(h).
 * const x = rmsNorm(delta, weight, { eps: 1e-5, residual: h, residualOut: h })
 * ```
 */
export function rmsNorm(x: Tensor, weight: Tensor | undefined, options: NormOptions = {}): Tensor {
  const { eps = 1e-5, residual, residualOut } = options
  const out = outputOf(options.out, 'rmsNorm')
  native.rmsNorm(x, weight, residual, out, residualOut, eps)
  return out
}

/**
 * `(u - mean(u)) / sqrt(variance(u) + eps) * weight + bias` over the last dimension, with `u = x + residual` and the
 * variance of the population (Ba, Kiros and Hinton, Layer Normalization, 2016).
 *
 * @param x `[..., D]`; f32, f16 or bf16, contiguous last dimension, any other strides.
 * @param weight `[D]` in any of these dtypes, or undefined for 1.
 * @param bias `[D]` in any of these dtypes, or undefined for 0.
 * @returns `[..., D]`. Sums are taken in f32 or better and the result is rounded once. A NaN or an inf makes its row NaN.
 * @throws as {@link rmsNorm}.
 */
export function layerNorm(
  x: Tensor,
  weight: Tensor | undefined,
  bias?: Tensor,
  options: NormOptions = {},
): Tensor {
  const { eps = 1e-5, residual, residualOut } = options
  const out = outputOf(options.out, 'layerNorm')
  native.layerNorm(x, weight, bias, residual, out, residualOut, eps)
  return out
}
