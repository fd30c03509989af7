// Every kernel row of linear and quantizeRows that this machine can run, forced by name, over shapes that come from the
// row's own limits and a seeded choice of everything else. Whole numbers, on which any order of summation is exact, must
// come out to the bit; random ones are judged by the error rule of test/ref/linear.ts. Results are the same bits for 1, 2
// and 3 threads and once more. The last test does all of it again in guarded memory: there, inputs end at protected pages
// and the bytes before every block are checked when it is freed.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import {
  type Activation,
  backends,
  type Compute,
  canonical,
  type Device,
  type DType,
  type Format,
  type GroupSize,
  type Layout,
  type QuantizedWeight,
  quantize,
  type Tensor,
  type ZeroPoint,
} from 'lowbit'
import { description, type KernelRow, native } from 'lowbit/native'
import { selectLinear } from 'lowbit/select'
import { activations, computes, dtypes, zeroPoints } from 'lowbit/words'
import { onCpu, openTest, testDevice } from './ref/device'
import { decodeFloat, encodeFloat, minifloats } from './ref/floats'
import {
  type CodeName,
  codeValue,
  columnsOf,
  encodeFloats,
  enough,
  type FloatName,
  isGated,
  judge,
  linear64,
  type RefCall,
  refQuantizeRows,
  refWeight,
  roundAll,
  roundTo,
  scaleBlock,
} from './ref/linear'
import {
  codeBits,
  groupSizesOf,
  isAffine,
  mxElements,
  type ScaleDtype,
  scaleDtypesOf,
  writeCode,
} from './ref/quantize'
import { Random } from './ref/random'

// jest runs tests in a context whose globals are looked up slowly.
const { ceil, floor, max } = Math
const { isNaN: isNan } = Number

const guarded = process.env.LB_GUARD === '1'
const patience = 300_000

const floatNames = ['f32', 'f16', 'bf16'] as const
const isFloatName = (name: string): name is FloatName => (floatNames as readonly string[]).includes(name)

let devices: Device[]
beforeAll(() => {
  devices = [1, 2, 3].map((threads) => openTest({ threads }))
})
afterAll(() => {
  for (const device of devices) device.close()
})

