/** linear: x [M, K] times weights [N, K] of each format. */
import { linear } from '../linear'
import { native } from '../native'
import type { Quantity } from '../peaks'
import { canonical, type GroupSize, type QuantizedWeight, quantize } from '../quantize'
import { QuantizedRows, quantizeRows } from '../quantize-rows'
import type { Tensor } from '../tensor'
import type { Weight } from '../weight'
import { type Compute, computes, type Format, type ZeroPoint } from '../words'
import {
  coldBytes,
  coldM,
  defaultConfigs,
  defaultLinearShapes,
  defaultM,
  type LinearConfig,
  linearShapes,
  mostCopies,
} from './cases'
import { difference, randomFloats } from './random'
import { widths } from './rows'
import type { BenchCase, BenchContext, LinearChoices, Named } from './run'

const plainFormats: readonly Format[] = ['f32', 'f16', 'bf16']
const affineFormats: readonly Format[] = ['int4', 'int3', 'int2']
const narrowFormats: readonly Format[] = [...affineFormats, 'int1', 'ternary']

/** The configurations that the options ask for; without any of them the usual ones. */
export function configsOf(options: LinearChoices): readonly LinearConfig[] {
  const { formats, groups, zeros, computes: wanted, x } = options
  if ([formats, groups, zeros, wanted, x].every((list) => list === undefined)) return defaultConfigs
  const configs: LinearConfig[] = []
  for (const format of formats ?? (['int4'] as const)) {
    const plain = plainFormats.includes(format)
    const affine = affineFormats.includes(format)
    const usual: readonly (GroupSize | undefined)[] = [plain ? undefined : affine ? 32 : 'channel']
    for (const groupSize of plain ? usual : (groups ?? usual)) {
      if (groupSize === 'block' && narrowFormats.includes(format)) continue // there is no such format
      for (const zero of affine ? (zeros ?? (['none'] as const)) : (['none'] as const)) {
        for (const compute of wanted ?? (plain ? (['float'] as const) : (['float', 'int8'] as const))) {
          for (const dtype of x ?? [format === 'bf16' || format === 'f16' ? format : 'f32']) {
            const group = groupSize === undefined ? {} : { groupSize }
            configs.push({ format, ...group, zeros: zero, compute, x: dtype })
          }
        }
      }
    }
  }
  return configs
}

// Rows that are quantised at random; the matrix repeats them. Not a power of two, so that a row that is read in place of
// another is most often another row; a multiple of what blocks need.
const blockRows = 80
const squareRows = 128

/** Some rows of a weight, and the whole that repeats them down to `n` rows. */
interface Repeated {
  readonly block: QuantizedWeight
  readonly whole: QuantizedWeight
}

function repeatTo(source: Uint8Array, length: number): Uint8Array {
  const out = new Uint8Array(length)
  for (let at = 0; at < length; at += source.length) {
    out.set(source.subarray(0, Math.min(source.length, length - at)), at)
  }
  return out
}

function repeatedWeight(config: LinearConfig, n: number, k: number): Repeated {
  const { format, groupSize, zeros = 'none' } = config
  const rows = Math.min(n, groupSize === 'block' ? squareRows : blockRows)
  const affine = affineFormats.includes(format)
  // Rivals keep the scales of groups in 16 bits, and so do models that are loaded from files.
  const grouped = typeof groupSize === 'number' ? ({ scaleDtype: 'f16' } as const) : {}
  const block = quantize(randomFloats(rows * k), [rows, k], {
    format,
    ...(groupSize === undefined ? {} : { groupSize }),
    ...grouped,
    ...(affine ? (zeros === 'none' ? { symmetric: true } : { zeroPoint: zeros }) : {}),
  })
  const [scaleRows] = block.scaleShape
  const whole = groupSize === 'tensor' ? scaleRows : groupSize === 'block' ? Math.ceil(n / 128) : n
  const repeatedPart = <T extends Float32Array | Uint16Array | Uint8Array>(part: T | undefined) => {
    if (part === undefined) return undefined
    const bytes = new Uint8Array(part.buffer, part.byteOffset, part.byteLength)
    const all = repeatTo(bytes, (bytes.length / scaleRows) * whole)
    return new (part.constructor as new (buffer: ArrayBufferLike) => T)(all.buffer)
  }
  return {
    block,
    whole: canonical({
      format,
      shape: [n, k],
      groupSize: block.groupSize,
      zeroPoint: block.zeroPoint,
      scaleDtype: block.scaleDtype,
      codes: repeatTo(block.codes, (block.codes.length / rows) * n),
      scales: repeatedPart(block.scales),
      zeros: repeatedPart(block.zeros),
    }),
  }
}

/** The multiply-adds that a call may use. */
function arithmeticOf({ format, compute, x }: LinearConfig): Quantity[] {
  if (compute === 'int8') return narrowFormats.includes(format) ? ['int8', 'int4'] : ['int8']
  return x === 'bf16' ? ['f32', 'bf16'] : ['f32']
}

