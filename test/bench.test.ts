import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { LowbitError, measurePeaks, openDevice } from 'lowbit'
import { boundOf, ratesOf } from 'lowbit/bench/bound'
import type { BenchLine } from 'lowbit/bench/line'
import { difference, randomFloats, randomInts } from 'lowbit/bench/random'
import { rowOpNames } from 'lowbit/bench/rows'
import { percentile, timeLaunches } from 'lowbit/bench/time'
import { native, root } from 'lowbit/native'
import { bestRates, type PeakRow, type Peaks, quantities } from 'lowbit/peaks'

const main = path.join(root, 'dist', 'cli', 'main.js')

function bench(...args: string[]) {
  return spawnSync(process.execPath, [main, 'bench', ...args], { encoding: 'utf8' })
}

/** The lines of a run with --json that must succeed, those of the peaks apart. */
function linesOf(...args: string[]): { lines: BenchLine[]; peaks: BenchLine[] } {
  const result = bench(...args, '--json', '--rounds', '2', '--seconds', '0.001', '--threads', '1')
  expect(result.stderr).toBe('')
  expect(result.status).toBe(0)
  const all = result.stdout
    .trimEnd()
    .split('\n')
    .map((text) => JSON.parse(text) as BenchLine)
  return {
    lines: all.filter(({ op }) => op !== 'peaks'),
    peaks: all.filter(({ op }) => op === 'peaks'),
  }
}

/** What every line says of where it comes from. */
function checkOrigin(line: BenchLine): void {
  expect(line.machine).toMatch(/^.+, \d+ cores?, .+$/)
  expect(line.commit).toMatch(/^[0-9a-f]{12}\+?$|^\d+\.\d+\.\d+/)
  expect(line.node).toBe(process.version)
  expect(Number.isNaN(Date.parse(line.date))).toBe(false)
}

function checkTimed(line: BenchLine): void {
  checkOrigin(line)
  expect(line.threads).toBe(1)
  expect(line.us).toBeGreaterThan(0)
  expect(line.p10).toBeLessThanOrEqual(line.us as number)
  expect(line.p90).toBeGreaterThanOrEqual(line.us as number)
  expect(line.rounds).toBeGreaterThanOrEqual(1)
  expect(line.calls).toBeGreaterThanOrEqual(1)
}

function checkBound(line: BenchLine): void {
  checkTimed(line)
  expect(line.hot).toBe(false)
  expect(line.gbs).toBeGreaterThan(0)
  expect(['memory', ...quantities]).toContain(line.bound)
  expect(line.boundUs).toBeGreaterThan(0)
  expect(line.percent).toBeGreaterThan(0)
  expect(line.waitPercent).toBeGreaterThanOrEqual(0)
  expect(line.stealPercent).toBeGreaterThanOrEqual(0)
  expect(line.disturbed).toBeGreaterThanOrEqual(0)
}