/** Hands out its items in random order, each once before any comes again: a small sample still meets all of them. */
class Deck<T> {
  #left: T[] = []
  constructor(
    readonly random: Random,
    readonly items: readonly T[],
  ) {}
  next(accept: (item: T) => boolean = () => true): T {
    if (!this.#left.some(accept)) this.#left.push(...this.items)
    const fitting = this.#left.filter(accept)
    const item = this.random.pick(fitting)
    this.#left.splice(this.#left.indexOf(item), 1)
    return item
  }
}

// ---- calls ---------------------------------------------------------------------------------------------------------

interface LinearRow extends KernelRow {
  formats: Format[]
  layouts: Layout[]
  x: DType[]
  computes: Compute[]
  zeros: boolean
  floatZeros: boolean
  oneScale: boolean
  blockScales: boolean
  fp8Sums: boolean
  manyTables: boolean
  planes: boolean
  mMin: number
  mMax: number
  nMultiple: number
  kMultiple: number
  groupMultiple: number
  groupMax: number
}

interface Scheme {
  readonly groupSize?: GroupSize
  readonly zeroPoint?: ZeroPoint
  readonly scaleDtype?: ScaleDtype
  readonly tablePer?: 'tensor' | 'row' | 'group'
  readonly planes?: number
}

/** What x is: floats, or codes with scales per row or block. */
interface Input {
  readonly compute: Compute
  readonly dtype: DType
  readonly per?: 'row' | 'block'
}

type Data = 'whole' | 'ends' | 'random'

interface Call extends Input {
  readonly m: number
  readonly n: number
  readonly k: number
  readonly format: Format
  readonly layout: Layout
  readonly scheme: Scheme
  /** Whether the row adds products of codes as integers. */
  readonly exact: boolean
  /** Whether it adds runs of them as fp8 tensor cores do. */
  readonly fp8Sums: boolean
  readonly activation: Activation
  readonly bias: FloatName | 'none'
  readonly residual: FloatName | 'none' | 'out'
  readonly out: FloatName
  /** Whether x, residual and out are views whose rows are further apart than they are long. */
  readonly views: boolean
  readonly data: Data
}

/** Formats that may store zero points. */
const hasZeros = (format: Format) => isAffine(format) || format === 'int1'

/** Whether weights of a scheme can lie in a layout. */
function holds(layout: Layout, format: Format, scheme: Scheme): boolean {
  try {
    selectLinear({ m: 1, n: 256, k: 256, format, layout, ...scheme }, { archs: ['cpu'] })
    return true
  } catch {
    return false
  }
}

function schemesOf(row: LinearRow, format: Format, layout: Layout): Scheme[] {
  if (isFloatName(format)) return [{}].filter((scheme) => holds(layout, format, scheme))
  const zeros: readonly ZeroPoint[] =
    hasZeros(format) && row.zeros ? zeroPoints.filter((z) => row.floatZeros || z !== 'float') : ['none']
  const tables: Scheme[] =
    format !== 'codebook4'
      ? [{}]
      : row.manyTables
        ? [{ tablePer: 'tensor' }, { tablePer: 'row' }, { tablePer: 'group' }]
        : [{ tablePer: 'tensor' }]
  const sizes = groupSizesOf(format)
    .filter((size) => typeof size !== 'number' || size % row.groupMultiple === 0)
    .filter((size) => row.groupMax === 0 || (typeof size === 'number' && size <= row.groupMax))
    .filter(
      (size) =>
        !row.oneScale || size === 'channel' || size === 'tensor' || (row.blockScales && size === 'block'),
    )
  const several: Scheme[] =
    format !== 'int1' || !row.planes
      ? []
      : [
          { planes: 2, zeroPoint: 'none', scaleDtype: 'f32' },
          { planes: 3, zeroPoint: row.zeros ? 'integer' : 'none', scaleDtype: 'f16' },
          { planes: 8, zeroPoint: zeros.at(-1) ?? 'none', scaleDtype: 'bf16' },
        ]
  return sizes
    .flatMap((groupSize) => [
      ...several.map((scheme) => ({ groupSize, ...scheme })),
      ...zeros.flatMap((zeroPoint) =>
        scaleDtypesOf(format).flatMap((scaleDtype) =>
          tables.map((table) => ({ groupSize, zeroPoint, scaleDtype, ...table })),
        ),
      ),
    ])
    .filter((scheme) => holds(layout, format, scheme))
}

function inputsOf(row: LinearRow): Input[] {
  return row.computes.flatMap((compute) =>
    row.x.flatMap((dtype): Input[] => {
      if (isFloatName(dtype)) return [{ compute, dtype }]
      if (compute === 'int8') return dtype === 'i8' ? [{ compute, dtype, per: 'row' }] : []
      if (compute !== 'float' && dtype === 'i8') return []
      if (row.oneScale && !row.blockScales) return [{ compute, dtype, per: 'row' }]
      return [
        { compute, dtype, per: 'row' },
        { compute, dtype, per: 'block' },
      ]
    }),
  )
}

/** A row that serves compute int8 alone multiplies integers. */
const isInteger = (row: LinearRow) => row.computes.every((compute) => compute === 'int8')

function columnsFor(row: LinearRow, groupSize: GroupSize | undefined): number[] {
  const g = typeof groupSize === 'number' ? groupSize : groupSize === 'block' ? 128 : 0
  const sizes =
    g > 0
      ? [1, 7, g / 2, g - 1, g, g + 1, 2 * g, 2 * g + 7, 3 * g, 3 * g - 5, 5 * g]
      : [1, 2, 3, 4, 5, 7, 8, 9, 15, 31, 32, 33, 64, 100, 255, 257, 300]
  return [...new Set(sizes.map((k) => ceil(k / row.kMultiple) * row.kMultiple))]
}

const serves = (row: LinearRow, m: number) => m >= row.mMin && (row.mMax === 0 || m <= row.mMax)

/** Sizes beyond what fits in the blocks, stages and segments that kernels cut a call into. */
const large = [
  [1030, 17, 40],
  [97, 130, 33],
  [5, 200, 2100],
  [1, 270, 1000],
  [100, 33, 700],
  [96, 17, 2800],
] as const

function* callsOf(row: LinearRow, format: Format, layout: Layout, random: Random): Generator<Call> {
  const ms = [1, 2, 3, 5, 6, 7, 8, 9, 16, 17, 33, 65, row.mMin, row.mMax - 1, row.mMax]
  const ns = row.nMultiple === 1 ? [1, 2, 3, 7, 16, 17, 33, 34] : [1, 2, 3, 5]
  const decks = {
    m: new Deck(
      random,
      ms.filter((m) => m > 0 && serves(row, m)),
    ),
    n: new Deck(
      random,
      ns.map((n) => n * row.nMultiple),
    ),
    k: new Map<GroupSize | undefined, Deck<number>>(),
    scheme: new Deck(random, schemesOf(row, format, layout)),
    input: new Deck(random, inputsOf(row)),
    activation: new Deck(random, activations),
    bias: new Deck(random, ['none', ...floatNames] as const),
    residual: new Deck(random, ['none', 'out', ...floatNames] as const),
    out: new Deck(random, floatNames),
    views: new Deck(random, [false, true]),
    data: new Deck<Data>(random, isUneven(format) ? ['random'] : ['whole', 'random', 'ends']),
  }
  const call = (shape?: readonly [number, number, number]): Call => {
    const scheme = decks.scheme.next()
    let ks = decks.k.get(scheme.groupSize)
    if (ks === undefined) {
      ks = new Deck(random, columnsFor(row, scheme.groupSize))
      decks.k.set(scheme.groupSize, ks)
    }
    const [m, n, any] = shape ?? [decks.m.next(), decks.n.next(), ks.next()]
    const whole = typeof scheme.groupSize === 'number' ? scheme.groupSize : 32
    const k = (scheme.planes ?? 1) > 1 ? ceil(any / whole) * whole : any
    // Long sums at the ends of the ranges would leave what float32 holds exactly.
    const data =
      shape === undefined
        ? decks.data.next((kind) => kind !== 'ends' || k <= 600)
        : isUneven(format)
          ? 'random'
          : 'whole'
    const exact = (activation: Activation) => activation === 'none' || activation === 'relu'
    return {
      ...{ m, n, k, format, layout, scheme, data },
      ...decks.input.next(),
      exact: isInteger(row),
      fp8Sums: row.fp8Sums,
      activation: decks.activation.next((a) => (data === 'random' ? !isGated(a) || n % 2 === 0 : exact(a))),
      bias: decks.bias.next(),
      residual: decks.residual.next(),
      out: decks.out.next(),
      views: decks.views.next(),
    }
  }
  const count = max(60, 3 * decks.scheme.items.length)
  for (let i = 0; i < count; i++) yield call()
  for (const [m, n, k] of large) {
    const up = (size: number, multiple: number) => ceil(size / multiple) * multiple
    if (serves(row, m)) yield call([m, up(n, row.nMultiple), up(k, row.kMultiple)])
  }
}

// ---- numbers -------------------------------------------------------------------------------------------------------

/** Tables that a scheme stores. */
function tablesOf(scheme: Scheme, n: number, k: number): number {
  const { groupSize, tablePer } = scheme
  if (tablePer === 'row') return n
  const groups = typeof groupSize === 'number' ? ceil(k / groupSize) : 1
  return tablePer === 'group' ? (groupSize === 'tensor' ? 1 : n * groups) : tablePer === 'tensor' ? 1 : 0
}

/** Formats whose values are no whole numbers in any scale. */
const isUneven = (format: Format) => format === 'nf4' || format === 'fp4'

/** Codes within these bounds keep sums of whole numbers below 2^24; `ends` are the widest that a format has. */
function weightOf(call: Call, random: Random): QuantizedWeight {
  const { n, k, format, scheme, data } = call
  // quantize() makes no int1 with zeros.
  const stored = format === 'int1' && scheme.zeroPoint !== undefined && scheme.zeroPoint !== 'none'
  if (data === 'random' && !stored) {
    const { zeroPoint, ...rest } = scheme
    const zero = zeroPoint === undefined || zeroPoint === 'none' ? {} : { zeroPoint }
    const symmetric = isAffine(format) && zeroPoint === 'none' ? { symmetric: true } : {}
    const table = format === 'codebook4' ? { table: random.floats(16 * tablesOf(scheme, n, k)) } : {}
    return quantize(random.floats(n * k), [n, k], { format, ...rest, ...zero, ...symmetric, ...table })
  }
  const sign = random.int(-1, 1)
  const whole = (most: number) =>
    data === 'whole' ? random.int(-most, most) : (sign || random.pick([-1, 1])) * most
  if (isFloatName(format)) {
    return quantize(
      Float32Array.from({ length: n * k }, () => whole(8)),
      [n, k],
      { format },
    )
  }
  const bits = codeBits[format]
  const type = mxElements[format] ?? (format === 'fp8_e4m3' ? minifloats.e4m3 : minifloats.e5m2)
  const unsigned = (top: number) => (data !== 'ends' ? random.int(0, top) : whole(1) < 0 ? 0 : top)
  const code = (): number => {
    if (format === 'int8' || format === 'mxint8') return whole(127) & 255
    if (bits === 8) return encodeFloat(type, whole(8))
    if (bits === 6) return encodeFloat(type, whole(6))
    return unsigned(format === 'ternary' ? 2 : 2 ** bits - 1)
  }
  const { planes = 1 } = scheme
  const stride = planes * k
  const codes = new Uint8Array(n * ceil((stride * bits) / 8))
  for (let row = 0; row < n; row++) {
    for (let col = 0; col < stride; col++) writeCode(codes, row, col, stride, bits, code())
  }
  const { groupSize, zeroPoint = 'none', scaleDtype = 'f32' } = scheme
  const rows = groupSize === 'tensor' ? 1 : groupSize === 'block' ? ceil(n / 128) : n
  const width = typeof groupSize === 'number' ? groupSize : groupSize === 'block' ? 128 : k
  const groups = rows * planes * ceil(k / width)
  const scales = Float32Array.from({ length: groups }, () =>
    data === 'ends' ? 1 : data === 'random' ? random.float() : random.pick([0.5, 1]),
  )
  const table = Float32Array.from({ length: 16 * tablesOf(scheme, n, k) }, () => whole(8))
  const zeros = Float32Array.from({ length: groups }, () => random.int(0, 2 ** bits))
  return canonical({
    ...{ format, shape: [n, k], groupSize, zeroPoint, scaleDtype, planes, codes },
    scales:
      scaleDtype === 'e8m0'
        ? Uint8Array.from(scales, (scale) => (scale === 1 ? 127 : 126))
        : scaleDtype === 'e4m3'
          ? Uint8Array.from(scales, (scale) => encodeFloat(minifloats.e4m3, scale))
          : encodeFloats(scaleDtype, scales),
    ...(format === 'codebook4' ? { table, tablePer: scheme.tablePer } : {}),
    ...(format === 'nvfp4' ? { tensorScale: random.pick([0.5, 2]) } : {}),
    zeros:
      zeroPoint === 'none'
        ? undefined
        : zeroPoint === 'float'
          ? zeros.map((z) => z - 0.5)
          : Uint8Array.from(zeros),
  })
}

interface Numbers {
  readonly ref: RefCall
  readonly weight: QuantizedWeight
  /** x as the tensor's array: floats or bytes. */
  readonly bytes?: Uint8Array
}

function numbersOf(call: Call, random: Random): Numbers {
  const { m, n, k, compute, exact, fp8Sums, dtype, per, activation, data } = call
  const columns = isGated(activation) ? n / 2 : n
  const weight = weightOf(call, random)
  const rows = data === 'random' ? max(m, ceil(enough / columns)) : m
  const floats = (count: number, type: FloatName) =>
    roundAll(
      type,
      data === 'random'
        ? random.floats(count)
        : Float32Array.from({ length: count }, () => random.int(-100, 100)),
    )
  const blocks = per === 'block' ? ceil(k / scaleBlock) : 1
  let x: Float32Array
  let scales: Float32Array | undefined
  let bytes: Uint8Array | undefined
  // All at one end, or each at either.
  const side = random.pick([-1, 1, 0])
  const end = (low: number, high: number) => ((side || random.pick([-1, 1])) < 0 ? low : high)
  if (isFloatName(dtype)) {
    // With its largest value at the codes' limit, a row of whole numbers is its own codes.
    const limit = compute === 'int8' ? 127 : 448
    x = roundAll(
      dtype,
      data === 'random'
        ? random.floats(rows * k)
        : Float32Array.from({ length: rows * k }, (_, i) => {
            if (data === 'ends' && compute === 'int8') return end(-limit, limit)
            return compute !== 'float' && i % k === 0 ? random.pick([-limit, limit]) : random.int(-8, 8)
          }),
    )
  } else {
    const type = dtype as CodeName
    if (data === 'random') {
      const made = refQuantizeRows(random.floats(rows * k), rows, k, type, per ?? 'row')
      bytes = made.bytes
      scales = made.scales
    } else {
      const whole = () => (type === 'i8' && data === 'ends' ? end(-128, 127) : random.int(-8, 8))
      bytes = Uint8Array.from({ length: rows * k }, () =>
        type === 'i8' ? whole() : encodeFloat(minifloats[type], whole()),
      )
      scales = Float32Array.from({ length: rows * blocks }, () =>
        data === 'ends' ? 1 : random.pick([0.5, 1]),
      )
    }
    x = Float32Array.from(bytes, (byte) => codeValue(type, byte))
  }
  const codes = scales === undefined ? {} : { codes: { dtype: dtype as CodeName, scales, per: per ?? 'row' } }
  const residual = call.residual === 'out' ? call.out : call.residual
  const ref: RefCall = {
    ...{ m: rows, w: refWeight(weight), x, compute, exact, fp8Sums, activation, out: call.out, ...codes },
    bias: call.bias === 'none' ? undefined : floats(n, call.bias),
    residual: residual === 'none' ? undefined : floats(rows * columns, residual),
  }
  return { ref, weight, ...(bytes === undefined ? {} : { bytes }) }
}

// ---- running -------------------------------------------------------------------------------------------------------

const margin = 5
/** Whole in every float dtype, and no result. */
const untouched = -77

/** A matrix in a device's memory; as a view, its rows stand behind `fill` and end where the memory ends. */
function matrix(
  device: Device,
  shape: readonly [number, number],
  dtype: DType,
  data: ArrayLike<number> | undefined,
  view: boolean,
  fill: number,
): { tensor: Tensor; whole: Tensor } {
  const [m, columns] = shape
  const skip = view ? margin : 0
  const width = columns + skip
  const cells = new (dtype === 'f32' ? Float32Array : isFloatName(dtype) ? Uint16Array : Uint8Array)(
    m * width,
  )
  const code = isFloatName(dtype) && dtype !== 'f32' ? encodeFloat(minifloats[dtype], fill) : fill
  cells.fill(code)
  if (data !== undefined) {
    for (let row = 0; row < m; row++) {
      for (let col = 0; col < columns; col++)
        cells[row * width + skip + col] = data[row * columns + col] as number
    }
  }
  const whole = device.tensor(
    dtype === 'i8' ? new Int8Array(cells.buffer) : cells,
    [m, width],
    dtype,
  ) as Tensor
  return { whole, tensor: view ? whole.slice(1, skip, width) : whole }
}

/** The raw result [m, columns] of one run. */
function run(device: Device, row: string, call: Call, numbers: Numbers): Float32Array | Uint16Array {
  const { m, n, k, dtype, out: outDtype, views } = call
  const { ref } = numbers
  const columns = columnsOf(ref)
  using weight = device.load(numbers.weight, { layout: call.layout })
  const used: Tensor[] = []
  const make = (
    shape: readonly [number, number],
    type: DType,
    data: ArrayLike<number> | undefined,
    fill = Number.NaN,
  ) => {
    const made = matrix(device, shape, type, data, views, fill)
    used.push(made.tensor, made.whole)
    return made
  }
  const bits = (type: FloatName, values: Float32Array) => encodeFloats(type, values)
  const x = isFloatName(dtype)
    ? make([m, k], dtype, bits(dtype, ref.x.subarray(0, m * k))).tensor
    : make([m, k], dtype, numbers.bytes, 85).tensor
  let scales: Tensor | undefined
  if (ref.codes !== undefined) {
    const blocks = ceil(k / scaleBlock)
    scales =
      call.per === 'block'
        ? make([m, blocks], 'f32', ref.codes.scales).tensor
        : (device.tensor(ref.codes.scales.subarray(0, m), [m]) as Tensor)
    used.push(scales)
  }
  let bias: Tensor | undefined
  if (ref.bias !== undefined) {
    bias = device.tensor(bits(call.bias as FloatName, ref.bias), [n], call.bias as FloatName) as Tensor
    used.push(bias)
  }
  const inPlace = call.residual === 'out'
  const residualDtype = inPlace ? outDtype : call.residual
  const before =
    ref.residual === undefined
      ? undefined
      : bits(residualDtype as FloatName, ref.residual.subarray(0, m * columns))
  const out = make([m, columns], outDtype, inPlace ? before : undefined, untouched)
  const residual = inPlace
    ? out.tensor
    : before === undefined
      ? undefined
      : make([m, columns], residualDtype as FloatName, before).tensor
  native.linear(
    x,
    scales,
    weight,
    bias,
    residual,
    activations.indexOf(call.activation),
    computes.indexOf(call.compute),
    undefined,
    undefined,
    out.tensor,
    undefined,
    row,
  )
  if (native.chosenRow() !== row) throw new Error(`${native.chosenRow()} ran instead of ${row}`)
  const all = out.whole.readSync() as Float32Array | Uint16Array
  for (const tensor of used) tensor.dispose()
  if (!views) return all
  const width = columns + margin
  const beside = outDtype === 'f32' ? untouched : encodeFloat(minifloats[outDtype], untouched)
  const result = all.slice(0, m * columns)
  for (let i = 0; i < m; i++) {
    const line = all.subarray(i * width, (i + 1) * width)
    if (line.subarray(0, margin).some((v) => v !== beside)) throw new Error(`row ${i}: written beside out`)
    result.set(line.subarray(margin), i * columns)
  }
  return result
}

const sameBits = (a: Float32Array | Uint16Array, b: Float32Array | Uint16Array) =>
  Buffer.compare(
    Buffer.from(a.buffer, a.byteOffset, a.byteLength),
    Buffer.from(b.buffer, b.byteOffset, b.byteLength),
  ) === 0

function wrongIn(row: string, call: Call, random: Random): string | undefined {
  const numbers = numbersOf(call, random)
  const [one, two, three] = devices as [Device, Device, Device]
  const raw = run(two, row, call, numbers)
  for (const [name, device] of [
    ['one thread', one],
    ['three threads', three],
    ['a second run', two],
  ] as const) {
    if (!sameBits(raw, run(device, row, call, numbers))) return `other bits with ${name}`
  }
  const type = call.out
  const got = Float32Array.from(raw, (v) => (type === 'f32' ? v : decodeFloat(minifloats[type], v)))
  // The tensor cores for fp8 keep 14 bits: whole numbers are no more exact there than others.
  if (call.data === 'random' || call.fp8Sums) return judge(numbers.ref, call.m, got)
  const want = linear64(numbers.ref)
  const at = want.findIndex((value, i) => roundTo(type, value) !== got[i])
  if (at < 0) return undefined
  const columns = columnsOf(numbers.ref)
  return `[${floor(at / columns)}, ${at % columns}] is ${got[at]}, expected exactly ${want[at]}`
}

// ---- the rows ------------------------------------------------------------------------------------------------------

const here = (() => {
  using device = openTest()
  return device.info.archs
})()
const rowsOf = (op: string) => description.kernels.filter((row) => row.op === op)

/** A test for each row of an op; rows that need another machine are listed as skipped. */
function walk(op: string, body: (row: KernelRow) => void): void {
  for (const row of rowsOf(op)) {
    const runs = row.arch.every((arch) => here.includes(arch))
    ;(runs ? test : test.skip)(
      runs ? row.name : `${row.name}: ${testDevice} lacks ${row.arch.join(', ')}`,
      () => body(row),
      patience,
    )
  }
}

/** Bit for bit, but with one zero and one NaN. Arrays of thousands are too much for `expect`. */
function expectSame(label: string, got: ArrayLike<number>, want: ArrayLike<number>): void {
  expect([label, got.length]).toEqual([label, want.length])
  for (let i = 0; i < want.length; i++) {
    const [a, b] = [got[i] as number, want[i] as number]
    if (a !== b && !(isNan(a) && isNan(b))) throw new Error(`${label}: [${i}] is ${a}, expected ${b}`)
  }
}

/** Fails with the smallest call that went wrong. */
function report(wrong: readonly { size: number; text: string }[]): void {
  const [least] = [...wrong].sort((a, b) => a.size - b.size)
  if (least !== undefined)
    throw new Error(`${wrong.length} calls went wrong, the smallest of them:\n${least.text}`)
}

describe('linear', () => {
  walk('linear', (kernel) => {
    const row = kernel as LinearRow
    const wrong: { size: number; text: string }[] = []
    for (const format of row.formats) {
      for (const layout of row.layouts) {
        if (schemesOf(row, format, layout).length === 0) continue
        let seed = 0
        for (const call of callsOf(row, format, layout, new Random(20261122))) {
          const text = wrongIn(row.name, call, new Random(++seed))
          if (text === undefined) continue
          wrong.push({
            size: call.m * call.n * call.k,
            text: `seed ${seed} ${JSON.stringify(call)}\n${text}`,
          })
        }
      }
    }
    report(wrong)
  })
})

describe('NaN and inf in x spread as the contract says', () => {
  walk('linear', (kernel) => {
    const row = kernel as LinearRow
    const random = new Random(5)
    for (const format of row.formats) {
      for (const layout of row.layouts) {
        const [scheme] = schemesOf(row, format, layout)
        if (scheme === undefined) continue
        for (const input of inputsOf(row)) {
          if (!isFloatName(input.dtype)) continue
          for (const m of [1, 7]) {
            const call: Call = {
              ...{
                m: Math.max(row.mMin, row.mMax > 0 ? Math.min(m, row.mMax) : m),
                n: 5 * row.nMultiple,
                k: 32 * row.kMultiple,
              },
              ...{
                format,
                layout,
                scheme,
                ...input,
                exact: isInteger(row),
                fp8Sums: row.fp8Sums,
                data: isUneven(format) ? 'random' : 'whole',
                activation: 'none',
              },
              ...{ bias: 'none', residual: 'none', out: 'f32', views: false },
            }
            const numbers = numbersOf(call, random)
            const { x } = numbers.ref
            for (let i = 0; i < call.m; i++) {
              const special = [Number.NaN, Infinity, -Infinity, undefined][i % 4]
              if (special !== undefined) x[i * call.k + random.int(1, call.k - 1)] = special
            }
            const got = run((devices as [Device, Device])[1], row.name, call, numbers)
            if (call.data === 'random')
              expect(judge(numbers.ref, call.m, got as Float32Array)).toBeUndefined()
            else expectSame(JSON.stringify(call), got, linear64(numbers.ref))
          }
        }
      }
    }
  })
})

interface QuantizeRow extends KernelRow {
  floats: FloatName[]
  codes: CodeName[]
}

/** Rows with what rounding stumbles over: exact halves, zeros, tiny and huge numbers, a NaN, an inf. */
function awkwardRows(random: Random, m: number, k: number): Float32Array {
  return Float32Array.from({ length: m * k }, (_, i) => {
    const [row, col] = [floor(i / k) % 9, i % k]
    if (row === 1) return 0
    if (row === 2) return col === 0 ? 127 : random.int(-253, 253) / 2
    if (row === 3) return col === 0 ? 448 : random.int(-895, 895) / 2
    if (row === 4) return random.float() * 1e-11
    if (row === 5) return random.float() * 6e4
    if (row === 6) return col === k >> 1 ? Number.NaN : random.float()
    if (row === 7) return col === k - 1 ? -Infinity : random.float()
    return random.float()
  })
}

describe('quantizeRows and dequantizeRows', () => {
  walk('quantize', (kernel) => {
    const row = kernel as QuantizeRow
    const random = new Random(11)
    const views = new Deck(random, [false, true])
    const ks = [1, 7, 8, 31, 33, 127, 128, 129, 300, 513]
    for (const dtype of row.floats) {
      for (const type of row.codes) {
        for (const per of ['row', 'block'] as const) {
          for (const k of ks) {
            const m = random.pick([1, 9, 19])
            const x = roundAll(dtype, awkwardRows(random, m, k))
            const want = refQuantizeRows(x, m, k, type, per)
            const label = JSON.stringify({ seed: random.seed, dtype, type, per, m, k })
            const kept: string[] = []
            for (const device of devices) {
              const made = [
                matrix(device, [m, k], dtype, encodeFloats(dtype, x), views.next(), Number.NaN),
                matrix(device, [m, k], type, undefined, views.next(), 85),
                matrix(device, [m, k], dtype, undefined, views.next(), untouched),
              ] as const
              const [from, codes, back] = made.map(({ tensor }) => tensor) as [Tensor, Tensor, Tensor]
              const scales = device.empty(per === 'row' ? [m] : [m, ceil(k / scaleBlock)])
              native.quantizeRows(from, dtypes.indexOf(type), per === 'block', codes, scales, row.name)
              native.dequantizeRows(codes, scales, dtypes.indexOf(dtype), back, row.name)
              if (native.chosenRow() !== row.name) throw new Error(`${native.chosenRow()} ran`)
              expectSame(`${label} scales`, scales.readSync(), want.scales)
              expectSame(`${label} codes`, new Uint8Array(codes.readSync().buffer), want.bytes)
              const floats = Float32Array.from(want.values, (value, i) => {
                const block = per === 'row' ? 0 : floor((i % k) / scaleBlock)
                return value * (want.scales[floor(i / k) * want.blocks + block] as number)
              })
              const result = back.readSync('f32') as Float32Array
              expectSame(`${label} back`, result, roundAll(dtype, floats))
              kept.push(Buffer.from(back.readSync().buffer).toString('base64'))
              for (const { tensor, whole } of made) {
                tensor.dispose()
                whole.dispose()
              }
              scales.dispose()
            }
            expect(new Set(kept).size).toBe(1)
          }
        }
      }
    }
  })
})

test('all memory was given back whole', () => {
  for (const device of devices) {
    device.syncSync()
    const { used, guardFaults, failed } = native.deviceInfo(device)
    expect({ used, guardFaults, failed }).toEqual({ used: 0, guardFaults: 0, failed: 0 })
  }
})

const gpu = backends().find((row) => row.device.startsWith('cuda') && row.usable)
if (!guarded && onCpu && process.env.LB_TEST_DEVICE === undefined && gpu !== undefined) {
  test(
    `the rows of ${gpu.device}`,
    () => {
      const jest = path.join(process.cwd(), 'node_modules/jest/bin/jest.js')
      const { status, stderr } = spawnSync(process.execPath, [jest, '--ci', 'kernels\\.test'], {
        env: { ...process.env, LB_TEST_DEVICE: gpu.device },
        encoding: 'utf8',
      })
      if (status !== 0) throw new Error(`with LB_TEST_DEVICE=${gpu.device}:\n${stderr}`)
      expect(stderr).toMatch(/Tests: .* passed/)
    },
    3 * patience,
  )
}

// A sanitizer sees what a guard page sees, and more.
const sanitized = /lib(a|ub)san/.test(process.env.LD_PRELOAD ?? '')
if (!guarded && !sanitized && onCpu) {
  test(
    'the same in guarded memory',
    () => {
      const jest = path.join(process.cwd(), 'node_modules/jest/bin/jest.js')
      const { status, stderr } = spawnSync(process.execPath, [jest, '--ci', 'kernels\\.test'], {
        env: { ...process.env, LB_GUARD: '1' },
        encoding: 'utf8',
      })
      if (status !== 0) throw new Error(`with LB_GUARD=1:\n${stderr}`)
      expect(stderr).toMatch(/Tests: .* passed/)
    },
    2 * patience,
  )
}
