/**
 * Ours against rivals, A B A B: each rival is a process that sleeps until it is asked for a burst, so that one of them
 * runs at a time, and a round asks each for one. What counts is the median of the ratios of the rounds.
 */
import { spawn } from 'node:child_process'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { openDevice } from '../device'
import { LowbitError } from '../errors'
import { description, native, root } from '../native'
import { measurePeaks, type Peaks } from '../peaks'
import { attentionCaseOf } from './attention'
import { peakLines } from './bench'
import { boundOf, ratesOf } from './bound'
import { type AttentionShape, attentionShapes, coldBytes, coldM } from './cases'
import { type AttentionDuel, attentionDuels, type Duel, type Field, type Rival } from './duels'
import { type BenchLine, type Origin, originOf, rounded } from './line'
import { linearCasesOf } from './linear'
import { Peers } from './peer'
import { ourRunner, type Runner, runRounds } from './rounds'
import type { BenchCase, BenchContext, BenchOptions, BenchSink, Named } from './run'
import { percentile } from './time'

/**
 * A rival's result may be so far from the exact one: x is quantised to 8 bits in the roughest of them. One whose keys and
 * values have 4 bits says itself how far.
 */
const largestError = 0.03

/** A rival that takes part in the rounds. */
interface RivalRunner extends Runner {
  readonly version: string
}

const sorted = (values: readonly number[]): number[] => [...values].sort((a, b) => a - b)
const median = (values: readonly number[]): number => percentile(sorted(values), 0.5)

/** What the duels are run with. */
interface Arena {
  readonly context: BenchContext
  readonly peaks: Peaks
  readonly peers: Peers
  readonly origin: Origin
  readonly sink: BenchSink
}

/** What a rival is told of a case; `rows` are the rows of x or the queries, and few of them find their operands cold. */
interface RivalSpec {
  readonly rows: number
  readonly [property: string]: string | number
}

/** The runner of a rival, checked; undefined where it is not there or wrong. */
async function rivalRunner(
  arena: Arena,
  rival: Rival,
  own: BenchCase | undefined,
  spec: RivalSpec,
): Promise<RivalRunner | undefined> {
  const { context, peers, sink } = arena
  if (rival.peer === 'own') {
    if (own === undefined) return undefined
    own.launch(0)
    context.device.syncSync()
    const wrong = own.check()
    if (wrong !== undefined) throw new LowbitError('ERR_INTERNAL', `${own.shape} is wrong: ${wrong}`)
    const format = rival.config?.format ?? rival.kv
    return { ...ourRunner(`our ${format}`, context.device, own.launch), version: '' }
  }
  const { peer: name, ...call } = rival
  const peer = await peers.get(name)
  if (peer === undefined) return undefined
  const { rows, ...sizes } = spec
  const cold = rows <= coldM && !context.options.hot ? coldBytes : 0
  try {
    const { label, error } = await peer.prepare({
      ...call,
      ...sizes,
      ...{ threads: context.threads, coldBytes: cold },
    })
    if (!(error <= (typeof call.error === 'number' ? call.error : largestError))) {
      sink.note(`${label}: its result is ${(100 * error).toFixed(1)} % from the exact one: the call is wrong`)
      return undefined
    }
    return {
      label,
      version: peer.version,
      burst: (runs) => peer.run(runs),
      runs: 1,
      us: [],
    }
  } catch (error) {
    peers.drop(peer, error)
    return undefined
  }
}

/** One line for each rival of a field; the best one carries the bar. */
function fieldLines(
  base: BenchLine,
  field: Field,
  runners: ReadonlyMap<Rival, RivalRunner>,
  us: readonly number[],
  bar: number | undefined,
): BenchLine[] {
  const present = field.rivals.flatMap((rival) => runners.get(rival) ?? [])
  const ratiosOf = (runner: RivalRunner): number[] => us.map((own, i) => (runner.us[i] as number) / own)
  const ratio = new Map(present.map((runner) => [runner, median(ratiosOf(runner))]))
  const best = present.reduce<RivalRunner | undefined>(
    (least, r) => (least === undefined || (ratio.get(r) ?? 0) < (ratio.get(least) ?? 0) ? r : least),
    undefined,
  )
  return present.map((runner) => {
    // Against the best of them, round by round: another one may be the best in the next.
    const ratios = sorted(
      runner === best
        ? us.map((_, i) => Math.min(...present.map((r) => ratiosOf(r)[i] as number)))
        : ratiosOf(runner),
    )
    const value = percentile(ratios, 0.5)
    const times = sorted(runner.us)
    return {
      ...base,
      peer: runner.label,
      ...(runner.version === '' ? {} : { peerVersion: runner.version }),
      peerUs: rounded(percentile(times, 0.5)),
      peerP10: rounded(percentile(times, 0.1)),
      peerP90: rounded(percentile(times, 0.9)),
      ratio: rounded(value, 3),
      ratioP10: rounded(percentile(ratios, 0.1), 3),
      ratioP90: rounded(percentile(ratios, 0.9), 3),
      best: runner === best,
      ...(runner === best && bar !== undefined ? { bar: rounded(bar, 3), holds: value >= bar } : {}),
    }
  })
}

