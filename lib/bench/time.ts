/** The clock of the bench: rounds of launches without gaps, and what the system did to them meanwhile. */
import fs from 'node:fs'

/** How long a case is timed. */
export interface Effort {
  /** Rounds that count. */
  readonly rounds: number
  /** Length of one round, in seconds; a case that takes longer runs once a round. */
  readonly seconds: number
}

/** What the rounds of one case gave; times are of one launch, in microseconds. */
export interface Timing {
  readonly us: number
  readonly p10: number
  readonly p90: number
  readonly rounds: number
  /** Launches in a round. */
  readonly calls: number
  /** Rounds that lost more than {@link disturbance} of their time to the run queue or the hypervisor. */
  readonly disturbed: number
  /** Whether there were so many of them that they count nevertheless; else they are left out. */
  readonly noisy: boolean
  /** Time that threads of this process stood in the run queue, of the time that the device's threads had, in percent. */
  readonly waitPercent: number
  /** Time that the hypervisor gave to others, of the machine's time, in percent. */
  readonly stealPercent: number
}

/** A round that loses more of its time than this to the run queue or the hypervisor does not count. */
export const disturbance = 0.03

// Queued ops are held in memory, about 2 KB each, until they ran.
const mostCalls = 4096

/** The value below which this part of the sorted list lies, interpolated. */
export function percentile(sorted: readonly number[], part: number): number {
  const at = (sorted.length - 1) * part
  const below = sorted[Math.floor(at)] ?? Number.NaN
  const above = sorted[Math.ceil(at)] ?? Number.NaN
  return below + (above - below) * (at - Math.floor(at))
}

function readText(file: string): string {
  try {
    return fs.readFileSync(file, 'utf8')
  } catch {
    return '' // a thread that has just ended, or a system without /proc
  }
}

function threadIds(): string[] {
  try {
    return fs.readdirSync('/proc/self/task')
  } catch {
    return []
  }
}

/** Nanoseconds that the threads of this process have stood in the run queue so far. */
export function waitedNs(): number {
  let sum = 0
  for (const id of threadIds()) {
    sum += Number(readText(`/proc/self/task/${id}/schedstat`).split(' ')[1] ?? 0)
  }
  return sum
}

/** Ticks of 10 ms that the hypervisor has given to others so far. */
export function stolenTicks(): number {
  return ticks().stolen
}

/** Ticks that were stolen, and all ticks, since the machine started. */
function ticks(): { stolen: number; all: number } {
  const line = readText('/proc/stat').split('\n', 1)[0] ?? ''
  const counts = line.trim().split(/\s+/).slice(1, 9).map(Number)
  return { stolen: counts[7] ?? 0, all: counts.reduce((sum, n) => sum + n, 0) }
}

interface Round {
  seconds: number
  disturbed: boolean
}

/**
 * Times `launch`, which queues one op, against `finish`, which waits for all that was queued. The launch is given a
 * number that counts up, so that it can rotate its buffers. Rounds in which the machine was taken away are replaced, as
 * long as most are not.
 *
 * @param threads of the device.
 */
export function timeLaunches(
  launch: (index: number) => void,
  finish: () => void,
  threads: number,
  effort: Effort,
): Timing {
  let index = 0
  const burst = (calls: number): number => {
    const begin = process.hrtime.bigint()
    for (let i = 0; i < calls; i++) launch(index++)
    finish()
    return Number(process.hrtime.bigint() - begin) * 1e-9
  }

  // Warm-up: wakes the threads, settles the clock of the cores, and tells how many launches fill a round.
  let calls = 1
  let seconds = burst(1)
  while (seconds < effort.seconds / 2 && calls < mostCalls) {
    calls = Math.min(mostCalls, Math.max(calls * 2, Math.floor((calls * effort.seconds) / (seconds * 2))))
    seconds = burst(calls)
  }
  const lastCalls = calls
  calls = Math.max(1, Math.min(mostCalls, Math.round((calls * effort.seconds) / seconds)))

  // Slow cases get fewer rounds, so that none takes more than about three times what was planned for it.
  const perRound = (seconds * calls) / lastCalls
  const wanted = Math.max(
    Math.min(3, effort.rounds),
    Math.min(effort.rounds, Math.floor((3 * effort.rounds * effort.seconds) / perRound)),
  )
  const rounds: Round[] = []
  const ticksBefore = ticks()
  const waitBefore = waitedNs()
  let elapsed = 0
  let calm = 0
  // Each calm round pays for a disturbed one: on a machine that never rests, replacing them is in vain.
  while (calm < wanted && rounds.length < wanted + calm) {
    const before = waitedNs()
    const stolen = ticks().stolen
    const took = burst(calls)
    elapsed += took
    const waited = (waitedNs() - before) * 1e-9
    // A tick is 10 ms: in a short round a single one may belong to the time before it.
    const lost = Math.max(0, ticks().stolen - stolen - 1) * 0.01
    const disturbed = Math.max(waited, lost) > disturbance * took * threads
    rounds.push({ seconds: took, disturbed })
    if (!disturbed) calm++
  }
  const ticksAfter = ticks()
  const noisy = calm * 3 < wanted
  const counted = noisy ? rounds : rounds.filter((r) => !r.disturbed)
  const us = counted.map((r) => (r.seconds / calls) * 1e6).sort((a, b) => a - b)
  return {
    us: percentile(us, 0.5),
    p10: percentile(us, 0.1),
    p90: percentile(us, 0.9),
    rounds: counted.length,
    calls,
    disturbed: rounds.length - calm,
    noisy,
    waitPercent: ((waitedNs() - waitBefore) * 1e-7) / (elapsed * threads),
    stealPercent:
      (100 * (ticksAfter.stolen - ticksBefore.stolen)) / Math.max(1, ticksAfter.all - ticksBefore.all),
  }
}
