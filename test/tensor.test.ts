import { add, type Device, quantize, type Tensor } from 'lowbit'
import { native } from 'lowbit/native'
import { openTest, testDevice } from './ref/device'

let device: Device
beforeAll(() => {
  device = openTest({ threads: 2 })
})
afterAll(() => device.close())

const count = (n: number) => Float32Array.from({ length: n }, (_, i) => i)

test('elements come back as they went in, for every dtype', async () => {
  const cases = [
    ['f32', new Float32Array([1.5, -0, Number.NaN, Number.POSITIVE_INFINITY])],
    ['f16', new Uint16Array([0x3c00, 0x8000, 0x7e00, 0x0001])],
    ['bf16', new Uint16Array([0x3f80, 0x8000, 0x7fc0, 0x0001])],
    ['i32', new Int32Array([-(2 ** 31), -1, 0, 2 ** 31 - 1])],
    ['i8', new Int8Array([-128, -1, 0, 127])],
    ['u8', new Uint8Array([0, 1, 128, 255])],
    ['e4m3', new Uint8Array([0, 0x7e, 0x7f, 0x81])],
    ['e5m2', new Uint8Array([0, 0x7b, 0x7c, 0x81])],
  ] as const
  for (const [dtype, data] of cases) {
    const tensor = device.tensor(data, [2, 2], dtype)
    expect(tensor.dtype).toBe(dtype)
    expect(await tensor.read()).toEqual(data)
    expect(tensor.readSync()).toEqual(data)
  }
})

test('floats are rounded to nearest even on the way in and widened on the way out', () => {
  const tensor = device.tensor(new Float32Array([1 + 2 ** -8, 1 + 3 * 2 ** -8, 65504.5, 1e-8]), [4], 'bf16')
  expect([...tensor.readSync('f32')]).toEqual([1, 1 + 2 ** -6, 65536, Math.fround(1.0011717677116394e-8)])
  const half = device.tensor(new Float32Array([1 + 2 ** -11, 1 + 3 * 2 ** -11, 70000, 2 ** -25]), [4], 'f16')
  expect([...half.readSync('f32')]).toEqual([1, 1 + 2 ** -9, Number.POSITIVE_INFINITY, 0])
})

test('a new tensor has row-major strides, and sizes of zero are allowed', () => {
  const tensor = device.empty([2, 3, 4], 'bf16')
  expect(tensor.shape).toEqual([2, 3, 4])
  expect(tensor.strides).toEqual([12, 4, 1])
  expect(tensor.size).toBe(24)
  expect(tensor.device).toBe(testDevice)
  expect(device.empty([0, 5]).readSync()).toEqual(new Float32Array(0))
  expect(device.tensor(new Float32Array([7]), []).readSync()).toEqual(new Float32Array([7]))
})

test('views share memory', async () => {
  const tensor = device.tensor(count(12), [3, 4])
  const middle = tensor.slice(0, 1, 2)
  const corner = tensor.slice(1, 2, 4).slice(0, 0, 2)
  expect([...(await middle.read())]).toEqual([4, 5, 6, 7])
  expect([...corner.readSync()]).toEqual([2, 3, 6, 7])
  corner.write(new Float32Array([-1, -2, -3, -4]))
  expect([...tensor.readSync()]).toEqual([0, 1, -1, -2, 4, 5, -3, -4, 8, 9, 10, 11])
  expect([...tensor.transpose(0, 1).readSync().slice(0, 6)]).toEqual([0, 4, 8, 1, 5, 9])
  expect(tensor.reshape([2, 6]).slice(1, 0, 1).readSync()).toEqual(new Float32Array([0, -3]))
})

test('a view keeps the memory of a disposed tensor', async () => {
  const tensor = device.tensor(count(6), [2, 3])
  const view = tensor.slice(0, 1, 2)
  tensor.dispose()
  tensor.dispose()
  expect(tensor.disposed).toBe(true)
  expect(() => tensor.readSync()).toThrow('readSync: tensor is disposed')
  expect([...(await view.read())]).toEqual([3, 4, 5])
})

