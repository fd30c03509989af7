// How well a model predicts a text: the exponential of the mean negative log-likelihood of its tokens.

import { LowbitError } from '../errors'
import { crossEntropy } from '../softmax'
import type { KvOptions } from './decoder'
import type { Llama } from './model'

/** Options of {@link perplexity}. */
export interface PerplexityOptions extends KvOptions {
  /** Stops between two windows; the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined
  /** Called with the windows that are done, at least once. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

/** What {@link perplexity} found. */
export interface Perplexity {
  /** exp(nll / tokens). */
  readonly perplexity: number
  /** Sum of the negative log-likelihoods, in nats. */
  readonly nll: number
  /** Tokens that were predicted: all but the first of each window. */
  readonly tokens: number
}

// Logits are made for as many rows at a time as fit into 16 MiB, whatever the vocabulary.
const pieceElements = 4 << 20

/**
 * Perplexity of windows of tokens, each read from its own beginning: exp of the mean of -log p(token | those before it
 * in the window) over all tokens but the first of each window.
 *
 * @param windows token ids, at least two each
 * @throws LowbitError ERR_ARGUMENT for a window of fewer than two tokens, none at all, or a token that is not in the
 * vocabulary; the signal's reason after an abort
 */
export async function perplexity(
  model: Llama,
  windows: readonly (readonly number[] | Int32Array)[],
  options: PerplexityOptions = {},
): Promise<Perplexity> {
  const { signal, onProgress } = options
  const { device, config } = model
  if (windows.length === 0 || windows.some((window) => window.length < 2)) {
    throw new LowbitError('ERR_ARGUMENT', 'perplexity: expected windows of at least two tokens')
  }
  const longest = windows.reduce((most, window) => Math.max(most, window.length), 0)
  const chunk = Math.min(longest, 512)
  const rows = Math.max(1, Math.min(chunk, Math.floor(pieceElements / config.vocabSize)))
  using session = model.session({ ...options, length: longest, chunk })
  using logits = device.empty([rows, config.vocabSize], 'f32')
  let nll = 0
  let tokens = 0

  // Queues one pass over a part of a window; resolves to the negative log-likelihoods of the tokens after each of its.
  const score = (ids: Int32Array, begin: number): Promise<Float32Array> => {
    const hidden = session.forward(ids.subarray(begin, begin + chunk))
    // The last token of a window has no successor.
    const next = ids.slice(begin + 1, begin + 1 + (hidden.shape[0] ?? 0))
    using targets = device.tensor(next, [next.length], 'i32')
    using losses = device.empty([next.length], 'f32')
    for (let first = 0; first < next.length; first += rows) {
      const end = Math.min(first + rows, next.length)
      using states = hidden.slice(0, first, end)
      using scores = logits.slice(0, 0, end - first)
      using wanted = targets.slice(0, first, end)
      using out = losses.slice(0, first, end)
      session.logits(states, scores)
      crossEntropy(scores, wanted, { out })
    }
    return losses.read()
  }
  const collect = async (pending: readonly Promise<Float32Array>[]): Promise<void> => {
    for (const losses of await Promise.all(pending)) {
      for (const loss of losses) nll += loss
      tokens += losses.length
    }
  }
  // One window stays queued behind the one that runs, so that the device never waits for this thread.
  let running: Promise<void> = Promise.resolve()
  for (const [index, window] of windows.entries()) {
    signal?.throwIfAborted()
    const ids = Int32Array.from(window)
    session.rewind(0)
    const pending: Promise<Float32Array>[] = []
    for (let begin = 0; begin + 1 < ids.length; begin += chunk) pending.push(score(ids, begin))
    const queued = collect(pending)
    queued.catch(() => {})
    await running
    running = queued
    onProgress?.(index, windows.length)
  }
  await running
  onProgress?.(windows.length, windows.length)
  return { perplexity: Math.exp(nll / tokens), nll, tokens }
}
