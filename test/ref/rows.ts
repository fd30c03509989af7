/** What the tests of the row ops share: kernel rows of the registry, and tensors that stand inside larger ones. */
import type { Device, DType, Tensor } from 'lowbit'
import { description } from 'lowbit/native'
import { type Float, roundTo } from './compare'
import { openTest } from './device'
import type { Random } from './random'

/**
 * Calls `define` with the name of every registry row of an op that this machine can run; the others are skipped by
 * name.
 */
export function eachRow(op: string, define: (row: string) => void): void {
  const device = openTest({ threads: 1 })
  const { archs } = device.info
  device.close()
  const rows = description.kernels.filter((row) => row.op === op)
  if (rows.length === 0) throw new Error(`the registry has no rows of ${op}`)
  for (const row of rows) {
    if (row.arch.every((arch) => archs.includes(arch))) describe(row.name, () => define(row.name))
    else test.skip(`${row.name}: this machine or LB_ARCH lacks ${row.arch.join(', ')}`, () => {})
  }
}

/** Numbers that the dtype holds. */
export function numbers(random: Random, count: number, dtype: Float, low = -4, high = 4): number[] {
  return Array.from({ length: count }, () => roundTo(dtype, random.float(low, high)))
}

/** An i32 tensor of these numbers. */
export const ints = (device: Device, values: readonly number[]) =>
  device.tensor(Int32Array.from(values), [values.length], 'i32')

/** A view, and the whole of what it is cut from. */
export interface Placed {
  view: Tensor
  whole: Tensor
}

const product = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1)

/**
 * A tensor of these values. With `padded`, it is cut from one that is larger in every dimension and NaN (or -1) around
 * it, so that its rows have gaps between them and start off alignment.
 */
export function place(
  device: Device,
  values: readonly number[],
  shape: readonly number[],
  dtype: DType,
  padded: boolean,
): Placed {
  const typed = (v: readonly number[]) => (dtype === 'i32' ? Int32Array.from(v) : Float32Array.from(v))
  if (!padded) {
    const whole = device.tensor(typed(values), shape, dtype)
    return { view: whole, whole }
  }
  const outer = shape.map((size, i) => size + (i === shape.length - 1 ? 5 : 2))
  const filled = new Array<number>(product(outer)).fill(dtype === 'i32' ? -1 : Number.NaN)
  for (const [i, value] of values.entries()) filled[offset(i, shape, outer)] = value
  const whole = device.tensor(typed(filled), outer, dtype)
  let view: Tensor = whole
  for (const [dim, size] of shape.entries()) view = view.slice(dim, 1, 1 + size)
  return { view, whole }
}

/** Where element i of the inner shape stands in the outer one, which has one cell more in front of it everywhere. */
function offset(i: number, shape: readonly number[], outer: readonly number[]): number {
  let rest = i
  let at = 0
  let step = 1
  for (let dim = shape.length - 1; dim >= 0; dim--) {
    const size = shape[dim] as number
    at += ((rest % size) + 1) * step
    rest = Math.floor(rest / size)
    step *= outer[dim] as number
  }
  return at
}

/** A tensor for results, with the padding of {@link place} around it. */
export function room(device: Device, shape: readonly number[], dtype: DType, padded: boolean): Placed {
  return place(
    device,
    new Array<number>(product(shape)).fill(dtype === 'i32' ? -1 : Number.NaN),
    shape,
    dtype,
    padded,
  )
}

/** Throws if a cell around the view was written. */
export function expectPadding({ view, whole }: Placed, label: string): void {
  if (view === whole) return
  const all: ArrayLike<number> = whole.dtype === 'i32' ? whole.readSync() : whole.readSync('f32')
  const inside = new Set<number>()
  for (let i = 0; i < view.size; i++) inside.add(offset(i, view.shape, whole.shape))
  for (let i = 0; i < all.length; i++) {
    const untouched = whole.dtype === 'i32' ? all[i] === -1 : Number.isNaN(all[i])
    if (!inside.has(i) && !untouched) throw new Error(`${label}: the cell ${i} beside the view was written`)
  }
}

/** The elements as numbers. */
export function read(tensor: Tensor): number[] {
  return Array.from(tensor.dtype === 'i32' ? tensor.readSync() : tensor.readSync('f32'))
}

/** The error that `f` throws, or that reading what it returns does. */
export function refusal(f: () => Tensor | undefined): { code?: string; message: string } {
  try {
    f()?.readSync()
  } catch (error) {
    return error as { code?: string; message: string }
  }
  throw new Error('nothing was thrown')
}
