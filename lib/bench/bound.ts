/** What a case can't be faster than, from its work and the measured peaks. */
import { bestRates, type PeakRow, type Peaks, type Quantity, type Rates } from '../peaks'

/** What one launch has to do at least: its real shape, not the padded one, each byte once. */
export interface Work {
  readonly bytesRead: number
  readonly bytesWritten: number
  /** Multiplies and adds, two for a multiply-add. */
  readonly operations: number
  /** The kinds of multiply-add that the call allows; the bound is the fastest of them. */
  readonly arithmetic: readonly Quantity[]
}

/** The least time of a case, and what sets it. */
export interface Bound {
  readonly us: number
  /** 'memory', or the arithmetic that the row's instruction set is fastest at. */
  readonly name: 'memory' | Quantity
}

// What each instruction set includes. One that is missing here is taken to include all: the bound is then the machine's.
const included: Readonly<Record<string, readonly string[]>> = {
  cpu: ['cpu'],
  avx2: ['cpu', 'avx2'],
  avx512: ['cpu', 'avx2', 'avx512'],
  avx512vnni: ['cpu', 'avx2', 'avx512', 'avx512vnni'],
  avx512vbmi: ['cpu', 'avx2', 'avx512', 'avx512vnni', 'avx512vbmi'],
  avx512bf16: ['cpu', 'avx2', 'avx512', 'avx512bf16'],
  amx: ['cpu', 'avx2', 'avx512', 'avx512vnni', 'avx512vbmi', 'avx512bf16', 'amx'],
}

/**
 * The rates that a row of these instruction sets is held against: arithmetic of its own instructions, so that a row for
 * AVX2 is judged as one on every machine, and the bandwidth of the machine, which belongs to no instruction set.
 */
export function ratesOf(peaks: Peaks, archs: readonly string[], threads: 'one' | 'all'): Rates {
  const own = (row: PeakRow): boolean => archs.some((arch) => included[arch]?.includes(row.arch) ?? true)
  const { read, copy } = bestRates(peaks.rows, threads)
  return { ...bestRates(peaks.rows.filter(own), threads), read, copy }
}

/** Microseconds of work at 1e9 per second. */
const timeOf = (amount: number, rate: number): number => (rate > 0 ? amount / (rate * 1e3) : 0)

/**
 * The least time: that of the memory or that of the arithmetic, whichever is longer, as if they overlapped fully. What
 * is written costs what the measured copy costs, together with as many bytes read; the other bytes are a plain read.
 */
export function boundOf(work: Work, rates: Rates): Bound {
  const both = Math.min(work.bytesRead, work.bytesWritten)
  const readOnly = work.bytesRead - both
  const writeOnly = work.bytesWritten - both
  const memory = timeOf(readOnly, rates.read) + timeOf(2 * both + writeOnly, rates.copy)
  let name: 'memory' | Quantity = 'memory'
  let arithmetic = Number.POSITIVE_INFINITY
  for (const quantity of work.arithmetic) {
    const us = timeOf(work.operations, rates[quantity])
    if (us > 0 && us < arithmetic) {
      arithmetic = us
      name = quantity
    }
  }
  return Number.isFinite(arithmetic) && arithmetic > memory
    ? { us: arithmetic, name }
    : { us: memory, name: 'memory' }
}
