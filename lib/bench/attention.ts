/** attention: decode against a cache that comes from memory, and causal prefill. */
import { attention } from '../attention'
import { native } from '../native'
import type { FloatDType } from '../quantize'
import type { Tensor } from '../tensor'
import {
  type AttentionShape,
  attentionShapes,
  coldBytes,
  coldM,
  defaultAttentionShapes,
  mostCopies,
} from './cases'
import { difference, randomFloats } from './random'
import { widths } from './rows'
import type { BenchCase, BenchContext, Named } from './run'

const checkedRows = 2

/** o of some queries by the reference row; they stand at the end of these keys. */
function referenceOf({ device }: BenchContext, q: Tensor, k: Tensor, v: Tensor): Float32Array {
  using o = device.empty(q.shape, q.dtype)
  native.attention(
    q,
    k,
    v,
    undefined,
    undefined,
    undefined,
    undefined,
    undefined,
    undefined,
    undefined,
    undefined,
    undefined,
    0,
    0,
    -1,
    -1,
    true,
    0,
    o,
    undefined,
    'attention_ref',
  )
  return o.readSync('f32')
}

/** Compares the first and the last queries with the reference row. */
function checkAttention(
  context: BenchContext,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  o: Tensor,
): string | undefined {
  const seqQ = q.shape[1] ?? 0
  const seqKv = k.shape[1] ?? 0
  const count = Math.min(checkedRows, seqQ)
  for (const begin of new Set([0, seqQ - count])) {
    const end = begin + count
    using queries = q.slice(1, begin, end)
    using keys = k.slice(1, 0, seqKv - seqQ + end)
    using values = v.slice(1, 0, seqKv - seqQ + end)
    using results = o.slice(1, begin, end)
    const wrong = difference(results.readSync('f32'), referenceOf(context, queries, keys, values))
    if (wrong !== undefined) return `queries from ${begin}: ${wrong}`
  }
  return undefined
}

/** One shape in one dtype. */
export function* attentionCaseOf(
  context: BenchContext,
  dtype: FloatDType,
  { name, shape }: Named<AttentionShape>,
): Generator<BenchCase> {
  const { device, options } = context
  const { seqQ, seqKv, headDim, heads = 32, kvHeads = 8 } = shape
  const width = widths[dtype]
  const kvBytes = 2 * seqKv * kvHeads * headDim * width
  const qBytes = seqQ * heads * headDim * width
  const cold = !options.hot && seqQ <= coldM
  const copies = cold ? Math.min(mostCopies, Math.ceil(coldBytes / kvBytes)) : 1
  const made: Tensor[] = []
  const keep = (tensor: Tensor): Tensor => {
    made.push(tensor)
    return tensor
  }
  try {
    const data = randomFloats(seqKv * kvHeads * headDim, 11)
    const kvShape = [1, seqKv, kvHeads, headDim]
    const keys = Array.from({ length: copies }, () => keep(device.tensor(data, kvShape, dtype)))
    data.reverse() // other numbers than the keys
    const values = Array.from({ length: copies }, () => keep(device.tensor(data, kvShape, dtype)))
    const qShape = [1, seqQ, heads, headDim]
    const q = keep(device.tensor(randomFloats(seqQ * heads * headDim, 13), qShape, dtype))
    const out = keep(device.empty(qShape, dtype))
    const pairs = seqQ * (seqKv - seqQ) + (seqQ * (seqQ + 1)) / 2
    yield {
      op: 'attention',
      name,
      shape: `${seqQ}x${seqKv} D${headDim} ${heads}/${kvHeads} ${dtype}`,
      properties: { x: dtype, seqQ, seqKv, headDim, heads, kvHeads, causal: true },
      work: {
        bytesRead: kvBytes + qBytes,
        bytesWritten: qBytes,
        operations: 4 * headDim * heads * pairs,
        arithmetic: dtype === 'bf16' ? ['f32', 'bf16'] : ['f32'],
      },
      launch: (index) => {
        attention(q, keys[index % copies] as Tensor, values[index % copies] as Tensor, { causal: true, out })
      },
      check: () => checkAttention(context, q, keys[0] as Tensor, values[0] as Tensor, out),
    }
  } finally {
    for (const tensor of made) tensor.dispose()
  }
}

/** Every shape with every dtype. */
export function* attentionCases(context: BenchContext): Generator<BenchCase> {
  const usual = defaultAttentionShapes.map((name) => ({
    name,
    shape: attentionShapes[name] as AttentionShape,
  }))
  for (const dtype of context.options.x ?? (['bf16'] as const)) {
    for (const shape of context.options.attention ?? usual) yield* attentionCaseOf(context, dtype, shape)
  }
}
