/** `lowbit eval`: quality and speed of a checkpoint under each scheme. */

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Device, openDevice } from '../device'
import { LowbitError } from '../errors'
import { readJsonFile } from '../llama/config'
import type { KvOptions } from '../llama/decoder'
import { Llama } from '../llama/model'
import { isSchemeName, type SchemeName, schemeList, schemeNames, schemeOf, schemes } from '../llama/scheme'
import { Tokenizer } from '../llama/tokenizer'
import { root } from '../native'
import { type KvFormat, kvFormats } from '../words'
import { wordsOption } from './lists'
import { type Column, command, numberOption, Progress, tableHead, tableRow, UsageError } from './terminal'

const usage = `usage: lowbit eval [checkpoint] [options]

Loads a Llama checkpoint under each scheme and prints bits per weight, size, perplexity, and tokens per second.
The text is the held-out one of reference.json in the checkpoint's folder, or --text. Where expected.json is there
too, each perplexity is held against it, and the command fails if one is too far off.

  checkpoint         a folder in Hugging Face's layout (default: test/checkpoints/small)
  --schemes a,b      out of ${schemeList(21)} (default: all but the last line)
  --kv a,b           formats of the KV cache, out of ${kvFormats.join(', ')}
                     (default: the scheme's activations); with it the default of --schemes is f32
  --kv-prefix n      first tokens of each text that the KV cache keeps as floats (default: 0)
  --windows n        windows of text to read (default: all)
  --text file        a text of one's own, in windows of 512 tokens
  --device name      auto, cpu, cuda, cuda:N (default: auto)
  --threads n        threads on the CPU (default: all cores)
  --json             one JSON object on stdout instead of the table`

const textWindow = 512
const prefillTokens = 512
const decodePrompt = 64
const decodeTokens = 128
// Nothing is measured for much longer than this, however slow the rows.
const mostMeasureMs = 1500

/** How far a perplexity may be from the recorded one, as a fraction of it. */
function allowed(scheme: SchemeName): number {
  if (scheme === 'f32') return 0.0002
  if (scheme === 'bf16') return 0.003
  return scheme === 'int2-g64' || scheme === 'ternary' ? 0.02 : 0.005
}

interface Reference {
  readonly windows: readonly (readonly number[])[]
  readonly prompt: string | undefined
  readonly promptTokens: readonly number[] | undefined
  readonly greedyTokens: readonly number[] | undefined
}

function isTokens(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((token) => Number.isSafeInteger(token))
}

function cut(tokens: readonly number[], window: number): number[][] {
  const count = Math.floor(tokens.length / window)
  return Array.from({ length: count }, (_, i) => tokens.slice(i * window, (i + 1) * window))
}

function readReference(folder: string): Reference | undefined {
  const json = readJsonFile(folder, 'reference.json')
  if (json === undefined) return undefined
  const { heldout_tokens, window, prompt, prompt_tokens, greedy_tokens } = json as Record<string, unknown>
  if (!isTokens(heldout_tokens) || typeof window !== 'number' || !(window >= 2)) {
    throw new LowbitError('ERR_FILE', `${join(folder, 'reference.json')}: expected heldout_tokens and window`)
  }
  return {
    windows: cut(heldout_tokens, window),
    prompt: typeof prompt === 'string' ? prompt : undefined,
    promptTokens: isTokens(prompt_tokens) ? prompt_tokens : undefined,
    greedyTokens: isTokens(greedy_tokens) ? greedy_tokens : undefined,
  }
}

function readExpected(folder: string): ReadonlyMap<string, number> {
  const json = readJsonFile(folder, 'expected.json') ?? {}
  const numbers = Object.entries(json as Record<string, unknown>).filter(
    ([, value]) => typeof value === 'number',
  )
  return new Map(numbers as [string, number][])
}

function readText(folder: string, file: string): number[][] {
  const tokenizer = Tokenizer.read(folder)
  if (tokenizer === undefined) throw new LowbitError('ERR_FILE', `${folder}: --text needs a tokenizer.json`)
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    throw new LowbitError('ERR_FILE', `--text: ${error instanceof Error ? error.message : String(error)}`)
  }
  const tokens = tokenizer.encode(text)
  if (tokens.length < textWindow) {
    throw new LowbitError(
      'ERR_FILE',
      `--text: expected at least ${textWindow} tokens but ${file} has ${tokens.length}`,
    )
  }
  return cut(tokens, textWindow)
}

