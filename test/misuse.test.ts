// Every way to misuse the library that we could think of: each gets an error with a code and a sentence that names the
// argument, what was expected and what came; none ends the process, and the device works on afterwards. The table that
// is printed is the document of what users see.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import {
  add,
  argmax,
  attention,
  backends,
  canonical,
  copy,
  crossEntropy,
  type Device,
  dequantizeRows,
  deserialize,
  embedding,
  geluMul,
  layerNorm,
  linear,
  openCheckpoint,
  openDevice,
  quantize,
  quantizeRows,
  rmsNorm,
  rope,
  serialize,
  siluMul,
  softmax,
  type Tensor,
  type Weight,
} from 'lowbit'

let device: Device
let other: Device
let closed: Tensor
let x: Tensor
let w: Weight
let folder: string
const any = <T>(value: unknown): T => value as T

beforeAll(() => {
  device = openDevice('cpu', { threads: 2, memoryLimit: 64 << 20 })
  other = openDevice('cpu', { threads: 1 })
  const gone = openDevice('cpu', { threads: 1 })
  closed = gone.empty([2, 64])
  gone.close()
  x = device.tensor(new Float32Array(2 * 64).fill(1), [2, 64])
  w = device.load(quantize(new Float32Array(16 * 64).fill(0.5), [16, 64], { format: 'int4', groupSize: 32 }))
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowbit-misuse-'))
})
afterAll(() => {
  device.close()
  other.close()
  fs.rmSync(folder, { recursive: true })
})

const f32 = (shape: number[], value = 0) =>
  device.tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value), shape)
const weights = (n = 64) => new Float32Array(n).fill(0.25)
const disposed = () => {
  const tensor = f32([2, 64])
  tensor.dispose()
  return tensor
}
function file(name: string, bytes: Uint8Array): string {
  const full = path.join(folder, name)
  fs.writeFileSync(full, bytes)
  return full
}
function safetensors(header: string, body = 0, claim?: number): Uint8Array {
  const text = Buffer.from(header)
  const out = Buffer.alloc(8 + text.length + body)
  out.writeBigUInt64LE(BigInt(claim ?? text.length))
  text.copy(out, 8)
  return out
}
const open = async (name: string, bytes: Uint8Array) => (await openCheckpoint(file(name, bytes))).close()

