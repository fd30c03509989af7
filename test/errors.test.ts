// Every error code, made to happen. The table is typed by ErrorCode, so a new code without a case does not compile. Those
// of the CUDA probe and ERR_CUDA need fake libraries and stand in backends.test.ts, which counts its own.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import {
  add,
  type BackendCode,
  type Device,
  type ErrorCode,
  LowbitError,
  LowbitTypeError,
  linear,
  openCheckpointSync,
  openDevice,
  PagePool,
  quantize,
} from 'lowbit'
import { addonFile, native, nativeError } from 'lowbit/native'
import { selectLinear } from 'lowbit/select'

const dist = path.join(__dirname, '..', '..', '..', 'dist', 'index.js')
let device: Device
let other: Device
let folder: string
beforeAll(() => {
  device = openDevice('cpu', { threads: 1, memoryLimit: 1 << 20 })
  other = openDevice('cpu', { threads: 1 })
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowbit-errors-'))
})
afterAll(() => {
  device.close()
  other.close()
  fs.rmSync(folder, { recursive: true })
})

/** The error with which a process fails to load the package from this addon, thrown once more. */
function loading(addon: string): never {
  const script = `try { require(${JSON.stringify(dist)}) } catch ({ name, code, message }) { console.log(JSON.stringify({ name, code, message })) }`
  const child = spawnSync(process.execPath, ['-e', script], {
    env: { ...process.env, LB_ADDON: addon },
    encoding: 'utf8',
  })
  const found = JSON.parse(child.stdout) as { name: string; code: ErrorCode; message: string }
  expect(found.name).toBe('LowbitError')
  throw new LowbitError(found.code, found.message)
}

/** The addon as one of another build would be: its lists are not those of this JavaScript. */
function stale(): string {
  const file = path.join(folder, 'stale.js')
  fs.writeFileSync(
    file,
    `const native = require(${JSON.stringify(addonFile)})
     module.exports = { ...native, describe: () => ({ ...native.describe(), formats: ['f64'] }) }`,
  )
  return file
}

const x = () => device.empty([2, 64])
const cases: Record<Exclude<ErrorCode, BackendCode | 'ERR_CUDA'>, [text: RegExp, act: () => unknown]> = {
  ERR_TYPE: [/^add: expected b to be a Tensor but got the number 1$/, () => add(x(), 1 as never)],
  ERR_SHAPE: [/^reshape: \[2, 64\] has 128 elements, \[3\] has 3$/, () => x().reshape([3])],
  ERR_DTYPE: [/^read: f32 can't be read as i32$/, () => x().readSync('i32')],
  ERR_DEVICE: [/^add: b is on another device than a$/, () => add(x(), other.empty([2, 64]))],
  ERR_STRIDES: [
    /^reshape: expected a contiguous tensor; copy\(\) makes one$/,
    () => x().transpose(0, 1).reshape([128]),
  ],
  ERR_ARGUMENT: [/^slice: expected 0 <= begin <= end <= 2 but got 1, 3$/, () => x().slice(0, 1, 3)],
  ERR_DISPOSED: [
    /^linear: w is disposed$/,
    () => {
      const w = device.load(quantize(new Float32Array(64), [1, 64], { format: 'int8' }))
      w.dispose()
      return linear(x(), w)
    },
  ],
  ERR_UNSUPPORTED: [
    /^linear: row linear_ref can't serve this call|needs an instruction set that this device lacks$/,
    () => selectLinear({ m: 1, n: 8, k: 8, format: 'f32' }, { archs: ['sm90a'], row: 'linear_ref' }),
  ],
  ERR_MEMORY: [
    /^empty: out of memory: 4194304 bytes asked for, \d+ of the limit of 1048576 in use$/,
    () => device.empty([1 << 20]),
  ],
  ERR_PAGES: [
    /^grow: 20 more tokens need 3 pages but 2 of 2 are free$/,
    () => new PagePool({ pages: 2, pageSize: 8 }).open().grow(20),
  ],
  ERR_INTERNAL: [/^read: the array has 12 bytes$/, () => native.readSync(x(), 0, new Float32Array(3))],
  ERR_FILE: [
    /nothing: there is no such file or folder$/,
    () => openCheckpointSync(path.join(folder, 'nothing')),
  ],
  ERR_CONTRACT: [
    /stale\.js is of another build of lowbit: formats\[0\] is 'f32' in JavaScript and 'f64' in the addon; run `npm run build`$/,
    () => loading(stale()),
  ],
  ERR_LOAD: [/absent\.node does not load: /, () => loading(path.join(folder, 'absent.node'))],
}

test.each(Object.entries(cases))('%s', (code, [text, act]) => {
  let caught: unknown
  try {
    act()
  } catch (error) {
    caught = error
  }
  expect(caught).toBeInstanceOf(code === 'ERR_TYPE' ? LowbitTypeError : LowbitError)
  expect(caught).toBeInstanceOf(code === 'ERR_TYPE' ? TypeError : Error)
  const { message, stack } = caught as Error
  expect(message).toMatch(text)
  expect([code, (caught as LowbitError).code]).toEqual([code, code])
  expect(stack).toContain('errors.test')
})

test('names of arguments are those of JavaScript, names of rows and formats stay', () => {
  const error = nativeError('ERR_SHAPE', 'attention: cu_seqlens_q and fp8_e4m3 in attention_ref')
  expect(error.message).toBe('attention: cuSeqlensQ and fp8_e4m3 in attention_ref')
})
