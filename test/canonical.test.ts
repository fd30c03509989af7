// Canonical weights that come from elsewhere, and every way to get a weight or a scheme wrong.
import {
  canonical,
  dequantize,
  type Format,
  LowbitError,
  QuantizedWeight,
  quantize,
  type Scheme,
} from 'lowbit'
import { Random } from './ref/random'
import { codebook, needs, scaled } from './ref/schemes'

describe('canonical', () => {
  const make = (format: Format, scheme: Partial<Scheme> = {}) =>
    quantize(new Random(13).floats(5 * 100), [5, 100], { format, ...needs(format), ...scheme })

  test('takes what quantize makes, also after structuredClone', () => {
    for (const format of ['f32', 'f16', 'bf16', ...scaled] as const) {
      const q = make(format)
      const copy = canonical(structuredClone({ ...q }))
      expect(copy).toBeInstanceOf(QuantizedWeight)
      expect(copy).toEqual(q)
      expect(dequantize(copy)).toEqual(dequantize(q))
    }
  })

  test('codes may begin at any byte', () => {
    for (const format of ['f32', 'f16', 'bf16', 'int4'] as const) {
      const q = make(format)
      const room = new Uint8Array(q.codes.length + 1)
      room.set(q.codes, 1)
      expect(dequantize(canonical({ ...q, codes: room.subarray(1) }))).toEqual(dequantize(q))
    }
  })

  test('codes that only importers make: int4 below the symmetric range, fp8 NaN and inf, zeros of 2^bits', () => {
    const scales = new Float32Array([0.5])
    const int4 = canonical({ format: 'int4', shape: [1, 2], codes: new Uint8Array([0xf0]), scales })
    expect([...dequantize(int4)]).toEqual([-4, 3.5])
    const zeros = new Uint8Array([16])
    const gptq = canonical({
      format: 'int4',
      shape: [1, 2],
      zeroPoint: 'integer',
      codes: new Uint8Array([0xf0]),
      scales,
      zeros,
    })
    expect([...dequantize(gptq)]).toEqual([-8, -0.5])
    const codes = new Uint8Array([0x7c, 0xfc, 0x7f])
    const fp8 = canonical({ format: 'fp8_e5m2', shape: [1, 3], codes, scales })
    expect([...dequantize(fp8)]).toEqual([Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN])
  })

  test('an overwritten array is found when it is used', () => {
    const q = make('int4')
    ;(q.scales as Float32Array)[3] = Number.NaN
    expect(() => dequantize(q)).toThrow('expected finite scales but got NaN at [1, 1]')
  })
})

