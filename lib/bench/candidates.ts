/** Every row that can serve a call of linear, timed beside the others on this machine. */
import type { Device } from '../device'
import { LowbitError } from '../errors'
import { description } from '../native'
import type { GroupSize, ScaleDType } from '../quantize'
import type { TunedCall } from '../tuned'
import type { DType, Layout } from '../words'
import type { LinearConfig } from './cases'
import { linearCasesOf } from './linear'
import { ourRunner, type Runner, runRounds } from './rounds'
import type { BenchCase } from './run'
import { type Effort, percentile } from './time'

/** A row that fits, and the median of its rounds in microseconds; none where it would take too long to wait for. */
export interface Candidate {
  readonly row: string
  readonly us?: number
}

/** The rows for one call; the first is the one that the registry's order gives. */
export interface Candidates {
  readonly call: Omit<TunedCall, 'row' | 'us' | 'usual' | 'usualUs'>
  readonly rows: readonly Candidate[]
}

// Multiplies and adds that the reference row is given at most: a tenth of a second of them.
const referenceOperations = 3e7

/** A case in the words of a tuned call. */
function callOf(
  properties: BenchCase['properties'],
  { format, compute, zeros }: LinearConfig,
): Candidates['call'] {
  const { m, n, k, x, layout, group, scales } = properties
  return {
    ...{ m: Number(m), n: Number(n), k: Number(k), format, compute },
    ...{ x: x as DType, layout: layout as Layout },
    ...(group === undefined ? {} : { groupSize: group as GroupSize }),
    ...(zeros === undefined ? {} : { zeroPoint: zeros }),
    ...(scales === undefined ? {} : { scaleDtype: scales as ScaleDType }),
  }
}

/** The candidates of one configuration at one shape, for each number of rows of x. */
export async function* candidatesOf(
  device: Device,
  config: LinearConfig,
  [n, k]: readonly [number, number],
  ms: readonly number[],
  effort: Effort,
): AsyncGenerator<Candidates> {
  const context = { device, threads: device.info.threads, options: { m: ms, hot: false, effort } }
  const rows = description.kernels.filter(({ op }) => op === 'linear').map(({ name }) => name)
  for (const c of linearCasesOf(context, config, { name: '', shape: [n, k] })) {
    const { launch } = c
    const fitting: { row: string; runner?: Runner }[] = []
    for (const row of rows) {
      if (row === 'linear_ref' && c.work.operations > referenceOperations) {
        fitting.push({ row }) // it serves every call
        continue
      }
      try {
        launch(0, row)
      } catch (error) {
        if (!(error instanceof LowbitError && error.code === 'ERR_UNSUPPORTED')) throw error
        continue
      }
      device.syncSync()
      const wrong = c.check()
      if (wrong !== undefined) throw new LowbitError('ERR_INTERNAL', `${c.shape}: ${row} is wrong: ${wrong}`)
      fitting.push({ row, runner: ourRunner(row, device, (index) => launch(index, row)) })
    }
    const runners = fitting.flatMap(({ runner }) => runner ?? [])
    if (runners.length > 0) await runRounds(runners, context.threads, effort)
    yield {
      call: callOf(c.properties, config),
      rows: fitting.map(({ row, runner }) => {
        if (runner === undefined) return { row }
        return {
          row,
          us: percentile(
            [...runner.us].sort((a, b) => a - b),
            0.5,
          ),
        }
      }),
    }
  }
}
