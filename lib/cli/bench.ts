// lowbit bench: kernels against what the machine can do.

import fs from 'node:fs'
import path from 'node:path'
import {
  type AttentionShape,
  attentionShapes,
  defaultAttentionShapes,
  defaultLinearShapes,
  linearShapes,
} from '../bench/cases'
import { attentionDuels, type Duel, duels } from '../bench/duels'
import type { BenchLine } from '../bench/line'
import type { BenchOptions, BenchSink } from '../bench/run'
import type { TorchOp } from '../bench/torch'
import type { Peaks, Rates } from '../peaks'
import { type Compute, computes, type Format, formats, kvFormats, type ZeroPoint, zeroPoints } from '../words'
import { floats, groupSizes, groupsOption, numbersOption, shapesOption, sizesOf, wordsOption } from './lists'
import { type Column, command, numberOption, Progress, tableHead, tableRow, UsageError } from './terminal'

const ops = ['linear', 'attention', 'rows', 'load', 'calls', 'decode', 'serve', 'peaks'] as const

const usage = `usage: lowbit bench [op] [options]

Times the kernels of this machine's CPU, or of a GPU, and holds each against its bound: the time that memory or arithmetic needs at least,
both as measured in the same run. Without an op all but the last three run, in under three minutes on two cores.

  linear     x [M, K] times weights [N, K], in each format
  attention  decode and prefill
  rows       the ops that go over rows, 32 MB of them
  load       quantising 1 GB of bf16 to int4, and packing a weight of int4 for the device
  calls      what a call costs the JavaScript thread
  decode     tokens per second of a checkpoint, one text at a time
  serve      requests per second of a checkpoint, many texts at once, and how long a token takes to come
  peaks      what the machine can do: bandwidth and multiply-adds

  --format <list>    linear: ${formats.join(', ')}
  --group <list>     linear: ${groupSizes.join(', ')}
  --zeros <list>     linear: zero points: ${zeroPoints.join(', ')} (default: none)
  --compute <list>   linear: ${computes.join(', ')}
  --x <list>         dtype of the activations: ${floats.join(', ')}
  --m <list>         linear: rows of x
  --shape <list>     linear: ${Object.keys(linearShapes).join(', ')} or NxK
                     attention: ${Object.keys(attentionShapes).join(', ')} or QxKVxD
                     rows: ROWSxCOLUMNS; load: NxK; all: every shape of the op
  --device <name>    cpu, cuda, cuda:N (default: cpu)
  --threads <list>   default: 1 and all cores
  --row <name>       only this kernel row; see lowbit kernels
  --checkpoint <f>   decode, serve: a folder in Hugging Face's layout (default: test/checkpoints/small)
  --sequences <list> serve: clients, each with one request at a time (default: 1,8,32,128)
  --kv <list>        serve: formats of the KV cache, out of ${kvFormats.join(', ')}
                     (default: bf16)
  --prompt <n>       serve: tokens of a prompt, from half to one and a half of it (default: 128)
  --tokens <n>       serve: tokens that a request makes, likewise (default: 64)
  --chunk <n>        serve: tokens of one step at most, as of Batch (default: 512 or the clients)
  --peers            linear, attention, decode: against rivals, which bench/peers has; see its README
                     on a GPU linear and attention: against PyTorch's calls, by scripts that python3 runs
  --case <list>      with --peers linear: ${Object.keys(duels).join(', ')};
                     attention: ${Object.keys(attentionDuels).join(', ')};
                     on a GPU: cases of linear whose name begins so
  --hot              the same buffers again and again, instead of ones that no cache holds
  --rounds <n>       rounds that count, default 9
  --seconds <s>      length of a round, default 0.04; the peaks are measured twice as long
  --json             one line of JSON for each case on stdout, nothing else
  --save             append the lines to bench/results of the repository
  --help

'~' marks a case that other processes disturbed in most rounds.`

const optionTypes = {
  format: { type: 'string' },
  group: { type: 'string' },
  zeros: { type: 'string' },
  compute: { type: 'string' },
  x: { type: 'string' },
  m: { type: 'string' },
  shape: { type: 'string' },
  device: { type: 'string' },
  threads: { type: 'string' },
  row: { type: 'string' },
  checkpoint: { type: 'string' },
  sequences: { type: 'string' },
  kv: { type: 'string' },
  prompt: { type: 'string' },
  tokens: { type: 'string' },
  chunk: { type: 'string' },
  peers: { type: 'boolean' },
  case: { type: 'string' },
  hot: { type: 'boolean' },
  rounds: { type: 'string' },
  seconds: { type: 'string' },
  json: { type: 'boolean' },
  save: { type: 'boolean' },
} as const

