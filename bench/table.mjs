// Prints the newest lines of the results as the Markdown tables that the README shows.
//
//   node bench/table.mjs [folder of results]
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { linesOf, newest } from './results.mjs'

const here = path.dirname(fileURLToPath(import.meta.url))
const folder = process.argv[2] ?? path.join(here, 'results')

const digits = (value) =>
  value === undefined
    ? ''
    : value >= 100
      ? value.toFixed(0)
      : value >= 10
        ? value.toFixed(1)
        : value.toFixed(2)
const percent = (line) => (line.percent === undefined ? '' : `${line.percent.toFixed(0)} %`)

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
  calls: {
    head: ['call', 'us', '10 %', '90 %'],
    row: (l) => [l.row, digits(l.us), digits(l.p10), digits(l.p90)],
  },
  peaks: {
    head: ['loop', 'threads', 'GB/s', 'GOP/s'],
    row: (l) => [`\`${l.row}\``, l.threads, digits(l.gbs), digits(l.gops)],
  },
}

const lines = newest(linesOf(folder)).filter((line) => line.hot !== true)
for (const machine of new Set(lines.map((line) => line.machine))) {
  for (const [op, { head, row }] of Object.entries(tables)) {
    const own = lines.filter((line) => line.machine === machine && line.op === op)
    if (own.length === 0) continue
    console.log(`\n**${op}**: ${machine}, commit ${own[0].commit}, ${own[0].date.slice(0, 10)}\n`)
    console.log(`| ${head.join(' | ')} |`)
    console.log(`|${head.map(() => '---').join('|')}|`)
    for (const line of own) console.log(`| ${row(line).join(' | ')} |`)
  }
}
