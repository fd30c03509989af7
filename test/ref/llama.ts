// A Llama decoder in float64, written from the formulas with plain loops: the oracle of lib/llama. Weights are rounded
// the way models/simulate.py states it, in float32, so that the codes are the same; all other arithmetic is float64.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseSafetensors, type SafetensorsTensor } from 'lowbit'

export interface RefConfig {
  vocab_size: number
  hidden_size: number
  intermediate_size: number
  num_hidden_layers: number
  num_attention_heads: number
  num_key_value_heads: number
  head_dim: number
  rms_norm_eps: number
  rope_theta: number
}

/** Rounds the weights [n, k] of a decoder block's linear layer in place. */
export type WeightRounding = (w: Float64Array, n: number, k: number) => void
/** Rounds one input row of such a layer in place. */
export type RowRounding = (x: Float64Array) => void

// jest runs tests in a context whose globals are looked up slowly: Math in a loop over weights costs seconds.
const { abs, cos, exp, floor, fround: f, log, log2, max, min, sin, sqrt } = Math

/** To the nearest integer, ties to even, for |x| < 2^51: above 2^52 float64 has integers only. */
function roundEven(x: number): number {
  return x + 6755399441055744 - 6755399441055744
}

function clamp(x: number, low: number, high: number): number {
  return min(high, max(low, x))
}

function largest(w: Float64Array): number {
  let most = 0
  for (const x of w) most = max(most, abs(x))
  return most
}

/** Nearest E4M3 value of |x| <= 448: three bits of fraction, exponents from -6, below that steps of 2^-9. */
function e4m3(x: number): number {
  if (x === 0) return x
  const step = 2 ** (max(floor(log2(abs(x))), -6) - 3)
  return clamp(roundEven(x / step) * step, -448, 448)
}

function perRow(round: (row: Float64Array) => void): WeightRounding {
  return (w, n, k) => {
    for (let r = 0; r < n; r++) round(w.subarray(r * k, (r + 1) * k))
  }
}

function affine(bits: number, group: number): WeightRounding {
  const top = 2 ** bits - 1
  return (w) => {
    for (let g = 0; g < w.length; g += group) {
      const v = w.subarray(g, g + group)
      let low = 0
      let high = 0
      for (const x of v) {
        low = min(low, x)
        high = max(high, x)
      }
      const s = max(f(f(high - low) / top), f(1e-12))
      const zero = roundEven(f(-low / s))
      for (let i = 0; i < group; i++) v[i] = (clamp(roundEven(f((v[i] ?? 0) / s)) + zero, 0, top) - zero) * s
    }
  }
}

function int8Row(v: Float64Array): void {
  const s = f(largest(v) / 127)
  for (let i = 0; i < v.length; i++) v[i] = clamp(roundEven(f((v[i] ?? 0) / s)), -127, 127) * s
}

function fp8Row(v: Float64Array): void {
  const s = f(largest(v) / 448)
  for (let i = 0; i < v.length; i++) v[i] = e4m3(f((v[i] ?? 0) / s)) * s
}

function ternaryRow(v: Float64Array): void {
  const s = f(v.reduce((sum, x) => sum + abs(x), 0) / v.length)
  for (let i = 0; i < v.length; i++) v[i] = clamp(roundEven(f((v[i] ?? 0) / s)), -1, 1) * s
}

/** The schemes of simulate.py by the names of expected.json. */
export const refSchemes: Readonly<Record<string, { weights?: WeightRounding; rows?: RowRounding }>> = {
  f32: {},
  int8: { weights: perRow(int8Row) },
  'int8-a8': { weights: perRow(int8Row), rows: int8Row },
  fp8_e4m3: { weights: perRow(fp8Row) },
  'int4-g32': { weights: affine(4, 32) },
  'int4-g64': { weights: affine(4, 64) },
  'int4-g128': { weights: affine(4, 128) },
  'int4-g64-a8': { weights: affine(4, 64), rows: int8Row },
  'int3-g64': { weights: affine(3, 64) },
  'int2-g64': { weights: affine(2, 64) },
  ternary: { weights: perRow(ternaryRow) },
}

interface Matrix {
  n: number
  k: number
  w: Float64Array
}

function floats({ dtype, data }: SafetensorsTensor): Float64Array {
  if (dtype === 'F32') return Float64Array.from(data as Float32Array)
  if (dtype !== 'BF16') throw new Error(`no reader for ${dtype}`)
  const bits = Uint32Array.from(data as Uint16Array, (x) => x << 16)
  return Float64Array.from(new Float32Array(bits.buffer))
}

const known = new Map<string, ReadonlyMap<string, Matrix>>()

// Each folder is read once: the schemes share what they don't round.
function readTensors(folder: string): ReadonlyMap<string, Matrix> {
  const before = known.get(folder)
  if (before !== undefined) return before
  const out = new Map<string, Matrix>()
  for (const file of readdirSync(folder).filter((entry) => /^model.*\.safetensors$/.test(entry))) {
    for (const [name, tensor] of parseSafetensors(readFileSync(join(folder, file))).tensors) {
      out.set(name, { n: tensor.shape[0] ?? 1, k: tensor.shape[1] ?? 1, w: floats(tensor) })
    }
  }
  known.set(folder, out)
  return out
}

export class RefLlama {
  readonly config: RefConfig
  private readonly tensors = new Map<string, Matrix>()
  private readonly rows: RowRounding | undefined
  /** Radians per position of pair i; replaced where a test scales them. */
  frequency = (i: number): number => this.config.rope_theta ** ((-2 * i) / this.config.head_dim)

