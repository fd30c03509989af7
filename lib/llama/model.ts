// A Llama-family decoder written with lowbit's public ops alone. Touvron et al., LLaMA, 2023. For each block:
//
//   x += o(attention(rope(q, k), v))        q, k, v = qkv(rmsNorm(x))
//   x += down(silu(gate) * up)              gate, up = gateUp(rmsNorm(x))
//
// Seven to nine queued calls a block, none of which waits: additions ride along with o and down as `residual`, silu
// and the product with gateUp as `swiglu`. All buffers of a session are made once.

import { attention } from '../attention'
import { copy } from '../copy'
import type { Device } from '../device'
import { embedding } from '../embedding'
import { LowbitError } from '../errors'
import { type LinearOptions, linear } from '../linear'
import { rmsNorm } from '../norm'
import { rope } from '../rope'
import type { Tensor } from '../tensor'
import { type LlamaConfig, readConfig } from './config'
import { type GeneratedToken, type GenerateOptions, generate } from './generate'
import { type Perplexity, type PerplexityOptions, perplexity } from './perplexity'
import { ropeTables } from './rope'
import type { LlamaScheme } from './scheme'
import { Tokenizer } from './tokenizer'
import {
  type Disposables,
  type LlamaWeights,
  type LoadOptions,
  loadWeights,
  type Projection,
} from './weights'

/** Options of {@link Llama.load}. */
export interface LlamaOptions extends LoadOptions {
  /** Where the model runs. The caller closes it, after the model. */
  readonly device: Device
  /** Default: { format: 'bf16' }. */
  readonly scheme?: LlamaScheme | undefined
}

/** Options of {@link Llama.session}. */
export interface SessionOptions {
  /** Positions that the KV cache holds. Default: the config's maxPositions. */
  readonly length?: number | undefined
  /** Tokens that one pass takes at most; longer prompts are cut into pieces. Default 512. */
  readonly chunk?: number | undefined
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

function project(x: Tensor, { weight, bias }: Projection, options: LinearOptions): void {
  linear(x, weight, bias === undefined ? options : { ...options, bias })
}

// The buffers of a session as one pass of `rows` tokens sees them.
interface Pass {
  readonly ids: Tensor<'i32'>
  readonly x: Tensor
  readonly normed: Tensor
  /** [rows, (heads + 2 kvHeads) * headDim] and parts of the same memory as heads. */
  readonly qkv: Tensor
  readonly q: Tensor
  readonly qk: Tensor
  readonly kv: Tensor
  readonly attended: Tensor
  readonly attendedHeads: Tensor
  readonly hidden: Tensor
  readonly made: Disposables
}

/**
 * One text in the making: a KV cache that grows with every `forward` and can be rewound. All calls queue work and
 * return; reading the result is the wait.
 */
export class LlamaSession implements Disposable {
  /** Positions that the cache holds. */
  readonly length: number
  /** Tokens that one `forward` takes at most. */
  readonly chunk: number
  private readonly made: Disposables = []
  private readonly passes = new Map<number, Pass>()
  private readonly buffers: Pass
  private readonly cos: Tensor
  private readonly sin: Tensor
  // Per layer [1, length, 2 kvHeads, headDim]: the heads of k, then those of v.
  private readonly caches: { kv: Tensor; k: Tensor; v: Tensor }[]
  private at = 0

