// Reads the results, for the tables and the plots.
import fs from 'node:fs'
import path from 'node:path'

/** The newest line of each case: of one machine, with one number of threads. */
export function newest(lines) {
  const keys = [
    'machine',
    'op',
    'row',
    'case',
    'shape',
    'format',
    'group',
    'zeros',
    'compute',
    'x',
    'threads',
    'hot',
    'peer',
    'kv',
    'sequences',
  ]
  const latest = new Map()
  for (const line of lines) {
    const key = JSON.stringify(keys.map((name) => line[name]))
    const known = latest.get(key)
    if (known === undefined || known.date <= line.date) latest.set(key, line)
  }
  return [...latest.values()]
}

/** The lines of all files of a folder. */
export function linesOf(results) {
  const files = fs.readdirSync(results).filter((name) => name.endsWith('.jsonl'))
  return files
    .flatMap((name) => fs.readFileSync(path.join(results, name), 'utf8').split('\n'))
    .filter((line) => line.trim() !== '')
    .map((line) => JSON.parse(line))
}
