import { wordIndex } from './errors'
import { native } from './native'
import { outputOf, Tensor } from './tensor'
import { type Score, scores } from './words'

/** Options of {@link attention}. */
export interface AttentionOptions {
  /** Query i sees keys up to i + (seqKv - seqQ). Default false. */
  readonly causal?: boolean
  /** How many keys to the left and right of its own position a query sees; -1: all. Default [-1, -1]. */
  readonly window?: readonly [left: number, right: number]
  /** Scores become softcap * tanh(score / softcap); 0: they don't. Default 0. */
  readonly softcap?: number
  /** f32 [heads]: slope * (key position - query position) is added to the scores (Press et al., ALiBi, 2022). */
  readonly alibiSlopes?: Tensor
  /** f32 [heads]: exp(sink) is added to each softmax's denominator. */
  readonly sinks?: Tensor
  /** Factor of q·k. Default 1 / sqrt(headDim). */
  readonly softmaxScale?: number
  /** 'softmax' (default), or 'sigmoid' (Ramapuram et al., 2024). */
  readonly score?: Score
  /** i32 [batch + 1]: where the sequences of packed q begin and end. */
  readonly cuSeqlensQ?: Tensor
  /** The same for packed k and v. Default: cuSeqlensQ. */
  readonly cuSeqlensKv?: Tensor
  /** i32 [batch]: how many positions of batched k and v are there. Default: all. */
  readonly kvLens?: Tensor
  /** Receives the result, in its own dtype. Default: a new tensor in q's dtype. */
  readonly out?: Tensor
  /** Also give the log of each softmax's denominator. Default false. */
  readonly returnLse?: boolean
}

/** What {@link attention} gives with `returnLse`. */
export interface AttentionResult {
  readonly out: Tensor
  /** f32 [heads, tokens] (packed) or [batch, heads, seqQ]. */
  readonly lse: Tensor
}

/**
 * `softmax(softmaxScale * q kᵀ + masks) v`, tiled so that the scores are never stored (Dao, FlashAttention-2, 2023).
 *
 * @param q [tokens, heads, headDim] packed, with `cuSeqlensQ`; or [batch, seqQ, heads, headDim]. f32, f16 or bf16.
 * @param k [tokens, kvHeads, headDim] or [batch, seqKv, kvHeads, headDim]; kvHeads divides heads (GQA, MQA).
 * @param v like k, with a head dim of its own.
 * @returns like q, with v's head dim. A query that sees no key gives zeros (lse: -inf).
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE, ERR_ARGUMENT, ERR_MEMORY; LowbitTypeError. The wait
 *   for the result rejects with ERR_ARGUMENT if cuSeqlens or kvLens hold numbers out of range.
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
  const { window = [-1, -1], score = 'softmax', returnLse = false } = options
  const out = outputOf(options.out, 'attention')
  const lse = returnLse ? Tensor.shell() : undefined
  native.attention(
    q,
    k,
    v,
    options.cuSeqlensQ,
    options.cuSeqlensKv,
    options.kvLens,
    options.alibiSlopes,
    options.sinks,
    options.softmaxScale ?? 0,
    options.softcap ?? 0,
    window[0],
    window[1],
    options.causal ?? false,
    wordIndex(scores, score, 'attention: score'),
    out,
    lse,
  )
  return lse === undefined ? out : { out, lse }
}
