import { native } from './native'
import { outputOf, type Tensor } from './tensor'

/** Options of {@link softmax}. */
export interface SoftmaxOptions {
  /** Multiplies x first. Finite, of either sign; default 1. */
  readonly scale?: number | undefined
  /** Receives the result, in its own dtype; may be `x` itself. Default: a new tensor in x's dtype. */
  readonly out?: Tensor | undefined
}

/** Options of {@link argmax} and {@link crossEntropy}. */
export interface RowResultOptions<D extends 'i32' | 'f32'> {
  /** Receives the result. Default: a new tensor. */
  readonly out?: Tensor<D> | undefined
}

/**
 * `exp(scale * x) / sum(exp(scale * x))` over the last dimension.
 *
 * @param x `[..., classes]`; f32, f16 or bf16, contiguous last dimension, any other strides.
 * @returns the shape of x; computed in f32 and rounded once. A row that is -inf throughout gives zeros; a NaN or a +inf
 *   (after scaling) makes its row NaN.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE; ERR_ARGUMENT for scale, and if `out` overlaps x
 *   without being x; LowbitTypeError.
 */
export function softmax(x: Tensor, options: SoftmaxOptions = {}): Tensor {
  const out = outputOf(options.out, 'softmax')
  native.softmax(x, out, options.scale ?? 1)
  return out
}

/**
 * The index of the largest element of each row.
 *
 * @param x `[..., classes]` with at least one class; f32, f16 or bf16, contiguous last dimension, any other strides.
 * @returns i32 of the shape of x without its last dimension: the first of equal maxima. NaN counts as larger than any
 *   number, so the first NaN of a row wins.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE; ERR_ARGUMENT if `out` overlaps x; LowbitTypeError.
 */
export function argmax(x: Tensor, options: RowResultOptions<'i32'> = {}): Tensor<'i32'> {
  const out = outputOf(options.out, 'argmax')
  native.argmax(x, out)
  return out as Tensor<'i32'>
}

/**
 * The negative log likelihood of the targets: `log(sum(exp(logits))) - logits[target]` for each row, accurate in f32 for
 * any number of classes. The mean over a text is the logarithm of its perplexity.
 *
 * @param logits `[..., classes]` with at least one class; f32, f16 or bf16, contiguous last dimension.
 * @param targets i32 of the shape of logits without the last dimension, any strides.
 * @returns f32 of the shape of targets. NaN and inf spread as IEEE arithmetic has it.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE; ERR_ARGUMENT if `out` overlaps an input;
 *   LowbitTypeError. A target that is none of the classes is found when the op runs: reading the result then rejects
 *   with ERR_ARGUMENT.
 */
export function crossEntropy(
  logits: Tensor,
  targets: Tensor,
  options: RowResultOptions<'f32'> = {},
): Tensor<'f32'> {
  const out = outputOf(options.out, 'crossEntropy')
  native.crossEntropy(logits, targets, out)
  return out as Tensor<'f32'>
}