/** One case. Returns how many lines it made. */
async function fight(
  arena: Arena,
  name: string,
  { fields, percentBar }: AttentionDuel,
  ours: BenchCase,
  own: BenchCase | undefined,
  spec: RivalSpec,
): Promise<number> {
  const { context, peaks, origin, sink } = arena
  const { device, threads, options } = context
  const label = `${name} ${ours.shape}, ${threads === 1 ? '1 thread' : `${threads} threads`}`
  sink.progress(label)
  ours.launch(0)
  const row = native.chosenRow()
  device.syncSync()
  const wrong = ours.check()
  if (wrong !== undefined) throw new LowbitError('ERR_INTERNAL', `${label}: ${row} is wrong: ${wrong}`)
  const runners = new Map<Rival, RivalRunner>()
  for (const rival of new Set(fields.flatMap((field) => field.rivals))) {
    const runner = await rivalRunner(arena, rival, own, spec)
    if (runner !== undefined) runners.set(rival, runner)
  }
  const me = ourRunner(row, device, ours.launch)
  const everyone = [me, ...runners.values()]
  const { disturbed, noisy } = await runRounds(everyone, threads, options.effort)
  const us = sorted(me.us)
  const arch = description.kernels.find((known) => known.name === row)?.arch ?? []
  const bound = boundOf(ours.work, ratesOf(peaks, arch, threads === 1 ? 'one' : 'all'))
  const time = percentile(us, 0.5)
  const percent = rounded((100 * bound.us) / time, 3)
  const base: BenchLine = {
    ...origin,
    op: 'peers',
    row,
    case: name,
    shape: ours.shape,
    ...ours.properties,
    hot: options.hot,
    threads,
    us: rounded(time),
    p10: rounded(percentile(us, 0.1)),
    p90: rounded(percentile(us, 0.9)),
    rounds: us.length,
    calls: me.runs,
    disturbed,
    noisy,
    gbs: rounded((ours.work.bytesRead + ours.work.bytesWritten) / (time * 1e3)),
    gops: rounded(ours.work.operations / (time * 1e3)),
    bound: bound.name,
    boundUs: rounded(bound.us),
    percent,
    ...(percentBar === undefined || threads > 1 ? {} : { percentBar, percentHolds: percent >= percentBar }),
  }
  let count = 0
  for (const field of fields) {
    const bar = threads === 1 ? field.bar : field.barAll
    const lines = fieldLines(base, field, runners, me.us, bar)
    for (const line of lines.length > 0 ? lines : [base]) {
      sink.line(line)
      count++
    }
  }
  return count
}

/** One duel at one shape: every number of rows of x that is wanted. */
async function duelOf(
  arena: Arena,
  name: string,
  duel: Duel,
  shape: Named<readonly [number, number]>,
): Promise<number> {
  const { context, sink } = arena
  const wanted = context.options.m
  const ms = duel.ms.filter(({ m }) => wanted === undefined || wanted.includes(m))
  const options = { ...context.options, m: ms.map(({ m }) => m) }
  const contextOfMs = { ...context, options }
  const other = duel.ms
    .flatMap(({ fields }) => fields.flatMap(({ rivals }) => rivals))
    .flatMap((rival) => (rival.peer === 'own' ? (rival.config ?? []) : []))[0]
  const own = other && linearCasesOf(contextOfMs, other, shape)
  let lines = 0
  let at = 0
  try {
    for (const ours of linearCasesOf(contextOfMs, duel.config, shape)) {
      const rival = own?.next().value ?? undefined
      const m = ms[at++]
      if (m === undefined) break
      const [n, k] = shape.shape
      try {
        lines += await fight(arena, name, m, ours, rival, { rows: m.m, m: m.m, n, k })
      } catch (error) {
        if (!(error instanceof LowbitError && error.code === 'ERR_UNSUPPORTED')) throw error
        sink.note(`${name}: ${error.message}`)
      }
    }
  } finally {
    own?.return(undefined)
  }
  return lines
}

