/**
 * The error rule of the tests: against float64, a kernel may be off by twice what a plain loop in the same dtypes is,
 * plus two units in the last place of the output. Formulas in test/ref take a `Round`, which is applied after every
 * operation: `exact` makes the reference of them, `Math.fround` the plain loop.
 */
export type Float = 'f32' | 'f16' | 'bf16'
export const floats: readonly Float[] = ['f32', 'f16', 'bf16']

/** What an operation's result is rounded to. */
export type Round = (x: number) => number
export const exact: Round = (x) => x

const mantissaBits = { f32: 23, f16: 10, bf16: 7 }
const lowestExponent = { f32: -126, f16: -14, bf16: -126 }
const largest = { f16: 65504, bf16: (2 - 2 ** -7) * 2 ** 127 }
const double = new Float64Array(1)
const words = new Uint32Array(double.buffer)

/** The nearest number that the dtype holds. */
export function roundTo(dtype: Float, x: number): number {
  if (dtype === 'f32') return Math.fround(x)
  if (x === 0 || !Number.isFinite(x)) return x
  double[0] = x
  const exponent = (((words[1] as number) >>> 20) & 0x7ff) - 1023
  const step = 2 ** (Math.max(exponent, lowestExponent[dtype]) - mantissaBits[dtype])
  // Beyond 2^52 a float64 has no fractions, so the additions round to whole steps, ties to even.
  const rounded = (x / step + 1.5 * 2 ** 52 - 1.5 * 2 ** 52) * step
  if (rounded === 0) return x * 0
  return Math.abs(rounded) > largest[dtype] ? Math.sign(x) * Number.POSITIVE_INFINITY : rounded
}

/** The distance between neighbours of the dtype at x. */
export function ulp(dtype: Float, x: number): number {
  let exponent = Math.floor(Math.log2(Math.abs(x)))
  if (2 ** exponent > Math.abs(x)) exponent--
  return 2 ** (Math.max(exponent, lowestExponent[dtype]) - mantissaBits[dtype])
}

/**
 * Holds a kernel's row of results against the reference by the error rule. NaN and inf must be what the reference has.
 *
 * @param plain results of the plain loop, before they are rounded to the output's dtype.
 */
export function expectClose(
  got: ArrayLike<number>,
  want: readonly number[],
  plain: readonly number[],
  dtype: Float,
  label: string,
): void {
  if (got.length !== want.length) throw new Error(`${label}: ${got.length} results, expected ${want.length}`)
  let worst = 0
  for (let i = 0; i < want.length; i++) {
    const error = Math.abs(roundTo(dtype, plain[i] as number) - (want[i] as number))
    if (Number.isFinite(error)) worst = Math.max(worst, error)
  }
  for (let i = 0; i < want.length; i++) {
    const [a, b] = [got[i] as number, want[i] as number]
    if (Number.isNaN(b) ? Number.isNaN(a) : a === b) continue
    const allowed = 2 * worst + 2 * ulp(dtype, b)
    if (Math.abs(a - b) <= allowed) continue
    throw new Error(
      `${label}: [${i}] is ${a}, expected ${b} within ${allowed} (the plain loop is off by ${worst})`,
    )
  }
}

/** The same bits, NaN for NaN. */
export function expectSame(got: ArrayLike<number>, want: ArrayLike<number>, label: string): void {
  if (got.length !== want.length) throw new Error(`${label}: ${got.length} results, expected ${want.length}`)
  for (let i = 0; i < want.length; i++) {
    if (!Object.is(got[i], want[i])) throw new Error(`${label}: [${i}] is ${got[i]}, expected ${want[i]}`)
  }
}