  /** Reads a folder with config.json and model*.safetensors and rounds the blocks' linear layers. */
  constructor(folder: string, scheme: string) {
    const rounding = refSchemes[scheme]
    if (rounding === undefined) throw new Error(`no scheme ${scheme}`)
    const json = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as RefConfig & {
      rope_parameters: { rope_theta: number }
    }
    this.config = { ...json, rope_theta: json.rope_parameters.rope_theta }
    this.rows = rounding.rows
    for (const [name, { n, k, w }] of readTensors(folder)) {
      const round = name.endsWith('_proj.weight') ? rounding.weights : undefined
      const rounded = round === undefined ? w : w.slice()
      round?.(rounded, n, k)
      this.tensors.set(name, { n, k, w: rounded })
    }
  }

  private tensor(name: string): Matrix {
    const found = this.tensors.get(name)
    if (found === undefined) throw new Error(`no tensor ${name}`)
    return found
  }

  private linear(x: Float64Array[], name: string, rows?: RowRounding): Float64Array[] {
    const { n, k, w } = this.tensor(`${name}.weight`)
    const bias = this.tensors.get(`${name}.bias`)?.w
    return x.map((input) => {
      const row = input.slice()
      rows?.(row)
      const out = new Float64Array(n)
      for (let i = 0; i < n; i++) {
        let sum = bias?.[i] ?? 0
        for (let j = 0; j < k; j++) sum += (row[j] as number) * (w[i * k + j] as number)
        out[i] = sum
      }
      return out
    })
  }

  private norm(x: Float64Array[], name: string): Float64Array[] {
    const { w } = this.tensor(`${name}.weight`)
    return x.map((row) => {
      const mean = row.reduce((sum, v) => sum + v * v, 0) / row.length
      return row.map((v, i) => (v / sqrt(mean + this.config.rms_norm_eps)) * (w[i] ?? 0))
    })
  }

  /** Turns each head of row `position` in place: pair i is (i, i + head_dim / 2). */
  private rope(row: Float64Array, position: number): void {
    const { head_dim: d } = this.config
    for (let h = 0; h < row.length; h += d) {
      for (let i = 0; i < d / 2; i++) {
        const angle = position * this.frequency(i)
        const a = row[h + i] ?? 0
        const b = row[h + i + d / 2] ?? 0
        row[h + i] = a * cos(angle) - b * sin(angle)
        row[h + i + d / 2] = b * cos(angle) + a * sin(angle)
      }
    }
  }

  private attention(q: Float64Array[], k: Float64Array[], v: Float64Array[]): Float64Array[] {
    const { num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: d } = this.config
    return q.map((qRow, i) => {
      const out = new Float64Array(heads * d)
      for (let h = 0; h < heads; h++) {
        const kv = floor(h / (heads / kvHeads)) * d
        const scores = k.slice(0, i + 1).map((kRow) => {
          let sum = 0
          for (let c = 0; c < d; c++) sum += (qRow[h * d + c] ?? 0) * (kRow[kv + c] ?? 0)
          return sum / sqrt(d)
        })
        const most = max(...scores)
        const weights = scores.map((s) => exp(s - most))
        const total = weights.reduce((a, b) => a + b, 0)
        for (const [j, weight] of weights.entries()) {
          for (let c = 0; c < d; c++) {
            out[h * d + c] = (out[h * d + c] ?? 0) + (weight / total) * (v[j]?.[kv + c] ?? 0)
          }
        }
      }
      return out
    })
  }

  /** Logits after each token: [tokens.length][vocab_size]. */
  logits(tokens: readonly number[]): Float64Array[] {
    const { hidden_size } = this.config
    const embedding = this.tensor('model.embed_tokens.weight').w
    const add = (a: Float64Array[], b: Float64Array[]) =>
      a.map((row, i) => row.map((v, c) => v + (b[i]?.[c] ?? 0)))
    let x = tokens.map((token) => embedding.slice(token * hidden_size, (token + 1) * hidden_size))
    for (let l = 0; l < this.config.num_hidden_layers; l++) {
      const name = (part: string) => `model.layers.${l}.${part}`
      const a = this.norm(x, name('input_layernorm'))
      const q = this.linear(a, name('self_attn.q_proj'), this.rows)
      const k = this.linear(a, name('self_attn.k_proj'), this.rows)
      const v = this.linear(a, name('self_attn.v_proj'), this.rows)
      for (const [position, row] of q.entries()) this.rope(row, position)
      for (const [position, row] of k.entries()) this.rope(row, position)
      x = add(x, this.linear(this.attention(q, k, v), name('self_attn.o_proj'), this.rows))
      const m = this.norm(x, name('post_attention_layernorm'))
      const gate = this.linear(m, name('mlp.gate_proj'), this.rows)
      const up = this.linear(m, name('mlp.up_proj'), this.rows)
      const h = gate.map((row, i) => row.map((g, c) => (g / (1 + exp(-g))) * (up[i]?.[c] ?? 0)))
      x = add(x, this.linear(h, name('mlp.down_proj'), this.rows))
    }
    const head = this.tensors.has('lm_head.weight') ? 'lm_head' : 'model.embed_tokens'
    return this.linear(this.norm(x, 'model.norm'), head)
  }
}

/** exp of the mean negative log-likelihood of tokens[1..] under the logits after the tokens before them. */
export function refPerplexity(logits: readonly Float64Array[], tokens: readonly number[]): number {
  let nll = 0
  for (let i = 0; i + 1 < tokens.length; i++) {
    const row = logits[i] ?? new Float64Array(0)
    const most = row.reduce((a, b) => max(a, b))
    const sum = row.reduce((total, v) => total + exp(v - most), 0)
    nll += most + log(sum) - (row[tokens[i + 1] ?? 0] ?? 0)
  }
  return exp(nll / (tokens.length - 1))
}
