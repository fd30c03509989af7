// A model of the Llama family: its weights on a device, and what can be done with them.

import type { Device } from '../device'
import { type LlamaConfig, readConfig } from './config'
import { type GeneratedToken, type GenerateOptions, generate } from './generate'
import { type Perplexity, type PerplexityOptions, perplexity } from './perplexity'
import type { LlamaScheme } from './scheme'
import { LlamaSession, type SessionOptions } from './session'
import { Tokenizer } from './tokenizer'
import { type Disposables, type LlamaWeights, type LoadOptions, loadWeights } from './weights'

/** Options of {@link Llama.load}. */
export interface LlamaOptions extends LoadOptions {
  /** Where the model runs. The caller closes it, after the model. */
  readonly device: Device
  /** Default: { format: 'bf16' }. */
  readonly scheme?: LlamaScheme | undefined
}

/** What the weights of a model take. */
export interface WeightUsage {
  /** Numbers in the linear layers of the decoder blocks. */
  readonly blockParameters: number
  /** Bytes of those layers: codes, scales and zeros as they are saved, without padding. */
  readonly blockBytes: number
  /** blockBytes * 8 / blockParameters */
  readonly bitsPerWeight: number
  /** All numbers of the checkpoint. */
  readonly parameters: number
  /** Bytes of all weights on the device. */
  readonly deviceBytes: number
}

/**
 * A loaded model: `generate` and `perplexity` run it, or a `session()` of one's own. Dispose it after its sessions.
 */
export class Llama implements Disposable {
  private constructor(
    /** What config.json says. */
    readonly config: LlamaConfig,
    /** Holds the weights and runs the ops. */
    readonly device: Device,
    /** How the weights are stored and multiplied. */
    readonly scheme: LlamaScheme,
    /** Undefined where the folder has no tokenizer.json: tokens must come as ids then. */
    readonly tokenizer: Tokenizer | undefined,
    /** @internal */
    readonly weights: LlamaWeights,
    private readonly made: Disposables,
  ) {}

  /**
   * Loads a folder that Hugging Face's `save_pretrained` wrote: config.json, model.safetensors or its shards, and
   * tokenizer.json where text is wanted.
   *
   * @throws LowbitError ERR_FILE where something is missing or contradicts the config; ERR_MEMORY; ERR_ARGUMENT for a
   * scheme that the shapes don't allow; the signal's reason after an abort
   */
  static async load(folder: string, options: LlamaOptions): Promise<Llama> {
    const { device, scheme = { format: 'bf16' } } = options
    const config = readConfig(folder)
    const tokenizer = Tokenizer.read(folder)
    const made: Disposables = []
    try {
      const weights = await loadWeights(folder, config, device, scheme, made, options)
      return new Llama(config, device, scheme, tokenizer, weights, made)
    } catch (error) {
      for (const thing of made) thing[Symbol.dispose]()
      throw error
    }
  }

  /** A KV cache and buffers for one text at a time. */
  session(options: SessionOptions = {}): LlamaSession {
    return new LlamaSession(this, options)
  }

  /**
   * Continues a prompt, token by token; greedy unless the options say otherwise.
   *
   * @param prompt text (needs the tokenizer), or token ids; an empty one begins a new text where the model has a token
   * for that
   * @returns tokens with the text that each completes, as they are made; the same options and seed make the same ones
   * @throws LowbitError ERR_ARGUMENT for options out of range or a prompt longer than the session; the signal's reason
   *
   * @example
   * ```ts
   * for await (const { text } of model.generate('def main():', { maxTokens: 64, temperature: 0.8, seed: 1 })) {
   *   process.stdout.write(text)
   * }
   * ```
   */
  generate(
    prompt: string | readonly number[],
    options: GenerateOptions = {},
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    return generate(this, prompt, options)
  }

  /**
   * exp of the mean negative log-likelihood of windows of tokens, each read from its own beginning.
   *
   * @param windows token ids, at least two each
   * @throws LowbitError ERR_ARGUMENT for a window of fewer than two tokens, none at all, or a token that is not in the
   * vocabulary; the signal's reason after an abort
   */
  perplexity(
    windows: readonly (readonly number[] | Int32Array)[],
    options: PerplexityOptions = {},
  ): Promise<Perplexity> {
    return perplexity(this, windows, options)
  }

  /** Sizes of the weights. */
  usage(): WeightUsage {
    const { weights, config } = this
    const blocks = weights.layers.flatMap(({ qkv, o, gateUp, down }) => [qkv, o, gateUp, down])
    const sum = (numbers: number[]) => numbers.reduce((a, b) => a + b, 0)
    const blockParameters = sum(blocks.map(({ weight: { shape } }) => shape[0] * shape[1]))
    const blockBytes = sum(blocks.map(({ storedBytes }) => storedBytes))
    const table = config.vocabSize * config.hiddenSize
    const norms = (2 * config.layers + 1) * config.hiddenSize
    return {
      blockParameters,
      blockBytes,
      bitsPerWeight: (blockBytes * 8) / blockParameters,
      parameters: blockParameters + norms + (config.tiedHead ? table : 2 * table),
      deviceBytes:
        sum([...blocks, weights.head].map(({ weight }) => weight.bytes)) +
        table * (weights.embedding.dtype === 'f32' ? 4 : 2),
    }
  }

  /** Gives the weights back. */
  dispose(): void {
    for (const thing of this.made) thing[Symbol.dispose]()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}
