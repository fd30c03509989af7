/**
 * Attention from its formula: all scores of a row, their softmax or sigmoid, the weighted sum of values. Sequences end to
 * end, as in the packed form; the batched form is the same numbers with every sequence equally long.
 */
import { createHash } from 'node:crypto'
import { exact, expectClose, type Float, type Round, roundTo } from './compare'
import { decodeFloat, encodeFloat, minifloats } from './floats'
import { fp8Run } from './linear'

const { exp, log, max: larger, sqrt, tanh } = Math
const { NEGATIVE_INFINITY: minusInf } = Number

/** Where a sequence stands: its first token among those of q and of k, and its lengths. */
export interface RefSequence {
  readonly q0: number
  readonly kv0: number
  readonly seqQ: number
  readonly seqKv: number
}

export interface RefAttention {
  /** [tokensQ, heads, headDim], [tokensKv, kvHeads, headDim], [tokensKv, kvHeads, headDimV] */
  readonly q: readonly number[]
  readonly k: readonly number[]
  readonly v: readonly number[]
  readonly sequences: readonly RefSequence[]
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly headDimV: number
  readonly causal?: boolean
  /** -1: no limit. */
  readonly windowLeft?: number
  readonly windowRight?: number
  readonly softcap?: number
  readonly alibiSlopes?: readonly number[] | undefined
  readonly sinks?: readonly number[] | undefined
  /** What is added to the score of query i and key j of a sequence. */
  readonly bias?: ((sequence: number, i: number, h: number, j: number) => number) | undefined
  readonly softmaxScale?: number | undefined
  readonly sigmoid?: boolean
  /** What q and k are made of, where they are codes: rows of headDim, and what a row of q times one of k is scaled by. */
  readonly codes?: RefCodes
}

export interface RefCodes {
  readonly q: Float32Array
  readonly k: Float32Array
  readonly scale: (qRow: number, kRow: number) => number
}

/** Whether the query at `position` sees key j. */
export function sees(a: RefAttention, position: number, j: number): boolean {
  const { causal = false, windowLeft = -1, windowRight = -1 } = a
  if (causal && j > position) return false
  if (windowLeft >= 0 && j < position - windowLeft) return false
  return !(windowRight >= 0 && j > position + windowRight)
}

/**
 * @param r what is rounded after every operation
 * @param backwards add up from the end: another plain loop, with another error
 * @param weight what a weight is rounded to before it meets its value; the weights' sum is of what is left of them then
 * @param fp8Sums products of codes are added as the tensor cores for fp8 do it
 * @returns out [tokensQ, heads, headDimV] and lse [tokensQ, heads]; zeros where no sequence has a token
 */
export function refAttention(
  a: RefAttention,
  r: Round,
  backwards = false,
  weight: Round = r,
  fp8Sums = false,
): { out: number[]; lse: number[] } {
  const { q, heads, kvHeads, headDim, headDimV, alibiSlopes, sinks, bias, softcap = 0, sigmoid = false } = a
  const [k, v] = [a.k.map(r), a.v.map(r)]
  const tokens = a.sequences.reduce((most, s) => larger(most, s.q0 + s.seqQ), 0)
  const out = new Array<number>(tokens * heads * headDimV).fill(0)
  const lse = new Array<number>(tokens * heads).fill(0)
  const scale = a.softmaxScale ?? r(1 / sqrt(headDim))
  const order = (n: number) => Array.from({ length: n }, (_, i) => (backwards ? n - 1 - i : i))
  const dims = order(headDim)
  for (const [b, { q0, kv0, seqQ, seqKv }] of a.sequences.entries()) {
    for (let i = 0; i < seqQ; i++) {
      const position = i + seqKv - seqQ
      const keys = order(seqKv).filter((j) => sees(a, position, j))
      for (let h = 0; h < heads; h++) {
        const kvHead = Math.floor(h / (heads / kvHeads))
        const row = (q0 + i) * heads + h
        const sink = sinks?.[h] ?? minusInf
        const scores = keys.map((j) => {
          let dot = 0
          for (const d of fp8Sums ? [] : dims) {
            const x = q[row * headDim + d] as number
            const y = k[((kv0 + j) * kvHeads + kvHead) * headDim + d] as number
            dot = r(dot + r(x * y))
          }
          if (fp8Sums && a.codes !== undefined) {
            const at = (kv0 + j) * kvHeads + kvHead
            for (let d = 0; d < headDim; d += 128) {
              const run = fp8Run(
                a.codes.q,
                a.codes.k,
                row * headDim + d,
                at * headDim + d,
                Math.min(128, headDim - d),
              )
              dot = r(dot + r(run * a.codes.scale(row, at)))
            }
          }
          let s = r(scale * dot)
          if (softcap > 0) s = r(softcap * r(tanh(r(s / softcap))))
          if (alibiSlopes !== undefined) s = r(s + r((alibiSlopes[h] as number) * (j - position)))
          if (bias !== undefined) s = r(s + bias(b, i, h, j))
          return s
        })
        if (keys.length === 0) {
          lse[row] = sink
          continue
        }
        const top = scores.reduce((x, y) => larger(x, y), sink)
        const shift = top === minusInf ? 0 : top
        const p = scores.map((s) => (sigmoid ? r(1 / r(1 + r(exp(-s)))) : r(exp(r(s - shift)))))
        const own = sink === minusInf ? 0 : r(exp(r(sink - shift)))
        const sum = p.reduce((x, y) => r(x + y), own)
        const weights = p.map(weight)
        const total = weights.reduce((x, y) => r(x + y), own)
        for (let d = 0; d < headDimV; d++) {
          let o = 0
          for (const [n, j] of keys.entries()) {
            const x = v[((kv0 + j) * kvHeads + kvHead) * headDimV + d] as number
            o = r(o + r((weights[n] as number) * x))
          }
          out[row * headDimV + d] = sigmoid ? o : r(o / total)
        }
        lse[row] = r(shift + r(log(sum)))
      }
    }
  }
  return { out, lse }
}

