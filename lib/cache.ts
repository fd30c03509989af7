import { wordIndex } from './errors'
import { type Handle, native } from './native'
import { type Pairing, pairings } from './rope'
import { type IntList, outputOf, type Tensor, withInts } from './tensor'
import { type KvFormat, kvFormats } from './words'

/** A region of a {@link KvCache} that is never quantised: the first tokens of sequences. */
export interface KvPrefix {
  /** How many sequences may have tokens there, each in a row of its own. */
  readonly rows: number
  /** Tokens of a row. */
  readonly tokens: number
  /** Default 'bf16'. */
  readonly dtype?: 'f32' | 'f16' | 'bf16' | undefined
}

/** Options of `device.kvCache`. */
export interface KvCacheOptions {
  /** Pages, shared by all sequences; any number of sequences may read one page. */
  readonly pages: number
  /** Tokens of a page: a power of two from 8 to 256. */
  readonly pageSize: number
  /** Heads of keys and values. */
  readonly kvHeads: number
  /** Numbers of a key, 1 to 1024. */
  readonly headDim: number
  /** Numbers of a value. Default: headDim. */
  readonly headDimV?: number | undefined
  /** What a page stores. int4 needs even head dims. */
  readonly format: KvFormat
  /** Default: no such region. */
  readonly prefix?: KvPrefix | undefined
}

/** Rotary position embedding of keys on their way into a cache; see `rope`. */
export interface KvRope {
  /** f32 `[positions, rotaryDim / 2]`: cosines of the angles. */
  readonly cos: Tensor
  /** f32, the shape of `cos`: sines of the angles. */
  readonly sin: Tensor
  /** i32 [tokens]: where the tokens stand. */
  readonly positions: IntList
  /** Default 'half'. */
  readonly pairing?: Pairing | undefined
}

/** Options of `KvCache.append`. */
export interface AppendOptions {
  /** Turns k first, in f32 and without rounding it before it is quantised. Default: k comes turned, or need not be. */
  readonly rope?: KvRope | undefined
}

/** What `KvCache.read` gives. */
export interface KvRead {
  /** f32 [n, kvHeads, headDim] */
  readonly k: Tensor<'f32'>
  /** f32 [n, kvHeads, headDimV] */
  readonly v: Tensor<'f32'>
}

/**
 * Keys and values of any number of sequences, in pages of a device's memory (Kwon et al., PagedAttention, 2023). Made by
 * `device.kvCache`; one for each layer of a model. Which page belongs to whom is the caller's affair: the cache knows slots
 * alone. Token t of page p is slot `p * pageSize + t`; token t of prefix row r is `pages * pageSize + r * prefix.tokens + t`.
 *
 * Formats: f32, f16 and bf16 as they are; fp8_e4m3 and int8 with a scale for each token and head; int4 with a scale and a
 * zero. Scales are f16 and lie in the page (csrc/attention/cache.h has the byte picture). Every method queues and returns
 * at once. Slots and pages out of range are found when it runs: nothing is written then, and what reads the cache
 * afterwards fails with that error. `dispose()` gives the memory back as soon as the queued ops that use it are done.
 */
export class KvCache implements Disposable {
  /** What a page stores. */
  readonly format: KvFormat
  /** How many pages it has. */
  readonly pages: number
  /** Tokens of a page. */
  readonly pageSize: number
  /** Heads of keys and values. */
  readonly kvHeads: number
  /** Numbers of a key. */
  readonly headDim: number
  /** Numbers of a value. */
  readonly headDimV: number
  /** The region of floats; undefined where there is none. */
  readonly prefix: Required<KvPrefix> | undefined
  /** Which device holds it: 'cpu', 'cuda:0', ... */
  readonly device: string
  #info: { bytes: number; savedBytes: number } | undefined

  private constructor(device: string, options: KvCacheOptions) {
    const { format, pages, pageSize, kvHeads, headDim, headDimV = headDim, prefix } = options
    this.format = format
    this.pages = pages
    this.pageSize = pageSize
    this.kvHeads = kvHeads
    this.headDim = headDim
    this.headDimV = headDimV
    this.prefix = prefix && { rows: prefix.rows, tokens: prefix.tokens, dtype: prefix.dtype ?? 'bf16' }
    this.device = device
  }

