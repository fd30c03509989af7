/** `lowbit kernels`: the rows of every registry, and which one a call would take. */
import { type Candidate, candidatesOf } from '../bench/candidates'
import { openDevice } from '../device'
import { description, type KernelRow, native } from '../native'
import type { GroupSize } from '../quantize'
import { type LinearCall, selectAttention, selectLinear } from '../select'
import type { Compute, DType, Format } from '../words'
import { floats } from './lists'
import { command, numberOption, tableHead, tableRow, UsageError } from './terminal'

const usage = `usage: lowbit kernels [op] [--json]
       lowbit kernels --shape M,N,K --format F [--group G] [--zeros Z] [--compute C] [--x DTYPE] [--arch A]
       lowbit kernels attention --shape SEQ_Q,SEQ_KV,HEADS,KV_HEADS,HEAD_DIM [--x DTYPE] [--arch A]

The rows of the kernel registries in order of preference: the first that fits the device and the call is used. With --shape,
the row that such a call takes, and below it every row that could serve it, timed side by side on this machine; with --arch or a
forced row (LB_KERNEL), the row alone.

  --shape M,N,K     linear: x [M, K] with a weight [N, K]
  --format F        format of the weight: ${description.formats.join(', ')}
  --group G         32, 64, 128, channel, tensor or block (default: as quantize has it)
  --zeros Z         zero points: ${description.zeroPoints.join(', ')} (default: none)
  --compute C       ${description.computes.join(', ')} (default: float)
  --x DTYPE         dtype of x, or of q, k and v (default: f32)
  --arch A[,B]      on a machine with these instead of this one: ${description.archs.join(', ')}
  --threads N       of the times (default: all cores)
  --json            on standard output, for programs`

/** What a row can do, in words; limits that bind nothing are left out. */
function specOf(row: KernelRow): string {
  const words: string[] = []
  for (const [name, value] of Object.entries(row)) {
    if (['op', 'name', 'arch'].includes(name)) continue
    if (Array.isArray(value)) words.push(`${name} ${value.join(' ')}`)
    else if (typeof value === 'string') words.push(`${name} ${value}`)
    else if (typeof value === 'boolean') words.push(...(value ? [name] : []))
    else if (name.endsWith('Max')) words.push(...(value > 0 ? [`${name.slice(0, -3)} <= ${value}`] : []))
    else if (name.endsWith('Multiple')) words.push(...(value > 1 ? [`${name.slice(0, -8)} % ${value}`] : []))
    else words.push(`${name} ${value}`)
  }
  return words.join('; ')
}

function shapeOf(text: string, count: number): number[] {
  const sizes = text.split(/[,x]/).map(Number)
  if (sizes.length === count && sizes.every((size) => Number.isSafeInteger(size) && size >= 0)) return sizes
  throw new UsageError(`--shape expects ${count} sizes with commas but got '${text}'`)
}

interface Times {
  readonly threads: number
  readonly candidates: readonly Candidate[]
}

/** The rows that fit, timed; undefined where the bench has no such x, or there is nothing to do. */
async function timesOf(call: LinearCall, threads: number | undefined): Promise<Times | undefined> {
  const { m, n, k, format, compute = 'float', x = 'f32', groupSize, zeroPoint } = call
  const float = floats.find((dtype) => dtype === x)
  const quantised = x === 'i8' && compute === 'int8'
  if ((float === undefined && !quantised) || m * n * k === 0) return undefined
  const config = {
    ...{ format, compute, x: float ?? ('f32' as const), quantised },
    ...(groupSize === undefined ? {} : { groupSize }),
    ...(zeroPoint === undefined ? {} : { zeros: zeroPoint }),
  }
  using device = openDevice('cpu', { threads })
  const effort = { rounds: 5, seconds: 0.02 }
  for await (const { rows } of candidatesOf(device, config, [n, k], [m], effort)) {
    return { threads: device.info.threads, candidates: rows }
  }
  return undefined
}

