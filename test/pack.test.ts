import { type Device, type Format, LowbitError, type QuantizedWeight, quantize, type Scheme } from 'lowbit'
import { description, native } from 'lowbit/native'
import { computes, type Layout } from 'lowbit/words'
import { openTest } from './ref/device'
import {
  codeBits,
  groupSizesOf,
  isAffine,
  ownTables,
  panelPlace,
  panelUnit,
  readCode,
  scaleDtypesOf,
} from './ref/quantize'
import { Random } from './ref/random'

let device: Device
beforeAll(() => {
  device = openTest({ threads: 2 })
})
afterAll(() => device.close())

const formats = description.formats as Format[]
const layouts = description.layouts as Layout[]
const shapes = [
  [1, 1],
  [7, 5],
  [16, 64],
  [17, 37],
  [33, 130],
  [31, 300],
  [48, 8],
] as const

function* schemesOf(format: Format, n: number, k: number): Generator<Scheme> {
  if (format === 'f32' || format === 'f16' || format === 'bf16') {
    yield { format }
    return
  }
  const affine = isAffine(format)
  const random = new Random(4)
  for (const groupSize of groupSizesOf(format)) {
    for (const scaleDtype of scaleDtypesOf(format)) {
      if (format === 'codebook4') {
        const rows = groupSize === 'tensor' ? 1 : n
        const groups = rows * Math.ceil(k / (typeof groupSize === 'number' ? groupSize : Math.max(k, 1)))
        yield { format, groupSize, scaleDtype, table: random.floats(16) }
        yield { format, groupSize, scaleDtype, table: random.floats(16 * groups), tablePer: 'group' }
        if (rows === n) yield { format, groupSize, scaleDtype, table: random.floats(16 * n), tablePer: 'row' }
        continue
      }
      yield { format, groupSize, scaleDtype, ...(affine ? { symmetric: true } : {}) }
      if (!affine) continue
      yield { format, groupSize, scaleDtype, zeroPoint: 'integer' }
      yield { format, groupSize, scaleDtype, zeroPoint: 'float' }
    }
  }
}

const up = (bytes: number, to: number) => Math.ceil(bytes / to) * to
const view = (array: ArrayBufferView | undefined) =>
  array === undefined ? new Uint8Array(0) : new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

/** rows, from its picture: four parts, each padded with zeros to 64 bytes. */
function rowsOf(q: QuantizedWeight): Uint8Array {
  const parts = [q.codes, view(q.scales), view(q.zeros), view(q.table ?? ownTables[q.format])]
  const out = new Uint8Array(parts.reduce((sum, part) => sum + up(part.length, 64), 0))
  let end = 0
  for (const part of parts) {
    out.set(part, end)
    end += up(part.length, 64)
  }
  return out
}

/** Blocks of 16 rows, one for each group of K: `codeBytes` of codes (which `place` writes), then scales, then zeros. */
function blocksOf(
  q: QuantizedWeight,
  codeBytesOf: (groupK: number) => number,
  place: (out: Uint8Array, at: { groupK: number; blockBytes: number; groups: number }) => void,
): Uint8Array | undefined {
  const [n, k] = q.shape
  const { groupSize } = q
  if (groupSize === 'block') return undefined
  const groupK = typeof groupSize === 'number' ? Math.min(groupSize, k) : k
  const groups = Math.ceil(k / groupK)
  const codeBytes = codeBytesOf(groupK)
  const scaleSize = q.scales?.BYTES_PER_ELEMENT ?? 0
  const zeroSize = q.zeros?.BYTES_PER_ELEMENT ?? 0
  const blockBytes = codeBytes + 16 * (scaleSize + zeroSize)
  const panels = Math.ceil(n / 16) * groups * blockBytes
  const table = view(q.table ?? ownTables[q.format])
  const tables = table.length === 0 ? panels : up(panels, 64)
  // Tables of rows that are padded to 16 are padded too.
  const perRow = q.tablePer === 'row' || (q.tablePer === 'group' && (groupSize !== 'tensor' || n === 1))
  const out = new Uint8Array(tables + (perRow ? (table.length / n) * up(n, 16) : table.length))
  out.set(table, tables)
  place(out, { groupK, blockBytes, groups })
  for (let row = 0; row < n; row++) {
    for (let g = 0; g < groups; g++) {
      const block = (Math.floor(row / 16) * groups + g) * blockBytes
      const index = groupSize === 'tensor' ? 0 : row * groups + g
      const scales = block + codeBytes + (row % 16) * scaleSize
      out.set(view(q.scales).subarray(index * scaleSize, (index + 1) * scaleSize), scales)
      const zeros = block + codeBytes + 16 * scaleSize + (row % 16) * zeroSize
      out.set(view(q.zeros).subarray(index * zeroSize, (index + 1) * zeroSize), zeros)
    }
  }
  return out
}

