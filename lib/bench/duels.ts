/** What is timed against rivals: which calls are the same work, and how many times as fast ours shall be. */
import type { KvFormat } from '../words'
import type { LinearConfig } from './cases'

/** A call of a rival that does the work of one of ours. */
export type Rival =
  | {
      /** The module of bench/peers that serves it. */
      readonly peer: 'ggml' | 'ort' | 'dnnl'
      /** What that module calls it. */
      readonly kind: string
      /** What else it is told. */
      readonly [property: string]: string | number | boolean
    }
  /** Another configuration of our own: of linear, or of the cache of an attention of this shape. */
  | { readonly peer: 'own'; readonly config?: LinearConfig; readonly kv?: KvFormat }

/** Rivals of which the best counts, and the least ratio to it: their time over ours. */
export interface Field {
  readonly rivals: readonly Rival[]
  /** With one thread. */
  readonly bar?: number
  /** With all threads; none if absent. */
  readonly barAll?: number
}

/** A number of rows of x, who is there, and the least part of the bound that ours shall reach with one thread, in percent. */
export interface DuelM {
  readonly m: number
  readonly fields: readonly Field[]
  readonly percentBar?: number
}

/** One configuration of ours against rivals. */
export interface Duel {
  readonly config: LinearConfig
  /** Caps our instruction sets, not those of the rivals. */
  readonly arch?: string
  readonly ms: readonly DuelM[]
}

const ggml = (kind: string, more = {}): Rival => ({ peer: 'ggml', kind, ...more })
const nbits = (bits: number, group: number, accuracy: number): Rival => ({
  ...{ peer: 'ort', kind: 'nbits', bits, group, accuracy },
  label: `ORT MatMulNBits ${bits} g${group} level ${accuracy}`,
})

const ort = (kind: string, label: string): Rival => ({ peer: 'ort', kind, label })
const oneDnn = (kind: string): Rival => ({ peer: 'dnnl', kind })

const int4Rivals = [ggml('q4_0'), ggml('q4_K'), nbits(4, 32, 4)]
const w4a8: LinearConfig = { format: 'int4', groupSize: 32, compute: 'int8', x: 'f32' }
const bf16: LinearConfig = { format: 'bf16', compute: 'float', x: 'bf16' }
const int2: LinearConfig = { format: 'int2', groupSize: 64, compute: 'int8', x: 'f32' }
const int2Rivals = [ggml('q2_K'), nbits(2, 64, 4)]
const ternaryRivals = [ggml('tq2_0', { ternary: true }), ggml('tq1_0', { ternary: true })]
const integers = ort('matMulInteger', 'ORT MatMulInteger')
const dynamic = ort('dynamicQuantizeMatMul', 'ORT DynamicQuantizeMatMul')
const oneDnnInt8 = [oneDnn('s8s8s32'), oneDnn('u8s8s32')]

