// One pass of a Llama-family decoder over tokens of any number of sequences, written with lowbit's public ops alone.
// Touvron et al., LLaMA, 2023. For each block:
//
//   x += o(attention(q, cache))             q, k, v = qkv(rmsNorm(x)); rope turns q and k; k and v go into the cache
//   x += down(silu(gate) * up)              gate, up = gateUp(rmsNorm(x))
//
// Nine queued calls a block, none of which waits: additions ride along with o and down as `residual`, silu and the
// product with gateUp as `swiglu`. All buffers are made once. What a pass needs to know of its sequences (positions, slots,
// lengths, pages) is one array of whole numbers, written once a pass.

import { attention } from '../attention'
import type { KvCache } from '../cache'
import type { Device } from '../device'
import { embedding } from '../embedding'
import { LowbitError } from '../errors'
import { type KvSequence, PagePool } from '../kv/pool'
import { type LinearOptions, linear } from '../linear'
import { rmsNorm } from '../norm'
import { rope } from '../rope'
import type { Tensor } from '../tensor'
import type { KvFormat } from '../words'
import type { LlamaConfig } from './config'
import { ropeTables } from './rope'
import type { LlamaScheme } from './scheme'
import type { Disposables, LlamaWeights, Projection } from './weights'

/** How the keys and values of a session or a batch are kept. */
export interface KvOptions {
  /** Format of the KV cache. Default: the scheme's activations, which nothing rounds. */
  readonly kv?: KvFormat | undefined
  /** Tokens of a page: a power of two from 8 to 256. Default 32. */
  readonly pageSize?: number | undefined
  /** The first tokens of each sequence are kept as floats of the activations' dtype, whatever `kv` says. Default 0. */
  readonly prefixTokens?: number | undefined
}

/** What a decoder runs. */
export interface DecoderModel {
  readonly config: LlamaConfig
  readonly device: Device
  readonly scheme: LlamaScheme
  readonly weights: LlamaWeights
}

/** Sizes of a {@link Decoder}. */
export interface DecoderSizes extends KvOptions {
  /** Tokens that one pass takes at most. */
  readonly rows: number
  /** Sequences that there are at most. */
  readonly sequences: number
  /** Positions of a sequence at most. */
  readonly length: number
  /** Pages of the cache. */
  readonly pages: number
  /** Rows of the cache's prefix region, where there is one. Default: one for each sequence. */
  readonly prefixRows?: number | undefined
}

/** The next tokens of one sequence: the slots that {@link Decoder.grow} gave. */
export interface Part {
  readonly sequence: KvSequence
  readonly slots: Int32Array
}

// The whole numbers of a pass, one after the other in one tensor.
interface Numbers {
  readonly all: Tensor<'i32'>
  readonly ids: Tensor<'i32'>
  readonly positions: Tensor<'i32'>
  readonly slots: Tensor<'i32'>
  readonly kvLens: Tensor<'i32'>
  readonly prefixRows: Tensor<'i32'>
  readonly cuSeqlensQ: Tensor<'i32'>
  readonly last: Tensor<'i32'>
  readonly pageTable: Tensor<'i32'>
}

// The buffers as one pass sees them.
interface Pass extends Numbers {
  readonly x: Tensor
  readonly normed: Tensor
  /** Last tokens of the sequences alone. */
  readonly lastX: Tensor
  /** [rows, (heads + 2 kvHeads) * headDim] and parts of the same memory as heads. */
  readonly qkv: Tensor
  readonly qk: Tensor
  readonly k: Tensor
  readonly v: Tensor
  /** q and the result of attention: batched where all sequences have as many tokens, else packed. */
  readonly asked: Tensor
  readonly attended: Tensor
  readonly attendedHeads: Tensor
  readonly hidden: Tensor
  readonly made: Disposables
}

// Views of passes are kept for this many shapes: a full chunk, and decoding while sequences come and go.
const keptPasses = 8

const project = (x: Tensor, { weight, bias }: Projection, options: LinearOptions): Tensor =>
  linear(x, weight, bias === undefined ? options : { ...options, bias })

const powerOfTwo = (n: number): number => 2 ** Math.ceil(Math.log2(Math.max(1, n)))

/** Buffers, page pool and KV caches for passes of a model. All calls queue work and return. */
export class Decoder implements Disposable {
  /** Whose pages the sequences are of. */
  readonly pool: PagePool
  /** Tokens that one pass takes at most. */
  readonly rows: number
  private readonly made: Disposables = []
  private readonly passes = new Map<string, Pass>()
  private readonly caches: KvCache[]
  private readonly cos: Tensor
  private readonly sin: Tensor
  private readonly buffers: Readonly<
    Record<'x' | 'normed' | 'lastX' | 'qkv' | 'attended' | 'hidden', Tensor>
  > & {
    readonly numbers: Tensor<'i32'>
  }