const columns: readonly Column[] = [
  { title: 'row', width: 30 },
  { title: 'shape', width: 32 },
  { title: 'threads', width: 7 },
  { title: 'us', width: 9 },
  { title: 'GB/s', width: 7 },
  { title: 'GOP/s', width: 7 },
  { title: 'bound', width: 7 },
  { title: '% of it', width: 7 },
]

const peerColumns: readonly Column[] = [
  { title: 'case', width: 12 },
  { title: 'shape', width: 32 },
  { title: 'threads', width: 7 },
  { title: 'us', width: 9 },
  { title: 'GB/s', width: 7 },
  { title: 'GOP/s', width: 7 },
  { title: '% of bound', width: 16 },
  { title: 'rival', width: 28 },
  { title: 'us', width: 9 },
  { title: 'ratio', width: 6 },
  { title: 'bar', width: 5 },
]

const serveColumns: readonly Column[] = [
  { title: 'checkpoint', width: 32 },
  { title: 'clients', width: 7 },
  { title: 'threads', width: 7 },
  { title: 'requests/s', width: 10 },
  { title: 'tokens/s', width: 8 },
  { title: 'first ms', width: 8 },
  { title: '99 %', width: 7 },
  { title: 'token ms', width: 8 },
  { title: '90 %', width: 7 },
  { title: '99 %', width: 7 },
]

const decimals = (value: number | undefined): string => {
  if (value === undefined) return ''
  return value >= 1000 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)
}

function tableLine(line: BenchLine): string {
  const { row, shape, threads, us, gbs, gops, bound, percent, noisy, note } = line
  const cells = [row, shape, String(threads), decimals(us), decimals(gbs), decimals(gops), bound ?? '']
  const text = tableRow(columns, [...cells, percent === undefined ? '' : percent.toFixed(0)])
  return `${text}${noisy === true ? '  ~' : ''}${note === undefined ? '' : `  ${note}`}`
}

const verdict = (holds: unknown): string => (holds === true ? 'holds' : 'FAILS')

/** Ours, then the rival; the best rival of a field has the bar. */
function peerLine(line: BenchLine): string {
  const { shape, threads, us, gbs, gops, bound, percent, percentBar, percentHolds, noisy } = line
  const { peer, peerUs, ratio, bar, holds, best } = line
  const against =
    percentBar === undefined ? '' : percentHolds === true ? ` >= ${percentBar}` : ` < ${percentBar}`
  const cells = [line.case, shape, String(threads), decimals(us), decimals(gbs), decimals(gops)]
  cells.push(
    percent === undefined ? '' : `${percent.toFixed(0)}${against} ${bound}`,
    peer ?? 'none',
    decimals(peerUs as number | undefined),
  )
  cells.push(`${ratio?.toFixed(2) ?? ''}${best === true ? '*' : ' '}`, bar === undefined ? '' : `${bar}`)
  if (bar !== undefined) cells.push(verdict(holds))
  if (line.graphRatio !== undefined) cells.push(`in graphs ${(line.graphRatio as number).toFixed(2)}`)
  if (noisy === true) cells.push('~')
  const shown = peerColumns.length
  return [tableRow(peerColumns, cells.slice(0, shown)), ...cells.slice(shown)].join('  ')
}

function serveLine(line: BenchLine): string {
  const { requestsPerSecond, tokensPerSecond, firstMs, firstMsP99, tokenMs, tokenMsP90, tokenMsP99 } = line
  const times = [requestsPerSecond, tokensPerSecond, firstMs, firstMsP99, tokenMs, tokenMsP90, tokenMsP99]
  const cells = times.map((value) => decimals(value as number))
  return tableRow(serveColumns, [line.row, `${line.sequences}`, `${line.threads}`, ...cells])
}

/** The ops whose lines look otherwise than those of kernels. */
const tables: Readonly<Record<string, { columns: readonly Column[]; text: (line: BenchLine) => string }>> = {
  peers: { columns: peerColumns, text: peerLine },
  torch: { columns: peerColumns, text: peerLine },
  serve: { columns: serveColumns, text: serveLine },
}
const kernelTable = { columns, text: tableLine }

/** Prints lines as they come, and appends them to the results of the repository if asked to. */
class Printer implements BenchSink {
  private readonly shown = new Progress()
  private op = ''
  private headed = false
  constructor(
    private readonly json: boolean,
    private readonly results: string | undefined,
    /** Whether the table shows each row of the peaks. */
    private readonly each: boolean,
  ) {}

