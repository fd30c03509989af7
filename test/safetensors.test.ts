import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  type Checkpoint,
  LowbitError,
  openCheckpoint,
  openCheckpointSync,
  parseSafetensors,
  type SafetensorsTensor,
  serializeSafetensors,
  writeSafetensors,
} from 'lowbit'
import { Random } from './ref/random'
import { refusal, rejection } from './ref/refusal'

const small = join(process.cwd(), 'test/checkpoints/small')
let folder: string

beforeAll(() => {
  folder = fs.mkdtempSync(join(tmpdir(), 'lowbit-safetensors-'))
})
afterAll(() => {
  fs.rmSync(folder, { recursive: true, force: true })
})

/** A file from a header text and data bytes, as a stranger might have made it. */
function craft(header: string | Uint8Array, dataBytes = 0, length?: bigint): Uint8Array {
  const json = typeof header === 'string' ? Buffer.from(header, 'utf8') : header
  const out = new Uint8Array(8 + json.byteLength + dataBytes)
  new DataView(out.buffer).setBigUint64(0, length ?? BigInt(json.byteLength), true)
  out.set(json, 8)
  for (let i = 8 + json.byteLength; i < out.byteLength; i++) out[i] = i & 0xff
  return out
}

function same(a: SafetensorsTensor | undefined, b: SafetensorsTensor | undefined): boolean {
  const bytes = (t: SafetensorsTensor | undefined) =>
    t === undefined ? Buffer.alloc(1) : Buffer.from(t.data.buffer, t.data.byteOffset, t.data.byteLength)
  return Buffer.compare(bytes(a), bytes(b)) === 0
}

const sample: Record<string, SafetensorsTensor> = {
  'model.b': { dtype: 'BF16', shape: [2, 3], data: Uint16Array.of(1, 2, 3, 4, 5, 6) },
  'model.a': { dtype: 'F32', shape: [3], data: Float32Array.of(1.5, -2, Number.NaN) },
  scalar: { dtype: 'F64', shape: [], data: Float64Array.of(Math.PI) },
  empty: { dtype: 'F16', shape: [4, 0, 2], data: new Uint16Array(0) },
  long: { dtype: 'I64', shape: [2], data: BigInt64Array.of(-1n, 7n) },
  codes: { dtype: 'F8_E4M3', shape: [5], data: Uint8Array.of(0, 1, 2, 3, 4) },
  flags: { dtype: 'BOOL', shape: [1, 3], data: Uint8Array.of(1, 0, 1) },
  nibbles: { dtype: 'F4', shape: [2, 3], data: Uint8Array.of(0x12, 0x34, 0x56) },
  __proto: { dtype: 'I8', shape: [1], data: Int8Array.of(-5) },
  'grüße 😀': { dtype: 'U32', shape: [1], data: Uint32Array.of(4_000_000_000) },
}

