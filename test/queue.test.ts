import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { Worker } from 'node:worker_threads'
import { add, openDevice, type Tensor } from 'lowbit'

const dist = path.join(__dirname, '..', '..', '..', 'dist', 'index.js')

function node(source: string, env: NodeJS.ProcessEnv = {}) {
  const script = `const lowbit = require(${JSON.stringify(dist)}); ${source}`
  return spawnSync(process.execPath, ['-e', script], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
    timeout: 60_000,
  })
}

// Enough queued work to take a while: tensors of 4 MB, added to each other.
const busy = `
  const device = lowbit.openDevice('cpu')
  const a = device.tensor(new Float32Array(1 << 20).fill(1), [1 << 20])
  const b = device.empty([1 << 20])
  for (let i = 0; i < 100; i++) lowbit.add(a, a, { out: b })
`

test('the process ends with work queued, and without waiting for it', () => {
  const begin = performance.now()
  const result = node(`${busy} console.log('queued')`)
  expect(result.stderr).toBe('')
  expect(result).toMatchObject({ status: 0, signal: null, stdout: 'queued\n' })
  expect(performance.now() - begin).toBeLessThan(20_000)
})

test('process.exit with an op running is clean', () => {
  expect(node(`${busy} setTimeout(() => process.exit(7), 20)`)).toMatchObject({
    status: 7,
    signal: null,
    stderr: '',
  })
})

test('a promise that waits keeps the process alive, a device alone does not', () => {
  const result = node(`${busy} b.read().then((x) => console.log(x[0], x.length))`)
  expect(result).toMatchObject({ status: 0, stdout: '2 1048576\n', stderr: '' })
})

test('closing a device rejects the reads that it did not come to', () => {
  const result = node(`${busy}
    const read = b.read()
    device.close()
    read.then(() => console.log('read'), (error) => console.log(error.code, error instanceof lowbit.LowbitError))
    try { a.readSync() } catch (error) { console.log(error.code) }
  `)
  expect(result).toMatchObject({ status: 0, stdout: 'ERR_DISPOSED\nERR_DISPOSED true\n', stderr: '' })
})

test('tensors disposed before their op ran are still there for it', async () => {
  const device = openDevice('cpu', { threads: 2 })
  const size = 1 << 18
  let sum: Tensor = device.tensor(new Float32Array(size).fill(1), [size])
  for (let i = 0; i < 100; i++) {
    const one = device.tensor(new Float32Array(size).fill(1), [size])
    const next = add(sum, one)
    one.dispose()
    sum.dispose()
    sum = next
  }
  expect(new Set(await sum.read())).toEqual(new Set([101]))
  expect(device.memoryUsage().used).toBe(size * 4)
  device.close()
})

test('several devices run side by side and do not mix', async () => {
  const devices = [openDevice('cpu', { threads: 1 }), openDevice('cpu', { threads: 3 })]
  const results = devices.map((device, i) => {
    let x: Tensor = device.tensor(new Float32Array(1000).fill(i), [1000])
    for (let j = 0; j < 20; j++) x = add(x, x)
    return x.read()
  })
  expect((await Promise.all(results)).map((x) => x[999])).toEqual([0, 2 ** 20])
  const [a, b] = devices.map((device) => device.empty([4]))
  expect(() => add(a as Tensor, b as Tensor)).toThrow('b is on another device than a')
  for (const device of devices) device.close()
})

test('two workers compute at once, and ending one with work queued harms nobody', async () => {
  const source = `
    const { parentPort, workerData } = require('node:worker_threads')
    const lowbit = require(${JSON.stringify(dist)})
    ${busy}
    b.read().then((x) => parentPort.postMessage(x[5] + workerData))
  `
  const run = (workerData: number) =>
    new Promise((resolve, reject) => {
      const worker = new Worker(source, { eval: true, workerData })
      worker.once('message', (value) => worker.terminate().then(() => resolve(value)))
      worker.once('error', reject)
    })
  const ended = new Worker(source, { eval: true, workerData: 0 })
  await new Promise((resolve) => ended.once('online', resolve))
  const [one, two] = await Promise.all([run(1), run(2), ended.terminate()])
  expect([one, two]).toEqual([3, 4])
})

test('the event loop turns while the queue works', async () => {
  const device = openDevice('cpu')
  const a = device.tensor(new Float32Array(1 << 22).fill(1), [1 << 22])
  const b = device.empty([1 << 22])
  for (let i = 0; i < 100; i++) add(a, a, { out: b })
  let turns = 0
  const timer = setInterval(() => turns++, 1)
  await device.sync()
  clearInterval(timer)
  expect(turns).toBeGreaterThan(3)
  device.close()
})
