// llama.cpp's CPU kernels: the shared libraries of node-llama-cpp, called through koffi. Weights lie in the repack buffer
// type where the format has kernels for it on x86: that is how llama.cpp itself loads them.
import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { attentionData, attentionError, randomFloats, relativeError, repeatTo } from './numbers.mjs'

// [number in ggml.h, whether x86 has repacked kernels for it]
const types = {
  f32: [0, false],
  f16: [1, false],
  q4_0: [2, true],
  q8_0: [8, false],
  q2_K: [10, true],
  q4_K: [12, true],
  bf16: [30, false],
  tq1_0: [34, false],
  tq2_0: [35, false],
}
const f32 = types.f32[0]
const cpuDevice = 0
const blockRows = 64

let g

export function open() {
  const require = createRequire(import.meta.url)
  const koffi = require('koffi')
  const root = path.join(import.meta.dirname, 'node_modules/@node-llama-cpp/linux-x64/bins/linux-x64')
  const file = fs.readdirSync(root).find((name) => /^libggml\.(v[\d.]+\.)?so$/.test(name))
  const base = koffi.load(path.join(root, 'libggml-base.so'), { global: true })
  const front = koffi.load(path.join(root, file), { global: true })
  koffi.struct('InitParams', { size: 'size_t', buffer: 'void *', noAlloc: 'bool' })
  koffi.struct('TypeTraits', {
    name: 'const char *',
    blockSize: 'int64_t',
    interleave: 'int64_t',
    typeSize: 'size_t',
    quantized: 'bool',
    toFloat: 'void *',
    fromFloat: 'void *',
  })
  g = {
    koffi,
    loadAll: front.func('void ggml_backend_load_all_from_path(const char *)'),
    device: front.func('void *ggml_backend_dev_by_type(int)'),
    open: base.func('void *ggml_backend_dev_init(void *, const char *)'),
    registry: base.func('void *ggml_backend_dev_backend_reg(void *)'),
    address: base.func('void *ggml_backend_reg_get_proc_address(void *, const char *)'),
    bufferName: base.func('const char *ggml_backend_buft_name(void *)'),
    context: base.func('void *ggml_init(InitParams)'),
    freeContext: base.func('void ggml_free(void *)'),
    matrix: base.func('void *ggml_new_tensor_2d(void *, int, int64_t, int64_t)'),
    allocateIn: base.func('void *ggml_backend_alloc_ctx_tensors_from_buft(void *, void *)'),
    allocate: base.func('void *ggml_backend_alloc_ctx_tensors(void *, void *)'),
    freeBuffer: base.func('void ggml_backend_buffer_free(void *)'),
    write: base.func('void ggml_backend_tensor_set(void *, const void *, size_t, size_t)'),
    read: base.func('void ggml_backend_tensor_get(const void *, _Out_ void *, size_t, size_t)'),
    bytes: base.func('size_t ggml_nbytes(const void *)'),
    cube: base.func('void *ggml_new_tensor_3d(void *, int, int64_t, int64_t, int64_t)'),
    attend: base.func(
      'void *ggml_flash_attn_ext(void *, void *, void *, void *, void *, float, float, float)',
    ),
    multiply: base.func('void *ggml_mul_mat(void *, void *, void *)'),
    graph: base.func('void *ggml_new_graph(void *)'),
    expand: base.func('void ggml_build_forward_expand(void *, void *)'),
    compute: base.func('int ggml_backend_graph_compute(void *, void *)'),
    quantize: base.func(
      'size_t ggml_quantize_chunk(int, const float *, _Out_ void *, int64_t, int64_t, int64_t, const float *)',
    ),
    traits: base.func('TypeTraits *ggml_get_type_traits(int)'),
    version: base.func('const char *ggml_version()'),
    commit: base.func('const char *ggml_commit()'),
  }
  g.loadAll(root)
  const device = g.device(cpuDevice)
  const registry = g.registry(device)
  g.backend = g.open(device, null)
  g.setThreads = koffi.decode(
    g.address(registry, 'ggml_backend_set_n_threads'),
    koffi.proto('void SetThreads(void *, int)'),
  )
  const extraOf = koffi.decode(
    g.address(registry, 'ggml_backend_dev_get_extra_bufts'),
    koffi.proto('void **ExtraBuffers(void *)'),
  )
  const extra = extraOf(device)
  for (let i = 0; g.repack === undefined; i++) {
    const type = koffi.decode(extra, 8 * i, 'void *')
    if (!type) break
    if (g.bufferName(type).includes('REPACK')) g.repack = type
  }
  if (g.repack === undefined) throw new Error('its library has no repack buffers')
  g.toFloat = koffi.proto('void ToFloat(const void *, _Out_ float *, int64_t)')
  return `ggml ${g.version()} ${g.commit()}`
}

let weights