describe('lowbit bench --json', () => {
  test('rows: one line for each op and dtype, after the peaks', () => {
    const { lines, peaks } = linesOf('rows', '--shape', '4x64')
    lines.forEach(checkBound)
    const named = lines.map((line) => `${line.case} ${line.x}`)
    expect(new Set(named).size).toBe(lines.length)
    for (const name of rowOpNames) {
      expect(named).toContain(`${name} f32`)
      expect(named).toContain(`${name} bf16`)
    }
    peaks.forEach(checkOrigin)
    const measured = new Set(peaks.map((line) => line.case))
    for (const quantity of ['read', 'copy', 'f32', 'int8']) expect(measured).toContain(quantity)
    for (const { gbs, gops } of peaks) expect(gbs ?? gops).toBeGreaterThan(0)
  })

  test('serve: a line for each format of the cache and number of clients', () => {
    const { lines } = linesOf(
      ...[
        'serve',
        '--sequences',
        '1,3',
        '--kv',
        'bf16,int8',
        '--prompt',
        '9',
        '--tokens',
        '5',
        '--chunk',
        '16',
      ],
    )
    lines.forEach(checkOrigin)
    expect(lines.map(({ op, kv, sequences }) => `${op} ${kv} ${sequences}`)).toEqual([
      'serve bf16 1',
      'serve bf16 3',
      'serve int8 1',
      'serve int8 3',
    ])
    for (const line of lines) {
      const of = (name: string) => line[name] as number
      expect(of('rounds')).toBe(24)
      // A request makes from half to one and a half of the tokens.
      const each = of('tokensPerSecond') / of('requestsPerSecond')
      expect(each).toBeGreaterThan(2)
      expect(each).toBeLessThan(9)
      for (const [less, more] of [
        ['firstMs', 'firstMsP99'],
        ['tokenMs', 'tokenMsP90'],
        ['tokenMsP90', 'tokenMsP99'],
      ] as const) {
        expect(of(less)).toBeGreaterThan(0)
        expect(of(more)).toBeGreaterThanOrEqual(of(less))
      }
    }
  })

  test('load: quantising and packing', () => {
    const { lines } = linesOf('load', '--shape', '100x64')
    lines.forEach(checkTimed)
    expect(lines.map((line) => `${line.row}: ${line.shape}`)).toEqual([
      'quantize, bf16: 100x64 int4 g32',
      'device.load: 100x64 int4 g32',
    ])
    for (const line of lines) {
      expect(line.gbs).toBeGreaterThan(0)
      expect(line.barUs).toBeUndefined() // bars are for the usual shape
    }
  })

  test('linear --peers: ours against another configuration of ours, with its bar', () => {
    const { lines } = linesOf('linear', '--peers', '--case', 'fp8', '--shape', '48x64,32x64')
    lines.forEach(checkTimed)
    expect(lines.map((line) => `${line.case} ${line.shape}`)).toEqual([
      'fp8 M1 48x64 fp8_e4m3 channel',
      'fp8 M1 32x64 fp8_e4m3 channel',
    ])
    for (const line of lines) {
      expect(line.op).toBe('peers')
      expect(line.peer).toBe('our bf16')
      expect(line.peerUs).toBeGreaterThan(0)
      expect(line.ratio).toBeGreaterThan(0)
      expect(line.ratioP10).toBeLessThanOrEqual(line.ratio as number)
      expect(line.best).toBe(true)
      expect(line.bar).toBe(1.7)
      expect(line.holds).toBe((line.ratio as number) >= 1.7)
    }
  })

  test("linear --peers on a GPU: what PyTorch's script writes, told what was asked for", () => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowbit-'))
    const found = {
      op: 'linear',
      row: 'r',
      case: 'int8',
      shape: 'M1 64x64',
      us: 2,
      rivals: { slow: 5, fast: 3 },
    }
    const script = `#!/bin/sh\necho "$@" >&2\necho '${JSON.stringify(found)}' >&3\nexit $STATUS\n`
    fs.writeFileSync(path.join(folder, 'python3'), script, { mode: 0o755 })
    const run = (status: number) =>
      spawnSync(
        process.execPath,
        [main, 'bench', 'linear', '--peers', '--device', 'cuda', '--case', 'int8', '--m', '1,8', '--json'],
        { encoding: 'utf8', env: { ...process.env, PATH: folder, STATUS: String(status) } },
      )
    const { status, stdout, stderr } = run(0)
    expect(stderr).toMatch(/bench\/peers\/torch\.py .* --case int8 --m 1,8\n$/)
    expect(status).toBe(0)
    const line = JSON.parse(stdout) as BenchLine
    expect(line).toMatchObject({ ...found, op: 'torch', peer: 'fast', peerUs: 3, threads: 1 })
    expect(run(3)).toMatchObject({ status: 1, stderr: expect.stringContaining('ended with status 3') })
    fs.rmSync(folder, { recursive: true })
  })

  test('linear: one line for each configuration and number of rows', () => {
    const { lines } = linesOf('linear', '--shape', '48x64,200x128', '--m', '1,9')
    lines.forEach(checkBound)
    expect(lines).toHaveLength(6 * 2 * 2)
    for (const line of lines) {
      expect(line.row).toMatch(/^linear_/)
      const { m, n, k, bitsPerWeight, x, us, gbs, gops } = line
      expect([`M${m}`, `${n}x${k}`]).toEqual(line.shape.split(' ').slice(0, 2))
      const bytes = ((n as number) * (k as number) * (bitsPerWeight as number)) / 8
      const width = x === 'f32' ? 4 : 2
      const moved = bytes + (m as number) * ((n as number) + (k as number)) * width
      expect(((gbs as number) * (us as number) * 1e3) / moved).toBeCloseTo(1, 2)
      const operations = 2 * (m as number) * (n as number) * (k as number)
      expect(((gops as number) * (us as number) * 1e3) / operations).toBeCloseTo(1, 2)
    }
    const kinds = new Set(lines.map((line) => [line.format, line.group, line.compute].join(' ')))
    expect(kinds).toContain('int4 32 int8')
    expect(kinds).toContain('bf16  float')
  })

  test('linear: every format, group and zero point that is asked for, a shape by name', () => {
    const all = ['--shape', '33x64', '--m', '2']
    const { lines } = linesOf(
      'linear',
      ...all,
      '--format',
      'f32,f16,int3,int2,int1,ternary,fp8_e4m3,fp8_e5m2',
    )
    lines.forEach(checkBound)
    expect(lines).toHaveLength(2 + 6 * 2)
    const zeros = linesOf(
      'linear',
      ...all,
      '--group',
      '64,tensor',
      '--zeros',
      'integer,float',
      '--compute',
      'float',
    )
    expect(zeros.lines.map(({ group, zeros }) => `${group} ${zeros}`)).toEqual([
      '64 integer',
      '64 float',
      'tensor integer',
      'tensor float',
    ])
    const named = linesOf(
      'linear',
      '--shape',
      'o',
      '--m',
      '1',
      '--format',
      'int8',
      '--compute',
      'int8',
      '--hot',
    )
    expect(named.lines).toMatchObject([{ case: 'o', n: 4096, k: 4096, hot: true }])
  })

  test('attention: decode and prefill', () => {
    const { lines } = linesOf('attention', '--shape', '1x40x16,9x12x32', '--x', 'f32,bf16')
    lines.forEach(checkBound)
    expect(lines.map(({ x, seqQ, seqKv, headDim }) => `${x} ${seqQ} ${seqKv} ${headDim}`)).toEqual([
      'f32 1 40 16',
      'f32 9 12 32',
      'bf16 1 40 16',
      'bf16 9 12 32',
    ])
    // One query sees all 40 keys; nine see 4 to 12 of them, 72 pairs.
    for (const [i, pairs] of [40, 72].entries()) {
      const { us = 0, gops = 0, headDim } = lines[i] as BenchLine
      const operations = 4 * 32 * (headDim as number) * pairs
      expect((gops * us * 1e3) / operations).toBeCloseTo(1, 2)
    }
  })

  test('decode: tokens per second of a checkpoint', () => {
    const { lines } = linesOf('decode')
    expect(lines).toHaveLength(1)
    const [line] = lines as [BenchLine]
    checkTimed(line)
    expect(line.case).toBe('small')
    expect(line.perSecond).toBeCloseTo(1e6 / (line.us as number), -2)
    expect(line.peer).toBeUndefined()
  })

  test('calls: the cost of a call, with the bar where there is one', () => {
    const { lines } = linesOf('calls')
    lines.forEach(checkTimed)
    const barred = lines.filter((line) => line.barUs !== undefined)
    expect(barred.length).toBeGreaterThan(0)
    for (const line of barred) expect(line.withinBar).toBe((line.us as number) <= (line.barUs as number))
    const empty = lines.find((line) => line.row === 'empty native call')
    expect(empty?.us).toBeLessThan(barred[0]?.us as number)
  })

  test('a forced row is the only one', () => {
    const { lines } = linesOf('--row', 'norm_ref', '--x', 'f32', '--rounds', '1')
    expect(lines.map((line) => `${line.row} ${line.case}`)).toEqual([
      'norm_ref rmsNorm',
      'norm_ref rmsNorm+add',
      'norm_ref layerNorm',
    ])
  })

  test('a row that serves nothing of what is asked for', () => {
    const asked = ['attention', '--row', 'attention_ref', '--shape', '1x8x8', '--x', 'f32']
    expect(linesOf(...asked).lines).toHaveLength(1)
    const unserved = bench('linear', '--row', 'linear_int4_f32_avx2', '--format', 'f32', '--shape', '8x8')
    expect(unserved.stderr).toMatch(/no case was timed|there is no kernel row/)
    expect([1, 2]).toContain(unserved.status)
  })
})

