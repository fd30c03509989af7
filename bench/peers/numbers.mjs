// Repeatable random numbers, and how far a rival's result lies from the exact one.

/** Uniform in [-1, 1), by xorshift32. */
export function randomFloats(count, seed = 1) {
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

/** The upper half of each f32, rounded to nearest even. */
export function bf16Of(values) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length)
  return Uint16Array.from(bits, (b) => (b + 0x7fff + ((b >>> 16) & 1)) >>> 16)
}

/** The values that bf16 codes stand for. */
export function bf16Values(codes) {
  return new Float32Array(Uint32Array.from(codes, (c) => c << 16).buffer)
}

/** Bytes again and again, up to a length. */
export function repeatTo(source, length) {
  const out = new Uint8Array(length)
  for (let at = 0; at < length; at += source.length) {
    out.set(source.subarray(0, Math.min(source.length, length - at)), at)
  }
  return out
}

/**
 * The length of the difference between a result and x wᵀ, over the length of the latter: first and last row of x, all
 * columns.
 *
 * @param got value of the result at (row, column)
 * @param w some rows of the weight, which repeat down to column n
 */
export function relativeError(got, x, w, { m, n, k }) {
  const rows = w.length / k
  let off = 0
  let all = 0
  for (const i of new Set([0, m - 1])) {
    const exact = new Float64Array(rows)
    for (let j = 0; j < rows; j++) {
      let sum = 0
      for (let l = 0; l < k; l++) sum += x[i * k + l] * w[j * k + l]
      exact[j] = sum
    }
    for (let j = 0; j < n; j++) {
      off += (got(i, j) - exact[j % rows]) ** 2
      all += exact[j % rows] ** 2
    }
  }
  return Math.sqrt(off / all)
}

/** q of a case of attention, [seqQ, heads, headDim], and k and v, [kvHeads, seqKv, headDim]. */
export function attentionData({ seqQ, seqKv, headDim, heads, kvHeads }) {
  const kvCount = kvHeads * seqKv * headDim
  return {
    q: randomFloats(seqQ * heads * headDim, 13),
    k: randomFloats(kvCount, 11),
    v: randomFloats(kvCount, 17),
  }
}

/**
 * As relativeError, of causal attention: first and last query, first and last head.
 *
 * @param got value of the result at (query, head, dimension)
 */
export function attentionError(got, { q, k, v }, { seqQ, seqKv, headDim, heads, kvHeads }) {
  let off = 0
  let all = 0
  for (const i of new Set([0, seqQ - 1])) {
    for (const h of new Set([0, heads - 1])) {
      const base = Math.floor((h * kvHeads) / heads) * seqKv
      const keys = seqKv - seqQ + i + 1
      const scores = Float64Array.from({ length: keys }, (_, j) => {
        let sum = 0
        for (let d = 0; d < headDim; d++)
          sum += q[(i * heads + h) * headDim + d] * k[(base + j) * headDim + d]
        return sum / Math.sqrt(headDim)
      })
      const most = scores.reduce((a, b) => Math.max(a, b))
      const weights = scores.map((s) => Math.exp(s - most))
      const total = weights.reduce((a, b) => a + b)
      for (let d = 0; d < headDim; d++) {
        let exact = 0
        for (let j = 0; j < keys; j++) exact += weights[j] * v[(base + j) * headDim + d]
        exact /= total
        off += (got(i, h, d) - exact) ** 2
        all += exact ** 2
      }
    }
  }
  return Math.sqrt(off / all)
}