/** One line of the result. */
interface SchemeResult {
  scheme: SchemeName
  kv: KvFormat
  kvPrefix: number
  bitsPerWeight: number
  blockBytes: number
  weightBytes: number
  loadSeconds: number
  perplexity: number | undefined
  expected: number | undefined
  ratio: number | undefined
  allowed: number
  withinAllowed: boolean | undefined
  greedyTokensEqual: boolean | undefined
  prefillTokensPerSecond: number
  decodeTokensPerSecond: number
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[sorted.length >> 1] ?? Number.NaN
}

// Tokens of the text, or made-up ones: speed does not depend on which they are.
function someTokens(model: Llama, text: readonly number[] | undefined, count: number): number[] {
  const { vocabSize } = model.config
  return Array.from({ length: count }, (_, i) => text?.[i % text.length] ?? (i * 7919) % vocabSize)
}

async function measurePrefill(
  model: Llama,
  text: readonly number[] | undefined,
  kv: KvOptions,
): Promise<number> {
  const count = Math.min(prefillTokens, model.config.maxPositions)
  const tokens = someTokens(model, text, count)
  using session = model.session({ ...kv, length: count, chunk: count })
  using out = model.device.empty([1, model.config.vocabSize], 'f32')
  const seconds: number[] = []
  const started = performance.now()
  // The first run warms the caches and the arena; where a run takes long, that is nothing beside it.
  while (seconds.length < 4 && performance.now() - started < mostMeasureMs) {
    session.rewind(0)
    const start = performance.now()
    await session.prefill(tokens, { out })
    await model.device.sync()
    seconds.push((performance.now() - start) / 1000)
  }
  return count / median(seconds.length > 1 ? seconds.slice(1) : seconds)
}

async function measureDecode(
  model: Llama,
  text: readonly number[] | undefined,
  kv: KvOptions,
): Promise<number> {
  const room = model.config.maxPositions
  const prompt = someTokens(model, text, Math.min(decodePrompt, Math.ceil(room / 2)))
  using session = model.session({ ...kv, length: Math.min(room, prompt.length + decodeTokens) })
  let tokens = 0
  let start = 0
  for await (const _ of model.generate(prompt, { session, maxTokens: decodeTokens, ignoreEos: true })) {
    if (tokens++ === 0) start = performance.now()
    if (tokens > 1 && performance.now() - start > mostMeasureMs) break
  }
  return ((tokens - 1) * 1000) / (performance.now() - start)
}

async function continuation(
  model: Llama,
  prompt: readonly number[],
  count: number,
  kv: KvOptions,
): Promise<number[]> {
  const out: number[] = []
  for await (const { token } of model.generate(prompt, { ...kv, maxTokens: count })) out.push(token)
  return out
}

async function sampleText(model: Llama, prompt: string, kv: KvOptions): Promise<string> {
  let text = ''
  const options = { ...kv, maxTokens: 64, temperature: 0.7, topP: 0.9, seed: 1 }
  for await (const piece of model.generate(prompt, options)) text += piece.text
  return text
}

const columns: Column[] = [
  { title: 'scheme', width: 11 },
  { title: 'KV', width: 10 },
  { title: 'bits/weight', width: 11 },
  { title: 'MB', width: 7 },
  { title: 'perplexity', width: 10 },
  { title: 'expected', width: 9 },
  { title: 'off by', width: 9 },
  { title: 'prefill tok/s', width: 13 },
  { title: 'decode tok/s', width: 12 },
]

function resultRow(r: SchemeResult): string {
  const fixed = (value: number | undefined, digits: number) =>
    value === undefined ? '-' : value.toFixed(digits)
  const off = r.ratio === undefined ? '-' : `${r.ratio >= 1 ? '+' : ''}${((r.ratio - 1) * 100).toFixed(3)} %`
  return tableRow(columns, [
    r.scheme,
    r.kvPrefix > 0 ? `${r.kv}+${r.kvPrefix}` : r.kv,
    fixed(r.bitsPerWeight, 3),
    fixed(r.weightBytes / 1e6, 2),
    fixed(r.perplexity, 4),
    fixed(r.expected, 4),
    off,
    fixed(r.prefillTokensPerSecond, 0),
    fixed(r.decodeTokensPerSecond, 0),
  ])
}