test('reads see the tensor as it was when they were queued', async () => {
  const tensor = device.tensor(count(1024), [1024])
  const reads: Promise<Float32Array>[] = []
  for (let i = 0; i < 50; i++) {
    reads.push(tensor.read())
    tensor.write(new Float32Array(1024).fill(i))
  }
  const values = await Promise.all(reads)
  expect(values[0]).toEqual(count(1024))
  for (let i = 1; i < 50; i++) expect(values[i]).toEqual(new Float32Array(1024).fill(i - 1))
})

test('write copies before it returns', async () => {
  const tensor = device.empty([4])
  const data = new Float32Array([1, 2, 3, 4])
  tensor.write(data)
  data.fill(0)
  expect([...(await tensor.read())]).toEqual([1, 2, 3, 4])
})

test('typed arrays over shared, offset and resized memory are read where they lie', () => {
  const shared = new Float32Array(new SharedArrayBuffer(16))
  shared.set([1, 2, 3, 4])
  expect([...device.tensor(shared, [4]).readSync()]).toEqual([1, 2, 3, 4])
  expect([...device.tensor(count(8).subarray(2, 6), [4]).readSync()]).toEqual([2, 3, 4, 5])
  const detached = new Float32Array(4)
  structuredClone(detached.buffer, { transfer: [detached.buffer] })
  expect(() => device.tensor(detached, [4])).toThrow('expected data to have 4 elements but got 0')
})

test('external memory goes up and down exactly once', async () => {
  const external = native.externalMemory
  const before = external()
  const tensor = device.empty([1 << 20])
  const views = [tensor.slice(0, 0, 5), tensor.reshape([1024, 1024])]
  const bytes = external() - before
  expect(bytes).toBeGreaterThanOrEqual(4 << 20)
  expect(bytes).toBeLessThan(5 << 20)
  tensor.dispose()
  tensor.dispose()
  expect(external() - before).toBe(bytes)
  for (const view of views) view.dispose()
  expect(external()).toBe(before)
})

test('external memory of weights, and of tensors that a queued op still needs', () => {
  const external = native.externalMemory
  // Arrays are external memory too: those of the test are made before it counts.
  const ones = new Float32Array(1 << 18).fill(1)
  const q = quantize(ones, [512, 512], { format: 'int8' })
  const before = external()
  const weight = device.load(q)
  expect(external() - before).toBeGreaterThanOrEqual(1 << 18)
  weight.dispose()
  weight.dispose()
  expect(external()).toBe(before)
  // The garbage collector hears of a disposed tensor at once; its memory goes back when the op has run.
  device.syncSync()
  const { used } = device.memoryUsage()
  const x = device.tensor(ones, [1 << 18])
  for (let i = 0; i < 50; i++) add(x, x).dispose()
  x.dispose()
  expect(external()).toBe(before)
  device.syncSync()
  expect(device.memoryUsage().used).toBe(used)
  // A call that is refused leaves nothing behind.
  const [three, four] = [device.empty([3]), device.empty([4])]
  const held = () => [external(), device.memoryUsage().used]
  const whole = held()
  expect(() => add(three, four)).toThrow('add: expected b')
  expect(held()).toEqual(whole)
})

test('using disposes', () => {
  let kept: Tensor
  {
    using tensor = device.empty([4])
    kept = tensor
    expect(kept.disposed).toBe(false)
  }
  expect(kept.disposed).toBe(true)
})

test('the garbage collector is the backstop', async () => {
  const collect = (globalThis as { gc?: () => void }).gc
  if (collect === undefined) throw new Error('run with --expose-gc')
  const local = openTest({ threads: 1 })
  for (let i = 0; i < 20; i++) local.empty([1 << 18])
  for (let i = 0; i < 20 && local.memoryUsage().used > 4 << 20; i++) {
    collect()
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  expect(local.memoryUsage().used).toBeLessThanOrEqual(4 << 20)
  local.close()
})

test('memory is counted, reused, and refused past the limit', () => {
  const limited = openTest({ threads: 1, memoryLimit: 1 << 20 })
  const first = limited.empty([1 << 17])
  expect(limited.memoryUsage()).toEqual({ used: 1 << 19, cached: 0, peak: 1 << 19, limit: 1 << 20 })
  expect(() => limited.empty([1 << 18])).toThrow('out of memory')
  first.dispose()
  expect(limited.memoryUsage()).toMatchObject({ used: 0, cached: 1 << 19 })
  limited.empty([1 << 18]).write(new Float32Array(1 << 18))
  limited.syncSync()
  limited.close()
})
