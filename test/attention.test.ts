// attention through the public API: the forms of its arguments, and every call that it refuses. The kernel rows are held
// against the reference in attention-rows.test.ts.
import { attention, type Device, QuantizedRows, quantizeRows, type Tensor } from 'lowbit'
import { native } from 'lowbit/native'
import { outputOf } from 'lowbit/tensor'
import { type Score, scores } from 'lowbit/words'
import { expectSame } from './ref/compare'
import { onCpu, openTest } from './ref/device'
import { Random } from './ref/random'
import { ints, read, refusal } from './ref/rows'

const { NaN: nan, POSITIVE_INFINITY: inf } = Number
let two: Device
let three: Device
beforeAll(() => {
  two = openTest({ threads: 2 })
  three = openTest({ threads: 3 })
})
afterAll(() => {
  for (const device of [two, three]) device.close()
})

describe('the public function', () => {
  const f32 = (shape: number[], value = 0.5, device = two) =>
    device.tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value), shape)
  const lens = (...values: number[]) => ints(two, values)
  const [q4, k4] = [
    [2, 3, 4, 8],
    [2, 5, 2, 8],
  ]

  test('results are made, or received, and lse comes on request', () => {
    const [q, k, v] = [f32(q4), f32(k4), f32([2, 5, 2, 6])]
    const made = attention(q, k, v)
    expect([made.shape, made.dtype]).toEqual([[2, 3, 4, 6], 'f32'])
    const out = two.empty([2, 3, 4, 6], 'f32')
    expect(attention(q, k, v, { out })).toBe(out)
    expectSame(read(out), read(made), 'out')
    const both = attention(q, k, v, { returnLse: true, causal: true })
    expect([both.lse.shape, both.lse.dtype]).toEqual([[2, 4, 3], 'f32'])
    expect(read(both.lse)[2]).toBeCloseTo((8 * 0.25) / Math.sqrt(8) + Math.log(5), 5)
    const packed = attention(f32([7, 4, 8]), f32([7, 2, 8]), f32([7, 2, 6]), {
      cuSeqlensQ: ints(two, [0, 3, 7]),
      returnLse: true,
    })
    expect([packed.out.shape, packed.lse.shape]).toEqual([
      [7, 4, 6],
      [4, 7],
    ])
    const half = two.tensor(new Float32Array(64).fill(0.5), [1, 2, 4, 8], 'bf16')
    expect(attention(half, half, half).dtype).toBe('bf16')
    expect(attention(half, half, half, { out: two.empty([1, 2, 4, 8], 'f32') }).dtype).toBe('f32')
  })

  test('both forms, and both ways to write a window, mean the same', () => {
    const random = new Random(8)
    const [q, k, v] = [random.floats(6 * 2 * 8), random.floats(6 * 8), random.floats(6 * 8)]
    const forms = (shape: number[], options: object) =>
      read(
        attention(
          two.tensor(q, [...shape, 2, 8]),
          two.tensor(k, [...shape, 1, 8]),
          two.tensor(v, [...shape, 1, 8]),
          options,
        ),
      )
    const window = [1, 0] as const
    const want = forms([2, 3], { window })
    expectSame(forms([2, 3], { window: { left: 1, right: 0 } }), want, 'object')
    expectSame(forms([2, 3], { window: { left: 1 }, causal: true }), want, 'left and causal')
    expectSame(forms([6], { window, cuSeqlensQ: ints(two, [0, 3, 6]) }), want, 'packed')
    expectSame(forms([1, 6], {}), forms([6], {}), 'packed without lengths is one sequence')
    const one = forms([2, 3], { kvLens: ints(two, [3, 1]) })
    expectSame(one.slice(0, 48), forms([2, 3], {}).slice(0, 48), 'kvLens')
  })

  test('lengths may be lists: they are copied, and their memory goes back', () => {
    const random = new Random(9)
    const of = (shape: number[]) => two.tensor(random.floats(shape.reduce((a, b) => a * b, 1)), shape)
    const [q, k, v] = [of([6, 2, 8]), of([7, 1, 8]), of([7, 1, 8])]
    const want = read(attention(q, k, v, { cuSeqlensQ: lens(0, 2, 6), cuSeqlensKv: lens(0, 3, 7) }))
    const list = Int32Array.of(0, 2, 6)
    two.syncSync()
    const before = two.memoryUsage().used
    const typed = attention(q, k, v, { cuSeqlensQ: list, cuSeqlensKv: [0, 3, 7] })
    list.fill(99)
    expectSame(read(typed), want, 'packed')
    typed.dispose()
    two.syncSync()
    expect(two.memoryUsage().used).toBe(before)
    const [bq, bk] = [of([2, 3, 2, 8]), of([2, 4, 1, 8])]
    expectSame(
      read(attention(bq, bk, bk, { kvLens: [4, 1] })),
      read(attention(bq, bk, bk, { kvLens: lens(4, 1) })),
      'batched',
    )
  })

  test('codes of e4m3, with scales or without', () => {
    const random = new Random(10)
    const quantised = (tokens: number, heads: number, perToken: boolean) => {
      const x = two.tensor(random.floats(tokens * heads * 8), [
        perToken ? tokens * heads : 1,
        perToken ? 8 : tokens * heads * 8,
      ])
      const { codes, scales } = quantizeRows(x, { dtype: 'e4m3' })
      const shape = perToken ? [tokens, heads] : [1, 1]
      return new QuantizedRows(codes.reshape([tokens, heads, 8]), scales.reshape(shape))
    }
    const values = ({ codes, scales }: QuantizedRows) => {
      const [tokens = 0, heads = 0] = scales.shape
      const of = read(scales)
      const floats = read(codes).map((c, i) => {
        const at = [
          Math.floor(i / 8 / (codes.shape[1] as number)),
          Math.floor(i / 8) % (codes.shape[1] as number),
        ] as const
        return c * (of[(tokens > 1 ? at[0] : 0) * heads + (heads > 1 ? at[1] : 0)] as number)
      })
      return two.tensor(Float32Array.from(floats), codes.shape)
    }
    const [q, k, v] = [quantised(6, 2, true), quantised(7, 1, true), quantised(7, 1, false)]
    const made = attention(q, k, v)
    expect([made.shape, made.dtype]).toEqual([[6, 2, 8], 'bf16'])
    const want = read(attention(values(q), values(k), values(v)))
    for (const [i, x] of read(made).entries()) expect(x).toBeCloseTo(want[i] as number, 1)
    const out = two.empty([6, 2, 8], 'f32')
    attention(q, k, v, { out })
    for (const [i, x] of read(out).entries()) expect(x).toBeCloseTo(want[i] as number, onCpu ? 5 : 1)
    const bare = attention(q.codes, k.codes, v.codes, { softmaxScale: 1e-5 })
    expect([bare.shape, bare.dtype]).toEqual([[6, 2, 8], 'bf16'])
  })

  test('a legal call always finds a row', () => {
    const wide = f32([1, 2, 1, 1100])
    attention(wide, wide, wide).readSync()
    if (process.env.LB_KERNEL === undefined)
      expect(native.chosenRow()).toBe(onCpu ? 'attention_ref' : 'attention_simt_sm75')
    attention(f32(q4), f32(k4), f32(k4)).readSync()
    const { archs } = two.info
    if (process.env.LB_KERNEL === undefined && archs.includes('avx2')) {
      expect(native.chosenRow()).not.toBe('attention_ref')
      expect(refusal(() => call(wide, wide, wide, { row: 'attention_f32_avx2' })).code).toBe(
        'ERR_UNSUPPORTED',
      )
    }
  })

  interface Raw {
    readonly lse?: Tensor
    readonly out?: Tensor
    readonly row?: string
    readonly score?: Score
  }
  function call(q: Tensor, k: Tensor, v: Tensor, raw: Raw): Tensor {
    const out = outputOf(raw.out, 'attention')
    const score = scores.indexOf(raw.score ?? 'softmax')
    const none = undefined
    const list = [none, none, none, none, none, none, none, none, none] as const
    const scales = [none, none, none] as const
    native.attention(q, k, v, ...list, 0, 0, -1, -1, false, score, ...scales, out, raw.lse, raw.row)
    return out
  }

  const any = <T>(value: unknown): T => value as T
  const kv = () => [f32(k4), f32(k4)] as const
  const qkv = () => [f32(q4), f32(k4), f32(k4)] as const
  const packed = () => [f32([6, 4, 8]), f32([6, 2, 8]), f32([6, 2, 8])] as const
  const refused: [what: string, code: string, text: RegExp, act: () => Tensor][] = [
    [
      'q of rank 2',
      'ERR_SHAPE',
      /q as \[tokens, heads, headDim\].*got \[4, 8\]/,
      () => attention(f32([4, 8]), f32(k4), f32(k4)),
    ],
    [
      'k of another rank',
      'ERR_SHAPE',
      /expected k of rank 4/,
      () => attention(f32(q4), f32([5, 2, 8]), f32(k4)),
    ],
    [
      'v of another rank',
      'ERR_SHAPE',
      /expected v of rank 4/,
      () => attention(f32(q4), f32(k4), f32([5, 2, 8])),
    ],
    [
      'integers',
      'ERR_DTYPE',
      /q in f32, f16, bf16 or e4m3 but got i32/,
      () => attention(two.empty(q4, 'i32'), f32(k4), f32(k4)),
    ],
    [
      'k in another dtype',
      'ERR_DTYPE',
      /expected k in q's dtype f32 but got bf16/,
      () => attention(f32(q4), two.empty(k4, 'bf16'), f32(k4)),
    ],
    [
      'v in another dtype',
      'ERR_DTYPE',
      /expected v in q's dtype f32 but got f16/,
      () => attention(f32(q4), f32(k4), two.empty(k4, 'f16')),
    ],
    [
      'batch of k',
      'ERR_SHAPE',
      /k\.shape\[0\] = 2 \(the batch of q\) but got \[1, 5, 2, 8\]/,
      () => attention(f32(q4), f32([1, 5, 2, 8]), f32(k4)),
    ],
    ['batch of v', 'ERR_SHAPE', /v\.shape\[0\] = 2/, () => attention(f32(q4), f32(k4), f32([3, 5, 2, 8]))],
    [
      'head dim of k',
      'ERR_SHAPE',
      /k\.shape\[3\] = 8 \(the headDim of q\)/,
      () => attention(f32(q4), f32([2, 5, 2, 4]), f32(k4)),
    ],
    [
      'length of v',
      'ERR_SHAPE',
      /v\.shape\[1\] = 5 \(the length of k\)/,
      () => attention(f32(q4), f32(k4), f32([2, 4, 2, 8])),
    ],
    [
      'kv heads of v',
      'ERR_SHAPE',
      /v\.shape\[2\] = 2 \(the kvHeads of k\)/,
      () => attention(f32(q4), f32(k4), f32([2, 5, 1, 8])),
    ],
    [
      'no kv heads',
      'ERR_SHAPE',
      /of at least 1/,
      () => attention(f32(q4), f32([2, 5, 0, 8]), f32([2, 5, 0, 8])),
    ],
    [
      'a head dim of 0',
      'ERR_SHAPE',
      /of at least 1/,
      () => attention(f32([2, 3, 4, 0]), f32([2, 5, 2, 0]), f32(k4)),
    ],
    [
      'heads and kv heads',
      'ERR_SHAPE',
      /a multiple of kvHeads = 2 but got 3/,
      () => attention(f32([2, 3, 3, 8]), f32(k4), f32(k4)),
    ],
    [
      'shape of out',
      'ERR_SHAPE',
      /expected out of shape \[2, 3, 4, 8\] but got \[2, 3, 4, 9\]/,
      () => attention(...qkv(), { out: f32([2, 3, 4, 9]) }),
    ],
    [
      'dtype of out',
      'ERR_DTYPE',
      /q's dtype f32 or in f32 but got bf16/,
      () => attention(...qkv(), { out: two.empty(q4, 'bf16') }),
    ],
    [
      'scales of floats',
      'ERR_ARGUMENT',
      /q\.scales goes with tensors of e4m3 but q is f32/,
      () => attention(new QuantizedRows(f32(q4), f32([1, 1, 1])), f32(k4), f32(k4)),
    ],
    [
      'scales of another shape',
      'ERR_SHAPE',
      /k\.scales of shape \[2 or 1, 5 or 1, 2 or 1\] \(batch, tokens and heads\) but got \[2, 5, 4\]/,
      () => {
        const [q, k] = [two.empty(q4, 'e4m3'), two.empty(k4, 'e4m3')]
        return attention(q, new QuantizedRows(k, f32([2, 5, 4])), k)
      },
    ],
    [
      'scales of another rank',
      'ERR_SHAPE',
      /v\.scales of shape \[6 or 1, 2 or 1\] \(tokens and heads\) but got \[1\]/,
      () => {
        const [q, k] = [two.empty([6, 4, 8], 'e4m3'), two.empty([6, 2, 8], 'e4m3')]
        return attention(q, k, new QuantizedRows(k, f32([1])))
      },
    ],
    [
      'scales in another dtype',
      'ERR_DTYPE',
      /q\.scales in f32 but got bf16/,
      () => {
        const [q, k] = [two.empty(q4, 'e4m3'), two.empty(k4, 'e4m3')]
        return attention(new QuantizedRows(q, two.empty([1, 1, 1], 'bf16')), k, k)
      },
    ],
    [
      'a result in e4m3',
      'ERR_DTYPE',
      /out in f32, f16 or bf16 but got e4m3/,
      () => {
        const [q, k] = [two.empty(q4, 'e4m3'), two.empty(k4, 'e4m3')]
        return attention(q, k, k, { out: two.empty(q4, 'e4m3') })
      },
    ],
    [
      'columns of q',
      'ERR_STRIDES',
      /q with a contiguous last dimension but its stride is 4/,
      () => attention(f32([2, 3, 8, 4]).transpose(2, 3), f32(k4), f32(k4)),
    ],
    [
      'columns of k',
      'ERR_STRIDES',
      /expected k with/,
      () => attention(f32(q4), f32([2, 5, 8, 2]).transpose(2, 3), f32(k4)),
    ],
    [
      'columns of v',
      'ERR_STRIDES',
      /expected v with/,
      () => attention(f32(q4), f32(k4), f32([2, 5, 8, 2]).transpose(2, 3)),
    ],
    [
      'columns of out',
      'ERR_STRIDES',
      /with a contiguous last/,
      () => attention(...qkv(), { out: f32([2, 3, 8, 4]).transpose(2, 3) }),
    ],
    [
      'out in the memory of q',
      'ERR_ARGUMENT',
      /memory of its own but it overlaps q/,
      () => {
        const q = f32(q4)
        return attention(q, f32(k4), f32(k4), { out: q })
      },
    ],
    [
      'shape of lse',
      'ERR_SHAPE',
      /expected lse of shape \[2, 4, 3\] but got \[2, 3, 4\]/,
      () => call(...qkv(), { lse: f32([2, 3, 4]) }),
    ],
    [
      'dtype of lse',
      'ERR_DTYPE',
      /lse in f32 but got bf16/,
      () => call(...qkv(), { lse: two.empty([2, 4, 3], 'bf16') }),
    ],
    [
      'lse in the memory of k',
      'ERR_ARGUMENT',
      /lse in memory of its own but it overlaps k/,
      () => {
        const k = f32(k4)
        return call(f32(q4), k, f32(k4), { lse: k.reshape([160]).slice(0, 0, 24).reshape([2, 4, 3]) })
      },
    ],
    [
      'lse of sigmoid',
      'ERR_ARGUMENT',
      /lse goes with score softmax/,
      () => attention(...qkv(), { score: 'sigmoid', returnLse: true }).out,
    ],
    [
      'sinks of sigmoid',
      'ERR_ARGUMENT',
      /sinks goes with score softmax/,
      () => attention(...qkv(), { score: 'sigmoid', sinks: f32([4]) }),
    ],
    [
      'an unknown score',
      'ERR_ARGUMENT',
      /softmax, sigmoid but got 'relu'/,
      () => attention(...qkv(), { score: any('relu') }),
    ],
    [
      'a scale of NaN',
      'ERR_ARGUMENT',
      /finite softmaxScale but got nan/,
      () => attention(...qkv(), { softmaxScale: nan }),
    ],
    [
      'a negative softcap',
      'ERR_ARGUMENT',
      /softcap >= 0 and finite but got -1/,
      () => attention(...qkv(), { softcap: -1 }),
    ],
    [
      'an infinite softcap',
      'ERR_ARGUMENT',
      /softcap >= 0 and finite but got inf/,
      () => attention(...qkv(), { softcap: inf }),
    ],
    [
      'a window of -2',
      'ERR_ARGUMENT',
      /-1 for no limit, but got \[-1, -2\]/,
      () => attention(...qkv(), { window: [-1, -2] }),
    ],
    ['a window of 1.5', 'ERR_TYPE', /window\[0\]/, () => attention(...qkv(), { window: [1.5, 0] })],
    ['a window that is a string', 'ERR_TYPE', /window/, () => attention(...qkv(), { window: any('all') })],
    [
      'cuSeqlensQ of the batched form',
      'ERR_ARGUMENT',
      /cuSeqlensQ goes with the packed form/,
      () => attention(...qkv(), { cuSeqlensQ: lens(0, 3) }),
    ],
    [
      'cuSeqlensKv of the batched form',
      'ERR_ARGUMENT',
      /cuSeqlensKv goes with the packed form/,
      () => attention(...qkv(), { cuSeqlensKv: lens(0, 3) }),
    ],
    [
      'kvLens of the packed form',
      'ERR_ARGUMENT',
      /kvLens goes with the batched form/,
      () => attention(...packed(), { kvLens: lens(3) }),
    ],
    [
      'cuSeqlensKv alone',
      'ERR_ARGUMENT',
      /cuSeqlensKv was given without cuSeqlensQ/,
      () => attention(...packed(), { cuSeqlensKv: lens(0, 6) }),
    ],
    [
      'a list of fractions',
      'ERR_ARGUMENT',
      /cuSeqlensQ\[1\]: expected a whole number of 32 bits but got 1\.5/,
      () => attention(...packed(), { cuSeqlensQ: [0, 1.5, 6] }),
    ],
    [
      'a list beyond 32 bits',
      'ERR_ARGUMENT',
      /kvLens\[0\]: expected a whole number of 32 bits but got 4294967296/,
      () => attention(...qkv(), { kvLens: [2 ** 32, 1] }),
    ],
    [
      'a list of words',
      'ERR_TYPE',
      /kvLens\[0\]: expected a whole number but got '3'/,
      () => attention(...qkv(), { kvLens: any(['3', '1']) }),
    ],
    [
      'a list of doubles',
      'ERR_TYPE',
      /kvLens: expected a Tensor, an Int32Array or an array of whole numbers but got a Float64Array/,
      () => attention(...qkv(), { kvLens: any(new Float64Array(2)) }),
    ],
    [
      'a list that is too long',
      'ERR_SHAPE',
      /kvLens of shape \[2\] \(the batch of q\) but got \[3\]/,
      () => attention(...qkv(), { kvLens: [1, 1, 1] }),
    ],
    [
      'a list that falls',
      'ERR_ARGUMENT',
      /cuSeqlensQ\[2\] = 3 follows a larger one/,
      () => attention(...packed(), { cuSeqlensQ: [0, 4, 3, 6] }),
    ],
    ['a list beside no tensor', 'ERR_TYPE', /./, () => attention(any(1), ...kv(), { kvLens: [1, 1] })],
    [
      'cuSeqlensQ of floats',
      'ERR_DTYPE',
      /cuSeqlensQ in i32 but got f32/,
      () => attention(...packed(), { cuSeqlensQ: f32([2]) }),
    ],
    [
      'cuSeqlensQ of rank 2',
      'ERR_SHAPE',
      /cuSeqlensQ of shape \[batch \+ 1\] but got \[1, 2\]/,
      () => attention(...packed(), { cuSeqlensQ: lens(0, 6).reshape([1, 2]) }),
    ],
    [
      'cuSeqlensQ without entries',
      'ERR_SHAPE',
      /at least one entry/,
      () => attention(...packed(), { cuSeqlensQ: lens() }),
    ],
    [
      'cuSeqlensKv of another length',
      'ERR_SHAPE',
      /cuSeqlensKv of shape \[2\] \(the length of cuSeqlensQ\) but got \[3\]/,
      () => attention(...packed(), { cuSeqlensQ: lens(0, 6), cuSeqlensKv: lens(0, 2, 6) }),
    ],
    [
      'fewer keys than cuSeqlensQ says',
      'ERR_SHAPE',
      /k\.shape\[0\] = 6 \(the tokens of q, as cuSeqlensKv is absent\)/,
      () => attention(f32([6, 4, 8]), f32([5, 2, 8]), f32([5, 2, 8]), { cuSeqlensQ: lens(0, 6) }),
    ],
    [
      'kvLens of another length',
      'ERR_SHAPE',
      /kvLens of shape \[2\] \(the batch of q\) but got \[3\]/,
      () => attention(...qkv(), { kvLens: lens(1, 1, 1) }),
    ],
    [
      'a slope too few',
      'ERR_SHAPE',
      /alibiSlopes of shape \[4\] \(heads\) but got \[3\]/,
      () => attention(...qkv(), { alibiSlopes: f32([3]) }),
    ],
    [
      'slopes in bf16',
      'ERR_DTYPE',
      /alibiSlopes in f32 but got bf16/,
      () => attention(...qkv(), { alibiSlopes: two.empty([4], 'bf16') }),
    ],
    [
      'a sink too many',
      'ERR_SHAPE',
      /sinks of shape \[4\] \(heads\) but got \[5\]/,
      () => attention(...qkv(), { sinks: f32([5]) }),
    ],
    ['k of another device', 'ERR_DEVICE', /k/, () => attention(f32(q4), f32(k4, 0.5, three), f32(k4))],
    [
      'sinks of another device',
      'ERR_DEVICE',
      /sinks/,
      () => attention(...qkv(), { sinks: f32([4], 0, three) }),
    ],
    [
      'a disposed q',
      'ERR_DISPOSED',
      /q/,
      () => {
        const q = f32(q4)
        q.dispose()
        return attention(q, f32(k4), f32(k4))
      },
    ],
    ['v is no tensor', 'ERR_TYPE', /v/, () => attention(f32(q4), f32(k4), any(3))],
    ['out is no tensor', 'ERR_TYPE', /out/, () => attention(...qkv(), { out: any({}) })],
    ['causal is a number', 'ERR_TYPE', /causal/, () => attention(...qkv(), { causal: any(1) })],
    // Found when the numbers are there: the wait rejects.
    [
      'cuSeqlensQ from 1',
      'ERR_ARGUMENT',
      /cuSeqlensQ\[0\] = 0 but got 1/,
      () => attention(...packed(), { cuSeqlensQ: lens(1, 6) }),
    ],
    [
      'cuSeqlensQ that falls',
      'ERR_ARGUMENT',
      /cuSeqlensQ\[2\] = 3 follows a larger one/,
      () => attention(...packed(), { cuSeqlensQ: lens(0, 4, 3, 6) }),
    ],
    [
      'cuSeqlensQ that ends early',
      'ERR_ARGUMENT',
      /cuSeqlensQ\[1\] = 6 \(all tokens\) but got 5/,
      () => attention(...packed(), { cuSeqlensQ: lens(0, 5) }),
    ],
    [
      'cuSeqlensKv that ends late',
      'ERR_ARGUMENT',
      /cuSeqlensKv\[1\] = 6 \(all tokens\) but got 7/,
      () => attention(...packed(), { cuSeqlensQ: lens(0, 6), cuSeqlensKv: lens(0, 7) }),
    ],
    [
      'a negative kvLens',
      'ERR_ARGUMENT',
      /kvLens\[1\] in 0 to 5 but got -1/,
      () => attention(...qkv(), { kvLens: lens(5, -1) }),
    ],
    [
      'a kvLens beyond k',
      'ERR_ARGUMENT',
      /kvLens\[0\] in 0 to 5 but got 6/,
      () => attention(...qkv(), { kvLens: lens(6, 0) }),
    ],
  ]
  test.each(refused)('refuses %s', (_, code, text, act) => {
    const error = refusal(act)
    expect(error.message).toMatch(text)
    expect(error.message).toMatch(/^attention: /)
    expect(error.code).toBe(code)
  })
})