  /** For `device.kvCache`. @internal */
  static make(device: Handle & { readonly name: string }, options: KvCacheOptions): KvCache {
    const cache = new KvCache(device.name, options)
    const { pages, pageSize, kvHeads, headDim, headDimV, prefix } = cache
    native.kvCache(
      device,
      cache,
      wordIndex(kvFormats, cache.format, 'kvCache: format'),
      pages,
      pageSize,
      kvHeads,
      headDim,
      headDimV,
      prefix?.rows ?? 0,
      prefix?.tokens ?? 0,
      wordIndex(kvFormats, prefix?.dtype ?? 'bf16', 'kvCache: prefix.dtype'),
    )
    return cache
  }

  get #about(): { bytes: number; savedBytes: number } {
    this.#info ??= native.cacheInfo(this)
    return this.#info
  }
  /** Bytes of the device's memory. */
  get bytes(): number {
    return this.#about.bytes
  }
  /** Bytes of one token in what {@link save} gives. */
  get savedBytes(): number {
    return this.#about.savedBytes
  }
  /** Whether {@link dispose} was called. */
  get disposed(): boolean {
    return native.cacheDisposed(this)
  }

  /**
   * Writes tokens: quantised to the cache's format, keys turned by RoPE first where asked for.
   *
   * @param k [tokens, kvHeads, headDim] in f32, f16 or bf16; the last dimension is contiguous.
   * @param v [tokens, kvHeads, headDimV] in any of the three.
   * @param slots i32 [tokens]: where each goes, no slot twice; -1: nowhere.
   * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE, ERR_DISPOSED; LowbitTypeError.
   */
  append(k: Tensor, v: Tensor, slots: IntList, options: AppendOptions = {}): this {
    const { rope } = options
    const pairing = wordIndex(pairings, rope?.pairing ?? 'half', 'append: rope.pairing')
    withInts(this, 'append', (ints) =>
      native.kvAppend(
        this,
        k,
        v,
        ints(slots, 'slots'),
        rope?.cos,
        rope?.sin,
        ints(rope?.positions, 'rope.positions'),
        pairing,
      ),
    )
    return this
  }

  /**
   * The tokens of these slots as attention sees them.
   *
   * @param slots i32 [n]
   * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_MEMORY; LowbitTypeError.
   */
  read(slots: IntList, options: { readonly k?: Tensor; readonly v?: Tensor } = {}): KvRead {
    const [k, v] = [outputOf(options.k, 'read', 'k'), outputOf(options.v, 'read', 'v')]
    withInts(this, 'read', (ints) => native.kvRead(this, ints(slots, 'slots'), k, v))
    return { k: k as Tensor<'f32'>, v: v as Tensor<'f32'> }
  }

  /**
   * Copies whole pages: what a sequence does before it writes to a page that it shares with another.
   *
   * @param from i32 [n]
   * @param to i32 [n], no page twice and none of `from`
   * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED; LowbitTypeError.
   */
  copyPages(from: IntList, to: IntList): this {
    withInts(this, 'copyPages', (ints) => native.kvCopyPages(this, ints(from, 'from'), ints(to, 'to')))
    return this
  }

  /**
   * The tokens of these slots as they are stored, bit for bit, for {@link restore}: into this cache or another of its sizes
   * and formats, now or in another process.
   *
   * @param slots i32 [n]
   * @returns u8 [n, savedBytes]
   * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_MEMORY; LowbitTypeError.
   */
  save(slots: IntList, options: { readonly out?: Tensor } = {}): Tensor<'u8'> {
    const out = outputOf(options.out, 'save')
    withInts(this, 'save', (ints) => native.kvSave(this, ints(slots, 'slots'), out))
    return out as Tensor<'u8'>
  }

  /**
   * Writes tokens that {@link save} gave.
   *
   * @param saved u8 [n, savedBytes]
   * @param slots i32 [n]: where each goes, no slot twice; -1: nowhere. A token saved from pages goes to pages, one from a
   *   prefix to a prefix, unless both have one format.
   * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE, ERR_DISPOSED; LowbitTypeError.
   */
  restore(saved: Tensor, slots: IntList): this {
    withInts(this, 'restore', (ints) => native.kvRestore(this, saved, ints(slots, 'slots')))
    return this
  }

  /** Gives the memory back once the queued ops that use it are done. Calling it twice is harmless. */
  dispose(): void {
    native.cacheDispose(this)
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** For messages: `KvCache(int8, 64 pages of 16)`. */
  toString(): string {
    return `KvCache(${this.format}, ${this.pages} pages of ${this.pageSize}${this.disposed ? ', disposed' : ''})`
  }
}