  line(line: BenchLine): void {
    this.write(line)
    if (this.json) return
    this.head(line)
    const table = tables[line.op] ?? kernelTable
    if (line.op !== this.op) process.stdout.write(`\n${tableHead(table.columns)}\n`)
    this.op = line.op
    process.stdout.write(`${table.text(line)}\n`)
  }

  peaks(peaks: Peaks, lines: readonly BenchLine[]): void {
    for (const line of lines) if (!this.each || this.json) this.write(line)
    const [first] = lines
    if (this.json || first === undefined) return
    this.head(first)
    process.stdout.write('\n')
    const rows: [string, Rates][] = [['1 thread', peaks.one]]
    if (peaks.threads > 1) rows.push([`${peaks.threads} threads`, peaks.all])
    for (const [threads, rates] of rows) {
      const figures = Object.entries(rates)
        .filter(([, rate]) => rate > 0)
        .map(([quantity, rate]) => `${quantity} ${decimals(rate)}`)
      process.stdout.write(`peaks, ${threads}, in GB/s and GOP/s: ${figures.join(', ')}\n`)
    }
    if (this.each) for (const line of lines) this.line(line)
  }

  /** To where the lines are kept. */
  private write(line: BenchLine): void {
    this.shown.clear()
    const text = `${JSON.stringify(line)}\n`
    if (this.results !== undefined) fs.appendFileSync(path.join(this.results, `${line.op}.jsonl`), text)
    if (this.json) process.stdout.write(text)
  }

  private head(line: BenchLine): void {
    if (this.headed) return
    this.headed = true
    process.stdout.write(`${line.machine}; lowbit ${line.commit}, Node ${line.node}\n`)
  }

  note(text: string): void {
    this.shown.clear()
    process.stderr.write(`lowbit: left out: ${text}\n`)
  }

  progress(text: string): void {
    this.shown.show(text)
  }

  done(): void {
    this.shown.clear()
  }
}

/** The folder that --save appends to: the published package has none. */
function resultsFolder(): string {
  const folder = path.join(__dirname, '..', '..', 'bench', 'results')
  if (!fs.existsSync(folder)) throw new UsageError(`--save needs the repository: there is no ${folder}`)
  return folder
}

