// Text from a model, token by token.

import { LowbitError } from '../errors'
import { argmax } from '../softmax'
import type { Tensor } from '../tensor'
import type { KvOptions } from './decoder'
import type { Llama } from './model'
import { type SampleOptions, Sampler } from './sample'
import type { LlamaSession } from './session'

// One call gives one token; `more` says that another one will be asked for.
type Step = (more: boolean) => Promise<number>

// The next pass is queued before the token is read: ids go from argmax to embedding on the device, and the reader and
// the kernels work at the same time.
function greedySteps(session: LlamaSession, logits: Tensor<'f32'>, id: Tensor<'i32'>): Step {
  const read = () => {
    argmax(logits, { out: id })
    const ids = id.read()
    // Nobody waits for the last one when the caller stops early.
    ids.catch(() => {})
    return ids
  }
  let pending = read()
  return async (more) => {
    const current = pending
    if (more) {
      session.logits(session.forward(id), logits)
      pending = read()
    }
    return (await current)[0] ?? 0
  }
}

function sampledSteps(session: LlamaSession, logits: Tensor<'f32'>, sampler: Sampler): Step {
  let previous: number | undefined
  return async () => {
    if (previous !== undefined) session.logits(session.forward([previous]), logits)
    previous = sampler.draw(await logits.read())
    return previous
  }
}

/**
 * The ids of a prompt; an empty one begins a new text where the model has a token for that.
 *
 * @throws LowbitError ERR_ARGUMENT for text where the model has no tokenizer
 */
export function promptTokens(
  model: Llama,
  prompt: string | readonly number[],
  where: string,
): readonly number[] {
  const { bosToken = model.config.eosTokens[0] } = model.config
  if (typeof prompt === 'string' && model.tokenizer === undefined) {
    throw new LowbitError(
      'ERR_ARGUMENT',
      `${where}: expected token ids, since the model has no tokenizer.json, but got text`,
    )
  }
  const given = typeof prompt === 'string' ? (model.tokenizer?.encode(prompt) ?? []) : prompt
  return given.length === 0 && bosToken !== undefined ? [bosToken] : given
}

/** Options of {@link generate}. */
export interface GenerateOptions extends SampleOptions, KvOptions {
  /** Tokens to make at most. Default: as many as the session holds, or the model was trained for. */
  readonly maxTokens?: number | undefined
  /** Go on after an end-of-text token. Default false: it is the last one that comes. */
  readonly ignoreEos?: boolean | undefined
  /** Stops before the next token; the iteration throws the signal's reason. */
  readonly signal?: AbortSignal | undefined
  /** Continues in this session instead of a new one, which is disposed at the end. */
  readonly session?: LlamaSession | undefined
}

/** One step of {@link generate}. */
export interface GeneratedToken {
  /** Its id. */
  readonly token: number
  /** The text that this token completes; '' where it ends inside a character, and without a tokenizer. */
  readonly text: string
}

/**
 * Continues a prompt.
 *
 * @param prompt text (the model needs its tokenizer.json), or token ids; an empty one begins a new text where the
 * model has a token for that
 * @returns tokens with the text that each completes, as they are made; the same options and seed make the same ones
 * @throws LowbitError ERR_ARGUMENT for options out of range or a prompt longer than the session; the signal's reason
 */
export async function* generate(
  model: Llama,
  prompt: string | readonly number[],
  options: GenerateOptions = {},
): AsyncGenerator<GeneratedToken, void, undefined> {
  const { signal, maxTokens = Number.POSITIVE_INFINITY, ignoreEos = false } = options
  const { config, device, tokenizer } = model
  const sampler = new Sampler(options)
  if (!(maxTokens >= 0)) {
    throw new LowbitError(
      'ERR_ARGUMENT',
      `generate: expected maxTokens to be at least 0 but got ${maxTokens}`,
    )
  }
  const tokens = promptTokens(model, prompt, 'generate')
  const made: Disposable[] = []
  const keep = <T extends Disposable>(thing: T): T => {
    made.push(thing)
    return thing
  }
  if (maxTokens === 0) return
  const length = Math.min(config.maxPositions, tokens.length + maxTokens)
  const session = options.session ?? keep(model.session({ ...options, length: Math.max(1, length) }))
  const start = session.position + tokens.length
  const count = Math.min(maxTokens, session.length - start)
  let steps = 0
  try {
    if (count < 1) {
      throw new LowbitError(
        'ERR_ARGUMENT',
        `generate: expected a prompt of fewer than ${session.length - session.position} tokens but got ${tokens.length}`,
      )
    }
    const logits = keep(device.empty([1, config.vocabSize], 'f32'))
    await session.prefill(tokens, { signal, out: logits })
    const step = sampler.greedy
      ? greedySteps(session, logits, keep(device.empty([1], 'i32')))
      : sampledSteps(session, logits, sampler)
    const text = tokenizer?.stream()
    for (let last = false; !last; ) {
      signal?.throwIfAborted()
      const token = await step(steps + 1 < count)
      steps++
      last = steps === count || (!ignoreEos && config.eosTokens.includes(token))
      yield { token, text: (text?.push(token) ?? '') + (last ? (text?.end() ?? '') : '') }
    }
  } finally {
    // The last token that came is not part of the cache, nor is what was queued after it.
    session.rewind(Math.min(session.position, start + Math.max(0, steps - 1)))
    for (const thing of made) thing[Symbol.dispose]()
  }
}
