// lowbit tune: measures the rows that serve each call, and writes the fastest ones down for this machine.

import fs from 'node:fs'
import { defaultLinearShapes, linearShapes } from '../bench/cases'
import { type Compute, computes, type Format, formats, type ZeroPoint, zeroPoints } from '../words'
import { floats, groupSizes, groupsOption, numbersOption, shapesOption, wordsOption } from './lists'
import { command, numberOption, Progress, tableHead, tableRow } from './terminal'

const usage = `usage: lowbit tune [options]

Times every kernel row that can serve a call of linear, side by side on this machine's CPU, and writes a table of the fastest.
LB_TUNE=<file> makes the library follow it: a tuned row is taken first where it fits, for calls of that weight and with as many
rows of x or more, up to the next number in the table. A table of another machine or another build is left out, with a line.

  --out <file>       default: lowbit-tune.json
  --shape <list>     ${Object.keys(linearShapes).join(', ')} or NxK (default: ${defaultLinearShapes.join(', ')})
  --m <list>         rows of x (default: 1, 8, 64)
  --format <list>    ${formats.join(', ')}
  --group <list>     ${groupSizes.join(', ')}
  --zeros <list>     zero points: ${zeroPoints.join(', ')} (default: none)
  --compute <list>   ${computes.join(', ')}
  --x <list>         dtype of the activations: ${floats.join(', ')}
  --threads <n>      default: all cores
  --rounds <n>       default 5
  --seconds <s>      length of a row's part of a round, default 0.04
  --json             the table on stdout, nothing else there
  --help

Without a format: those that lowbit bench takes.`

const optionTypes = {
  out: { type: 'string' },
  shape: { type: 'string' },
  m: { type: 'string' },
  format: { type: 'string' },
  group: { type: 'string' },
  zeros: { type: 'string' },
  compute: { type: 'string' },
  x: { type: 'string' },
  threads: { type: 'string' },
  rounds: { type: 'string' },
  seconds: { type: 'string' },
  json: { type: 'boolean' },
} as const

// Another row than the usual one is worth a line of the table only if it is so much faster: less is noise.
const gain = 1.03

const columns = [
  { title: 'row', width: 30 },
  { title: 'call', width: 40 },
  { title: 'us', width: 9 },
  { title: 'usual us', width: 9 },
]

export async function run(argv: readonly string[]): Promise<number> {
  return command(argv, usage, optionTypes, 0, async (values) => {
    const given = {
      formats: wordsOption<Format>(values.format, 'format', formats),
      groups: groupsOption(values.group),
      zeros: wordsOption<ZeroPoint>(values.zeros, 'zeros', zeroPoints),
      computes: wordsOption<Compute>(values.compute, 'compute', computes),
      x: wordsOption(values.x, 'x', floats),
    }
    const choices = Object.fromEntries(Object.entries(given).filter(([, list]) => list !== undefined))
    const shapes = shapesOption(
      values.shape,
      linearShapes,
      defaultLinearShapes,
      'NxK',
      ([n = 0, k = 0]) => [n, k] as const,
    )
    const ms = numbersOption(values.m, 'm', 2 ** 20) ?? [1, 8, 64]
    const threads = numberOption(values.threads, 'threads', 1, 1024)
    const rounds = numberOption(values.rounds, 'rounds', 1, 1000) ?? 5
    const seconds = numberOption(values.seconds, 'seconds', 0, 60, false) ?? 0.04
    const out = values.out ?? 'lowbit-tune.json'

    // A table that is in force must not choose what the new one calls usual.
    delete process.env.LB_TUNE
    const { openDevice } = require('../device') as typeof import('../device')
    const { candidatesOf } = require('../bench/candidates') as typeof import('../bench/candidates')
    const { configsOf } = require('../bench/linear') as typeof import('../bench/linear')
    const { addonIdentity, machineName, tunedVersion } = require('../tuned') as typeof import('../tuned')
    using device = openDevice('cpu', { threads })
    const calls: import('../tuned').TunedCall[] = []
    const progress = new Progress()
    if (!values.json) process.stdout.write(`${tableHead(columns)}\n`)
    for (const config of configsOf(choices)) {
      for (const { shape } of shapes) {
        progress.show(`tune: ${config.format} ${shape.join('x')}`)
        for await (const { call, rows } of candidatesOf(device, config, shape, ms, { rounds, seconds })) {
          const timed = rows.flatMap(({ row, us }) => (us === undefined ? [] : [{ row, us }]))
          const [usual] = timed
          if (usual === undefined || timed.length < 2) continue // nothing to choose from
          const fastest = timed.reduce((best, row) => (row.us < best.us ? row : best))
          const { row, us } = usual.us >= gain * fastest.us ? fastest : usual
          calls.push({ ...call, row, us, usual: usual.row, usualUs: usual.us })
          progress.clear()
          if (values.json) continue
          const { m, n, k, format, groupSize, compute, x } = call
          const words = [`M${m} ${n}x${k}`, format, groupSize, compute, x].filter(
            (word) => word !== undefined,
          )
          process.stdout.write(
            `${tableRow(columns, [row, words.join(' '), us.toFixed(1), usual.us.toFixed(1)])}\n`,
          )
        }
      }
    }
    progress.clear()
    const table = {
      version: tunedVersion,
      machine: machineName(),
      addon: addonIdentity(),
      threads: device.info.threads,
      date: new Date().toISOString(),
      calls,
    }
    fs.writeFileSync(out, `${JSON.stringify(table, undefined, 1)}\n`)
    if (values.json) process.stdout.write(`${JSON.stringify(table)}\n`)
    else
      process.stdout.write(`\n${calls.length} calls in ${out}; LB_TUNE=${out} makes the library follow it\n`)
    return 0
  })
}
