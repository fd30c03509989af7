// A checkpoint on disk: one safetensors file, or a folder with model.safetensors or with shards and their index, as
// Hugging Face writes them. Headers are read when it is opened; tensors by positional reads when they are asked
// for, so a checkpoint larger than memory is fine as long as single tensors fit.

import * as fs from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { LowbitError } from '../errors'
import { describeJson, JsonError, parseJson } from './json'
import {
  headerLength,
  maxHeaderBytes,
  parseHeader,
  planSafetensors,
  prefixBytes,
  quoted,
  type SafetensorsDType,
  type SafetensorsEntry,
  type SafetensorsHeader,
  type SafetensorsMetadata,
  type SafetensorsSource,
  type SafetensorsTensor,
  viewElements,
} from './safetensors'

const singleName = 'model.safetensors'
const indexName = 'model.safetensors.index.json'

// One read or write call moves at most this much: an abort is noticed that often, and Linux itself stops at 2 GiB.
const stepBytes = 64 << 20

const readAsync = promisify(fs.read)

/** What a checkpoint knows of a tensor before it is read. */
export interface CheckpointTensor {
  /** As the file spells it. */
  readonly name: string
  /** Element type in the file. */
  readonly dtype: SafetensorsDType
  /** Sizes, outermost first. */
  readonly shape: readonly number[]
  /** Size in the file. */
  readonly byteLength: number
  /** The file that holds it. */
  readonly file: string
}

