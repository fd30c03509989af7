/** Several that do the same work, timed A B A B: a round asks each for one burst, so that ratios are of one time. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Device } from '../device'
import { disturbance, type Effort, stolenTicks, waitedNs } from './time'

// Threads of the last one that ran may still look for work; they give up within this.
const pauseMs = 8
const mostRuns = 4096

/** What a burst took. */
export interface Burst {
  readonly seconds: number
  readonly launches: number
  /** Seconds that its threads stood in the run queue. */
  readonly waited: number
}

/** One that takes part in the rounds. */
export interface Runner {
  readonly label: string
  /** Does so many runs, of one launch or more each. */
  readonly burst: (runs: number) => Promise<Burst>
  /** The runs that fill its part of a round. */
  runs: number
  /** Microseconds of one launch, by round. */
  readonly us: number[]
}

/** One that queues ops of this process. The launch is given a number that counts up. */
export function ourRunner(label: string, device: Device, launch: (index: number) => void): Runner {
  let index = 0
  return {
    label,
    burst: async (runs) => {
      const before = waitedNs()
      const begin = process.hrtime.bigint()
      for (let i = 0; i < runs; i++) launch(index++)
      device.syncSync()
      const seconds = Number(process.hrtime.bigint() - begin) * 1e-9
      return { seconds, launches: runs, waited: (waitedNs() - before) * 1e-9 }
    },
    runs: 1,
    us: [],
  }
}

/** Finds how many runs fill a round; also the warm-up. */
async function calibrate(runner: Runner, seconds: number): Promise<void> {
  let took = (await runner.burst(1)).seconds
  let runs = 1
  while (took < seconds / 2 && runs < mostRuns) {
    runs = Math.min(mostRuns, Math.max(runs * 2, Math.floor((runs * seconds) / (2 * took))))
    took = (await runner.burst(runs)).seconds
  }
  runner.runs = Math.max(1, Math.min(mostRuns, Math.round((runs * seconds) / took)))
}

/** What happened to the rounds. */
export interface Weather {
  readonly disturbed: number
  /** Hardly any round was calm, so that all count. */
  readonly noisy: boolean
}

/**
 * Times all runners, one after the other, and fills their `us`. Rounds that lost time to the run queue or the hypervisor
 * are left out and replaced, each calm round paying for one of them.
 */
export async function runRounds(
  runners: readonly Runner[],
  threads: number,
  effort: Effort,
): Promise<Weather> {
  for (const runner of runners) await calibrate(runner, effort.seconds)
  const taken: { us: number[]; calm: boolean }[] = []
  let calm = 0
  while (calm < effort.rounds && taken.length < effort.rounds + calm) {
    const us: number[] = []
    let disturbed = false
    for (const runner of runners) {
      await sleep(pauseMs)
      const stolen = stolenTicks()
      const { seconds, launches, waited } = await runner.burst(runner.runs)
      // A tick is 10 ms: a single one may belong to the time before.
      const lost = Math.max(0, stolenTicks() - stolen - 1) * 0.01
      disturbed ||= Math.max(waited, lost) > disturbance * seconds * threads
      us.push((seconds / launches) * 1e6)
    }
    taken.push({ us, calm: !disturbed })
    if (!disturbed) calm++
  }
  const noisy = calm * 3 < effort.rounds
  for (const round of taken.filter((r) => noisy || r.calm)) {
    for (const [i, runner] of runners.entries()) runner.us.push(round.us[i] as number)
  }
  return { disturbed: taken.length - calm, noisy }
}
