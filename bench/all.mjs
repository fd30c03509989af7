// Everything that the README shows, measured into bench/results, then its tables and plots made anew: under ten minutes on
// a quiet 2-core machine. Parts can be named, to measure those alone.
//
//   node bench/all.mjs [calls] [load] [rivals] [rivals-all-cores] [rivals-square] [rivals-avx2] [decode] [bounds] [show]
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

const root = path.join(import.meta.dirname, '..')
const main = path.join(root, 'dist', 'cli', 'main.js')
const wide = 'w4a8,w4a16,int8,int8-dynamic,bf16,fp8,int2,ternary,int1'
const cores = String(os.availableParallelism())
const peers = ['linear', '--peers']

const parts = {
  calls: [['calls']],
  load: [['load']],
  // 4096 x 14336, one thread: the cases that have bars.
  rivals: [[...peers, '--case', wide, '--threads', '1']],
  'rivals-all-cores': [[...peers, '--case', wide, '--m', '1,8,64', '--threads', cores]],
  'rivals-square': [
    [...peers, '--case', 'w4a8,int8,int2,ternary', '--shape', 'o', '--m', '1,8,64', '--threads', '1'],
  ],
  'rivals-avx2': [[...peers, '--case', 'w4a8-avx2', '--threads', '1']],
  'rivals-attention': [
    ['attention', '--peers', '--threads', '1'],
    ['attention', '--peers', '--threads', cores],
  ],
  decode: [['decode', '--peers', '--seconds', '0.2']],
  bounds: [
    ['linear', '--rounds', '5'],
    ['attention', '--rounds', '5'],
    ['rows', '--rounds', '5'],
  ],
  show: [],
}

const wanted = process.argv.slice(2)
const unknown = wanted.find((name) => !(name in parts))
if (unknown !== undefined) {
  console.error(`expected some of ${Object.keys(parts).join(', ')} but got '${unknown}'`)
  process.exit(2)
}
const chosen = wanted.length > 0 ? wanted : Object.keys(parts)

function run(program, ...args) {
  const { status } = spawnSync(program, args, { cwd: root, stdio: 'inherit' })
  if (status !== 0) process.exit(status ?? 1)
}

const begin = Date.now()
for (const name of chosen) {
  const from = Date.now()
  for (const args of parts[name]) run(process.execPath, main, 'bench', ...args, '--save')
  if (name === 'show') {
    run(process.execPath, path.join(root, 'bench', 'table.mjs'), '--write')
    if (fs.existsSync(path.join(root, 'bench', 'plot', 'node_modules'))) {
      run(process.execPath, path.join(root, 'bench', 'plot', 'plot.mjs'))
    } else console.log('no plots: npm install in bench/plot')
  }
  console.log(`\n${name}: ${((Date.now() - from) / 1e3).toFixed(0)} s\n`)
}
console.log(`${((Date.now() - begin) / 6e4).toFixed(1)} minutes`)
