// One text in the making: a decoder with a single sequence.

import { LowbitError } from '../errors'
import type { KvSequence } from '../kv/pool'
import type { Tensor } from '../tensor'
import { Decoder, type KvOptions } from './decoder'
import type { Llama } from './model'

/** Options of {@link Llama.session}. */
export interface SessionOptions extends KvOptions {
  /** Positions that the KV cache holds. Default: the config's maxPositions. */
  readonly length?: number | undefined
  /** Tokens that one pass takes at most; longer prompts are cut into pieces. Default 512. */
  readonly chunk?: number | undefined
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
  private readonly decoder: Decoder
  private readonly sequence: KvSequence

  /** @internal Made by {@link Llama.session}. */
  constructor(
    /** Whose weights it uses. */
    readonly model: Llama,
    options: SessionOptions,
  ) {
    const { length = model.config.maxPositions, chunk = Math.min(512, length) } = options
    const { kv, pageSize = 32, prefixTokens = 0 } = options
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
    const pages = Math.ceil(length / pageSize)
    const sizes = { rows: chunk, sequences: 1, length, pages, kv, pageSize, prefixTokens }
    this.decoder = new Decoder(model, sizes)
    this.sequence = this.decoder.pool.open()
  }

  /** Tokens in the cache: the position of the next one. */
  get position(): number {
    return this.sequence.length
  }

  /** Bytes of the KV cache, all layers together. */
  get cacheBytes(): number {
    return this.decoder.cacheBytes
  }

  /** Forgets everything from `position` on. */
  rewind(position: number): void {
    if (!Number.isSafeInteger(position) || position < 0 || position > this.position) {
      throw new LowbitError(
        'ERR_ARGUMENT',
        `rewind: expected a position from 0 to ${this.position} but got ${position}`,
      )
    }
    this.sequence.trim(position)
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
    const { decoder, sequence, chunk, length } = this
    const onDevice = !(tokens instanceof Int32Array || Array.isArray(tokens))
    const rows = onDevice ? ((tokens as Tensor<'i32'>).shape[0] ?? 0) : (tokens as readonly number[]).length
    if (rows < 1 || rows > chunk) {
      throw new LowbitError('ERR_ARGUMENT', `forward: expected 1 to ${chunk} tokens but got ${rows}`)
    }
    const room = length - sequence.length
    if (rows > room) {
      throw new LowbitError(
        'ERR_ARGUMENT',
        `forward: expected at most ${room} more tokens (the session holds ${length}) but got ${rows}`,
      )
    }
    const ids = onDevice
      ? (tokens as Tensor<'i32'>)
      : decoder.idsOf(tokens as readonly number[] | Int32Array, 'forward')
    return decoder.forward([{ sequence, slots: decoder.grow(sequence, rows) }], ids)
  }

  /**
   * Logits of what `forward` returned, or of some of its rows.
   *
   * @param hidden [rows, hiddenSize]
   * @returns f32 [rows, vocabSize]; `out` where it was given
   */
  logits(hidden: Tensor, out?: Tensor): Tensor<'f32'> {
    return this.decoder.logits(hidden, out)
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
    this.decoder.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}