describe('safetensors in memory', () => {
  test('what is written is read back, in a fixed order', () => {
    const bytes = serializeSafetensors(sample, { format: 'lowbit', note: 'é"\\\n' })
    expect(
      serializeSafetensors(new Map(Object.entries(sample).reverse()), { note: 'é"\\\n', format: 'lowbit' }),
    ).toEqual(bytes)
    const { tensors, metadata } = parseSafetensors(bytes)
    expect([...metadata]).toEqual([
      ['format', 'lowbit'],
      ['note', 'é"\\\n'],
    ])
    expect([...tensors.keys()].sort()).toEqual(Object.keys(sample).sort())
    for (const [name, { dtype, shape, data }] of Object.entries(sample)) {
      expect(tensors.get(name)).toEqual({ dtype, shape, data })
    }
  })

  test('the data begins at a multiple of 8 and each tensor at a multiple of its element size', () => {
    const bytes = serializeSafetensors(sample)
    const header = Number(new DataView(bytes.buffer).getBigUint64(0, true))
    expect(header % 8).toBe(0)
    for (const { data } of parseSafetensors(bytes).tensors.values()) {
      if (data.byteLength > 0) expect(data.buffer).toBe(bytes.buffer)
    }
  })

  test('bytes at an odd address are read too', () => {
    const bytes = serializeSafetensors(sample)
    const shifted = new Uint8Array(bytes.byteLength + 1).subarray(1)
    shifted.set(bytes)
    expect(parseSafetensors(shifted).tensors.get('model.a')?.data).toEqual(sample['model.a']?.data)
  })

  test('a file without tensors', () => {
    expect(parseSafetensors(serializeSafetensors({})).tensors.size).toBe(0)
    expect(parseSafetensors(craft('{}   ')).tensors.size).toBe(0)
  })

  test('keys of a prototype are names like any other', () => {
    const header =
      '{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"constructor":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    const { tensors } = parseSafetensors(craft(header, 2))
    expect([...tensors.keys()]).toEqual(['__proto__', 'constructor'])
    expect(({} as Record<string, unknown>).dtype).toBeUndefined()
    expect([...parseSafetensors(serializeSafetensors(tensors)).tensors.keys()].sort()).toEqual([
      '__proto__',
      'constructor',
    ])
  })

  const one = (fields: string) => `{"t":{${fields}}}`
  const good = '"dtype":"U8","shape":[4],"data_offsets":[0,4]'
  const cases: [string, Uint8Array, string][] = [
    ['an empty file', new Uint8Array(0), 'expected at least 8 bytes but the file has 0'],
    ['seven bytes', new Uint8Array(7), 'expected at least 8 bytes but the file has 7'],
    ['a header longer than the file', craft('{}', 0, 3n), 'should have 3 bytes but the file ends after 2'],
    [
      'a header over the cap',
      craft('{}', 0, 100_000_001n),
      'at most 100000000 bytes but the file says 100000001',
    ],
    ['a length of 2^64 - 1', craft('{}', 0, 2n ** 64n - 1n), 'the file says 18446744073709551615'],
    ['no header', craft('', 0), "begin with '{'"],
    ['an array', craft('[]'), "begin with '{'"],
    ['a space before the header', craft(' {}'), "begin with '{'"],
    ['a byte order mark', craft('\ufeff{}'), "begin with '{'"],
    ['no UTF-8', craft(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d)), 'not UTF-8'],
    ['text after the header', craft('{} x'), 'text after the end'],
    ['a NUL after the header', craft('{}\0'), 'text after the end'],
    ['an unfinished object', craft('{"a":'), 'not JSON'],
    ['a key twice', craft(`{"t":{${good}},"t":{${good}}}`, 4), 'comes twice'],
    ['a key twice, spelt apart', craft(`{"t":{${good}},"\\u0074":{${good}}}`, 4), 'comes twice'],
    ['a field twice', craft(one(`${good},"dtype":"I8"`), 4), 'comes twice'],
    ['metadata twice', craft('{"__metadata__":{},"__metadata__":{}}'), 'comes twice'],
    ['deep nesting', craft(`{"t":${'['.repeat(100_000)}`), 'nested deeper than 32'],
    ['a lone surrogate', craft('{"\\ud800":1}'), 'lone surrogate'],
    ['a control character', craft('{"a\nb":1}'), 'control character'],
    ['a tensor that is a number', craft('{"t":1}'), 'expected an object but got 1'],
    ['a tensor that is null', craft('{"t":null}'), 'expected an object but got null'],
    ['an unknown field', craft(one(`${good},"strides":[1]`), 4), 'got "strides" too'],
    ['an unknown dtype', craft(one('"dtype":"F7","shape":[4],"data_offsets":[0,4]'), 4), 'but got "F7"'],
    [
      'a dtype of a prototype',
      craft(one('"dtype":"toString","shape":[4],"data_offsets":[0,4]'), 4),
      'but got "toString"',
    ],
    ['no dtype', craft(one('"shape":[4],"data_offsets":[0,4]'), 4), 'but got nothing'],
    [
      'no shape',
      craft(one('"dtype":"U8","data_offsets":[0,4]'), 4),
      'a shape of at most 64 non-negative integers but got nothing',
    ],
    ['no offsets', craft(one('"dtype":"U8","shape":[4]'), 4), 'but got nothing'],
    ['a negative size', craft(one('"dtype":"U8","shape":[-4],"data_offsets":[0,4]'), 4), 'but got [-4]'],
    ['a fractional size', craft(one('"dtype":"U8","shape":[4.0],"data_offsets":[0,4]'), 4), 'but got [4.0]'],
    ['a size as a power', craft(one('"dtype":"U8","shape":[4e0],"data_offsets":[0,4]'), 4), 'but got [4e0]'],
    ['a size as text', craft(one('"dtype":"U8","shape":["4"],"data_offsets":[0,4]'), 4), 'but got ["4"]'],
    [
      'a size over 2^53',
      craft(one('"dtype":"U8","shape":[9007199254740993],"data_offsets":[0,4]'), 4),
      'but got [9007199254740993]',
    ],
    [
      'a product that overflows to the right size',
      craft(one('"dtype":"F32","shape":[4294967296,4294967296,4294967297],"data_offsets":[0,4]'), 4),
      'no byte count fits',
    ],
    ['half a byte', craft(one('"dtype":"F4","shape":[3],"data_offsets":[0,2]'), 2), 'no byte count fits'],
    ['three offsets', craft(one('"dtype":"U8","shape":[4],"data_offsets":[0,4,4]'), 4), 'but got [0, 4, 4]'],
    ['offsets in reverse', craft(one('"dtype":"U8","shape":[4],"data_offsets":[4,0]'), 4), 'but got [4, 0]'],
    [
      'offsets past the end',
      craft(one('"dtype":"U8","shape":[4],"data_offsets":[1,5]'), 4),
      'inside the 4 bytes',
    ],
    [
      'offsets of 2^64',
      craft(one('"dtype":"U8","shape":[4],"data_offsets":[0,18446744073709551616]'), 4),
      'inside the 4 bytes',
    ],
    [
      'fewer bytes than the shape says',
      craft(one('"dtype":"U16","shape":[4],"data_offsets":[0,4]'), 4),
      'expected 8 bytes for U16 [4] but data_offsets span 4',
    ],
    [
      'overlap',
      craft(
        '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}',
        6,
      ),
      'tensor "b" overlaps what is before it: it starts at byte 2 of the data but "a" ends at 4',
    ],
    [
      'a hole',
      craft(
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}',
        6,
      ),
      'tensor "b" leaves a hole before it',
    ],
    [
      'a hole at the start',
      craft(one('"dtype":"U8","shape":[4],"data_offsets":[2,6]'), 6),
      'leaves a hole before it: it starts at byte 2 of the data but the data starts at 0',
    ],
    [
      'bytes after the last tensor',
      craft(one(good), 5),
      'expected 4 bytes of tensors after the header but the file has 5',
    ],
    ['metadata that is a list', craft('{"__metadata__":[]}'), 'an object of strings but got []'],
    ['metadata with a number', craft('{"__metadata__":{"a":1}}'), '"a" to be a string but got 1'],
  ]
  test.each(cases)('refused: %s', (_, bytes, sentence) => {
    const error = refusal(() => parseSafetensors(bytes, 'a.safetensors'))
    expect(error.code).toBe('ERR_FILE')
    expect(error.message).toContain('a.safetensors')
    expect(error.message).toContain(sentence)
  })

  const unwritable: [string, () => unknown, string][] = [
    [
      'a shape that is too large',
      () => serializeSafetensors({ a: { dtype: 'U8', shape: [5], data: new Uint8Array(4) } }),
      'expected 5 bytes',
    ],
    [
      'an unknown dtype',
      () => serializeSafetensors({ a: { dtype: 'F7' as 'F32', shape: [], data: new Uint8Array(1) } }),
      'no dtype of safetensors',
    ],
    [
      'a negative size',
      () => serializeSafetensors({ a: { dtype: 'U8', shape: [-1], data: new Uint8Array(1) } }),
      'non-negative integers',
    ],
    [
      'the name of the metadata',
      () => serializeSafetensors({ __metadata__: { dtype: 'U8', shape: [1], data: new Uint8Array(1) } }),
      'the header uses it',
    ],
    [
      'a lone surrogate',
      () => serializeSafetensors({ '\ud800': { dtype: 'U8', shape: [1], data: new Uint8Array(1) } }),
      'lone surrogate',
    ],
    [
      'metadata that is a number',
      () => serializeSafetensors({}, { a: 1 as unknown as string }),
      'to be a string but got number',
    ],
  ]
  test.each(unwritable)('not written: %s', (_, write, sentence) => {
    const error = refusal(write)
    expect(error.code).toBe('ERR_ARGUMENT')
    expect(error.message).toContain(sentence)
  })
})

