// Writes a checkpoint of the Llama family as a GGUF file, version 3, for llama.cpp. It has no vocabulary: the bench speaks
// in token ids. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
import fs from 'node:fs'
import path from 'node:path'
import { openCheckpoint } from '../../dist/index.js'
import { bf16Of, bf16Values } from './numbers.mjs'

const alignment = 32
const padded = (bytes) => Math.ceil(bytes / alignment) * alignment

function number(write, bytes) {
  return (value) => {
    const buffer = Buffer.alloc(bytes)
    buffer[write](value)
    return buffer
  }
}
const u32 = number('writeUInt32LE', 4)
const f32 = number('writeFloatLE', 4)
const u64 = (value) => number('writeBigUInt64LE', 8)(BigInt(value))
const text = (value) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)])

// [number in the file, its bytes]
const kinds = { u32: [4, u32], f32: [6, f32], text: [8, text] }
const entry = (key, kind, value) => Buffer.concat([text(key), u32(kinds[kind][0]), kinds[kind][1](value)])

/** Rows of each head from halves to neighbours: llama.cpp turns columns 2i and 2i + 1 together. */
function interleaved(values, heads, columns) {
  const rows = values.length / columns
  const dim = rows / heads
  const out = new Float32Array(values.length)
  for (let r = 0; r < rows; r++) {
    const within = r % dim
    const from = r - within + (within % 2) * (dim / 2) + (within >> 1)
    out.set(values.subarray(from * columns, (from + 1) * columns), r * columns)
  }
  return out
}

/**
 * @param folder of a checkpoint whose rope has no scaling
 * @param encode bytes of rows of floats: (values, columns) => Buffer; and its number in ggml.h, for the blocks' weights
 */
export async function writeGguf(file, folder, { type, encode }) {
  const config = JSON.parse(fs.readFileSync(path.join(folder, 'config.json'), 'utf8'))
  const checkpoint = await openCheckpoint(folder)
  const heads = config.num_attention_heads
  const kvHeads = config.num_key_value_heads ?? heads
  const hidden = config.hidden_size
  const headDim = config.head_dim ?? hidden / heads
  const pairs = [
    entry('general.architecture', 'text', 'llama'),
    entry('general.alignment', 'u32', alignment),
    entry('llama.context_length', 'u32', config.max_position_embeddings),
    entry('llama.embedding_length', 'u32', hidden),
    entry('llama.block_count', 'u32', config.num_hidden_layers),
    entry('llama.feed_forward_length', 'u32', config.intermediate_size),
    entry('llama.attention.head_count', 'u32', heads),
    entry('llama.attention.head_count_kv', 'u32', kvHeads),
    entry('llama.attention.key_length', 'u32', headDim),
    entry('llama.attention.value_length', 'u32', headDim),
    entry('llama.rope.dimension_count', 'u32', headDim),
    entry('llama.rope.freq_base', 'f32', config.rope_parameters?.rope_theta ?? config.rope_theta ?? 10000),
    entry('llama.attention.layer_norm_rms_epsilon', 'f32', config.rms_norm_eps),
    entry('llama.vocab_size', 'u32', config.vocab_size),
    entry('tokenizer.ggml.model', 'text', 'none'),
  ]
  const floats = (name) => {
    const { dtype, data } = checkpoint.readSync(name)
    if (dtype === 'F32') return data
    if (dtype === 'BF16')
      return bf16Values(new Uint16Array(data.buffer, data.byteOffset, data.byteLength / 2))
    throw new Error(`${name}: expected F32 or BF16 but got ${dtype}`)
  }
  const bytesOf = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength)
  const ggmlF32 = 0
  const ggmlBf16 = 30
  const tensors = []
  const add = (name, sizes, kind, data) => tensors.push({ name, sizes, kind, data })
  const norm = (name, from) => add(name, [hidden], ggmlF32, bytesOf(floats(from)))
  const table = (name, from) =>
    add(name, [hidden, config.vocab_size], ggmlBf16, bytesOf(bf16Of(floats(from))))
  const weight = (name, from, [rows, columns], order = (values) => values) =>
    add(name, [columns, rows], type, encode(order(floats(from)), columns))
  table('token_embd.weight', 'model.embed_tokens.weight')
  norm('output_norm.weight', 'model.norm.weight')
  if (config.tie_word_embeddings !== true) table('output.weight', 'lm_head.weight')
  for (let i = 0; i < config.num_hidden_layers; i++) {
    const [to, from] = [`blk.${i}`, `model.layers.${i}`]
    const wide = config.intermediate_size
    const turned = (count) => (values) => interleaved(values, count, hidden)
    norm(`${to}.attn_norm.weight`, `${from}.input_layernorm.weight`)
    norm(`${to}.ffn_norm.weight`, `${from}.post_attention_layernorm.weight`)
    weight(`${to}.attn_q.weight`, `${from}.self_attn.q_proj.weight`, [heads * headDim, hidden], turned(heads))
    weight(
      `${to}.attn_k.weight`,
      `${from}.self_attn.k_proj.weight`,
      [kvHeads * headDim, hidden],
      turned(kvHeads),
    )
    weight(`${to}.attn_v.weight`, `${from}.self_attn.v_proj.weight`, [kvHeads * headDim, hidden])
    weight(`${to}.attn_output.weight`, `${from}.self_attn.o_proj.weight`, [hidden, heads * headDim])
    weight(`${to}.ffn_gate.weight`, `${from}.mlp.gate_proj.weight`, [wide, hidden])
    weight(`${to}.ffn_up.weight`, `${from}.mlp.up_proj.weight`, [wide, hidden])
    weight(`${to}.ffn_down.weight`, `${from}.mlp.down_proj.weight`, [hidden, wide])
  }
  let at = 0
  const infos = tensors.map(({ name, sizes, kind, data }) => {
    const info = Buffer.concat([text(name), u32(sizes.length), ...sizes.map(u64), u32(kind), u64(at)])
    at += padded(data.length)
    return info
  })
  const head = [Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(pairs.length), ...pairs, ...infos]
  const out = fs.openSync(file, 'w')
  const write = (data) =>
    fs.writeSync(out, Buffer.concat([data, Buffer.alloc(padded(data.length) - data.length)]))
  write(Buffer.concat(head))
  for (const { data } of tensors) write(data)
  fs.closeSync(out)
  return { vocabSize: config.vocab_size }
}
