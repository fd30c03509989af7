/** The gates of elementwise ops, from their formulas. */
import type { Round } from './compare'

/** The error function: its Taylor series near zero, a continued fraction of 1 - erf beyond. Float64 accuracy. */
export function erf(x: number): number {
  if (x < 0) return -erf(-x)
  return x < 2.5 ? erfSeries(x) : 1 - erfc(x)
}

function erfSeries(x: number): number {
  // 2 / sqrt(pi) * sum of (-1)^n x^(2n + 1) / (n! (2n + 1))
  let term = x
  let sum = x
  for (let n = 1; Math.abs(term) > 1e-19 * Math.abs(sum); n++) {
    term *= (-x * x) / n
    sum += term / (2 * n + 1)
  }
  return (2 / Math.sqrt(Math.PI)) * sum
}

/** 1 - erf(x), with all its digits where it is small. */
export function erfc(x: number): number {
  if (x < 0) return 2 - erfc(-x)
  if (Number.isNaN(x)) return x
  if (x < 2.5) return 1 - erfSeries(x)
  // exp(-x²) / sqrt(pi) / (x + (1/2) / (x + (2/2) / (x + (3/2) / ...)))
  let fraction = x
  for (let n = 200; n >= 1; n--) fraction = x + n / 2 / fraction
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction
}

export function silu(x: number, r: Round): number {
  return r(x / r(1 + r(Math.exp(-x))))
}

/** The plain form, x (1 + erf(x / sqrt 2)) / 2; the reference keeps the digits that 1 + erf loses below zero. */
export function gelu(x: number, r: Round): number {
  if (r === Math.fround) return r(r(x * r(1 + r(erf(r(x * Math.SQRT1_2))))) * 0.5)
  return x < 0 ? (x * erfc(-x * Math.SQRT1_2)) / 2 : (x * (1 + erf(x * Math.SQRT1_2))) / 2
}

export function geluTanh(x: number, r: Round): number {
  const u = r(Math.sqrt(2 / Math.PI) * r(x + r(0.044715 * r(r(x * x) * x))))
  if (r === Math.fround) return r(r(x * r(1 + r(Math.tanh(u)))) * 0.5)
  return x / (1 + Math.exp(-2 * u))
}
