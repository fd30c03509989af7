import {
  deserialize,
  type Format,
  LowbitError,
  parseSafetensors,
  type QuantizedWeight,
  quantize,
  type SafetensorsTensor,
  serialize,
  serializeSafetensors,
} from 'lowbit'
import { formats } from 'lowbit/words'
import { Random } from './ref/random'
import { refusal } from './ref/refusal'

const random = new Random(20261122)
const make = (format: Format, n = 5, k = 100): QuantizedWeight => {
  const affine = format === 'int4' || format === 'int3' || format === 'int2'
  return quantize(random.floats(n * k), [n, k], {
    format,
    ...(affine ? { zeroPoint: random.pick(['integer', 'float']) } : {}),
    ...(format === 'codebook4' ? { table: random.floats(16) } : {}),
  })
}

/** A file of `serialize` with some of its parts exchanged. */
function altered(
  weights: Record<string, QuantizedWeight>,
  tensors: (map: Map<string, SafetensorsTensor>) => void,
  metadata: (map: Map<string, string>) => void = () => {},
): Uint8Array {
  const file = parseSafetensors(serialize(weights))
  const words = new Map(file.metadata)
  tensors(file.tensors)
  metadata(words)
  return serializeSafetensors(file.tensors, words)
}

test('every format comes back as it went in', () => {
  const weights: Record<string, QuantizedWeight> = {}
  for (const format of formats) {
    weights[`layer.${format}`] = make(format)
    weights[`one.${format}`] = make(format, 1, 1)
    weights[`none.${format}`] = make(format, 0, 7)
  }
  weights.sym = quantize(random.floats(300), [3, 100], { format: 'int4', symmetric: true, scaleDtype: 'f16' })
  weights.block = quantize(random.floats(300 * 200), [300, 200], { format: 'fp8_e4m3', groupSize: 'block' })
  weights.tensor = quantize(random.floats(300), [3, 100], {
    format: 'ternary',
    groupSize: 'tensor',
    scaleDtype: 'bf16',
  })
  for (const [tablePer, count] of [['row', 3] as const, ['group', 6] as const]) {
    const table = random.floats(16 * count)
    weights[tablePer] = quantize(random.floats(300), [3, 100], { format: 'codebook4', table, tablePer })
  }
  expect(deserialize(serialize(weights))).toEqual(weights)
})

test('equal weights give equal bytes, at any alignment', () => {
  const weights = { a: make('int3'), b: make('f16') }
  const bytes = serialize(weights)
  expect(serialize(deserialize(bytes))).toEqual(bytes)
  for (let shift = 1; shift < 8; shift++) {
    const room = new Uint8Array(bytes.length + shift)
    room.set(bytes, shift)
    expect(deserialize(room.subarray(shift))).toEqual(weights)
  }
})

test('names are free', () => {
  const weights = Object.fromEntries(
    ['', '__proto__', 'a.codes', 'constructor', 'gewicht ü 重み', 'a'].map((name) => [name, make('int2')]),
  )
  const back = deserialize(serialize(weights))
  expect(Object.keys(back).sort()).toEqual(Object.keys(weights).sort())
  expect(back).toEqual(weights)
  expect(Object.getPrototypeOf(back)).toBe(Object.prototype)
})

test('the file is safetensors with the dtypes of its numbers', () => {
  const { tensors, metadata } = parseSafetensors(
    serialize({ w: make('int8'), v: make('fp8_e4m3'), u: make('int4'), t: make('bf16') }),
  )
  expect(metadata.get('format')).toBe('lowbit')
  expect(metadata.get('version')).toBe('1')
  expect(tensors.get('w.codes')).toEqual(expect.objectContaining({ dtype: 'I8', shape: [5, 100] }))
  expect(tensors.get('v.codes')).toEqual(expect.objectContaining({ dtype: 'F8_E4M3', shape: [5, 100] }))
  expect(tensors.get('u.codes')).toEqual(expect.objectContaining({ dtype: 'U8', shape: [5, 50] }))
  expect(tensors.get('u.scales')).toEqual(expect.objectContaining({ dtype: 'F32', shape: [5, 2] }))
  expect(tensors.get('t.codes')).toEqual(expect.objectContaining({ dtype: 'BF16', shape: [5, 100] }))
})

