// Makes one SVG for each op and machine from the lines in ../results: how much of its bound each case reaches, and how
// many times faster than its rival it is where it has one.
//
//   npm install && npm run plot [folder of results [folder of SVGs]]
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import * as vega from 'vega'
import { compile } from 'vega-lite'
import { linesOf, newest } from '../results.mjs'

const here = path.dirname(fileURLToPath(import.meta.url))
const results = process.argv[2] ?? path.join(here, '..', 'results')
const target = process.argv[3] ?? path.join(here, 'svg')

const threadsOf = (line) => (line.threads === 1 ? '1 thread' : `${line.threads} threads`)

const groupOf = (group) => (typeof group === 'number' ? `g${group}` : group)

// [what stands at the bars, what parts the columns of charts]
const labels = {
  linear: (l) => [
    [l.format, l.group === undefined ? '' : groupOf(l.group), l.compute, l.case || `${l.n}x${l.k}`]
      .filter(Boolean)
      .join(' '),
    `M = ${l.m}`,
  ],
  attention: (l) => [l.case || l.shape, l.x ?? ''],
  rows: (l) => [l.case, l.x ?? ''],
  calls: (l) => [l.row, ''],
}

function chart(op, machine, lines) {
  const measure = op === 'calls' ? 'us' : 'percent'
  const values = lines
    .filter((line) => line[measure] !== undefined)
    .map((line) => {
      const [label, column] = labels[op](line)
      return { label, column, threads: threadsOf(line), value: line[measure] }
    })
  const columns = [...new Set(values.map((v) => v.column))]
  const title = op === 'calls' ? 'us a call' : '% of the bound'
  return {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: { text: `${op}: ${title}`, subtitle: `${machine}; ${lines[0].commit}`, anchor: 'start' },
    background: 'white',
    data: { values },
    mark: { type: 'bar', tooltip: false },
    width: columns.length > 1 ? 220 : 420,
    height: { step: 9 },
    encoding: {
      y: { field: 'label', type: 'nominal', sort: null, title: null },
      yOffset: { field: 'threads', sort: null },
      x: {
        field: 'value',
        type: 'quantitative',
        title,
        ...(op === 'calls' ? {} : { scale: { domainMin: 0, domainMax: 100 } }),
      },
      color: { field: 'threads', type: 'nominal', sort: null, title: null, legend: { orient: 'bottom' } },
      ...(columns.length > 1
        ? { column: { field: 'column', type: 'nominal', sort: columns, title: null } }
        : {}),
    },
    config: {
      view: { stroke: null },
      axisY: { labelLimit: 400 },
      range: { category: ['#7aa6c2', '#1f5f8b', '#0b2f4a', '#c2a67a'] },
    },
  }
}

/** A bar for each case that has a rival; the line at 1 is the rival. */
function ratios(op, machine, lines) {
  const values = lines.map((line) => {
    const [label, column] = labels[op](line)
    return { label: `${label} : ${line.peer}`, column, threads: threadsOf(line), value: line.ratio }
  })
  const base = chart(op, machine, lines)
  const { x, ...encoding } = base.encoding
  const bars = { mark: 'bar', encoding: { ...encoding, x: { ...x, title: 'times as fast', scale: {} } } }
  const one = { mark: { type: 'rule', strokeDash: [4, 3] }, encoding: { x: { datum: 1 } } }
  const { column, ...plain } = bars.encoding
  return {
    ...base,
    title: { ...base.title, text: `${op}: times as fast as the best rival` },
    data: { values },
    mark: undefined,
    encoding: undefined,
    width: undefined,
    height: undefined,
    ...(column === undefined ? {} : { facet: { column } }),
    ...(column === undefined
      ? { layer: [{ ...bars, encoding: plain }, one], width: 420, height: { step: 9 } }
      : { spec: { layer: [{ ...bars, encoding: plain }, one], width: 220, height: { step: 9 } } }),
  }
}

async function save(name, spec) {
  const clean = JSON.parse(JSON.stringify(spec))
  const view = new vega.View(vega.parse(compile(clean).spec), { renderer: 'none' })
  const file = path.join(target, name)
  fs.writeFileSync(file, `${await view.toSVG()}\n`)
  console.log(file)
}

fs.mkdirSync(target, { recursive: true })
const lines = newest(linesOf(results))
for (const machine of new Set(lines.map((line) => line.machine))) {
  const slug = machine
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '')
  for (const op of Object.keys(labels)) {
    const own = lines.filter((line) => line.machine === machine && line.op === op && line.hot !== true)
    if (own.length === 0) continue
    await save(`${op}-${slug}.svg`, chart(op, machine, own))
    const rivals = own.filter((line) => line.peer !== undefined && line.ratio !== undefined)
    if (rivals.length > 0) await save(`${op}-peers-${slug}.svg`, ratios(op, machine, rivals))
  }
}