describe('checkpoints on disk', () => {
  test('the small checkpoint, at once and in pieces of its own', async () => {
    using sync = openCheckpointSync(small)
    await using checkpoint = await openCheckpoint(join(small, 'model.safetensors'))
    expect(checkpoint.names()).toEqual(sync.names())
    expect(checkpoint.names()).toHaveLength(38)
    expect(checkpoint.metadata.get('format')).toBe('pt')
    expect(checkpoint.info('model.embed_tokens.weight')).toEqual({
      name: 'model.embed_tokens.weight',
      dtype: 'BF16',
      shape: [2048, 256],
      byteLength: 1048576,
      file: join(small, 'model.safetensors'),
    })
    const whole = parseSafetensors(fs.readFileSync(join(small, 'model.safetensors'))).tensors
    const read = await Promise.all(checkpoint.names().map((name) => checkpoint.read(name)))
    for (const [i, name] of checkpoint.names().entries()) {
      // toEqual visits each element of a typed array as an object key: too slow for whole tensors.
      for (const tensor of [read[i], sync.readSync(name)]) {
        expect(tensor?.shape).toEqual(whole.get(name)?.shape)
        expect(tensor?.data).toBeInstanceOf(Uint16Array)
        expect(same(tensor, whole.get(name))).toBe(true)
      }
    }
  })

  test('a written file replaces the old one in one step and leaves nothing beside it', async () => {
    const place = fs.mkdtempSync(join(folder, 'write-'))
    const path = join(place, 'out.safetensors')
    await writeSafetensors(path, sample)
    await writeSafetensors(path, sample, { again: 'yes' })
    expect(fs.readdirSync(place)).toEqual(['out.safetensors'])
    expect(new Uint8Array(fs.readFileSync(path))).toEqual(serializeSafetensors(sample, { again: 'yes' }))
    const failed = await rejection(() => writeSafetensors(join(place, 'none', 'out.safetensors'), sample))
    expect(failed.code).toBe('ERR_FILE')
    await expect(writeSafetensors(path, sample, {}, { signal: AbortSignal.abort() })).rejects.toThrow(
      'aborted',
    )
    expect(fs.readdirSync(place)).toEqual(['out.safetensors'])
  })

  test('a file that shrinks while it is open', async () => {
    const path = join(folder, 'shrinks.safetensors')
    fs.writeFileSync(path, serializeSafetensors(sample))
    using checkpoint = openCheckpointSync(path)
    fs.truncateSync(path, fs.statSync(path).size - 1)
    const last = checkpoint.names().at(-1) ?? ''
    for (const error of [
      refusal(() => checkpoint.readSync(last)),
      await rejection(() => checkpoint.read(last)),
    ]) {
      expect(error.code).toBe('ERR_FILE')
      expect(error.message).toContain('it has shrunk')
    }
  })

  test('places that hold no checkpoint', async () => {
    const cases: [string, string][] = [
      [join(folder, 'nowhere'), 'there is no such file or folder'],
      [fs.mkdtempSync(join(folder, 'empty-')), 'found neither'],
    ]
    const odd = fs.mkdtempSync(join(folder, 'odd-'))
    fs.mkdirSync(join(odd, 'model.safetensors'))
    cases.push([odd, 'it is a folder'])
    if (process.platform === 'linux') cases.push(['/dev/zero', 'expected a file'])
    for (const [path, sentence] of cases) {
      for (const error of [
        refusal(() => openCheckpointSync(path)),
        await rejection(() => openCheckpoint(path)),
      ]) {
        expect(error.code).toBe('ERR_FILE')
        expect(error.message).toContain(sentence)
        expect(error.message).toContain(path)
      }
    }
  })

  test('a truncated file, at every length', () => {
    const bytes = serializeSafetensors(sample)
    const path = join(folder, 'short.safetensors')
    for (let length = 0; length < bytes.byteLength; length += 7) {
      fs.writeFileSync(path, bytes.subarray(0, length))
      expect(refusal(() => openCheckpointSync(path)).code).toBe('ERR_FILE')
    }
  })

  test('close, using and abort', async () => {
    const checkpoint = await openCheckpoint(small)
    const reading = checkpoint.read('model.embed_tokens.weight')
    checkpoint.close()
    checkpoint.close()
    expect((await reading).shape).toEqual([2048, 256])
    expect(refusal(() => checkpoint.info('model.norm.weight')).code).toBe('ERR_DISPOSED')
    expect((await rejection(() => checkpoint.read('model.norm.weight'))).code).toBe('ERR_DISPOSED')
    await expect(openCheckpoint(small, { signal: AbortSignal.abort() })).rejects.toThrow('aborted')
    using again = openCheckpointSync(small)
    await expect(
      again.read('model.norm.weight', { signal: AbortSignal.abort(new Error('enough')) }),
    ).rejects.toThrow('enough')
    const missing = refusal(() => again.readSync('model.nothing'))
    expect(missing.code).toBe('ERR_FILE')
    expect(missing.message).toContain('no tensor "model.nothing"')
  })
})

