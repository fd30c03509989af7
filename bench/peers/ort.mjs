// onnxruntime-node: one graph with as many copies of the operator as make the weights cold, all reading the same x.
// Weights are initializers, which a session prepacks when it is made.
import { createRequire } from 'node:module'
import { attentionData, attentionError, randomFloats, relativeError, repeatTo } from './numbers.mjs'
import { model, node, tensor, value } from './onnx.mjs'

const ms = 'com.microsoft'
const blockRows = 64

let ort

/**
 * The bytes for copy c: one code is its number. A session keeps weights that are the same to the last bit once only, and
 * what is read again and again is not cold.
 */
function distinct(data, c) {
  const copy = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice()
  copy[0] = c
  return copy
}

export function open() {
  const require = createRequire(import.meta.url)
  ort = require('onnxruntime-node')
  return `onnxruntime-node ${require('onnxruntime-node/package.json').version}`
}

/** MatMulNBits: symmetric codes around the middle, one f32 scale for each group of K. */
function groupedBits({ n, k, bits, group, accuracy, ternary }) {
  const w = randomFloats(blockRows * k, 3)
  const exact = new Float32Array(w.length)
  const codes = new Uint8Array((w.length * bits) / 8)
  const scales = new Float32Array(w.length / group)
  const middle = 2 ** (bits - 1)
  for (let begin = 0; begin < w.length; begin += group) {
    let largest = 0
    for (let i = begin; i < begin + group; i++) largest = Math.max(largest, Math.abs(w[i]))
    const scale = largest / (ternary || middle === 2 ? 1 : middle - 1)
    scales[begin / group] = scale
    for (let i = begin; i < begin + group; i++) {
      const code = Math.max(-middle, Math.min(middle - 1, Math.round(w[i] / scale)))
      exact[i] = code * scale
      codes[(i * bits) >> 3] |= (code + middle) << ((i * bits) & 7)
    }
  }
  const groups = k / group
  const all = repeatTo(codes, (n * k * bits) / 8)
  const allScales = repeatTo(new Uint8Array(scales.buffer), n * groups * 4)
  return {
    x: 'f32',
    y: 'f32',
    bytes: all.length + allScales.length,
    exact,
    got: (y, i, j) => y[i * n + j],
    tensors: (c) => [
      tensor(`w${c}`, [n, groups, (group * bits) / 8], 'u8', distinct(all, c)),
      tensor(`s${c}`, [n * groups], 'f32', allScales),
    ],
    node: (c) =>
      node('MatMulNBits', ms, ['x', `w${c}`, `s${c}`], [`y${c}`], {
        K: k,
        N: n,
        bits,
        block_size: group,
        accuracy_level: accuracy,
      }),
    common: [],
  }
}

/** Codes of 8 bits, [K, N] as ONNX has them, and what they stand for with one scale a column. */
function channelCodes({ n, k }) {
  const w = randomFloats(blockRows * k, 3)
  const exact = new Float32Array(w.length)
  const scales = new Float32Array(blockRows)
  const transposed = new Int8Array(k * n)
  for (let j = 0; j < blockRows; j++) {
    let largest = 0
    for (let l = 0; l < k; l++) largest = Math.max(largest, Math.abs(w[j * k + l]))
    scales[j] = largest / 127
    for (let l = 0; l < k; l++) {
      const code = Math.round(w[j * k + l] / scales[j])
      exact[j * k + l] = code * scales[j]
      for (let column = j; column < n; column += blockRows) transposed[l * n + column] = code
    }
  }
  return { exact, transposed, scales: Float32Array.from({ length: n }, (_, j) => scales[j % blockRows]) }
}

function dynamicQuantize({ n, k }) {
  const { exact, transposed, scales } = channelCodes({ n, k })
  return {
    x: 'f32',
    y: 'f32',
    bytes: transposed.length + scales.byteLength,
    exact,
    got: (y, i, j) => y[i * n + j],
    tensors: (c) => [
      tensor(`w${c}`, [k, n], 'i8', distinct(transposed, c)),
      tensor(`s${c}`, [n], 'f32', scales),
    ],
    node: (c) => node('DynamicQuantizeMatMul', ms, ['x', `w${c}`, `s${c}`], [`y${c}`]),
    common: [],
  }
}

