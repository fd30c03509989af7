/** `lowbit doctor`: what was found on this machine, and why it is or isn't used. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { Backend } from '../backends'
import type { LowbitError } from '../errors'
import type { CudaProbe } from '../native'
import { command } from './terminal'

const usage = `usage: lowbit doctor [--json]

What was found on this machine and why it is or isn't used: the addon, the CPU and its instruction sets, CUDA, the kernels that
can run here, and the variables that change any of it. The exit code is 0 unless the addon does not load.`

/** The variables that lowbit reads, and what each does. `build` ones act on \`npm run build\` alone. */
const variables: Readonly<Record<string, string>> = {
  LB_ARCH: 'caps the instruction sets',
  LB_KERNEL: 'forces the kernel row of that name',
  LB_TUNE: 'names the table of measured rows (lowbit tune) to follow',
  LB_LOG: '1: prints each choice of a row once',
  LB_GUARD: '1: protected pages around tensors, for tests',
  LB_ADDON: 'file of the addon',
  LB_DISABLE_CUDA: '1: CUDA is not looked for',
  LB_CUDA_LIBRARY: 'file of liblowbit_cuda.so',
  LB_CUDA_DRIVER: "file of the NVIDIA driver's library",
  LB_TEST_DEVICE: 'tests: device that they run on',
  LB_BUILD: 'build: folder of the addon',
  LB_CUDA: 'build: AUTO, ON or OFF',
  LB_CUDA_ARCHS: 'build: GPU architectures',
  LB_SANITIZE: 'build: sanitizers',
}

const manifest = require('../../package.json') as { version: string }

function textOf(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8').trim()
  } catch {
    return undefined
  }
}

function glibc(): string | undefined {
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } }
  return report.header?.glibcVersionRuntime
}

/** Cores that the cgroup's quota amounts to, or undefined where there is none. */
function quota(): number | undefined {
  const [limit, period] = textOf('/sys/fs/cgroup/cpu.max')?.split(' ').map(Number) ?? [
    Number(textOf('/sys/fs/cgroup/cpu/cpu.cfs_quota_us')),
    Number(textOf('/sys/fs/cgroup/cpu/cpu.cfs_period_us')),
  ]
  return limit !== undefined && period !== undefined && limit > 0 && period > 0 ? limit / period : undefined
}

interface System {
  node: string
  napi: number
  platform: string
  release: string
  glibc: string | null
  /** Cores of the machine, those that the process may run on, and what the cgroup's quota amounts to. */
  cores: { machine: number; affinity: number; quota: number | null }
  /** Bytes; `limit` is the cgroup's. */
  memory: { machine: number; free: number; limit: number | null }
  hugePages: string | null
}

function system(): System {
  const limit = Number(textOf('/sys/fs/cgroup/memory.max') ?? Number.NaN)
  return {
    node: process.version,
    napi: Number(process.versions.napi),
    platform: `${process.platform}-${process.arch}`,
    release: os.release(),
    glibc: glibc() ?? null,
    cores: { machine: os.cpus().length, affinity: os.availableParallelism(), quota: quota() ?? null },
    memory: {
      machine: os.totalmem(),
      free: os.freemem(),
      limit: Number.isFinite(limit) ? limit : null,
    },
    hugePages: /\[(\w+)\]/.exec(textOf('/sys/kernel/mm/transparent_hugepage/enabled') ?? '')?.[1] ?? null,
  }
}

/** What a set variable does here, in a word or two. */
function effect(name: string, value: string, archs: readonly string[], rows: readonly string[]): string {
  const what = variables[name]
  if (what === undefined) return 'no effect: lowbit knows no such variable'
  if (value === '') return 'no effect: it is empty'
  if (what.startsWith('tests: ')) return `acts on npm test alone: ${what.slice('tests: '.length)}`
  if (what.startsWith('build: ')) return `acts on npm run build alone: ${what.slice('build: '.length)}`
  if (name === 'LB_ARCH' && archs.length > 0 && !archs.includes(value))
    return `no effect: the words are ${archs.join(', ')}`
  if (name === 'LB_KERNEL' && rows.length > 0 && !rows.includes(value))
    return 'no effect: there is no row of that name (see lowbit kernels)'
  if (what.startsWith('1: ')) return value === '1' ? what.slice('1: '.length) : 'no effect: only 1 has one'
  return what
}

