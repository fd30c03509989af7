import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { backends } from 'lowbit'
import { addonFile, description, native } from 'lowbit/native'
import { selectAttention, selectLinear } from 'lowbit/select'

const main = join(process.cwd(), 'dist/cli/main.js')

function lowbit(args: string[], variables: Record<string, string> = {}) {
  const inherited = Object.entries(process.env).filter(([name]) => !/^LB_(?!ADDON$|ARCH$)/.test(name))
  const env = { ...Object.fromEntries(inherited), ...variables }
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { env, encoding: 'utf8' })
  return { status, stdout, stderr }
}

describe('lowbit doctor', () => {
  test('--json tells what the library itself finds', () => {
    const { status, stdout } = lowbit(['doctor', '--json'])
    expect(status).toBe(0)
    const report = JSON.parse(stdout)
    const host = native.hostInfo()
    expect(report.addon).toMatchObject({ loads: true, file: addonFile })
    expect(report.system).toMatchObject({
      node: process.version,
      platform: `${process.platform}-${process.arch}`,
      glibc: expect.stringMatching(/^\d+\.\d+$/),
    })
    expect(report.cpu).toMatchObject({ name: host.name, threads: host.cores })
    expect([...report.cpu.archs, ...report.cpu.missing].sort()).toEqual(
      description.archs.filter((arch) => !arch.startsWith('sm')).sort(),
    )
    expect(Object.keys(report.kernels)).toEqual([...new Set(description.kernels.map((row) => row.op))])
    for (const { here, all } of Object.values<{ here: string[]; all: number }>(report.kernels)) {
      expect(here.at(-1)).toMatch(/_ref$/)
      expect(here.length).toBeLessThanOrEqual(all)
    }
    expect(report.devices.at(-1)).toMatchObject({ device: 'cpu', code: 'OK' })
    const set = ['LB_ADDON', 'LB_ARCH'].filter((name) => process.env[name] !== undefined)
    expect(Object.keys(report.variables)).toEqual(set)
  })

  test('as text: every part, and the same reason as backends() gives', () => {
    const { status, stdout } = lowbit(['doctor'])
    expect(status).toBe(0)
    for (const word of [
      'addon',
      'glibc',
      'cores',
      'archs',
      'memory',
      'huge pages',
      'CUDA',
      'Kernels',
      'Variables',
    ])
      expect(stdout).toContain(word)
    const [first] = backends()
    if (first !== undefined && first.code !== 'OK') expect(stdout).toContain(`${first.code}: ${first.reason}`)
  })

  test('variables that are set: what each does, or that it does nothing', () => {
    const { stdout } = lowbit(['doctor', '--json'], {
      LB_ARCH: 'cpu',
      LB_KERNEL: 'no_such_row',
      LB_DISABLE_CUDA: '1',
      LB_LOG: 'yes',
      LB_CUDA: 'OFF',
      LB_TYPO: '1',
    })
    const report = JSON.parse(stdout)
    expect(report.cpu.archs).toEqual(['cpu'])
    expect(report.cuda.code).toBe('DISABLED')
    const effects = Object.entries<{ effect: string }>(report.variables).map(([name, { effect }]) => [
      name,
      effect,
    ])
    expect(Object.fromEntries(effects)).toMatchObject({
      LB_ARCH: 'caps the instruction sets',
      LB_KERNEL: expect.stringMatching(/no row of that name/),
      LB_DISABLE_CUDA: 'CUDA is not looked for',
      LB_LOG: 'no effect: only 1 has one',
      LB_CUDA: expect.stringMatching(/build alone/),
      LB_TYPO: expect.stringMatching(/knows no such variable/),
    })
  })

  test('an addon that does not load is what it is there for', () => {
    const { status, stdout } = lowbit(['doctor'], { LB_ADDON: '/nowhere/lowbit.node' })
    expect(status).toBe(1)
    expect(stdout).toMatch(/does not load, ERR_LOAD: \/nowhere\/lowbit\.node does not load/)
  })

  test('a wrong option: a sentence, the usage and exit code 2', () => {
    const { status, stderr } = lowbit(['doctor', '--jsn'])
    expect(status).toBe(2)
    expect(stderr).toMatch(/--jsn/)
    expect(stderr).toMatch(/usage: lowbit doctor/)
    expect(lowbit(['doctor', '--help']).status).toBe(0)
    expect(lowbit(['docter']).status).toBe(2)
  })
})

