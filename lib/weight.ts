import type { Device } from './device'
import { wordIndex } from './errors'
import { type Handle, native } from './native'
import { type GroupSize, nativeCanonical, type QuantizedWeight, roomFor, type ScaleDType } from './quantize'
import { type Format, type Layout, layouts, type TablePer, type ZeroPoint } from './words'

/** Options of {@link Device.load}. */
export interface LoadOptions {
  /**
   * Default: what the device's kernels read fastest. 'rows' holds every format; 'panel16' all but codes of 6 bits and
   * blocks of rows and columns; 'trits16' ternary, five weights a byte; 'frag64' int4 without zero points, as the tensor
   * cores of a GPU take it.
   */
  readonly layout?: Layout | undefined
}

/**
 * A weight [N, K] in a device's memory, packed for its kernels. Made by {@link Device.load}; any number of ops may read
 * it. `dispose()` gives the memory back as soon as the queued ops that read it are done.
 */
export class Weight implements Disposable {
  /** What its codes mean. */
  readonly format: Format
  /** [N, K]. */
  readonly shape: readonly [number, number]
  /** Undefined for f32, f16 and bf16. */
  readonly groupSize: GroupSize | undefined
  /** How zero points are stored; 'none' where the weight is symmetric. */
  readonly zeroPoint: ZeroPoint
  /** Undefined for f32, f16 and bf16. */
  readonly scaleDtype: ScaleDType | undefined
  /** What each table of codebook4 belongs to; 'none' for all others. */
  readonly tablePer: TablePer
  /** int1: how many planes add up to it; 1 for all others. */
  readonly planes: number
  #info: { layout: Layout; bytes: number } | undefined

  /** @internal */
  constructor(q: QuantizedWeight) {
    this.format = q.format
    this.shape = q.shape
    this.groupSize = q.groupSize
    this.zeroPoint = q.zeroPoint
    this.scaleDtype = q.scaleDtype
    this.tablePer = q.tablePer
    this.planes = q.planes
  }

  get #about(): { layout: Layout; bytes: number } {
    if (this.#info === undefined) {
      const { layout, bytes } = native.weightInfo(this)
      this.#info = { layout: layouts[layout] as Layout, bytes }
    }
    return this.#info
  }

  /** Where the bytes lie; see csrc/format/layout.h. */
  get layout(): Layout {
    return this.#about.layout
  }
  /** Bytes of the device's memory, padding counted in. */
  get bytes(): number {
    return this.#about.bytes
  }
  /** Whether {@link dispose} was called. */
  get disposed(): boolean {
    return native.weightDisposed(this)
  }

  /** The canonical weight that it was made from, bit for bit. */
  unpack(): QuantizedWeight {
    const { arrays, weight } = roomFor(this, 'unpack')
    native.unpackWeight(this, ...arrays)
    return weight()
  }

  /** Gives the memory back once the queued ops that read it are done. Calling it twice is harmless. */
  dispose(): void {
    native.weightDispose(this)
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** For messages: `Weight(int4 [64, 128])`. */
  toString(): string {
    return `Weight(${this.format} [${this.shape.join(', ')}]${this.disposed ? ', disposed' : ''})`
  }
}

/** Packs `q` into the memory of a device. */
export function loadWeight(device: Device & Handle, q: QuantizedWeight, options: LoadOptions = {}): Weight {
  const { layout } = options
  const canonical = nativeCanonical(q, 'load')
  const weight = new Weight(q)
  native.load(
    device,
    weight,
    layout === undefined ? -1 : wordIndex(layouts, layout, 'load: layout'),
    ...canonical,
  )
  return weight
}