/** panel16, from its picture, value by value into zeros: so padding is zero and each value stands once. */
function panelsOf(q: QuantizedWeight): Uint8Array | undefined {
  const [n, k] = q.shape
  const { format } = q
  const unit = panelUnit(format)
  if (unit === undefined) return undefined
  const width = codeBits[format]
  const codeBytes = (groupK: number) => 2 * up(groupK, unit) * width
  return blocksOf(q, codeBytes, (out, { groupK, blockBytes, groups }) => {
    const put = ({ byte, bit }: { byte: number; bit: number }, value: number) => {
      out[byte] = (out[byte] as number) | (value << bit)
    }
    for (let row = 0; row < n; row++) {
      for (let col = 0; col < k; col++) {
        const { byte, bit, high } = panelPlace(format, groupK, blockBytes, groups, row, col)
        if (width >= 8) {
          const size = width / 8
          out.set(q.codes.subarray((row * k + col) * size, (row * k + col + 1) * size), byte)
          continue
        }
        const code = readCode(q.codes, row, col, k, width)
        put({ byte, bit }, high === undefined ? code : code & 3)
        if (high !== undefined) put(high, code >> 2)
      }
    }
  })
}

/** trits16, from its picture: the size and the sign of a number of five trits in each byte. */
function tritsOf(q: QuantizedWeight): Uint8Array | undefined {
  const [n, k] = q.shape
  if (q.format !== 'ternary') return undefined
  const codeBytes = (groupK: number) => (16 * up(groupK, 20)) / 5
  return blocksOf(q, codeBytes, (out, { groupK, blockBytes, groups }) => {
    const values = new Int16Array(out.length)
    for (let row = 0; row < n; row++) {
      for (let col = 0; col < k; col++) {
        const block = (Math.floor(row / 16) * groups + Math.floor(col / groupK)) * blockBytes
        const i = col % groupK
        const byte = block + 64 * Math.floor(i / 20) + 4 * (row % 16) + (i % 4)
        const trit = readCode(q.codes, row, col, k, 2) - 1
        values[byte] = (values[byte] as number) + trit * 3 ** Math.floor((i % 20) / 4)
      }
    }
    for (const [i, v] of values.entries()) out[i] = v < 0 ? 128 - v : v
  })
}

/** frag64, from its picture: the rows and columns of the nibbles of each word. */
function fragmentsOf(q: QuantizedWeight): Uint8Array | undefined {
  const [n, k] = q.shape
  const { groupSize, scales } = q
  if (q.format !== 'int4' || q.zeroPoint !== 'none' || scales === undefined) return undefined
  if (groupSize === 'block' || (typeof groupSize === 'number' && groupSize > 128 && groupSize < k))
    return undefined
  const groups = typeof groupSize === 'number' && groupSize < k ? 128 / groupSize : 0
  const size = scales.BYTES_PER_ELEMENT
  const units = Math.ceil(k / 128)
  const unitBytes = 4096 + 64 * groups * size
  const end = Math.ceil(n / 64) * units * unitBytes
  const out = new Uint8Array(end + (groups > 0 ? 0 : up(scales.byteLength, 16)))
  if (groups === 0) out.set(view(scales), end)
  const cols = groups === 0 ? 1 : Math.ceil(k / (groupSize as number))
  for (let at = 0; at < end; at++) {
    const unit = Math.floor(at / unitBytes)
    const [n0, k0] = [Math.floor(unit / units) * 64, (unit % units) * 128]
    const byte = at % unitBytes
    if (byte >= 4096) {
      const i = Math.floor((byte - 4096) / size)
      const [row, g] = [n0 + (i % 64), (k0 / 128) * groups + Math.floor(i / 64)]
      if (row < n && g < cols)
        out[at] = view(scales)[(row * cols + g) * size + ((byte - 4096) % size)] as number
      continue
    }
    const [half, thread, j] = [Math.floor(byte / 2048), Math.floor(byte / 16) % 128, Math.floor(byte / 4) % 4]
    const [w, a, quad] = [Math.floor(thread / 32), Math.floor(thread / 4) % 8, thread % 4]
    for (const nibble of [0, 1]) {
      const place = (byte % 4) * 2 + nibble
      const row = n0 + 16 * w + a + 8 * (place % 2)
      const col = k0 + 64 * half + 16 * j + 2 * quad + 8 * (Math.floor(place / 2) % 2) + Math.floor(place / 4)
      if (row < n && col < k)
        out[at] = (out[at] as number) | (readCode(q.codes, row, col, k, 4) << (4 * nibble))
    }
  }
  return out
}

const pictures: Record<Layout, (q: QuantizedWeight) => Uint8Array | undefined> = {
  rows: rowsOf,
  panel16: panelsOf,
  trits16: tritsOf,
  frag64: fragmentsOf,
}

describe.each(layouts)('%s', (layout) => {
  test.each(formats)('%s: the bytes lie as pictured, and unpacking gives the weight back', (format) => {
    const random = new Random(20261122)
    let packed = 0
    for (const [n, k] of shapes) {
      const weights = random.floats(n * k)
      for (const scheme of schemesOf(format, n, k)) {
        const q = quantize(weights, [n, k], scheme)
        const want = pictures[layout](q)
        if (want === undefined) {
          expect(() => device.load(q, { layout })).toThrow(LowbitError)
          continue
        }
        const weight = device.load(q, { layout })
        const got = new Uint8Array(weight.bytes)
        native.packedBytes(weight, got)
        const label = `[${n}, ${k}] ${JSON.stringify(scheme)}`
        expect(`${label} ${Buffer.compare(got, want)}`).toBe(`${label} 0`)
        expect(weight.layout).toBe(layout)
        expect(weight.unpack()).toEqual(q)
        weight.dispose()
        packed++
      }
    }
    if (layout === 'rows') expect(packed).toBeGreaterThan(0)
  })
})

