// The tables of rotary position embedding. Su et al., RoFormer, 2021. A pair of dimensions i turns by
// position * frequency[i]; the scaling rules only change the frequencies, and YaRN the length of what is turned.

import type { LlamaConfig } from './config'

type RopeFields = Pick<LlamaConfig, 'headDim' | 'ropeTheta' | 'ropeScaling'>

/** Radians per position for each of the headDim / 2 pairs, in float64. */
export function ropeFrequencies({ headDim, ropeTheta, ropeScaling }: RopeFields): Float64Array {
  const out = new Float64Array(headDim / 2)
  for (let i = 0; i < out.length; i++) out[i] = ropeTheta ** ((-2 * i) / headDim)
  switch (ropeScaling.type) {
    case 'default':
      return out
    case 'linear':
      return out.map((f) => f / ropeScaling.factor)
    case 'llama3': {
      const { factor, lowFreqFactor, highFreqFactor, originalPositions } = ropeScaling
      return out.map((f) => {
        const turns = (originalPositions * f) / (2 * Math.PI)
        const kept = Math.min(1, Math.max(0, (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor)))
        return (1 - kept) * (f / factor) + kept * f
      })
    }
    case 'yarn': {
      const { factor, betaFast, betaSlow, truncate, originalPositions } = ropeScaling
      // The pair that turns `turns` times within the original context, as a fractional index.
      const pairOf = (turns: number) =>
        (headDim * Math.log(originalPositions / (turns * 2 * Math.PI))) / (2 * Math.log(ropeTheta))
      let low = pairOf(betaFast)
      let high = pairOf(betaSlow)
      if (truncate) {
        low = Math.floor(low)
        high = Math.ceil(high)
      }
      low = Math.max(low, 0)
      high = Math.min(high, headDim - 1)
      if (low === high) high += 0.001
      return out.map((f, i) => {
        const interpolated = Math.min(1, Math.max(0, (i - low) / (high - low)))
        return (f / factor) * interpolated + f * (1 - interpolated)
      })
    }
  }
}

/**
 * cos and sin of the first `positions` positions, each [positions, headDim / 2] in f32, rounded once from float64.
 */
export function ropeTables(config: RopeFields, positions: number): { cos: Float32Array; sin: Float32Array } {
  const frequencies = ropeFrequencies(config)
  const scale = config.ropeScaling.type === 'yarn' ? config.ropeScaling.attentionFactor : 1
  const half = frequencies.length
  const cos = new Float32Array(positions * half)
  const sin = new Float32Array(positions * half)
  for (let p = 0; p < positions; p++) {
    for (let i = 0; i < half; i++) {
      const angle = p * (frequencies[i] ?? 0)
      cos[p * half + i] = Math.cos(angle) * scale
      sin[p * half + i] = Math.sin(angle) * scale
    }
  }
  return { cos, sin }
}