function integers({ n, k }) {
  const { exact, transposed, scales } = channelCodes({ n, k })
  return {
    x: 'u8',
    y: 'i32',
    bytes: transposed.length,
    exact,
    got: (y, i, j) => y[i * n + j] * scales[j],
    tensors: (c) => [tensor(`w${c}`, [k, n], 'i8', distinct(transposed, c))],
    node: (c) => node('MatMulInteger', '', ['x', `w${c}`, 'zero'], [`y${c}`]),
    common: [tensor('zero', [], 'u8', Uint8Array.of(128))],
  }
}

function floats({ n, k }) {
  const w = randomFloats(blockRows * k, 3)
  const transposed = new Float32Array(k * n)
  for (let l = 0; l < k; l++) {
    for (let j = 0; j < n; j++) transposed[l * n + j] = w[(j % blockRows) * k + l]
  }
  return {
    x: 'f32',
    y: 'f32',
    bytes: transposed.byteLength,
    exact: w,
    got: (y, i, j) => y[i * n + j],
    tensors: (c) => [tensor(`w${c}`, [k, n], 'f32', distinct(transposed, c))],
    node: (c) => node('MatMul', '', ['x', `w${c}`], [`y${c}`]),
    common: [],
  }
}

const kinds = {
  nbits: groupedBits,
  dynamicQuantizeMatMul: dynamicQuantize,
  matMulInteger: integers,
  matMul: floats,
}

const sessionOptions = (threads) => ({
  intraOpNumThreads: threads,
  interOpNumThreads: 1,
  executionMode: 'sequential',
  graphOptimizationLevel: 'all',
  logSeverityLevel: 3,
})

let layer

/** A session for these weights; the last one is kept if it serves. M is open. */
async function layerOf(spec) {
  const { m, label, ...weights } = spec
  const key = JSON.stringify(weights)
  if (layer?.key === key) return layer
  await layer?.session.release()
  layer = undefined
  const made = kinds[spec.kind](spec)
  const copies = Math.max(1, Math.ceil(spec.coldBytes / made.bytes))
  const each = Array.from({ length: copies }, (_, c) => c)
  const bytes = model({
    nodes: each.map(made.node),
    tensors: [...made.common, ...each.flatMap(made.tensors)],
    inputs: [value('x', ['M', spec.k], made.x)],
    outputs: each.map((c) => value(`y${c}`, ['M', spec.n], made.y)),
  })
  const session = await ort.InferenceSession.create(bytes, sessionOptions(spec.threads))
  layer = { key, session, made, copies }
  return layer
}

/** [kvHeads, seqKv, headDim] as [tokens, heads, headDim] for the tokens from `begin`, each head of k or v `times` over. */
function tokensOf(values, { seqKv, headDim, kvHeads }, begin, times) {
  const out = new Float32Array((seqKv - begin) * kvHeads * times * headDim)
  for (let j = begin; j < seqKv; j++) {
    for (let h = 0; h < kvHeads * times; h++) {
      const from = (Math.floor(h / times) * seqKv + j) * headDim
      out.set(values.subarray(from, from + headDim), ((j - begin) * kvHeads * times + h) * headDim)
    }
  }
  return out
}

