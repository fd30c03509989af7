import { KvCache } from './cache'
import { kindOf, LowbitTypeError, wordIndex } from './errors'
import { native } from './native'
import { QuantizedRows } from './quantize-rows'
import { type IntList, intTensor, outputOf, Tensor, withInts } from './tensor'
import { type Score, scores } from './words'

/** How many keys to the left and to the right of its own position a query sees; -1 or left out: all. */
export type AttentionWindow =
  | readonly [left: number, right: number]
  | { readonly left?: number; readonly right?: number }

/** Options of {@link attention} that plain and paged keys share. */
export interface ScoreOptions {
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
  /**
   * f32 [heads or 1, tokens, keys], added to the scores: its rows are counted as q's tokens, its columns from the first key
   * of each sequence, which must have no more keys than there are columns. For batched q also [batch or 1, heads or 1,
   * seqQ, keys].
   */
  readonly bias?: Tensor | undefined
  /** Factor of q·k, finite. 0 and default: 1 / sqrt(headDim). */
  readonly softmaxScale?: number | undefined
  /** 'softmax' (default), or 'sigmoid': 1 / (1 + exp(-score)), not normalised (Ramapuram et al., 2024). */
  readonly score?: Score | undefined
  /**
   * i32 [batch + 1]: where the sequences of packed q begin and end; from 0, never falling, to tokens. Default: one. Here
   * and in the other lists of integers, an array is copied before the call returns; give a tensor where the same one
   * serves many calls.
   */
  readonly cuSeqlensQ?: IntList | undefined
  /** Receives the result: q's dtype (of e4m3: bf16 or f16) or f32, memory of its own. Default: a new tensor in it. */
  readonly out?: Tensor | undefined
  /** Also give the log of each softmax's denominator. Not with 'sigmoid'. Default false. */
  readonly returnLse?: boolean | undefined
}

/** Options of {@link attention} on tensors. */
export interface AttentionOptions extends ScoreOptions {
  /** i32 [batch + 1]: where the sequences of packed k and v begin and end. Default: cuSeqlensQ. */
  readonly cuSeqlensKv?: IntList | undefined
  /** i32 [batch]: how many positions of batched k and v are there. Default: all. */
  readonly kvLens?: IntList | undefined
}

