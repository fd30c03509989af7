import { native } from './native'
import { outputOf, type Tensor } from './tensor'

/** Options of {@link embedding}. */
export interface EmbeddingOptions {
  /** Receives the result; any float dtype. Default: a new tensor in the table's dtype. */
  readonly out?: Tensor | undefined
}

/**
 * Rows of a table by number: `out[..., :] = table[ids[...], :]`.
 *
 * @param table `[rows, D]`; f32, f16 or bf16, contiguous last dimension, any stride between rows (a view is fine).
 * @param ids i32, up to 4 dimensions, any strides.
 * @returns `[...ids, D]`.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE; ERR_ARGUMENT if `out` overlaps an input;
 *   LowbitTypeError. An id outside of the table is found when the op runs: reading the result then rejects with
 *   ERR_ARGUMENT, as in "embedding: ids[3] = 70000 is outside the table of 2048 rows".
 */
export function embedding(table: Tensor, ids: Tensor, options: EmbeddingOptions = {}): Tensor {
  const out = outputOf(options.out, 'embedding')
  native.embedding(table, ids, out)
  return out
}
