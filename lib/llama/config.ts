// config.json of a Llama-family checkpoint, as Hugging Face writes it: old files have rope_theta and rope_scaling side
// by side, newer ones put both into rope_parameters. Everything the decoder relies on is checked here, once.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { LowbitError } from '../errors'

/** How positions turn into angles. `factor` and the rest are as config.json names them. */
export type RopeScaling =
  | { readonly type: 'default' }
  /** All frequencies divided by `factor`. Chen et al., Position Interpolation, 2023. */
  | { readonly type: 'linear'; readonly factor: number }
  /** Long wavelengths divided by `factor`, short ones kept, a ramp between. Llama 3.1, 2024. */
  | {
      readonly type: 'llama3'
      readonly factor: number
      readonly lowFreqFactor: number
      readonly highFreqFactor: number
      readonly originalPositions: number
    }
  /** A ramp between interpolation and none over the dimensions, and a factor on q and k. Peng et al., YaRN, 2023. */
  | {
      readonly type: 'yarn'
      readonly factor: number
      readonly attentionFactor: number
      readonly betaFast: number
      readonly betaSlow: number
      readonly truncate: boolean
      readonly originalPositions: number
    }

/** The numbers of a Llama-family decoder. */
export interface LlamaConfig {
  /** Rows of the embedding table. */
  readonly vocabSize: number
  /** Width of a token between the layers. */
  readonly hiddenSize: number
  /** Width between up and down. */
  readonly intermediateSize: number
  /** Layers of attention and MLP. */
  readonly layers: number
  /** Query heads. */
  readonly heads: number
  /** Divides `heads`. */
  readonly kvHeads: number
  /** Even. */
  readonly headDim: number
  /** Added to the mean square under the root of every norm. */
  readonly normEps: number
  /** The positions that the model was trained for: the longest context a session takes by default. */
  readonly maxPositions: number
  /** Base of the rotary angles. */
  readonly ropeTheta: number
  /** How the rotary angles are stretched for longer contexts. */
  readonly ropeScaling: RopeScaling
  /** The head is the embedding table. */
  readonly tiedHead: boolean
  /** Whether q, k, v and o have biases. */
  readonly attentionBias: boolean
  /** Whether gate, up and down have biases. */
  readonly mlpBias: boolean
  /** Put before a prompt where the tokenizer doesn't do so itself; undefined where the file has none. */
  readonly bosToken: number | undefined
  /** Generation ends at any of these. */
  readonly eosTokens: readonly number[]
}

type Json = null | boolean | number | string | Json[] | { [key: string]: Json }

// Reads named fields of one JSON object and says what is wrong with them.
class Fields {
  constructor(
    private readonly file: string,
    private readonly prefix: string,
    private readonly object: { [key: string]: Json },
  ) {}

  fail(name: string, expected: string): never {
    const shown = JSON.stringify(this.value(name)) ?? 'nothing'
    throw new LowbitError(
      'ERR_FILE',
      `${this.file}: expected ${this.prefix}${name} to be ${expected} but got ${shown.slice(0, 80)}`,
    )
  }
  value(name: string): Json | undefined {
    return Object.hasOwn(this.object, name) ? (this.object[name] ?? undefined) : undefined
  }
  integer(name: string, fallback?: number): number {
    const value = this.value(name) ?? fallback
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1)
      this.fail(name, 'a positive integer')
    return value
  }
  positive(name: string, fallback?: number): number {
    const value = this.value(name) ?? fallback
    if (typeof value !== 'number' || !Number.isFinite(value) || value <= 0)
      this.fail(name, 'a positive number')
    return value
  }
  flag(name: string, fallback: boolean): boolean {
    const value = this.value(name) ?? fallback
    if (typeof value !== 'boolean') this.fail(name, 'true or false')
    return value
  }
  tokens(name: string, vocab: number): number[] {
    const value = this.value(name)
    const list = value === undefined ? [] : Array.isArray(value) ? value : [value]
    return list.map((token) => {
      if (typeof token !== 'number' || !Number.isSafeInteger(token) || token < 0 || token >= vocab) {
        this.fail(name, `token ids below ${vocab}`)
      }
      return token
    })
  }
  sub(name: string): Fields | undefined {
    const value = this.value(name)
    if (value === undefined) return undefined
    if (typeof value !== 'object' || value === null || Array.isArray(value)) this.fail(name, 'an object')
    return new Fields(this.file, `${this.prefix}${name}.`, value)
  }
}

// get_mscale of the YaRN authors' code: how much sharper attention gets with the stretch.
function yarnScale(factor: number, weight: number): number {
  return factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1
}

