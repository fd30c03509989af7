import { wordIndex } from './errors'
import { native } from './native'
import { outputOf, type Tensor } from './tensor'

/** Which columns form a pair, in the order of the native list. */
export const pairings = ['half', 'interleaved'] as const
/** `half` turns columns i and i + rotaryDim / 2 together, `interleaved` columns 2i and 2i + 1. */
export type Pairing = (typeof pairings)[number]

/** Options of {@link rope}. */
export interface RopeOptions {
  /** f32 `[positions, rotaryDim / 2]`: cosines of the angles, any scaling included. */
  readonly cos: Tensor
  /** f32, the shape of `cos`: sines of the angles. */
  readonly sin: Tensor
  /**
   * Where the tokens stand: an i32 tensor `[tokens]` (for 4-D x `[seq]` or `[batch, seq]`), or the position of the first
   * token, from which the others count up. Default 0.
   */
  readonly positions?: Tensor | number | undefined
  /**
   * `half` is what Llama, Mistral and Qwen checkpoints in Hugging Face form need; `interleaved` is GPT-J's and that of
   * Llama's own files. Default 'half'.
   */
  readonly pairing?: Pairing | undefined
  /** Receives the result; may be `x` itself. Default: a new tensor in x's dtype. */
  readonly out?: Tensor | undefined
}

/**
 * Rotary position embedding (Su et al., RoFormer, 2021): turns each pair of columns of every head by the angle that the
 * tables hold for the token's position. With rotaryDim < headDim the columns from rotaryDim on are copied.
 *
 * @param x `[tokens, heads, headDim]` or `[batch, seq, heads, headDim]`; f32, f16 or bf16, contiguous last dimension.
 * @returns the shape of x. Computed in f32 and rounded once.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE; ERR_ARGUMENT if a number in `positions` leaves the
 *   tables or `out` overlaps x without being x; LowbitTypeError. A position out of range in a tensor is found when the
 *   op runs: reading the result then rejects with ERR_ARGUMENT.
 */
export function rope(x: Tensor, options: RopeOptions): Tensor {
  const { cos, sin, positions = 0, pairing = 'half' } = options
  const number = typeof positions === 'number'
  const out = outputOf(options.out, 'rope')
  native.rope(
    x,
    cos,
    sin,
    number ? undefined : positions,
    number ? positions : 0,
    wordIndex(pairings, pairing, 'rope: pairing'),
    out,
  )
  return out
}