/** Options of `Checkpoint.read` and `openCheckpoint`. */
export interface CheckpointReadOptions {
  /** Stops the work between two pieces of at most 64 MiB; the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined
}

function fail(file: string, what: string): never {
  throw new LowbitError('ERR_FILE', `checkpoint: ${file}: ${what}`)
}

function failIo(file: string, error: unknown): never {
  if (error instanceof LowbitError) throw error
  const { code, message } = error as NodeJS.ErrnoException
  if (typeof code !== 'string') throw error
  fail(file, code === 'ENOENT' ? 'there is no such file or folder' : message)
}

// A file descriptor that outlives close() until the last read on it is done: a number that the system has given to
// another file in the meantime must never be read from.
class OpenFile {
  private reads = 0
  private closed = false

  private constructor(
    readonly path: string,
    private readonly fd: number,
    readonly size: number,
  ) {}

  static open(path: string): OpenFile {
    let fd: number
    try {
      // Without O_NONBLOCK a FIFO would hold the caller until somebody writes to it.
      fd = fs.openSync(path, fs.constants.O_RDONLY | (fs.constants.O_NONBLOCK ?? 0))
    } catch (error) {
      failIo(path, error)
    }
    try {
      const stat = fs.fstatSync(fd)
      if (!stat.isFile())
        fail(path, stat.isDirectory() ? 'expected a file but it is a folder' : 'expected a file')
      return new OpenFile(path, fd, stat.size)
    } catch (error) {
      fs.closeSync(fd)
      failIo(path, error)
    }
  }

  close(): void {
    if (this.closed) return
    this.closed = true
    this.release()
  }

  private release(): void {
    if (this.closed && this.reads === 0) fs.closeSync(this.fd)
  }

  private ended(position: number, wanted: number): never {
    fail(
      this.path,
      `the file ended at byte ${position} where ${wanted} more were expected: it has shrunk since it was opened`,
    )
  }

  readSync(target: Uint8Array, position: number): void {
    for (let done = 0; done < target.byteLength; ) {
      const step = Math.min(stepBytes, target.byteLength - done)
      let got: number
      try {
        got = fs.readSync(this.fd, target, done, step, position + done)
      } catch (error) {
        failIo(this.path, error)
      }
      if (got === 0) this.ended(position + done, target.byteLength - done)
      done += got
    }
  }

  async read(target: Uint8Array, position: number, signal: AbortSignal | undefined): Promise<void> {
    this.reads++
    try {
      for (let done = 0; done < target.byteLength; ) {
        signal?.throwIfAborted()
        const step = Math.min(stepBytes, target.byteLength - done)
        const { bytesRead } = await readAsync(this.fd, target, done, step, position + done).catch(
          (error: unknown) => failIo(this.path, error),
        )
        if (bytesRead === 0) this.ended(position + done, target.byteLength - done)
        done += bytesRead
      }
    } finally {
      this.reads--
      this.release()
    }
  }
}

// The garbage collector closes what nobody closed.
const abandoned = new FinalizationRegistry<readonly OpenFile[]>((files) => {
  for (const file of files) file.close()
})

function allocate(bytes: number, what: string): Uint8Array {
  try {
    return new Uint8Array(new ArrayBuffer(bytes))
  } catch {
    throw new LowbitError('ERR_MEMORY', `checkpoint: ${what}: no memory for ${bytes} bytes`)
  }
}

interface Shard {
  readonly file: OpenFile
  readonly header: SafetensorsHeader
}

function readShardSync(path: string): Shard {
  const file = OpenFile.open(path)
  try {
    const prefix = new Uint8Array(Math.min(prefixBytes, file.size))
    file.readSync(prefix, 0)
    const head = allocate(headerLength(prefix, file.size, path), path)
    file.readSync(head, prefixBytes)
    return { file, header: parseHeader(head, file.size, path) }
  } catch (error) {
    file.close()
    throw error
  }
}

async function readShard(path: string, signal: AbortSignal | undefined): Promise<Shard> {
  const file = OpenFile.open(path)
  try {
    const prefix = new Uint8Array(Math.min(prefixBytes, file.size))
    await file.read(prefix, 0, signal)
    const head = allocate(headerLength(prefix, file.size, path), path)
    await file.read(head, prefixBytes, signal)
    return { file, header: parseHeader(head, file.size, path) }
  } catch (error) {
    file.close()
    throw error
  }
}

/** What a path stands for: the files to read, and for a sharded checkpoint which of them holds each tensor. */
interface Plan {
  readonly files: readonly string[]
  readonly index: string | undefined
  readonly weightMap: ReadonlyMap<string, string> | undefined
}

function planFiles(path: string): Plan {
  let folder: boolean
  try {
    folder = fs.statSync(path).isDirectory()
  } catch (error) {
    failIo(path, error)
  }
  if (!folder)
    return path.endsWith('.index.json')
      ? planIndex(path)
      : { files: [path], index: undefined, weightMap: undefined }
  const single = join(path, singleName)
  if (fs.existsSync(single)) return { files: [single], index: undefined, weightMap: undefined }
  const index = join(path, indexName)
  if (fs.existsSync(index)) return planIndex(index)
  fail(path, `expected ${singleName} or ${indexName} in the folder but found neither`)
}

function planIndex(path: string): Plan {
  const file = OpenFile.open(path)
  const text = ((): string => {
    try {
      if (file.size > maxHeaderBytes)
        fail(path, `expected an index of at most ${maxHeaderBytes} bytes but it has ${file.size}`)
      const bytes = allocate(file.size, path)
      file.readSync(bytes, 0)
      return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    } catch (error) {
      if (error instanceof TypeError) fail(path, 'the index is not UTF-8')
      throw error
    } finally {
      file.close()
    }
  })()
  let root: ReturnType<typeof parseJson>
  try {
    root = parseJson(text)
  } catch (error) {
    if (error instanceof JsonError) fail(path, `the index is not JSON: ${error.message}`)
    throw error
  }
  const map = root instanceof Map ? root.get('weight_map') : undefined
  if (!(map instanceof Map)) fail(path, `expected an object with weight_map but got ${describeJson(map)}`)
  const weightMap = new Map<string, string>()
  for (const [name, shard] of map) {
    // A shard may not lead out of the folder: no separators of any system, no dots alone, no NUL.
    if (typeof shard !== 'string' || !/^[^/\\\0:]+$/.test(shard) || /^\.+$/.test(shard)) {
      fail(
        path,
        `tensor ${quoted(name)}: expected a file name in the same folder but got ${describeJson(shard)}`,
      )
    }
    weightMap.set(name, shard)
  }
  if (weightMap.size === 0) fail(path, 'the weight_map names no tensor')
  const shards = [...new Set(weightMap.values())].sort()
  return { files: shards.map((shard) => join(dirname(path), shard)), index: path, weightMap }
}

function merge(plan: Plan, shards: readonly Shard[]): ReadonlyMap<string, Located> {
  const located = new Map<string, Located>()
  for (const shard of shards) {
    for (const entry of shard.header.tensors.values()) {
      // Tensors that the index doesn't name are not part of the checkpoint.
      if (plan.weightMap !== undefined && !plan.weightMap.has(entry.name)) continue
      const first = located.get(entry.name)
      if (first !== undefined) {
        fail(
          shard.file.path,
          `tensor ${quoted(entry.name)} comes twice: ${basename(first.file.path)} holds it too`,
        )
      }
      located.set(entry.name, { entry, file: shard.file })
    }
  }
  for (const [name, shard] of plan.weightMap ?? []) {
    const found = located.get(name)
    if (found === undefined || basename(found.file.path) !== shard) {
      const where = found === undefined ? 'no shard holds it' : `it is in ${basename(found.file.path)}`
      fail(plan.index ?? '', `tensor ${quoted(name)}: expected it in ${shard} but ${where}`)
    }
  }
  return located
}

interface Located {
  readonly entry: SafetensorsEntry
  readonly file: OpenFile
}

/**
 * An open checkpoint: names, shapes and dtypes of its tensors, and their values on request.
 *
 * Made by `openCheckpoint` or `openCheckpointSync`; holds file descriptors until `close()`, the end of a `using`
 * block, or the garbage collector.
 */
export class Checkpoint implements Disposable, AsyncDisposable {
  /** The path that was opened, made absolute. */
  readonly path: string
  /** The strings under `__metadata__` of all files; the first file that has a key wins. */
  readonly metadata: ReadonlyMap<string, string>
  private readonly tensors: ReadonlyMap<string, Located>
  private readonly files: readonly OpenFile[]
  private closed = false

