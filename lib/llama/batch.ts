// Many texts at once: continuous batching. Yu et al., Orca, 2022; pages of Kwon et al., PagedAttention, 2023; prompts in
// chunks beside the tokens of others, Agrawal et al., Sarathi-Serve, 2024.
//
// Each step is one pass of the decoder over the next tokens of every running request: one token of those that generate, a
// piece of the prompt of those that begin. Requests join and leave between steps. When pages run out, the request that came
// last gives its pages back and waits; its tokens are computed anew when there is room. While nobody joins, leaves or
// draws at random, a step is queued before the tokens of the last one are read: they go from argmax to the embedding on the
// device, which never waits for this thread.

import { LowbitError } from '../errors'
import type { KvSequence } from '../kv/pool'
import { argmax } from '../softmax'
import type { Tensor } from '../tensor'
import { Decoder, type KvOptions, type Part } from './decoder'
import { type GeneratedToken, promptTokens } from './generate'
import type { Llama } from './model'
import { type SampleOptions, Sampler } from './sample'
import type { TextStream } from './tokenizer'

/** Options of {@link Batch}. */
export interface BatchOptions extends KvOptions {
  /** Requests that run at once; more of them wait their turn. Default 32. */
  readonly sequences?: number | undefined
  /** Tokens of one step at most, `sequences` or more; longer prompts take several steps. Default: 512 or `sequences`. */
  readonly chunk?: number | undefined
  /** Positions of a request, its prompt included. Default: the config's maxPositions, or what the pages hold. */
  readonly length?: number | undefined
  /** Pages of the KV cache, shared by all. Default: as many as `sequences` requests of `length` positions need. */
  readonly pages?: number | undefined
}

/** Options of {@link Batch.add}. */
export interface RequestOptions extends SampleOptions {
  /** Tokens to make at most. Default: as many as fit. */
  readonly maxTokens?: number | undefined
  /** Go on after an end-of-text token. Default false: it is the last one that comes. */
  readonly ignoreEos?: boolean | undefined
  /** Ends the request; its iteration throws the signal's reason. */
  readonly signal?: AbortSignal | undefined
  /** What comes before the prompt and is computed once for all requests that have it. */
  readonly after?: SharedPrompt | undefined
}

type State = 'waiting' | 'running' | 'done'

// What a request and a shared prompt are to the batch.
interface Job {
  /** Prompt and what was made of it. */
  readonly tokens: number[]
  /** Tokens to make; 0 for a shared prompt. */
  readonly count: number
  readonly after: SharedPrompt | undefined
  readonly sampler: Sampler
  made: number
  state: State
  /** Where the tokens are kept; its length says how many. */
  sequence: KvSequence | undefined
  /** Receives each token as it is chosen; true ends the job. */
  take(token: number): boolean
  end(error?: unknown): void
}

/** Who runs in a step, and the slots of their tokens. */
type JobPart = Part & { readonly job: Job }

/** A step that is queued, and what it will say. */
interface Flight {
  readonly parts: readonly JobPart[]
  /** Which of them want a token: those whose prompt is read whole. */
  readonly asks: readonly boolean[]
  /** The likeliest token of each part; undefined where nobody wants it. */
  readonly largest: Promise<Int32Array> | undefined
  /** Logits of the parts that draw at random. */
  readonly drawn: ReadonlyMap<number, Promise<Float32Array>>
}

/** One text of a {@link Batch}: iterate over it, once, for its tokens. Leaving the loop ends the request. */
export class BatchRequest implements AsyncIterable<GeneratedToken> {
  readonly #ready: GeneratedToken[] = []
  #wake: (() => void) | undefined
  #ended = false
  #error: unknown

  /** @internal Made by {@link Batch.add}. */
  constructor(
    private readonly text: TextStream | undefined,
    private readonly leave: () => void,
  ) {}

