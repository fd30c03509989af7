/**
 * The word lists that TypeScript and the native code share. Each word is stated once, here, in the order of the native
 * tables; `native.ts` compares the two when the addon loads.
 */

/** Element types of tensors. */
export const dtypes = ['f32', 'f16', 'bf16', 'i32', 'i8', 'u8', 'e4m3', 'e5m2', 'e8m0'] as const
/**
 * An element type: f32, f16, bf16 are floats, e4m3 and e5m2 are OCP FP8 codes, i32, i8 and u8 integers. e8m0, powers of two, is
 * what scales of MX formats are stored in; no op computes with it.
 */
export type DType = (typeof dtypes)[number]

/** Weight formats. */
export const formats = [
  'f32',
  'f16',
  'bf16',
  'int8',
  'int4',
  'int3',
  'int2',
  'int1',
  'ternary',
  'fp8_e4m3',
  'fp8_e5m2',
  'nf4',
  'fp4',
  'codebook4',
  'mxfp8_e4m3',
  'mxfp8_e5m2',
  'mxfp6_e2m3',
  'mxfp6_e3m2',
  'mxfp4',
  'mxint8',
  'nvfp4',
] as const
/** What the stored numbers of a weight mean; see `quantize`. */
export type Format = (typeof formats)[number]

/** How the zero points of a weight are stored: symmetric weights have none. */
export const zeroPoints = ['none', 'integer', 'float'] as const
/** See {@link zeroPoints}. */
export type ZeroPoint = (typeof zeroPoints)[number]

/** What each stored table of a weight belongs to; 'none' where the format has its own table or needs none. */
export const tables = ['none', 'tensor', 'row', 'group'] as const
/** See {@link tables}. */
export type TablePer = (typeof tables)[number]

/** Packed layouts of weights. */
export const layouts = ['rows', 'panel16', 'trits16', 'frag64'] as const
/** Where the bytes of a packed weight lie; chosen by `Device.load`. */
export type Layout = (typeof layouts)[number]

/** Activations of `linear`. */
export const activations = ['none', 'relu', 'relu2', 'gelu', 'gelu_tanh', 'silu', 'swiglu', 'geglu'] as const
/** An activation: relu2 is relu squared, gelu is exact (erf); swiglu and geglu read interleaved gate and up rows. */
export type Activation = (typeof activations)[number]

/** What a kernel may do to the activations of `linear`. */
export const computes = ['float', 'int8', 'fp8', 'fp8_unpromoted'] as const
/**
 * `float` never rounds x; the others quantise it per row on the way. `fp8_unpromoted` allows the tensor cores for fp8 to add all
 * products of a row in the few bits that they have (a few parts in a thousand of the result), where `fp8` moves every 128 to f32.
 */
export type Compute = (typeof computes)[number]

/** Score functions of `attention`. */
export const scores = ['softmax', 'sigmoid'] as const
/** How attention turns scores into weights. */
export type Score = (typeof scores)[number]

/** Formats of a paged cache of keys and values. */
export const kvFormats = ['f32', 'f16', 'bf16', 'fp8_e4m3', 'int8', 'int4'] as const
/** What a cache stores: floats, or codes with a scale (int4: and a zero) for each token and head. */
export type KvFormat = (typeof kvFormats)[number]

/** Codes of native errors, in native order ('OK' is never thrown), then those that only TypeScript throws. */
export const nativeCodes = [
  'OK',
  'ERR_TYPE',
  'ERR_SHAPE',
  'ERR_DTYPE',
  'ERR_DEVICE',
  'ERR_STRIDES',
  'ERR_ARGUMENT',
  'ERR_DISPOSED',
  'ERR_UNSUPPORTED',
  'ERR_MEMORY',
  'ERR_CUDA',
  'ERR_INTERNAL',
] as const
/** Why a device can't be used; the code of an error that `openDevice` throws and of the rows of `backends`. */
export const backendCodes = [
  'DISABLED',
  'NO_DRIVER',
  'DRIVER_TOO_OLD',
  'NO_DEVICE',
  'UNSUPPORTED_DEVICE',
  'LIBRARY_MISSING',
  'LIBRARY_MISMATCH',
  'INIT_FAILED',
] as const
/** See {@link backendCodes}. */
export type BackendCode = (typeof backendCodes)[number]
/**
 * What went wrong. ERR_TYPE: a JavaScript value of the wrong kind (a TypeError). ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_STRIDES:
 * tensors that do not belong together. ERR_ARGUMENT: a number or word out of range. ERR_DISPOSED: used after dispose.
 * ERR_UNSUPPORTED: legal, but no kernel serves it. ERR_MEMORY: out of memory. ERR_PAGES: too few pages of a
 * KV cache are free. ERR_FILE: a file that is missing, damaged or not what it claims. ERR_CONTRACT: the addon and the JavaScript do not belong to the same build. ERR_LOAD: no addon.
 */
export type ErrorCode =
  | Exclude<(typeof nativeCodes)[number], 'OK'>
  | 'ERR_PAGES'
  | 'ERR_FILE'
  | 'ERR_CONTRACT'
  | 'ERR_LOAD'
  | BackendCode