const cases: [what: string, code: string, act: () => unknown][] = [
  // JavaScript values of the wrong kind
  ['linear: x is undefined', 'ERR_TYPE', () => linear(any(undefined), w)],
  ['linear: x is a typed array', 'ERR_TYPE', () => linear(any(new Float32Array(64)), w)],
  ['linear: w is a tensor', 'ERR_TYPE', () => linear(x, any(x))],
  [
    'linear: w is canonical, not loaded',
    'ERR_TYPE',
    () => linear(x, any(quantize(weights(), [1, 64], { format: 'int8' }))),
  ],
  ['linear: out is a plain object', 'ERR_TYPE', () => linear(x, w, { out: any({}) })],
  ['linear: activation is a number', 'ERR_TYPE', () => linear(x, w, { activation: any(3) })],
  ['add: b is null', 'ERR_TYPE', () => add(x, any(null))],
  ['tensor: data is an array', 'ERR_TYPE', () => device.tensor(any([1, 2]), [2])],
  ['tensor: shape is a number', 'ERR_TYPE', () => device.tensor(new Float32Array(2), any(2))],
  ['tensor: a size is a string', 'ERR_TYPE', () => device.empty(any(['2']))],
  ['tensor: dtype is a number', 'ERR_TYPE', () => device.empty([2], any(1))],
  ['openDevice: name is a number', 'ERR_TYPE', () => openDevice(any(0))],
  ['openDevice: threads is a string', 'ERR_TYPE', () => openDevice('cpu', { threads: any('2') })],
  ['rmsNorm: eps is a string', 'ERR_TYPE', () => rmsNorm(x, f32([64]), { eps: any('small') })],
  ['quantize: weights is a string', 'ERR_TYPE', () => quantize(any('abc'), [1, 3], { format: 'int8' })],
  ['write: data is undefined', 'ERR_TYPE', () => x.write(any(undefined))],
  // shapes
  ['linear: K differs', 'ERR_SHAPE', () => linear(f32([2, 63]), w)],
  ['linear: x has three dimensions', 'ERR_SHAPE', () => linear(f32([1, 2, 64]), w)],
  ['linear: bias is too short', 'ERR_SHAPE', () => linear(x, w, { bias: f32([15]) })],
  ['linear: residual has another shape', 'ERR_SHAPE', () => linear(x, w, { residual: f32([2, 15]) })],
  ['linear: out has another shape', 'ERR_SHAPE', () => linear(x, w, { out: f32([3, 16]) })],
  ['add: shapes differ', 'ERR_SHAPE', () => add(x, f32([2, 63]))],
  ['tensor: too few elements', 'ERR_SHAPE', () => device.tensor(new Float32Array(5), [2, 3])],
  ['tensor: a size is negative', 'ERR_SHAPE', () => device.empty([-1])],
  ['tensor: a size is fractional', 'ERR_SHAPE', () => device.empty([1.5])],
  ['tensor: too many dimensions', 'ERR_SHAPE', () => device.empty([1, 1, 1, 1, 1, 1])],
  ['reshape: another number of elements', 'ERR_SHAPE', () => x.reshape([3, 64])],
  ['write: another number of elements', 'ERR_SHAPE', () => x.write(new Float32Array(3))],
  ['rmsNorm: weight is too short', 'ERR_SHAPE', () => rmsNorm(x, f32([63]))],
  ['layerNorm: bias is too short', 'ERR_SHAPE', () => layerNorm(x, f32([64]), f32([63]))],
  ['siluMul: shapes differ', 'ERR_SHAPE', () => siluMul(x, f32([1, 64]))],
  [
    'attention: kv heads do not divide heads',
    'ERR_SHAPE',
    () => attention(f32([1, 2, 3, 8]), f32([1, 2, 2, 8]), f32([1, 2, 2, 8])),
  ],
  [
    'attention: head dims differ',
    'ERR_SHAPE',
    () => attention(f32([1, 2, 2, 8]), f32([1, 2, 2, 4]), f32([1, 2, 2, 8])),
  ],
  [
    'quantize: weights do not fill the shape',
    'ERR_SHAPE',
    () => quantize(weights(63), [1, 64], { format: 'int8' }),
  ],
  [
    'crossEntropy: one target too few',
    'ERR_SHAPE',
    () => crossEntropy(x, device.tensor(new Int32Array(1), [1], 'i32')),
  ],
  // dtypes
  ['add: an integer tensor', 'ERR_DTYPE', () => add(x, device.empty([2, 64], 'i32'))],
  ['linear: codes without scales', 'ERR_ARGUMENT', () => linear(device.empty([2, 64], 'i8'), w)],
  ['linear: x holds integers', 'ERR_DTYPE', () => linear(device.empty([2, 64], 'i32'), w)],
  ['linear: out holds integers', 'ERR_DTYPE', () => linear(x, w, { out: device.empty([2, 16], 'i32') })],
  ['tensor: doubles', 'ERR_DTYPE', () => device.tensor(new Float64Array(2), [2])],
  ['tensor: 16-bit words as f32', 'ERR_DTYPE', () => device.tensor(new Uint16Array(2), [2], 'f32')],
  ['read: floats as integers', 'ERR_DTYPE', () => x.read(any('i32'))],
  ['embedding: ids are floats', 'ERR_DTYPE', () => embedding(x, f32([2]))],
  ['argmax: integers', 'ERR_DTYPE', () => argmax(device.empty([2, 2], 'i32'))],
  [
    'attention: q and k differ',
    'ERR_DTYPE',
    () => attention(f32([1, 2, 2, 8]), device.empty([1, 2, 2, 8], 'bf16'), f32([1, 2, 2, 8])),
  ],
  // calls that contradict themselves
  [
    'linear: dtype and an out of another',
    'ERR_DTYPE',
    () => linear(x, w, { dtype: 'bf16', out: f32([2, 16]) }),
  ],
  [
    'linear: outQuant and codes of another dtype',
    'ERR_DTYPE',
    () => linear(x, w, { outQuant: { dtype: 'e4m3' }, out: quantizeRows(f32([2, 16])) }),
  ],
  [
    'quantizeRows: per block, scales by row',
    'ERR_SHAPE',
    () => quantizeRows(x, { per: 'block', out: quantizeRows(x) }),
  ],
  [
    'dequantizeRows: dtype and an out of another',
    'ERR_DTYPE',
    () => dequantizeRows(quantizeRows(x), { dtype: 'f16', out: f32([2, 64]) }),
  ],
  ['copy: dtype and an out of another', 'ERR_DTYPE', () => copy(x, { dtype: 'bf16', out: f32([2, 64]) })],
  // devices and lifetimes
  ['add: two devices', 'ERR_DEVICE', () => add(x, other.empty([2, 64]))],
  ['linear: x on another device', 'ERR_DEVICE', () => linear(other.empty([2, 64]), w)],
  ['add: a disposed tensor', 'ERR_DISPOSED', () => add(x, disposed())],
  ['read: a disposed tensor', 'ERR_DISPOSED', () => disposed().read()],
  ['add: out is disposed', 'ERR_DISPOSED', () => add(x, x, { out: disposed() })],
  [
    'linear: a disposed weight',
    'ERR_DISPOSED',
    () => {
      const gone = device.load(quantize(weights(), [1, 64], { format: 'int8' }))
      gone.dispose()
      return linear(x, gone)
    },
  ],
  ['read: the device is closed', 'ERR_DISPOSED', () => closed.read()],
  ['openDevice: no such name', 'ERR_ARGUMENT', () => openDevice('gpu')],
  ['openDevice: zero threads', 'ERR_ARGUMENT', () => openDevice('cpu', { threads: 0 })],
  ['openDevice: a million threads', 'ERR_ARGUMENT', () => openDevice('cpu', { threads: 1e6 })],
  ['openDevice: a negative limit', 'ERR_ARGUMENT', () => openDevice('cpu', { memoryLimit: -1 })],
  // numbers and words out of range
  ['linear: unknown activation', 'ERR_ARGUMENT', () => linear(x, w, { activation: any('mish') })],
  ['linear: unknown compute', 'ERR_ARGUMENT', () => linear(x, w, { compute: any('int4') })],
  ['quantize: unknown format', 'ERR_ARGUMENT', () => quantize(weights(), [1, 64], { format: any('int5') })],
  [
    'quantize: group size 7',
    'ERR_ARGUMENT',
    () => quantize(weights(), [1, 64], { format: 'int4', groupSize: any(7) }),
  ],
  [
    'quantize: NaN among the weights',
    'ERR_ARGUMENT',
    () => quantize(weights().fill(Number.NaN, 5, 6), [1, 64], { format: 'int8' }),
  ],
  [
    'canonical: NaN scale',
    'ERR_ARGUMENT',
    () =>
      canonical({
        format: 'int8',
        shape: [1, 64],
        groupSize: 'channel',
        codes: new Uint8Array(64),
        scales: new Float32Array([Number.NaN]),
      }),
  ],
  [
    'canonical: codes too short',
    'ERR_SHAPE',
    () =>
      canonical({
        format: 'int8',
        shape: [1, 64],
        groupSize: 'channel',
        codes: new Uint8Array(63),
        scales: new Float32Array(1),
      }),
  ],
  ['slice: end past the dimension', 'ERR_ARGUMENT', () => x.slice(0, 0, 3)],
  ['slice: no such dimension', 'ERR_ARGUMENT', () => x.slice(2, 0, 1)],
  ['transpose: no such dimension', 'ERR_ARGUMENT', () => x.transpose(0, 5)],
  [
    'rope: unknown pairing',
    'ERR_ARGUMENT',
    () => rope(f32([2, 1, 8]), any({ cos: f32([2, 4]), sin: f32([2, 4]), pairing: 'thirds' })),
  ],
  [
    'attention: causal with a negative window',
    'ERR_ARGUMENT',
    () => attention(f32([1, 2, 2, 8]), f32([1, 2, 2, 8]), f32([1, 2, 2, 8]), { window: [-5, 0] }),
  ],
  ['quantizeRows: unknown dtype', 'ERR_ARGUMENT', () => quantizeRows(x, { dtype: any('i7') })],
  ['softmax: a scale of NaN', 'ERR_ARGUMENT', () => softmax(x, { scale: Number.NaN })],
  ['geluMul: tanh is a word', 'ERR_TYPE', () => geluMul(x, x, { tanh: any('yes') })],
  // strides and overlap
  ['reshape: a transposed view', 'ERR_STRIDES', () => x.transpose(0, 1).reshape([128])],
  ['linear: x is transposed', 'ERR_STRIDES', () => linear(f32([64, 2]).transpose(0, 1), w)],
  ['linear: out overlaps x', 'ERR_ARGUMENT', () => linear(x.slice(0, 0, 2), w, { out: x.slice(1, 0, 16) })],
  // found by the kernel: the wait rejects
  [
    'embedding: an id outside the table',
    'ERR_ARGUMENT',
    () => embedding(x, device.tensor(new Int32Array([0, 70000]), [2], 'i32')).read(),
  ],
  [
    'an op on the result of a failed op',
    'ERR_ARGUMENT',
    () => add(embedding(x, device.tensor(new Int32Array([-1]), [1], 'i32')), f32([1, 64])).read(),
  ],
  [
    'attention: a list of fractions',
    'ERR_ARGUMENT',
    () => attention(f32([4, 2, 8]), f32([4, 2, 8]), f32([4, 2, 8]), { cuSeqlensQ: [0, 2.5, 4] }),
  ],
  [
    'attention: cuSeqlens that fall',
    'ERR_ARGUMENT',
    () =>
      attention(f32([4, 2, 8]), f32([4, 2, 8]), f32([4, 2, 8]), {
        cuSeqlensQ: device.tensor(new Int32Array([0, 3, 2, 4]), [4], 'i32'),
      }).read(),
  ],
  // memory
  ['empty: more than the limit', 'ERR_MEMORY', () => device.empty([1 << 28])],
  ['empty: more than any machine', 'ERR_MEMORY', () => device.empty([2 ** 40, 2 ** 12])],
  [
    'linear: no room for the result',
    'ERR_MEMORY',
    () =>
      linear(f32([1 << 17, 64]), device.load(quantize(weights(1 << 20), [1 << 14, 64], { format: 'int8' }))),
  ],
  // files
  ['a checkpoint that is not there', 'ERR_FILE', () => openCheckpoint(path.join(folder, 'nothing'))],
  ['an empty file', 'ERR_FILE', () => open('empty.safetensors', new Uint8Array(0))],
  ['a header longer than the file', 'ERR_FILE', () => open('long.safetensors', safetensors('{}', 0, 1e6))],
  ['a header of 2^60 bytes', 'ERR_FILE', () => open('huge.safetensors', safetensors('{}', 0, 2 ** 60))],
  ['a header that is not JSON', 'ERR_FILE', () => open('json.safetensors', safetensors('{"a":'))],
  [
    'a tensor outside the file',
    'ERR_FILE',
    () =>
      open('outside.safetensors', safetensors('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', 8)),
  ],
  [
    'tensors that overlap',
    'ERR_FILE',
    () =>
      open(
        'overlap.safetensors',
        safetensors(
          '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}',
          6,
        ),
      ),
  ],
  [
    'a shape that its bytes contradict',
    'ERR_FILE',
    () => open('lie.safetensors', safetensors('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}}', 16)),
  ],
  [
    'an unknown dtype',
    'ERR_FILE',
    () => open('dtype.safetensors', safetensors('{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,1]}}', 1)),
  ],
  [
    'serialized weights cut short',
    'ERR_FILE',
    () => {
      const bytes = serialize({ a: quantize(weights(), [1, 64], { format: 'int8' }) })
      return deserialize(bytes.subarray(0, bytes.length - 8))
    },
  ],
]

test('every misuse has a code and a sentence, and harms nothing', async () => {
  const rows: string[] = []
  const wrong: string[] = []
  for (const [what, code, act] of cases) {
    let found = 'no error'
    let text = ''
    try {
      await act()
    } catch (error) {
      const caught = error as Error & { code?: string }
      found = caught.code ?? caught.constructor.name
      text = caught.message
    }
    if (found !== code || text.length < 15) wrong.push(`${what}: expected ${code} but got ${found}: ${text}`)
    rows.push(`${code.padEnd(16)}${what.padEnd(44)}${text.replaceAll(folder, '')}`)
  }
  process.stdout.write(`\n${rows.length} ways to misuse lowbit\n${rows.join('\n')}\n`)
  expect(wrong).toEqual([])
  expect(new Set(cases.map(([what]) => what)).size).toBe(cases.length)
  expect(cases.length).toBeGreaterThanOrEqual(60)
  // Failures stay with the tensors that they were to make.
  await device.sync().catch(() => {})
  expect((await add(x, x).read())[0]).toBe(2)
  await device.sync()
  expect(backends().at(-1)).toMatchObject({ device: 'cpu', usable: true })
})
