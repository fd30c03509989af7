/**
 * Tokens per second of a whole model: greedy steps after a prompt, one token after another, as `generate` makes them.
 * The rival is llama.cpp with the same checkpoint, its weights as Q4_0.
 */
import fs from 'node:fs'
import path from 'node:path'
import { openDevice } from '../device'
import { LowbitError } from '../errors'
import { Llama } from '../llama/model'
import { native } from '../native'
import { argmax } from '../softmax'
import { type BenchLine, originOf, rounded } from './line'
import { Peers } from './peer'
import { type Runner, runRounds } from './rounds'
import type { BenchSink } from './run'
import { type Effort, percentile, waitedNs } from './time'

/** Their time over ours that a token shall reach at least. */
export const decodeBar = 1.3

const promptTokens = 128
const steps = 64
// Of groups of 32 with int8 compute, like the rival's: the same bits, the same arithmetic.
const scheme = {
  format: 'int4',
  groupSize: 32,
  symmetric: true,
  compute: 'int8',
  activations: 'bf16',
} as const
// The rival's logits may be so far from those of the f32 weights, as a part of their length. A wrong permutation of
// heads, a wrong base of rope: 0.7 and more.
const largestError = 0.25

/** Token ids that any vocabulary has, and no text. */
const promptOf = (vocabSize: number): number[] =>
  Array.from({ length: promptTokens }, (_, i) => 1 + ((i * 2654435761) % (Math.min(vocabSize, 4096) - 1)))

async function ourRun(model: Llama, prompt: readonly number[]): Promise<Runner & Disposable> {
  const session = model.session({ length: promptTokens + steps })
  const logits = model.device.empty([1, model.config.vocabSize])
  const id = model.device.empty([1], 'i32')
  await session.prefill(prompt, { out: logits })
  // Each pass is queued before the token of the one before is read, as in generate().
  const token = () => {
    argmax(logits, { out: id })
    return id.read()
  }
  const pass = async (): Promise<void> => {
    session.rewind(promptTokens)
    let pending = token()
    for (let i = 0; i < steps; i++) {
      const current = pending
      session.logits(session.forward(id), logits)
      pending = token()
      await current
    }
    await pending
  }
  return {
    label: 'lowbit',
    runs: 1,
    us: [],
    burst: async (runs) => {
      const before = waitedNs()
      const begin = process.hrtime.bigint()
      for (let i = 0; i < runs; i++) await pass()
      const seconds = Number(process.hrtime.bigint() - begin) * 1e-9
      return { seconds, launches: runs * steps, waited: (waitedNs() - before) * 1e-9 }
    },
    [Symbol.dispose]: () => {
      for (const thing of [id, logits, session]) thing[Symbol.dispose]()
    },
  }
}

/** What the checkpoint's weights say to the prompt in f32: what the rival is checked with. */
async function exactLogits(folder: string, prompt: readonly number[]): Promise<Float32Array> {
  using device = openDevice('cpu')
  using model = await Llama.load(folder, { device, scheme: { format: 'f32' } })
  using session = model.session({ length: promptTokens })
  using logits = await session.prefill(prompt)
  return await logits.read()
}

/**
 * Times a checkpoint with each number of threads (default: one, and all cores), beside llama.cpp where `rivals` is set and it is installed.
 *
 * @returns how many lines it made
 * @throws LowbitError ERR_FILE where the folder is no checkpoint
 */
export async function runDecode(
  folder: string,
  wanted: readonly number[] | undefined,
  effort: Effort,
  rivals: boolean,
  sink: BenchSink,
): Promise<number> {
  const origin = originOf()
  const threads = wanted ?? [...new Set([1, native.hostInfo().cores])]
  const peers = new Peers(sink)
  const name = path.basename(fs.realpathSync(folder))
  let exact: Float32Array | undefined
  try {
    for (const count of threads) {
      sink.progress(`decode ${name}, ${count} threads`)
      using device = openDevice('cpu', { threads: count })
      using model = await Llama.load(folder, { device, scheme })
      const prompt = promptOf(model.config.vocabSize)
      using ours = await ourRun(model, prompt)
      const everyone: Runner[] = [ours]
      const peer = rivals ? await peers.get('llama') : undefined
      let rival: Runner | undefined
      if (peer !== undefined) {
        exact ??= await exactLogits(folder, prompt)
        const spec = { folder: path.resolve(folder), format: 'q4_0', prompt, steps, threads: count }
        const { label, error } = await peer.prepare({ ...spec, logits: [...exact] })
        if (!(error <= largestError)) {
          throw new LowbitError(
            'ERR_INTERNAL',
            `${label}: its logits are ${(100 * error).toFixed(0)} % from the exact ones: the call is wrong`,
          )
        }
        rival = { label, burst: (runs) => peer.run(runs), runs: 1, us: [] }
        everyone.push(rival)
      }
      const { disturbed, noisy } = await runRounds(everyone, count, effort)
      const sorted = (values: readonly number[]) => [...values].sort((a, b) => a - b)
      const us = sorted(ours.us)
      const time = percentile(us, 0.5)
      const line: BenchLine = {
        ...origin,
        op: 'decode',
        row: `${name}, int4 g32 a8`,
        case: name,
        shape: `${promptTokens} to ${promptTokens + steps} tokens in the cache`,
        threads: count,
        us: rounded(time),
        p10: rounded(percentile(us, 0.1)),
        p90: rounded(percentile(us, 0.9)),
        rounds: us.length,
        calls: ours.runs * steps,
        disturbed,
        noisy,
        perSecond: rounded(1e6 / time),
      }
      if (rival === undefined) {
        sink.line({ ...line, note: `${(1e6 / time).toFixed(0)} tokens/s` })
        continue
      }
      const ratios = sorted(ours.us.map((own, i) => (rival.us[i] as number) / own))
      const ratio = percentile(ratios, 0.5)
      const peerUs = percentile(sorted(rival.us), 0.5)
      sink.line({
        ...line,
        peer: rival.label,
        peerVersion: peer?.version,
        peerUs: rounded(peerUs),
        ratio: rounded(ratio, 3),
        ratioP10: rounded(percentile(ratios, 0.1), 3),
        ratioP90: rounded(percentile(ratios, 0.9), 3),
        bar: decodeBar,
        holds: ratio >= decodeBar,
        note:
          `${(1e6 / time).toFixed(0)} tokens/s, ${rival.label} ${(1e6 / peerUs).toFixed(0)}: ` +
          `${ratio.toFixed(2)} times, ${ratio >= decodeBar ? 'within' : 'UNDER'} the bar of ${decodeBar}`,
      })
    }
  } finally {
    await peers.close()
  }
  return threads.length
}
