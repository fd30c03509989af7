import { backends, cudaBackends, cudaFiles, probeCuda } from './backends'
import { KvCache, type KvCacheOptions } from './cache'
import { kindOf, LowbitError, LowbitTypeError, wordIndex } from './errors'
import { Graph } from './graph'
import { native, nativeError } from './native'
import type { QuantizedWeight } from './quantize'
import { Tensor } from './tensor'
import { followEnvironment } from './tuned'
import { type LoadOptions, loadWeight, type Weight } from './weight'
import { type BackendCode, type DType, dtypes } from './words'

/** What a device is. Sizes in bytes. */
export interface DeviceInfo {
  /** 'cpu', 'cuda:0', ... */
  readonly device: string
  /** Name of the hardware. */
  readonly name: string
  /** Instruction sets or compute capabilities that kernels may use. */
  readonly archs: readonly string[]
  /** Threads that run CPU kernels; 0 on CUDA. */
  readonly threads: number
  /** Bytes: of the GPU, or those that the machine (or its cgroup) has. */
  readonly memory: number
  /** Bytes per second that the memory can deliver by its data sheet, where it is known. */
  readonly bandwidth?: number | undefined
}

/** Bytes of a device's memory. `cached` is kept for reuse, `limit` is where requests begin to fail. */
export interface MemoryUsage {
  /** In tensors and weights, disposed ones that a queued op still needs included. */
  readonly used: number
  /** Given back and kept for the next tensor of that size. */
  readonly cached: number
  /** The most that was in use. */
  readonly peak: number
  /** What may be in use: `memoryLimit`, or all of the memory. */
  readonly limit: number
}

/** Options of {@link openDevice}. */
export interface DeviceOptions {
  /** CPU only: threads of the kernels, 1 to 1024. Default: every core that the process may use. */
  readonly threads?: number | undefined
  /** Bytes of tensors and weights that the device may hold. Default: all of its memory. */
  readonly memoryLimit?: number | undefined
}

/**
 * A device and its queue. Ops run in the order of their calls, one after the other; the JavaScript thread never waits
 * for them except in `read`, `sync` and the `...Sync` forms. Made by {@link openDevice}.
 */
export class Device implements Disposable {
  /** 'cpu', 'cuda:0', ... */
  readonly name: string
  #closed = false

  /** @internal */
  constructor(name: string) {
    this.name = name
  }

  /** What the device is. */
  get info(): DeviceInfo {
    const counters = native.deviceInfo(this)
    if (this.name === 'cpu') {
      const host = native.hostInfo()
      const { archs, threads, limit: memory } = counters
      return { device: this.name, name: host.name, archs, threads, memory }
    }
    const found = probeCuda().devices[Number(this.name.slice(5))]
    return {
      device: this.name,
      name: found?.name ?? '',
      archs: counters.archs,
      threads: 0,
      memory: found?.memory ?? 0,
      bandwidth: found?.bandwidth ?? 0,
    }
  }

  /** Bytes in use. */
  memoryUsage(): MemoryUsage {
    const { used, cached, peak, limit } = native.deviceInfo(this)
    return { used, cached, peak, limit }
  }

  /**
   * A tensor with these elements, in row-major order. Floats are rounded to nearest even where dtype is narrower.
   *
   * @param data Float32Array for any float dtype; Uint16Array for the bits of f16 or bf16 (or a Float16Array); Int32Array,
   *   Int8Array and Uint8Array for i32, i8, u8, and Uint8Array for the codes of e4m3 and e5m2.
   * @param shape Sizes, at most 5 dimensions.
   * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_MEMORY.
   */
  tensor<D extends DType = 'f32'>(data: ArrayBufferView, shape: readonly number[], dtype?: D): Tensor<D> {
    const tensor = Tensor.shell<D>()
    native.tensor(this, tensor, shape, wordIndex(dtypes, dtype ?? 'f32', 'tensor: dtype'), data)
    return tensor
  }

  /** A tensor whose elements are undefined until something is written to it. */
  empty<D extends DType = 'f32'>(shape: readonly number[], dtype?: D): Tensor<D> {
    const tensor = Tensor.shell<D>()
    native.empty(this, tensor, shape, wordIndex(dtypes, dtype ?? 'f32', 'empty: dtype'))
    return tensor
  }

