/** Threads: never more than the cores that affinity and the quotas of cgroups leave. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { openDevice } from 'lowbit'
import { addonFile, native } from 'lowbit/native'

/** Cores by affinity alone: a folder without quotas. */
let most: number
let folder: string
beforeAll(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowbit-threads-'))
  most = coresWith({})
})
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }))

let made = 0
/** The cores that a process would use in a machine with these files. */
function coresWith(files: Readonly<Record<string, string>>): number {
  const root = path.join(folder, String(++made))
  fs.mkdirSync(root)
  for (const [name, text] of Object.entries(files)) {
    const file = path.join(root, name)
    fs.mkdirSync(path.dirname(file), { recursive: true })
    fs.writeFileSync(file, text)
  }
  return native.hostInfo(root).cores
}

const [v1, v2] = ['sys/fs/cgroup/cpu', 'sys/fs/cgroup']
const period = { [`${v1}/cpu.cfs_period_us`]: '100000\n' }

describe('one core where a quota says so', () => {
  test.each<[string, Readonly<Record<string, string>>]>([
    ['version 2, a container', { [`${v2}/cpu.max`]: '100000 100000\n' }],
    ['version 2, less than one core', { [`${v2}/cpu.max`]: '20000 100000\n' }],
    ['version 2, parts of a core are none', { [`${v2}/cpu.max`]: '190000 100000\n' }],
    ['version 2, another period', { [`${v2}/cpu.max`]: '5000 5000\n' }],
    [
      'version 2, a service',
      {
        'proc/self/cgroup': '0::/system.slice/model.service\n',
        [`${v2}/system.slice/model.service/cpu.max`]: '100000 100000\n',
        [`${v2}/system.slice/cpu.max`]: 'max 100000\n',
      },
    ],
    [
      'version 2, the slice of a service',
      {
        'proc/self/cgroup': '0::/system.slice/model.service\n',
        [`${v2}/system.slice/model.service/cpu.max`]: 'max 100000\n',
        [`${v2}/system.slice/cpu.max`]: '150000 100000\n',
      },
    ],
    ['version 1, a container', { ...period, [`${v1}/cpu.cfs_quota_us`]: '100000\n' }],
    [
      'version 1, a cgroup of its own',
      {
        'proc/self/cgroup': '4:memory:/other\n3:cpu,cpuacct:/jobs/7\n2:cpuset:/\n0::/\n',
        [`${v1}/jobs/7/cpu.cfs_quota_us`]: '120000\n',
        [`${v1}/jobs/7/cpu.cfs_period_us`]: '100000\n',
      },
    ],
    [
      'version 1, under the name of both controllers',
      {
        'sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us': '100000\n',
        'sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us': '100000\n',
      },
    ],
    [
      'both versions, the lesser one counts',
      { [`${v2}/cpu.max`]: '800000 100000\n', ...period, [`${v1}/cpu.cfs_quota_us`]: '100000\n' },
    ],
  ])('%s', (_, files) => {
    expect(coresWith(files)).toBe(1)
  })
})

describe('all cores where none does', () => {
  test.each<[string, Readonly<Record<string, string>>]>([
    ['version 2 without a limit', { [`${v2}/cpu.max`]: 'max 100000\n' }],
    ['version 1 without a limit', { ...period, [`${v1}/cpu.cfs_quota_us`]: '-1\n' }],
    ['a quota above the machine', { [`${v2}/cpu.max`]: '102400000 100000\n' }],
    ['a quota of as many cores', { [`${v2}/cpu.max`]: `${os.availableParallelism() * 100000} 100000\n` }],
    [
      'the quota of another cgroup',
      { 'proc/self/cgroup': '0::/mine\n', [`${v2}/other/cpu.max`]: '100000 100000\n' },
    ],
    [
      'a path outside of the mount',
      { 'proc/self/cgroup': '0::/../../elsewhere\n', [`${v2}/cpu.max`]: 'max 100000\n' },
    ],
    ['files that hold no numbers', { [`${v2}/cpu.max`]: '\n', 'proc/self/cgroup': 'nonsense\n::\n' }],
    ['a period of 0', { [`${v2}/cpu.max`]: '100000 0\n' }],
  ])('%s', (_, files) => {
    expect(coresWith(files)).toBe(most)
  })
})

test('here', () => {
  const { cores } = native.hostInfo()
  expect(cores).toBeGreaterThanOrEqual(1)
  expect(cores).toBeLessThanOrEqual(most)
  using device = openDevice('cpu')
  expect(device.info.threads).toBe(cores)
})

/** Threads of this process, and those that a device adds: its queue's, which works too, and the workers. */
const threadsNow = () => fs.readdirSync('/proc/self/task').length
test.each([1, 2, 5])('a device of %d threads starts no more than these', (threads) => {
  const before = threadsNow()
  {
    using device = openDevice('cpu', { threads })
    device.tensor(new Float32Array(1 << 20), [1 << 20])
    device.syncSync()
    expect(device.info.threads).toBe(threads)
    expect(threadsNow() - before).toBeLessThanOrEqual(threads)
  }
  expect(threadsNow()).toBeLessThanOrEqual(before)
})

const taskset = spawnSync('taskset', ['-c', '0', 'true']).status === 0
;(taskset ? test : test.skip)('a process that may use one core uses one thread', () => {
  const program = `
    const { openDevice } = require(${JSON.stringify(path.join(__dirname, '../../../dist'))})
    const device = openDevice('cpu')
    console.log(device.info.threads)`
  const { stdout, stderr } = spawnSync('taskset', ['-c', '0', process.execPath, '-e', program], {
    encoding: 'utf8',
    env: { ...process.env, LB_ADDON: addonFile },
  })
  expect([stdout, stderr]).toEqual(['1\n', ''])
})
