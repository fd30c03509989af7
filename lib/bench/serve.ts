/**
 * A model that serves many texts at once, through `Batch`: how many requests a second, and how long each user waits for a
 * token. A closed loop: so many clients, each with one request at a time, whose next begins as its last one ends. Times are
 * those that a client sees: from `add` to its first token, and from one token to the next.
 */
import fs from 'node:fs'
import path from 'node:path'
import { openDevice } from '../device'
import { Batch, type BatchRequest } from '../llama/batch'
import { Llama } from '../llama/model'
import { native } from '../native'
import type { KvFormat } from '../words'
import { originOf, rounded } from './line'
import { randomFloats, randomInts } from './random'
import type { BenchSink } from './run'
import { percentile, waitedNs } from './time'

/** What `lowbit bench serve` was asked for. */
export interface ServeOptions {
  /** Clients, a line for each number. */
  readonly sequences: readonly number[]
  /** Formats of the KV cache, a line for each. */
  readonly kv: readonly KvFormat[]
  /** Tokens of a prompt, and tokens to make: the middle of what the requests draw, from half to one and a half of it. */
  readonly prompt: number
  readonly tokens: number
  /** Tokens of one step at most. Default: that of `Batch`. */
  readonly chunk?: number | undefined
  readonly device: string
  /** Default: all cores. */
  readonly threads?: number | undefined
}

// As `bench decode` has it.
const scheme = {
  format: 'int4',
  groupSize: 32,
  symmetric: true,
  compute: 'int8',
  activations: 'bf16',
} as const

// Requests that are timed: some for each client, and enough for a 99th percentile of the first tokens.
const timedOf = (clients: number) => Math.max(24, 2 * clients)

interface Measured {
  /** Requests that ended while it was timed, their tokens, and seconds. */
  requests: number
  tokens: number
  seconds: number
  /** Milliseconds from `add` to the first token, and between two tokens. */
  readonly first: number[]
  readonly between: number[]
  /** Share of the time that threads of the process stood in the run queue. */
  waited: number
}

const now = (): number => Number(process.hrtime.bigint()) * 1e-6

async function measure(batch: Batch, clients: number, options: ServeOptions): Promise<Measured> {
  const { vocabSize } = batch.model.config
  const wanted = timedOf(clients)
  // From half to one and a half of what was asked for; the same ones in every run.
  const draws = randomFloats(8 * (clients + wanted), clients)
  let drawn = 0
  const around = (n: number) =>
    Math.max(1, Math.round(n * (1 + 0.5 * (draws[drawn++ % draws.length] as number))))
  let asked = 0
  const found: Measured = { requests: 0, tokens: 0, seconds: 0, first: [], between: [], waited: 0 }
  // The first request of each client warms up: then all of them are in the middle of something.
  let ended = 0
  let begin = 0
  let waited = 0
  let over = false
  const running = new Set<BatchRequest>()
  const client = async (): Promise<void> => {
    while (!over) {
      const prompt = [...randomInts(around(options.prompt), vocabSize, ++asked)]
      const maxTokens = around(options.tokens)
      let last = now()
      let made = 0
      const request = batch.add(prompt, { maxTokens, ignoreEos: true })
      running.add(request)
      for await (const _ of request) {
        const at = now()
        if (begin > 0) {
          ;(made === 0 ? found.first : found.between).push(at - last)
          found.tokens++
        }
        last = at
        made++
      }
      running.delete(request)
      if (over) return
      ended++
      if (begin > 0) found.requests++
      if (ended === clients) {
        begin = now()
        waited = waitedNs()
      } else if (ended === clients + wanted) {
        over = true
        found.seconds = (now() - begin) * 1e-3
        found.waited = ((waitedNs() - waited) * 1e-9) / found.seconds
        for (const other of running) other.cancel()
      }
    }
  }
  await Promise.all(Array.from({ length: clients }, client))
  return found
}

/**
 * Serves a checkpoint to each number of clients, with each format of the cache.
 *
 * @returns how many lines it made
 * @throws LowbitError ERR_FILE where the folder is no checkpoint; ERR_MEMORY
 */
export async function runServe(folder: string, options: ServeOptions, sink: BenchSink): Promise<number> {
  const origin = originOf(options.device)
  const threads = options.threads ?? native.hostInfo().cores
  const onCpu = options.device === 'cpu'
  using device = openDevice(options.device, onCpu ? { threads } : {})
  using model = await Llama.load(folder, { device, scheme })
  const name = path.basename(fs.realpathSync(folder))
  const length = Math.min(model.config.maxPositions, Math.ceil(1.5 * (options.prompt + options.tokens)) + 2)
  let lines = 0
  for (const kv of options.kv) {
    for (const clients of options.sequences) {
      sink.progress(`serve ${name}, ${kv} cache, ${clients} clients`)
      using batch = new Batch(model, { sequences: clients, length, kv, chunk: options.chunk })
      const { requests, tokens, seconds, first, between, waited } = await measure(batch, clients, options)
      const sorted = (values: number[]) => values.sort((a, b) => a - b)
      const [firsts, gaps] = [sorted(first), sorted(between)]
      const at = (values: number[], p: number) => rounded(percentile(values, p))
      sink.line({
        ...origin,
        op: 'serve',
        row: `${name}, int4 g32 a8, ${kv} cache`,
        case: name,
        shape: `prompts of ${options.prompt}, ${options.tokens} tokens made`,
        kv,
        ...(options.chunk === undefined ? {} : { chunk: options.chunk }),
        sequences: clients,
        threads: onCpu ? threads : 1,
        rounds: requests,
        requestsPerSecond: rounded(requests / seconds),
        tokensPerSecond: rounded(tokens / seconds),
        firstMs: at(firsts, 0.5),
        firstMsP99: at(firsts, 0.99),
        tokenMs: at(gaps, 0.5),
        tokenMsP90: at(gaps, 0.9),
        tokenMsP99: at(gaps, 0.99),
        waitPercent: rounded((100 * waited) / threads, 2),
      })
      lines++
    }
  }
  return lines
}
