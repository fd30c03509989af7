import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { backends, type Device, LowbitError, openDevice } from 'lowbit'

// Memory, copies and their errors on a real GPU. Without one these tests are skipped, with the reason in their name.
const rows = backends()
const first = rows.find((row) => row.device === 'cuda:0')
const usable = first?.usable === true
const onGpu = usable ? test : test.skip
const where = usable ? first.name : `skipped, ${rows[0]?.code}: ${rows[0]?.reason}`

function refusal(f: () => unknown): LowbitError {
  try {
    f()
  } catch (error) {
    if (error instanceof LowbitError) return error
    throw error
  }
  throw new Error('expected an error')
}

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
