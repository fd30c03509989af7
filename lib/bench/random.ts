/** Repeatable random numbers, and the comparison of two results. */

/** Uniform in [-1, 1), by xorshift32 (Marsaglia, Xorshift RNGs, 2003). */
export function randomFloats(count: number, seed = 1): Float32Array {
  const out = new Float32Array(count)
  let state = Math.imul(seed, 0x9e3779b1) | 1
  for (let i = 0; i < count; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    out[i] = state * 2 ** -31
  }
  return out
}

/** Whole numbers in [0, below). */
export function randomInts(count: number, below: number, seed = 1): Int32Array {
  return Int32Array.from(randomFloats(count, seed), (x) =>
    Math.min(below - 1, Math.floor((x + 1) * 0.5 * below)),
  )
}

// A wrong index gives differences as large as the values. Rounding is the tests' business, which know its exact size.
const tolerance = 2 ** -6

/** Undefined if the two agree but for rounding, else a sentence. */
export function difference(got: ArrayLike<number>, want: ArrayLike<number>): string | undefined {
  let largest = 0
  let error = 0
  let at = -1
  if (got.length !== want.length) return `${got.length} values where the reference has ${want.length}`
  for (let i = 0; i < want.length; i++) {
    const expected = want[i] as number
    largest = Math.max(largest, Math.abs(expected))
    const off = Math.abs((got[i] as number) - expected)
    if (off <= error) continue
    error = off
    at = i
    if (Number.isNaN(off)) break
  }
  if (error <= tolerance * largest) return undefined
  return `value ${at} is ${got[at]} where the reference has ${want[at]} (largest: ${largest})`
}
