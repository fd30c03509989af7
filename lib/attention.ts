import { kindOf, LowbitTypeError, wordIndex } from './errors'
import { native } from './native'
import { type IntList, intTensor, outputOf, Tensor } from './tensor'
import { type Score, scores } from './words'

/** How many keys to the left and to the right of its own position a query sees; -1 or left out: all. */
export type AttentionWindow =
  | readonly [left: number, right: number]
  | { readonly left?: number; readonly right?: number }

/** Options of {@link attention}. */
export interface AttentionOptions {
  /** Query i stands at position i + (seqKv - seqQ), so that the last query has the last key, and sees no later key. */
  readonly causal?: boolean | undefined
  /** How far a query sees from its own position. Default: without limit. */
  readonly window?: AttentionWindow | undefined
  /** Scores become softcap * tanh(score / softcap); 0: they don't. Default 0. */
  readonly softcap?: number | undefined
  /** f32 [heads]: slope * (key position - query position) is added to the scores (Press et al., ALiBi, 2022). */
  readonly alibiSlopes?: Tensor | undefined
  /** f32 [heads]: exp(sink) is added to each softmax's denominator. Not with 'sigmoid'. */
  readonly sinks?: Tensor | undefined
  /** Factor of q·k, finite. 0 and default: 1 / sqrt(headDim). */
  readonly softmaxScale?: number | undefined
  /** 'softmax' (default), or 'sigmoid': 1 / (1 + exp(-score)), not normalised (Ramapuram et al., 2024). */
  readonly score?: Score | undefined
  /**
   * i32 [batch + 1]: where the sequences of packed q begin and end; from 0, never falling, to tokens. Default: one. Here
   * and in the two below, a list is copied before the call returns; give a tensor where the same one serves many calls.
   */
  readonly cuSeqlensQ?: IntList | undefined
  /** The same for packed k and v. Default: cuSeqlensQ. */
  readonly cuSeqlensKv?: IntList | undefined
  /** i32 [batch]: how many positions of batched k and v are there. Default: all. */
  readonly kvLens?: IntList | undefined
  /** Receives the result: q's dtype or f32, memory of its own. Default: a new tensor in q's dtype. */
  readonly out?: Tensor | undefined
  /** Also give the log of each softmax's denominator. Not with 'sigmoid'. Default false. */
  readonly returnLse?: boolean | undefined
}

/** What {@link attention} gives with `returnLse`. */
export interface AttentionResult {
  /** What {@link attention} gives without `returnLse`. */
  readonly out: Tensor
  /** f32 [heads, tokens] (packed) or [batch, heads, seqQ]. */
  readonly lse: Tensor
}

function limitsOf(window: AttentionWindow): readonly [number, number] {
  if (Array.isArray(window)) return window as unknown as readonly [number, number]
  if (typeof window !== 'object' || window === null)
    throw new LowbitTypeError(
      `attention: expected window to be [left, right] or { left, right } but got ${kindOf(window)}`,
    )
  const { left = -1, right = -1 } = window as { left?: number; right?: number }
  return [left, right]
}

/**
 * `softmax(softmaxScale * q kᵀ + masks) v`, tiled so that the scores are never stored (Dao, FlashAttention-2, 2023).
 * Scores are scaled, capped, given their ALiBi bias and masked, in this order; sums are float32.
 *
 * @param q [tokens, heads, headDim] packed, several sequences with `cuSeqlensQ`; or [batch, seqQ, heads, headDim]. f32,
 *   f16 or bf16. Here and in k and v the last dimension is contiguous, the others may have any stride.
 * @param k [tokens, kvHeads, headDim] or [batch, seqKv, kvHeads, headDim], in q's dtype; kvHeads divides heads (GQA, MQA).
 * @param v like k, with a head dim of its own.
 * @returns like q, with v's head dim. A query that sees no key gives zeros (lse: -inf, or the sink). NaN and inf reach
 *   the queries that see them, and no other.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE, ERR_ARGUMENT, ERR_DISPOSED, ERR_MEMORY;
 *   LowbitTypeError. The wait for the result rejects with ERR_ARGUMENT if cuSeqlens or kvLens hold numbers out of range.
 * @see csrc/attention/attention.h for the exact arithmetic.
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions & { returnLse: true },
): AttentionResult
export function attention(q: Tensor, k: Tensor, v: Tensor, options?: AttentionOptions): Tensor
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): Tensor | AttentionResult {
  const { score = 'softmax', returnLse = false } = options
  const [left, right] = options.window === undefined ? [-1, -1] : limitsOf(options.window)
  const out = outputOf(options.out, 'attention')
  const lse = returnLse ? Tensor.shell() : undefined
  const made: Tensor[] = []
  const ints = (list: IntList | undefined, name: string): Tensor | undefined => {
    if (list === undefined || list instanceof Tensor || !(q instanceof Tensor))
      return list as Tensor | undefined
    const tensor = intTensor(q, list, `attention: ${name}`)
    made.push(tensor)
    return tensor
  }
  try {
    native.attention(
      q,
      k,
      v,
      ints(options.cuSeqlensQ, 'cuSeqlensQ'),
      ints(options.cuSeqlensKv, 'cuSeqlensKv'),
      ints(options.kvLens, 'kvLens'),
      options.alibiSlopes,
      options.sinks,
      options.softmaxScale ?? 0,
      options.softcap ?? 0,
      left,
      right,
      options.causal ?? false,
      wordIndex(scores, score, 'attention: score'),
      out,
      lse,
    )
  } finally {
    // The queued op holds their memory until it has run.
    for (const tensor of made) tensor.dispose()
  }
  return lse === undefined ? out : { out, lse }
}
