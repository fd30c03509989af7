/** Formats as the tests of quantize go over them, and what a scheme of each needs. */
import type { Format } from 'lowbit'
import { formats } from 'lowbit/words'

const isFloat = (format: Format) => format === 'f32' || format === 'f16' || format === 'bf16'
export const scaled = formats.filter((format) => !isFloat(format))
/** A table of which one number stands twice, and both zeros. */
export const codebook = Float32Array.from([
  0.3, -1, -0.4, 0, 0.3, 2, 1.5, -0.1, 0.1, -2, 0.05, 1, -0, 0.7, 0.5, -1.5,
])
/** What the scheme of a format needs besides its name. */
export const needs = (format: Format) => (format === 'codebook4' ? { table: codebook } : {})