function readRope(config: Fields, maxPositions: number): { ropeTheta: number; ropeScaling: RopeScaling } {
  const fields = config.sub('rope_parameters') ?? config.sub('rope_scaling')
  const ropeTheta =
    fields?.value('rope_theta') === undefined
      ? config.positive('rope_theta', 10000)
      : fields.positive('rope_theta')
  if (fields === undefined) return { ropeTheta, ropeScaling: { type: 'default' } }
  if ((fields.value('partial_rotary_factor') ?? 1) !== 1)
    fields.fail('partial_rotary_factor', '1 (no part of a head is left unrotated)')
  const typeName =
    fields.value('rope_type') === undefined && fields.value('type') !== undefined ? 'type' : 'rope_type'
  const factor = () => fields.positive('factor')
  const originalPositions = () => fields.integer('original_max_position_embeddings', maxPositions)
  switch (fields.value(typeName) ?? 'default') {
    case 'default':
      return { ropeTheta, ropeScaling: { type: 'default' } }
    case 'linear':
      return { ropeTheta, ropeScaling: { type: 'linear', factor: factor() } }
    case 'llama3': {
      const lowFreqFactor = fields.positive('low_freq_factor')
      const highFreqFactor = fields.positive('high_freq_factor')
      if (highFreqFactor <= lowFreqFactor)
        fields.fail('high_freq_factor', `larger than low_freq_factor = ${lowFreqFactor}`)
      const scaling = {
        type: 'llama3',
        factor: factor(),
        lowFreqFactor,
        highFreqFactor,
        originalPositions: originalPositions(),
      } as const
      return { ropeTheta, ropeScaling: scaling }
    }
    case 'yarn': {
      const both = fields.value('mscale') !== undefined && fields.value('mscale_all_dim') !== undefined
      const derived = both
        ? yarnScale(factor(), fields.positive('mscale')) /
          yarnScale(factor(), fields.positive('mscale_all_dim'))
        : yarnScale(factor(), 1)
      const scaling = {
        type: 'yarn',
        factor: factor(),
        attentionFactor: fields.positive('attention_factor', derived),
        betaFast: fields.positive('beta_fast', 32),
        betaSlow: fields.positive('beta_slow', 1),
        truncate: fields.flag('truncate', true),
        originalPositions: originalPositions(),
      } as const
      return { ropeTheta, ropeScaling: scaling }
    }
    default:
      return fields.fail(typeName, 'default, linear, llama3 or yarn')
  }
}

/**
 * Checks a parsed config.json.
 *
 * @param json the value of the file
 * @param file its name, for error sentences
 * @throws LowbitError ERR_FILE naming the field, what was expected and what came; among them every feature that would
 * change the numbers and that this decoder lacks (other activations, partial rotation, sliding windows)
 */
export function parseConfig(json: unknown, file = 'config.json'): LlamaConfig {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new LowbitError('ERR_FILE', `${file}: expected an object`)
  }
  const fields = new Fields(file, '', json as { [key: string]: Json })
  if (fields.value('model_type') !== 'llama' && fields.value('model_type') !== 'mistral') {
    fields.fail('model_type', '"llama" or "mistral"')
  }
  if ((fields.value('hidden_act') ?? 'silu') !== 'silu') fields.fail('hidden_act', '"silu"')
  const vocabSize = fields.integer('vocab_size')
  const hiddenSize = fields.integer('hidden_size')
  const heads = fields.integer('num_attention_heads')
  const kvHeads = fields.integer('num_key_value_heads', heads)
  if (heads % kvHeads !== 0) fields.fail('num_key_value_heads', `a divisor of num_attention_heads = ${heads}`)
  if (fields.value('head_dim') === undefined && hiddenSize % heads !== 0) {
    fields.fail('hidden_size', `a multiple of num_attention_heads = ${heads} (there is no head_dim)`)
  }
  const headDim = fields.integer('head_dim', hiddenSize / heads)
  if (headDim % 2 !== 0) fields.fail('head_dim', 'even')
  const maxPositions = fields.integer('max_position_embeddings', 2048)
  const window = fields.value('sliding_window')
  if (window !== undefined && fields.integer('sliding_window') < maxPositions) {
    fields.fail('sliding_window', `null or at least max_position_embeddings = ${maxPositions}`)
  }
  return {
    vocabSize,
    hiddenSize,
    intermediateSize: fields.integer('intermediate_size'),
    layers: fields.integer('num_hidden_layers'),
    heads,
    kvHeads,
    headDim,
    normEps: fields.positive('rms_norm_eps', 1e-6),
    maxPositions,
    ...readRope(fields, maxPositions),
    tiedHead: fields.flag('tie_word_embeddings', false),
    attentionBias: fields.flag('attention_bias', false),
    mlpBias: fields.flag('mlp_bias', false),
    bosToken: fields.tokens('bos_token_id', vocabSize)[0],
    eosTokens: fields.tokens('eos_token_id', vocabSize),
  }
}

/** The value of a JSON file in a checkpoint's folder; undefined where there is no such file. */
export function readJsonFile(folder: string, name: string): unknown {
  const path = join(folder, name)
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    throw new LowbitError('ERR_FILE', `${path}: ${message}`)
  }
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new LowbitError(
      'ERR_FILE',
      `${path}: not JSON: ${error instanceof Error ? error.message : String(error)}`,
    )
  }
}

/**
 * Reads config.json of a folder; end-of-text tokens of generation_config.json win over its own.
 *
 * @throws LowbitError ERR_FILE where the file is missing, no JSON or not a Llama that this decoder can run
 */
export function readConfig(folder: string): LlamaConfig {
  const path = join(folder, 'config.json')
  const json = readJsonFile(folder, 'config.json')
  if (json === undefined) throw new LowbitError('ERR_FILE', `${path}: there is no such file`)
  const config = parseConfig(json, path)
  const generation = readJsonFile(folder, 'generation_config.json')
  if (typeof generation !== 'object' || generation === null) return config
  const fields = new Fields(join(folder, 'generation_config.json'), '', generation as { [key: string]: Json })
  const eosTokens = fields.tokens('eos_token_id', config.vocabSize)
  return eosTokens.length > 0 ? { ...config, eosTokens } : config
}