describe('shards', () => {
  function shards(index: unknown, files: Record<string, Record<string, SafetensorsTensor>>): string {
    const place = fs.mkdtempSync(join(folder, 'shards-'))
    for (const [name, tensors] of Object.entries(files)) {
      fs.writeFileSync(join(place, name), serializeSafetensors(tensors, { from: name, [name]: 'yes' }))
    }
    const text = typeof index === 'string' ? index : JSON.stringify(index)
    fs.writeFileSync(join(place, 'model.safetensors.index.json'), text)
    return place
  }
  const tensor = (value: number): SafetensorsTensor => ({
    dtype: 'U8',
    shape: [1],
    data: Uint8Array.of(value),
  })

  test('tensors come from the shard that the index names', async () => {
    const place = shards(
      { metadata: { total_size: 2 }, weight_map: { a: 'x.safetensors', b: 'y.safetensors' } },
      { 'x.safetensors': { a: tensor(1) }, 'y.safetensors': { b: tensor(2), spare: tensor(3) } },
    )
    for (const path of [place, join(place, 'model.safetensors.index.json')]) {
      using checkpoint = await openCheckpoint(path)
      expect(checkpoint.names()).toEqual(['a', 'b'])
      expect(checkpoint.readSync('b').data).toEqual(Uint8Array.of(2))
      expect(checkpoint.info('b').file).toBe(join(place, 'y.safetensors'))
      expect(checkpoint.metadata.get('from')).toBe('x.safetensors')
      expect(checkpoint.metadata.get('y.safetensors')).toBe('yes')
    }
  })

  const xy = { 'x.safetensors': { a: tensor(1) }, 'y.safetensors': { b: tensor(2) } }
  const cases: [string, unknown, Record<string, Record<string, SafetensorsTensor>>, string][] = [
    [
      'a shard outside the folder',
      { weight_map: { a: '../x.safetensors' } },
      xy,
      'a file name in the same folder but got "../x.safetensors"',
    ],
    ['an absolute shard', { weight_map: { a: '/etc/passwd' } }, xy, 'a file name in the same folder'],
    ['a shard across a backslash', { weight_map: { a: '..\\x' } }, xy, 'a file name in the same folder'],
    ['dots', { weight_map: { a: '..' } }, xy, 'a file name in the same folder'],
    ['a number for a shard', { weight_map: { a: 1 } }, xy, 'a file name in the same folder but got 1'],
    ['a missing shard', { weight_map: { a: 'z.safetensors' } }, xy, 'there is no such file'],
    [
      'a missing tensor',
      { weight_map: { a: 'x.safetensors', c: 'y.safetensors' } },
      xy,
      'expected it in y.safetensors but no shard holds it',
    ],
    [
      'a tensor in another shard',
      { weight_map: { a: 'x.safetensors', b: 'x.safetensors', c: 'y.safetensors' } },
      { ...xy, 'y.safetensors': { b: tensor(2), c: tensor(3) } },
      'expected it in x.safetensors but it is in y.safetensors',
    ],
    [
      'a tensor twice',
      { weight_map: { a: 'x.safetensors', b: 'y.safetensors' } },
      { ...xy, 'y.safetensors': { a: tensor(1), b: tensor(2) } },
      'comes twice',
    ],
    ['no weight_map', {}, xy, 'with weight_map but got nothing'],
    ['an empty weight_map', { weight_map: {} }, xy, 'names no tensor'],
    ['a list', [], xy, 'with weight_map'],
    ['no JSON', '{"weight_map":', xy, 'not JSON'],
    ['a tensor named twice', '{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', xy, 'comes twice'],
  ]
  test.each(cases)('refused: %s', async (_, index, files, sentence) => {
    const place = shards(index, files)
    for (const error of [
      refusal(() => openCheckpointSync(place)),
      await rejection(() => openCheckpoint(place)),
    ]) {
      expect(error.code).toBe('ERR_FILE')
      expect(error.message).toContain(sentence)
    }
  })
})

