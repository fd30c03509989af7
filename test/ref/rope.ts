/** Rotary position embedding of one head, from its formula. */
import type { Round } from './compare'

/** @param cos cosines of the rotaryDim / 2 angles of the token's position; sin their sines. */
export function ropeHead(
  x: readonly number[],
  cos: readonly number[],
  sin: readonly number[],
  pairing: 'half' | 'interleaved',
  r: Round,
): number[] {
  const out = [...x]
  for (let i = 0; i < cos.length; i++) {
    const [a, b] = pairing === 'half' ? [i, i + cos.length] : [2 * i, 2 * i + 1]
    const [x1, x2, c, s] = [x[a], x[b], cos[i], sin[i]] as [number, number, number, number]
    out[a] = r(r(x1 * c) - r(x2 * s))
    out[b] = r(r(x2 * c) + r(x1 * s))
  }
  return out
}
