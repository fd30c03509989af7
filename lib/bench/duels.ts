/** What is timed against rivals: which calls are the same work, and how many times as fast ours shall be. */
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
  /** Another configuration of our own. */
  | { readonly peer: 'own'; readonly config: LinearConfig }

/** Rivals of which the best counts, and the least ratio to it: their time over ours. */
export interface Field {
  readonly rivals: readonly Rival[]
  /** With one thread. */
  readonly bar?: number
  /** With all threads; none if absent. */
  readonly barAll?: number
}

/** A number of rows of x, who is there, and the least part of the bound that ours shall reach, in percent. */
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

const int4Rivals = [ggml('q4_0'), ggml('q4_K'), nbits(4, 32, 4)]
const w4a8: LinearConfig = { format: 'int4', groupSize: 32, compute: 'int8', x: 'f32' }

/** By name. */
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
  'w4a8-avx2': {
    config: w4a8,
    arch: 'avx2',
    ms: [
      { m: 1, fields: [{ rivals: int4Rivals, bar: 1 }] },
      { m: 64, fields: [{ rivals: int4Rivals, bar: 1.5 }] },
    ],
  },
  w4a16: {
    config: { format: 'int4', groupSize: 32, compute: 'float', x: 'bf16' },
    ms: [
      { m: 1, fields: [{ rivals: [nbits(4, 32, 0)], bar: 2 }] },
      { m: 64, fields: [{ rivals: [nbits(4, 32, 0)], bar: 1.6 }] },
    ],
  },
}
