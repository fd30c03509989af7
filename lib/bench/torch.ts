/**
 * A GPU's rows against PyTorch's calls. The scripts of bench/peers measure both in one process, through the library itself;
 * this passes on what was asked for and what they found.
 */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { cudaFiles } from '../backends'
import { LowbitError } from '../errors'
import { root } from '../native'
import { type BenchLine, type Origin, originOf } from './line'
import type { BenchSink } from './run'

const scripts = { linear: 'torch.py', attention: 'torch_attention.py' } as const

/** An op that PyTorch is a rival of. */
export type TorchOp = keyof typeof scripts

/** The line of what a script wrote of a case, with the best of its rivals. */
function lineOf(
  found: BenchLine,
  rivals: Readonly<Record<string, number>>,
  { node, date }: Origin,
): BenchLine {
  const [best] = Object.entries(rivals).sort(([, a], [, b]) => a - b)
  const against = best === undefined ? {} : { peer: best[0], peerUs: best[1], best: true }
  return { ...found, ...against, op: 'torch', threads: 1, node, date }
}

/**
 * Runs a script on the GPU `device`.
 *
 * @param args what it is told besides: its own options
 * @returns how many lines it made
 * @throws LowbitError ERR_FILE where the script or python3 is not there; ERR_INTERNAL where it failed, with its own words on stderr
 */
export async function runTorch(
  op: TorchOp,
  device: string,
  args: readonly string[],
  sink: BenchSink,
): Promise<number> {
  const script = path.join(root, 'bench', 'peers', scripts[op])
  if (!fs.existsSync(script))
    throw new LowbitError('ERR_FILE', `--peers needs the repository: there is no ${script}`)
  const origin = originOf(device)
  const index = device.replace('cuda:', '')
  // Its table goes to stderr, its lines come by a descriptor of their own.
  const child = spawn('python3', [script, cudaFiles.library, '--save', '/dev/fd/3', ...args], {
    stdio: ['ignore', 2, 2, 'pipe'],
    env: { ...process.env, CUDA_VISIBLE_DEVICES: index },
  })
  const ended = new Promise<number | null>((resolve, reject) => {
    child.on('error', ({ message }) => reject(new LowbitError('ERR_FILE', `python3: ${message}`)))
    child.on('close', resolve)
  })
  let lines = 0
  const read = async (): Promise<void> => {
    for await (const text of createInterface({ input: child.stdio[3] as NodeJS.ReadableStream })) {
      const found = JSON.parse(text)
      sink.line(lineOf(found, found.rivals, origin))
      lines++
    }
  }
  const [status] = await Promise.all([ended, read()])
  if (status !== 0) throw new LowbitError('ERR_INTERNAL', `${script} ended with status ${status}`)
  return lines
}
