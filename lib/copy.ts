import { wordIndex } from './errors'
import { native } from './native'
import { outputOf, type Tensor } from './tensor'
import { type DType, dtypes } from './words'

/** Options of {@link copy}. */
export interface CopyOptions<D extends DType = DType> {
  /** Element type of the result. Default: that of `out`, or of x. */
  readonly dtype?: D | undefined
  /** Receives the elements: any view of x's shape, such as a slice of a cache. Default: a new contiguous tensor. */
  readonly out?: Tensor | undefined
}

/**
 * The elements of x in other memory: makes a view contiguous, fills a slice of a larger tensor, changes the float dtype.
 *
 * @param x any shape, dtype and strides.
 * @returns `out`, or a new contiguous tensor of x's shape. Floats (f32, f16, bf16, e4m3, e5m2) may become any other
 *   float dtype, rounded to nearest even; e4m3 and e5m2 saturate. Integers stay as they are.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE; ERR_ARGUMENT if `out` overlaps x without being x;
 *   LowbitTypeError.
 *
 * @example
 * ```ts
 * copy(k, { out: cache.slice(0, length, length + tokens) })  // append to a cache, casting to its dtype
 * const half = copy(weights, { dtype: 'bf16' })
 * ```
 */
export function copy<D extends DType = DType>(x: Tensor, options: CopyOptions<D> = {}): Tensor<D> {
  const { dtype } = options
  const out = outputOf(options.out, 'copy')
  native.copy(x, dtype === undefined ? undefined : wordIndex(dtypes, dtype, 'copy: dtype'), out)
  return out as Tensor<D>
}