/** Copies of one matrix that add up to so many bytes; those of the last call are kept if they serve. */
function weightsOf({ kind, n, k, coldBytes, ternary }) {
  const key = JSON.stringify([kind, n, k, coldBytes])
  if (weights?.key === key) return weights
  weights?.free()
  const [type, repacked] = types[kind]
  const source = randomFloats(blockRows * k, 3)
  if (ternary) for (let i = 0; i < source.length; i++) source[i] = Math.round(source[i] * 1.5)
  const context = g.context({ size: 1 << 20, buffer: null, noAlloc: true })
  const tensors = [g.matrix(context, type, k, n)]
  const bytes = g.bytes(tensors[0])
  while (tensors.length * bytes < coldBytes) tensors.push(g.matrix(context, type, k, n))
  const buffer = repacked ? g.allocateIn(context, g.repack) : g.allocate(context, g.backend)
  if (!buffer) throw new Error(`no memory for ${tensors.length} weights`)
  const block = new Uint8Array((bytes / n) * blockRows)
  g.quantize(type, source, block, 0, blockRows, k, null)
  const whole = repeatTo(block, bytes)
  for (const tensor of tensors) g.write(tensor, whole, 0, bytes)
  let exact = source
  const { toFloat } = g.koffi.decode(g.traits(type), 'TypeTraits')
  if (toFloat) {
    exact = new Float32Array(source.length)
    g.koffi.decode(toFloat, g.toFloat)(block, exact, exact.length)
  }
  const free = () => {
    g.freeBuffer(buffer)
    g.freeContext(context)
  }
  weights = { key, tensors, bytes, exact, free }
  return weights
}

let last

/** Flash attention with q in f32, as llama.cpp has it; keys and values of a head lie together. */
function prepareAttention(spec) {
  const { kind, seqQ, seqKv, headDim, heads, kvHeads, threads, coldBytes } = spec
  last?.()
  const [type] = types[kind]
  const data = attentionData(spec)
  const context = g.context({ size: 8 << 20, buffer: null, noAlloc: true })
  const made = () => [0, 1].map(() => g.cube(context, type, headDim, seqKv, kvHeads))
  const caches = [made()]
  const bytes = g.bytes(caches[0][0])
  while (caches.length * 2 * bytes < coldBytes) caches.push(made())
  const q = g.cube(context, f32, headDim, seqQ, heads)
  const mask = seqQ > 1 ? g.matrix(context, types.f16[0], seqKv, seqQ) : null
  const graph = g.graph(context)
  const results = caches.map(([k, v]) => g.attend(context, q, k, v, mask, 1 / Math.sqrt(headDim), 0, 0))
  for (const result of results) g.expand(graph, result)
  const buffer = g.allocate(context, g.backend)
  last = () => {
    g.freeBuffer(buffer)
    g.freeContext(context)
    last = undefined
  }
  for (const [at, values] of [data.k, data.v].entries()) {
    const codes = new Uint8Array(bytes)
    g.quantize(type, values, codes, 0, values.length / headDim, headDim, null)
    for (const cache of caches) g.write(cache[at], codes, 0, bytes)
  }
  const turned = new Float32Array(data.q.length) // heads outside
  for (let h = 0; h < heads; h++) {
    for (let i = 0; i < seqQ; i++) {
      const from = (i * heads + h) * headDim
      turned.set(data.q.subarray(from, from + headDim), (h * seqQ + i) * headDim)
    }
  }
  g.write(q, turned, 0, turned.byteLength)
  if (mask !== null) {
    const minusInf = 0xfc00 // in f16
    const seen = new Uint16Array(seqQ * seqKv)
    for (let i = 0; i < seqQ; i++) seen.fill(minusInf, i * seqKv + seqKv - seqQ + i + 1, (i + 1) * seqKv)
    g.write(mask, seen, 0, seen.byteLength)
  }
  g.setThreads(g.backend, threads)
  return {
    label: `ggml flash attention ${kind}`,
    launches: caches.length,
    bytes: 2 * bytes,
    run: () => {
      const status = g.compute(g.backend, graph)
      if (status !== 0) throw new Error(`ggml_backend_graph_compute gave ${status}`)
    },
    error: () => {
      const got = new Float32Array(seqQ * heads * headDim)
      g.read(results.at(-1), got, 0, got.byteLength)
      return attentionError((i, h, d) => got[(i * heads + h) * headDim + d], data, spec)
    },
  }
}

/** x in f32, as llama.cpp has it. */
export function prepare(spec) {
  if (spec.op === 'attention') return prepareAttention(spec)
  const { kind, m, n, k, threads } = spec
  last?.()
  const { tensors, bytes, exact } = weightsOf(spec)
  const context = g.context({ size: 8 << 20, buffer: null, noAlloc: true })
  const x = g.matrix(context, f32, k, m)
  const graph = g.graph(context)
  const results = tensors.map((w) => g.multiply(context, w, x))
  for (const result of results) g.expand(graph, result)
  const buffer = g.allocate(context, g.backend)
  last = () => {
    g.freeBuffer(buffer)
    g.freeContext(context)
    last = undefined
  }
  const data = randomFloats(m * k, 7)
  g.write(x, data, 0, data.byteLength)
  g.setThreads(g.backend, threads)
  return {
    label: `ggml ${kind}${types[kind][1] ? ' repack' : ''}`,
    launches: tensors.length,
    bytes,
    run: () => {
      const status = g.compute(g.backend, graph)
      if (status !== 0) throw new Error(`ggml_backend_graph_compute gave ${status}`)
    },
    error: () => {
      const got = new Float32Array(m * n)
      g.read(results.at(-1), got, 0, got.byteLength)
      return relativeError((i, j) => got[i * n + j], data, exact, { m, n, k })
    },
  }
}