/** Causal attention in f32. Decode: the cache is an initializer, of which one token less than seqKv is there. */
async function prepareAttention(spec) {
  const { kind, seqQ, seqKv, headDim, heads, kvHeads } = spec
  const data = attentionData(spec)
  const past = seqKv - seqQ
  const isGrouped = kind === 'groupQueryAttention'
  const times = isGrouped ? 1 : heads / kvHeads
  const width = kvHeads * times * headDim
  const cached = (values, c) => {
    const out = new Float32Array(kvHeads * past * headDim)
    for (let h = 0; h < kvHeads; h++) {
      out.set(values.subarray(h * seqKv * headDim, (h * seqKv + past) * headDim), h * past * headDim)
    }
    return distinct(out, c)
  }
  const bytes = 2 * seqKv * kvHeads * headDim * 4
  const copies = Math.max(1, Math.ceil(spec.coldBytes / bytes))
  const each = Array.from({ length: copies }, (_, c) => c)
  const common = [
    tensor('k', [1, seqQ, width], 'f32', tokensOf(data.k, spec, past, times)),
    tensor('v', [1, seqQ, width], 'f32', tokensOf(data.v, spec, past, times)),
    ...(isGrouped
      ? [
          tensor('seqlens', [1], 'i32', Int32Array.of(seqKv - 1)),
          tensor('total', [], 'i32', Int32Array.of(seqKv)),
        ]
      : []),
  ]
  const nodeOf = (c) => {
    if (!isGrouped) {
      return node('MultiHeadAttention', ms, ['q', 'k', 'v'], [`y${c}`], {
        num_heads: heads,
        unidirectional: 1,
      })
    }
    const caches = past > 0 ? [`pastK${c}`, `pastV${c}`] : ['', '']
    return node(
      'GroupQueryAttention',
      ms,
      ['q', 'k', 'v', ...caches, 'seqlens', 'total'],
      [`y${c}`, `presentK${c}`, `presentV${c}`],
      { num_heads: heads, kv_num_heads: kvHeads },
    )
  }
  const caches = (c) =>
    past > 0
      ? [
          tensor(`pastK${c}`, [1, kvHeads, past, headDim], 'f32', cached(data.k, c)),
          tensor(`pastV${c}`, [1, kvHeads, past, headDim], 'f32', cached(data.v, c)),
        ]
      : []
  await layer?.session.release()
  layer = undefined
  const session = await ort.InferenceSession.create(
    model({
      nodes: each.map(nodeOf),
      tensors: [...common, ...each.flatMap(caches)],
      inputs: [value('q', [1, seqQ, heads * headDim], 'f32')],
      outputs: each.map((c) => value(`y${c}`, [1, seqQ, heads * headDim], 'f32')),
    }),
    sessionOptions(spec.threads),
  )
  layer = { session }
  const q = new ort.Tensor('float32', data.q, [1, seqQ, heads * headDim])
  const results = Object.fromEntries(
    each.map((c) => [
      `y${c}`,
      new ort.Tensor('float32', new Float32Array(data.q.length), [1, seqQ, heads * headDim]),
    ]),
  )
  let output
  return {
    label: spec.label,
    launches: copies,
    bytes,
    run: async () => {
      output = await session.run({ q }, results)
    },
    error: () => {
      const y = output[`y${copies - 1}`].data
      return attentionError((i, h, d) => y[(i * heads + h) * headDim + d], data, spec)
    },
  }
}

export async function prepare(spec) {
  if (spec.op === 'attention') return prepareAttention(spec)
  const { m, n, k } = spec
  const { session, made, copies } = await layerOf(spec)
  let data = randomFloats(m * k, 7)
  let x
  if (made.x === 'u8') {
    const codes = Uint8Array.from(data, (v) => Math.round(v * 127) + 128)
    data = Float32Array.from(codes, (code) => code - 128)
    x = new ort.Tensor('uint8', codes, [m, k])
  } else {
    x = new ort.Tensor('float32', data, [m, k])
  }
  // Results go where the caller says, so that none is allocated.
  const make = made.y === 'i32' ? ['int32', Int32Array] : ['float32', Float32Array]
  const results = Object.fromEntries(
    Array.from({ length: copies }, (_, c) => [`y${c}`, new ort.Tensor(make[0], new make[1](m * n), [m, n])]),
  )
  let output
  return {
    label: spec.label,
    launches: copies,
    bytes: made.bytes,
    run: async () => {
      output = await session.run({ x }, results)
    },
    error: () => {
      const y = output[`y${copies - 1}`].data
      return relativeError((i, j) => made.got(y, i, j), data, made.exact, { m, n, k })
    },
  }
}
