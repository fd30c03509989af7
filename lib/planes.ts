/**
 * int1 weights from planes that were found elsewhere: the forms in which papers on binary weights give them. What
 * {@link quantize} makes of float weights needs none of this.
 *
 * | paper | form of W | here |
 * |---|---|---|
 * | OneBit (Xu et al. 2024) | h ⊙ S ⊙ gᵀ | {@link signPlanes} of one plane, a scale h a row; x is `mul(x, g)` |
 * | BinaryDM (Zheng et al. 2024) | σ1 B1 + σ2 B2 | {@link signPlanes} of two planes |
 * | DB-LLM (Chen et al. 2024) | α1 B1 + α2 B2, bits of 0 and 1 | {@link bitPlanes} |
 * | BitStack (Wang et al. 2024) | Σ Sᵢ ⊙ (Uᵢ Vᵢᵀ) | {@link lowRankTerms}, exactly; {@link lowRankPlanes}, one scale a group |
 */
import { kindOf, LowbitError, LowbitTypeError } from './errors'
import { canonical, type GroupSize, type QuantizedWeight, quantize } from './quantize'

/** One plane of an int1 weight [N, K]. */
export interface Plane {
  /**
   * N * K numbers, row-major. {@link signPlanes}: the sign counts, and 0 as positive, so float weights will do;
   * {@link bitPlanes}: 0 and 1.
   */
  readonly codes: ArrayLike<number>
  /** One factor for each group: the groups of a row side by side, or one for the row or the matrix. May be negative. */
  readonly scales: ArrayLike<number>
}

/** Options of the functions that make planes. */
export interface PlaneOptions {
  /** Of each plane. Default: 'channel'. */
  readonly groupSize?: 32 | 64 | 128 | 'channel' | 'tensor' | undefined
  /** Scales are rounded to it. Default: f32. */
  readonly scaleDtype?: 'f32' | 'f16' | 'bf16' | undefined
}

function sizesOf(shape: readonly number[], op: string): readonly [number, number] {
  const [n, k] = shape
  if (shape.length === 2 && [n, k].every((size) => Number.isSafeInteger(size) && (size as number) >= 0))
    return [n as number, k as number]
  throw new LowbitError('ERR_SHAPE', `${op}: expected shape to be [N, K] but got [${shape.join(', ')}]`)
}

function expectCount(values: ArrayLike<number>, count: number, op: string, name: string): void {
  if (typeof values !== 'object' || values === null || typeof values.length !== 'number')
    throw new LowbitTypeError(`${op}: expected ${name} to be an array but got ${kindOf(values)}`)
  if (values.length !== count)
    throw new LowbitError('ERR_SHAPE', `${op}: expected ${count} ${name} but got ${values.length}`)
}

/** Codes and scales of all planes as a canonical weight has them. `bitOf` says what a number becomes; undefined: refused. */
function assemble(
  planes: readonly Plane[],
  shape: readonly number[],
  options: PlaneOptions,
  op: string,
  bitOf: (value: number) => 0 | 1 | undefined,
  stored: { readonly zeroPoint: 'none' | 'integer'; readonly factor: number },
): QuantizedWeight {
  const [n, k] = sizesOf(shape, op)
  const { groupSize = 'channel', scaleDtype = 'f32' } = options
  if (!Array.isArray(planes))
    throw new LowbitTypeError(`${op}: expected planes to be a list but got ${kindOf(planes)}`)
  const rows = groupSize === 'tensor' ? Math.min(n, 1) : n
  const groups = k === 0 ? 0 : typeof groupSize === 'number' ? Math.ceil(k / groupSize) : 1
  const count = planes.length
  const rowBytes = Math.ceil((count * k) / 8)
  const codes = new Uint8Array(n * rowBytes)
  const scales = new Float32Array(rows * count * groups)
  for (const [p, plane] of planes.entries()) {
    expectCount(plane.codes, n * k, op, `codes of plane ${p}`)
    expectCount(plane.scales, rows * groups, op, `scales of plane ${p}`)
    for (let row = 0, at = 0; row < n; row++) {
      for (let col = 0; col < k; col++, at++) {
        const bit = bitOf(plane.codes[at] as number)
        if (bit === undefined) {
          throw new LowbitError(
            'ERR_ARGUMENT',
            `${op}: expected plane ${p} to hold ${stored.zeroPoint === 'none' ? 'numbers' : '0 and 1'} but got ` +
              `${plane.codes[at]} at [${row}, ${col}]`,
          )
        }
        const place = p * k + col
        if (bit)
          codes[row * rowBytes + (place >> 3)] =
            (codes[row * rowBytes + (place >> 3)] as number) | (1 << (place & 7))
      }
    }
    for (let i = 0; i < rows * groups; i++) {
      const to = (Math.floor(i / groups) * count + p) * groups + (i % groups)
      scales[to] = Number(plane.scales[i]) * stored.factor
    }
  }
  return canonical({
    ...{ format: 'int1', shape: [n, k], groupSize: groupSize as GroupSize, scaleDtype, planes: count, codes },
    scales: scaleDtype === 'f32' ? scales : halvesOf(scales, scaleDtype),
    zeroPoint: stored.zeroPoint,
    zeros: stored.zeroPoint === 'none' ? undefined : new Uint8Array(scales.length),
  })
}

