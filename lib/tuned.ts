/** The table of measured rows that LB_TUNE names: read when the first device is opened, checked, handed to native code. */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { wordIndex } from './errors'
import { addonFile, native } from './native'
import { formatOf, type GroupSize, type ScaleDType } from './quantize'
import {
  type Compute,
  computes,
  type DType,
  dtypes,
  type Format,
  type Layout,
  layouts,
  type TablePer,
  type ZeroPoint,
} from './words'

/** The form of the file. Another form is another number. */
export const tunedVersion = 1

/** A call that was measured: x [m, k] with a weight [n, k]. Calls with more rows of x than m take its row too. */
export interface TunedCall {
  readonly m: number
  readonly n: number
  readonly k: number
  readonly x: DType
  readonly compute: Compute
  readonly format: Format
  readonly layout: Layout
  readonly groupSize?: GroupSize
  readonly zeroPoint?: ZeroPoint
  readonly scaleDtype?: ScaleDType
  readonly tablePer?: TablePer
  readonly planes?: number
  /** The row that was fastest, and its time in microseconds. */
  readonly row: string
  readonly us: number
  /** The row that the registry's order gives, and its time. */
  readonly usual: string
  readonly usualUs: number
}

/** What the file holds. */
export interface TunedTable {
  readonly version: typeof tunedVersion
  /** The hardware, as {@link machineName} has it. */
  readonly machine: string
  /** The addon, as {@link addonIdentity} has it: another build may have other rows under the same names. */
  readonly addon: string
  readonly threads: number
  readonly date: string
  readonly calls: readonly TunedCall[]
}

/** The hardware: name of the CPU, cores that the process may use, instruction sets. */
export function machineName(): string {
  const { name, cores, archs } = native.hostInfo()
  const sets = archs.filter((arch) => arch !== 'cpu')
  return [name, `${cores} cores`, sets.join(' ') || process.arch].join(', ')
}

/** A digest of the addon's file. */
export function addonIdentity(): string {
  return createHash('sha256').update(fs.readFileSync(addonFile)).digest('hex').slice(0, 16)
}

/** Hands the calls of a table to native code, which refuses a row that can't serve its call. */
function apply(calls: readonly TunedCall[]): void {
  const archs = native.hostInfo().archs.join(',')
  for (const {
    m,
    n,
    k,
    x,
    compute,
    format,
    layout,
    groupSize,
    zeroPoint,
    scaleDtype,
    tablePer,
    planes,
    row,
  } of calls) {
    native.tuneLinear(
      archs,
      String(row),
      m,
      wordIndex(dtypes, x, 'tune: x'),
      wordIndex(computes, compute, 'tune: compute'),
      wordIndex(layouts, layout, 'tune: layout'),
      ...formatOf({ format, shape: [n, k], groupSize, zeroPoint, scaleDtype, tablePer, planes }, 'tune'),
    )
  }
}

/** Why a table does not serve here, or undefined. */
function refusalOf(table: Partial<TunedTable> | null): string | undefined {
  if (table?.version !== tunedVersion) return `it is no table of version ${tunedVersion}`
  if (!Array.isArray(table.calls)) return 'it has no list of calls'
  if (table.machine !== machineName()) return `it was made on another machine (${table.machine})`
  if (table.addon !== addonIdentity()) return 'it was made with another build of lowbit'
  return undefined
}

/**
 * Reads a table and puts it in force. One that does not serve is left out as a whole.
 *
 * @returns the reason why it was left out, or undefined
 */
export function useTuned(file: string): string | undefined {
  let table: TunedTable
  try {
    table = JSON.parse(fs.readFileSync(file, 'utf8')) as TunedTable
    const reason = refusalOf(table)
    if (reason !== undefined) return reason
  } catch (error) {
    return (error as Error).message
  }
  try {
    apply(table.calls)
  } catch (error) {
    native.forgetTuned()
    return (error as Error).message
  }
  return undefined
}

let asked = false

/** Follows LB_TUNE, once. A table that does not serve is said so on stderr, and the registry's order holds. */
export function followEnvironment(): void {
  const file = process.env.LB_TUNE
  if (asked || !file) return
  asked = true
  const reason = useTuned(file)
  if (reason === undefined) return
  process.stderr.write(`lowbit: LB_TUNE=${file} is left out: ${reason}; lowbit tune makes a new one\n`)
}
