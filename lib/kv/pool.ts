// Which pages of a paged cache belong to which sequence. Numbers alone: the pool knows neither a device nor a KvCache, so
// that one plan serves the caches of all layers. Kwon et al., PagedAttention, 2023.

import { LowbitError } from '../errors'

/** Options of {@link PagePool}: those of the `KvCache`s whose pages it gives out. */
export interface PagePoolOptions {
  /** Pages of each cache. */
  readonly pages: number
  /** Tokens of a page: a power of two from 8 to 256. */
  readonly pageSize: number
  /** The caches' prefix region: every sequence takes a row for its first tokens. Default: none. */
  readonly prefix?: { readonly rows: number; readonly tokens: number } | undefined
}

/** What {@link KvSequence.grow} asks its caller to do, in every layer and in this order. */
export interface Growth {
  /** Pages to copy first (`kv.copyPages`): [from, to] for each page that was shared. */
  readonly copies: readonly (readonly [from: number, to: number])[]
  /** Slots to copy first (`kv.restore(kv.save(from), to)`): those of a prefix row that was shared. */
  readonly moves: readonly (readonly [from: number, to: number])[]
  /** Where the new tokens go (`kv.append`). */
  readonly slots: Int32Array
}

/** Things that are numbered, counted as often as they are used, and free when nobody does. */
class Counted {
  readonly #users: Uint32Array
  // A stack: what was freed last is given out first, while it is still in the caches of the processor.
  readonly #free: number[]

  constructor(count: number) {
    this.#users = new Uint32Array(count)
    this.#free = Array.from({ length: count }, (_, i) => count - 1 - i)
  }
  get free(): number {
    return this.#free.length
  }
  users(id: number): number {
    return this.#users[id] ?? 0
  }
  /** The caller has seen that one is free. */
  take(): number {
    const id = this.#free.pop()
    if (id === undefined) throw new LowbitError('ERR_INTERNAL', 'PagePool: nothing is free')
    this.#users[id] = 1
    return id
  }
  share(id: number): number {
    this.#users[id] = this.users(id) + 1
    return id
  }
  release(id: number): void {
    const left = this.users(id) - 1
    if (left < 0) throw new LowbitError('ERR_INTERNAL', `PagePool: ${id} is released but not in use`)
    this.#users[id] = left
    if (left === 0) this.#free.push(id)
  }
}

/** Pages of a cache and who uses them. */
export class PagePool {
  /** Pages there are. */
  readonly pages: number
  /** Tokens of a page. */
  readonly pageSize: number
  /** Rows of the prefix region. */
  readonly prefixRows: number
  /** Tokens of such a row; 0 where there is no such region. */
  readonly prefixTokens: number
  /** @internal */
  readonly counts: Counted
  /** @internal */
  readonly rows: Counted

  /** @throws LowbitError ERR_ARGUMENT for sizes that no cache has. */
  constructor(options: PagePoolOptions) {
    const { pages, pageSize, prefix } = options
    whole('pages', pages, 1)
    whole('pageSize', pageSize, 8, 256)
    if ((pageSize & (pageSize - 1)) !== 0) {
      throw new LowbitError(
        'ERR_ARGUMENT',
        `PagePool: expected pageSize to be a power of two from 8 to 256 but got ${pageSize}`,
      )
    }
    if (prefix !== undefined) {
      whole('prefix.rows', prefix.rows, 1)
      whole('prefix.tokens', prefix.tokens, 1)
    }
    this.pages = pages
    this.pageSize = pageSize
    this.prefixRows = prefix?.rows ?? 0
    this.prefixTokens = prefix?.tokens ?? 0
    this.counts = new Counted(pages)
    this.rows = new Counted(this.prefixRows)
  }

  /** Pages that no sequence uses. */
  get free(): number {
    return this.counts.free
  }

  /** Pages that a sequence of so many tokens has; positions in a prefix row need none. */
  pagesOf(length: number): number {
    const covered = Math.floor(this.prefixTokens / this.pageSize)
    return Math.max(0, Math.ceil(length / this.pageSize) - covered)
  }

  /** A sequence without tokens, which has no pages yet. */
  open(): KvSequence {
    return new KvSequence(this)
  }
}

function whole(name: string, value: number, least: number, most = 2 ** 31 - 1): void {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return
  throw new LowbitError(
    'ERR_ARGUMENT',
    `PagePool: expected ${name} to be a whole number from ${least} to ${most} but got ${value}`,
  )
}

/**
 * One sequence's pages. Forks share them; whoever then writes to a shared page gets a copy of its own first. Made by
 * `pool.open()` and `fork()`; `close()` gives the pages back.
 */
export class KvSequence implements Disposable {
  readonly #pool: PagePool
  // Page j holds positions from j * pageSize on; -1 where all of these are in the prefix row.
  readonly #table: number[] = []
  #row = -1
  #length = 0
  #closed = false

  /** @internal */
  constructor(pool: PagePool) {
    this.#pool = pool
  }