describe('mutated files', () => {
  const seed = Number(process.env.LB_SEED ?? 20261122)
  const originals = [
    serializeSafetensors(sample, { format: 'lowbit', note: 'a note' }),
    serializeSafetensors({ w: { dtype: 'F32', shape: [2, 2], data: Float32Array.of(1, 2, 3, 4) } }),
    serializeSafetensors({ e: { dtype: 'I8', shape: [0], data: new Int8Array(0) }, ...sample }),
    serializeSafetensors({}, { only: 'metadata' }),
  ]
  const numbers = [
    '-1',
    '0',
    '1',
    '1.5',
    '1e308',
    '-0',
    '255',
    '4294967295',
    '4294967296',
    '9007199254740991',
    '9007199254740992',
    '18446744073709551615',
    '18446744073709551616',
    '99999999999999999999999999',
    '00',
    '1e-5',
    'NaN',
    '""',
    'null',
    '[]',
    '{}',
  ]
  const words = [
    '"F32"',
    '"BF16"',
    '"U8"',
    '"F64"',
    '"shape"',
    '"dtype"',
    '"data_offsets"',
    '"__metadata__"',
    '"w"',
    '"scalar"',
    '[',
    ']',
    '{',
    '}',
    ',',
    ':',
    '"',
    '\\',
    '\\u0000',
    ' ',
    '\n',
    'null',
    'true',
    '0',
    '"\u{1f600}"',
  ]

  // Gives the header a new text; half the time with the length that fits it.
  function withHeader(bytes: Uint8Array, text: string, fits: boolean): Uint8Array {
    const old = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))
    const json = Buffer.from(text, 'utf8')
    const out = new Uint8Array(8 + json.byteLength + bytes.byteLength - 8 - old)
    new DataView(out.buffer).setBigUint64(0, BigInt(fits ? json.byteLength : old), true)
    out.set(json, 8)
    out.set(bytes.subarray(8 + old), 8 + json.byteLength)
    return out
  }
  function headerText(bytes: Uint8Array): string {
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))
    return Buffer.from(bytes.subarray(8, 8 + length)).toString('utf8')
  }

  function mutate(original: Uint8Array, below: (n: number) => number): Uint8Array {
    const bytes = original.slice()
    const text = headerText(bytes)
    const fits = below(4) !== 0
    switch (below(9)) {
      case 0: // single bits, mostly in the header
        for (let i = below(4); i >= 0; i--) {
          const at = below(below(4) === 0 ? bytes.byteLength : 8 + text.length)
          bytes[at] = (bytes[at] ?? 0) ^ (1 << below(8))
        }
        return bytes
      case 1:
        return bytes.subarray(0, below(bytes.byteLength))
      case 2: {
        const longer = new Uint8Array(bytes.byteLength + 1 + below(20))
        longer.set(bytes)
        return longer
      }
      case 3: {
        const lengths = [
          0n,
          1n,
          BigInt(below(text.length * 2)),
          BigInt(bytes.byteLength),
          BigInt(bytes.byteLength - 8),
          100_000_000n,
          100_000_001n,
          2n ** 31n,
          2n ** 32n,
          2n ** 53n,
          2n ** 63n,
          2n ** 64n - 1n,
        ]
        new DataView(bytes.buffer).setBigUint64(0, lengths[below(lengths.length)] ?? 0n, true)
        return bytes
      }
      case 4: {
        const spots = [...text.matchAll(/[0-9]+/g)]
        const spot = spots[below(Math.max(1, spots.length))]
        if (spot === undefined) return bytes
        const number = below(3) === 0 ? String(below(64)) : (numbers[below(numbers.length)] ?? '')
        return withHeader(
          bytes,
          text.slice(0, spot.index) + number + text.slice(spot.index + spot[0].length),
          fits,
        )
      }
      case 5: {
        const at = below(text.length)
        const word = words[below(words.length)] ?? ''
        return withHeader(bytes, text.slice(0, at) + word + text.slice(at + below(4)), fits)
      }
      case 6: {
        // A piece of the text again somewhere else: repeated keys, nested objects.
        const at = below(text.length)
        const piece = text.slice(at, at + 1 + below(60))
        const to = below(text.length)
        return withHeader(bytes, text.slice(0, to) + piece + text.slice(to), fits)
      }
      case 7: {
        const strings = [...text.matchAll(/"[^"]*"/g)]
        const a = strings[below(strings.length)]
        const b = strings[below(strings.length)]
        if (a === undefined || b === undefined) return bytes
        return withHeader(bytes, text.slice(0, a.index) + b[0] + text.slice(a.index + a[0].length), fits)
      }
      default:
        for (let i = below(30); i >= 0; i--) bytes[below(bytes.byteLength)] = below(256)
        return bytes
    }
  }

  // Everything that a parsed result must be, from the file's bytes alone: the header once more by JSON.parse.
  function assertSound(bytes: Uint8Array, tensors: ReadonlyMap<string, SafetensorsTensor>): void {
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))
    const header = JSON.parse(headerText(bytes)) as Record<
      string,
      { dtype: string; shape: number[]; data_offsets: [number, number] }
    >
    const used = new Uint8Array(bytes.byteLength - 8 - length)
    for (const [name, { dtype, shape, data }] of tensors) {
      const entry = Object.hasOwn(header, name) ? header[name] : undefined
      if (entry === undefined || entry.dtype !== dtype || entry.shape.join() !== shape.join())
        throw new Error(`header of ${name}`)
      const [begin, end] = entry.data_offsets
      const expected = bytes.subarray(8 + length + begin, 8 + length + end)
      if (Buffer.compare(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), expected) !== 0)
        throw new Error(`bytes of ${name}`)
      if (
        dtype !== 'F4' &&
        data.length !== shape.reduce((a, b) => a * b, 1) &&
        dtype !== 'C64' &&
        !dtype.startsWith('F6')
      ) {
        throw new Error(`elements of ${name}`)
      }
      for (let i = begin; i < end; i++) used[i] = (used[i] ?? 0) + 1
    }
    if (used.some((count) => count !== 1))
      throw new Error('a byte of the data belongs to no tensor or to two')
    const again = parseSafetensors(serializeSafetensors(tensors)).tensors
    if (again.size !== tensors.size) throw new Error('does not survive writing and reading')
  }

  test('20,000 in memory and 300 on disk are parsed soundly or refused with ERR_FILE', () => {
    let parsed = 0
    let refused = 0
    const count = 20_300
    for (let i = 0; i < count; i++) {
      const random = new Random(seed + i * 7919)
      const below = (n: number) => random.int(0, n - 1)
      const bytes = mutate(originals[below(originals.length)] ?? new Uint8Array(0), below)
      try {
        if (i < 20_000) assertSound(bytes, parseSafetensors(bytes).tensors)
        else {
          const path = join(folder, 'mutated.safetensors')
          fs.writeFileSync(path, bytes)
          using checkpoint: Checkpoint = openCheckpointSync(path)
          assertSound(bytes, new Map(checkpoint.names().map((name) => [name, checkpoint.readSync(name)])))
        }
        parsed++
      } catch (error) {
        if (!(error instanceof LowbitError) || error.code !== 'ERR_FILE') {
          throw new Error(`mutation ${i} of LB_SEED=${seed}: ${String(error)}`, { cause: error })
        }
        refused++
      }
    }
    expect(parsed + refused).toBe(count)
    // A mutation of the tensors' bytes alone is no error; most others are.
    expect(parsed).toBeGreaterThan(count / 100)
    expect(refused).toBeGreaterThan(count / 2)
  })
})