function timesText({ threads, candidates }: Times): string {
  const columns = [
    { title: `rows that fit, in order; ${threads === 1 ? '1 thread' : `${threads} threads`}`, width: 44 },
    { title: 'us', width: 9 },
  ]
  const rows = candidates.map(({ row, us }) => tableRow(columns, [row, us?.toFixed(1) ?? 'too long']))
  return ['', tableHead(columns), ...rows].join('\n')
}

const options = {
  shape: { type: 'string' },
  format: { type: 'string' },
  group: { type: 'string' },
  zeros: { type: 'string' },
  compute: { type: 'string' },
  x: { type: 'string' },
  arch: { type: 'string' },
  threads: { type: 'string' },
  json: { type: 'boolean' },
} as const

/** @param argv what stands after `lowbit kernels` */
export function run(argv: readonly string[]): Promise<number> {
  return command(argv, usage, options, 1, async (values, [op]) => {
    const print = (text: string): void => void process.stdout.write(`${text}\n`)
    const archs = values.arch?.split(',') ?? native.hostInfo().archs
    const unknown = archs.find((arch) => !description.archs.includes(arch))
    if (unknown !== undefined)
      throw new UsageError(`--arch expects words of ${description.archs.join(', ')} but got '${unknown}'`)
    const ops = [...new Set(description.kernels.map((row) => row.op))]
    if (op !== undefined && !ops.includes(op))
      throw new UsageError(`'${op}' is no op; there are ${ops.join(', ')}`)

    if (values.shape !== undefined) {
      const forced = process.env.LB_KERNEL || undefined
      const choice = { archs, ...(forced === undefined ? {} : { row: forced }) }
      if (op === 'attention') {
        const [seqQ = 0, seqKv = 0, heads = 0, kvHeads = 0, headDim = 0] = shapeOf(values.shape, 5)
        const call = { seqQ, seqKv, heads, kvHeads, headDim, dtype: (values.x ?? 'f32') as DType }
        const chosen = selectAttention(call, choice)
        print(values.json ? JSON.stringify({ op, ...call, archs, ...chosen }) : chosen.row)
        return 0
      }
      if (op !== undefined && op !== 'linear')
        throw new UsageError(`--shape goes with linear and attention, not with ${op}`)
      if (values.format === undefined) throw new UsageError('--shape M,N,K goes with --format')
      const [m = 0, n = 0, k = 0] = shapeOf(values.shape, 3)
      const group = values.group === undefined ? undefined : Number(values.group) || values.group
      const call = {
        ...{ m, n, k, format: values.format as Format },
        ...{ compute: (values.compute ?? 'float') as Compute, x: (values.x ?? 'f32') as DType },
        ...(group === undefined ? {} : { groupSize: group as GroupSize }),
        ...(values.zeros === undefined ? {} : { zeroPoint: values.zeros as 'none' | 'integer' | 'float' }),
      }
      const chosen = selectLinear(call, choice)
      const timed =
        values.arch === undefined && forced === undefined
          ? await timesOf(call, numberOption(values.threads, 'threads', 1, 1024))
          : undefined
      if (values.json) print(JSON.stringify({ op: 'linear', ...call, archs, ...chosen, ...timed }))
      else {
        print(`${chosen.row} (weight packed as ${chosen.layout})`)
        if (timed !== undefined) print(timesText(timed))
      }
      return 0
    }

    const rows = description.kernels
      .filter((row) => op === undefined || row.op === op)
      .map((row) => ({ ...row, here: row.arch.every((arch) => archs.includes(arch)) }))
    if (values.json) {
      print(JSON.stringify({ archs, kernels: rows }))
      return 0
    }
    const longest = (name: 'op' | 'name'): number => Math.max(4, ...rows.map((row) => row[name].length))
    const columns = [
      { title: 'row', width: longest('name') },
      { title: 'arch', width: Math.max(...description.archs.map((arch) => arch.length)) },
      { title: 'runs here', width: 9 },
    ]
    print(`${tableHead(columns)}  what it serves`)
    for (const { here, ...row } of rows)
      print(`${tableRow(columns, [row.name, row.arch.join(' '), here ? 'yes' : 'no'])}  ${specOf(row)}`)
    print(`\nThis machine has ${archs.join(', ')}. Rows stand in order of preference.`)
    return 0
  })
}
