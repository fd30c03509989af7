/** softmax, argmax and cross entropy of one row, from their formulas. */
import type { Round } from './compare'

/** exp(scale x - max) / sum. Zeros where every scaled score is -inf; NaN where one is NaN or +inf. */
export function softmaxRow(x: readonly number[], scale: number, r: Round): number[] {
  const scaled = x.map((v) => r(scale * v))
  const max = scaled.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
  if (max === Number.NEGATIVE_INFINITY) return x.map(() => 0)
  const e = scaled.map((v) => r(Math.exp(r(v - max))))
  const sum = e.reduce((a, b) => r(a + b), 0)
  return e.map((v) => r(v / sum))
}

/** The first index of the largest; NaN is larger than every number. */
export function argmaxRow(x: readonly number[]): number {
  const nan = x.findIndex((v) => Number.isNaN(v))
  return nan >= 0 ? nan : x.indexOf(x.reduce((a, b) => Math.max(a, b)))
}

/** log(sum of exp(x)) - x[target] */
export function crossEntropyRow(x: readonly number[], target: number, r: Round): number {
  const max = x.reduce((a, b) => Math.max(a, b))
  const sum = x.reduce((a, b) => r(a + r(Math.exp(r(b - max)))), 0)
  return r(r(r(Math.log(sum)) + max) - (x[target] as number))
}
