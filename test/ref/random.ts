// jest runs tests in a context whose globals are looked up slowly.
const { floor, imul } = Math

/** A small seeded generator (mulberry32), so that a failure can be repeated from the seed that it prints. */
export class Random {
  #state: number
  constructor(readonly seed: number) {
    this.#state = seed >>> 0
  }
  /** Uniform in [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = imul(t ^ (t >>> 15), t | 1)
    t ^= t + imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
  /** A whole number in [low, high]. */
  int(low: number, high: number): number {
    return low + floor(this.next() * (high - low + 1))
  }
  /** Uniform in [low, high). */
  float(low = -1, high = 1): number {
    return low + this.next() * (high - low)
  }
  pick<T>(items: readonly T[]): T {
    const item = items[this.int(0, items.length - 1)]
    if (item === undefined) throw new Error('pick: nothing to pick from')
    return item
  }
  floats(length: number, low = -1, high = 1): Float32Array {
    return Float32Array.from({ length }, () => this.float(low, high))
  }
}