describe('lowbit kernels', () => {
  const avx2 = { archs: ['avx2'] }

  test('--json has every row of the registries', () => {
    const { status, stdout } = lowbit(['kernels', '--json'])
    expect(status).toBe(0)
    const { kernels, archs } = JSON.parse(stdout)
    expect(kernels).toEqual(
      description.kernels.map((row) => ({ ...row, here: row.arch.every((arch) => archs.includes(arch)) })),
    )
    const one = JSON.parse(lowbit(['kernels', 'attention', '--json']).stdout)
    expect(one.kernels.every((row: { op: string }) => row.op === 'attention')).toBe(true)
  })

  test('as text: a line for each row', () => {
    const { stdout } = lowbit(['kernels'])
    for (const { name } of description.kernels) expect(stdout).toMatch(new RegExp(`^${name} `, 'm'))
  })

  test('--shape names the row of a call, on this machine or on another', () => {
    const args = ['kernels', '--shape', '1,4096,4096', '--format', 'int4', '--group', '64', '--x', 'bf16']
    const call = { m: 1, n: 4096, k: 4096, format: 'int4', groupSize: 64, x: 'bf16' } as const
    const here = JSON.parse(lowbit([...args, '--json']).stdout)
    expect(here).toMatchObject({ ...call, ...selectLinear(call, { archs: native.hostInfo().archs }) })
    const there = lowbit([...args, '--arch', 'avx2']).stdout
    expect(there).toContain(selectLinear(call, avx2).row)
    expect(lowbit([...args, '--arch', 'cpu']).stdout).toMatch(/^linear_ref /)
    expect(lowbit(args, { LB_KERNEL: 'linear_ref' }).stdout).toMatch(/^linear_ref /)
    const attention = lowbit(['kernels', 'attention', '--shape', '7,512,8,2,64', '--arch', 'avx2'])
    const sizes = { seqQ: 7, seqKv: 512, heads: 8, kvHeads: 2, headDim: 64 }
    expect(attention.stdout).toBe(`${selectAttention(sizes, avx2).row}\n`)
  })

  test.each([
    [['--shape', '1,2'], /--shape M,N,K goes with --format/],
    [['--shape', '1,2', '--format', 'int4'], /--shape expects 3 sizes/],
    [['--shape', '1,-2,3', '--format', 'int4'], /--shape expects 3 sizes/],
    [['--arch', 'avx3'], /--arch expects words of/],
    [['lineer'], /'lineer' is no op/],
    [['norm', '--shape', '1,2,3'], /--shape goes with linear and attention/],
  ])('%j is refused with exit code 2', (args, sentence) => {
    const { status, stderr } = lowbit(['kernels', ...args])
    expect(status).toBe(2)
    expect(stderr).toMatch(sentence)
  })

  test('a call that no row serves, or that is none: the error and exit code 1', () => {
    const wrong = lowbit(['kernels', '--shape', '1,64,64', '--format', 'int9'])
    expect([wrong.status, wrong.stderr]).toEqual([1, expect.stringMatching(/ERR_ARGUMENT/)])
    const forced = lowbit(['kernels', '--shape', '1,64,64', '--format', 'int4', '--arch', 'cpu'], {
      LB_KERNEL:
        description.kernels.find((row) => row.op === 'linear' && row.name !== 'linear_ref')?.name ?? '',
    })
    expect([forced.status, forced.stderr]).toEqual([1, expect.stringMatching(/ERR_UNSUPPORTED/)])
  })
})
