import { execFile, execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import { add, backends, type Device, embedding, openDevice, rmsNorm, softmax, type Tensor } from 'lowbit'
import { refusal } from './ref/refusal'

// Memory, copies and their errors on a real GPU. Without one these tests are skipped, with the reason in their name.
const rows = backends()
const first = rows.find((row) => row.device === 'cuda:0')
const usable = first?.usable === true
const onGpu = usable ? test : test.skip
const where = usable ? first.name : `skipped, ${rows[0]?.code}: ${rows[0]?.reason}`

describe(`cuda:0 (${where})`, () => {
  let device: Device
  if (usable) {
    beforeAll(() => {
      device = openDevice('cuda:0')
    })
    afterAll(() => device.close())
  }

  onGpu('tells what it is', () => {
    const { info } = device
    expect(info.device).toBe('cuda:0')
    expect(info.name).toMatch(/\w/)
    expect(info.memory).toBeGreaterThan(1 << 30)
    expect(info.archs).toContain('sm75')
  })

  onGpu('gives back what was written, at sizes around a page and beyond a pinned buffer', async () => {
    for (const size of [0, 1, 1023, 1024, 4097, 1 << 20, 20_000_001]) {
      const data = Float32Array.from({ length: size }, (_, i) => Math.fround(i * 0.37 - 5))
      const x = device.tensor(data, [size])
      expect(Buffer.from((await x.read()).buffer).equals(Buffer.from(data.buffer))).toBe(true)
      x.dispose()
    }
  })

  onGpu('rounds, widens and replaces elements', async () => {
    const x = device.tensor(new Float32Array([1, -2, 0.1, 65504]), [2, 2], 'bf16')
    expect([...(await x.read('f32'))]).toEqual([1, -2, 0.10009765625, 65536])
    x.write(new Float32Array([5, 6, 7, 8]))
    expect([...x.readSync('f32')]).toEqual([5, 6, 7, 8])
    expect([...(await x.slice(0, 1, 2).read('f32'))]).toEqual([7, 8])
    expect([...(await x.transpose(0, 1).read('f32'))]).toEqual([5, 7, 6, 8])
    x.dispose()
  })

  onGpu('counts its bytes, keeps freed blocks and uses them again', () => {
    const before = device.memoryUsage()
    const x = device.empty([1 << 20], 'f32')
    const during = device.memoryUsage()
    expect(during.used - before.used).toBeGreaterThanOrEqual(4 << 20)
    expect(during.peak).toBeGreaterThanOrEqual(during.used)
    x.dispose()
    device.syncSync()
    expect(device.memoryUsage().used).toBe(before.used)
    const cached = device.memoryUsage().cached
    const y = device.empty([1 << 20], 'f32')
    expect(device.memoryUsage().cached).toBeLessThan(cached)
    y.dispose()
  })

  onGpu('refuses more than it has and lives on', async () => {
    const { memory } = device.info
    expect(refusal(() => device.empty([memory], 'f32')).code).toBe('ERR_MEMORY')
    // Just below the limit: the driver refuses this one, since its own context takes memory as well.
    expect(refusal(() => device.empty([Math.floor(memory * 0.999)], 'u8')).code).toBe('ERR_MEMORY')
    const x = device.tensor(new Float32Array([1, 2, 3]), [3])
    expect([...(await x.read())]).toEqual([1, 2, 3])
    x.dispose()
  })

  onGpu('keeps to memoryLimit', () => {
    const small = openDevice('cuda:0', { memoryLimit: 1 << 20 })
    const x = small.empty([1 << 17], 'f32')
    expect(refusal(() => small.empty([1 << 18], 'f32'))).toMatchObject({
      code: 'ERR_MEMORY',
      message: expect.stringMatching(/limit of 1048576/),
    })
    x.dispose()
    small.close()
  })

  onGpu('two handles on one GPU are two devices', async () => {
    const other = openDevice('cuda:0')
    const x = device.tensor(new Float32Array([1, 2]), [2])
    const y = other.tensor(new Float32Array([3, 4]), [2])
    expect([...(await x.read()), ...(await y.read())]).toEqual([1, 2, 3, 4])
    y.dispose()
    other.close()
    expect([...(await x.read())]).toEqual([1, 2])
    x.dispose()
  })

  describe('capture', () => {
    const numbers = (size: number, first: number) => Float32Array.from({ length: size }, (_, i) => first + i)

    onGpu('records ops that run at every replay, in memory of their own', async () => {
      const before = device.memoryUsage().used
      const x = device.tensor(numbers(64, 0), [64])
      const out = device.tensor(new Float32Array(64).fill(-1), [64])
      const made = device.empty([64])
      let kept: Tensor = made
      const graph = device.capture(() => {
        kept = add(x, x)
        for (let i = 0; i < 20; i++) {
          const y = add(kept, x)
          add(y, kept, { out })
          y.dispose()
        }
      })
      expect((await out.read())[5]).toBe(-1)
      graph.replay()
      expect([...(await out.read())]).toEqual(Array.from(numbers(64, 0), (v) => 5 * v))
      // What is made outside does not lie in the graph's memory.
      const others = Array.from({ length: 40 }, (_, i) => device.tensor(numbers(64, i), [64]))
      x.write(numbers(64, 7))
      graph.replay()
      graph.replay()
      expect([...(await kept.read())]).toEqual(Array.from(numbers(64, 7), (v) => 2 * v))
      expect([...(await out.read())]).toEqual(Array.from(numbers(64, 7), (v) => 5 * v))
      for (const [i, other] of others.entries()) {
        expect([...(await other.read())]).toEqual([...numbers(64, i)])
        other.dispose()
      }
      graph.dispose()
      graph.dispose()
      expect(refusal(() => graph.replay()).code).toBe('ERR_DISPOSED')
      expect((await kept.read())[1]).toBe(16)
      for (const t of [x, out, made, kept]) t.dispose()
      expect(device.memoryUsage().used).toBe(before)
    })

    onGpu('checks values anew at every replay', async () => {
      const table = device.tensor(numbers(32, 0), [4, 8])
      const ids = device.tensor(new Int32Array([1, 2]), [2], 'i32')
      const out = device.empty([2, 8])
      const graph = device.capture(() => {
        embedding(table, ids, { out })
      })
      graph.replay()
      expect([...(await out.read())]).toEqual([...numbers(16, 8)])
      ids.write(new Int32Array([3, 4]))
      graph.replay()
      await expect(out.read()).rejects.toMatchObject({ message: expect.stringMatching(/4.*embedding_sm75/) })
      for (const t of [table, ids, out, graph]) t.dispose()
    })

    onGpu('refuses what needs the host and lives on', async () => {
      const x = device.tensor(numbers(8, 0), [8])
      const data = numbers(8, 1)
      for (const f of [
        () => void x.readSync(),
        () => x.write(data),
        () => void device.tensor(data, [8]),
        () => device.syncSync(),
        () => void device.capture(() => undefined),
      ]) {
        expect(refusal(() => device.capture(f)).code).toMatch(/ERR_(UNSUPPORTED|ARGUMENT)/)
      }
      expect(refusal(() => device.capture(async () => undefined)).code).toBe('ERR_ARGUMENT')
      expect([...(await add(x, x).read())]).toEqual(Array.from(numbers(8, 0), (v) => 2 * v))
      const cpu = openDevice('cpu')
      expect(refusal(() => cpu.capture(() => undefined)).code).toBe('ERR_UNSUPPORTED')
      cpu.close()
      x.dispose()
    })
  })

  onGpu('200 000 mixed launches leave the memory as it was', async () => {
    // A device of its own: the garbage collector gives back what other tests left on the common one.
    const soaked = openDevice('cuda:0')
    const x = soaked.tensor(new Float32Array(4096).fill(0.5), [16, 256])
    const round = () => {
      const y = add(x, x)
      const z = rmsNorm(y, undefined)
      const s = softmax(z)
      const view = s.slice(0, 3, 9)
      const t = add(view, view)
      for (const tensor of [y, z, s, view, t]) tensor.dispose()
    }
    round()
    await soaked.sync()
    const before = soaked.memoryUsage()
    for (let i = 0; i < 50; i++) {
      for (let j = 0; j < 1000; j++) round()
      await soaked.sync()
    }
    const after = soaked.memoryUsage()
    expect({ ...after, peak: 0 }).toEqual({ ...before, peak: 0 })
    soaked.close()
  })

  const busy = `
    const { openDevice, add, rmsNorm } = require(${JSON.stringify(join(process.cwd(), 'dist'))})
    const device = openDevice('cuda:0')
    let x = device.tensor(new Float32Array(4096).fill(1), [16, 256])
    for (let i = 0; i < 2000; i++) {
      const y = add(x, x)
      x.dispose()
      x = rmsNorm(y, undefined, { eps: 0 })
      y.dispose()
    }
    const sum = x.readSync().reduce((a, b) => a + b, 0)
    device.close()`

  onGpu('two worker threads share it', async () => {
    const script = `${busy}\nrequire('node:worker_threads').parentPort.postMessage(sum)`
    const sums = await Promise.all(
      [0, 1].map(
        () =>
          new Promise<number>((resolve, reject) => {
            const worker = new Worker(script, { eval: true })
            worker.once('message', resolve)
            worker.once('error', reject)
          }),
      ),
    )
    expect(sums).toEqual([4096, 4096])
  })

  onGpu('two processes share it', async () => {
    const run = promisify(execFile)
    const both = [0, 1].map(() => run(process.execPath, ['-e', `${busy}\nconsole.log(sum)`]))
    expect((await Promise.all(both)).map(({ stdout }) => stdout)).toEqual(['4096\n', '4096\n'])
  })

  onGpu('a process ends well with tensors alive, a device open and work queued', () => {
    const script = `
      const { openDevice } = require(${JSON.stringify(join(process.cwd(), 'dist'))})
      const device = openDevice('cuda:0')
      globalThis.kept = device.empty([1 << 20])
      for (let i = 0; i < 50; i++) kept.write(new Float32Array(1 << 20))
      console.log('done')`
    expect(execFileSync(process.execPath, ['-e', script], { encoding: 'utf8' })).toBe('done\n')
  })
})
