// The tensors of a Llama checkpoint on a device: shapes checked against the config, q, k and v joined into one
// weight, gate and up woven row by row as `swiglu` reads them.

import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint'
import type { Device } from '../device'
import { LowbitError } from '../errors'
import { quantize } from '../quantize'
import type { Tensor } from '../tensor'
import type { Weight } from '../weight'
import type { LlamaConfig } from './config'
import type { LlamaScheme } from './scheme'

/** A weight and the bias that goes with it. */
export interface Projection {
  readonly weight: Weight
  readonly bias: Tensor | undefined
  /** Bytes of codes, scales and zeros as they are saved, without the padding that the device adds. */
  readonly storedBytes: number
}

/** One decoder block. */
export interface LlamaLayer {
  readonly attentionNorm: Tensor
  /** [(heads + 2 kvHeads) * headDim, hiddenSize]: the rows of q, then k, then v. */
  readonly qkv: Projection
  readonly o: Projection
  readonly mlpNorm: Tensor
  /** [2 intermediateSize, hiddenSize]: row 2i is gate, row 2i + 1 up. */
  readonly gateUp: Projection
  readonly down: Projection
}

/** Everything that a checkpoint brings. */
export interface LlamaWeights {
  /** [vocabSize, hiddenSize] */
  readonly embedding: Tensor
  readonly layers: readonly LlamaLayer[]
  readonly norm: Tensor
  /** [vocabSize, hiddenSize]; never quantised. */
  readonly head: Projection
}

/** Options of {@link loadWeights}. */
export interface LoadOptions {
  readonly signal?: AbortSignal | undefined
  /** Called after each decoder block. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

type FloatDType = 'f32' | 'f16' | 'bf16'
interface Matrix {
  readonly name: string
  readonly data: Float32Array | Uint16Array
  readonly dtype: FloatDType
  readonly rows: number
  readonly columns: number
}

const floatDTypes: Readonly<Record<string, FloatDType>> = { F32: 'f32', F16: 'f16', BF16: 'bf16' }

// Everything made so far, to be given back when loading fails half way.
export type Disposables = Disposable[]

class Loader {
  constructor(
    private readonly checkpoint: Checkpoint,
    private readonly device: Device,
    private readonly scheme: LlamaScheme,
    private readonly signal: AbortSignal | undefined,
    private readonly made: Disposables,
  ) {}

  /** A tensor of the given sizes; a vector is one column. */
  async matrix(name: string, rows: number, columns?: number): Promise<Matrix> {
    const { dtype: found, shape } = this.checkpoint.info(name)
    const expected = columns === undefined ? [rows] : [rows, columns]
    const dtype = floatDTypes[found]
    if (dtype === undefined || shape.join() !== expected.join()) {
      throw new LowbitError(
        'ERR_FILE',
        `checkpoint: ${this.checkpoint.path}: expected ${name} to be F32, F16 or BF16 [${expected.join(', ')}] but it is ${found} [${shape.join(', ')}]`,
      )
    }
    const { data } = await this.checkpoint.read(name, { signal: this.signal })
    return { name, data: data as Float32Array | Uint16Array, dtype, rows, columns: columns ?? 1 }
  }

  private keep<T extends Disposable>(made: T): T {
    this.made.push(made)
    return made
  }

  table({ data, dtype, rows, columns }: Matrix): Tensor {
    return this.keep(this.device.tensor(data, [rows, columns], dtype))
  }

  /** A vector as f32, which holds every value of the other dtypes. */
  vector(...parts: Matrix[]): Tensor {
    const pieces = parts.map(({ data, dtype, rows }) => {
      using raw = this.device.tensor(data, [rows], dtype)
      return raw.readSync('f32')
    })
    const joined = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0))
    let at = 0
    for (const piece of pieces) {
      joined.set(piece, at)
      at += piece.length
    }
    return this.keep(this.device.tensor(joined, [joined.length]))
  }

  private project(matrix: Matrix, scheme: LlamaScheme, bias: Tensor | undefined): Projection {
    const { format, groupSize, symmetric, planes, clip } = scheme
    const stored = this.naming(matrix.name, () =>
      quantize(matrix.data, [matrix.rows, matrix.columns], {
        format,
        ...(matrix.dtype === 'f32' ? {} : { dtype: matrix.dtype }),
        ...(groupSize === undefined ? {} : { groupSize }),
        ...(symmetric === undefined ? {} : { symmetric }),
        ...{ planes, clip },
      }),
    )
    return { weight: this.keep(this.device.load(stored)), bias, storedBytes: stored.byteLength }
  }

  // NaN in a file is found by quantize, which knows no names.
  private naming<T>(name: string, make: () => T): T {
    try {
      return make()
    } catch (error) {
      if (!(error instanceof LowbitError)) throw error
      throw new LowbitError(error.code, `checkpoint: ${this.checkpoint.path}: ${name}: ${error.message}`, {
        cause: error,
      })
    }
  }

  /** In the format of its own elements, which no rounding touches; f32 where the scheme is. */
  exact(matrix: Matrix): Projection {
    return this.project(matrix, { format: this.scheme.format === 'f32' ? 'f32' : matrix.dtype }, undefined)
  }

  quantised(matrix: Matrix, bias: Tensor | undefined): Projection {
    return this.project(matrix, this.scheme, bias)
  }
}