interface Job {
  readonly folder: string
  readonly device: Device
  readonly windows: readonly (readonly number[])[] | undefined
  readonly expected: ReadonlyMap<string, number>
  readonly reference: Reference | undefined
  readonly note: (what: string) => void
}

function load(name: SchemeName, { folder, device, note }: Job): Promise<Llama> {
  note('loading')
  return Llama.load(folder, {
    device,
    scheme: schemeOf(name),
    onProgress: (done, total) => note(`layer ${done} of ${total}`),
  })
}

async function evaluate(
  model: Llama,
  name: SchemeName,
  kv: KvOptions,
  loadSeconds: number,
  job: Job,
): Promise<{ result: SchemeResult; text: string | undefined }> {
  const { windows, reference, note } = job
  const onProgress = (done: number, total: number) => note(`window ${done} of ${total}`)
  const found = windows === undefined ? undefined : await model.perplexity(windows, { ...kv, onProgress })
  const expected = found === undefined ? undefined : job.expected.get(name === 'bf16' ? 'f32' : name)
  const ratio = found === undefined || expected === undefined ? undefined : found.perplexity / expected
  note('prefill and decode')
  const text = windows?.[0]
  const prefillTokensPerSecond = await measurePrefill(model, text, kv)
  const decodeTokensPerSecond = await measureDecode(model, text, kv)
  let greedyTokensEqual: boolean | undefined
  const { promptTokens, greedyTokens } = reference ?? {}
  // Recorded are the perplexity of the scheme and the tokens of f32 with an exact cache.
  const exact = kv.kv === undefined
  if (name === 'f32' && exact && promptTokens !== undefined && greedyTokens !== undefined) {
    const made = await continuation(model, promptTokens, greedyTokens.length - promptTokens.length, kv)
    greedyTokensEqual = [...promptTokens, ...made].join() === greedyTokens.join()
  }
  const prompt = reference?.prompt ?? 'The '
  const sample = model.tokenizer === undefined ? undefined : await sampleText(model, prompt, kv)
  const usage = model.usage()
  const result: SchemeResult = {
    scheme: name,
    kv: kv.kv ?? model.scheme.activations ?? 'f32',
    kvPrefix: kv.prefixTokens ?? 0,
    bitsPerWeight: usage.bitsPerWeight,
    blockBytes: usage.blockBytes,
    weightBytes: usage.deviceBytes,
    loadSeconds,
    perplexity: found?.perplexity,
    expected,
    ratio,
    allowed: allowed(name),
    withinAllowed: ratio === undefined || !exact ? undefined : Math.abs(ratio - 1) <= allowed(name),
    greedyTokensEqual,
    prefillTokensPerSecond,
    decodeTokensPerSecond,
  }
  return { result, text: sample === undefined ? undefined : prompt + sample }
}

function describe(model: Llama): string {
  const { layers, hiddenSize } = model.config
  const usage = model.usage()
  const millions = (count: number) => `${(count / 1e6).toFixed(1)} M`
  return `Llama, ${layers} layers of width ${hiddenSize}, ${millions(usage.parameters)} parameters (${millions(usage.blockParameters)} in the layers that are quantised)`
}

function defaultCheckpoint(): string {
  const beside = join(root, 'test', 'checkpoints', 'small')
  if (existsSync(beside)) return beside
  throw new UsageError('name a checkpoint: a folder with config.json and model.safetensors')
}

function schemesToRun(list: string | undefined, usual: readonly string[]): SchemeName[] {
  if (list === undefined) return usual as SchemeName[]
  return list.split(',').map((entry) => {
    const name = entry.trim()
    if (isSchemeName(name)) return name
    throw new UsageError(`--schemes expects names out of ${schemeNames.join(', ')} but got '${name}'`)
  })
}