  /**
   * Packs a weight for this device's kernels, once; see {@link Weight}.
   *
   * @param q What `quantize`, `canonical` or an importer made. It is copied; nothing keeps it afterwards.
   * @throws LowbitError ERR_ARGUMENT for a layout that does not hold the format, ERR_MEMORY.
   */
  load(q: QuantizedWeight, options?: LoadOptions): Weight {
    return loadWeight(this, q, options)
  }

  /**
   * Memory for keys and values in pages, which `attention` reads; see {@link KvCache}. Its contents are undefined until
   * they are appended.
   *
   * @throws LowbitError ERR_ARGUMENT for sizes that no cache has, ERR_MEMORY; LowbitTypeError.
   */
  kvCache(options: KvCacheOptions): KvCache {
    return KvCache.make(this, options)
  }

  /**
   * Records the ops that `record` calls into a graph, which `replay()` then queues by one call: a GPU needs half a
   * microsecond for a small op of a graph where queueing it anew takes several. While it is recorded nothing runs, so
   * tensors that `record` writes hold nothing before the first replay. Tensors made by recorded ops belong to the graph's
   * memory; dispose those that are needed within it alone.
   *
   * Values that ops check as they run (ids, positions) are checked at every replay. What needs the host can't be recorded:
   * `read`, `write`, `sync`, `tensor`, `load` and their like. `copy` and `empty` can.
   *
   * @param record calls ops of this device; it runs once, now, and is not to be async.
   * @throws LowbitError ERR_UNSUPPORTED on a CPU, or where `record` does what can't be recorded; ERR_ARGUMENT within
   *   another capture or for an async function; ERR_MEMORY; what `record` throws. The device can be used afterwards.
   */
  capture(record: () => void): Graph {
    native.captureBegin(this)
    let result: unknown
    try {
      result = record()
      if (result instanceof Promise) {
        result.catch(() => undefined)
        throw new LowbitError(
          'ERR_ARGUMENT',
          'capture: expected a function that calls its ops at once but got an async one',
        )
      }
    } catch (error) {
      if (!this.#closed) native.captureEnd(this, undefined)
      throw error
    }
    const graph = Graph.shell()
    native.captureEnd(this, graph)
    return graph
  }

  /**
   * Waits until everything queued so far has run.
   *
   * @throws LowbitError the first failure since the last `sync`, with the kernel's name.
   */
  async sync(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      native.sync(this, (code, text) =>
        code === undefined ? resolve() : reject(nativeError(code, text ?? '')),
      )
    })
  }

  /** {@link sync} that blocks the thread: for scripts. */
  syncSync(): void {
    native.syncSync(this)
  }

  /** Drops what is queued, waits for the op that runs and ends the device's threads. Its tensors can't be used any more. */
  close(): void {
    this.#closed = true
    native.closeDevice(this)
  }
  /** Whether {@link close} was called. */
  get closed(): boolean {
    return this.#closed
  }
  [Symbol.dispose](): void {
    this.close()
  }
}

/**
 * Opens a device. `openDevice()` takes the best usable one ('auto'): a GPU if lowbit has kernels for it, else the CPU.
 *
 * @throws LowbitError with the codes of {@link backends} if 'cuda' or 'cuda:N' is asked for and can't be used.
 */
export function openDevice(name = 'auto', options: DeviceOptions = {}): Device {
  if (typeof name !== 'string') {
    throw new LowbitTypeError(`openDevice: expected the device's name to be a string but got ${kindOf(name)}`)
  }
  const { threads = 0, memoryLimit = 0 } = options
  if (options.threads === 0)
    throw new LowbitError('ERR_ARGUMENT', 'openDevice: expected threads from 1 to 1024 but got 0')
  const wanted = name === 'auto' ? (backends().find((row) => row.code === 'OK')?.device ?? 'cpu') : name
  if (wanted === 'cpu') {
    followEnvironment()
    const device = new Device('cpu')
    native.openCpu(device, threads, memoryLimit)
    return device
  }
  const match = /^cuda(?::(\d+))?$/.exec(wanted)
  if (match === null) {
    throw new LowbitError(
      'ERR_ARGUMENT',
      `openDevice: expected 'auto', 'cpu', 'cuda' or 'cuda:N' but got '${name}'`,
    )
  }
  const index = Number(match[1] ?? 0)
  const found = cudaBackends()
  const row = found[index] ?? found[0]
  if (row !== undefined && !row.usable)
    throw new LowbitError(row.code as BackendCode, `openDevice: ${name}: ${row.reason}`)
  const device = new Device(`cuda:${index}`)
  native.openCuda(device, cudaFiles.library, cudaFiles.driver, index, memoryLimit)
  return device
}
