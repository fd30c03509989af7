/**
 * The small floating types, from their definition: a sign, `exponentBits` of exponent with a bias, `mantissaBits` of
 * fraction; exponent 0 holds the subnormals. Slow and plain; independent of csrc.
 */

// jest runs tests in a context whose globals are looked up slowly.
const { abs } = Math
const { is } = Object
const { isNaN: isNan } = Number
const [inf, nan] = [Number.POSITIVE_INFINITY, Number.NaN]

/** A binary floating type of at most 16 bits. */
export interface Minifloat {
  readonly exponentBits: number
  readonly mantissaBits: number
  readonly bias: number
  /**
   * ieee: the highest exponent holds inf and NaN. ocp: only the very last code is NaN, there is no inf (e4m3). none: every
   * code is a number.
   */
  readonly special: 'ieee' | 'ocp' | 'none'
  /** What a number beyond the largest becomes. */
  readonly overflow: 'inf' | 'saturate'
}

export const minifloats = {
  f16: { exponentBits: 5, mantissaBits: 10, bias: 15, special: 'ieee', overflow: 'inf' },
  bf16: { exponentBits: 8, mantissaBits: 7, bias: 127, special: 'ieee', overflow: 'inf' },
  e4m3: { exponentBits: 4, mantissaBits: 3, bias: 7, special: 'ocp', overflow: 'saturate' },
  e5m2: { exponentBits: 5, mantissaBits: 2, bias: 15, special: 'ieee', overflow: 'saturate' },
  e2m3: { exponentBits: 2, mantissaBits: 3, bias: 1, special: 'none', overflow: 'saturate' },
  e3m2: { exponentBits: 3, mantissaBits: 2, bias: 3, special: 'none', overflow: 'saturate' },
  e2m1: { exponentBits: 2, mantissaBits: 1, bias: 1, special: 'none', overflow: 'saturate' },
} as const satisfies Record<string, Minifloat>

function plainValue(type: Minifloat, code: number): number {
  const { exponentBits, mantissaBits, bias, special } = type
  const sign = code >> (exponentBits + mantissaBits) ? -1 : 1
  const exponent = (code >> mantissaBits) & (2 ** exponentBits - 1)
  const mantissa = code & (2 ** mantissaBits - 1)
  if (special === 'ieee' && exponent === 2 ** exponentBits - 1) return mantissa === 0 ? sign * inf : nan
  if (special === 'ocp' && exponent === 2 ** exponentBits - 1 && mantissa === 2 ** mantissaBits - 1)
    return nan
  if (exponent === 0) return sign * mantissa * 2 ** (1 - bias - mantissaBits)
  return sign * (1 + mantissa / 2 ** mantissaBits) * 2 ** (exponent - bias)
}

const decoded = new Map<Minifloat, Float64Array>()

/** The value of a code; exact, since each of these types is a subset of float64. */
export function decodeFloat(type: Minifloat, code: number): number {
  let table = decoded.get(type)
  if (table === undefined) {
    const codes = 2 ** (1 + type.exponentBits + type.mantissaBits)
    table = Float64Array.from({ length: codes }, (_, i) => plainValue(type, i))
    decoded.set(type, table)
  }
  return table[code] as number
}

const tables = new Map<Minifloat, number[]>()

/** The finite values that are not negative, ascending: position = code. */
export function finiteValues(type: Minifloat): number[] {
  let table = tables.get(type)
  if (table === undefined) {
    table = []
    const signBit = 1 << (type.exponentBits + type.mantissaBits)
    for (let code = 0; code < signBit && Number.isFinite(decodeFloat(type, code)); code++)
      table.push(decodeFloat(type, code))
    tables.set(type, table)
  }
  return table
}

/** E8M0: powers of two, 0xff is NaN. */
export const decodeE8m0 = (code: number): number => (code === 255 ? nan : 2 ** (code - 127))

/** The code nearest to a float64, ties to the even code. NaN becomes the type's NaN with all mantissa bits or quiet. */
export function encodeFloat(type: Minifloat, value: number): number {
  const signBit = 1 << (type.exponentBits + type.mantissaBits)
  const sign = value < 0 || is(value, -0) ? signBit : 0
  if (isNan(value)) return sign | (signBit - 1)
  const magnitude = abs(value)
  const table = finiteValues(type)
  const last = table.length - 1
  const largest = table[last] as number
  if (magnitude >= largest) {
    const half = (largest - (table[last - 1] as number)) / 2
    return sign | (type.overflow === 'inf' && magnitude >= largest + half ? last + 1 : last)
  }
  let lo = 0
  let hi = last
  while (hi - lo > 1) {
    const mid = (lo + hi) >> 1
    if ((table[mid] as number) <= magnitude) lo = mid
    else hi = mid
  }
  const below = magnitude - (table[lo] as number)
  const above = (table[hi] as number) - magnitude
  const up = above < below || (above === below && hi % 2 === 0)
  return sign | (up ? hi : lo)
}