test('a table for people: the machine, the peaks, a line for each case', () => {
  const { stdout, status } = bench('peaks', '--threads', '1', '--seconds', '0.001')
  expect(status).toBe(0)
  expect(stdout).toMatch(/^.+, \d+ cores?, .+; lowbit .+, Node v/)
  expect(stdout).toContain('peaks, 1 thread, in GB/s and GOP/s: read ')
  const own = native.peakRows().filter(({ arch }) => arch === 'cpu')
  for (const { name } of own) expect(stdout).toContain(`\n${name} `)
})

describe('lowbit bench refuses', () => {
  const wrong: [string, string[], RegExp][] = [
    ['another op', ['gemm'], /^lowbit: expected one of linear, .* but got 'gemm'\n/],
    ['two ops', ['rows', 'calls'], /^lowbit: 'calls' is one argument too many\n/],
    ['an unknown option', ['--fast'], /^lowbit: Unknown option '--fast'/],
    [
      'an unknown format',
      ['linear', '--format', 'int8,int5'],
      /^lowbit: --format expects .* but got 'int5'\n/,
    ],
    ['an unknown group', ['linear', '--group', '48'], /^lowbit: --group expects 32, .* but got '48'\n/],
    ['an unknown compute', ['linear', '--compute', 'int9'], /^lowbit: --compute expects .* but got 'int9'\n/],
    ['an unknown dtype', ['rows', '--x', 'f64'], /^lowbit: --x expects f32, f16, bf16 but got 'f64'\n/],
    ['no rows', ['linear', '--m', '1,0'], /^lowbit: --m expects an integer from 1 to \d+ but got '0'\n/],
    [
      'a wrong shape',
      ['linear', '--shape', 'down,64'],
      /^lowbit: --shape expects all, .* or NxK but got '64'\n/,
    ],
    ['a shape of no op', ['--shape', '64x64'], /^lowbit: --shape needs an op: /],
    [
      'no threads',
      ['rows', '--threads', '0'],
      /^lowbit: --threads expects an integer from 1 to 1024 but got '0'\n/,
    ],
    ['half a round', ['rows', '--rounds', '0.5'], /^lowbit: --rounds expects an integer .* but got '0.5'\n/],
    ['no time', ['rows', '--seconds', 'x'], /^lowbit: --seconds expects a number from 0 to 60 but got 'x'\n/],
    [
      'an unknown row',
      ['rows', '--row', 'norm_magic'],
      /^lowbit: --row: there is no kernel row 'norm_magic'; /,
    ],
  ]
  test.each(wrong)('%s', (_, args, sentence) => {
    const { status, stdout, stderr } = bench(...args)
    expect(stderr).toMatch(sentence)
    expect(stdout).toBe('')
    expect(status).toBe(2)
  })
})