function complaints(results: readonly SchemeResult[]): string[] {
  const out: string[] = []
  for (const {
    scheme,
    withinAllowed,
    perplexity: found,
    expected,
    allowed: most,
    greedyTokensEqual,
  } of results) {
    if (withinAllowed === false) {
      out.push(
        `${scheme}: perplexity ${found?.toFixed(4)} is more than ${(most * 100).toFixed(2)} % from the recorded ${expected?.toFixed(4)}`,
      )
    }
    if (greedyTokensEqual === false)
      out.push(`${scheme}: the greedy continuation differs from the recorded one`)
  }
  return out
}

/** Runs the command; resolves to the exit code: 1 where a perplexity is too far from the recorded one. */
export async function run(argv: string[]): Promise<number> {
  const options = {
    schemes: { type: 'string' },
    kv: { type: 'string' },
    'kv-prefix': { type: 'string' },
    windows: { type: 'string' },
    text: { type: 'string' },
    device: { type: 'string' },
    threads: { type: 'string' },
    json: { type: 'boolean' },
  } as const
  return command(argv, usage, options, 1, async (values, [path]) => {
    const kvs = wordsOption<KvFormat>(values.kv, 'kv', kvFormats)
    const prefixTokens = numberOption(values['kv-prefix'], 'kv-prefix', 0)
    const names = schemesToRun(values.schemes, kvs === undefined ? Object.keys(schemes) : ['f32'])
    const count = numberOption(values.windows, 'windows', 1)
    const threads = numberOption(values.threads, 'threads', 1, 1024)
    const folder = path ?? defaultCheckpoint()
    const reference = readReference(folder)
    const all = values.text === undefined ? reference?.windows : readText(folder, values.text)
    const windows = count === undefined ? all : all?.slice(0, count)
    // The recorded perplexities are of the whole held-out text.
    const comparable = values.text === undefined && windows?.length === all?.length
    const expected = comparable ? readExpected(folder) : new Map<string, number>()
    using device = openDevice(values.device ?? 'auto', threads === undefined ? {} : { threads })
    const progress = new Progress()
    const { info } = device
    const print = (line: string) => {
      progress.clear()
      if (!values.json) process.stdout.write(`${line}\n`)
    }
    const results: SchemeResult[] = []
    let text: string | undefined
    let textScheme: SchemeName | undefined
    try {
      for (const [index, name] of names.entries()) {
        const note = (what: string) => progress.show(`${name} (${index + 1} of ${names.length}): ${what}`)
        const job = { folder, device, windows, expected, reference, note }
        const start = performance.now()
        using model = await load(name, job)
        const loadSeconds = (performance.now() - start) / 1000
        for (const kv of kvs ?? [undefined]) {
          const done = await evaluate(model, name, { kv, prefixTokens }, loadSeconds, job)
          if (results.length === 0) {
            const cpu = info.threads > 0 ? `, ${info.threads} threads` : ''
            print(`checkpoint  ${folder}`)
            print(`model       ${describe(model)}`)
            print(`device      ${info.device}: ${info.name}${cpu}, ${info.archs.join(' ')}`)
            print(
              `text        ${windows === undefined ? 'none: speed only' : `${windows.length} windows of ${windows[0]?.length ?? 0} tokens`}`,
            )
            print(`\n${tableHead(columns)}`)
          }
          results.push(done.result)
          print(resultRow(done.result))
          if (textScheme === undefined || name === 'int4-g64') {
            text = done.text
            textScheme = name
          }
        }
      }
    } finally {
      progress.clear()
    }
    const wrong = complaints(results)
    if (results.some(({ greedyTokensEqual }) => greedyTokensEqual === true)) {
      print('\nThe greedy continuation under f32 is the recorded one, token for token.')
    }
    if (text !== undefined) print(`\nSampled under ${textScheme}:\n\n${text}`)
    if (values.json) {
      const report = {
        checkpoint: folder,
        device: info,
        windows: windows?.length ?? 0,
        schemes: results,
        text,
        textScheme,
        failures: wrong,
      }
      process.stdout.write(`${JSON.stringify(report, undefined, 2)}\n`)
    }
    for (const sentence of wrong) process.stderr.write(`lowbit: eval: ${sentence}\n`)
    return wrong.length > 0 ? 1 : 0
  })
}