/** Floats as the words of a narrower type. */
function halvesOf(values: Float32Array, format: 'f16' | 'bf16'): Uint16Array {
  const { codes } = quantize(values, [1, values.length], { format })
  return new Uint16Array(codes.buffer, codes.byteOffset, values.length)
}

/**
 * The weight `sum over planes of scale * sign`.
 *
 * OneBit (Xu et al., OneBit: Towards Extremely Low-bit Large Language Models, 2024) is one plane whose scales are its
 * output vector h, and `linear(mul(x, g), w)` with its input vector g; where x comes out of {@link rmsNorm}, g may be folded
 * into that op's weight instead. BinaryDM (Zheng et al., 2024) is two planes.
 *
 * @example
 * ```ts
 * // A OneBit layer: signs [n, k] as floats or as -1 and 1, g [k], h [n].
 * const w = device.load(signPlanes([{ codes: signs, scales: h }], [n, k]))
 * const y = linear(mul(x, device.tensor(g, [k])), w)
 * ```
 *
 * @param planes 1 to 8 of them, codes of any sign.
 * @param shape [N, K]; with several planes K is a multiple of 32, and of the group.
 * @throws LowbitError ERR_SHAPE for codes or scales of another number, or such a K; ERR_ARGUMENT for NaN among codes, NaN or
 *   inf among scales, or another number of planes; LowbitTypeError.
 */
export function signPlanes(
  planes: readonly Plane[],
  shape: readonly number[],
  options: PlaneOptions = {},
): QuantizedWeight {
  const sign = (value: number) => (value < 0 ? 0 : Number.isNaN(value) ? undefined : 1)
  return assemble(planes, shape, options, 'signPlanes', sign, { zeroPoint: 'none', factor: 1 })
}

/**
 * The weight `sum over planes of scale * bit`, with bits of 0 and 1: the dual binarization of DB-LLM (Chen et al., DB-LLM:
 * Accurate Dual-Binarization for Efficient LLMs, 2024), whose two planes have a scale for each group of 64. Stored as
 * int1 with zero points: `scale / 2 * (2 * bit - 0)`.
 *
 * @param planes 1 to 8 of them, codes of 0 and 1.
 * @param shape [N, K]; with several planes K is a multiple of 32, and of the group.
 * @throws as {@link signPlanes}; ERR_ARGUMENT for codes that are not 0 or 1.
 */
export function bitPlanes(
  planes: readonly Plane[],
  shape: readonly number[],
  options: PlaneOptions = {},
): QuantizedWeight {
  const bit = (value: number) => (value === 0 ? 0 : value === 1 ? 1 : undefined)
  return assemble(planes, shape, options, 'bitPlanes', bit, { zeroPoint: 'integer', factor: 0.5 })
}

/** A term of BitStack: the matrix `signs ⊙ (u vᵀ)`. */
export interface LowRankTerm {
  /** N * K numbers, row-major, whose sign counts. */
  readonly signs: ArrayLike<number>
  /** [N, rank], row-major. */
  readonly u: ArrayLike<number>
  /** [K, rank], row-major. */
  readonly v: ArrayLike<number>
  /** Columns of u and v. */
  readonly rank: number
}