describe('measurePeaks', () => {
  test('has a figure for each row that the device can run', async () => {
    using device = openDevice('cpu', { threads: 2 })
    const peaks = await measurePeaks(device, { seconds: 0.001 })
    const { archs } = device.info
    expect(peaks.threads).toBe(2)
    expect(peaks.rows.map((row) => row.name)).toEqual(native.peakRows().map((row) => row.name))
    for (const row of peaks.rows) {
      expect(quantities).toContain(row.quantity)
      expect(row.one > 0).toBe(archs.includes(row.arch))
      expect(row.all > 0).toBe(archs.includes(row.arch))
    }
    for (const quantity of quantities) {
      const own = peaks.rows.filter((row) => row.quantity === quantity)
      expect(peaks.one[quantity]).toBe(Math.max(0, ...own.map((row) => row.one)))
      expect(peaks.all[quantity]).toBe(Math.max(0, ...own.map((row) => row.all)))
    }
    expect(Math.min(peaks.one.read, peaks.one.copy, peaks.one.f32, peaks.one.int8)).toBeGreaterThan(0)
  })

  test('refuses another tensor than its own, and a closed device', async () => {
    const device = openDevice('cpu', { threads: 1 })
    const rows = native.peakRows().length
    expect(() => native.measurePeaks(device.empty([rows, 2], 'bf16'), 1)).toThrow(
      'expected out as f32 but got bf16',
    )
    expect(() => native.measurePeaks(device.empty([rows, 3]), 1)).toThrow(
      `expected out as [${rows}, 2] but got`,
    )
    const strided = device.empty([2, rows]).transpose(0, 1)
    expect(() => native.measurePeaks(strided, 1)).toThrow('expected out contiguous')
    await expect(measurePeaks(device, { seconds: 0 })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    await expect(measurePeaks(device, { seconds: Number.NaN })).rejects.toThrow('expected seconds above 0')
    device.close()
    await expect(measurePeaks(device)).rejects.toThrow(LowbitError)
  })
})

describe('the bound of a case', () => {
  const row = (quantity: string, arch: string, one: number, all: number): PeakRow =>
    ({ name: `peak_${quantity}_${arch}`, quantity, arch, one, all }) as PeakRow
  const rows = [
    row('read', 'cpu', 10, 20),
    row('read', 'avx512', 20, 30),
    row('copy', 'cpu', 16, 32),
    row('f32', 'cpu', 40, 80),
    row('f32', 'avx2', 100, 200),
    row('int8', 'avx2', 200, 400),
    row('int8', 'avx512vnni', 400, 800),
    row('bf16', 'avx512bf16', 200, 400),
  ]
  const peaks: Peaks = { threads: 2, rows, one: bestRates(rows, 'one'), all: bestRates(rows, 'all') }
  const work = { bytesRead: 0, bytesWritten: 0, operations: 0, arithmetic: [] }

  test('a row is held against its own instructions, and all against the same memory', () => {
    expect(ratesOf(peaks, ['avx2'], 'one')).toMatchObject({
      read: 20,
      copy: 16,
      f32: 100,
      int8: 200,
      bf16: 0,
    })
    expect(ratesOf(peaks, ['cpu'], 'all')).toMatchObject({ read: 30, copy: 32, f32: 80, int8: 0 })
    expect(ratesOf(peaks, ['avx512vnni'], 'all')).toMatchObject({ f32: 200, int8: 800, bf16: 0 })
    expect(ratesOf(peaks, ['avx512bf16'], 'one')).toMatchObject({ int8: 200, bf16: 200 })
    expect(ratesOf(peaks, ['a later one'], 'one')).toEqual(peaks.one)
  })

  test('memory: what is written costs a copy, the rest a read', () => {
    expect(boundOf({ ...work, bytesRead: 2e6 }, peaks.one)).toEqual({ us: 100, name: 'memory' })
    expect(boundOf({ ...work, bytesRead: 1.6e6, bytesWritten: 1.6e6 }, peaks.one).us).toBeCloseTo(200)
    expect(boundOf({ ...work, bytesRead: 3.6e6, bytesWritten: 1.6e6 }, peaks.one).us).toBeCloseTo(300)
    expect(boundOf({ ...work, bytesWritten: 1.6e6 }, peaks.one).us).toBeCloseTo(100)
  })

  test('arithmetic: the fastest that the call allows, where it takes longer than the memory', () => {
    const much = { ...work, operations: 40e6, arithmetic: ['f32', 'bf16'] as const }
    expect(boundOf(much, peaks.one)).toEqual({ us: 200, name: 'bf16' })
    expect(boundOf(much, ratesOf(peaks, ['avx2'], 'one'))).toEqual({ us: 400, name: 'f32' })
    expect(boundOf({ ...much, bytesRead: 20e6 }, peaks.one)).toEqual({ us: 1000, name: 'memory' })
    expect(boundOf({ ...much, arithmetic: ['int4'] }, peaks.one)).toEqual({ us: 0, name: 'memory' })
  })
})

describe('the clock', () => {
  test('percentiles are interpolated', () => {
    expect(percentile([1, 2, 3, 4, 5], 0.5)).toBe(3)
    expect(percentile([1, 2, 3, 4], 0.5)).toBe(2.5)
    expect(percentile([0, 10], 0.1)).toBeCloseTo(1)
    expect(percentile([7], 0.9)).toBe(7)
  })

  test('launches are counted up without gaps and finished once a round', () => {
    const seen: number[] = []
    let finished = 0
    const wait = new Int32Array(new SharedArrayBuffer(4))
    const timing = timeLaunches(
      (index) => {
        seen.push(index)
        Atomics.wait(wait, 0, 0, 1)
      },
      () => {
        finished++
      },
      1,
      { rounds: 3, seconds: 0.01 },
    )
    expect(seen).toEqual(seen.map((_, i) => i))
    expect(finished).toBeGreaterThanOrEqual(3)
    expect(timing.calls).toBeGreaterThanOrEqual(1)
    expect(timing.us).toBeGreaterThan(900)
    expect(timing.p10).toBeLessThanOrEqual(timing.us)
  })

  test('slow launches get fewer rounds', () => {
    const wait = new Int32Array(new SharedArrayBuffer(4))
    const timing = timeLaunches(
      () => void Atomics.wait(wait, 0, 0, 30),
      () => {},
      1,
      { rounds: 9, seconds: 0.001 },
    )
    expect(timing.calls).toBe(1)
    expect(timing.rounds + timing.disturbed).toBeLessThanOrEqual(6)
  })
})

test('random numbers repeat and stay in range', () => {
  const floats = randomFloats(10_000)
  expect(floats).toEqual(randomFloats(10_000))
  expect(floats).not.toEqual(randomFloats(10_000, 2))
  expect(floats.every((x) => x >= -1 && x < 1)).toBe(true)
  expect(Math.abs(floats.reduce((sum, x) => sum + x, 0) / floats.length)).toBeLessThan(0.02)
  expect(new Set(randomInts(1000, 3))).toEqual(new Set([0, 1, 2]))
})

test('a difference is more than rounding', () => {
  expect(difference([1, 2, 4], [1, 2.01, 4])).toBeUndefined()
  expect(difference([0, 0], [0, 0])).toBeUndefined()
  expect(difference([1, 2, 4], [1, 4, 2])).toContain('value 1 is 2 where the reference has 4')
  expect(difference([1, Number.NaN], [1, 2])).toContain('value 1 is NaN')
  expect(difference([1], [1, 2])).toContain('1 values where the reference has 2')
})
