// The table of measured rows: made by `lowbit tune`, followed where LB_TUNE names it, left out as a whole where it does not
// serve. What a table can't do is change a result beyond what another row gives.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { description, native, root } from 'lowbit/native'
import { addonIdentity, machineName, type TunedCall, type TunedTable, tunedVersion } from 'lowbit/tuned'

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowbit-tune-'))
afterAll(() => fs.rmSync(folder, { recursive: true }))

function lowbit(args: string[], env: Record<string, string> = {}) {
  return spawnSync(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), ...args], {
    encoding: 'utf8',
    env: { ...process.env, LB_KERNEL: '', LB_TUNE: '', ...env },
  })
}

/** Rows that calls of this weight take, by rows of x, and whether each result is that of the reference row. */
const program = `
  const { openDevice, quantize, linear } = require('lowbit-under-test')
  const { native } = require('lowbit-under-test/native')
  const dev = openDevice('cpu', { threads: 1 })
  const [n, k] = [32, 64]
  const numbers = (count) => Float32Array.from({ length: count }, (_, i) => Math.sin(i * i))
  const w = dev.load(quantize(numbers(n * k), [n, k], { format: 'int4', groupSize: 32, symmetric: true, scaleDtype: 'f16' }))
  const taken = {}
  for (const [m, dtype] of [[1, 'f32'], [2, 'f32'], [3, 'f32'], [9, 'f32'], [3, 'bf16']]) {
    const x = dev.tensor(numbers(m * k), [m, k], dtype)
    const y = linear(x, w)
    taken[m + ' ' + dtype] = native.chosenRow()
    const got = y.readSync('f32')
    const out = dev.empty([m, n], dtype)
    native.linear(x, undefined, w, undefined, undefined, 0, 0, undefined, undefined, out, undefined, 'linear_ref')
    const want = out.readSync('f32')
    for (let i = 0; i < want.length; i++)
      if (!(Math.abs(got[i] - want[i]) <= 1e-2 * Math.max(1, Math.abs(want[i])))) throw new Error(m + ': ' + got[i] + ' for ' + want[i])
  }
  console.log(JSON.stringify(taken))
`.replaceAll(/'lowbit-under-test(\/\w+)?'/g, (_, file = '/index') =>
  JSON.stringify(path.join(root, `dist${file}.js`)),
)

function rowsWith(table: unknown): { taken: Record<string, string>; said: string } {
  const file = path.join(folder, 'table.json')
  fs.writeFileSync(file, typeof table === 'string' ? table : JSON.stringify(table))
  const { stdout, stderr, status } = spawnSync(process.execPath, ['-e', program], {
    encoding: 'utf8',
    env: { ...process.env, LB_KERNEL: '', LB_TUNE: file },
  })
  expect([status, stderr.includes('Error')]).toEqual([0, false])
  return { taken: JSON.parse(stdout), said: stderr }
}

const layout = native.selectLinear(
  native.hostInfo().archs.join(','),
  undefined,
  ...([1, 0, 0, -1, [32, 64], description.formats.indexOf('int4'), 1, 32, 1, 0, 0, 1] as const),
).layout as TunedCall['layout']
const call: TunedCall = {
  ...{ m: 3, n: 32, k: 64, x: 'f32', compute: 'float', format: 'int4', layout },
  ...{ groupSize: 32, zeroPoint: 'none', scaleDtype: 'f16' },
  ...{ row: 'linear_ref', us: 1, usual: 'linear_ref', usualUs: 1 },
}
const table: TunedTable = {
  version: tunedVersion,
  machine: machineName(),
  addon: addonIdentity(),
  threads: 1,
  date: new Date().toISOString(),
  calls: [call],
}
const usual = rowsWith({ ...table, calls: [] })

test('an empty table changes nothing and says nothing', () => {
  expect(usual.said).toBe('')
})

test('a tuned row is taken from its number of rows of x on, by calls like it alone', () => {
  const { taken, said } = rowsWith(table)
  expect(said).toBe('')
  expect(taken).toEqual({ ...usual.taken, '3 f32': 'linear_ref', '9 f32': 'linear_ref' })
})

test('the next number of rows of x in the table takes over; the last word on a call counts', () => {
  const order = usual.taken['9 f32'] as string
  const calls = [{ ...call, m: 9, row: 'linear_ref' }, call, { ...call, m: 9, row: order }]
  expect(rowsWith({ ...table, calls }).taken).toEqual({ ...usual.taken, '3 f32': 'linear_ref' })
})

