// llama.cpp whole: the shared libraries of node-llama-cpp, called through koffi, run a checkpoint that gguf.mjs has written
// into a temporary file. Its parameters are those that the library gives as its own defaults, threads excepted.
import fs from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import path from 'node:path'
import { writeGguf } from './gguf.mjs'

// [number in ggml.h, bytes of a block of 32 weights]
const types = { q4_0: [2, 18], q8_0: [8, 34] }

let l

export function open() {
  const koffi = createRequire(import.meta.url)('koffi')
  const root = path.join(import.meta.dirname, 'node_modules/@node-llama-cpp/linux-x64/bins/linux-x64')
  const load = (name) => {
    const file = fs
      .readdirSync(root)
      .find((known) => new RegExp(`^lib${name}\\.(v[\\d.]+\\.)?so$`).test(known))
    return koffi.load(path.join(root, file), { global: true })
  }
  const base = load('ggml-base')
  const front = load('ggml')
  const llama = load('llama')
  // Larger than both structures of parameters, which are given to the library as it gave them: only n_ctx, the first
  // field of the context's, is set.
  koffi.struct('Params', { words: koffi.array('uint64_t', 40) })
  koffi.struct('Batch', {
    count: 'int32_t',
    token: 'int32_t *',
    embd: 'void *',
    pos: 'void *',
    sequences: 'void *',
    sequence: 'void *',
    logits: 'void *',
  })
  front.func('void ggml_backend_load_all_from_path(const char *)')(root)
  llama.func('void llama_backend_init()')()
  const log = koffi.register(() => {}, koffi.pointer(koffi.proto('void Log(int, const char *, void *)')))
  llama.func('void llama_log_set(void *, void *)')(log, null)
  l = {
    koffi,
    modelParams: llama.func('Params llama_model_default_params()')(),
    contextParams: llama.func('Params llama_context_default_params()')(),
    model: llama.func('void *llama_model_load_from_file(const char *, Params)'),
    freeModel: llama.func('void llama_model_free(void *)'),
    context: llama.func('void *llama_init_from_model(void *, Params)'),
    freeContext: llama.func('void llama_free(void *)'),
    threads: llama.func('void llama_set_n_threads(void *, int, int)'),
    batch: llama.func('Batch llama_batch_get_one(int32_t *, int)'),
    decode: llama.func('int llama_decode(void *, Batch)'),
    logits: llama.func('float *llama_get_logits_ith(void *, int)'),
    memory: llama.func('void *llama_get_memory(void *)'),
    forget: llama.func('bool llama_memory_seq_rm(void *, int, int, int)'),
    quantize: base.func(
      'size_t ggml_quantize_chunk(int, const float *, _Out_ void *, int64_t, int64_t, int64_t, const float *)',
    ),
  }
  const version = base.func('const char *ggml_version()')()
  return `llama.cpp, ggml ${version} ${base.func('const char *ggml_commit()')()}`
}

let last

export async function prepare({ folder, format, prompt, steps, threads, logits: exact }) {
  last?.()
  const [type, blockBytes] = types[format]
  const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'lowbit-peer-')), 'model.gguf')
  const encode = (values, columns) => {
    const bytes = Buffer.alloc((values.length / 32) * blockBytes)
    l.quantize(type, values, bytes, 0, values.length / columns, columns, null)
    return bytes
  }
  const { vocabSize } = await writeGguf(file, folder, { type, encode })
  const { size } = fs.statSync(file)
  const model = l.model(file, l.modelParams)
  if (!model) throw new Error('llama.cpp does not load the model')
  new Uint32Array(l.contextParams.words.buffer)[0] = prompt.length + steps
  const context = l.context(model, l.contextParams)
  last = () => {
    l.freeContext(context)
    l.freeModel(model)
    fs.rmSync(path.dirname(file), { recursive: true })
    last = undefined
  }
  process.on('exit', () => last?.())
  l.threads(context, threads, threads)
  const row = () => new Float32Array(l.koffi.view(l.logits(context, -1), vocabSize * 4))
  /** Runs tokens; the likeliest next one. */
  const step = (tokens) => {
    const status = l.decode(context, l.batch(tokens, tokens.length))
    if (status !== 0) throw new Error(`llama_decode gave ${status}`)
    const values = row()
    let best = 0
    for (let i = 1; i < vocabSize; i++) if (values[i] > values[best]) best = i
    return best
  }
  const first = step(Int32Array.from(prompt))
  const off = row().reduce((sum, value, i) => sum + (value - exact[i]) ** 2, 0)
  const all = exact.reduce((sum, value) => sum + value ** 2, 0)
  return {
    label: `llama.cpp ${format.toUpperCase()}`,
    launches: steps,
    bytes: size,
    run: () => {
      l.forget(l.memory(context), 0, prompt.length, -1)
      let token = first
      for (let i = 0; i < steps; i++) token = step(Int32Array.of(token))
    },
    error: () => Math.sqrt(off / all),
  }
}