describe('misuse', () => {
  const weights = { w: make('int4'), v: make('int8') }
  const wrong = (value: unknown): never => value as never
  const cases: [string, () => unknown, string, RegExp][] = [
    ['serialize of nothing', () => serialize(wrong(null)), 'ERR_TYPE', /weights by name but got null/],
    [
      'serialize of a plain object',
      () => serialize(wrong({ w: {} })),
      'ERR_TYPE',
      /serialize: w: .*QuantizedWeight/,
    ],
    ['bytes that are too short', () => deserialize(new Uint8Array(3)), 'ERR_FILE', /at least 8 bytes/],
    [
      'another file',
      () => deserialize(serializeSafetensors({})),
      'ERR_FILE',
      /format 'lowbit' but got undefined/,
    ],
    [
      'another version',
      () =>
        deserialize(
          altered(
            weights,
            () => {},
            (words) => words.set('version', '2'),
          ),
        ),
      'ERR_FILE',
      /version 1 but got '2'/,
    ],
    [
      'a weight without codes',
      () => deserialize(altered(weights, (tensors) => tensors.delete('w.codes'))),
      'ERR_FILE',
      /no tensor 'w.codes'/,
    ],
    [
      'a weight without scales',
      () => deserialize(altered(weights, (tensors) => tensors.delete('w.scales'))),
      'ERR_FILE',
      /weight 'w': .*expected 40 bytes of scales but got 0/,
    ],
    [
      'a tensor of no weight',
      () =>
        deserialize(
          altered(
            weights,
            () => {},
            (words) => words.delete('lowbit:w'),
          ),
        ),
      'ERR_FILE',
      /'w\.\w+' belongs to no weight/,
    ],
    [
      'metadata that is not JSON',
      () =>
        deserialize(
          altered(
            weights,
            () => {},
            (words) => words.set('lowbit:w', '{'),
          ),
        ),
      'ERR_FILE',
      /weight 'w': its metadata is not JSON/,
    ],
    [
      'metadata that is no object',
      () =>
        deserialize(
          altered(
            weights,
            () => {},
            (words) => words.set('lowbit:w', '[1]'),
          ),
        ),
      'ERR_FILE',
      /weight 'w': expected its metadata to be an object but got an array/,
    ],
    [
      'a shape that lies',
      () =>
        deserialize(
          altered(
            weights,
            () => {},
            (words) => words.set('lowbit:w', '{"format":"int4","shape":[5,900]}'),
          ),
        ),
      'ERR_FILE',
      /weight 'w'/,
    ],
    [
      'a shape of words',
      () =>
        deserialize(
          altered(
            weights,
            () => {},
            (words) => words.set('lowbit:v', '{"format":"int8","shape":["5",100]}'),
          ),
        ),
      'ERR_FILE',
      /weight 'v'/,
    ],
    [
      'a format that there is not',
      () =>
        deserialize(
          altered(
            weights,
            () => {},
            (words) => words.set('lowbit:w', '{"format":"int9","shape":[5,100]}'),
          ),
        ),
      'ERR_FILE',
      /weight 'w': .*got 'int9'/,
    ],
    [
      'codes of another dtype',
      () =>
        deserialize(
          altered(weights, (tensors) => {
            const codes = tensors.get('v.codes') as SafetensorsTensor
            tensors.set('v.codes', { ...codes, dtype: 'F8_E4M3' })
          }),
        ),
      'ERR_FILE',
      /weight 'v': expected codes of I8 but got F8_E4M3/,
    ],
    [
      'a NaN scale',
      () =>
        deserialize(
          altered(weights, (tensors) => {
            const scales = tensors.get('v.scales') as SafetensorsTensor
            tensors.set('v.scales', { ...scales, data: new Float32Array(5).fill(Number.NaN) })
          }),
        ),
      'ERR_FILE',
      /weight 'v': .*finite scales but got NaN at \[0, 0\]/,
    ],
  ]
  test.each(cases)('%s', (_, call, code, sentence) => {
    if (code === 'ERR_TYPE') {
      expect(call).toThrow(expect.objectContaining({ code, message: expect.stringMatching(sentence) }))
      return
    }
    const error = refusal(call)
    expect(error.code).toBe(code)
    expect(error.message).toMatch(sentence)
  })

  test('damaged files are refused or read, never worse', () => {
    const bytes = serialize(weights)
    for (let i = 0; i < 3000; i++) {
      const copy = bytes.slice(0, random.int(0, 9) === 0 ? random.int(0, bytes.length) : bytes.length)
      for (let change = random.int(1, 4); change > 0 && copy.length > 0; change--)
        copy[random.int(0, Math.min(copy.length - 1, 900))] = random.int(0, 255)
      try {
        deserialize(copy)
      } catch (error) {
        if (!(error instanceof LowbitError && error.code === 'ERR_FILE')) throw error
      }
    }
  })
})
