/** Which kernel row a call would take on a device of given instruction sets: no device is needed to ask. */
import { wordIndex } from './errors'
import { native } from './native'
import { formatOf, type GroupSize, type ScaleDType } from './quantize'
import {
  type Compute,
  computes,
  type DType,
  dtypes,
  type Format,
  type Layout,
  layouts,
  type TablePer,
  type ZeroPoint,
} from './words'

/** What the choice of a row looks at besides the call: instruction sets (what they imply is added) and a row to insist on. */
export interface Choice {
  readonly archs: readonly string[]
  readonly row?: string | undefined
}

/** A call of linear: x [m, k] with a weight [n, k]. */
export interface LinearCall {
  readonly m: number
  readonly n: number
  readonly k: number
  readonly format: Format
  readonly x?: DType | undefined
  readonly compute?: Compute | undefined
  readonly groupSize?: GroupSize | undefined
  readonly zeroPoint?: ZeroPoint | undefined
  readonly scaleDtype?: ScaleDType | undefined
  readonly tablePer?: TablePer | undefined
  readonly planes?: number | undefined
  /** Default: what `load` takes on such a device. */
  readonly layout?: Layout | undefined
}

/**
 * The row that serves a call of linear, and the layout of the weight.
 *
 * @throws LowbitError ERR_UNSUPPORTED if no row does, or not the one insisted on.
 */
export function selectLinear(call: LinearCall, choice: Choice): { row: string; layout: string } {
  const { m, n, k, format, groupSize, zeroPoint, scaleDtype, tablePer, planes } = call
  const layout = call.layout === undefined ? -1 : wordIndex(layouts, call.layout, 'select: layout')
  return native.selectLinear(
    choice.archs.join(','),
    choice.row,
    m,
    wordIndex(dtypes, call.x ?? 'f32', 'select: x'),
    wordIndex(computes, call.compute ?? 'float', 'select: compute'),
    layout,
    ...formatOf({ format, shape: [n, k], groupSize, zeroPoint, scaleDtype, tablePer, planes }, 'select'),
  )
}

/** A call of attention: q [batch, seqQ, heads, headDim], k [batch, seqKv, kvHeads, headDim], v with headDimV. */
export interface AttentionCall {
  readonly batch?: number | undefined
  readonly seqQ: number
  readonly seqKv: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly headDimV?: number | undefined
  readonly dtype?: DType | undefined
}

/** The row that serves a call of attention. */
export function selectAttention(call: AttentionCall, choice: Choice): { row: string } {
  const { batch = 1, seqQ, seqKv, heads, kvHeads, headDim, headDimV = headDim, dtype = 'f32' } = call
  return native.selectAttention(
    choice.archs.join(','),
    choice.row,
    wordIndex(dtypes, dtype, 'select: dtype'),
    batch,
    seqQ,
    heads,
    headDim,
    seqKv,
    kvHeads,
    headDimV,
  )
}
