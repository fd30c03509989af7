import { execFileSync, spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { backends, openDevice } from 'lowbit'
import { backendCodes } from 'lowbit/words'

// Small fake libraries, compiled here, stand for the driver and for liblowbit_cuda.so, so that every step of the probe
// is walked on any machine.
const root = process.cwd()
let folder: string
beforeAll(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'lowbit-backends-'))
})
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }))

function compile(name: string, source: string, defines: string[]): string {
  const out = join(folder, `${name}.so`)
  const compiler = source.endsWith('.c')
    ? [process.env.CC ?? 'cc']
    : [process.env.CXX ?? 'c++', '-std=c++20', `-I${root}`]
  const [command = '', ...flags] = compiler
  execFileSync(command, [
    ...flags,
    '-shared',
    '-fPIC',
    '-o',
    out,
    join(root, 'test/fake', source),
    ...defines.map((define) => `-D${define}`),
  ])
  return out
}

interface Answer {
  auto: string
  rows: { device: string; usable: boolean; code: string; reason: string; name: string }[]
  cuda?: { code: string; message: string; name: string }
  result?: unknown
}

/** What a process says that has these variables set: its backends, what 'auto' opens, and how 'cuda' fails. */
function ask(variables: Record<string, string>, script = ''): Answer {
  const source = `
    const lowbit = require(${JSON.stringify(join(root, 'dist'))})
    const answer = { rows: lowbit.backends(), auto: lowbit.openDevice().name }
    let device
    try { device = lowbit.openDevice('cuda') }
    catch (error) { answer.cuda = { code: error.code, message: error.message, name: error.name } }
    ;(async () => { ${script} })().then(() => console.log(JSON.stringify(answer)))`
  const env = { ...process.env, LB_CUDA_LIBRARY: join(folder, 'absent.so'), ...variables }
  const child = spawnSync(process.execPath, ['-e', source], { env, encoding: 'utf8' })
  if (child.status !== 0) throw new Error(child.stderr)
  return JSON.parse(child.stdout) as Answer
}

const walked = new Set<string>()

/** The probe stops with `code` and a sentence that matches; 'auto' opens the CPU, 'cuda' throws the same. */
function stopsWith(code: string, sentence: RegExp, variables: Record<string, string>): void {
  const answer = ask(variables)
  walked.add(code)
  expect(answer.auto).toBe('cpu')
  expect(answer.rows[0]).toMatchObject({ device: 'cuda', usable: false, code })
  expect(answer.rows[0]?.reason).toMatch(sentence)
  expect(answer.rows.at(-1)).toMatchObject({ device: 'cpu', usable: true, code: 'OK', reason: '' })
  expect(answer.cuda).toEqual({
    code,
    name: 'LowbitError',
    message: `openDevice: cuda: ${answer.rows[0]?.reason}`,
  })
}

describe('each step of the probe has a code and a sentence', () => {
  test('DISABLED: LB_DISABLE_CUDA=1', () => {
    stopsWith('DISABLED', /LB_DISABLE_CUDA=1 is set/, { LB_DISABLE_CUDA: '1' })
  })

  test('NO_DRIVER: the library does not load', () => {
    const file = join(folder, 'nothing.so')
    stopsWith('NO_DRIVER', /nothing\.so.*install driver 580 or newer/, { LB_CUDA_DRIVER: file })
  })

  test('NO_DRIVER: another library of that name', () => {
    const driver = compile('no-init', 'driver.c', ['NO_INIT'])
    stopsWith('NO_DRIVER', /is no NVIDIA driver library: it lacks cuInit/, { LB_CUDA_DRIVER: driver })
  })

  test('DRIVER_TOO_OLD says what was found and what is needed', () => {
    const driver = compile('old', 'driver.c', ['VERSION=12080'])
    stopsWith('DRIVER_TOO_OLD', /is for CUDA 12\.8 and lowbit needs CUDA 13\.0; install driver 580/, {
      LB_CUDA_DRIVER: driver,
    })
  })

  test('NO_DEVICE: cuInit finds none', () => {
    const driver = compile('none', 'driver.c', ['INIT=100'])
    stopsWith('NO_DEVICE', /finds no GPU.*CUDA_VISIBLE_DEVICES/, { LB_CUDA_DRIVER: driver })
  })

  test('NO_DEVICE: cuDeviceGetCount finds none', () => {
    const driver = compile('zero', 'driver.c', ['COUNT=0'])
    stopsWith('NO_DEVICE', /finds no GPU/, { LB_CUDA_DRIVER: driver })
  })

  test('UNSUPPORTED_DEVICE names the GPU and its compute capability', () => {
    const driver = compile('pascal', 'driver.c', ['CAPABILITY=61', 'COUNT=3'])
    stopsWith('UNSUPPORTED_DEVICE', /Fake has compute capability 6\.1 and lowbit needs a GPU of 7\.5/, {
      LB_CUDA_DRIVER: driver,
    })
  })

  test('LIBRARY_MISSING names the file', () => {
    const driver = compile('fine-1', 'driver.c', [])
    stopsWith('LIBRARY_MISSING', /absent\.so: cannot open.*LB_CUDA_LIBRARY/, { LB_CUDA_DRIVER: driver })
  })

  test('LIBRARY_MISMATCH: a library without the entry', () => {
    const driver = compile('fine-2', 'driver.c', [])
    const library = compile('no-entry', 'library.cc', ['ENTRY=something'])
    stopsWith('LIBRARY_MISMATCH', /is no CUDA part of lowbit: it lacks lowbit_cuda_api/, {
      LB_CUDA_DRIVER: driver,
      LB_CUDA_LIBRARY: library,
    })
  })

  test('LIBRARY_MISMATCH: another ABI number', () => {
    const driver = compile('fine-3', 'driver.c', [])
    const library = compile('abi', 'library.cc', ['ABI=77'])
    stopsWith('LIBRARY_MISMATCH', /its ABI number is 77 and the addon needs \d+; build/, {
      LB_CUDA_DRIVER: driver,
      LB_CUDA_LIBRARY: library,
    })
  })

  test('INIT_FAILED: cuInit', () => {
    const driver = compile('broken', 'driver.c', ['INIT=999'])
    stopsWith('INIT_FAILED', /the NVIDIA driver does not start: unknown error \(999\)/, {
      LB_CUDA_DRIVER: driver,
    })
  })

  test('INIT_FAILED: the driver does not describe its GPUs', () => {
    const driver = compile('mute', 'driver.c', ['ATTRIBUTES=1', 'COUNT=2'])
    stopsWith('INIT_FAILED', /does not tell what its 2 GPU\(s\) can do/, { LB_CUDA_DRIVER: driver })
  })

  test('INIT_FAILED: the CUDA runtime', () => {
    const driver = compile('fine-4', 'driver.c', [])
    const library = compile('count', 'library.cc', ['COUNT_CODE=46'])
    stopsWith('INIT_FAILED', /the CUDA runtime does not start: a fake error \(46\)/, {
      LB_CUDA_DRIVER: driver,
      LB_CUDA_LIBRARY: library,
    })
  })
})