export async function run(argv: readonly string[]): Promise<number> {
  return command(argv, usage, optionTypes, 1, async (values, [op]) => {
    if (op !== undefined && !ops.some((known) => known === op)) {
      throw new UsageError(`expected one of ${ops.join(', ')} but got '${op}'`)
    }
    if (
      values.shape !== undefined &&
      (op === undefined || !['linear', 'attention', 'rows', 'load'].includes(op))
    ) {
      throw new UsageError('--shape needs an op: linear, attention, rows or load')
    }
    const groups = groupsOption(values.group)
    const peers = values.peers ?? false
    const onGpu = values.device !== undefined && values.device !== 'cpu'
    if (peers && op !== 'linear' && op !== 'attention' && (op !== 'decode' || onGpu))
      throw new UsageError(`--peers goes with linear${onGpu ? ' and attention' : ', attention and decode'}`)
    // Shapes of PyTorch's scripts are theirs.
    const shapeOf = (name: string): string | undefined =>
      op === name && !(peers && onGpu) ? values.shape : undefined
    const checkpoint = op === 'decode' || op === 'serve'
    if (values.checkpoint !== undefined && !checkpoint)
      throw new UsageError('--checkpoint goes with decode and serve')
    for (const name of ['sequences', 'kv', 'prompt', 'tokens', 'chunk'] as const)
      if (values[name] !== undefined && op !== 'serve') throw new UsageError(`--${name} goes with serve`)
    if (values.case !== undefined && !peers) throw new UsageError('--case goes with --peers')
    const rounds = numberOption(values.rounds, 'rounds', 1, 1000) ?? (peers ? 5 : 9)
    const seconds = numberOption(values.seconds, 'seconds', 0, 60, false) ?? 0.04
    const given = {
      formats: wordsOption<Format>(values.format, 'format', formats),
      groups,
      zeros: wordsOption<ZeroPoint>(values.zeros, 'zeros', zeroPoints),
      computes: wordsOption<Compute>(values.compute, 'compute', computes),
      x: wordsOption(values.x, 'x', floats),
      m: numbersOption(values.m, 'm', 2 ** 20),
      rows: shapeOf('rows')
        ?.split(',')
        .map((text) => sizesOf(text, 'ROWSxCOLUMNS', []) as [number, number]),
      load: shapeOf('load') === undefined ? undefined : sizesOf(values.shape ?? '', 'NxK', []),
      row: values.row,
      device: values.device === 'cuda' ? 'cuda:0' : values.device,
    }
    const present = Object.entries(given).filter(([, value]) => value !== undefined)
    const options: BenchOptions = {
      ...(Object.fromEntries(present) as Partial<BenchOptions>),
      linear: shapesOption(
        shapeOf('linear'),
        linearShapes,
        defaultLinearShapes,
        'NxK',
        (sizes) => sizes as [number, number],
      ),
      attention: shapesOption<AttentionShape>(
        shapeOf('attention'),
        attentionShapes,
        defaultAttentionShapes,
        'QxKVxD',
        ([seqQ = 0, seqKv = 0, headDim = 0]) => ({ seqQ, seqKv, headDim }),
      ),
      hot: values.hot ?? false,
      effort: { rounds, seconds },
    }
    const threads = numbersOption(values.threads, 'threads', 1024)
    const printer = new Printer(
      values.json ?? false,
      values.save ? resultsFolder() : undefined,
      op === 'peaks',
    )

    // The addon reads it once, when it is loaded.
    if (values.row !== undefined) process.env.LB_KERNEL = values.row
    const { benchOf, runBench } = require('../bench/bench') as typeof import('../bench/bench')
    const rowOp = values.row === undefined ? undefined : benchOf(values.row)
    if (values.row !== undefined && (rowOp === undefined || (op !== undefined && op !== rowOp))) {
      const where = op === undefined || rowOp === undefined ? '' : ` in ${op}`
      throw new UsageError(`--row: there is no kernel row '${values.row}'${where}; lowbit kernels lists them`)
    }
    const usual = ops.filter((name) => !['decode', 'serve', 'peaks'].includes(name))
    const chosen = op !== undefined ? [op] : rowOp !== undefined ? [rowOp] : usual
    let lines: number
    try {
      const folder = values.checkpoint ?? path.join(__dirname, '..', '..', 'test', 'checkpoints', 'small')
      if (checkpoint && values.checkpoint === undefined && !fs.existsSync(folder))
        throw new UsageError('name a --checkpoint')
      if (op === 'decode') {
        const { runDecode } = require('../bench/decode') as typeof import('../bench/decode')
        lines = await runDecode(folder, threads, options.effort, peers, printer)
      } else if (op === 'serve') {
        const { runServe } = require('../bench/serve') as typeof import('../bench/serve')
        const served = {
          sequences: numbersOption(values.sequences, 'sequences', 4096) ?? [1, 8, 32, 128],
          kv: wordsOption(values.kv, 'kv', kvFormats) ?? (['bf16'] as const),
          prompt: numberOption(values.prompt, 'prompt', 1, 2 ** 20) ?? 128,
          tokens: numberOption(values.tokens, 'tokens', 1, 2 ** 20) ?? 64,
          chunk: numberOption(values.chunk, 'chunk', 1, 2 ** 20),
          device: given.device ?? 'cpu',
        }
        lines = 0
        for (const count of threads ?? [undefined])
          lines += await runServe(folder, { ...served, threads: count }, printer)
      } else if (peers && onGpu) {
        const { runTorch } = require('../bench/torch') as typeof import('../bench/torch')
        const told = op === 'linear' ? (['case', 'm', 'shape'] as const) : (['shape'] as const)
        const args = told.flatMap((name) => (values[name] === undefined ? [] : [`--${name}`, values[name]]))
        lines = await runTorch(op as TorchOp, given.device as string, args, printer)
      } else if (peers && op === 'attention') {
        const known = Object.keys(attentionDuels)
        const names = wordsOption(values.case, 'case', known) ?? known
        const { runAttentionDuels } = require('../bench/peers') as typeof import('../bench/peers')
        lines = await runAttentionDuels(names, threads, options, printer)
      } else if (peers) {
        const names = wordsOption(values.case, 'case', Object.keys(duels)) ?? Object.keys(duels)
        const { runDuels } = require('../bench/peers') as typeof import('../bench/peers')
        const duelists = names.map((name) => [name, duels[name] as Duel] as const)
        const shapes =
          values.shape === undefined ? options.linear?.filter(({ name }) => name === 'down') : options.linear
        lines = await runDuels(duelists, threads, shapes ?? [], options, printer)
      } else lines = await runBench(chosen, threads, options, rounds * 20, printer)
    } finally {
      printer.done()
    }
    if (lines === 0) process.stderr.write('lowbit: no case was timed: nothing serves what was asked for\n')
    return lines === 0 ? 1 : 0
  })
}
