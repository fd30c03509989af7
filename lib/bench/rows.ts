/** The ops that go over rows: 32 MB of them, from memory to memory. */
import { native } from '../native'
import type { FloatDType } from '../quantize'
import type { Tensor } from '../tensor'
import { type DType, dtypes } from '../words'
import { coldBytes, mostCopies, rowBytes, rowColumns } from './cases'
import { difference, randomFloats, randomInts } from './random'
import type { BenchCase, BenchContext } from './run'

/** Bytes of an element. */
export const widths: Readonly<Record<DType, number>> = {
  f32: 4,
  f16: 2,
  bf16: 2,
  i32: 4,
  i8: 1,
  u8: 1,
  e4m3: 1,
  e5m2: 1,
  e8m0: 1,
}

/** Small tensors that some of the ops read besides x. */
interface Side {
  readonly weight: Tensor
  readonly bias: Tensor
  readonly cos: Tensor
  readonly sin: Tensor
  readonly ids: Tensor
}

/** A tensor of results: of x's dtype if none is said, with a value for each element of x or for each of its rows. */
interface Output {
  readonly dtype?: DType
  readonly perRow?: boolean
}

interface RowOp {
  readonly name: string
  /** The row that it is checked against. */
  readonly reference: string
  /** Tensors as large as x that it reads. */
  readonly inputs: number
  /** What it writes: default one tensor like x. */
  readonly outputs?: readonly Output[]
  /** Bytes that it reads besides x, for each row. */
  readonly besides?: (columns: number) => number
  readonly apply: (x: readonly Tensor[], out: readonly Tensor[], side: Side, row?: string) => void
}

const first = (list: readonly Tensor[]): Tensor => list[0] as Tensor
const second = (list: readonly Tensor[]): Tensor => list[1] as Tensor
// As many as rope needs: 128 columns each at the usual width, all columns of an odd one.
const headsOf = (columns: number): number => (columns % 64 === 0 ? 32 : 1)

const rowOps: readonly RowOp[] = [
  {
    name: 'rmsNorm',
    reference: 'norm_ref',
    inputs: 1,
    apply: (x, out, side, row) =>
      native.rmsNorm(first(x), side.weight, undefined, first(out), undefined, 1e-5, row),
  },
  {
    name: 'rmsNorm+add',
    reference: 'norm_ref',
    inputs: 2,
    outputs: [{}, {}],
    apply: (x, out, side, row) =>
      native.rmsNorm(first(x), side.weight, second(x), first(out), second(out), 1e-5, row),
  },
  {
    name: 'layerNorm',
    reference: 'norm_ref',
    inputs: 1,
    apply: (x, out, side, row) =>
      native.layerNorm(first(x), side.weight, side.bias, undefined, first(out), undefined, 1e-5, row),
  },
  {
    name: 'rope',
    reference: 'rope_ref',
    inputs: 1,
    besides: (columns) => (columns / headsOf(columns)) * 4,
    apply: (x, out, side, row) => {
      using from = byHeads(first(x))
      using to = byHeads(first(out))
      native.rope(from, side.cos, side.sin, undefined, 0, 0, to, row)
    },
  },
  {
    name: 'embedding',
    reference: 'embedding_ref',
    inputs: 1,
    besides: () => 4,
    apply: (x, out, side, row) => {
      using ids = side.ids.slice(0, 0, first(out).shape[0] ?? 0)
      native.embedding(first(x), ids, first(out), row)
    },
  },
  {
    name: 'siluMul',
    reference: 'elementwise_ref',
    inputs: 2,
    apply: (x, out, _, row) => native.siluMul(first(x), second(x), first(out), row),
  },
  {
    name: 'add',
    reference: 'elementwise_ref',
    inputs: 2,
    apply: (x, out, _, row) => native.add(first(x), second(x), first(out), row),
  },
  {
    name: 'softmax',
    reference: 'softmax_ref',
    inputs: 1,
    apply: (x, out, _, row) => native.softmax(first(x), first(out), 1, row),
  },
  {
    name: 'argmax',
    reference: 'softmax_ref',
    inputs: 1,
    outputs: [{ dtype: 'i32', perRow: true }],
    apply: (x, out, _, row) => native.argmax(first(x), first(out), row),
  },
  {
    name: 'quantizeRows',
    reference: 'quantize_ref',
    inputs: 1,
    outputs: [{ dtype: 'i8' }, { dtype: 'f32', perRow: true }],
    apply: (x, out, _, row) =>
      native.quantizeRows(first(x), dtypes.indexOf('i8'), false, first(out), second(out), row),
  },
]

/** [rows, D] as [rows, heads, D / heads]. */
function byHeads(x: Tensor): Tensor {
  const [rows = 0, columns = 0] = x.shape
  const heads = headsOf(columns)
  return x.reshape([rows, heads, columns / heads])
}

/** Names of the row ops, for the command's help and its messages. */
export const rowOpNames: readonly string[] = rowOps.map((op) => op.name)

