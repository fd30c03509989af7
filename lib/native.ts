/** The one place that requires the addon, and the typed interface of what it exports. */
import path from 'node:path'
import { LowbitError, makeError } from './errors'
import * as words from './words'

const nodeGypBuild = require('node-gyp-build') as { resolve(folder: string): string }

/** An object that native code has tied memory to, or is about to: a Tensor, a Weight, a KvCache or a Device. */
export type Handle = object
type Settled = (code?: string, text?: string) => void
type Typed = ArrayBufferView

export interface HostInfo {
  name: string
  cores: number
  memory: number
  l2: number
  l3: number
  archs: string[]
}
export interface DeviceCounters {
  threads: number
  archs: string[]
  used: number
  cached: number
  peak: number
  limit: number
  guardFaults: number
  queued: number
  finished: number
  failed: number
}
export interface CudaProbe {
  code: string
  reason: string
  driver: number
  runtime: number
  devices: {
    name: string
    capability: number
    multiprocessors: number
    memory: number
    l2: number
    bandwidth: number
    usable: boolean
  }[]
}
export interface TensorInfo {
  shape: number[]
  strides: number[]
  dtype: number
  contiguous: boolean
  device: string
}
/** What a weight means: shape, format, groupN, groupK (0: the whole dimension), scaleDtype, zeroPoint, tablePer, planes. */
export type NativeFormat = readonly [
  readonly number[],
  number,
  number,
  number,
  number,
  number,
  number,
  number,
]
/** The arrays of a canonical weight: codes, scales, zeros, table, tensorScale. */
export type NativeArrays = readonly [
  Typed,
  Typed | undefined,
  Typed | undefined,
  Typed | undefined,
  Typed | undefined,
]
/** A canonical weight: its format, then its arrays. */
export type NativeCanonical = readonly [...NativeFormat, ...NativeArrays]
export interface FormatSizes {
  groupN: number
  groupK: number
  /** Bytes. */
  codes: number
  scaleRows: number
  scaleCols: number
  tables: number
}
export interface WeightInfo {
  layout: number
  bytes: number
}
/** One row of a kernel registry: its op, name and instruction set, then what it can do, by op. */
export interface KernelRow {
  op: string
  name: string
  arch: string[]
  [property: string]: string | number | boolean | string[]
}
export interface Description {
  dtypes: string[]
  formats: string[]
  layouts: string[]
  zeroPoints: string[]
  tables: string[]
  activations: string[]
  computes: string[]
  scores: string[]
  kvFormats: string[]
  errorCodes: string[]
  archs: string[]
  kernels: KernelRow[]
}

/**
 * Arguments stand by position, words as indices into the lists of words.ts. `out` is a Tensor, or an object of that
 * class without memory that the call fills; what `dtype` and `block` say must be true of a Tensor that is given, and
 * undefined says nothing. `device` may be a Device, or a Tensor or KvCache for its device. `row` forces a kernel row by name (tests and benches).
 */
