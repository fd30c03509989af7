/** Runs the cases one after another and makes a line of each. */
import type { Device } from '../device'
import { LowbitError } from '../errors'
import { description, native } from '../native'
import type { Peaks } from '../peaks'
import type { FloatDType, GroupSize } from '../quantize'
import type { Compute, Format, ZeroPoint } from '../words'
import { boundOf, ratesOf, type Work } from './bound'
import type { AttentionShape } from './cases'
import { type BenchLine, type Origin, rounded } from './line'
import { type Effort, timeLaunches } from './time'

/** A shape with its name in cases.ts, or ''. */
export interface Named<S> {
  readonly name: string
  readonly shape: S
}

/** Which configurations of linear; an absent list stands for the usual one. */
export interface LinearChoices {
  readonly formats?: readonly Format[]
  readonly groups?: readonly GroupSize[]
  readonly computes?: readonly Compute[]
  readonly zeros?: readonly ZeroPoint[]
  readonly x?: readonly FloatDType[]
}

/** What `lowbit bench` was asked for. An absent list stands for the default one. */
export interface BenchOptions extends LinearChoices {
  readonly m?: readonly number[]
  readonly linear?: readonly Named<readonly [number, number]>[]
  readonly attention?: readonly Named<AttentionShape>[]
  /** Rows and columns of the weight that is quantised and packed; without, the usual one with its bars. */
  readonly load?: readonly [number, number]
  /** Rows and columns. */
  readonly rows?: readonly (readonly [number, number])[]
  /** Reuse one buffer, which a cache may hold, instead of rotating. */
  readonly hot: boolean
  /** Default: the CPU. */
  readonly device?: string
  /** The only row to be timed. */
  readonly row?: string
  readonly effort: Effort
}

/** What the cases of an op are made for. */
export interface BenchContext {
  readonly device: Device
  readonly threads: number
  readonly options: BenchOptions
  /** Where the reference rows run: a CPU beside a GPU. Default: the device itself. */
  readonly host?: Device
}

/** One thing to be timed. */
export interface BenchCase {
  readonly op: string
  /** Its name in cases.ts, or ''. */
  readonly name: string
  readonly shape: string
  /** Fields of the line that say what it is. */
  readonly properties: Readonly<Record<string, string | number | boolean>>
  readonly work: Work
  /** Queues one launch; `index` counts up. Cases of linear take a row by name, if one is given. */
  readonly launch: (index: number, row?: string) => void
  /** Compares the op with its reference row: undefined, or what is wrong. */
  readonly check: () => string | undefined
}

/** Receives what a bench has to say. */
export interface BenchSink {
  line(line: BenchLine): void
  /** What the lines that follow are held against. */
  peaks(peaks: Peaks, lines: readonly BenchLine[]): void
  /** A case that was not timed, and why. */
  note(text: string): void
  progress(text: string): void
}

// A launch that lasts longer than this is worth no bench: the reference rows at the sizes of models.
const longestLaunch = 2

/** Times these cases. Returns how many lines it made. */
export function runCases(
  cases: Iterable<BenchCase>,
  context: BenchContext,
  peaks: Peaks,
  origin: Origin,
  sink: BenchSink,
): number {
  const { device, threads, options } = context
  const reference = new Map<string, number>() // operations per second of the reference rows, by kind of case
  let lines = 0
  for (const c of cases) {
    const label = [c.op, c.name, c.shape, threads === 1 ? '1 thread' : `${threads} threads`]
      .filter(Boolean)
      .join(' ')
    const kind = JSON.stringify([c.op, c.properties.format, c.properties.compute])
    const expected = c.work.operations / (reference.get(kind) ?? Number.POSITIVE_INFINITY)
    if (expected > longestLaunch && options.row === undefined) {
      sink.note(`${label}: only the reference row serves it, which takes about ${expected.toFixed(0)} s`)
      continue
    }
    sink.progress(label)
    try {
      c.launch(0)
    } catch (error) {
      // A row or a combination that does not exist is nothing to time; everything else is a fault.
      if (!(error instanceof LowbitError && error.code === 'ERR_UNSUPPORTED')) throw error
      if (options.row === undefined) sink.note(`${label}: ${error.message}`)
      continue
    }
    const row = native.chosenRow()
    if (options.row !== undefined && row !== options.row) continue // another op of the same bench
    device.syncSync()
    const wrong = c.check()
    if (wrong !== undefined) throw new LowbitError('ERR_INTERNAL', `${label}: ${row} is wrong: ${wrong}`)
    const timing = timeLaunches(c.launch, () => device.syncSync(), threads, options.effort)
    if (row.endsWith('_ref')) reference.set(kind, c.work.operations / (timing.us * 1e-6))
    const arch = description.kernels.find((known) => known.name === row)?.arch ?? []
    const bound = boundOf(c.work, ratesOf(peaks, arch, threads === 1 ? 'one' : 'all'))
    sink.line({
      op: c.op,
      row,
      case: c.name,
      shape: c.shape,
      ...c.properties,
      hot: options.hot,
      threads,
      us: rounded(timing.us),
      p10: rounded(timing.p10),
      p90: rounded(timing.p90),
      rounds: timing.rounds,
      calls: timing.calls,
      disturbed: timing.disturbed,
      noisy: timing.noisy,
      waitPercent: rounded(timing.waitPercent, 2),
      stealPercent: rounded(timing.stealPercent, 2),
      gbs: rounded((c.work.bytesRead + c.work.bytesWritten) / (timing.us * 1e3)),
      ...(c.work.operations > 0 ? { gops: rounded(c.work.operations / (timing.us * 1e3)) } : {}),
      bound: bound.name,
      boundUs: rounded(bound.us),
      percent: rounded((100 * bound.us) / timing.us, 3),
      ...origin,
    })
    lines++
  }
  return lines
}