/** A call that takes a row by name. */
function forcedLinear(
  x: Tensor | QuantizedRows,
  w: Weight,
  compute: Compute,
  out: Tensor,
  row: string,
): void {
  const coded = x instanceof QuantizedRows
  native.linear(
    coded ? x.codes : x,
    coded ? x.scales : undefined,
    w,
    undefined,
    undefined,
    0,
    computes.indexOf(compute),
    undefined,
    undefined,
    out,
    undefined,
    row,
  )
}

const checkedRows = 8

/** Up to eight rows of x, the first and the last ones. */
function sampleOf(m: number): number[] {
  const all = Array.from({ length: m }, (_, i) => i)
  return m <= checkedRows ? all : [...all.slice(0, checkedRows / 2), ...all.slice(-checkedRows / 2)]
}

/** Compares all columns of some rows with what the reference row makes of the repeated rows of the weight. */
function checkLinear(
  { device }: BenchContext,
  { compute, x: dtype }: LinearConfig,
  x: Float32Array,
  block: QuantizedWeight,
  out: Tensor,
): string | undefined {
  const [m = 0, n = 0] = out.shape
  const [rows, k] = block.shape
  const sample = sampleOf(m)
  const few = new Float32Array(sample.length * k)
  for (const [i, row] of sample.entries()) few.set(x.subarray(row * k, (row + 1) * k), i * k)
  using w = device.load(block)
  using from = device.tensor(few, [sample.length, k], dtype)
  using to = device.empty([sample.length, rows], dtype)
  forcedLinear(from, w, compute, to, 'linear_ref')
  const want = to.readSync('f32')
  const got = out.readSync('f32')
  for (const [i, row] of sample.entries()) {
    const expected = Float32Array.from(
      { length: n },
      (_, column) => want[i * rows + (column % rows)] as number,
    )
    const wrong = difference(got.subarray(row * n, (row + 1) * n), expected)
    if (wrong !== undefined) return `row ${row}: ${wrong}`
  }
  return undefined
}

interface Properties {
  readonly format: Format
  readonly group?: GroupSize
  readonly scales?: string
  readonly zeros?: ZeroPoint
  readonly compute: Compute
  readonly x: string
  readonly m: number
  readonly n: number
  readonly k: number
  readonly bitsPerWeight: number
}

function propertiesOf(config: LinearConfig, weight: QuantizedWeight, m: number): Properties {
  const [n, k] = weight.shape
  return {
    format: config.format,
    ...(weight.groupSize === undefined ? {} : { group: weight.groupSize }),
    ...(weight.scaleDtype === undefined ? {} : { scales: weight.scaleDtype }),
    ...(affineFormats.includes(config.format) ? { zeros: weight.zeroPoint } : {}),
    compute: config.compute,
    x: config.quantised ? 'i8' : config.x,
    m,
    n,
    k,
    bitsPerWeight: weight.bitsPerWeight,
  }
}

/** One configuration at one shape, with every number of rows that the options name. */
export function* linearCasesOf(
  context: BenchContext,
  config: LinearConfig,
  { name, shape: [n, k] }: Named<readonly [number, number]>,
): Generator<BenchCase> {
  const { device, options } = context
  const weights: Weight[] = []
  try {
    const { block, whole } = repeatedWeight(config, n, k)
    const copies = (m: number): number => {
      if (options.hot || m > coldM) return 1
      return Math.min(mostCopies, Math.ceil(coldBytes / (weights[0] as Weight).bytes))
    }
    weights.push(device.load(whole))
    for (const m of options.m ?? defaultM) {
      while (weights.length < copies(m)) weights.push(device.load(whole))
      const used = copies(m)
      const data = randomFloats(m * k, 7)
      using x = device.tensor(data, [m, k], config.x)
      using codes = config.quantised ? quantizeRows(x) : undefined
      using out = device.empty([m, n], config.x)
      const group = typeof config.groupSize === 'number' ? `g${config.groupSize}` : (config.groupSize ?? '')
      const words = [`M${m}`, `${n}x${k}`, config.format, group, config.zeros === 'none' ? '' : config.zeros]
      if (config.quantised) words.push('x i8')
      const from = codes ?? x
      yield {
        op: 'linear',
        name,
        shape: words.filter(Boolean).join(' '),
        properties: { ...propertiesOf(config, whole, m), layout: (weights[0] as Weight).layout },
        work: {
          bytesRead: whole.byteLength + m * (config.quantised ? k + 4 : k * widths[config.x]),
          bytesWritten: m * n * widths[config.x],
          operations: 2 * m * n * k,
          arithmetic: arithmeticOf(config),
        },
        launch: (index, row) => {
          const w = weights[index % used] as Weight
          if (row === undefined) linear(from, w, { out, compute: config.compute })
          else forcedLinear(from, w, config.compute, out, row)
        },
        check: () => checkLinear(context, config, data, block, out),
      }
    }
  } finally {
    for (const weight of weights) weight.dispose()
  }
}

/** Every configuration with every shape and every number of rows. */
export function* linearCases(context: BenchContext): Generator<BenchCase> {
  const usual = defaultLinearShapes.map((name) => ({ name, shape: linearShapes[name] as [number, number] }))
  for (const config of configsOf(context.options)) {
    for (const shape of context.options.linear ?? usual) yield* linearCasesOf(context, config, shape)
  }
}
