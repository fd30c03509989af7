/**
 * What a call costs the JavaScript thread. The bar: an op that is queued costs it at most 1.5 us. Kernels are as small
 * as can be, so that the queue never fills; only the calls are timed, and the queue is emptied between the batches.
 */
import type { Device } from '../device'
import { add } from '../elementwise'
import { linear } from '../linear'
import { native } from '../native'
import { rmsNorm } from '../norm'
import { quantize } from '../quantize'
import { type BenchLine, type Origin, rounded } from './line'
import { randomFloats } from './random'
import type { BenchSink } from './run'
import { percentile } from './time'

/** Microseconds that a queued op may cost. */
export const callBar = 1.5

interface CallCase {
  readonly name: string
  readonly barred: boolean
  readonly call: () => void
}

const batch = 256

function timeBatches(device: Device, call: () => void, batches: number): number[] {
  const us: number[] = []
  // The first quarter warms up: the compiler needs some thousand calls.
  for (let b = -Math.ceil(batches / 4); b < batches; b++) {
    const begin = process.hrtime.bigint()
    for (let i = 0; i < batch; i++) call()
    const took = Number(process.hrtime.bigint() - begin) * 1e-3
    device.syncSync()
    if (b >= 0) us.push(took / batch)
  }
  return us.sort((a, b) => a - b)
}

async function timeAwaits(call: () => Promise<unknown>, count: number): Promise<number[]> {
  const us: number[] = []
  for (let i = -Math.ceil(count / 4); i < count; i++) {
    const begin = process.hrtime.bigint()
    await call()
    const took = Number(process.hrtime.bigint() - begin) * 1e-3
    if (i >= 0) us.push(took)
  }
  return us.sort((a, b) => a - b)
}

/** Times the calls. `batches` of 256 calls each; a quarter as many round trips as calls in them. */
export async function runCalls(
  device: Device,
  batches: number,
  origin: Origin,
  sink: BenchSink,
): Promise<number> {
  using x = device.tensor(randomFloats(64), [1, 64])
  using y = device.tensor(randomFloats(64, 2), [1, 64])
  using weight = device.tensor(randomFloats(64, 3), [64])
  using out = device.empty([1, 64])
  using w = device.load(quantize(randomFloats(64 * 64, 4), [64, 64], { format: 'int8' }))
  const cases: CallCase[] = [
    { name: 'empty native call', barred: false, call: () => native.callNothing() },
    { name: 'add, out given', barred: true, call: () => void add(x, y, { out }) },
    { name: 'add, new out, disposed', barred: false, call: () => add(x, y).dispose() },
    { name: 'rmsNorm, out given', barred: true, call: () => void rmsNorm(x, weight, { eps: 1e-5, out }) },
    { name: 'linear, out given', barred: true, call: () => void linear(x, w, { compute: 'int8', out }) },
  ]
  const { threads } = device.info
  const emit = (name: string, us: number[], properties: Partial<BenchLine>): void => {
    sink.line({
      op: 'calls',
      row: name,
      case: '',
      shape: '',
      threads,
      us: rounded(percentile(us, 0.5)),
      p10: rounded(percentile(us, 0.1)),
      p90: rounded(percentile(us, 0.9)),
      rounds: us.length,
      ...properties,
      ...origin,
    })
  }
  for (const { name, barred, call } of cases) {
    sink.progress(`calls: ${name}`)
    const us = timeBatches(device, call, batches)
    const over = percentile(us, 0.5) > callBar
    const note = barred ? `${over ? 'over' : 'within'} the bar of ${callBar} us` : undefined
    emit(name, us, {
      calls: batch,
      ...(barred ? { barUs: callBar, withinBar: !over } : {}),
      ...(note === undefined ? {} : { note }),
    })
  }
  const trips: [string, () => Promise<unknown>][] = [
    ['await read()', () => x.read()],
    ['add, await read()', () => add(x, y, { out }).read()],
    ['await sync()', () => device.sync()],
  ]
  for (const [name, trip] of trips) {
    sink.progress(`calls: ${name}`)
    emit(name, await timeAwaits(trip, batches * 8), { calls: 1 })
  }
  sink.progress('calls: readSync()')
  emit('readSync()', await timeAwaits(async () => x.readSync(), batches * 8), { calls: 1 })
  return cases.length + trips.length + 1
}