  /** @internal */
  constructor(path: string, tensors: ReadonlyMap<string, Located>, shards: readonly Shard[]) {
    this.path = path
    this.tensors = tensors
    this.files = shards.map((shard) => shard.file)
    const metadata = new Map<string, string>()
    for (const { header } of shards) {
      for (const [key, value] of header.metadata) if (!metadata.has(key)) metadata.set(key, value)
    }
    this.metadata = metadata
    abandoned.register(this, this.files, this)
  }

  /** The names of all tensors, file by file in the order of their bytes. */
  names(): string[] {
    return [...this.tensors.keys()]
  }

  /** Whether there is a tensor of that name. */
  has(name: string): boolean {
    return this.tensors.has(name)
  }

  /**
   * Dtype, shape and place of one tensor.
   *
   * @throws LowbitError ERR_FILE where there is none of that name
   */
  info(name: string): CheckpointTensor {
    const { entry, file } = this.locate(name)
    return { name, dtype: entry.dtype, shape: entry.shape, byteLength: entry.byteLength, file: file.path }
  }

  /**
   * Reads one tensor into fresh memory, without blocking the event loop.
   *
   * @returns its dtype, shape and elements (BF16 and F16 as Uint16Array, BOOL, F8, F6, F4 and C64 as bytes)
   * @throws LowbitError ERR_FILE where there is none of that name or the file fails or has shrunk; ERR_DISPOSED after
   * close(); ERR_MEMORY; the signal's reason after an abort
   */
  async read(name: string, options?: CheckpointReadOptions): Promise<SafetensorsTensor> {
    options?.signal?.throwIfAborted()
    const { entry, file } = this.locate(name)
    const bytes = allocate(entry.byteLength, `tensor ${quoted(name)}`)
    await file.read(bytes, entry.begin, options?.signal)
    return { dtype: entry.dtype, shape: entry.shape, data: viewElements(entry.dtype, bytes) }
  }

