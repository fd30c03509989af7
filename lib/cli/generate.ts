/** `lowbit generate`: continues a prompt, streaming the text. */

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openDevice } from '../device'
import { Llama } from '../llama/model'
import { isSchemeName, schemeList, schemeNames, schemeOf } from '../llama/scheme'
import { root } from '../native'
import { type KvFormat, kvFormats } from '../words'
import { wordsOption } from './lists'
import { command, numberOption, Progress, UsageError } from './terminal'

const usage = `usage: lowbit generate [checkpoint] --prompt text [options]

Continues a prompt; the text streams to stdout, the speed goes to stderr where that is a terminal.

  checkpoint         a folder in Hugging Face's layout (default: test/checkpoints/small)
  --prompt text      what to continue; may be empty
  --tokens n         tokens to make at most (default: 128)
  --scheme name      how the weights are stored (default: bf16); out of
                     ${schemeList(21)}
  --kv format        how the KV cache keeps its numbers (default: as the scheme's activations); out of
                     ${kvFormats.join(', ')}
  --temperature t    0 takes the likeliest token (default: 0.8)
  --top-k n          only the n likeliest tokens (default: all)
  --top-p p          only the likeliest tokens that make up p (default: 0.95)
  --seed n           equal seeds give equal texts (default: 0)
  --device name      auto, cpu, cuda, cuda:N (default: auto)
  --threads n        threads on the CPU (default: all cores)
  --json             one JSON object on stdout at the end`

/** Runs the command; resolves to the exit code: 130 where Ctrl-C ended the text. */
export async function run(argv: string[]): Promise<number> {
  const options = {
    prompt: { type: 'string' },
    tokens: { type: 'string' },
    scheme: { type: 'string' },
    kv: { type: 'string' },
    temperature: { type: 'string' },
    'top-k': { type: 'string' },
    'top-p': { type: 'string' },
    seed: { type: 'string' },
    device: { type: 'string' },
    threads: { type: 'string' },
    json: { type: 'boolean' },
  } as const
  return command(argv, usage, options, 1, async (values, [path]) => {
    const { prompt } = values
    if (prompt === undefined) throw new UsageError('--prompt is missing')
    const schemeName = values.scheme ?? 'bf16'
    if (!isSchemeName(schemeName)) {
      throw new UsageError(`--scheme expects one of ${schemeNames.join(', ')} but got '${schemeName}'`)
    }
    const sampling = {
      maxTokens: numberOption(values.tokens, 'tokens', 1) ?? 128,
      temperature: numberOption(values.temperature, 'temperature', 0, 1000, false) ?? 0.8,
      topK: numberOption(values['top-k'], 'top-k', 0) ?? 0,
      topP: numberOption(values['top-p'], 'top-p', Number.MIN_VALUE, 1, false) ?? 0.95,
      seed: numberOption(values.seed, 'seed', Number.MIN_SAFE_INTEGER) ?? 0,
    }
    const [kv, ...others] = wordsOption<KvFormat>(values.kv, 'kv', kvFormats) ?? []
    if (others.length > 0) throw new UsageError('--kv expects one format')
    const threads = numberOption(values.threads, 'threads', 1, 1024)
    const folder = path ?? join(root, 'test', 'checkpoints', 'small')
    if (path === undefined && !existsSync(folder)) throw new UsageError('name a checkpoint')

    const progress = new Progress()
    const abort = new AbortController()
    const stop = () => abort.abort()
    process.once('SIGINT', stop)
    using device = openDevice(values.device ?? 'auto', threads === undefined ? {} : { threads })
    let text = ''
    const tokens: number[] = []
    const started = performance.now()
    let first = 0
    let last = 0
    try {
      progress.show('loading')
      using model = await Llama.load(folder, {
        device,
        scheme: schemeOf(schemeName),
        signal: abort.signal,
        onProgress: (done, total) => progress.show(`loading: layer ${done} of ${total}`),
      })
      progress.clear()
      if (!values.json) process.stdout.write(prompt)
      for await (const piece of model.generate(prompt, { ...sampling, kv, signal: abort.signal })) {
        last = performance.now()
        if (tokens.length === 0) first = last
        tokens.push(piece.token)
        text += piece.text
        if (!values.json) process.stdout.write(piece.text)
      }
    } catch (error) {
      if (!abort.signal.aborted) throw error
    } finally {
      process.removeListener('SIGINT', stop)
      progress.clear()
      if (!values.json) process.stdout.write('\n')
    }
    const tokensPerSecond = tokens.length > 1 ? ((tokens.length - 1) * 1000) / (last - first) : undefined
    if (values.json) {
      const report = {
        checkpoint: folder,
        device: device.info,
        scheme: schemeName,
        kv,
        ...sampling,
        prompt,
        text,
        tokens,
        tokensPerSecond,
      }
      process.stdout.write(`${JSON.stringify(report, undefined, 2)}\n`)
    } else if (process.stderr.isTTY) {
      const speed = tokensPerSecond === undefined ? '' : `, ${tokensPerSecond.toFixed(0)} tokens/s`
      const wait = tokens.length > 0 ? `, first after ${((first - started) / 1000).toFixed(2)} s` : ''
      process.stderr.write(`${tokens.length} tokens${speed}${wait}\n`)
    }
    return abort.signal.aborted ? 130 : 0
  })
}
