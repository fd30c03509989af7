/**
 * A paged cache of keys and values from its definition: what each format makes of a row of numbers, and which numbers
 * each slot holds. Written from the formulas, not from csrc.
 */
import type { KvFormat } from 'lowbit'
import { roundTo } from './compare'
import { decodeFloat, encodeFloat, minifloats } from './floats'

const { abs, max, min } = Math
const { fround } = Math
const { isFinite: finite, NaN: nan } = Number

/** To the nearest whole number, halves to even. */
function whole(x: number): number {
  const floor = Math.floor(x)
  const rest = x - floor
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1
  return floor % 2 === 0 ? floor : floor + 1
}

/** One token's row of one head as it is stored: `values` as exact as scale, zero and code are. */
export interface StoredRow {
  readonly values: readonly number[]
  readonly codes: readonly number[]
  readonly scale: number
  readonly zero: number
}

/** @param x numbers that float32 holds. */
export function refEncode(format: KvFormat, x: readonly number[]): StoredRow {
  if (format === 'f32' || format === 'f16' || format === 'bf16')
    return { values: x.map((y) => roundTo(format, y)), codes: [], scale: 1, zero: 0 }
  if (!x.every(finite)) return { values: x.map(() => nan), codes: x.map(() => 0), scale: nan, zero: 0 }
  const low = x.reduce((a, b) => min(a, b), 0)
  const high = x.reduce((a, b) => max(a, b), 0)
  const largest = max(-low, high)
  const wanted =
    format === 'int4'
      ? fround(fround(high - low) / 15)
      : format === 'int8'
        ? fround(largest / 127)
        : fround(largest / 448)
  const scale = max(roundTo('f16', min(wanted, 65504)), 2 ** -24)
  const inverse = fround(1 / scale)
  const zero = format === 'int4' ? roundTo('f16', min(fround(-low / scale), 15)) : 0
  const clamp = (y: number, least: number, most: number) => max(least, min(most, y))
  const codes = x.map((y) => {
    if (format === 'int4') return whole(clamp(fround(y * inverse + zero), 0, 15))
    if (format === 'int8') return whole(clamp(fround(y * inverse), -127, 127))
    return encodeFloat(minifloats.e4m3, fround(y * inverse))
  })
  const values = codes.map((code) =>
    format === 'fp8_e4m3' ? scale * decodeFloat(minifloats.e4m3, code) : scale * (code - zero),
  )
  return { values, codes, scale, zero }
}

/** RoPE of a key on its way into a cache: one rounding for a product and a sum, as fma has it. */
export function refTurn(
  x: readonly number[],
  cos: readonly number[],
  sin: readonly number[],
  pairing: 'half' | 'interleaved',
): number[] {
  const out = [...x]
  for (let i = 0; i < cos.length; i++) {
    const [a, b] = pairing === 'half' ? [i, i + cos.length] : [2 * i, 2 * i + 1]
    const [x1, x2, c, s] = [x[a], x[b], cos[i], sin[i]] as [number, number, number, number]
    out[a] = fround(x1 * c - fround(x2 * s))
    out[b] = fround(x2 * c + fround(x1 * s))
  }
  return out
}

/** What stands in the slots: for each head a row of K and one of V. */
export class RefCache {
  readonly #slots = new Map<number, { k: StoredRow[]; v: StoredRow[] }>()
  constructor(
    readonly format: KvFormat,
    readonly prefixFormat: KvFormat,
    readonly pages: number,
    readonly pageSize: number,
    readonly kvHeads: number,
  ) {}

  formatOf(slot: number): KvFormat {
    return slot < this.pages * this.pageSize ? this.format : this.prefixFormat
  }
  /** @param k [kvHeads][headDim] */
  write(slot: number, k: readonly (readonly number[])[], v: readonly (readonly number[])[]): void {
    const format = this.formatOf(slot)
    const rows = (x: readonly (readonly number[])[]) => x.map((row) => refEncode(format, row))
    this.#slots.set(slot, { k: rows(k), v: rows(v) })
  }
  copyPage(from: number, to: number): void {
    for (let t = 0; t < this.pageSize; t++) this.copySlot(from * this.pageSize + t, to * this.pageSize + t)
  }
  copySlot(from: number, to: number): void {
    const row = this.#slots.get(from)
    if (row !== undefined) this.#slots.set(to, row)
    else this.#slots.delete(to)
  }
  has(slot: number): boolean {
    return this.#slots.has(slot)
  }
  /** The values of all heads, one after the other. */
  k(slot: number): number[] {
    return (this.#slots.get(slot)?.k ?? []).flatMap(({ values }) => values)
  }
  v(slot: number): number[] {
    return (this.#slots.get(slot)?.v ?? []).flatMap(({ values }) => values)
  }
}

/** The largest step between neighbouring values of a row, for bounds on what quantising costs. */
export const stepOf = (format: KvFormat, x: readonly number[]): number => {
  const largest = x.reduce((a, b) => max(a, abs(b)), 0)
  const span = x.reduce((a, b) => max(a, b), 0) - x.reduce((a, b) => min(a, b), 0)
  if (format === 'int4') return span / 15
  if (format === 'int8') return largest / 127
  if (format === 'fp8_e4m3') return largest / 14
  return largest * (format === 'f16' ? 2 ** -10 : format === 'bf16' ? 2 ** -7 : 2 ** -23)
}
