import type { Device } from './device'
import { native } from './native'

/**
 * What is measured: `read`, bytes per second of a sequential read of memory that no cache holds; `copy`, bytes read and
 * written per second of a copy of such memory; operations per second of multiply-adds (two operations each) with data
 * in registers: `f32`; `bf16`, pairs of bf16 summed in f32; `int8`, u8 x s8 summed in 32 bits; `int4`, u4 x s8 summed
 * in 16 bits.
 */
export const quantities = ['read', 'copy', 'f32', 'bf16', 'int8', 'int4'] as const
/** See {@link quantities}. */
export type Quantity = (typeof quantities)[number]

/** A figure for each quantity, in units of 1e9 per second: GB/s or GOP/s. 0: the device has no instruction for it. */
export type Rates = Readonly<Record<Quantity, number>>

/** One way to reach a quantity with one instruction set. */
export interface PeakRow {
  /** `peak_int8_avx2`, ... */
  readonly name: string
  /** What it measures. */
  readonly quantity: Quantity
  /** The instruction set that it needs. */
  readonly arch: string
  /** Of one thread, in units of 1e9 per second; 0 where the device lacks the instruction set. */
  readonly one: number
  /** Of all threads of the device together. */
  readonly all: number
}

/** What a device can do, as measured by {@link measurePeaks}. */
export interface Peaks {
  /** Threads of the device. */
  readonly threads: number
  /** The best rows with one thread. */
  readonly one: Rates
  /** The best rows with all threads. */
  readonly all: Rates
  /** What was measured, row by row. */
  readonly rows: readonly PeakRow[]
}

/** The best of these rows for each quantity. */
export function bestRates(rows: readonly PeakRow[], threads: 'one' | 'all'): Rates {
  const best: Record<Quantity, number> = { read: 0, copy: 0, f32: 0, bf16: 0, int8: 0, int4: 0 }
  for (const row of rows) best[row.quantity] = Math.max(best[row.quantity], row[threads])
  return best
}

/** Options of {@link measurePeaks}. */
export interface PeakOptions {
  /** How long each figure is measured, above 0 and up to 10. Default 0.08; the less, the rougher. */
  readonly seconds?: number | undefined
}

/**
 * Measures what a device can do at best: the figures that `lowbit bench` holds kernels against. It is queued behind
 * the ops called before, takes two to three seconds, and keeps the device busy for as long; other load on the machine
 * makes the figures smaller. A quarter of a gigabyte, or four times the last cache if that is more, is in use meanwhile. On
 * a GPU it measures the bandwidth alone, takes 1 GiB, and the call itself lasts as long as that, about a fifth of a second.
 *
 * @throws LowbitError ERR_ARGUMENT, ERR_MEMORY.
 */
export async function measurePeaks(device: Device, options: PeakOptions = {}): Promise<Peaks> {
  const rows = native.peakRows()
  using out = device.empty([rows.length, 2], 'f32')
  native.measurePeaks(out, options.seconds ?? 0.08)
  const figures = await out.read()
  const measured = rows.map((row, i) => ({
    name: row.name,
    quantity: row.quantity as Quantity,
    arch: row.arch,
    one: figures[2 * i] ?? 0,
    all: figures[2 * i + 1] ?? 0,
  }))
  return {
    threads: device.info.threads,
    one: bestRates(measured, 'one'),
    all: bestRates(measured, 'all'),
    rows: measured,
  }
}