describe('misuse', () => {
  const w = new Random(14).floats(4 * 128)
  const at = (index: number, value: number) => w.map((x, i) => (i === index ? value : x))
  const int4 = quantize(w, [4, 128], { format: 'int4' })
  const int8 = quantize(w, [4, 128], { format: 'int8' })
  const nvfp4 = quantize(w, [4, 128], { format: 'nvfp4' })
  const ternary = quantize(w.subarray(0, 10), [2, 5], { format: 'ternary' })
  const change = <T extends Uint8Array | Float32Array>(
    array: T | undefined,
    index: number,
    value: number,
  ): T => {
    const copy = (array as T).slice() as T
    copy[index] = value
    return copy
  }
  /** What TypeScript refuses at compile time. */
  const wrong = (value: unknown): never => value as never

  const cases: [string, () => unknown, string, RegExp][] = [
    [
      'weights that are a plain array',
      () => quantize(wrong([1, 2]), [1, 2], { format: 'int8' }),
      'ERR_TYPE',
      /weights .* got an array/,
    ],
    [
      'no weights',
      () => quantize(wrong(undefined), [1, 2], { format: 'int8' }),
      'ERR_TYPE',
      /weights .* got undefined/,
    ],
    [
      'weights of doubles',
      () => quantize(wrong(new Float64Array(2)), [1, 2], { format: 'int8' }),
      'ERR_TYPE',
      /Float64Array/,
    ],
    [
      '16-bit weights of no dtype',
      () => quantize(new Uint16Array(2), [1, 2], { format: 'int8' }),
      'ERR_DTYPE',
      /f16 or bf16/,
    ],
    [
      '16-bit weights as f32',
      () => quantize(new Uint16Array(2), [1, 2], { format: 'int8', dtype: 'f32' }),
      'ERR_DTYPE',
      /f16 or bf16/,
    ],
    [
      'f32 weights as bf16',
      () => quantize(w, [4, 128], { format: 'int8', dtype: 'bf16' }),
      'ERR_DTYPE',
      /which a Float32Array holds/,
    ],
    [
      'too few weights',
      () => quantize(w, [4, 129], { format: 'int8' }),
      'ERR_SHAPE',
      /expected 516 weights for \[4, 129\] but got 512/,
    ],
    ['a shape of one size', () => quantize(w, [512], { format: 'int8' }), 'ERR_SHAPE', /\[N, K\] but got 1/],
    ['a negative size', () => quantize(w, [-4, -128], { format: 'int8' }), 'ERR_SHAPE', /shape\[0\] is -4/],
    ['a broken size', () => quantize(w, [4.5, 128], { format: 'int8' }), 'ERR_SHAPE', /shape\[0\] is 4.5/],
    [
      'sizes beyond any memory',
      () => quantize(w, [2 ** 25, 2 ** 25], { format: 'int8' }),
      'ERR_',
      /2\^44|asks for/,
    ],
    [
      'no shape',
      () => quantize(w, wrong(undefined), { format: 'int8' }),
      'ERR_TYPE',
      /shape to be an array of sizes/,
    ],
    ['no scheme', () => quantize(w, [4, 128], wrong(undefined)), 'ERR_TYPE', /scheme to be an object/],
    [
      'a format that there is not',
      () => quantize(w, [4, 128], wrong({ format: 'int5' })),
      'ERR_ARGUMENT',
      /one of f32.* got 'int5'/,
    ],
    ['no format', () => quantize(w, [4, 128], wrong({})), 'ERR_TYPE', /format: expected a string/],
    [
      'an option that there is not',
      () => quantize(w, [4, 128], wrong({ format: 'int4', groupsize: 64 })),
      'ERR_ARGUMENT',
      /got 'groupsize' too/,
    ],
    [
      'a group of 48',
      () => quantize(w, [4, 128], wrong({ format: 'int4', groupSize: 48 })),
      'ERR_ARGUMENT',
      /32, 64, 128, .* got 48/,
    ],
    [
      'a group of 0',
      () => quantize(w, [4, 128], wrong({ format: 'int4', groupSize: 0 })),
      'ERR_ARGUMENT',
      /got 0/,
    ],
    [
      'blocks of int4',
      () => quantize(w, [4, 128], { format: 'int4', groupSize: 'block' }),
      'ERR_ARGUMENT',
      /128 x 128/,
    ],
    [
      'groups of bf16',
      () => quantize(w, [4, 128], { format: 'bf16', groupSize: 64 }),
      'ERR_ARGUMENT',
      /bf16 has no scales/,
    ],
    [
      'scales of int8',
      () => quantize(w, [4, 128], wrong({ format: 'int8', scaleDtype: 'i8' })),
      'ERR_ARGUMENT',
      /f32, f16, bf16 but got 'i8'/,
    ],
    [
      'zero points of int8',
      () => quantize(w, [4, 128], { format: 'int8', zeroPoint: 'integer' }),
      'ERR_ARGUMENT',
      /int8 is symmetric/,
    ],
    [
      'symmetric with zero points',
      () => quantize(w, [4, 128], { format: 'int4', symmetric: true, zeroPoint: 'float' }),
      'ERR_ARGUMENT',
      /got both/,
    ],
    [
      'asymmetric fp8',
      () => quantize(w, [4, 128], { format: 'fp8_e4m3', symmetric: false }),
      'ERR_ARGUMENT',
      /no zero points/,
    ],
    [
      'symmetric as a word',
      () => quantize(w, [4, 128], wrong({ format: 'int4', symmetric: 'yes' })),
      'ERR_TYPE',
      /symmetric to be a boolean/,
    ],
    [
      'clip as a number',
      () => quantize(w, [4, 128], wrong({ format: 'int4', clip: 1 })),
      'ERR_TYPE',
      /clip to be a boolean/,
    ],
    [
      'NaN',
      () => quantize(at(130, Number.NaN), [4, 128], { format: 'int4' }),
      'ERR_ARGUMENT',
      /finite weights but got NaN at \[1, 2\]/,
    ],
    [
      'inf',
      () => quantize(at(511, Number.POSITIVE_INFINITY), [4, 128], { format: 'ternary' }),
      'ERR_ARGUMENT',
      /got inf at \[3, 127\]/,
    ],
    [
      '-inf in a tensor with one scale',
      () => quantize(at(3, Number.NEGATIVE_INFINITY), [4, 128], { format: 'fp8_e4m3', groupSize: 'tensor' }),
      'ERR_ARGUMENT',
      /got -inf at \[0, 3\]/,
    ],
    [
      'NaN in what is only converted',
      () => quantize(at(200, Number.NaN), [4, 128], { format: 'bf16' }),
      'ERR_ARGUMENT',
      /got NaN at \[1, 72\]/,
    ],
    [
      'NaN as bf16',
      () => quantize(new Uint16Array([0, 0x7fc0]), [1, 2], { format: 'int8', dtype: 'bf16' }),
      'ERR_ARGUMENT',
      /got NaN at \[0, 1\]/,
    ],
    [
      'a number that f16 has not',
      () => quantize(at(129, 65520), [4, 128], { format: 'f16' }),
      'ERR_ARGUMENT',
      /f16 can hold but got 65520 at \[1, 1\]/,
    ],
    ['dequantize of no weight', () => dequantize(wrong({})), 'ERR_TYPE', /QuantizedWeight/],
    ['dequantize to i8', () => dequantize(int4, wrong('i8')), 'ERR_ARGUMENT', /f32, f16, bf16 but got 'i8'/],
    ['canonical of nothing', () => canonical(wrong(null)), 'ERR_TYPE', /an object but got null/],
    [
      'canonical with a strange field',
      () => canonical(wrong({ ...int4, group: 3 })),
      'ERR_ARGUMENT',
      /'group' too/,
    ],
    [
      'codes that are an array',
      () => canonical(wrong({ ...int4, codes: [1] })),
      'ERR_TYPE',
      /codes to be a typed array/,
    ],
    [
      'too few codes',
      () => canonical({ ...int4, codes: int4.codes.subarray(1) }),
      'ERR_SHAPE',
      /expected 256 bytes of codes but got 255/,
    ],
    [
      'too many scales',
      () => canonical({ ...int4, scales: new Float32Array(9) }),
      'ERR_SHAPE',
      /expected 32 bytes of scales but got 36/,
    ],
    [
      'no scales',
      () => canonical({ ...int4, scales: undefined }),
      'ERR_SHAPE',
      /expected 32 bytes of scales but got 0/,
    ],
    [
      'scales for f32',
      () =>
        canonical({ format: 'f32', shape: [1, 1], codes: new Float32Array(1), scales: new Float32Array(1) }),
      'ERR_',
      /scales/,
    ],
    [
      'scales of another dtype',
      () => canonical({ ...int4, scales: new Uint16Array(8) }),
      'ERR_DTYPE',
      /scales to be a Float32Array/,
    ],
    [
      'scales in doubles',
      () => canonical({ ...int4, scales: new Float64Array(4) }),
      'ERR_DTYPE',
      /scales to be a Float32Array/,
    ],
    [
      'no zeros',
      () => canonical({ ...int4, zeros: undefined }),
      'ERR_SHAPE',
      /expected 8 bytes of zeros but got 0/,
    ],
    [
      'zeros of a symmetric weight',
      () => canonical({ ...int8, zeros: new Uint8Array(4) }),
      'ERR_SHAPE',
      /expected 0 bytes of zeros but got 4/,
    ],
    [
      'float zeros as bytes',
      () => canonical({ ...int4, zeroPoint: 'float' }),
      'ERR_DTYPE',
      /zeros to be a Float32Array/,
    ],
    [
      'a NaN scale',
      () => canonical({ ...int4, scales: change(int4.scales as Float32Array, 5, Number.NaN) }),
      'ERR_ARGUMENT',
      /finite scales but got NaN at \[2, 1\]/,
    ],
    [
      'an infinite scale',
      () => canonical({ ...int8, scales: change(int8.scales as Float32Array, 3, Number.POSITIVE_INFINITY) }),
      'ERR_ARGUMENT',
      /finite scales but got inf at \[3, 0\]/,
    ],
    [
      'a NaN zero',
      () => canonical({ ...int4, zeroPoint: 'float', zeros: new Float32Array(8).fill(Number.NaN) }),
      'ERR_ARGUMENT',
      /finite zeros but got NaN at \[0, 0\]/,
    ],
    [
      'a zero beyond the codes',
      () => canonical({ ...int4, zeros: change(int4.zeros as Uint8Array, 7, 17) }),
      'ERR_ARGUMENT',
      /zeros of 0 to 16 for int4 but got 17 at \[3, 1\]/,
    ],
    [
      'the int8 code -128',
      () => canonical({ ...int8, codes: change(int8.codes as Uint8Array, 129, 0x80) }),
      'ERR_ARGUMENT',
      /got -128 at \[1, 1\]/,
    ],
    [
      'the ternary code 3',
      () => canonical({ ...ternary, codes: change(ternary.codes as Uint8Array, 2, 0x0c) }),
      'ERR_ARGUMENT',
      /got 3 at \[1, 1\]/,
    ],
    [
      'codebook4 without a table',
      () => quantize(w, [4, 128], { format: 'codebook4' }),
      'ERR_ARGUMENT',
      /expected a table for codebook4/,
    ],
    [
      'a table for nf4',
      () => quantize(w, [4, 128], { format: 'nf4', table: codebook }),
      'ERR_ARGUMENT',
      /no table, since nf4 stores none/,
    ],
    [
      'a table of 15 numbers',
      () => quantize(w, [4, 128], { format: 'codebook4', table: codebook.subarray(1) }),
      'ERR_SHAPE',
      /expected 64 bytes of table but got 60/,
    ],
    [
      'one table where each row has its own',
      () => quantize(w, [4, 128], { format: 'codebook4', table: codebook, tablePer: 'row' }),
      'ERR_SHAPE',
      /expected 256 bytes of table but got 64/,
    ],
    [
      'a table a row where rows share a scale',
      () =>
        quantize(w, [4, 128], { format: 'codebook4', groupSize: 'tensor', table: codebook, tablePer: 'row' }),
      'ERR_ARGUMENT',
      /one table where rows share a scale/,
    ],
    [
      'a table of doubles',
      () => quantize(w, [4, 128], { format: 'codebook4', table: wrong(new Float64Array(16)) }),
      'ERR_TYPE',
      /table to be a Float32Array/,
    ],
    [
      'a table with NaN',
      () => quantize(w, [4, 128], { format: 'codebook4', table: change(codebook, 3, Number.NaN) }),
      'ERR_ARGUMENT',
      /expected finite table but got NaN at \[0, 3\]/,
    ],
    [
      'a table per column',
      () => quantize(w, [4, 128], { format: 'codebook4', table: codebook, tablePer: wrong('column') }),
      'ERR_ARGUMENT',
      /tablePer: expected one of none, tensor, row, group/,
    ],
    [
      'tablePer of int8',
      () => quantize(w, [4, 128], { format: 'int8', tablePer: 'row' }),
      'ERR_ARGUMENT',
      /which codebook4 alone stores/,
    ],
    [
      'MX groups of 64',
      () => quantize(w, [4, 128], { format: 'mxfp4', groupSize: 64 }),
      'ERR_ARGUMENT',
      /groups of 1 x 32, which mxfp4 has/,
    ],
    [
      'nvfp4 by channel',
      () => quantize(w, [4, 128], { format: 'nvfp4', groupSize: 'channel' }),
      'ERR_ARGUMENT',
      /groups of 1 x 16, which nvfp4 has/,
    ],
    [
      'groups of 16 of int4',
      () => quantize(w, [4, 128], { format: 'int4', groupSize: 16 }),
      'ERR_ARGUMENT',
      /32, 64, 128 or K = 128 columns but got 16/,
    ],
    [
      'f32 scales of an MX format',
      () => quantize(w, [4, 128], { format: 'mxint8', scaleDtype: 'f32' }),
      'ERR_ARGUMENT',
      /expected one of e8m0 but got 'f32'/,
    ],
    [
      'e8m0 scales of nf4',
      () => quantize(w, [4, 128], { format: 'nf4', scaleDtype: 'e8m0' }),
      'ERR_ARGUMENT',
      /f32, f16, bf16 but got 'e8m0'/,
    ],
    [
      'clip of an MX format',
      () => quantize(w, [4, 128], { format: 'mxfp6_e3m2', clip: true }),
      'ERR_ARGUMENT',
      /expected no clip, since the scales of mxfp6_e3m2/,
    ],
    [
      'nvfp4 without a tensorScale',
      () => canonical({ ...nvfp4, tensorScale: undefined }),
      'ERR_SHAPE',
      /expected 4 bytes of tensorScale but got 0/,
    ],
    [
      'a tensorScale of mxfp4',
      () => canonical({ ...quantize(w, [4, 128], { format: 'mxfp4' }), tensorScale: 1 }),
      'ERR_SHAPE',
      /expected 0 bytes of tensorScale but got 4/,
    ],
    [
      'a tensorScale as a word',
      () => canonical({ ...nvfp4, tensorScale: wrong('1') }),
      'ERR_TYPE',
      /tensorScale to be a number but got '1'/,
    ],
    [
      'an infinite tensorScale',
      () => canonical({ ...nvfp4, tensorScale: Number.POSITIVE_INFINITY }),
      'ERR_ARGUMENT',
      /finite tensorScale but got inf/,
    ],
    [
      'a NaN scale of nvfp4',
      () => canonical({ ...nvfp4, scales: change(nvfp4.scales as Uint8Array, 9, 0x7f) }),
      'ERR_ARGUMENT',
      /finite scales but got NaN at \[1, 1\]/,
    ],
    [
      'floats for e8m0 scales',
      () => canonical({ ...quantize(w, [4, 128], { format: 'mxfp4' }), scales: new Float32Array(4) }),
      'ERR_DTYPE',
      /scales to be a Uint8Array/,
    ],
    [
      'bits behind a row',
      () => canonical({ ...ternary, codes: change(ternary.codes as Uint8Array, 3, 0x40) }),
      'ERR_ARGUMENT',
      /row 1 has others/,
    ],
  ]
  test.each(cases)('%s', (_, call, code, sentence) => {
    let error: unknown
    try {
      call()
    } catch (caught) {
      error = caught
    }
    expect(error).toBeInstanceOf(code === 'ERR_TYPE' ? TypeError : LowbitError)
    expect((error as LowbitError).code).toMatch(code)
    expect((error as LowbitError).message).toMatch(sentence)
  })
})
