/**
 * What it takes to bring a model in: quantising its weights, and packing them for a device. Both use all cores, and both
 * write memory that was not there before, as loading does: each load has a device of its own.
 */
import { openDevice } from '../device'
import { type QuantizedWeight, quantize } from '../quantize'
import { linearShapes } from './cases'
import { type BenchLine, type Origin, rounded } from './line'
import { randomFloats } from './random'
import type { BenchSink } from './run'
import { percentile } from './time'

/** Bytes of bf16 weights that are quantised in a round, and the seconds that they may take on two cores. */
export const quantizedBytes = 1e9
export const quantizeBar = 8
/** Milliseconds that packing a 4096 x 14336 weight of int4 may take on two cores. */
export const loadBar = 60

const blockRows = 80

/** A bf16 matrix of random numbers, the same rows again and again. */
function bf16Matrix(n: number, k: number): Uint16Array {
  const floats = randomFloats(Math.min(n, blockRows) * k)
  const halves = Uint16Array.from(new Uint32Array(floats.buffer), (bits) => bits >>> 16)
  const out = new Uint16Array(n * k)
  for (let at = 0; at < out.length; at += halves.length) {
    out.set(halves.subarray(0, Math.min(halves.length, out.length - at)), at)
  }
  return out
}

/** Microseconds of each round after the first. */
function timed(rounds: number, body: () => void): number[] {
  const us: number[] = []
  for (let round = -1; round < rounds; round++) {
    const begin = process.hrtime.bigint()
    body()
    const took = Number(process.hrtime.bigint() - begin) * 1e-3
    if (round >= 0) us.push(took)
  }
  return us.sort((a, b) => a - b)
}

/** Times both. The bars are for the usual shape alone. Returns how many lines it made. */
export function runLoad(
  shape: readonly [number, number] | undefined,
  threads: number,
  rounds: number,
  origin: Origin,
  sink: BenchSink,
): number {
  const [n, k] = shape ?? (linearShapes.down as readonly [number, number])
  const weights = bf16Matrix(n, k)
  const times = shape === undefined ? quantizedBytes / weights.byteLength : 1
  const scheme = { format: 'int4', groupSize: 32, scaleDtype: 'f16', dtype: 'bf16' } as const
  const emit = (name: string, us: number[], bytes: number, barUs: number): void => {
    const median = percentile(us, 0.5)
    const line: BenchLine = {
      op: 'load',
      row: name,
      case: '',
      shape: `${n}x${k} int4 g32`,
      ...{ format: 'int4', group: 32, n, k, threads },
      us: rounded(median),
      p10: rounded(percentile(us, 0.1)),
      p90: rounded(percentile(us, 0.9)),
      rounds: us.length,
      calls: 1,
      gbs: rounded(bytes / (median * 1e3)),
      ...origin,
    }
    if (shape !== undefined) sink.line(line)
    else {
      const within = median <= barUs
      const note = `${within ? 'within' : 'over'} the bar of ${barUs / 1e3} ms`
      sink.line({ ...line, barUs, withinBar: within, note })
    }
  }

  sink.progress('load: quantize')
  let weight: QuantizedWeight | undefined
  const quantizing = timed(Math.min(3, rounds), () => {
    for (let i = 0; i < Math.ceil(times); i++) weight = quantize(weights, [n, k], scheme)
  })
  const part = times / Math.ceil(times) // of what a round did, the bytes that the bar speaks of
  emit(
    shape === undefined ? 'quantize, 1 GB of bf16' : 'quantize, bf16',
    quantizing.map((us) => us * part),
    weights.byteLength * times,
    quantizeBar * 1e6,
  )
  sink.progress('load: device.load')
  const q = weight as QuantizedWeight
  const devices = Array.from({ length: rounds + 1 }, () => openDevice('cpu', { threads }))
  let used = 0
  const loading = timed(rounds, () => devices[used++]?.load(q))
  for (const device of devices) device.close()
  emit('device.load', loading, q.byteLength, loadBar * 1e3)
  return 2
}