function* casesOf(
  context: BenchContext,
  dtype: FloatDType,
  rows: number,
  columns: number,
): Generator<BenchCase> {
  const { device, options } = context
  const bytes = rows * columns * widths[dtype]
  const copies = Math.min(mostCopies, 2 * Math.ceil(coldBytes / bytes / 2))
  const count = options.hot ? 2 : copies
  const shape = [rows, columns]
  const made: Tensor[] = []
  const keep = <T extends Tensor>(tensor: T): T => {
    made.push(tensor)
    return tensor
  }
  try {
    const data = randomFloats(rows * columns)
    const inputs = Array.from({ length: count }, () => keep(device.tensor(data, shape, dtype)))
    const rooms = new Map<string, Tensor[]>()
    const roomFor = ({ dtype: own = dtype, perRow = false }: Output, index: number): Tensor[] => {
      const key = `${own} ${perRow} ${index}`
      let room = rooms.get(key)
      if (room === undefined) {
        room = Array.from({ length: count }, () => keep(device.empty(perRow ? [rows] : shape, own)))
        rooms.set(key, room)
      }
      return room
    }
    const table = [rows, Math.max(1, Math.floor(columns / headsOf(columns) / 2))]
    const angles = randomFloats(rows * (table[1] ?? 0), 2)
    const side: Side = {
      weight: keep(device.tensor(randomFloats(columns, 3), [columns])),
      bias: keep(device.tensor(randomFloats(columns, 4), [columns])),
      cos: keep(device.tensor(angles.map(Math.cos), table)),
      sin: keep(device.tensor(angles.map(Math.sin), table)),
      ids: keep(device.tensor(randomInts(rows, rows, 5), [rows], 'i32')),
    }
    for (const op of rowOps) {
      if (op.name === 'rope' && columns % 2 !== 0) continue
      // Two at a time, so that what the next launch reads is none of what this one read.
      const places = options.hot ? 1 : Math.floor(count / 2)
      const from = (index: number): Tensor[] => inputs.slice(2 * (index % places), 2 * (index % places) + 2)
      const outputs = op.outputs ?? [{}]
      const written = outputs.map(roomFor)
      const to = (index: number): Tensor[] => written.map((room) => room[index % places] as Tensor)
      const sizes = outputs.map(
        ({ dtype: own = dtype, perRow }) => widths[own] * (perRow ? rows : rows * columns),
      )
      yield {
        op: 'rows',
        name: op.name,
        shape: `${op.name} ${rows}x${columns} ${dtype}`,
        properties: { x: dtype },
        work: {
          bytesRead: op.inputs * bytes + (op.besides?.(columns) ?? 0) * rows,
          bytesWritten: sizes.reduce((sum, size) => sum + size, 0),
          operations: 0,
          arithmetic: [],
        },
        launch: (index) => op.apply(from(index), to(index), side),
        check: () => checkRows(context, op, from(0), to(0), side),
      }
    }
  } finally {
    for (const tensor of made) tensor.dispose()
  }
}

// The reference rows are slow, and each row of x is a case of its own.
const checkedRows = 8

function checkRows(
  { device, host = device }: BenchContext,
  op: RowOp,
  x: readonly Tensor[],
  out: readonly Tensor[],
  side: Side,
): string | undefined {
  const rows = Math.min(checkedRows, x[0]?.shape[0] ?? 0)
  const made: Tensor[] = []
  const few = (tensor: Tensor): Tensor => {
    const view = tensor.slice(0, 0, rows)
    made.push(view)
    return view
  }
  // The reference rows are those of a CPU.
  const onHost = (tensor: Tensor): Tensor => {
    if (host === device) return tensor
    const moved = host.tensor(tensor.readSync(), tensor.shape, tensor.dtype)
    made.push(moved)
    return moved
  }
  try {
    const got = out.map(few)
    const want = out.map((tensor) => {
      const room = host.empty([rows, ...tensor.shape.slice(1)], tensor.dtype)
      made.push(room)
      return room
    })
    // The table of embedding is all of x; the other ops read the same rows that they write.
    const from = (op.name === 'embedding' ? x : x.map(few)).map(onHost)
    const { weight, bias, cos, sin, ids } = side
    const beside = {
      weight: onHost(weight),
      bias: onHost(bias),
      cos: onHost(cos),
      sin: onHost(sin),
      ids: onHost(ids),
    }
    op.apply(from, want, beside, op.reference)
    for (const [i, tensor] of got.entries()) {
      const floating = widths[tensor.dtype] > 1 && tensor.dtype !== 'i32'
      const dtype = floating ? 'f32' : tensor.dtype
      const wrong = difference(tensor.readSync(dtype), (want[i] as Tensor).readSync(dtype))
      if (wrong !== undefined) return wrong
    }
    return undefined
  } finally {
    for (const tensor of made) tensor.dispose()
  }
}

/** All row ops, for each dtype. */
export function* rowCases(context: BenchContext): Generator<BenchCase> {
  const { options } = context
  for (const dtype of options.x ?? (['f32', 'bf16'] as const)) {
    const usual = [rowBytes / rowColumns / widths[dtype], rowColumns] as const
    for (const [rows, columns] of options.rows ?? [usual]) yield* casesOf(context, dtype, rows, columns)
  }
}