describe('a GPU', () => {
  let variables: Record<string, string>
  beforeAll(() => {
    variables = {
      LB_CUDA_DRIVER: compile('fine', 'driver.c', ['COUNT=2']),
      LB_CUDA_LIBRARY: compile('library', 'library.cc', []),
    }
  })

  test('is opened by name and by auto', () => {
    const answer = ask(variables, 'answer.result = [device.name, device.info]')
    expect(answer.auto).toBe('cuda:0')
    expect(answer.rows[0]).toMatchObject({
      device: 'cuda:0',
      name: 'Fake 0',
      usable: true,
      code: 'OK',
      reason: '',
    })
    expect(answer.cuda).toBeUndefined()
    expect(answer.result).toMatchObject(['cuda:0', { name: 'Fake 0', threads: 0, memory: 1 << 20 }])
  })

  test('a GPU beside it that is too old is refused by name', () => {
    const script = `try { lowbit.openDevice('cuda:1') } catch (error) { answer.result = [error.code, error.message] }`
    const answer = ask(variables, script)
    expect(answer.rows[1]).toMatchObject({ device: 'cuda:1', usable: false, code: 'UNSUPPORTED_DEVICE' })
    expect(answer.result).toEqual([
      'UNSUPPORTED_DEVICE',
      'openDevice: cuda:1: compute capability 6.0 is below 7.5 (Turing), the oldest that lowbit supports',
    ])
  })

  test('a GPU that is not there is refused by number', () => {
    const script = `try { lowbit.openDevice('cuda:7') } catch (error) { answer.result = [error.code, error.message] }`
    expect(ask(variables, script).result).toEqual(['ERR_ARGUMENT', 'openDevice: there is no cuda:7, 2 found'])
  })

  test('tensors are written, read and counted; running out of memory leaves the device whole', () => {
    const script = `
      const x = device.tensor(new Float32Array([1, 2.5, -3, 4]), [2, 2])
      const y = device.empty([2, 2], 'bf16').write(new Float32Array([0.5, 1, 2, 4]))
      let refused
      try { device.empty([1 << 20], 'f32') } catch (error) { refused = error.code }
      answer.result = {
        x: [...(await x.read())], column: [...(await x.slice(1, 1, 2).read())], y: [...y.readSync('f32')], refused,
        used: device.memoryUsage().used,
      }
      x.dispose(); y.dispose(); device.close()`
    expect(ask(variables, script).result).toMatchObject({
      x: [1, 2.5, -3, 4],
      column: [2.5, 4],
      y: [0.5, 1, 2, 4],
      refused: 'ERR_MEMORY',
      used: expect.any(Number),
    })
  })

  test('ERR_CUDA: the runtime fails at a copy, and the device works on', () => {
    const library = compile('copies', 'library.cc', ['COPY_CODE=77'])
    const script = `
      const before = device.memoryUsage().used
      try { device.tensor(new Float32Array(4), [4]) } catch (error) { answer.result = [error.code, error.message] }
      answer.result.push(device.memoryUsage().used - before)
      const x = device.empty([4])
      await x.read().catch((error) => answer.result.push(error.code))
      answer.result.push(device.empty([4]).shape[0])`
    expect(ask({ ...variables, LB_CUDA_LIBRARY: library }, script).result).toEqual([
      'ERR_CUDA',
      'tensor: copy to the device: a fake error',
      0,
      'ERR_CUDA',
      4,
    ])
  })
})

test('every code of the probe was walked', () => {
  expect([...walked].sort()).toEqual([...backendCodes].sort())
})

test('this machine: the CPU stands last and is usable; every other row says why not, or is OK', () => {
  const rows = backends()
  expect(rows.at(-1)).toMatchObject({ device: 'cpu', usable: true, code: 'OK' })
  for (const row of rows) {
    expect(row.name).not.toBe('')
    expect(row.reason === '').toBe(row.code === 'OK')
  }
  const best = rows.find((row) => row.code === 'OK')
  const device = openDevice()
  expect(device.name).toBe(best?.device)
  device.close()
})
