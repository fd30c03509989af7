/** attention: decode against a cache that comes from memory, and causal prefill. */
import { attention, type PagedAttentionOptions } from '../attention'
import type { KvCache } from '../cache'
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
const pageSize = 64

/** What queries meet: tensors, or a cache and the pages of its one sequence. */
interface Keys {
  readonly k: Tensor | KvCache
  readonly v?: Tensor
  readonly pageTable?: Tensor
  readonly kvLens?: Tensor
}

/** o of some queries by the device's plainest row; they stand at the end of these keys. */
function referenceOf({ device }: BenchContext, q: Tensor, keys: Keys): Float32Array {
  using o = device.empty(q.shape, q.dtype)
  native.attention(
    q,
    keys.k,
    keys.v,
    undefined,
    undefined,
    keys.kvLens,
    undefined,
    undefined,
    undefined,
    keys.pageTable,
    undefined,
    undefined,
    0,
    0,
    -1,
    -1,
    true,
    0,
    undefined,
    undefined,
    undefined,
    o,
    undefined,
    device.name === 'cpu' ? 'attention_ref' : 'attention_simt_sm75',
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
    const reference = referenceOf(context, queries, { k: keys, v: values })
    const wrong = difference(results.readSync('f32'), reference)
    if (wrong !== undefined) return `queries from ${begin}: ${wrong}`
  }
  return undefined
}

/** The pages of a sequence in no order. */
function scattered(pages: number): Int32Array {
  const key = randomFloats(pages, 19)
  return Int32Array.from({ length: pages }, (_, i) => i).sort((a, b) => (key[a] ?? 0) - (key[b] ?? 0))
}

/** One shape in one dtype: that of q, and of k and v unless a cache has them. */
export function* attentionCaseOf(
  context: BenchContext,
  dtype: FloatDType,
  { name, shape }: Named<AttentionShape>,
): Generator<BenchCase> {
  const { device, options } = context
  const { seqQ, seqKv, headDim, heads = 32, kvHeads = 8, kv } = shape
  const width = widths[dtype]
  const qBytes = seqQ * heads * headDim * width
  const cold = !options.hot && seqQ <= coldM
  const made: Disposable[] = []
  const keep = <T extends Disposable>(one: T): T => {
    made.push(one)
    return one
  }
  try {
    const data = randomFloats(seqKv * kvHeads * headDim, 11)
    const other = Float32Array.from(data).reverse()
    const copiesOf = (bytes: number) => (cold ? Math.min(mostCopies, Math.ceil(coldBytes / bytes)) : 1)
    const keysOf = (): [Keys[], number] => {
      if (kv === undefined) {
        const kvBytes = 2 * seqKv * kvHeads * headDim * width
        const tensor = (numbers: Float32Array) =>
          keep(device.tensor(numbers, [1, seqKv, kvHeads, headDim], dtype))
        const each = { length: copiesOf(kvBytes) }
        return [Array.from(each, () => ({ k: tensor(data), v: tensor(other) })), kvBytes]
      }
      const pages = Math.ceil(seqKv / pageSize)
      const table = scattered(pages)
      const slots = Int32Array.from({ length: seqKv }, (_, j) => {
        return (table[Math.floor(j / pageSize)] as number) * pageSize + (j % pageSize)
      })
      using k = device.tensor(data, [seqKv, kvHeads, headDim])
      using v = device.tensor(other, [seqKv, kvHeads, headDim])
      const pageTable = keep(device.tensor(table, [1, pages], 'i32'))
      const kvLens = keep(device.tensor(Int32Array.of(seqKv), [1], 'i32'))
      const cacheOf = () => {
        const cache = keep(device.kvCache({ pages, pageSize, kvHeads, headDim, format: kv }))
        return cache.append(k, v, slots)
      }
      const first = cacheOf()
      const more = Array.from({ length: copiesOf(first.bytes) - 1 }, cacheOf)
      return [[first, ...more].map((cache) => ({ k: cache, pageTable, kvLens })), first.bytes]
    }
    const [keys, kvBytes] = keysOf()
    const qShape = [1, seqQ, heads, headDim]
    const q = keep(device.tensor(randomFloats(seqQ * heads * headDim, 13), qShape, dtype))
    const out = keep(device.empty(qShape, dtype))
    const pairs = seqQ * (seqKv - seqQ) + (seqQ * (seqQ + 1)) / 2
    yield {
      op: 'attention',
      name,
      shape: `${seqQ}x${seqKv} D${headDim} ${heads}/${kvHeads} ${dtype}${kv === undefined ? '' : ` kv ${kv}`}`,
      properties: {
        ...{ x: dtype, seqQ, seqKv, headDim, heads, kvHeads, causal: true },
        ...(kv === undefined ? {} : { kv }),
      },
      work: {
        bytesRead: kvBytes + qBytes,
        bytesWritten: qBytes,
        operations: 4 * headDim * heads * pairs,
        arithmetic: dtype === 'bf16' ? ['f32', 'bf16'] : ['f32'],
      },
      launch: (index) => {
        const { k, v, pageTable, kvLens } = keys[index % keys.length] as Keys
        if (v !== undefined) attention(q, k as Tensor, v, { causal: true, out })
        else attention(q, k as KvCache, { pageTable, kvLens, causal: true, out } as PagedAttentionOptions)
      },
      check: () => {
        const { k, v } = keys[0] as Keys
        if (v !== undefined) return checkAttention(context, q, k as Tensor, v, out)
        return difference(out.readSync('f32'), referenceOf(context, q, keys[0] as Keys))
      },
    }
  } finally {
    for (const one of made) one[Symbol.dispose]()
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
