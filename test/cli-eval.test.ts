import { spawn, spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const main = join(process.cwd(), 'dist/cli/main.js')
const small = join(process.cwd(), 'test/checkpoints/small')
const reference = JSON.parse(fs.readFileSync(join(small, 'reference.json'), 'utf8')) as Record<
  string,
  unknown
> & {
  heldout_tokens: number[]
}
let folder: string

function lowbit(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' })
  return { status, stdout, stderr }
}

/** The small checkpoint with files of one's own beside the weights. */
function checkpoint(files: Record<string, unknown>): string {
  const place = fs.mkdtempSync(join(folder, 'checkpoint-'))
  for (const name of ['config.json', 'model.safetensors', 'tokenizer.json']) {
    fs.symlinkSync(join(small, name), join(place, name))
  }
  for (const [name, value] of Object.entries(files)) {
    fs.writeFileSync(join(place, name), typeof value === 'string' ? value : JSON.stringify(value))
  }
  return place
}

interface Report {
  checkpoint: string
  device: { device: string; threads: number }
  windows: number
  text: string
  failures: string[]
  schemes: Record<string, number | string | boolean>[]
}

beforeAll(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'lowbit-eval-'))
})
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }))

describe('lowbit eval', () => {
  // Two short windows, so that the reference rows are quick about it too.
  const short = {
    ...reference,
    heldout_tokens: reference.heldout_tokens.slice(0, 96),
    window: 48,
    windows: 2,
  }
  let own: string
  let report: Report

  test('--json: one object on stdout, nothing on stderr', () => {
    own = checkpoint({ 'reference.json': short })
    const { status, stdout, stderr } = lowbit(
      'eval',
      own,
      '--schemes',
      'f32,int4-g64',
      '--threads',
      '2',
      '--json',
    )
    expect(stderr).toBe('')
    expect(status).toBe(0)
    report = JSON.parse(stdout)
    expect(report).toMatchObject({
      checkpoint: own,
      windows: 2,
      failures: [],
      device: { device: 'cpu', threads: 2 },
    })
    expect(report.schemes.map(({ scheme }) => scheme)).toEqual(['f32', 'int4-g64'])
    expect(report.schemes[0]).toMatchObject({ bitsPerWeight: 32, greedyTokensEqual: true })
    expect(report.schemes[1]?.bitsPerWeight).toBeCloseTo(4.625, 6)
    for (const row of report.schemes) {
      expect(row.perplexity).toBeGreaterThan(5)
      expect(row.expected).toBeUndefined()
      expect(row.prefillTokensPerSecond).toBeGreaterThan(1)
      expect(row.decodeTokensPerSecond).toBeGreaterThan(1)
    }
    expect(report.text).toMatch(/^def fibonacci\(n\):/)
  })

  test('schemes that run when they are named', () => {
    const bits = { mxfp8: 8.25, 'nf4-g64': 4.5, nvfp4: 4.5, mxfp4: 4.25 }
    const { status, stdout } = lowbit('eval', own, '--schemes', Object.keys(bits).join(), '--json')
    expect(status).toBe(0)
    const rows = (JSON.parse(stdout) as Report).schemes
    expect(rows.map(({ scheme }) => scheme)).toEqual(Object.keys(bits))
    const exact = Number(report.schemes[0]?.perplexity)
    const off = rows.map(({ perplexity }) => Math.abs(Number(perplexity) / exact - 1))
    const [mxfp8, ...fourBits] = off
    expect(mxfp8).toBeLessThan(0.02)
    for (const error of fourBits) {
      expect(error).toBeGreaterThan(Number(mxfp8))
      expect(error).toBeLessThan(0.2)
    }
    for (const { scheme, bitsPerWeight, expected } of rows) {
      expect(bitsPerWeight).toBeCloseTo(bits[scheme as keyof typeof bits], 2)
      expect(expected).toBeUndefined()
    }
  })

  test('planes of int1: each takes the perplexity closer to that of f32', () => {
    const bits = { 'int1x2-g64': 3, 'int1x3-g64': 4.5, 'int1x4-g64': 6 }
    const { status, stdout } = lowbit('eval', own, '--schemes', Object.keys(bits).join(), '--json')
    expect(status).toBe(0)
    const rows = (JSON.parse(stdout) as Report).schemes
    const exact = Number(report.schemes[0]?.perplexity)
    const off = rows.map(({ perplexity }) => Number(perplexity) / exact - 1)
    const [two = 0, three = 0, four = 0] = off
    expect(three).toBeLessThan(two)
    expect(four).toBeLessThan(three)
    expect(Math.abs(four)).toBeLessThan(0.2)
    for (const { scheme, bitsPerWeight } of rows)
      expect(bitsPerWeight).toBeCloseTo(bits[scheme as keyof typeof bits], 2)
  })

  test('--kv: formats of the cache, and a prefix that is not rounded', () => {
    const perplexities = (...args: string[]) => {
      const { status, stdout, stderr } = lowbit('eval', own, '--json', ...args)
      expect([status, stderr]).toEqual([0, ''])
      return (JSON.parse(stdout) as Report).schemes.map(
        ({ scheme, kv, perplexity }) => [`${scheme} ${kv}`, Number(perplexity)] as const,
      )
    }
    const found = perplexities('--kv', 'bf16,fp8_e4m3,int8,int4')
    expect(found.map(([name]) => name)).toEqual(['f32 bf16', 'f32 fp8_e4m3', 'f32 int8', 'f32 int4'])
    const exact = Number(report.schemes[0]?.perplexity)
    const [bf16 = 0, fp8 = 0, int8 = 0, int4 = 0] = found.map(([, value]) => Math.abs(value / exact - 1))
    // Over so few tokens chance is larger than the loss, which is a tenth of these over a whole text.
    expect(bf16).toBeLessThan(0.001)
    expect(int8).toBeLessThan(0.005)
    expect(fp8).toBeLessThan(0.03)
    expect(int4).toBeLessThan(0.05)
    expect(int4).toBeGreaterThan(int8)
    // With all tokens in the prefix nothing is rounded.
    const [whole] = perplexities('--kv', 'int4', '--kv-prefix', '48')
    expect(Math.abs(Number(whole?.[1]) / exact - 1)).toBeLessThan(1e-5)
  })

  test('the table, and perplexities held against expected.json', () => {
    const [f32, int4] = report.schemes.map(({ perplexity }) => Number(perplexity))
    fs.writeFileSync(join(own, 'expected.json'), JSON.stringify({ f32, 'int4-g64': int4 }))
    const good = lowbit('eval', own, '--schemes', 'f32,int4-g64')
    expect(good.stderr).toBe('')
    expect(good.status).toBe(0)
    expect(good.stdout).toMatch(/^checkpoint {2}.*\nmodel {7}Llama, 4 layers of width 256, 2\.9 M parameters/)
    expect(good.stdout).toMatch(/\ndevice {6}cpu: .*threads/)
    expect(good.stdout).toMatch(/\ntext {8}2 windows of 48 tokens\n/)
    expect(good.stdout).toMatch(
      /\nscheme +KV +bits\/weight +MB +perplexity +expected +off by +prefill tok\/s +decode tok\/s\n/,
    )
    expect(good.stdout).toMatch(
      /\nint4-g64 +f32 +4\.625 +\d+\.\d+ +\d+\.\d+ +\d+\.\d+ +[+-]0\.000 % +\d+ +\d+\n/,
    )
    expect(good.stdout).toContain('greedy continuation under f32 is the recorded one')
    expect(good.stdout).toContain('Sampled under int4-g64:\n\ndef fibonacci(n):')

    fs.writeFileSync(join(own, 'expected.json'), JSON.stringify({ f32, 'int4-g64': (int4 ?? 0) * 1.006 }))
    const bad = lowbit('eval', own, '--schemes', 'int4-g64')
    expect(bad.status).toBe(1)
    expect(bad.stderr).toMatch(
      /^lowbit: eval: int4-g64: perplexity \d+\.\d{4} is more than 0\.50 % from the recorded \d+\.\d{4}\n$/,
    )
    // Part of the text has no recorded perplexity.
    expect(lowbit('eval', own, '--schemes', 'int4-g64', '--windows', '1').status).toBe(0)
    fs.rmSync(join(own, 'expected.json'))
  })

  test('another greedy continuation than the recorded one is a failure', () => {
    const tokens = [...(reference.greedy_tokens as number[])]
    tokens[20] = (tokens[20] ?? 0) + 1
    const place = checkpoint({ 'reference.json': { ...short, greedy_tokens: tokens } })
    const { status, stderr } = lowbit('eval', place, '--schemes', 'f32', '--windows', '1')
    expect(stderr).toBe('lowbit: eval: f32: the greedy continuation differs from the recorded one\n')
    expect(status).toBe(1)
  })

  test("without a reference: speed only, or a text of one's own", () => {
    const place = checkpoint({})
    const plain = lowbit('eval', place, '--schemes', 'int8')
    expect(plain.status).toBe(0)
    expect(plain.stdout).toContain('none: speed only')
    expect(plain.stdout).toMatch(/\nint8 +f32 +8\.111 +\d+\.\d+ +- +- +- +\d+ +\d+\n/)
    const text = join(folder, 'text.py')
    fs.writeFileSync(text, 'import sys\n\n\ndef main(argv):\n    return len(argv)\n'.repeat(40))
    const read = lowbit('eval', place, '--schemes', 'int8', '--text', text, '--windows', '1', '--json')
    expect(read.status).toBe(0)
    expect((JSON.parse(read.stdout) as Report).schemes[0]?.perplexity).toBeLessThan(3)
  })

  test('misuse: a sentence and an exit code, never a stack', () => {
    const cases: [string[], number, string][] = [
      [['eval', '--schemes', 'int5'], 2, '--schemes expects names out of f32, bf16'],
      [['eval', '--kv', 'int2'], 2, '--kv expects f32, f16, bf16, fp8_e4m3, int8, int4 but got'],
      [['generate', '--prompt', 'x', '--kv', 'int4,int8'], 2, '--kv expects one format'],
      [['eval', '--windows', '0'], 2, "--windows expects an integer of at least 1 but got '0'"],
      [['eval', '--threads', 'many'], 2, "--threads expects an integer from 1 to 1024 but got 'many'"],
      [['eval', '--fast'], 2, "Unknown option '--fast'"],
      [['eval', 'a', 'b'], 2, "'b' is one argument too many"],
      [['eval', join(folder, 'nowhere')], 1, 'config.json: there is no such file (ERR_FILE)'],
      [
        ['eval', small, '--device', 'gpu'],
        1,
        "expected 'auto', 'cpu', 'cuda' or 'cuda:N' but got 'gpu' (ERR_ARGUMENT)",
      ],
      [['eval', small, '--text', join(folder, 'no-text')], 1, 'ENOENT'],
      [
        ['eval', checkpoint({ 'reference.json': { window: 5 } })],
        1,
        'expected heldout_tokens and window (ERR_FILE)',
      ],
      [['eval', checkpoint({ 'reference.json': '{' })], 1, 'not JSON'],
      [['generate'], 2, '--prompt is missing'],
      [['generate', '--prompt', 'x', '--scheme', 'int5'], 2, '--scheme expects one of f32, bf16'],
      [['generate', '--prompt', 'x', '--top-p', '2'], 2, '--top-p expects a number from'],
      [['generate', '--prompt', 'x', '--temperature', '-1'], 2, 'argument is ambiguous'],
      [['generate', join(folder, 'nowhere'), '--prompt', 'x'], 1, 'there is no such file'],
    ]
    for (const [args, code, sentence] of cases) {
      const { status, stderr, stdout } = lowbit(...args)
      expect(stderr).toContain(sentence)
      expect(stderr).not.toMatch(/\n {4}at /)
      expect(stdout.trim()).toBe('')
      expect(status).toBe(code)
    }
  })

  test('--help', () => {
    for (const name of ['eval', 'generate']) {
      const { status, stdout, stderr } = lowbit(name, '--help')
      expect(status).toBe(0)
      expect(stdout).toContain(`usage: lowbit ${name} [checkpoint]`)
      expect(Math.max(...stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(120)
      expect(stderr).toBe('')
    }
  })
})

describe('on a terminal', () => {
  // stderr says that it is a terminal of 50 columns; what is written to it is seen all the same.
  const terminal = (...args: string[]) => {
    const script = `
      process.stderr.isTTY = true
      process.stderr.columns = 50
      process.argv.splice(1, process.argv.length - 1, ${JSON.stringify(main)}, ...${JSON.stringify(args)})
      require(${JSON.stringify(main)})`
    return spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' })
  }

  test.each([
    ['eval', [small, '--schemes', 'bf16', '--windows', '1', '--json']],
    ['generate', [small, '--prompt', 'def', '--tokens', '3', '--json']],
    ['bench', ['calls', '--json', '--rounds', '2', '--seconds', '0.001', '--threads', '1']],
  ] as const)('%s shows its progress in one line, and --json keeps stdout clean', (name, args) => {
    const { status, stdout, stderr } = terminal(name, ...args)
    expect(status).toBe(0)
    const shown = stderr.split('\r\u001b[2K')
    expect(shown.length).toBeGreaterThan(2)
    expect(stderr).not.toContain('\n')
    for (const line of shown) expect(line.length).toBeLessThan(50)
    expect(shown.at(-1)).toBe('') // taken away at the end
    // One object, or (bench) one a line.
    const objects = name === 'bench' ? stdout.trim().split('\n') : [stdout]
    for (const text of objects) expect(typeof JSON.parse(text)).toBe('object')
  })
})

describe('lowbit generate', () => {
  test('streams the prompt and its continuation; the seed decides', () => {
    const args = ['generate', small, '--prompt', 'import os', '--tokens', '12', '--seed', '7']
    const first = lowbit(...args)
    expect(first.status).toBe(0)
    expect(first.stderr).toBe('')
    expect(first.stdout).toMatch(/^import os/)
    expect(lowbit(...args).stdout).toBe(first.stdout)
    const json = JSON.parse(lowbit(...args, '--json').stdout)
    expect(`${json.prompt}${json.text}\n`).toBe(first.stdout)
    expect(json).toMatchObject({ scheme: 'bf16', seed: 7, temperature: 0.8, topP: 0.95, maxTokens: 12 })
    expect(json.tokens.length).toBeLessThanOrEqual(12)
  })

  test('Ctrl-C ends the text with exit code 130, a closed pipe without a word', async () => {
    const start = () =>
      spawn(process.execPath, [
        main,
        'generate',
        small,
        '--prompt',
        'def',
        '--tokens',
        '1500',
        '--scheme',
        'f32',
      ])
    const interrupted = start()
    let errors = ''
    interrupted.stderr.on('data', (text) => {
      errors += text
    })
    interrupted.stdout.once('data', () => interrupted.kill('SIGINT'))
    expect(await new Promise((resolve) => interrupted.on('close', resolve))).toBe(130)
    const closed = start()
    closed.stderr.on('data', (text) => {
      errors += text
    })
    closed.stdout.once('data', () => closed.stdout.destroy())
    expect(await new Promise((resolve) => closed.on('close', resolve))).toBe(0)
    expect(errors).toBe('')
  })
})