  /** @internal Made by {@link Llama.session}. */
  constructor(
    /** Whose weights it uses. */
    readonly model: Llama,
    options: SessionOptions,
  ) {
    const { config, device, scheme } = model
    const { length = config.maxPositions, chunk = Math.min(512, length) } = options
    for (const [name, value] of Object.entries({ length, chunk })) {
      if (!Number.isSafeInteger(value) || value < 1) {
        throw new LowbitError(
          'ERR_ARGUMENT',
          `session: expected ${name} to be a positive integer but got ${value}`,
        )
      }
    }
    this.length = length
    this.chunk = chunk
    const { heads, kvHeads, headDim, hiddenSize, intermediateSize } = config
    const dtype = scheme.activations ?? 'f32'
    const empty = (...shape: number[]) => this.keep(device.empty(shape, dtype))
    try {
      const tables = ropeTables(config, length)
      this.cos = this.keep(device.tensor(tables.cos, [length, headDim / 2]))
      this.sin = this.keep(device.tensor(tables.sin, [length, headDim / 2]))
      this.caches = model.weights.layers.map(() => {
        const kv = empty(1, length, 2 * kvHeads, headDim)
        return { kv, k: this.keep(kv.slice(2, 0, kvHeads)), v: this.keep(kv.slice(2, kvHeads, 2 * kvHeads)) }
      })
      const qkv = empty(chunk, (heads + 2 * kvHeads) * headDim)
      const byHead = this.keep(qkv.reshape([1, chunk, heads + 2 * kvHeads, headDim]))
      const attended = empty(chunk, heads * headDim)
      this.buffers = {
        ids: this.keep(device.empty([chunk], 'i32')),
        x: empty(chunk, hiddenSize),
        normed: empty(chunk, hiddenSize),
        qkv,
        q: this.keep(byHead.slice(2, 0, heads)),
        qk: this.keep(byHead.slice(2, 0, heads + kvHeads)),
        kv: this.keep(byHead.slice(2, heads, heads + 2 * kvHeads)),
        attended,
        attendedHeads: this.keep(attended.reshape([1, chunk, heads, headDim])),
        hidden: empty(chunk, intermediateSize),
        made: [],
      }
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  private keep<T extends Disposable>(made: T): T {
    this.made.push(made)
    return made
  }

  /** Tokens in the cache: the position of the next one. */
  get position(): number {
    return this.at
  }

  /** Forgets everything from `position` on. */
  rewind(position: number): void {
    if (!Number.isSafeInteger(position) || position < 0 || position > this.at) {
      throw new LowbitError(
        'ERR_ARGUMENT',
        `rewind: expected a position from 0 to ${this.at} but got ${position}`,
      )
    }
    this.at = position
  }

  // The views for passes of 1 token and of a full chunk are used again and again, others mostly once.
  private pass(rows: number): Pass {
    const known = this.passes.get(rows)
    if (known !== undefined) return known
    const made: Disposables = []
    const cut = <T extends Tensor>(tensor: T, dim: number): T => {
      const view = tensor.slice(dim, 0, rows) as T
      made.push(view)
      return view
    }
    const b = this.buffers
    const pass: Pass = {
      ids: cut(b.ids, 0),
      x: cut(b.x, 0),
      normed: cut(b.normed, 0),
      qkv: cut(b.qkv, 0),
      q: cut(b.q, 1),
      qk: cut(b.qk, 1),
      kv: cut(b.kv, 1),
      attended: cut(b.attended, 0),
      attendedHeads: cut(b.attendedHeads, 1),
      hidden: cut(b.hidden, 0),
      made,
    }
    for (const [size, old] of this.passes) {
      if (this.passes.size < 4) break
      if (size === 1 || size === this.chunk) continue
      for (const view of old.made) view[Symbol.dispose]()
      this.passes.delete(size)
    }
    this.passes.set(rows, pass)
    return pass
  }

  /**
   * Runs the decoder over the next tokens and adds them to the cache.
   *
   * @param tokens at least one and at most `chunk` ids, or an i32 tensor [1] that an op on the same device writes
   * @returns [tokens, hiddenSize], normed and ready for `logits`: a view of a buffer that the next call overwrites
   * @throws LowbitError ERR_ARGUMENT where there are too few or too many tokens, one is not in the vocabulary, or the
   * cache is full
   */
  forward(tokens: readonly number[] | Int32Array | Tensor<'i32'>): Tensor {
    const { model, at } = this
    const { config, weights, scheme } = model
    const onDevice = !(tokens instanceof Int32Array || Array.isArray(tokens))
    const rows = onDevice ? ((tokens as Tensor<'i32'>).shape[0] ?? 0) : (tokens as readonly number[]).length
    if (rows < 1 || rows > this.chunk) {
      throw new LowbitError('ERR_ARGUMENT', `forward: expected 1 to ${this.chunk} tokens but got ${rows}`)
    }
    if (at + rows > this.length) {
      throw new LowbitError(
        'ERR_ARGUMENT',
        `forward: expected at most ${this.length - at} more tokens (the session holds ${this.length}) but got ${rows}`,
      )
    }
    const pass = this.pass(rows)
    let ids = tokens as Tensor<'i32'>
    if (!onDevice) {
      const list = tokens as readonly number[] | Int32Array
      for (const token of list) {
        if (!(Number.isInteger(token) && token >= 0 && token < config.vocabSize)) {
          const range = `tokens from 0 to ${config.vocabSize - 1}`
          throw new LowbitError('ERR_ARGUMENT', `forward: expected ${range} but got ${token}`)
        }
      }
      ids = pass.ids.write(Int32Array.from(list))
    }
    const { x, normed, qkv, q, qk, kv, attended, attendedHeads, hidden } = pass
    const compute = scheme.compute ?? 'float'
    const toNormed = { eps: config.normEps, out: normed }
    const toQkv = { compute, out: qkv }
    const toHidden = { compute, activation: 'swiglu', out: hidden } as const
    const addToX = { compute, residual: x, out: x }
    const turn = { cos: this.cos, sin: this.sin, positions: at, pairing: 'half', out: qk } as const
    embedding(weights.embedding, ids, { out: x })
    for (const [index, layer] of weights.layers.entries()) {
      rmsNorm(x, layer.attentionNorm, toNormed)
      project(normed, layer.qkv, toQkv)
      rope(qk, turn)
      this.attend(index, kv, q, attendedHeads, rows)
      project(attended, layer.o, addToX)
      rmsNorm(x, layer.mlpNorm, toNormed)
      project(normed, layer.gateUp, toHidden)
      project(hidden, layer.down, addToX)
    }
    rmsNorm(x, weights.norm, toNormed)
    this.at += rows
    return normed
  }

  private attend(layer: number, kv: Tensor, q: Tensor, out: Tensor, rows: number): void {
    const cache = this.caches[layer]
    if (cache === undefined) return
    const end = this.at + rows
    using place = cache.kv.slice(1, this.at, end)
    using k = cache.k.slice(1, 0, end)
    using v = cache.v.slice(1, 0, end)
    copy(kv, { out: place })
    attention(q, k, v, { causal: true, out })
  }

  /**
   * Logits of what `forward` returned, or of some of its rows.
   *
   * @param hidden [rows, hiddenSize]
   * @returns f32 [rows, vocabSize]; `out` where it was given
   */
  logits(hidden: Tensor, out?: Tensor): Tensor<'f32'> {
    const { device, config, weights } = this.model
    const to = out ?? device.empty([hidden.shape[0] ?? 0, config.vocabSize], 'f32')
    linear(hidden, weights.head.weight, { out: to })
    return to as Tensor<'f32'>
  }

  /**
   * Runs a prompt of any length in chunks; between two of them the event loop runs and the signal is looked at.
   *
   * @returns f32 [1, vocabSize]: the logits after the last token
   * @throws LowbitError as `forward`; the signal's reason after an abort
   */
  async prefill(
    tokens: readonly number[] | Int32Array,
    options: { readonly signal?: AbortSignal | undefined; readonly out?: Tensor | undefined } = {},
  ): Promise<Tensor<'f32'>> {
    let hidden: Tensor | undefined
    for (let begin = 0; begin < tokens.length; begin += this.chunk) {
      if (hidden !== undefined) await this.model.device.sync()
      options.signal?.throwIfAborted()
      hidden = this.forward(tokens.slice(begin, begin + this.chunk))
    }
    if (hidden === undefined)
      throw new LowbitError('ERR_ARGUMENT', 'prefill: expected at least one token but got none')
    const rows = hidden.shape[0] ?? 0
    using last = hidden.slice(0, rows - 1, rows)
    return this.logits(last, options.out)
  }

  /** Gives the cache and the buffers back. */
  dispose(): void {
    for (const { made } of this.passes.values()) for (const view of made) view[Symbol.dispose]()
    this.passes.clear()
    for (const thing of this.made) thing[Symbol.dispose]()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}
