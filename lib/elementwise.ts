import { native } from './native'
import { outputOf, type Tensor } from './tensor'

/** Options of {@link add}, {@link mul} and {@link siluMul}. */
export interface ElementwiseOptions {
  /** Receives the result, in its own dtype; may be one of the inputs. Default: a new tensor in the first input's dtype. */
  readonly out?: Tensor | undefined
}

/** Options of {@link geluMul}. */
export interface GeluMulOptions extends ElementwiseOptions {
  /** Use the tanh form of GELU in place of the exact one. Default false. */
  readonly tanh?: boolean | undefined
}

/**
 * `a + b`.
 *
 * @param a any shape; f32, f16 or bf16, contiguous last dimension, any other strides.
 * @param b the shape of a, in any of these dtypes. Leading dimensions may be missing or 1: b is then repeated along them.
 * @returns the shape of a; computed in f32 and rounded once.
 * @throws LowbitError ERR_SHAPE, ERR_DTYPE, ERR_STRIDES, ERR_DEVICE; ERR_ARGUMENT if `out` overlaps an input without
 *   being it; LowbitTypeError.
 */
export function add(a: Tensor, b: Tensor, options: ElementwiseOptions = {}): Tensor {
  const out = outputOf(options.out, 'add')
  native.add(a, b, out)
  return out
}

/**
 * `a * b`: for one, the input vector of a OneBit layer (see {@link signPlanes}) or of any scheme that scales the columns of x.
 *
 * @param a any shape; f32, f16 or bf16, contiguous last dimension, any other strides.
 * @param b the shape of a, in any of these dtypes. Leading dimensions may be missing or 1: b is then repeated along them.
 * @returns the shape of a; computed in f32 and rounded once.
 * @throws as {@link add}.
 */
export function mul(a: Tensor, b: Tensor, options: ElementwiseOptions = {}): Tensor {
  const out = outputOf(options.out, 'mul')
  native.mul(a, b, out)
  return out
}

/**
 * `silu(gate) * up` with `silu(g) = g / (1 + exp(-g))`: the middle of a SwiGLU block (Shazeer, GLU Variants Improve
 * Transformer, 2020).
 *
 * @param gate any shape; f32, f16 or bf16, contiguous last dimension, any other strides.
 * @param up the shape of gate, in any of these dtypes.
 * @returns the shape of gate; computed in f32 and rounded once. A gate of -inf gives NaN.
 * @throws as {@link add}.
 */
export function siluMul(gate: Tensor, up: Tensor, options: ElementwiseOptions = {}): Tensor {
  const out = outputOf(options.out, 'siluMul')
  native.siluMul(gate, up, out)
  return out
}

/**
 * `gelu(gate) * up`: the middle of a GEGLU block (Shazeer, 2020). `gelu(g) = g * (1 + erf(g / sqrt(2))) / 2`, or with
 * `tanh` `g * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g³))) / 2` (Hendrycks and Gimpel, 2016).
 *
 * @param gate any shape; f32, f16 or bf16, contiguous last dimension, any other strides.
 * @param up the shape of gate, in any of these dtypes.
 * @returns the shape of gate; computed in f32 and rounded once. A gate of -inf gives NaN.
 * @throws as {@link add}.
 */
export function geluMul(gate: Tensor, up: Tensor, options: GeluMulOptions = {}): Tensor {
  const out = outputOf(options.out, 'geluMul')
  native.geluMul(gate, up, options.tanh ?? false, out)
  return out
}
