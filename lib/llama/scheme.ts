// Which numbers a model runs with: the format of its blocks' weights, what may happen to activations on the way, and
// the dtype between ops.

import { LowbitError } from '../errors'
import type { Compute, Format } from '../words'

/** How a Llama is run. */
export interface LlamaScheme {
  /** Format of the linear layers of the decoder blocks. */
  readonly format: Format
  /** Columns that share a scale: 32, 64 or 128, 'channel' for a whole row, 'tensor'. Default: the format's own. */
  readonly groupSize?: 32 | 64 | 128 | 'channel' | 'tensor' | undefined
  /** int4, int3, int2: no zero points. Default false. */
  readonly symmetric?: boolean | undefined
  /** int1: planes that add up to a weight. Default 1. */
  readonly planes?: number | undefined
  /** Search for scales by least squared error, as `clip` of `quantize` does. Default false. */
  readonly clip?: boolean | undefined
  /** 'int8' and 'fp8' let those layers round each row of their input. Default 'float'. */
  readonly compute?: Compute | undefined
  /** Dtype of activations and of the KV cache between ops. Default f32. */
  readonly activations?: 'f32' | 'bf16' | undefined
}

/** The schemes that `lowbit eval` compares, by the names under which expected.json files keep their perplexities. */
export const schemes = {
  f32: { format: 'f32' },
  bf16: { format: 'bf16', activations: 'bf16' },
  int8: { format: 'int8', groupSize: 'channel' },
  'int8-a8': { format: 'int8', groupSize: 'channel', compute: 'int8' },
  fp8_e4m3: { format: 'fp8_e4m3', groupSize: 'channel' },
  'int4-g32': { format: 'int4', groupSize: 32 },
  'int4-g64': { format: 'int4', groupSize: 64 },
  'int4-g128': { format: 'int4', groupSize: 128 },
  'int4-g64-a8': { format: 'int4', groupSize: 64, compute: 'int8' },
  'int3-g64': { format: 'int3', groupSize: 64 },
  'int2-g64': { format: 'int2', groupSize: 64 },
  ternary: { format: 'ternary', groupSize: 'channel' },
} as const satisfies Record<string, LlamaScheme>

/** Schemes that `lowbit eval` runs when they are named. No perplexities are recorded for them. */
const namedSchemes = {
  'nf4-g64': { format: 'nf4', groupSize: 64 },
  mxfp4: { format: 'mxfp4' },
  mxfp8: { format: 'mxfp8_e4m3' },
  nvfp4: { format: 'nvfp4' },
  'int1x2-g64': { format: 'int1', planes: 2, groupSize: 64, clip: true },
  'int1x3-g64': { format: 'int1', planes: 3, groupSize: 64, clip: true },
  'int1x4-g64': { format: 'int1', planes: 4, groupSize: 64, clip: true },
} as const satisfies Record<string, LlamaScheme>

const allSchemes = { ...schemes, ...namedSchemes }

/** A name of a scheme. */
export type SchemeName = keyof typeof allSchemes

/** All names that {@link schemeOf} knows: those of {@link schemes} first. */
export const schemeNames = Object.keys(allSchemes) as SchemeName[]

/** Whether {@link schemeOf} knows the name. */
export function isSchemeName(name: string): name is SchemeName {
  return Object.hasOwn(allSchemes, name)
}

/**
 * The scheme of a name.
 *
 * @throws LowbitError ERR_ARGUMENT listing the names there are
 */
export function schemeOf(name: string): LlamaScheme {
  if (isSchemeName(name)) return allSchemes[name]
  throw new LowbitError(
    'ERR_ARGUMENT',
    `expected a scheme out of ${schemeNames.join(', ')} but got '${name}'`,
  )
}

/** The names of all schemes for the usage of a command, in three lines. */
export function schemeList(indent: number): string {
  return schemeNames.join(', ').replace(/ (int4-g32|nf4-g64)/g, `\n${' '.repeat(indent)}$1`)
}
