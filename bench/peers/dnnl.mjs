// oneDNN's matmul, version 2 of its C interface (Debian's libdnnl2), called through koffi. Weights are reordered once into
// the layout that its implementation asks for.
import { createRequire } from 'node:module'
import { bf16Of, bf16Values, randomFloats, relativeError } from './numbers.mjs'

// Numbers of dnnl_types.h.
const types = { f16: 1, bf16: 2, f32: 3, s32: 4, s8: 5, u8: 6 }
const tags = { any: 1, ab: 3, ba: 22 }
const args = { src: 1, dst: 17, weights: 33 }
const weightsDescriptor = 131
const cpu = 1
const inOrder = 1
const allocate = 2n ** 64n - 1n
// sizeof dnnl_memory_desc_t and dnnl_matmul_desc_t are 696 and 2800 bytes.
const descriptorBytes = 4096

const blockRows = 64

// [x, weights, result]
const kinds = {
  s8s8s32: ['s8', 's8', 's32'],
  u8s8s32: ['u8', 's8', 's32'],
  bf16: ['bf16', 'bf16', 'bf16'],
  f32: ['f32', 'f32', 'f32'],
}

let d

/** A call's status is 0, or the call is named. */
function must(name, status) {
  if (status !== 0) throw new Error(`${name} gave ${status}`)
}

export function open() {
  const koffi = createRequire(import.meta.url)('koffi')
  const library = koffi.load('libdnnl.so.2')
  const threads = koffi.load('libgomp.so.1')
  koffi.struct('Version', {
    major: 'int',
    minor: 'int',
    patch: 'int',
    hash: 'const char *',
    cpuRuntime: 'uint',
    gpuRuntime: 'uint',
  })
  koffi.struct('Argument', { arg: 'int', memory: 'void *' })
  const func = (name, parameters) => {
    const call = library.func(`int dnnl_${name}(${parameters})`)
    return (...values) => must(`dnnl_${name}`, call(...values))
  }
  d = {
    koffi,
    version: library.func('const Version *dnnl_version()'),
    engineCreate: func('engine_create', '_Out_ void **, int, size_t'),
    streamCreate: func('stream_create', '_Out_ void **, void *, uint'),
    streamWait: func('stream_wait', 'void *'),
    describe: func('memory_desc_init_by_tag', 'void *, int, const int64_t *, int, int'),
    describeMatmul: func(
      'matmul_desc_init',
      'void *, const void *, const void *, const void *, const void *',
    ),
    plan: func('primitive_desc_create', '_Out_ void **, const void *, void *, void *, void *'),
    planReorder: func(
      'reorder_primitive_desc_create',
      '_Out_ void **, const void *, void *, const void *, void *, void *',
    ),
    destroyPlan: func('primitive_desc_destroy', 'void *'),
    descriptorOf: library.func('const void *dnnl_primitive_desc_query_md(void *, int, int)'),
    bytes: library.func('size_t dnnl_memory_desc_get_size(const void *)'),
    create: func('primitive_create', '_Out_ void **, void *'),
    destroy: func('primitive_destroy', 'void *'),
    execute: func('primitive_execute', 'void *, void *, int, const Argument *'),
    memoryCreate: func('memory_create', '_Out_ void **, const void *, void *, size_t'),
    memoryDestroy: func('memory_destroy', 'void *'),
    handleOf: func('memory_get_data_handle', 'void *, _Out_ void **'),
    setThreads: threads.func('void omp_set_num_threads(int)'),
  }
  const made = (call, ...values) => {
    const out = [null]
    call(out, ...values)
    return out[0]
  }
  d.made = made
  d.engine = made(d.engineCreate, cpu, 0)
  d.stream = made(d.streamCreate, d.engine, inOrder)
  const { major, minor, patch } = koffi.decode(d.version(), 'Version')
  if (major !== 2) throw new Error(`oneDNN ${major} has another interface than version 2`)
  return `oneDNN ${major}.${minor}.${patch}`
}

