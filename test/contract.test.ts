// TypeScript and native code in step: the word lists, the exports, and the rule that every op has its files.
import fs from 'node:fs'
import path from 'node:path'
import * as lowbit from 'lowbit'
import { contractDifference, cudaLibrary, description, native } from 'lowbit/native'
import * as words from 'lowbit/words'

const root = path.join(__dirname, '..', '..', '..')
const read = (...parts: string[]) => fs.readFileSync(path.join(root, ...parts), 'utf8')

test('the word lists are those of the native tables', () => {
  expect(contractDifference(description)).toBeUndefined()
  expect(description.dtypes).toEqual([...words.dtypes])
  expect(description.formats).toEqual([...words.formats])
})

test('a difference is named', () => {
  const stale = {
    ...description,
    formats: [...description.formats.slice(0, 4), 'int5', ...description.formats.slice(5)],
  }
  expect(contractDifference(stale)).toBe("formats[4] is 'int4' in JavaScript and 'int5' in the addon")
  expect(contractDifference({ ...description, scores: ['softmax'] })).toContain('scores[1]')
})

test('every function of the addon stands in the interface of native.ts, and no other', () => {
  const source = read('lib', 'native.ts')
  const body = source.slice(source.indexOf('export interface Native {'))
  const declared = [...body.slice(0, body.indexOf('\n}')).matchAll(/^ {2}(\w+)\(/gm)].map((match) => match[1])
  expect(declared.sort()).toEqual(Object.keys(native).sort())
})

test('every op folder has a contract, a check, a reference row, a registry and notes', () => {
  const ops = fs
    .readdirSync(path.join(root, 'csrc'))
    .filter((name) => fs.existsSync(path.join(root, 'csrc', name, 'kernels.inc')))
  expect(ops.length).toBeGreaterThanOrEqual(8)
  for (const op of ops) {
    const files = fs.readdirSync(path.join(root, 'csrc', op))
    for (const file of [`${op}.h`, `${op}.cc`, 'kernels.inc', 'NOTES.md'])
      expect([op, files]).toEqual([op, expect.arrayContaining([file])])
    // Each line of the registry is a row that describe() reports, in the same order; those of the CUDA library where
    // that was built.
    const withCuda = fs.existsSync(cudaLibrary) && process.env.LB_DISABLE_CUDA !== '1'
    const registry = read('csrc', op, 'kernels.inc')
    const text = withCuda ? registry : registry.replace(/^#if LB_CUDA[\s\S]*?^#else/m, '')
    const lines = [...text.matchAll(/^KERNEL\((\w+)\)/gm)].map((match) => match[1])
    const rows = [...description.kernels, ...native.peakRows()]
      .map((row) => row.name)
      .filter((name) => lines.includes(name))
    expect(rows).toEqual(process.arch === 'x64' ? lines : expect.anything())
  }
})

test('every row is named after its op and its instruction set, once', () => {
  const names = description.kernels.map((row) => row.name)
  expect(new Set(names).size).toBe(names.length)
  for (const { op, name, arch } of description.kernels) {
    expect([name, typeof op]).toEqual([name, 'string'])
    expect(arch).not.toHaveLength(0)
    for (const one of arch) expect(description.archs).toContain(one)
    if (arch[0] !== 'cpu') expect(arch.some((one) => name.includes(`_${one}`))).toBe(true)
  }
})

test('what a spec says of a row is said of every row of its op', () => {
  const renamed: Record<string, string> = { kinds: 'formats', paged: 'kvFormats' }
  // `codesOnly` is for linear_run alone.
  const kept = ['codesOnly']
  for (const [op, struct] of [
    ['linear', 'LinearSpec'],
    ['attention', 'AttentionSpec'],
  ] as const) {
    const source = read('csrc', op, `${op}.h`)
    const begin = source.indexOf(`struct ${struct} {`)
    const body = source
      .slice(begin, source.indexOf('\n};', begin))
      .split('\n')
      .slice(1)
      .map((line) => line.replace(/\/\/.*/, ''))
      .join(' ')
    const fields = body
      .split(';')
      .flatMap((text) => text.replace(/=[^,]*/g, '').split(','))
      .map((text) => text.trim().split(' ').pop() ?? '')
      .filter((name) => name !== '')
      .map((name) => name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase()))
      .map((name) => renamed[name] ?? name)
      .filter((name) => !kept.includes(name))
    expect(fields.length).toBeGreaterThan(5)
    for (const row of description.kernels.filter((one) => one.op === op))
      expect([row.name, Object.keys(row)]).toEqual([row.name, expect.arrayContaining(fields)])
  }
})

test('every op has a function in lib and a test', () => {
  const faces: Record<string, string> = {
    norm: 'rmsNorm',
    elementwise: 'add',
    quantize: 'quantizeRows',
    peak: 'measurePeaks',
    kv: 'KvCache',
  }
  const tests = fs
    .readdirSync(path.join(root, 'test'))
    .filter((name) => name.endsWith('.test.ts') && name !== 'misuse.test.ts')
    .map((name) => read('test', name))
    .join('\n')
  for (const op of new Set(description.kernels.map((row) => row.op))) {
    const face = faces[op] ?? op
    expect(Object.keys(lowbit)).toContain(face)
    // Made by a method of the device.
    const call = face === 'KvCache' ? 'kvCache' : face
    expect(tests).toMatch(new RegExp(`\\b${call}\\(`))
  }
})

test('errors are made in the caller’s realm', () => {
  const device = lowbit.openDevice('cpu', { threads: 1 })
  const failure = (act: () => unknown) => {
    try {
      act()
    } catch (error) {
      return error
    }
    throw new Error('expected an error')
  }
  expect(failure(() => device.empty([-1]))).toBeInstanceOf(lowbit.LowbitError)
  expect(failure(() => device.empty([-1]))).toBeInstanceOf(Error)
  expect(failure(() => device.tensor([] as never, [0]))).toBeInstanceOf(TypeError)
  device.close()
})