  /** The same as `read`, but the caller waits. */
  readSync(name: string): SafetensorsTensor {
    const { entry, file } = this.locate(name)
    const bytes = allocate(entry.byteLength, `tensor ${quoted(name)}`)
    file.readSync(bytes, entry.begin)
    return { dtype: entry.dtype, shape: entry.shape, data: viewElements(entry.dtype, bytes) }
  }

  /** Lets go of the files, once the reads under way are done. Calling it again does nothing. */
  close(): void {
    if (this.closed) return
    this.closed = true
    abandoned.unregister(this)
    for (const file of this.files) file.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /** For `await using`: {@link close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close()
  }

  private locate(name: string): Located {
    if (this.closed) throw new LowbitError('ERR_DISPOSED', `checkpoint: ${this.path}: used after close()`)
    const found = this.tensors.get(name)
    if (found === undefined)
      fail(this.path, `there is no tensor ${quoted(name)} among its ${this.tensors.size}`)
    return found
  }
}

/**
 * Opens a checkpoint and checks all its headers.
 *
 * @param path a `.safetensors` file, a `.safetensors.index.json`, or a folder that holds `model.safetensors` or
 * `model.safetensors.index.json` (the first is preferred)
 * @throws LowbitError ERR_FILE with the file, the tensor, what was expected and what came
 */
export async function openCheckpoint(path: string, options?: CheckpointReadOptions): Promise<Checkpoint> {
  options?.signal?.throwIfAborted()
  const plan = planFiles(path)
  const shards: Shard[] = []
  try {
    for (const file of plan.files) shards.push(await readShard(file, options?.signal))
    return new Checkpoint(resolve(path), merge(plan, shards), shards)
  } catch (error) {
    for (const { file } of shards) file.close()
    throw error
  }
}

/** The same as `openCheckpoint`, but the caller waits. */
export function openCheckpointSync(path: string): Checkpoint {
  const plan = planFiles(path)
  const shards: Shard[] = []
  try {
    for (const file of plan.files) shards.push(readShardSync(file))
    return new Checkpoint(resolve(path), merge(plan, shards), shards)
  } catch (error) {
    for (const { file } of shards) file.close()
    throw error
  }
}

/**
 * Writes a safetensors file beside its final place and renames it, so that a reader sees the old file or the whole
 * new one. The arrays must not change until the promise settles.
 *
 * @param path where the file goes; its folder exists
 * @param source tensors by name; `data` holds exactly the elements of `shape`
 * @param metadata strings for the header's `__metadata__`
 * @throws LowbitError ERR_ARGUMENT for anything the format can't hold, ERR_FILE where the system refuses
 */
export async function writeSafetensors(
  path: string,
  source: SafetensorsSource,
  metadata?: SafetensorsMetadata,
  options?: CheckpointReadOptions,
): Promise<void> {
  const { head, pieces } = planSafetensors(source, metadata)
  const suffix = Math.random().toString(36).slice(2, 10)
  const temporary = `${path}.${process.pid}-${suffix}.tmp`
  try {
    const file = await fs.promises.open(temporary, 'wx')
    try {
      for (const piece of [head, ...pieces]) {
        for (let done = 0; done < piece.byteLength; ) {
          options?.signal?.throwIfAborted()
          const step = Math.min(stepBytes, piece.byteLength - done)
          done += (await file.write(piece, done, step)).bytesWritten
        }
      }
      await file.sync()
    } finally {
      await file.close()
    }
    await fs.promises.rename(temporary, path)
  } catch (error) {
    await fs.promises.rm(temporary, { force: true })
    if (options?.signal?.aborted) throw error
    failIo(path, error)
  }
}
