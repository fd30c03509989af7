// Choosing the next token from logits: temperature, then top-k, then top-p, then one draw.

import { LowbitError } from '../errors'

/** How the next token is drawn. All left out: greedy. */
export interface SampleOptions {
  /** Logits are divided by it; 0 (the default) takes the largest logit. At least 0. */
  readonly temperature?: number | undefined
  /** Only the k most likely tokens stay; 0 (the default) keeps all. */
  readonly topK?: number | undefined
  /**
   * Only the smallest set of most likely tokens whose probabilities reach p stays; in (0, 1], 1 (the default) keeps
   * all. Holtzman et al., The Curious Case of Neural Text Degeneration, 2020.
   */
  readonly topP?: number | undefined
  /** Equal seeds give equal draws on every machine; an integer, 0 by default. */
  readonly seed?: number | undefined
}

/**
 * xoshiro128** (Blackman and Vigna, Scrambled Linear Pseudorandom Number Generators, 2018), its state filled from the
 * low 53 bits of a seed by splitmix32. Part of what a seed means, so it stays as it is.
 */
export class Random {
  private readonly state = new Uint32Array(4)

  constructor(seed: number) {
    let a = (seed >>> 0) ^ Math.imul(Math.floor(seed / 4294967296) >>> 0, 0x9e3779b9)
    for (let i = 0; i < 4; i++) {
      a = (a + 0x9e3779b9) | 0
      let z = a
      z = Math.imul(z ^ (z >>> 16), 0x85ebca6b)
      z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35)
      this.state[i] = z ^ (z >>> 16)
    }
  }

  /** The next 32 bits. */
  bits(): number {
    const s = this.state
    const [s0 = 0, s1 = 0, s2 = 0, s3 = 0] = s
    const scrambled = Math.imul(s1, 5)
    const out = Math.imul((scrambled << 7) | (scrambled >>> 25), 9) >>> 0
    const t2 = s2 ^ s0
    const t3 = s3 ^ s1
    s[1] = s1 ^ t2
    s[0] = s0 ^ t3
    s[2] = t2 ^ (s1 << 9)
    s[3] = (t3 << 11) | (t3 >>> 21)
    return out
  }

  /** A multiple of 2^-53 in [0, 1). */
  uniform(): number {
    const high = this.bits() >>> 5
    const low = this.bits() >>> 6
    return (high * 67108864 + low) / 9007199254740992
  }
}

/** Whether the options ask for the largest logit, which needs no draw. */
export function isGreedy(options: SampleOptions): boolean {
  return (options.temperature ?? 0) === 0 || options.topK === 1
}

/**
 * A checked set of options and the stream of random numbers that goes with it: one per generated text.
 *
 * @throws LowbitError ERR_ARGUMENT for an option out of its range
 */
export class Sampler {
  readonly greedy: boolean
  private readonly temperature: number
  private readonly topK: number
  private readonly topP: number
  private readonly random: Random

  constructor(options: SampleOptions = {}) {
    const { temperature = 0, topK = 0, topP = 1, seed = 0 } = options
    const bad = (name: string, expected: string, got: number): never => {
      throw new LowbitError('ERR_ARGUMENT', `generate: expected ${name} to be ${expected} but got ${got}`)
    }
    if (!(temperature >= 0 && Number.isFinite(temperature)))
      bad('temperature', 'a number of at least 0', temperature)
    if (!(Number.isSafeInteger(topK) && topK >= 0)) bad('topK', 'an integer of at least 0', topK)
    if (!(topP > 0 && topP <= 1)) bad('topP', 'in (0, 1]', topP)
    if (!Number.isSafeInteger(seed)) bad('seed', 'an integer', seed)
    this.greedy = isGreedy(options)
    this.temperature = temperature
    this.topK = topK
    this.topP = topP
    this.random = new Random(seed)
  }

  /**
   * Draws a token.
   *
   * @param logits [vocabSize]; not changed
   * @returns a token id; the smallest one among equal logits where the largest is asked for. NaN counts as -inf
   */
  draw(logits: Float32Array): number {
    let best = 0
    let largest = Number.NEGATIVE_INFINITY
    for (let i = 0; i < logits.length; i++) {
      const value = logits[i] ?? 0
      if (value > largest) {
        largest = value
        best = i
      }
    }
    // Nothing to weigh: all logits are -inf or NaN, or one is +inf.
    if (this.greedy || !Number.isFinite(largest)) return best

    const weights = new Float64Array(logits.length)
    for (let i = 0; i < logits.length; i++) {
      const value = logits[i] ?? 0
      weights[i] = Number.isNaN(value) ? 0 : Math.exp((value - largest) / this.temperature)
    }
    const cut = this.cut(weights)
    let total = 0
    let atCut = cut.ties
    for (let i = 0; i < weights.length; i++) {
      const weight = weights[i] ?? 0
      if (weight > cut.weight || (weight === cut.weight && atCut-- > 0)) total += weight
      else weights[i] = 0
    }
    let left = this.random.uniform() * total
    let last = best
    for (let i = 0; i < weights.length; i++) {
      const weight = weights[i] ?? 0
      if (weight === 0) continue
      last = i
      left -= weight
      if (left < 0) return i
    }
    return last
  }

  // The smallest weight that stays, and how many tokens of just that weight do (those of the smallest ids). Sorting the
  // bare numbers and cutting by value is several times faster than sorting ids with a comparison function.
  private cut(weights: Float64Array): { weight: number; ties: number } {
    const all = { weight: 0, ties: weights.length }
    if (this.topK === 0 && this.topP === 1) return all
    const sorted = weights.slice().sort()
    const count = this.topK === 0 ? sorted.length : Math.min(this.topK, sorted.length)
    let kept = count
    if (this.topP < 1) {
      let total = 0
      for (let i = 1; i <= count; i++) total += sorted[sorted.length - i] ?? 0
      let sum = 0
      kept = 0
      while (kept < count && sum < this.topP * total) sum += sorted[sorted.length - ++kept] ?? 0
    }
    const weight = sorted[sorted.length - kept] ?? 0
    let ties = 0
    while (ties < kept && sorted[sorted.length - kept + ties] === weight) ties++
    return { weight, ties }
  }
}