/** Options of {@link attention} on a {@link KvCache}. */
export interface PagedAttentionOptions extends ScoreOptions {
  /**
   * i32 [batch, pages]: position j of a sequence is token j % pageSize of the page that stands at j / pageSize in its row.
   * A list of rows may have rows of any length.
   */
  readonly pageTable: Tensor | readonly (Int32Array | readonly number[])[]
  /** i32 [batch]: how many positions each sequence has in the cache, those of q among them. */
  readonly kvLens: IntList
  /**
   * i32 [batch]: the row of the cache's prefix region where a sequence has its first positions; -1: it has none there. The
   * slots of its pages that stand for these positions are not read.
   */
  readonly prefixRows?: IntList | undefined
  /** i32 [batch]: how many positions those are. Default: all tokens of a row. */
  readonly prefixLens?: IntList | undefined
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

/** Codes and their scales, or what has none. */
function partsOf<T>(x: T | QuantizedRows): readonly [T | Tensor, Tensor | undefined] {
  return x instanceof QuantizedRows ? [x.codes, x.scales] : [x, undefined]
}

/** A page table as a tensor: rows of lists are filled up with -1. */
function tableTensor(x: Tensor, table: readonly (Int32Array | readonly number[])[]): Tensor {
  const where = 'attention: pageTable'
  if (!Array.isArray(table) || !table.every((row) => row instanceof Int32Array || Array.isArray(row)))
    throw new LowbitTypeError(`${where}: expected a Tensor or a list of rows but got ${kindOf(table)}`)
  const width = table.reduce((most, row) => Math.max(most, row.length), 0)
  const rows = table.flatMap((row) => [...row, ...new Array<number>(width - row.length).fill(-1)])
  return intTensor(x, rows, where, [table.length, width])
}

/**
 * `softmax(softmaxScale * q kᵀ + masks) v`, tiled so that the scores are never stored (Dao, FlashAttention-2, 2023).
 * Scores are scaled, capped, given their ALiBi bias and their additive bias, and masked, in this order; sums are float32.
 *
 * q, k and v may be e4m3 codes, with scales as {@link QuantizedRows} of a token's head each: codes as q, k and v below and
 * scales f32 [tokens or 1, heads or 1], in the batched form [batch or 1, seq or 1, heads or 1]. Without scales they are 1.
 * On Hopper products are of e4m3 then, weights too, where k and v have one scale for all tokens and head dims of up to 128
 * that are multiples of 16; other rows compute in float32.
 *
 * @param q [tokens, heads, headDim] packed, several sequences with `cuSeqlensQ`; or [batch, seqQ, heads, headDim]. f32,
 *   f16, bf16 or e4m3. Here and in k and v the last dimension is contiguous, the others may have any stride.
 * @param k [tokens, kvHeads, headDim] or [batch, seqKv, kvHeads, headDim], in q's dtype; kvHeads divides heads (GQA, MQA).
 *   Or a {@link KvCache} of any format, which has the values too: then options come next, with `pageTable` and `kvLens`.
 * @param v like k, with a head dim of its own.
 * @returns like q (bf16 for e4m3, or any float that `out` has), with v's head dim. A query that sees no key gives zeros (lse: -inf, or the sink). NaN and inf reach
 *   the queries that see them, and no other.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE, ERR_ARGUMENT, ERR_DISPOSED, ERR_MEMORY;
 *   LowbitTypeError. The wait for the result rejects with ERR_ARGUMENT if cuSeqlens, kvLens, pageTable or prefixes hold
 *   numbers out of range.
 * @see csrc/attention/attention.h for the exact arithmetic.
 */
export function attention(
  q: Tensor | QuantizedRows,
  k: Tensor | QuantizedRows,
  v: Tensor | QuantizedRows,
  options: AttentionOptions & { returnLse: true },
): AttentionResult
export function attention(
  q: Tensor | QuantizedRows,
  k: Tensor | QuantizedRows,
  v: Tensor | QuantizedRows,
  options?: AttentionOptions,
): Tensor
export function attention(
  q: Tensor,
  kv: KvCache,
  options: PagedAttentionOptions & { returnLse: true },
): AttentionResult
export function attention(q: Tensor, kv: KvCache, options: PagedAttentionOptions): Tensor
export function attention(
  queries: Tensor | QuantizedRows,
  keys: Tensor | QuantizedRows | KvCache,
  third?: Tensor | QuantizedRows | PagedAttentionOptions,
  fourth?: AttentionOptions,
): Tensor | AttentionResult {
  const cache = keys instanceof KvCache ? keys : undefined
  const [q, qScales] = partsOf(queries)
  const [k, kScales] = partsOf(keys)
  const [v, vScales] = partsOf(cache === undefined ? (third as Tensor | QuantizedRows) : undefined)
  const options = ((cache === undefined ? fourth : third) ?? {}) as AttentionOptions &
    Partial<PagedAttentionOptions>
  const { score = 'softmax', returnLse = false, pageTable } = options
  const [left, right] = options.window === undefined ? [-1, -1] : limitsOf(options.window)
  const out = outputOf(options.out, 'attention')
  const lse = returnLse ? Tensor.shell() : undefined
  // Lists go where q is; if q is no tensor, the call says so.
  withInts(q, 'attention', (ints) => {
    const lists = q instanceof Tensor
    const made = cache === undefined || pageTable === undefined || pageTable instanceof Tensor || !lists
    const table = made ? undefined : tableTensor(q, pageTable)
    const list = (name: 'cuSeqlensQ' | 'cuSeqlensKv' | 'kvLens' | 'prefixRows' | 'prefixLens') =>
      lists ? ints(options[name], name) : undefined
    try {
      native.attention(
        q,
        k,
        v,
        list('cuSeqlensQ'),
        list('cuSeqlensKv'),
        list('kvLens'),
        options.alibiSlopes,
        options.sinks,
        options.bias,
        table ?? (pageTable as Tensor | undefined),
        list('prefixRows'),
        list('prefixLens'),
        options.softmaxScale ?? 0,
        options.softcap ?? 0,
        left,
        right,
        options.causal ?? false,
        wordIndex(scores, score, 'attention: score'),
        qScales,
        kScales,
        vScales,
        out,
        lse,
      )
    } finally {
      table?.dispose()
    }
  })
  return lse === undefined ? out : { out, lse }
}