export interface Native {
  /** `library`: the file of the CUDA rows, which are listed where it loads; undefined leaves them out. */
  describe(library?: string): Description
  /** `root`: a folder in whose /proc and /sys the quota is looked up, for tests. */
  hostInfo(root?: string): HostInfo
  deviceInfo(device: Handle): DeviceCounters
  setError(make: (code: string, text: string) => Error): void
  callNothing(): void
  externalMemory(): number
  probe(library: string, driver?: string): CudaProbe
  /** The row that the last op chose. */
  chosenRow(): string
  /**
   * The row that a call of linear would take on a device with these archs ('avx2', or several with commas; what they imply
   * is added), and the layout: the one asked for, or with -1 the one that load() takes there.
   */
  selectLinear(
    archs: string,
    row: string | undefined,
    m: number,
    dtype: number,
    compute: number,
    layout: number,
    ...format: NativeFormat
  ): { row: string; layout: string }
  /** From now on a call like this one, with as many rows of x or more, takes this row if it fits. */
  tuneLinear(
    archs: string,
    row: string,
    m: number,
    dtype: number,
    compute: number,
    layout: number,
    ...format: NativeFormat
  ): void
  /** No call is tuned any longer. */
  forgetTuned(): void
  selectAttention(
    archs: string,
    row: string | undefined,
    dtype: number,
    batch: number,
    seqQ: number,
    heads: number,
    headDim: number,
    seqKv: number,
    kvHeads: number,
    headDimV: number,
  ): { row: string }
  peakRows(): { name: string; quantity: string; arch: string }[]
  measurePeaks(out: Handle, seconds: number): void
  openCpu(device: Handle, threads: number, memoryLimit: number): void
  openCuda(
    device: Handle,
    library: string,
    driver: string | undefined,
    index: number,
    memoryLimit: number,
  ): void
  closeDevice(device: Handle): void
  captureBegin(device: Handle): void
  captureEnd(device: Handle, graph: Handle | undefined): void
  graphReplay(graph: Handle): void
  graphDispose(graph: Handle): void
  sync(device: Handle, settled: Settled): void
  syncSync(device: Handle): void
  empty(device: Handle, tensor: Handle, shape: readonly number[], dtype: number): void
  tensor(device: Handle, tensor: Handle, shape: readonly number[], dtype: number, data: Typed): void
  write(tensor: Handle, data: Typed): void
  read(tensor: Handle, dtype: number, to: Typed, settled: Settled): void
  readSync(tensor: Handle, dtype: number, to: Typed): void
  tensorInfo(tensor: Handle): TensorInfo
  tensorDisposed(tensor: Handle): boolean
  tensorDispose(tensor: Handle): void
  slice(tensor: Handle, view: Handle, dim: number, begin: number, end: number): void
  reshape(tensor: Handle, view: Handle, shape: readonly number[]): void
  transpose(tensor: Handle, view: Handle, a: number, b: number): void
  formatSizes(...format: NativeFormat): FormatSizes
  quantizeWeight(weights: Typed, dtype: number, clip: boolean, ...into: NativeCanonical): void
  dequantizeWeight(out: Typed, dtype: number, ...weight: NativeCanonical): void
  checkWeight(...weight: NativeCanonical): void
  load(device: Handle, weight: Handle, layout: number, ...canonical: NativeCanonical): void
  unpackWeight(weight: Handle, ...into: NativeArrays): void
  packedBytes(weight: Handle, to: Typed): void
  weightInfo(weight: Handle): WeightInfo
  weightDisposed(weight: Handle): boolean
  weightDispose(weight: Handle): void
  kvCache(
    device: Handle,
    cache: Handle,
    format: number,
    pages: number,
    pageSize: number,
    kvHeads: number,
    headDim: number,
    headDimV: number,
    prefixRows: number,
    prefixTokens: number,
    prefixFormat: number,
  ): void
  /** `savedBytes`: of one token in what kvSave gives. */
  cacheInfo(cache: Handle): { bytes: number; savedBytes: number }
  cacheDisposed(cache: Handle): boolean
  cacheDispose(cache: Handle): void
  kvAppend(
    cache: Handle,
    k: Handle,
    v: Handle,
    slots: Handle,
    cos: Handle | undefined,
    sin: Handle | undefined,
    positions: Handle | undefined,
    pairing: number,
    row?: string,
  ): void
  kvRead(cache: Handle, slots: Handle, k: Handle, v: Handle, row?: string): void
  kvCopyPages(cache: Handle, from: Handle, to: Handle, row?: string): void
  kvSave(cache: Handle, slots: Handle, bytes: Handle, row?: string): void
  kvRestore(cache: Handle, bytes: Handle, slots: Handle, row?: string): void
  add(a: Handle, b: Handle, out: Handle, row?: string): void
  mul(a: Handle, b: Handle, out: Handle, row?: string): void
  siluMul(gate: Handle, up: Handle, out: Handle, row?: string): void
  geluMul(gate: Handle, up: Handle, tanh: boolean, out: Handle, row?: string): void
  copy(x: Handle, dtype: number | undefined, out: Handle, row?: string): void
  embedding(table: Handle, ids: Handle, out: Handle, row?: string): void
  rmsNorm(
    x: Handle,
    weight: Handle | undefined,
    residual: Handle | undefined,
    out: Handle,
    residualOut: Handle | undefined,
    eps: number,
    row?: string,
  ): void
  layerNorm(
    x: Handle,
    weight: Handle | undefined,
    bias: Handle | undefined,
    residual: Handle | undefined,
    out: Handle,
    residualOut: Handle | undefined,
    eps: number,
    row?: string,
  ): void
  rope(
    x: Handle,
    cos: Handle,
    sin: Handle,
    positions: Handle | undefined,
    offset: number,
    pairing: number,
    out: Handle,
    row?: string,
  ): void
  softmax(x: Handle, out: Handle, scale: number, row?: string): void
  argmax(x: Handle, out: Handle, row?: string): void
  crossEntropy(logits: Handle, targets: Handle, out: Handle, row?: string): void
  linear(
    x: Handle,
    xScales: Handle | undefined,
    w: Handle,
    bias: Handle | undefined,
    residual: Handle | undefined,
    activation: number,
    compute: number,
    dtype: number | undefined,
    block: boolean | undefined,
    out: Handle,
    outScales: Handle | undefined,
    row?: string,
  ): void
  quantizeRows(
    x: Handle,
    dtype: number | undefined,
    block: boolean | undefined,
    codes: Handle,
    scales: Handle,
    row?: string,
  ): void
  dequantizeRows(codes: Handle, scales: Handle, dtype: number | undefined, out: Handle, row?: string): void
  /** `k` may be a KvCache; then `v` is undefined. */
  attention(
    q: Handle,
    k: Handle,
    v: Handle | undefined,
    cuSeqlensQ: Handle | undefined,
    cuSeqlensKv: Handle | undefined,
    kvLens: Handle | undefined,
    alibiSlopes: Handle | undefined,
    sinks: Handle | undefined,
    bias: Handle | undefined,
    pageTable: Handle | undefined,
    prefixRows: Handle | undefined,
    prefixLens: Handle | undefined,
    softmaxScale: number,
    softcap: number,
    windowLeft: number,
    windowRight: number,
    causal: boolean,
    score: number,
    qScales: Handle | undefined,
    kScales: Handle | undefined,
    vScales: Handle | undefined,
    out: Handle,
    lse: Handle | undefined,
    row?: string,
  ): void
}