test('a row that is forced wins over the table', () => {
  const file = path.join(folder, 'forced.json')
  fs.writeFileSync(file, JSON.stringify(table))
  const { stdout } = spawnSync(process.execPath, ['-e', program], {
    encoding: 'utf8',
    env: { ...process.env, LB_KERNEL: usual.taken['3 f32'] ?? '', LB_TUNE: file },
  })
  expect(JSON.parse(stdout)['3 f32']).toBe(usual.taken['3 f32'])
})

describe('a table that does not serve is left out as a whole, with one line', () => {
  const wrong: [string, unknown, RegExp][] = [
    ['another machine', { ...table, machine: 'Z80, 1 cores, cpu' }, /another machine \(Z80, 1 cores, cpu\)/],
    ['another build', { ...table, addon: '0123456789abcdef' }, /another build of lowbit/],
    ['another version', { ...table, version: 99 }, /no table of version 1/],
    ['no table', '[1, 2]', /no table of version 1/],
    ['null', 'null', /no table of version 1/],
    ['no JSON', '{"version": 1,', /JSON/],
    ['no calls', { ...table, calls: {} }, /no list of calls/],
    ['no such row', { ...table, calls: [call, { ...call, m: 9, row: 'magic' }] }, /no row 'magic'/],
    ['no row at all', { ...table, calls: [{ ...call, row: undefined }] }, /no row 'undefined'/],
    [
      'a row that can not',
      { ...table, calls: [call, { ...call, row: 'linear_bf16_f32_avx2' }] },
      /can't serve|no row|lacks/,
    ],
    ['no such format', { ...table, calls: [{ ...call, format: 'int5' }] }, /int5/],
    ['no such layout', { ...table, calls: [{ ...call, layout: 'heap' }] }, /heap/],
    ['sizes that are none', { ...table, calls: [{ ...call, m: -1 }] }, /no such call/],
    ['sizes that are no numbers', { ...table, calls: [{ ...call, n: 'x' }] }, /./],
    ['a call that is none', { ...table, calls: [null] }, /./],
  ]
  test.each(wrong)('%s', (_, content, sentence) => {
    const { taken, said } = rowsWith(content)
    expect(taken).toEqual(usual.taken)
    expect(said).toMatch(/^lowbit: LB_TUNE=.+ is left out: .+; lowbit tune makes a new one\n$/)
    expect(said).toMatch(sentence)
  })

  test('no file', () => {
    const { stderr, status } = lowbit(['kernels', '--shape', '1,32,64', '--format', 'int4'], {
      LB_TUNE: path.join(folder, 'absent.json'),
    })
    expect([status, stderr]).toEqual([0, expect.stringMatching(/ is left out: ENOENT/)])
  })
})

describe('lowbit tune', () => {
  const out = path.join(folder, 'made.json')
  const args = [
    '--shape',
    '32x64',
    '--m',
    '1,3',
    '--format',
    'int4,bf16',
    '--seconds',
    '0.0005',
    '--rounds',
    '2',
  ]

  test('writes a table that the library follows', () => {
    const { stdout, stderr, status } = lowbit(['tune', '--out', out, '--threads', '1', '--json', ...args])
    expect([status, stderr]).toEqual([0, ''])
    const made = JSON.parse(fs.readFileSync(out, 'utf8')) as TunedTable
    expect(JSON.parse(stdout)).toEqual(made)
    const { calls, date, ...rest } = made
    expect(Number.isNaN(Date.parse(date))).toBe(false)
    expect(rest).toEqual({
      version: tunedVersion,
      machine: machineName(),
      addon: addonIdentity(),
      threads: 1,
    })
    const rows = description.kernels.map(({ name }) => name)
    for (const made of calls) {
      expect([1, 3]).toContain(made.m)
      expect(rows).toContain(made.row)
      expect(rows).toContain(made.usual)
      expect(made.us).toBeGreaterThan(0)
      expect(made.us).toBeLessThanOrEqual(made.usualUs)
    }
    const { taken, said } = rowsWith(made)
    expect(said).toBe('')
    for (const m of [1, 3]) {
      const known = calls.find((c) => c.format === 'int4' && c.compute === 'float' && c.m === m)
      expect(taken[`${m} f32`]).toBe(known?.row ?? usual.taken[`${m} f32`])
    }
  })

  test('as text: a line for each call and where the table is', () => {
    const { stdout, status } = lowbit(['tune', '--out', out, ...args])
    expect(status).toBe(0)
    expect(stdout).toMatch(/\d+ calls in .+made\.json; LB_TUNE=/)
  })

  test('wrong options: a sentence and exit code 2', () => {
    for (const wrong of [['--m', '0'], ['--format', 'int5'], ['x'], ['--shape', '4']]) {
      const { status, stderr } = lowbit(['tune', ...wrong])
      expect([wrong, status, stderr]).toEqual([wrong, 2, expect.stringMatching(/^lowbit: /)])
    }
  })
})