/** A duel with our instruction sets capped, which is said when the addon is loaded: in a process of its own. */
async function cappedDuel(
  [name, { arch }]: readonly [string, Duel],
  threads: readonly number[],
  shapes: readonly Named<readonly [number, number]>[],
  { m, effort, hot }: BenchOptions,
  origin: Origin,
  sink: BenchSink,
): Promise<number> {
  sink.progress(`${name}: with LB_ARCH=${arch}`)
  const args = ['bench', 'linear', '--peers', '--case', name, '--json', '--threads', threads.join()]
  args.push('--shape', shapes.map((s) => s.name || s.shape.join('x')).join())
  args.push('--rounds', String(effort.rounds), '--seconds', String(effort.seconds))
  if (m !== undefined) args.push('--m', m.join())
  if (hot) args.push('--hot')
  const child = spawn(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, LB_ARCH: arch },
  })
  let lines = 0
  for await (const text of createInterface({ input: child.stdout })) {
    const line = JSON.parse(text) as BenchLine
    if (line.op === 'peaks') continue
    sink.line({ ...line, machine: origin.machine, arch: arch as string })
    lines++
  }
  return lines
}

/** Runs `each` with a device for each number of threads, the peaks measured before. Returns how many lines were made. */
async function inArenas(
  wanted: readonly number[] | undefined,
  options: BenchOptions,
  sink: BenchSink,
  each: (arena: Arena) => Promise<number>,
): Promise<number> {
  const origin = originOf()
  const threads = threadsOf(wanted)
  const peers = new Peers(sink)
  let lines = 0
  try {
    sink.progress('peaks of the machine')
    using widest = openDevice('cpu', { threads: Math.max(...threads) })
    const peaks = await measurePeaks(widest, { seconds: Math.min(10, 2 * options.effort.seconds || 1e-3) })
    sink.peaks(peaks, peakLines(peaks, origin))
    for (const n of threads) {
      using device = openDevice('cpu', { threads: n })
      lines += await each({ context: { device, threads: n, options }, peaks, peers, origin, sink })
    }
  } finally {
    await peers.close()
  }
  return lines
}

const threadsOf = (wanted: readonly number[] | undefined): number[] => [
  ...new Set(wanted ?? [1, native.hostInfo().cores]),
]

/**
 * Runs the duels of attention at these shapes of cases.ts.
 *
 * @returns how many lines it made.
 */
export async function runAttentionDuels(
  names: readonly string[],
  wanted: readonly number[] | undefined,
  options: BenchOptions,
  sink: BenchSink,
): Promise<number> {
  return inArenas(wanted, options, sink, async (arena) => {
    let lines = 0
    for (const name of names) {
      const shape = attentionShapes[name] as AttentionShape
      const { seqQ, seqKv, headDim, heads = 32, kvHeads = 8 } = shape
      const spec = { rows: seqQ, op: 'attention', seqQ, seqKv, headDim, heads, kvHeads }
      const duel = attentionDuels[name] as AttentionDuel
      const kv = duel.fields
        .flatMap(({ rivals }) => rivals)
        .flatMap((rival) => (rival.peer === 'own' ? (rival.kv ?? []) : []))[0]
      const other = kv && attentionCaseOf(arena.context, 'bf16', { name, shape: { ...shape, kv } })
      try {
        for (const ours of attentionCaseOf(arena.context, 'bf16', { name, shape })) {
          lines += await fight(arena, name, duel, ours, other?.next().value ?? undefined, spec)
        }
      } finally {
        other?.return(undefined)
      }
    }
    return lines
  })
}

/**
 * Runs these duels with each number of threads.
 *
 * @returns how many lines it made.
 */
export async function runDuels(
  chosen: readonly (readonly [string, Duel])[],
  wanted: readonly number[] | undefined,
  shapes: readonly Named<readonly [number, number]>[],
  options: BenchOptions,
  sink: BenchSink,
): Promise<number> {
  const capped = ({ arch }: Duel): boolean => arch !== undefined && process.env.LB_ARCH !== arch
  const here = chosen.filter(([, duel]) => !capped(duel))
  let lines = 0
  if (here.length > 0) {
    lines = await inArenas(wanted, options, sink, async (arena) => {
      let made = 0
      for (const shape of shapes) {
        for (const [name, duel] of here) made += await duelOf(arena, name, duel, shape)
      }
      return made
    })
  }
  for (const duel of chosen) {
    if (capped(duel[1])) lines += await cappedDuel(duel, threadsOf(wanted), shapes, options, originOf(), sink)
  }
  return lines
}
