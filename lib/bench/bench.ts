/** The whole of `lowbit bench`: devices, peaks, and the cases of each op. */
import { type Device, openDevice } from '../device'
import { description, native } from '../native'
import { measurePeaks, type Peaks } from '../peaks'
import { attentionCases } from './attention'
import { runCalls } from './calls'
import { type BenchLine, type Origin, originOf, rounded } from './line'
import { linearCases } from './linear'
import { runLoad } from './load'
import { rowCases } from './rows'
import { type BenchCase, type BenchContext, type BenchOptions, type BenchSink, runCases } from './run'

const cases: Readonly<Record<string, (context: BenchContext) => Iterable<BenchCase>>> = {
  linear: linearCases,
  attention: attentionCases,
  rows: rowCases,
}

/** The measured peaks as lines. */
export function peakLines(peaks: Peaks, origin: Origin): BenchLine[] {
  const lines: BenchLine[] = []
  for (const { name, quantity, one, all } of peaks.rows) {
    const unit = quantity === 'read' || quantity === 'copy' ? 'gbs' : 'gops'
    const rates =
      peaks.threads > 1
        ? ([
            [1, one],
            [peaks.threads, all],
          ] as const)
        : ([[1, one]] as const)
    for (const [threads, rate] of rates) {
      if (rate > 0) {
        lines.push({
          op: 'peaks',
          row: name,
          case: quantity,
          shape: '',
          threads,
          [unit]: rounded(rate),
          ...origin,
        })
      }
    }
  }
  return lines
}

/**
 * Runs these ops, each with each number of threads. The peaks are measured anew for every op, because other tenants of
 * a machine come and go within a minute.
 *
 * @param wanted numbers of threads; by default one and as many as the process may use.
 * @returns how many cases were timed.
 */
export async function runBench(
  ops: readonly string[],
  wanted: readonly number[] | undefined,
  options: BenchOptions,
  batches: number,
  sink: BenchSink,
): Promise<number> {
  const origin = originOf(options.device)
  let lines = 0
  const onGpu = options.device !== undefined && options.device !== 'cpu'
  // A GPU has no threads that could be counted: its one device stands under 1.
  const threads = new Set(onGpu ? [1] : (wanted ?? [1, native.hostInfo().cores]))
  const widest = Math.max(...threads)
  for (const op of ops) {
    const devices = new Map<number, Device>(
      [...threads].map((n) => [n, onGpu ? openDevice(options.device) : openDevice('cpu', { threads: n })]),
    )
    const host = onGpu ? openDevice('cpu') : undefined
    try {
      const measured = new Map<number, Peaks>()
      const peaksWith = async (n: number): Promise<Peaks> => {
        const known = measured.get(n === 1 ? widest : n)
        if (known !== undefined) return known
        const device = devices.get(n === 1 ? widest : n) as Device
        sink.progress(`${op}: peaks of the machine, ${device.info.threads} threads`)
        const peaks = await measurePeaks(device, {
          seconds: Math.min(10, 2 * options.effort.seconds || 1e-3),
        })
        measured.set(n === 1 ? widest : n, peaks)
        sink.peaks(peaks, peakLines(peaks, origin))
        if (op === 'peaks') lines++
        return peaks
      }
      for (const [n, device] of devices) {
        const casesOf = cases[op]
        if (op === 'calls') {
          lines += n === widest ? await runCalls(device, batches, origin, sink) : 0
        } else if (op === 'load') {
          lines += n === widest ? runLoad(options.load, n, options.effort.rounds, origin, sink) : 0
        } else {
          const peaks = await peaksWith(n)
          if (casesOf !== undefined) {
            const context = { device, threads: n, options, ...(host === undefined ? {} : { host }) }
            lines += runCases(casesOf(context), context, peaks, origin, sink)
          }
        }
      }
    } finally {
      for (const device of devices.values()) device.close()
      host?.close()
    }
  }
  return lines
}

/** The bench that a kernel row belongs to; undefined if there is no such row. */
export function benchOf(row: string): string | undefined {
  const op = description.kernels.find(({ name }) => name === row)?.op
  return op === undefined || op in cases ? op : 'rows'
}
