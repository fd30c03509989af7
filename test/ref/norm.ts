/** rmsNorm and layerNorm of one row, from their formulas. */
import type { Round } from './compare'

/** u / sqrt(mean(u²) + eps) * weight */
export function rmsNormRow(u: readonly number[], weight: readonly number[], eps: number, r: Round): number[] {
  let squares = 0
  for (const v of u) squares = r(squares + r(v * v))
  const scale = r(1 / r(Math.sqrt(r(r(squares / u.length) + eps))))
  return u.map((v, i) => r(r(v * scale) * (weight[i] as number)))
}

/** (u - mean(u)) / sqrt(mean((u - mean(u))²) + eps) * weight + bias */
export function layerNormRow(
  u: readonly number[],
  weight: readonly number[],
  bias: readonly number[],
  eps: number,
  r: Round,
): number[] {
  let sum = 0
  for (const v of u) sum = r(sum + v)
  const mean = r(sum / u.length)
  let squares = 0
  for (const v of u) {
    const d = r(v - mean)
    squares = r(squares + r(d * d))
  }
  const scale = r(1 / r(Math.sqrt(r(r(squares / u.length) + eps))))
  return u.map((v, i) => r(r(r(r(v - mean) * scale) * (weight[i] as number)) + (bias[i] as number)))
}