/** What --json prints. The last five are absent where the addon does not load. */
interface Report {
  lowbit: string
  addon: { loads: true; file: string; prebuilt: boolean } | { loads: false; code: string; reason: string }
  system: System
  variables: Record<string, { value: string; effect: string }>
  cpu?: { name: string; threads: number; archs: string[]; missing: string[]; l2: number; l3: number }
  /** `driver` and `runtime` as CUDA counts: 13000 is 13.0. `module`: version of the kernel's module. */
  cuda?: CudaProbe & { module: string | null; library: string }
  devices?: Backend[]
  kernels?: Record<string, { here: string[]; all: number }>
}

function report(): Report {
  const lowbit = manifest.version
  let loaded: typeof import('../native')
  let found: typeof import('../backends')
  const set = Object.keys(process.env).filter((name) => name.startsWith('LB_'))
  const inForce = (archs: readonly string[], rows: readonly string[]): Report['variables'] =>
    Object.fromEntries(
      set.sort().map((name) => {
        const value = process.env[name] ?? ''
        return [name, { value, effect: effect(name, value, archs, rows) }]
      }),
    )
  try {
    loaded = require('../native')
    found = require('../backends')
  } catch (error) {
    const { code, message } = error as LowbitError
    return {
      lowbit,
      addon: { loads: false, code, reason: message },
      system: system(),
      variables: inForce([], []),
    }
  }
  const { native, description, addonFile } = loaded
  const host = native.hostInfo()
  const archsHere = new Set(host.archs)
  for (const { device, usable } of found.cudaBackends()) {
    if (!usable) continue
    try {
      using gpu = (require('../device') as typeof import('../device')).openDevice(device)
      for (const arch of gpu.info.archs) archsHere.add(arch)
    } catch {
      // Its rows are then listed as those of another machine.
    }
  }
  const kernels: Record<string, { here: string[]; all: number }> = {}
  for (const row of description.kernels) {
    kernels[row.op] ??= { here: [], all: 0 }
    const op = kernels[row.op] as { here: string[]; all: number }
    op.all++
    if (row.arch.every((arch) => archsHere.has(arch))) op.here.push(row.name)
  }
  const prebuilt = addonFile.includes(`${path.sep}prebuilds${path.sep}`)
  return {
    lowbit,
    addon: { loads: true, file: addonFile, prebuilt },
    system: system(),
    cpu: {
      name: host.name,
      threads: host.cores,
      archs: host.archs,
      missing: description.archs.filter((arch) => !/^sm\d/.test(arch) && !host.archs.includes(arch)),
      l2: host.l2,
      l3: host.l3,
    },
    cuda: {
      ...found.probeCuda(),
      module:
        /Kernel Module\s+(?:for \S+\s+)?(\d[\d.]*)/.exec(textOf('/proc/driver/nvidia/version') ?? '')?.[1] ??
        null,
      library: found.cudaFiles.library,
    },
    kernels,
    devices: found.backends(),
    variables: inForce(
      description.archs,
      description.kernels.map((row) => row.name),
    ),
  }
}

