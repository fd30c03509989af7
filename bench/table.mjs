// Prints the newest lines of the results as Markdown tables; with --write, puts those that the README shows into it, between
// its marks.
//
//   node bench/table.mjs [--write] [folder of results]
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { linesOf, newest } from './results.mjs'

const here = path.dirname(fileURLToPath(import.meta.url))
const args = process.argv.slice(2)
const write = args.includes('--write')
const folder = args.find((text) => text !== '--write') ?? path.join(here, 'results')

const digits = (value) =>
  value === undefined
    ? ''
    : value >= 100
      ? value.toFixed(0)
      : value >= 10
        ? value.toFixed(1)
        : value.toFixed(2)
const percent = (line) => (line.percent === undefined ? '' : `${line.percent.toFixed(0)} %`)

/** "1.2 holds", or nothing where there is no bar. */
const barOf = (bar, holds, unit = '') =>
  bar === undefined ? '' : ` ${bar}${unit} ${holds ? 'holds' : '**fails**'}`

const tables = {
  linear: {
    head: ['weights', 'compute', 'N x K', 'M', 'threads', 'us', 'GB/s', 'GOP/s', '% of bound', 'row'],
    row: (l) => [
      [l.format, typeof l.group === 'number' ? `g${l.group}` : l.group, l.zeros === 'none' ? '' : l.zeros]
        .filter(Boolean)
        .join(' '),
      l.compute,
      `${l.n} x ${l.k}`,
      l.m,
      l.threads,
      digits(l.us),
      digits(l.gbs),
      digits(l.gops),
      `${percent(l)} (${l.bound})`,
      `\`${l.row}\``,
    ],
  },
  peers: {
    head: [
      'case',
      'N x K, or shape',
      'M, or queries',
      'threads',
      'us',
      'GOP/s',
      '% of bound',
      'best rival',
      'us',
      'times as fast',
      'bar',
    ],
    // The best rival of each bar; the others are in the file and in the plot.
    wanted: (l) => l.best === true,
    // In the README: what has a bar.
    short: (l) => l.bar !== undefined,
    row: (l) => [
      l.case,
      l.n === undefined ? l.shape : `${l.n} x ${l.k}`,
      l.m ?? l.seqQ,
      l.threads,
      digits(l.us),
      digits(l.gops),
      `${percent(l)} (${l.bound})${barOf(l.percentBar, l.percentHolds, ' %')}`,
      l.peer,
      digits(l.peerUs),
      `${l.ratio.toFixed(2)}${l.noisy ? ' ~' : ''}`,
      barOf(l.bar, l.holds),
    ],
  },
  attention: {
    head: [
      'queries x keys',
      'head dim',
      'heads / kv',
      'dtype',
      'threads',
      'us',
      'GB/s',
      'GOP/s',
      '% of bound',
      'row',
    ],
    row: (l) => [
      `${l.seqQ} x ${l.seqKv}`,
      l.headDim,
      `${l.heads} / ${l.kvHeads}`,
      l.x,
      l.threads,
      digits(l.us),
      digits(l.gbs),
      digits(l.gops),
      `${percent(l)} (${l.bound})`,
      `\`${l.row}\``,
    ],
  },
  rows: {
    head: ['op', 'dtype', 'threads', 'us', 'GB/s', '% of bound', 'row'],
    row: (l) => [l.case, l.x, l.threads, digits(l.us), digits(l.gbs), percent(l), `\`${l.row}\``],
  },
  load: {
    head: ['what', 'weight', 'threads', 'ms', 'GB/s', 'bar in ms'],
    row: (l) => [
      l.row,
      l.shape,
      l.threads,
      digits(l.us / 1e3),
      digits(l.gbs),
      barOf(l.barUs === undefined ? undefined : l.barUs / 1e3, l.withinBar),
    ],
  },
  decode: {
    head: ['checkpoint', 'threads', 'tokens/s', 'rival', 'tokens/s', 'times as fast', 'bar'],
    row: (l) => [
      l.row,
      l.threads,
      digits(l.perSecond),
      l.peer ?? '',
      l.peerUs === undefined ? '' : digits(1e6 / l.peerUs),
      l.ratio === undefined ? '' : `${l.ratio.toFixed(2)}${l.noisy ? ' ~' : ''}`,
      barOf(l.bar, l.holds),
    ],
  },
  serve: {
    machines: 2,
    head: [
      'checkpoint',
      'clients',
      'threads',
      'requests/s',
      'tokens/s',
      'first token, ms',
      '99 %',
      'next token, ms',
      '90 %',
      '99 %',
    ],
    row: (l) => [
      l.row,
      l.sequences,
      l.threads,
      digits(l.requestsPerSecond),
      digits(l.tokensPerSecond),
      digits(l.firstMs),
      digits(l.firstMsP99),
      digits(l.tokenMs),
      digits(l.tokenMsP90),
      digits(l.tokenMsP99),
    ],
  },
  calls: {
    head: ['call', 'us', '10 %', '90 %'],
    row: (l) => [l.row, digits(l.us), digits(l.p10), digits(l.p90)],
  },
  peaks: {
    head: ['loop', 'threads', 'GB/s', 'GOP/s'],
    row: (l) => [`\`${l.row}\``, l.threads, digits(l.gbs), digits(l.gops)],
  },
}

function tableOf(op, lines) {
  const { head, row } = tables[op]
  return [
    `| ${head.join(' | ')} |`,
    `|${head.map(() => '---').join('|')}|`,
    ...lines.map((line) => `| ${row(line).join(' | ')} |`),
  ].join('\n')
}

const lines = newest(linesOf(folder)).filter((line) => line.hot !== true)
const ownOf = (machine, op) => {
  const { wanted = () => true } = tables[op]
  return lines.filter((line) => line.machine === machine && line.op === op && wanted(line))
}
const titleOf = ([first]) => `${first.machine}, commit ${first.commit}, ${first.date.slice(0, 10)}`

// In the README: a table between `<!-- bench <op> -->` and `<!-- /bench -->`, of the machine measured last, or of the last ones.
if (write) {
  const file = path.join(here, '..', 'README.md')
  const text = fs.readFileSync(file, 'utf8')
  const made = text.replace(/(<!-- bench (\w+) -->\n)[\s\S]*?(<!-- \/bench -->)/g, (all, begin, op, end) => {
    const newestFirst = lines.filter((line) => line.op === op).sort((a, b) => (a.date < b.date ? 1 : -1))
    const { short = () => true, machines = 1 } = tables[op]
    const shown = [...new Set(newestFirst.map((line) => line.machine))].slice(0, machines)
    if (shown.length === 0) return all
    const parts = shown.map((machine) => {
      // Of one commit: rows that were measured in another one may be gone.
      const { commit } = newestFirst.find((line) => line.machine === machine)
      const own = ownOf(machine, op).filter((line) => line.commit === commit && short(line))
      return `${titleOf(own)}\n\n${tableOf(op, own)}\n`
    })
    return `${begin}${parts.join('\n')}${end}`
  })
  fs.writeFileSync(file, made)
} else {
  for (const machine of new Set(lines.map((line) => line.machine))) {
    for (const op of Object.keys(tables)) {
      const own = ownOf(machine, op)
      if (own.length > 0) console.log(`\n**${op}**: ${titleOf(own)}\n\n${tableOf(op, own)}`)
    }
  }
}