// Rows of several matrices into one: `place(part, row)` says where each row goes.
function arrange(parts: readonly Matrix[], place: (part: number, row: number) => number): Matrix {
  const [first] = parts
  if (
    first === undefined ||
    parts.some(({ dtype, columns }) => dtype !== first.dtype || columns !== first.columns)
  ) {
    throw new LowbitError('ERR_FILE', 'checkpoint: expected the matrices of one projection to share a dtype')
  }
  const { columns, dtype } = first
  const rows = parts.reduce((sum, part) => sum + part.rows, 0)
  const data = dtype === 'f32' ? new Float32Array(rows * columns) : new Uint16Array(rows * columns)
  for (const [index, part] of parts.entries()) {
    for (let row = 0; row < part.rows; row++) {
      data.set(part.data.subarray(row * columns, (row + 1) * columns), place(index, row) * columns)
    }
  }
  return { name: parts.map(({ name }) => name).join(', '), data, dtype, rows, columns }
}

function stack(parts: readonly Matrix[]): Matrix {
  const starts = parts.map((_, i) => parts.slice(0, i).reduce((sum, part) => sum + part.rows, 0))
  return arrange(parts, (part, row) => (starts[part] ?? 0) + row)
}

function weave(gate: Matrix, up: Matrix): Matrix {
  return arrange([gate, up], (part, row) => 2 * row + part)
}

async function loadLayer(loader: Loader, config: LlamaConfig, index: number): Promise<LlamaLayer> {
  const { hiddenSize, intermediateSize, attentionBias, mlpBias } = config
  const width = config.heads * config.headDim
  const kvWidth = config.kvHeads * config.headDim
  const name = (part: string, what: string) => `model.layers.${index}.${part}.${what}`
  const attention = (part: string) => `self_attn.${part}_proj`
  const mlp = (part: string) => `mlp.${part}_proj`
  const weight = (part: string, rows: number, columns: number) =>
    loader.matrix(name(part, 'weight'), rows, columns)
  const bias = (part: string, rows: number) => loader.matrix(name(part, 'bias'), rows)

  const qkv = stack([
    await weight(attention('q'), width, hiddenSize),
    await weight(attention('k'), kvWidth, hiddenSize),
    await weight(attention('v'), kvWidth, hiddenSize),
  ])
  const qkvBias = attentionBias
    ? loader.vector(
        await bias(attention('q'), width),
        await bias(attention('k'), kvWidth),
        await bias(attention('v'), kvWidth),
      )
    : undefined
  const gateUp = weave(
    await weight(mlp('gate'), intermediateSize, hiddenSize),
    await weight(mlp('up'), intermediateSize, hiddenSize),
  )
  const gateUpBias = mlpBias
    ? loader.vector(weave(await bias(mlp('gate'), intermediateSize), await bias(mlp('up'), intermediateSize)))
    : undefined
  return {
    attentionNorm: loader.vector(await loader.matrix(name('input_layernorm', 'weight'), hiddenSize)),
    qkv: loader.quantised(qkv, qkvBias),
    o: loader.quantised(
      await weight(attention('o'), hiddenSize, width),
      attentionBias ? loader.vector(await bias(attention('o'), hiddenSize)) : undefined,
    ),
    mlpNorm: loader.vector(await loader.matrix(name('post_attention_layernorm', 'weight'), hiddenSize)),
    gateUp: loader.quantised(gateUp, gateUpBias),
    down: loader.quantised(
      await weight(mlp('down'), hiddenSize, intermediateSize),
      mlpBias ? loader.vector(await bias(mlp('down'), hiddenSize)) : undefined,
    ),
  }
}

/**
 * Reads a checkpoint onto a device.
 *
 * @param made receives every tensor and weight as it is made
 * @throws LowbitError ERR_FILE where a tensor is missing or has another shape or dtype than the config asks for
 */
export async function loadWeights(
  path: string,
  config: LlamaConfig,
  device: Device,
  scheme: LlamaScheme,
  made: Disposables,
  options: LoadOptions = {},
): Promise<LlamaWeights> {
  const { signal, onProgress } = options
  using checkpoint = await openCheckpoint(path, { signal })
  const loader = new Loader(checkpoint, device, scheme, signal, made)
  const embedding = await loader.matrix('model.embed_tokens.weight', config.vocabSize, config.hiddenSize)
  const head = config.tiedHead
    ? embedding
    : await loader.matrix('lm_head.weight', config.vocabSize, config.hiddenSize)
  const layers: LlamaLayer[] = []
  for (let index = 0; index < config.layers; index++) {
    layers.push(await loadLayer(loader, config, index))
    onProgress?.(index + 1, config.layers)
  }
  return {
    embedding: loader.table(embedding),
    layers,
    norm: loader.vector(await loader.matrix('model.norm.weight', config.hiddenSize)),
    head: loader.exact(head),
  }
}