function expectTerm(term: LowRankTerm, n: number, k: number, op: string, i: number): void {
  if (!Number.isSafeInteger(term.rank) || term.rank < 1)
    throw new LowbitError(
      'ERR_ARGUMENT',
      `${op}: expected term ${i} to have a rank of 1 or more but got ${term.rank}`,
    )
  expectCount(term.u, n * term.rank, op, `numbers in u of term ${i}`)
  expectCount(term.v, k * term.rank, op, `numbers in v of term ${i}`)
}

const column = (of: ArrayLike<number>, rank: number, r: number): Float32Array =>
  Float32Array.from({ length: of.length / rank }, (_, i) => of[i * rank + r] as number)

/**
 * A sum of low-rank terms (Wang et al., BitStack: Any-Size Compression of Large Language Models in Variable Memory
 * Environments, 2024), exactly: `signs ⊙ (u vᵀ)` is a sum over the rank of OneBit layers with h = a column of u and g = a
 * column of v. Their sum needs no memory of its own:
 *
 * ```ts
 * let y: Tensor | undefined
 * for (const { weight, g } of layers) y = linear(mul(x, g), weight, { residual: y, out: y })
 * ```
 *
 * with weight and g loaded to the device. Each costs a product with a 1-bit weight, so this pays for small ranks;
 * {@link lowRankPlanes} is the form for large ones. Layers follow the order of terms: leaving out the last ones is the
 * paper's choice of a size.
 *
 * @param shape [N, K].
 * @returns for each term and each column of its rank: an int1 weight [N, K] and g [K].
 * @throws as {@link signPlanes}.
 */
export function lowRankTerms(
  terms: readonly LowRankTerm[],
  shape: readonly number[],
  options: Pick<PlaneOptions, 'scaleDtype'> = {},
): { readonly weight: QuantizedWeight; readonly g: Float32Array }[] {
  const [n, k] = sizesOf(shape, 'lowRankTerms')
  return terms.flatMap((term, i) => {
    expectTerm(term, n, k, 'lowRankTerms', i)
    return Array.from({ length: term.rank }, (_, r) => ({
      weight: signPlanes([{ codes: term.signs, scales: column(term.u, term.rank, r) }], shape, options),
      g: column(term.v, term.rank, r),
    }))
  })
}

/**
 * A sum of low-rank terms as planes, one for each term: the magnitudes `u vᵀ` become one scale a group, their mean, which is
 * the nearest in least squares for these signs. Exact where v is the same all over a group; else {@link dequantize} says
 * what was lost.
 *
 * @param terms 1 to 8 of them.
 * @param shape [N, K]; with several terms K is a multiple of 32, and of the group.
 * @param options groups of 32 by default.
 * @throws as {@link signPlanes}.
 */
export function lowRankPlanes(
  terms: readonly LowRankTerm[],
  shape: readonly number[],
  options: PlaneOptions = {},
): QuantizedWeight {
  const [n, k] = sizesOf(shape, 'lowRankPlanes')
  const { groupSize = 32 } = options
  const width = Math.max(typeof groupSize === 'number' ? Math.min(groupSize, k) : k, 1)
  const groups = Math.ceil(k / width)
  const planes = terms.map((term, i): Plane => {
    expectTerm(term, n, k, 'lowRankPlanes', i)
    const { u, v, rank } = term
    const means = new Float64Array(groups * rank)
    for (let col = 0; col < k; col++) {
      const g = Math.floor(col / width)
      const size = Math.min(width, k - g * width)
      for (let r = 0; r < rank; r++)
        means[g * rank + r] = (means[g * rank + r] as number) + (v[col * rank + r] as number) / size
    }
    const scales = new Float64Array(n * groups)
    for (let row = 0; row < n; row++) {
      for (let g = 0; g < groups; g++) {
        let scale = 0
        for (let r = 0; r < rank; r++)
          scale += (u[row * rank + r] as number) * (means[g * rank + r] as number)
        scales[row * groups + g] = scale
      }
    }
    if (groupSize !== 'tensor') return { codes: term.signs, scales }
    return { codes: term.signs, scales: [scales.reduce((sum, scale) => sum + scale / Math.max(n, 1), 0)] }
  })
  return signPlanes(planes, shape, { ...options, groupSize })
}
