// Makes one SVG for each op and machine from the lines in ../results: how much of its bound each case reaches;
// and one for each number of threads of how many times as fast as each rival the cases of `--peers` are.
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

const families = ['llama.cpp', 'ONNX Runtime', 'oneDNN', 'our own']
const familyOf = (peer) =>
  families[peer.startsWith('ggml') ? 0 : peer.startsWith('ORT') ? 1 : peer.startsWith('oneDNN') ? 2 : 3]

/** A bar for each rival of each case: how many times its time ours is as fast. The line at 1 is the rival itself. */
function duels(machine, threads, lines) {
  const values = lines.map((l) => ({
    label:
      l.n === undefined
        ? `${l.case} : ${l.peer}`
        : `${l.case}, M = ${l.m}${l.n === l.k ? `, ${l.n} x ${l.k}` : ''} : ${l.peer}`,
    family: familyOf(l.peer),
    ratio: l.ratio,
    bar: l.bar,
  }))
  const y = { field: 'label', type: 'nominal', sort: null, title: null }
  const x = { field: 'ratio', type: 'quantitative', title: 'times as fast as the rival' }
  const color = { field: 'family', type: 'nominal', title: null, scale: { domain: families } }
  const bars = { mark: 'bar', encoding: { y, x, color: { ...color, legend: { orient: 'bottom' } } } }
  const text = {
    mark: { type: 'text', align: 'left', dx: 4 },
    encoding: { y, x, text: { field: 'ratio', format: '.2f' } },
  }
  const wanted = {
    transform: [{ filter: 'isValid(datum.bar)' }],
    mark: { type: 'tick', color: 'black', thickness: 2, size: 13 },
    encoding: { y, x: { ...x, field: 'bar' } },
  }
  const one = { mark: { type: 'rule', strokeDash: [4, 3] }, encoding: { x: { datum: 1 } } }
  return {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: {
      text: `linear and attention beside their rivals, ${threads}`,
      subtitle: `${machine}; ${lines[0].commit}; a black mark is the ratio to be reached`,
      anchor: 'start',
    },
    background: 'white',
    data: { values },
    width: 420,
    height: { step: 15 },
    layer: [bars, text, wanted, one],
    config: {
      view: { stroke: null },
      axisY: { labelLimit: 400 },
      range: { category: ['#7aa6c2', '#c2a67a', '#1f5f8b', '#8a8a8a'] },
    },
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
  // Name and cores: the rest stands in the picture.
  const slug = machine
    .split(', ')
    .slice(0, 2)
    .join(' ')
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '')
  for (const op of Object.keys(labels)) {
    const own = lines.filter((line) => line.machine === machine && line.op === op && line.hot !== true)
    if (own.length === 0) continue
    await save(`${op}-${slug}.svg`, chart(op, machine, own))
  }
  const rivals = lines.filter(
    (line) => line.machine === machine && line.op === 'peers' && line.ratio !== undefined,
  )
  for (const threads of new Set(rivals.map(threadsOf))) {
    const own = rivals.filter((line) => threadsOf(line) === threads)
    await save(`peers-${threads.replace(' ', '-')}-${slug}.svg`, duels(machine, threads, own))
  }
}