  constructor(
    private readonly model: DecoderModel,
    sizes: DecoderSizes,
  ) {
    const { config, device, scheme } = model
    const { rows, sequences, length, pages, pageSize = 32, prefixTokens = 0 } = sizes
    const { heads, kvHeads, headDim, hiddenSize, intermediateSize } = config
    const dtype = scheme.activations ?? 'f32'
    const prefix =
      prefixTokens > 0 ? { rows: sizes.prefixRows ?? sequences, tokens: prefixTokens, dtype } : undefined
    this.rows = rows
    this.pool = new PagePool({ pages, pageSize, prefix })
    const empty = (...shape: number[]) => this.keep(device.empty(shape, dtype))
    try {
      const tables = ropeTables(config, length)
      this.cos = this.keep(device.tensor(tables.cos, [length, headDim / 2]))
      this.sin = this.keep(device.tensor(tables.sin, [length, headDim / 2]))
      const format = sizes.kv ?? dtype
      this.caches = model.weights.layers.map(() =>
        this.keep(device.kvCache({ pages, pageSize, kvHeads, headDim, format, prefix })),
      )
      const table = sequences * powerOfTwo(Math.ceil(length / pageSize))
      this.buffers = {
        numbers: this.keep(device.empty([3 * rows + 4 * sequences + 1 + table], 'i32')),
        x: empty(rows, hiddenSize),
        normed: empty(rows, hiddenSize),
        lastX: empty(sequences, hiddenSize),
        qkv: empty(rows, (heads + 2 * kvHeads) * headDim),
        attended: empty(rows, heads * headDim),
        hidden: empty(rows, intermediateSize),
      }
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  private keep<T extends Disposable>(made: T): T {
    this.made.push(made)
    return made
  }

  /** Bytes of the KV caches. */
  get cacheBytes(): number {
    return this.caches.reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /**
   * Makes room for the next tokens of a sequence, in every layer.
   *
   * @returns their slots, for {@link forward}
   * @throws LowbitError ERR_PAGES; nothing has changed then
   */
  grow(sequence: KvSequence, count: number): Int32Array {
    const { copies, moves, slots } = sequence.grow(count)
    for (const cache of this.caches) {
      if (copies.length > 0)
        cache.copyPages(
          copies.map(([from]) => from),
          copies.map(([, to]) => to),
        )
      if (moves.length > 0) {
        using saved = cache.save(moves.map(([from]) => from))
        cache.restore(
          saved,
          moves.map(([, to]) => to),
        )
      }
    }
    return slots
  }

  private numbersOf(rows: number, batch: number, width: number, made: Disposables): Numbers {
    let at = 0
    const take = (count: number): Tensor<'i32'> => {
      const view = this.buffers.numbers.slice(0, at, at + count)
      at += count
      made.push(view)
      return view
    }
    const [ids, positions, slots] = [take(rows), take(rows), take(rows)]
    const [kvLens, prefixRows, cuSeqlensQ, last] = [take(batch), take(batch), take(batch + 1), take(batch)]
    const pageTable = take(batch * width).reshape([batch, width])
    const all = this.buffers.numbers.slice(0, 0, at)
    made.push(pageTable, all)
    return { all, ids, positions, slots, kvLens, prefixRows, cuSeqlensQ, last, pageTable }
  }

  private passOf(rows: number, batch: number, each: number | undefined, width: number): Pass {
    const key = `${rows} ${batch} ${each} ${width}`
    const known = this.passes.get(key)
    if (known !== undefined) {
      // The least recently used stands first.
      this.passes.delete(key)
      this.passes.set(key, known)
      return known
    }
    const { heads, kvHeads, headDim } = this.model.config
    const made: Disposables = []
    const view = <T extends Tensor>(tensor: T): T => {
      made.push(tensor)
      return tensor
    }
    const cut = (tensor: Tensor): Tensor => view(tensor.slice(0, 0, rows))
    const { buffers } = this
    const [qkv, attended] = [cut(buffers.qkv), cut(buffers.attended)]
    const tokens = each === undefined ? [rows] : [batch, each]
    const byHead = view(qkv.reshape([rows, heads + 2 * kvHeads, headDim]))
    const inForm = view(qkv.reshape([...tokens, heads + 2 * kvHeads, headDim]))
    const pass: Pass = {
      ...this.numbersOf(rows, batch, width, made),
      x: cut(buffers.x),
      normed: cut(buffers.normed),
      lastX: view(buffers.lastX.slice(0, 0, batch)),
      qkv,
      qk: view(byHead.slice(1, 0, heads + kvHeads)),
      k: view(byHead.slice(1, heads, heads + kvHeads)),
      v: view(byHead.slice(1, heads + kvHeads, heads + 2 * kvHeads)),
      asked: view(inForm.slice(tokens.length, 0, heads)),
      attended,
      attendedHeads: view(attended.reshape([...tokens, heads, headDim])),
      hidden: cut(buffers.hidden),
      made,
    }
    this.passes.set(key, pass)
    for (const [old, { made: views }] of this.passes) {
      if (this.passes.size <= keptPasses) break
      for (const one of views) one[Symbol.dispose]()
      this.passes.delete(old)
    }
    return pass
  }

  // In the order of `numbersOf`.
  private write(pass: Pass, parts: readonly Part[], ids: Int32Array | undefined, width: number): void {
    const rows = pass.x.shape[0] ?? 0
    const batch = parts.length
    const numbers = new Int32Array(3 * rows + 4 * batch + 1 + batch * width)
    const lists = 3 * rows
    const table = lists + 4 * batch + 1
    if (ids !== undefined) numbers.set(ids)
    let row = 0
    for (const [b, { sequence, slots }] of parts.entries()) {
      const begin = sequence.length - slots.length
      for (let i = 0; i < slots.length; i++) numbers[rows + row + i] = begin + i
      numbers.set(slots, 2 * rows + row)
      row += slots.length
      numbers[lists + b] = sequence.length
      numbers[lists + batch + b] = sequence.prefixRow
      numbers[lists + 2 * batch + b + 1] = row
      numbers[lists + 3 * batch + 1 + b] = row - 1
      numbers.set(sequence.pageTable, table + b * width)
    }
    pass.all.write(numbers)
  }

  /**
   * Runs the blocks over the next tokens of some sequences, in one pass.
   *
   * @param parts whose tokens come, each sequence once; all of a part's slots are new
   * @param ids the tokens of all parts, end to end; or an i32 tensor that an op on the device writes
   * @param only 'last': of each part only the last token's row is wanted
   * @returns [tokens, hiddenSize] or [parts, hiddenSize], normed and ready for {@link logits}: a view of a buffer that the
   *   next pass overwrites
   */
  forward(parts: readonly Part[], ids: Int32Array | Tensor<'i32'>, only: 'all' | 'last' = 'all'): Tensor {
    const { config, weights, scheme } = this.model
    const rows = parts.reduce((sum, { slots }) => sum + slots.length, 0)
    const count = parts[0]?.slots.length
    const each = parts.every(({ slots }) => slots.length === count) ? count : undefined
    const width = powerOfTwo(
      parts.reduce((most, { sequence }) => Math.max(most, sequence.pageTable.length), 0),
    )
    const pass = this.passOf(rows, parts.length, each, width)
    const given = ids instanceof Int32Array ? ids : undefined
    this.write(pass, parts, given, width)

    const { x, normed, qkv, qk, k, v, attended, hidden, positions, kvLens, pageTable } = pass
    const { cos, sin } = this
    const compute = scheme.compute ?? 'float'
    const toNormed = { eps: config.normEps, out: normed }
    const toQkv = { compute, out: qkv }
    const toHidden = { compute, activation: 'swiglu', out: hidden } as const
    const addToX = { compute, residual: x, out: x }
    const turn = { cos, sin, positions, pairing: 'half', out: qk } as const
    const cuSeqlensQ = each === undefined ? pass.cuSeqlensQ : undefined
    const prefixRows = this.pool.prefixTokens > 0 ? pass.prefixRows : undefined
    const seen = { causal: true, pageTable, kvLens, cuSeqlensQ, prefixRows, out: pass.attendedHeads }
    embedding(weights.embedding, given === undefined ? (ids as Tensor) : pass.ids, { out: x })
    for (const [index, layer] of weights.layers.entries()) {
      const cache = this.caches[index] as KvCache
      rmsNorm(x, layer.attentionNorm, toNormed)
      project(normed, layer.qkv, toQkv)
      rope(qk, turn)
      cache.append(k, v, pass.slots)
      attention(pass.asked, cache, seen)
      project(attended, layer.o, addToX)
      rmsNorm(x, layer.mlpNorm, toNormed)
      project(normed, layer.gateUp, toHidden)
      project(hidden, layer.down, addToX)
    }
    if (only === 'all' || each === 1) return rmsNorm(x, weights.norm, toNormed)
    embedding(x, pass.last, { out: pass.lastX })
    return rmsNorm(pass.lastX, weights.norm, { eps: config.normEps, out: pass.lastX })
  }

  /**
   * Logits of what {@link forward} returned, or of some of its rows.
   *
   * @param hidden [rows, hiddenSize]
   * @returns f32 [rows, vocabSize]; `out` where it was given
   */
  logits(hidden: Tensor, out?: Tensor): Tensor<'f32'> {
    const { device, config, weights } = this.model
    const to = out ?? device.empty([hidden.shape[0] ?? 0, config.vocabSize], 'f32')
    return linear(hidden, weights.head.weight, { out: to }) as Tensor<'f32'>
  }

  /** The tokens as an array. @throws LowbitError ERR_ARGUMENT where one is not in the vocabulary. */
  idsOf(tokens: readonly number[] | Int32Array, where: string): Int32Array {
    const { vocabSize } = this.model.config
    for (const token of tokens) {
      if (!(Number.isInteger(token) && token >= 0 && token < vocabSize)) {
        const range = `tokens from 0 to ${vocabSize - 1}`
        throw new LowbitError('ERR_ARGUMENT', `${where}: expected ${range} but got ${token}`)
      }
    }
    return tokens instanceof Int32Array ? tokens : Int32Array.from(tokens)
  }

  /** Gives the caches and the buffers back. */
  dispose(): void {
    for (const { made } of this.passes.values()) for (const view of made) view[Symbol.dispose]()
    this.passes.clear()
    for (const thing of this.made) thing[Symbol.dispose]()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}