function described(dims, type, tag) {
  const descriptor = Buffer.alloc(descriptorBytes)
  d.describe(descriptor, dims.length, BigInt64Array.from(dims, BigInt), types[type], tags[tag])
  return descriptor
}

const memoryOf = (descriptor) => d.made(d.memoryCreate, descriptor, d.engine, allocate)

function dataOf(memory) {
  const out = [null]
  d.handleOf(memory, out)
  return out[0]
}

function execute(primitive, ...given) {
  d.execute(
    primitive,
    d.stream,
    given.length,
    given.map(([arg, memory]) => ({ arg, memory })),
  )
}

/** Codes of a kind, and the values they stand for. */
function coded(values, type) {
  if (type === 'f32') return { codes: values, exact: values }
  if (type === 'bf16') {
    const codes = bf16Of(values)
    return { codes, exact: bf16Values(codes) }
  }
  const codes =
    type === 's8'
      ? Int8Array.from(values, (v) => Math.round(v * 127))
      : Uint8Array.from(values, (v) => Math.round((v + 1) * 127))
  return { codes, exact: Float32Array.from(codes) }
}

/** The bytes of an array, written at a pointer. */
const write = (pointer, array) =>
  new Uint8Array(d.koffi.view(pointer, array.byteLength)).set(
    new Uint8Array(array.buffer, array.byteOffset, array.byteLength),
  )

let last

export function prepare({ kind, m, n, k, threads, coldBytes }) {
  last?.()
  d.setThreads(threads)
  const [x, w, y] = kinds[kind]
  const source = coded(randomFloats(m * k, 7), x)
  const block = coded(randomFloats(blockRows * k, 3), w)
  const xDescriptor = described([m, k], x, 'ab')
  const yDescriptor = described([m, n], y, 'ab')
  const matmul = Buffer.alloc(descriptorBytes)
  d.describeMatmul(matmul, xDescriptor, described([k, n], w, 'any'), null, yDescriptor)
  const plan = d.made(d.plan, matmul, null, d.engine, null)
  const packed = d.descriptorOf(plan, weightsDescriptor, 0)
  const primitive = d.made(d.create, plan)

  // [K, N] whose columns are contiguous: our rows of the weight.
  const plain = described([k, n], w, 'ba')
  const rows = memoryOf(plain)
  const at = d.koffi.view(dataOf(rows), d.bytes(plain))
  const bytes = new Uint8Array(block.codes.buffer)
  const all = new Uint8Array(at)
  for (let to = 0; to < all.length; to += bytes.length) {
    all.set(bytes.subarray(0, Math.min(bytes.length, all.length - to)), to)
  }
  const reorderPlan = d.made(d.planReorder, plain, d.engine, packed, d.engine, null)
  const reorder = d.made(d.create, reorderPlan)
  const copies = Math.max(1, Math.ceil(coldBytes / d.bytes(packed)))
  const weights = Array.from({ length: copies }, () => {
    const memory = memoryOf(packed)
    execute(reorder, [args.src, rows], [args.dst, memory])
    return memory
  })
  d.streamWait(d.stream)
  d.destroy(reorder)
  d.destroyPlan(reorderPlan)
  d.memoryDestroy(rows)

  const from = memoryOf(xDescriptor)
  const to = memoryOf(yDescriptor)
  write(dataOf(from), source.codes)
  last = () => {
    for (const memory of [...weights, from, to]) d.memoryDestroy(memory)
    d.destroy(primitive)
    d.destroyPlan(plan)
    last = undefined
  }
  return {
    label: `oneDNN ${kind}`,
    launches: copies,
    run: () => {
      for (const memory of weights) {
        execute(primitive, [args.src, from], [args.weights, memory], [args.dst, to])
      }
      d.streamWait(d.stream)
    },
    error: () => {
      const bytes = d.koffi.view(dataOf(to), d.bytes(yDescriptor)).slice(0)
      const got =
        y === 's32'
          ? new Int32Array(bytes)
          : y === 'bf16'
            ? bf16Values(new Uint16Array(bytes))
            : new Float32Array(bytes)
      return relativeError((i, j) => got[i * n + j], source.exact, block.exact, { m, n, k })
    },
  }
}