test('a device takes panels where it has vectors and rows of every compute for them, and fragments on Hopper', () => {
  const { archs } = device.info
  for (const format of formats) {
    const served = (manyTables: boolean) =>
      computes.every((compute) =>
        description.kernels.some(
          (row) =>
            row.op === 'linear' &&
            row.arch.every((arch) => arch !== 'cpu' && arch !== 'sm75' && archs.includes(arch)) &&
            (row.layouts as string[]).includes('panel16') &&
            (row.formats as string[]).includes(format) &&
            (row.manyTables || !manyTables) &&
            // Rows of fp8 serve what allows shorter sums, too.
            (row.computes as string[]).includes(compute === 'fp8_unpromoted' ? 'fp8' : compute),
        ),
      )
    for (const scheme of schemesOf(format, 20, 64)) {
      const q = quantize(new Random(2).floats(20 * 64), [20, 64], scheme)
      using weight = device.load(q)
      const panels = served(q.tablePer === 'row' || q.tablePer === 'group') && panelsOf(q) !== undefined
      const fragments = archs.includes('sm80') && fragmentsOf(q) !== undefined
      expect(weight.layout).toBe(fragments ? 'frag64' : panels ? 'panel16' : 'rows')
    }
  }
})

test('a weight without rows or columns can be loaded', () => {
  for (const shape of [
    [0, 64],
    [4, 0],
  ] as const) {
    for (const format of formats) {
      const scheme = { format, ...(format === 'codebook4' ? { table: new Float32Array(16) } : {}) }
      for (const layout of layouts) {
        const q = quantize(new Float32Array(0), shape, scheme)
        if (pictures[layout](quantize(new Float32Array(64), [1, 64], scheme)) === undefined) continue
        using weight = device.load(q, { layout })
        expect(weight.unpack()).toEqual(q)
      }
    }
  }
})

describe('a Weight', () => {
  const q = quantize(new Random(3).floats(20 * 64), [20, 64], { format: 'int4', scaleDtype: 'f16' })

  test('says what it is', () => {
    using weight = device.load(q, { layout: 'panel16' })
    const { format, shape, groupSize, zeroPoint, scaleDtype, layout, bytes, disposed } = weight
    expect({ format, shape, groupSize, zeroPoint, scaleDtype, layout, bytes, disposed }).toEqual({
      format: 'int4',
      shape: [20, 64],
      groupSize: 64,
      zeroPoint: 'integer',
      scaleDtype: 'f16',
      layout: 'panel16',
      bytes: 2 * 560,
      disposed: false,
    })
    expect(weight.toString()).toBe('Weight(int4 [20, 64])')
  })

  test('keeps its own copy', () => {
    const copy = { ...quantize(new Random(3).floats(20 * 64), [20, 64], { format: 'int4' }) }
    const own = quantize(new Random(3).floats(20 * 64), [20, 64], { format: 'int4' })
    using weight = device.load(own)
    own.codes.fill(0)
    expect(weight.unpack()).toEqual(expect.objectContaining({ codes: copy.codes }))
  })

  test('is gone after dispose, twice too, and its memory is back', () => {
    const before = device.memoryUsage().used
    const weight = device.load(q)
    expect(device.memoryUsage().used).toBeGreaterThan(before)
    weight.dispose()
    weight.dispose()
    expect(device.memoryUsage().used).toBe(before)
    expect(weight.disposed).toBe(true)
    expect(weight.toString()).toBe('Weight(int4 [20, 64], disposed)')
    expect(() => weight.unpack()).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }))
    expect(() => weight.bytes).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }))
  })

  test('misuse of load', () => {
    const wrong = (value: unknown): never => value as never
    const code = (call: () => unknown): unknown => {
      try {
        call()
      } catch (error) {
        return (error as LowbitError).code
      }
      return undefined
    }
    const six = quantize(new Float32Array(64), [1, 64], { format: 'mxfp6_e2m3' })
    expect(code(() => device.load(wrong({})))).toBe('ERR_TYPE')
    expect(code(() => device.load(wrong(undefined)))).toBe('ERR_TYPE')
    expect(code(() => device.load(q, { layout: wrong('tiles') }))).toBe('ERR_ARGUMENT')
    expect(code(() => device.load(six, { layout: 'panel16' }))).toBe('ERR_ARGUMENT')
    const small = openTest({ threads: 1, memoryLimit: 4096 })
    const large = quantize(new Float32Array(64 * 1024), [64, 1024], { format: 'int8' })
    expect(code(() => small.load(large))).toBe('ERR_MEMORY')
    small.close()
    expect(code(() => small.load(q))).toBe('ERR_DISPOSED')
  })
})