/** By name. The bars are those of the plan for a 2-core Zen 4 with AVX-512; none stands where a case only informs. */
export const duels: Readonly<Record<string, Duel>> = {
  w4a8: {
    config: w4a8,
    ms: [
      { m: 1, fields: [{ rivals: int4Rivals, bar: 1.2, barAll: 1.1 }], percentBar: 80 },
      { m: 4, fields: [{ rivals: int4Rivals, bar: 2.4 }] },
      { m: 8, fields: [{ rivals: int4Rivals, bar: 2.4 }] },
      { m: 64, fields: [{ rivals: int4Rivals, bar: 2.4 }], percentBar: 70 },
      { m: 512, fields: [{ rivals: int4Rivals, bar: 2.4 }], percentBar: 70 },
    ],
  },
  w4a16: {
    config: { format: 'int4', groupSize: 32, compute: 'float', x: 'bf16' },
    ms: [
      { m: 1, fields: [{ rivals: [nbits(4, 32, 0)], bar: 2 }] },
      { m: 64, fields: [{ rivals: [nbits(4, 32, 0)], bar: 1.6 }] },
    ],
  },
  // x in codes, as the integer operators have it; the results of the rivals have no scales yet, ours do.
  int8: {
    config: { format: 'int8', groupSize: 'channel', compute: 'int8', x: 'f32', quantised: true },
    ms: [
      { m: 1, fields: [{ rivals: [integers, ...oneDnnInt8], bar: 1.15 }] },
      {
        m: 8,
        fields: [{ rivals: [integers], bar: 1.4 }, { rivals: oneDnnInt8 }],
      },
      {
        m: 64,
        fields: [
          { rivals: [integers], bar: 1.1 },
          { rivals: oneDnnInt8, bar: 0.95 },
        ],
      },
      {
        m: 512,
        fields: [
          { rivals: [integers], bar: 1.1 },
          { rivals: oneDnnInt8, bar: 0.95 },
        ],
      },
    ],
  },
  // x in f32, quantised on the way.
  'int8-dynamic': {
    config: { format: 'int8', groupSize: 'channel', compute: 'int8', x: 'f32' },
    ms: [
      { m: 1, fields: [{ rivals: [dynamic], bar: 1.15 }] },
      { m: 8, fields: [{ rivals: [dynamic], bar: 1.4 }] },
      { m: 64, fields: [{ rivals: [dynamic], bar: 1.1 }] },
      { m: 512, fields: [{ rivals: [dynamic], bar: 1.1 }] },
    ],
  },
  bf16: {
    config: bf16,
    ms: [
      { m: 1, fields: [{ rivals: [oneDnn('bf16'), ggml('bf16')] }] },
      { m: 64, fields: [{ rivals: [oneDnn('bf16')], bar: 0.95 }] },
      { m: 512, fields: [{ rivals: [oneDnn('bf16')], bar: 0.95 }] },
    ],
  },
  fp8: {
    config: { format: 'fp8_e4m3', groupSize: 'channel', compute: 'float', x: 'bf16' },
    ms: [{ m: 1, fields: [{ rivals: [{ peer: 'own', config: bf16 }], bar: 1.7 }] }],
  },
  int2: {
    config: int2,
    ms: [
      { m: 1, fields: [{ rivals: int2Rivals, bar: 1.3 }] },
      { m: 8, fields: [{ rivals: int2Rivals, bar: 2 }] },
    ],
  },
  ternary: {
    config: { format: 'ternary', groupSize: 'channel', compute: 'int8', x: 'f32' },
    ms: [
      { m: 1, fields: [{ rivals: ternaryRivals, bar: 1.6 }] },
      { m: 8, fields: [{ rivals: ternaryRivals, bar: 4 }] },
      { m: 64, fields: [{ rivals: ternaryRivals, bar: 3 }] },
    ],
  },
  // At most 0.65 of the time of 2 bits.
  int1: {
    config: { format: 'int1', groupSize: 64, compute: 'int8', x: 'f32' },
    ms: [{ m: 1, fields: [{ rivals: [{ peer: 'own', config: int2 }], bar: 1 / 0.65 }] }],
  },
  'w4a8-avx2': {
    config: w4a8,
    arch: 'avx2',
    ms: [
      { m: 1, fields: [{ rivals: int4Rivals, bar: 1 }] },
      { m: 64, fields: [{ rivals: int4Rivals, bar: 1.5 }] },
    ],
  },
}

/** A shape of attention against rivals. */
export interface AttentionDuel {
  readonly fields: readonly Field[]
  readonly percentBar?: number
}

const grouped = ort('groupQueryAttention', 'ORT GroupQueryAttention f32')
const multiHead = ort('multiHeadAttention', 'ORT MultiHeadAttention f32')
const prefillRivals = [ggml('f16'), grouped, multiHead]
const decodeRivals = [ggml('f16'), ggml('bf16'), grouped]
const prefill: AttentionDuel = { fields: [{ rivals: prefillRivals, bar: 2.5, barAll: 2.5 }] }
const decode: AttentionDuel = { fields: [{ rivals: decodeRivals, bar: 3, barAll: 2.5 }] }

const ownBf16: Rival = { peer: 'own', kv: 'bf16' }
const pagedBf16: AttentionDuel = { fields: [{ rivals: decodeRivals, bar: 3, barAll: 2.5 }], percentBar: 70 }
const pagedInt8: AttentionDuel = {
  fields: [
    { rivals: [ggml('q8_0')], bar: 5, barAll: 5 },
    { rivals: [ownBf16], bar: 1.6, barAll: 1.6 },
  ],
}
const pagedInt4: AttentionDuel = {
  fields: [
    { rivals: [ggml('q4_0', { error: 0.1 })], bar: 5, barAll: 5 },
    { rivals: [ownBf16], bar: 2.4, barAll: 2.4 },
  ],
}

/** By the name of a shape in cases.ts; q of ours in bf16, k and v too unless a cache has them, of rivals in what they have. */
export const attentionDuels: Readonly<Record<string, AttentionDuel>> = {
  'decode-64-2k': decode,
  'decode-64-8k': { ...decode, percentBar: 70 },
  'decode-128-2k': decode,
  'decode-128-8k': { ...decode, percentBar: 70 },
  'paged-64-8k-bf16': pagedBf16,
  'paged-64-8k-int8': pagedInt8,
  'paged-64-8k-int4': pagedInt4,
  'paged-128-8k-bf16': pagedBf16,
  'paged-128-8k-int8': pagedInt8,
  'paged-128-8k-int4': pagedInt4,
  'prefill-64-512': prefill,
  'prefill-64-2k': prefill,
  'prefill-128-512': prefill,
  'prefill-128-2k': { ...prefill, percentBar: 65 },
}