  /** @internal */
  push(token: number, last: boolean): void {
    const text = (this.text?.push(token) ?? '') + (last ? (this.text?.end() ?? '') : '')
    this.#ready.push({ token, text })
    this.#wake?.()
  }
  /** @internal */
  end(error?: unknown): void {
    if (this.#ended) return
    this.#ended = true
    this.#error = error
    this.#wake?.()
  }

  /** Ends the request; tokens that were made can still be read. */
  cancel(): void {
    this.leave()
  }

  /** @throws LowbitError ERR_PAGES where the request can't have the pages it needs; the signal's reason */
  async *[Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void, undefined> {
    try {
      for (;;) {
        const token = this.#ready.shift()
        if (token !== undefined) yield token
        else if (this.#ended) break
        else
          await new Promise<void>((resolve) => {
            this.#wake = resolve
          })
      }
      if (this.#error !== undefined) throw this.#error
    } finally {
      this.leave()
    }
  }
}

/** The beginning of many prompts, computed once: see {@link Batch.share}. */
export class SharedPrompt implements Disposable {
  /** @internal Made by {@link Batch.share}. */
  constructor(
    private readonly job: Job,
    private readonly leave: () => void,
  ) {}

  /** Its tokens. */
  get tokens(): readonly number[] {
    return this.job.tokens
  }
  /** Its pages, once it is computed. @internal */
  get sequence(): KvSequence | undefined {
    return this.job.state === 'done' ? this.job.sequence : undefined
  }
  /** Whether it is still to be computed. @internal */
  get pending(): boolean {
    return this.job.state !== 'done'
  }
  /** Gives its pages back when the last request that shares them ends. */
  dispose(): void {
    this.leave()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/**
 * Runs any number of requests together, a step at a time, as long as there are any.
 *
 * @example
 * ```ts
 * const batch = new Batch(model, { sequences: 8, kv: 'int8' })
 * const request = batch.add('def main():', { maxTokens: 64 })
 * for await (const { text } of request) process.stdout.write(text)
 * batch.close()
 * ```
 */
export class Batch implements Disposable {
  /** Requests that run at once. */
  readonly sequences: number
  /** Positions of a request, its prompt included. */
  readonly length: number
  private readonly decoder: Decoder
  private readonly logits: Tensor<'f32'>
  private readonly ids: Tensor<'i32'>
  // In the order of their coming; a job that gave its pages back stands first among those that wait.
  private waiting: Job[] = []
  private running: Job[] = []
  private readonly shared = new Set<Job>()
  private loop: Promise<void> | undefined
  private closed = false

  /** @throws LowbitError ERR_ARGUMENT for sizes out of range; ERR_MEMORY where the cache does not fit */
  constructor(
    /** Whose weights it uses. */
    readonly model: Llama,
    options: BatchOptions = {},
  ) {
    const { sequences = 32, pageSize = 32, prefixTokens, kv } = options
    const { chunk = Math.max(512, sequences), length: most = model.config.maxPositions } = options
    const { pages = sequences * Math.ceil(most / pageSize) } = options
    for (const [name, value, least] of [
      ['sequences', sequences, 1],
      ['chunk', chunk, sequences],
      ['length', most, 1],
      ['pages', pages, 1],
    ] as const) {
      if (!Number.isSafeInteger(value) || value < least) {
        throw new LowbitError(
          'ERR_ARGUMENT',
          `Batch: expected ${name} to be an integer of at least ${least} but got ${value}`,
        )
      }
    }
    this.sequences = sequences
    this.length = Math.min(most, pages * pageSize)
    // Each request has a row of the prefix, and so has each shared prompt.
    const prefixRows = 2 * sequences
    const sizes = {
      rows: chunk,
      sequences,
      length: this.length,
      pages,
      kv,
      pageSize,
      prefixTokens,
      prefixRows,
    }
    this.decoder = new Decoder(model, sizes)
    try {
      this.logits = model.device.empty([sequences, model.config.vocabSize], 'f32')
      this.ids = model.device.empty([sequences], 'i32')
    } catch (error) {
      this.decoder.dispose()
      throw error
    }
  }

  /** Requests that have pages. */
  get active(): number {
    return this.running.length
  }
  /** Requests that wait for their turn or for pages. */
  get queued(): number {
    return this.waiting.length
  }
  /** Pages that nobody uses. */
  get freePages(): number {
    return this.decoder.pool.free
  }

  /**
   * Begins a request, now or when there is room for it.
   *
   * @param prompt text (the model needs its tokenizer.json), or token ids; an empty one begins a new text
   * @throws LowbitError ERR_ARGUMENT for options out of range; ERR_PAGES for a prompt that can never fit; ERR_DISPOSED
   */
  add(prompt: string | readonly number[], options: RequestOptions = {}): BatchRequest {
    const { maxTokens = Number.POSITIVE_INFINITY, ignoreEos = false, signal, after } = options
    const { config, tokenizer } = this.model
    const sampler = new Sampler(options)
    if (!(maxTokens >= 0)) {
      throw new LowbitError('ERR_ARGUMENT', `add: expected maxTokens to be at least 0 but got ${maxTokens}`)
    }
    const before = after?.tokens ?? []
    const tokens = this.checked(before, prompt, 'add')
    const leave = () => this.leave(job)
    const request = new BatchRequest(tokenizer?.stream(), leave)
    const abort = () => {
      request.end(signal?.reason)
      leave()
    }
    const job: Job = {
      tokens,
      count: Math.min(maxTokens, this.length - tokens.length),
      after,
      sampler,
      made: 0,
      state: 'waiting',
      sequence: undefined,
      take: (token) => {
        const last = ++job.made === job.count || (!ignoreEos && config.eosTokens.includes(token))
        if (!last) job.tokens.push(token)
        request.push(token, last)
        return last
      },
      end: (error) => {
        signal?.removeEventListener('abort', abort)
        request.end(error)
      },
    }
    if (signal?.aborted === true) job.end(signal.reason)
    else if (job.count === 0) job.end()
    else {
      signal?.addEventListener('abort', abort, { once: true })
      this.waiting.push(job)
      this.start()
    }
    return request
  }

  /**
   * Computes the beginning of prompts once, for all requests that are added `after` it: they share its pages, and only the
   * page in which they go on is copied. It keeps its pages until it is disposed.
   *
   * @throws LowbitError as {@link add}
   */
  share(prompt: string | readonly number[]): SharedPrompt {
    const job: Job = {
      tokens: this.checked([], prompt, 'share'),
      count: 0,
      after: undefined,
      sampler: new Sampler(),
      made: 0,
      state: 'waiting',
      sequence: undefined,
      take: () => true,
      end: () => {},
    }
    this.shared.add(job)
    this.waiting.push(job)
    this.start()
    return new SharedPrompt(job, () => {
      this.shared.delete(job)
      this.leave(job)
      job.sequence?.close()
      job.sequence = undefined
    })
  }

  private checked(before: readonly number[], prompt: string | readonly number[], where: string): number[] {
    if (this.closed) throw new LowbitError('ERR_DISPOSED', `${where}: the batch was closed`)
    const own = before.length > 0 && prompt.length === 0 ? [] : promptTokens(this.model, prompt, where)
    if (before.length + own.length === 0) {
      throw new LowbitError('ERR_ARGUMENT', `${where}: expected at least one token but got none`)
    }
    this.decoder.idsOf(own, where)
    const tokens = [...before, ...own]
    if (tokens.length >= this.length) {
      const { pages, pageSize } = this.decoder.pool
      throw new LowbitError(
        'ERR_PAGES',
        `${where}: a prompt of ${tokens.length} tokens can never fit: a request has ${this.length} positions, the cache ${pages} pages of ${pageSize}`,
      )
    }
    return tokens
  }

  // Takes a job out, wherever it is. What is queued still uses its pages, and comes before what the next owner queues.
  private leave(job: Job, error?: unknown): void {
    if (job.state === 'done') return
    this.waiting = this.waiting.filter((other) => other !== job)
    this.running = this.running.filter((other) => other !== job)
    job.state = 'done'
    job.sequence?.close()
    job.sequence = undefined
    job.end(error)
  }

  private start(): void {
    this.loop ??= this.run().finally(() => {
      this.loop = undefined
    })
  }

  private async run(): Promise<void> {
    // What is added in the same turn of the event loop begins in the same step.
    await Promise.resolve()
    let flight: Flight | undefined
    while (!this.closed && (flight !== undefined || this.running.length > 0 || this.waiting.length > 0)) {
      try {
        if (flight === undefined) {
          this.admit()
          const parts = this.plan()
          if (parts.length === 0) continue
          flight = this.queue(parts)
        }
        const next = this.ahead(flight)
        await this.land(flight)
        flight = next
      } catch (error) {
        // A kernel failed: what the caches hold is unknown.
        flight = undefined
        this.fail(error)
      }
    }
  }

  private fail(error: unknown): void {
    for (const job of [...this.running, ...this.waiting]) this.leave(job, error)
  }

  // Lets those in who waited longest while there are pages for their tokens and one more page for each that runs.
  private admit(): void {
    const { pool } = this.decoder
    while (this.running.length < this.sequences) {
      const [job] = this.waiting
      if (job === undefined || job.after?.pending === true) break
      const parent = job.after?.sequence
      // A fork copies the page in which it goes on.
      const shared = parent === undefined ? 0 : pool.pagesOf(parent.length)
      const needed = pool.pagesOf(job.tokens.length + 1) - shared + (shared > 0 ? 1 : 0)
      if (needed + this.running.length > pool.free && this.running.length > 0) break
      this.waiting.shift()
      job.sequence = parent?.fork() ?? pool.open()
      // Of a prompt that is shared whole the last token runs again: its logits are wanted.
      if (job.sequence.length === job.tokens.length) job.sequence.trim(job.tokens.length - 1)
      job.state = 'running'
      this.running.push(job)
    }
  }

  private wait(job: Job): void {
    this.running = this.running.filter((other) => other !== job)
    job.sequence?.close()
    job.sequence = undefined
    job.state = 'waiting'
    this.waiting.unshift(job)
  }

  // Who runs in the next step, with how many tokens: first those that generate, so that no token waits for a prompt.
  private plan(): JobPart[] {
    const left = (job: Job) => job.tokens.length - (job.sequence?.length ?? 0)
    const order = [
      ...this.running.filter((job) => left(job) === 1),
      ...this.running.filter((job) => left(job) > 1),
    ]
    const parts: JobPart[] = []
    let room = this.decoder.rows
    for (const job of order) {
      const { sequence } = job
      const count = Math.min(left(job), room)
      if (sequence === undefined || count === 0) continue
      const slots = this.grow(job, sequence, count, parts)
      if (slots === undefined) continue
      parts.push({ job, sequence, slots })
      room -= count
    }
    const [alone] = this.running
    if (parts.length === 0 && alone !== undefined) {
      // The oldest one had all that the younger ones gave back.
      const { pages, pageSize, free } = this.decoder.pool
      const held = [...this.shared].reduce((sum, job) => sum + (job.sequence?.pageTable.length ?? 0), 0)
      this.leave(
        alone,
        new LowbitError(
          'ERR_PAGES',
          `Batch: a request of ${alone.tokens.length} tokens needs more than the ${free} free of ${pages} pages of ${pageSize}; shared prompts keep ${held}`,
        ),
      )
    }
    return parts
  }

  // Pages for more tokens of a job, taken from younger ones that are not in this step if need be.
  private grow(
    job: Job,
    sequence: KvSequence,
    count: number,
    parts: readonly { readonly job: Job }[],
  ): Int32Array | undefined {
    for (;;) {
      try {
        return this.decoder.grow(sequence, count)
      } catch (error) {
        if (!(error instanceof LowbitError && error.code === 'ERR_PAGES')) throw error
      }
      const younger = this.running.slice(this.running.indexOf(job) + 1)
      const victim = younger.reverse().find((other) => parts.every((part) => part.job !== other))
      if (victim === undefined) return undefined
      this.wait(victim)
    }
  }

  // Queues one pass. Tokens come from the host, or from the device, which has made them in the step before.
  private queue(parts: readonly JobPart[], made?: Tensor<'i32'>): Flight {
    const { decoder } = this
    const ids =
      made ??
      Int32Array.from(
        parts.flatMap(({ job, sequence, slots }) =>
          job.tokens.slice(sequence.length - slots.length, sequence.length),
        ),
      )
    const hidden = decoder.forward(parts, ids, 'last')
    const asks = parts.map(
      ({ job, sequence }) => job.count > 0 && (made !== undefined || sequence.length === job.tokens.length),
    )
    const drawn = new Map<number, Promise<Float32Array>>()
    let largest: Promise<Int32Array> | undefined
    if (asks.includes(true)) {
      using logits = this.logits.slice(0, 0, parts.length)
      using id = this.ids.slice(0, 0, parts.length)
      decoder.logits(hidden, logits)
      const asking = parts.map(({ job }, row) => (asks[row] === true ? job.sampler.greedy : undefined))
      if (asking.includes(true)) largest = (argmax(logits, { out: id }) as Tensor<'i32'>).read()
      for (const [row, greedy] of asking.entries()) {
        if (greedy !== false) continue
        using own = logits.slice(0, row, row + 1) as Tensor<'f32'>
        drawn.set(row, own.read())
      }
    }
    // `land` waits for them, unless the batch is closed before.
    for (const read of [largest, ...drawn.values()]) read?.catch(() => {})
    return { parts, asks, largest, drawn }
  }

  // Queues the step after one that is not read yet, where that one says all that is unknown: the same requests, each with
  // the token that it chooses there. One of them may turn out to have ended; its token is thrown away then.
  private ahead({ parts, asks }: Flight): Flight | undefined {
    if (this.waiting.length > 0 && this.running.length < this.sequences) return undefined
    if (parts.length !== this.running.length || parts.length > this.decoder.pool.free) return undefined
    const goesOn = ({ job, sequence }: JobPart, row: number) =>
      asks[row] === true &&
      job.sampler.greedy &&
      job.state === 'running' &&
      job.sequence === sequence &&
      job.made + 1 < job.count
    if (!parts.every(goesOn)) return undefined
    // One token needs one page at most.
    const next = parts.map(({ job, sequence }) => ({
      job,
      sequence,
      slots: this.decoder.grow(sequence, 1),
    }))
    using ids = this.ids.slice(0, 0, parts.length)
    return this.queue(next, ids)
  }

  // Waits for a step, and hands out its tokens.
  private async land({ parts, asks, largest, drawn }: Flight): Promise<void> {
    if (largest === undefined && drawn.size === 0) await this.model.device.sync()
    const [tokens] = await Promise.all([largest, ...drawn.values()])
    for (const [row, { job, sequence }] of parts.entries()) {
      if (this.closed) return
      // Aborted, or left, while the pass ran.
      if (job.state !== 'running' || job.sequence !== sequence) continue
      if (job.count === 0 && sequence.length === job.tokens.length) this.keep(job)
      if (asks[row] !== true) continue
      const values = await drawn.get(row)
      const token = values === undefined ? (tokens?.[row] ?? 0) : job.sampler.draw(values)
      if (job.take(token)) this.leave(job)
    }
  }

  // A shared prompt is computed: it holds its pages and runs no more.
  private keep(job: Job): void {
    this.running = this.running.filter((other) => other !== job)
    job.state = 'done'
  }

  /** Ends every request (their iterations throw ERR_DISPOSED) and gives the caches back. */
  close(): void {
    if (this.closed) return
    this.fail(new LowbitError('ERR_DISPOSED', 'Batch: it was closed'))
    this.closed = true
    for (const tensor of [this.logits, this.ids]) tensor.dispose()
    this.decoder.dispose()
  }
  [Symbol.dispose](): void {
    this.close()
  }
}