  /** Tokens that it has. */
  get length(): number {
    return this.#length
  }
  /** Its row of attention's page table; -1: a page whose positions are all in the prefix row. */
  get pageTable(): readonly number[] {
    return this.#table
  }
  /** Its row of the prefix region; -1 while it has none. */
  get prefixRow(): number {
    return this.#row
  }
  /** Whether {@link close} was called. */
  get closed(): boolean {
    return this.#closed
  }

  /**
   * Makes room for more tokens: all of it, or the sequence and the pool stay as they are.
   *
   * @throws LowbitError ERR_PAGES with how many pages it needs and how many are free; ERR_DISPOSED
   */
  grow(count: number): Growth {
    this.#open('grow')
    whole('the number of tokens', count, 0)
    const pool = this.#pool
    const { pageSize, prefixTokens } = pool
    const begin = this.#length
    const end = begin + count
    // The first token that is in a page.
    const paged = Math.max(begin, prefixTokens)
    const firstPage = Math.floor(paged / pageSize)
    const shared = firstPage < this.#table.length ? (this.#table[firstPage] ?? -1) : -1
    const copied = end > paged && shared >= 0 && pool.counts.users(shared) > 1
    const wanted = pool.pagesOf(end) - pool.pagesOf(begin) + (copied ? 1 : 0)
    if (wanted > pool.free) {
      throw new LowbitError(
        'ERR_PAGES',
        `grow: ${count} more tokens need ${wanted} pages but ${pool.free} of ${pool.pages} are free`,
      )
    }
    const intoRow = count > 0 && begin < prefixTokens
    const rowShared = intoRow && this.#row >= 0 && pool.rows.users(this.#row) > 1
    if (intoRow && (this.#row < 0 || rowShared) && pool.rows.free === 0) {
      throw new LowbitError(
        'ERR_PAGES',
        `grow: a prefix row is needed but 0 of ${pool.prefixRows} are free: each sequence has one`,
      )
    }

    const copies: [number, number][] = []
    const moves: [number, number][] = []
    if (copied) {
      const own = pool.counts.take()
      pool.counts.release(shared)
      this.#table[firstPage] = own
      copies.push([shared, own])
    }
    while (this.#table.length * pageSize < end) {
      const covered = (this.#table.length + 1) * pageSize <= prefixTokens
      this.#table.push(covered ? -1 : pool.counts.take())
    }
    if (intoRow && this.#row < 0) this.#row = pool.rows.take()
    if (rowShared) {
      const from = this.#row
      this.#row = pool.rows.take()
      pool.rows.release(from)
      for (let t = 0; t < begin; t++) moves.push([this.#prefixSlot(from, t), this.#prefixSlot(this.#row, t)])
    }
    this.#length = end
    return { copies, moves, slots: this.slots(begin, end) }
  }

  /** The slots of positions [begin, end): what `kv.read`, `kv.save` and `kv.restore` take. */
  slots(begin = 0, end = this.#length): Int32Array {
    const { pageSize, prefixTokens } = this.#pool
    const slots = new Int32Array(Math.max(0, end - begin))
    for (let i = 0; i < slots.length; i++) {
      const j = begin + i
      const page = this.#table[Math.floor(j / pageSize)] ?? -1
      slots[i] = j < prefixTokens ? this.#prefixSlot(this.#row, j) : page * pageSize + (j % pageSize)
    }
    return slots
  }

  #prefixSlot(row: number, token: number): number {
    const { pages, pageSize, prefixTokens } = this.#pool
    return pages * pageSize + row * prefixTokens + token
  }

  /** Another sequence with the same tokens, whose pages both share until one of them writes there. */
  fork(): KvSequence {
    this.#open('fork')
    const copy = new KvSequence(this.#pool)
    for (const page of this.#table) copy.#table.push(page < 0 ? page : this.#pool.counts.share(page))
    if (this.#row >= 0) copy.#row = this.#pool.rows.share(this.#row)
    copy.#length = this.#length
    return copy
  }

  /**
   * Forgets everything from a position on and gives back the pages that it leaves.
   *
   * @throws LowbitError ERR_ARGUMENT for a position beyond `length`, ERR_DISPOSED
   */
  trim(length: number): void {
    this.#open('trim')
    if (!Number.isSafeInteger(length) || length < 0 || length > this.#length) {
      throw new LowbitError(
        'ERR_ARGUMENT',
        `trim: expected a length from 0 to ${this.#length} but got ${length}`,
      )
    }
    const left = Math.ceil(length / this.#pool.pageSize)
    for (const page of this.#table.splice(left)) if (page >= 0) this.#pool.counts.release(page)
    if (length === 0 && this.#row >= 0) {
      this.#pool.rows.release(this.#row)
      this.#row = -1
    }
    this.#length = length
  }

  /** Gives all pages back. Calling it twice is harmless. */
  close(): void {
    if (this.#closed) return
    this.trim(0)
    this.#closed = true
  }
  [Symbol.dispose](): void {
    this.close()
  }

  #open(what: string): void {
    if (this.#closed) throw new LowbitError('ERR_DISPOSED', `${what}: the sequence was closed`)
  }
}
