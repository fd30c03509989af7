/** One line of a bench: its fields, which are those of the JSON. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { backends } from '../backends'
import { root } from '../native'
import { machineName } from '../tuned'

/** Where and of what the numbers are: the same for all lines of a run. */
export interface Origin {
  /** The hardware, as in "AMD EPYC, 2 cores, avx2". */
  readonly machine: string
  /** The commit that was measured, with '+' if the tree had changes; or the version of the package. */
  readonly commit: string
  readonly node: string
  /** When the run began. */
  readonly date: string
}

/** A measured line. Times in microseconds; absent fields say nothing about the line. */
export interface BenchLine extends Origin {
  readonly op: string
  /** The kernel row that ran, or what was called. */
  readonly row: string
  /** The name of the case, where it has one: 'down', 'decode', ... */
  readonly case: string
  /** As printed: "M1 N4096 K14336". */
  readonly shape: string
  /** What else makes the case: format, group, compute, x, sizes. */
  readonly [property: string]: string | number | boolean | undefined
  readonly threads: number
  /** Median, 10th and 90th percentile over the rounds. */
  readonly us?: number
  readonly p10?: number
  readonly p90?: number
  readonly rounds?: number
  readonly calls?: number
  readonly disturbed?: number
  readonly noisy?: boolean
  readonly waitPercent?: number
  readonly stealPercent?: number
  /** Bytes moved and operations done, in 1e9 per second. */
  readonly gbs?: number
  readonly gops?: number
  /** What sets the bound, the bound itself, and how much of it was reached. */
  readonly bound?: string
  readonly boundUs?: number
  readonly percent?: number
  /** The best rival of the same run: how many times its time ours is faster. */
  readonly peer?: string
  readonly ratio?: number
}

function git(...args: string[]): string | undefined {
  const result = spawnSync('git', ['-C', root, ...args], { encoding: 'utf8' })
  return result.status === 0 ? result.stdout.trim() : undefined
}

function commit(): string {
  if (fs.existsSync(path.join(root, '.git'))) {
    const head = git('rev-parse', '--short=12', 'HEAD')
    // What a bench writes itself changes nothing of what it measures.
    const changed = () =>
      git('status', '--porcelain', '--', '.', ':!bench/results', ':!bench/plot/svg', ':!README.md')
    if (head !== undefined) return head + (changed() ? '+' : '')
  }
  return (require('../../package.json') as { version: string }).version
}

/** Asks the machine and the tree. */
export function originOf(device = 'cpu'): Origin {
  const gpu = device === 'cpu' ? undefined : (backends().find((row) => row.device === device)?.name ?? device)
  return {
    machine: gpu === undefined ? machineName() : `${gpu}, ${machineName()}`,
    commit: commit(),
    node: process.version,
    date: new Date().toISOString(),
  }
}

/** Four digits: what a measurement is worth. */
export function rounded(value: number, digits = 4): number {
  return Number.isFinite(value) ? Number(value.toPrecision(digits)) : value
}