const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`
const kibibytes = (bytes: number): string =>
  bytes === 0 ? 'unknown' : bytes < 1 << 20 ? `${bytes >> 10} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`
const cudaVersion = (version: number): string =>
  `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`

function* lines(r: Report): Generator<string> {
  const line = (name: string, text: string): string => `  ${name.padEnd(12)}${text}`
  const { system: sys, cpu, cuda } = r
  yield `lowbit ${r.lowbit}`
  if (r.addon.loads) {
    yield line('addon', `${r.addon.file} (${r.addon.prebuilt ? 'prebuilt' : 'built here'})`)
  } else {
    yield line('addon', `does not load, ${r.addon.code}: ${r.addon.reason}`)
  }
  yield line('node', `${sys.node}, Node-API ${sys.napi}`)
  yield line(
    'system',
    `${sys.platform}, kernel ${sys.release}, ${sys.glibc ? `glibc ${sys.glibc}` : 'no glibc'}`,
  )

  yield '\nCPU'
  if (cpu !== undefined) yield line('name', cpu.name)
  const { machine, affinity, quota: cut } = sys.cores
  const bounds = `affinity leaves ${affinity} of ${machine}, ${cut === null ? 'no cgroup quota' : `the cgroup gives ${cut.toFixed(1)}`}`
  yield line('cores', cpu === undefined ? bounds : `${cpu.threads} used: ${bounds}`)
  if (cpu !== undefined) {
    const missing = cpu.missing.length > 0 ? `; not here or capped: ${cpu.missing.join(', ')}` : ''
    yield line('archs', cpu.archs.join(', ') + missing)
    yield line('caches', `L2 ${kibibytes(cpu.l2)}, L3 ${kibibytes(cpu.l3)}`)
  }
  const { memory } = sys
  const limit = memory.limit === null ? '' : `, the cgroup gives ${gigabytes(memory.limit)}`
  yield line('memory', `${gigabytes(memory.machine)}, ${gigabytes(memory.free)} free${limit}`)
  yield line('huge pages', sys.hugePages ?? 'unknown')

  if (cuda !== undefined) {
    yield '\nCUDA'
    yield line('state', cuda.code === 'OK' ? 'OK' : `${cuda.code}: ${cuda.reason}`)
    if (cuda.driver > 0 || cuda.module !== null) {
      const module = cuda.module === null ? '' : `, kernel module ${cuda.module}`
      yield line(
        'driver',
        cuda.driver > 0 ? `for CUDA ${cudaVersion(cuda.driver)}${module}` : `found none${module}`,
      )
    }
    if (cuda.runtime > 0) yield line('library', `${cuda.library}, CUDA ${cudaVersion(cuda.runtime)}`)
    for (const [index, gpu] of cuda.devices.entries())
      yield line(
        `cuda:${index}`,
        `${gpu.name}, compute capability ${(gpu.capability / 10).toFixed(1)}, ${gigabytes(gpu.memory)}`,
      )
  }

  if (r.devices !== undefined) {
    yield '\nDevices'
    for (const { device, name, code, reason } of r.devices) {
      const why = reason === cuda?.reason ? code : `${code}: ${reason}`
      yield line(device, code === 'OK' ? name : `${name}, ${why}`)
    }
    yield line("'auto'", `opens ${r.devices.find((row) => row.code === 'OK')?.device ?? 'cpu'}`)
  }
  if (r.kernels !== undefined) {
    yield '\nKernels that can run here, in order of preference'
    for (const [op, { here, all }] of Object.entries(r.kernels))
      yield line(op, `${here.length} of ${all}: ${here.join(', ')}`)
  }
  yield '\nVariables'
  const set = Object.entries(r.variables)
  if (set.length === 0) yield '  none of lowbit is set'
  for (const [name, { value, effect: what }] of set) yield `  ${name}=${value}  ${what}`
}

/** @param argv what stands after `lowbit doctor` */
export function run(argv: readonly string[]): Promise<number> {
  return command(argv, usage, { json: { type: 'boolean' } } as const, 0, async ({ json }) => {
    const found = report()
    process.stdout.write(
      json ? `${JSON.stringify(found, undefined, 2)}\n` : `${[...lines(found)].join('\n')}\n`,
    )
    return found.addon.loads ? 0 : 1
  })
}
