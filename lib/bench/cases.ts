/** What is timed: the shapes that models of 7 to 9 billion parameters have, in one list. */
import type { FloatDType, GroupSize } from '../quantize'
import type { Compute, Format, KvFormat, ZeroPoint } from '../words'

/** [N, K] of the matrices of a Llama-3-8B or Mistral-7B layer, and a square one. */
export const linearShapes: Readonly<Record<string, readonly [number, number]>> = {
  qkv: [6144, 4096],
  o: [4096, 4096],
  gate_up: [28672, 4096],
  down: [4096, 14336],
  square: [8192, 8192],
}
/** Those that a bench without arguments takes: the smallest and the longest K. */
export const defaultLinearShapes = ['o', 'down'] as const
/** Rows of x: one token, a small batch, a prefill. */
export const defaultM = [1, 8, 64] as const

/** What becomes of the numbers in a `linear`. */
export interface LinearConfig {
  readonly format: Format
  readonly groupSize?: GroupSize
  /** Default: 'none', symmetric. */
  readonly zeros?: ZeroPoint
  readonly compute: Compute
  /** The dtype of x and of the output. */
  readonly x: FloatDType
  /** x comes as codes of 8 bits with a scale for each row, of which `x` was made before. */
  readonly quantised?: boolean
}

/** Those that a bench without arguments takes. */
export const defaultConfigs: readonly LinearConfig[] = [
  { format: 'bf16', compute: 'float', x: 'bf16' },
  { format: 'int8', groupSize: 'channel', compute: 'float', x: 'f32' },
  { format: 'int8', groupSize: 'channel', compute: 'int8', x: 'f32' },
  { format: 'int4', groupSize: 32, compute: 'float', x: 'f32' },
  { format: 'int4', groupSize: 32, compute: 'int8', x: 'f32' },
  { format: 'int4', groupSize: 128, compute: 'int8', x: 'f32' },
]

/** Sizes of an attention; heads and kvHeads are 32 and 8, as in the models above, where they are not given. */
export interface AttentionShape {
  readonly seqQ: number
  readonly seqKv: number
  readonly headDim: number
  readonly heads?: number
  readonly kvHeads?: number
  /** Keys and values lie in the pages of a cache of this format. */
  readonly kv?: KvFormat
}

/** Decode: one token against keys and values; paged: against those of a cache's pages. Prefill: causal, from nothing or behind a cache. */
export const attentionShapes: Readonly<Record<string, AttentionShape>> = {
  'decode-64-2k': { seqQ: 1, seqKv: 2048, headDim: 64 },
  'decode-64-8k': { seqQ: 1, seqKv: 8192, headDim: 64 },
  'decode-128-2k': { seqQ: 1, seqKv: 2048, headDim: 128 },
  'decode-128-8k': { seqQ: 1, seqKv: 8192, headDim: 128 },
  'paged-64-8k-bf16': { seqQ: 1, seqKv: 8192, headDim: 64, kv: 'bf16' },
  'paged-64-8k-int8': { seqQ: 1, seqKv: 8192, headDim: 64, kv: 'int8' },
  'paged-64-8k-int4': { seqQ: 1, seqKv: 8192, headDim: 64, kv: 'int4' },
  'paged-128-8k-bf16': { seqQ: 1, seqKv: 8192, headDim: 128, kv: 'bf16' },
  'paged-128-8k-int8': { seqQ: 1, seqKv: 8192, headDim: 128, kv: 'int8' },
  'paged-128-8k-int4': { seqQ: 1, seqKv: 8192, headDim: 128, kv: 'int4' },
  'prefill-64-512': { seqQ: 512, seqKv: 512, headDim: 64 },
  'prefill-64-2k': { seqQ: 2048, seqKv: 2048, headDim: 64 },
  'prefill-128-512': { seqQ: 512, seqKv: 512, headDim: 128 },
  'prefill-128-2k': { seqQ: 2048, seqKv: 2048, headDim: 128 },
  'prefill-128-512-on-8k': { seqQ: 512, seqKv: 8704, headDim: 128 },
}
/** Those that a bench without arguments takes. */
export const defaultAttentionShapes = [
  'decode-64-2k',
  'decode-128-8k',
  'prefill-64-512',
  'prefill-128-512',
  'prefill-128-2k',
] as const

/** Columns of the row ops: the width of the models above. */
export const rowColumns = 4096
/** Bytes of x of a row op: more than most last caches hold. */
export const rowBytes = 32 << 20

/** Buffers that a case rotates over add up to more than this, so that each launch finds them in no cache. */
export const coldBytes = 320 << 20
/** At most so many of them: what is smaller than a cache by far is for tests, not for figures. */
export const mostCopies = 128
/** Up to so many rows of x a weight is read once a launch, and must come from memory as it does in a model. */
export const coldM = 64