/** The folder of the package: the addon lies in its build/Release or prebuilds. */
export const root = path.join(__dirname, '..')

function load(): { native: Native; file: string } {
  let file: string
  try {
    file = process.env.LB_ADDON ?? nodeGypBuild.resolve(root)
  } catch (cause) {
    throw new LowbitError(
      'ERR_LOAD',
      `no lowbit addon for ${process.platform}-${process.arch} in ${root}: this package has prebuilds for linux-x64 (glibc); ` +
        `elsewhere install a C++20 compiler, CMake and \`npm i cmake-js\`, then run \`node ${path.join(root, 'scripts/build.cjs')}\``,
      { cause },
    )
  }
  try {
    return { native: require(file) as Native, file }
  } catch (cause) {
    throw new LowbitError('ERR_LOAD', `${file} does not load: ${(cause as Error).message.split('\n')[0]}`, {
      cause,
    })
  }
}

/** The first difference between the word lists here and the native tables, or undefined. */
export function contractDifference(found: Description): string | undefined {
  const expected: [keyof Description, readonly string[]][] = [
    ['dtypes', words.dtypes],
    ['formats', words.formats],
    ['layouts', words.layouts],
    ['zeroPoints', words.zeroPoints],
    ['tables', words.tables],
    ['activations', words.activations],
    ['computes', words.computes],
    ['scores', words.scores],
    ['kvFormats', words.kvFormats],
    ['errorCodes', words.nativeCodes],
  ]
  for (const [name, list] of expected) {
    const native = found[name] as string[] | undefined
    for (let i = 0; i < Math.max(list.length, native?.length ?? 0); i++) {
      if (list[i] !== native?.[i])
        return `${name}[${i}] is '${list[i]}' in JavaScript and '${native?.[i]}' in the addon`
    }
  }
  return undefined
}

const loaded = load()
/** The addon. */
export const native: Native = loaded.native
/** The file that it was loaded from. */
export const addonFile: string = loaded.file
/** Where the CUDA part is looked for: the file that LB_CUDA_LIBRARY names, else liblowbit_cuda.so beside the addon. */
export const cudaLibrary: string =
  process.env.LB_CUDA_LIBRARY || path.join(path.dirname(addonFile), 'liblowbit_cuda.so')
/** The native tables. */
export const description: Description = native.describe(
  process.env.LB_DISABLE_CUDA === '1' ? undefined : cudaLibrary,
)

const difference = contractDifference(description)
if (difference !== undefined) {
  throw new LowbitError(
    'ERR_CONTRACT',
    `${addonFile} is of another build of lowbit: ${difference}; run \`npm run build\``,
  )
}

const { kernels, ...wordLists } = description
const spelled = new Set<string>([...Object.values(wordLists).flat(), ...kernels.map((row) => row.name)])

/** The error for a native code and text, with native names of arguments in the form that they have here. */
export function nativeError(code: string, text: string): Error {
  const camel = (word: string) => word.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
  const said = text.replace(/\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b/g, (word) =>
    spelled.has(word) ? word : camel(word),
  )
  return makeError(code, said)
}
native.setError(nativeError)