type Result = ReturnType<typeof refAttention>
const known = new Map<string, Result>()

/** refAttention by name of the roundings, once for the same call: rows are walked over the same calls one after the other. */
function remembering(call: RefAttention) {
  const { q, k, v, sequences, heads, kvHeads, headDim, headDimV, alibiSlopes, sinks, bias, ...rest } = call
  const { causal, windowLeft, windowRight, softcap, softmaxScale, sigmoid } = rest
  const hash = createHash('sha1')
  hash.update(JSON.stringify([sequences, heads, kvHeads, headDim, headDimV, alibiSlopes, sinks]))
  hash.update(JSON.stringify([causal, windowLeft, windowRight, softcap, softmaxScale, sigmoid]))
  for (const part of [q, k, v]) hash.update(Float64Array.from(part))
  const key = hash.digest('base64')
  const rounding = (name: Float | 'f64' | 'e4m3'): Round => {
    if (name === 'e4m3')
      return (x) => decodeFloat(minifloats.e4m3, encodeFloat(minifloats.e4m3, x * 256)) / 256
    if (name === 'f64') return exact
    return name === 'f32' ? Math.fround : (x) => roundTo(name, x)
  }
  return (dtype: Float | 'f64', backwards = false, weight: Float | 'f64' | 'e4m3' = dtype): Result => {
    const name = `${key} ${dtype} ${backwards} ${weight}`
    const found =
      (bias === undefined && known.get(name)) ||
      refAttention(call, rounding(dtype), backwards, rounding(weight), weight === 'e4m3')
    if (bias === undefined) known.set(name, found) // a function: nothing tells two of them apart
    return found
  }
}

/** Holds the results of a row of the registry against the reference by the error rule. */
export function expectAttention(
  row: string,
  call: RefAttention,
  got: { readonly out: number[]; readonly lse?: number[] | undefined },
  outDtype: Float,
  label: string,
): void {
  const reference = remembering(call)
  const want = reference('f64')
  // A row of products of some dtype has its weights in it, as a plain loop in it has.
  const dtype = row.includes('_fp8_')
    ? 'e4m3'
    : (['bf16', 'f16'] as const).find((name) => row.includes(`_${name}_`))
  const forwards = reference('f32', false, dtype)
  const backwards = reference('f32', true, dtype)
  // A plain loop adds in some order; of two, the one that is worse at each place.
  const worse = (a: number[], b: number[], w: number[]) =>
    w.map((x, i) => {
      const [p, q] = [a[i] as number, b[i] as number]
      return Math.abs(p - x) > Math.abs(q - x) ? p : q
    })
  expectClose(got.out, want.out, worse(forwards.out, backwards.out, want.out), outDtype, `${label} out`)
  if (call.sigmoid || got.lse === undefined) return
  expectClose(got.lse, want.lse, worse(forwards.lse, backwards.lse, want.lse), 'f32', `${label} lse`)
}
