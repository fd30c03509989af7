// Which row serves a call: arch sets as data, no hardware needed. The table says the choices by name; the walks say that
// each choice is the first row of the registry that the device has and whose own words admit the call, and that no legal
// call is left without a row.
import type { Compute, DType, Format, GroupSize, Layout, ZeroPoint } from 'lowbit'
import { description, type KernelRow } from 'lowbit/native'
import { type AttentionCall, type LinearCall, selectAttention, selectLinear } from 'lowbit/select'
import { computes, formats, layouts } from 'lowbit/words'
import { groupSizesOf, isAffine } from './ref/quantize'
import { refusal } from './ref/rows'

const x86 = process.arch === 'x64'
const cpus = x86 ? ['cpu', 'avx2', 'avx512', 'avx512vnni', 'avx512vbmi', 'avx512bf16'] : ['cpu']
const gpus = description.archs.filter((arch) => arch.startsWith('sm'))
/** What each arch brings with it, stated again so that csrc/base/arch.h is not its own judge. */
const implied: Record<string, readonly string[]> = {
  cpu: [],
  avx2: ['cpu'],
  avx512: ['cpu', 'avx2'],
  avx512vnni: ['cpu', 'avx2', 'avx512'],
  avx512vbmi: ['cpu', 'avx2', 'avx512', 'avx512vnni'],
  avx512bf16: ['cpu', 'avx2', 'avx512', 'avx512vnni'],
  amx: ['cpu', 'avx2', 'avx512', 'avx512vnni', 'avx512vbmi', 'avx512bf16'],
  sm75: [],
  sm80: ['sm75'],
  sm89: ['sm75', 'sm80'],
  sm90a: ['sm75', 'sm80', 'sm89'],
}
const has = (archs: readonly string[]) => new Set(archs.flatMap((arch) => [arch, ...(implied[arch] ?? [])]))

/** The sets that machines come with: each arch and what it implies, and all of a CPU's at once. */
const sets: readonly (readonly string[])[] = [...cpus.map((arch) => [arch]), cpus]
const rowsOf = (op: string) => description.kernels.filter((row) => row.op === op)
const gpuSets = (op: string) =>
  rowsOf(op).some((row) => row.arch.some((arch) => gpus.includes(arch))) ? gpus.map((arch) => [arch]) : []

test('every arch of the native table is known here', () => {
  expect([...description.archs].sort()).toEqual(Object.keys(implied).sort())
})

// ---- linear --------------------------------------------------------------------------------------------------------

const big = { n: 4096, k: 4096 } as const
const named: [archs: string[], call: Omit<LinearCall, 'n' | 'k'>, row: string][] = [
  [['cpu'], { m: 1, format: 'int4', groupSize: 128, compute: 'int8' }, 'linear_ref'],
  [['cpu'], { m: 64, format: 'bf16' }, 'linear_ref'],
  [['avx2'], { m: 1, format: 'int4', groupSize: 32, compute: 'int8' }, 'linear_int4_i8_avx2'],
  [['avx2'], { m: 64, format: 'int8', groupSize: 'channel', compute: 'int8' }, 'linear_int8_i8_avx2'],
  [['avx2'], { m: 1, format: 'int4', groupSize: 128 }, 'linear_int4_f32_avx2'],
  [['avx2'], { m: 1, format: 'int4', groupSize: 128, compute: 'fp8' }, 'linear_int4_f32_avx2'],
  [['avx2'], { m: 7, format: 'int8', groupSize: 64 }, 'linear_int8_f32_avx2'],
  [['avx2'], { m: 7, format: 'f32' }, 'linear_f32_avx2'],
  [['avx2'], { m: 7, format: 'f16' }, 'linear_f16_f32_avx2'],
  [['avx2'], { m: 7, format: 'bf16', x: 'bf16' }, 'linear_bf16_f32_avx2'],
  [['avx2'], { m: 1, format: 'int3', groupSize: 64 }, 'linear_narrow_f32_avx2'],
  [['avx2'], { m: 1, format: 'ternary', groupSize: 'tensor', compute: 'int8' }, 'linear_int2_i8_avx2'],
  [['avx512vnni'], { m: 1, format: 'ternary', compute: 'int8' }, 'linear_int2_i8_avx512vnni'],
  [
    ['avx512vbmi'],
    { m: 1, format: 'ternary', compute: 'int8', layout: 'trits16' },
    'linear_ternary_lut_i8_avx512vbmi',
  ],
  [['avx512vbmi'], { m: 1, format: 'ternary', layout: 'trits16' }, 'linear_narrow_f32_avx2'],
  [['avx512vnni'], { m: 8, format: 'int1', compute: 'int8' }, 'linear_int1_i8_avx512vnni'],
  [['avx512vnni'], { m: 8, format: 'int3', groupSize: 32, compute: 'int8' }, 'linear_int3_i8_avx512vnni'],
  [['avx512'], { m: 1, format: 'int4', groupSize: 128 }, 'linear_int4_f32_avx512'],
  [['avx512'], { m: 1, format: 'int4', groupSize: 128, compute: 'int8' }, 'linear_int4_i8_avx2'],
  [['avx512'], { m: 9, format: 'f32' }, 'linear_f32_avx512'],
  [['avx512vnni'], { m: 1, format: 'int4', groupSize: 128, compute: 'int8' }, 'linear_int4_i8_avx512vnni'],
  [
    ['avx512vnni', 'avx512bf16'],
    { m: 64, format: 'int8', groupSize: 'channel', compute: 'int8', x: 'i8' },
    'linear_int8_i8_avx512vnni',
  ],
  [['avx512vnni'], { m: 64, format: 'int8', groupSize: 'channel' }, 'linear_int8_f32_avx512'],
]

;(x86 ? test : test.skip).each(named)('%j takes %j to its row', (archs, call, row) => {
  expect(selectLinear({ ...big, ...call }, { archs }).row).toBe(row)
})

const onGpus: [archs: string[], call: Omit<LinearCall, 'n' | 'k'>, row: string][] = [
  [['sm75'], { m: 64, format: 'bf16', x: 'bf16' }, 'linear_simt_sm75'],
  [['sm80'], { m: 64, format: 'bf16', x: 'bf16' }, 'linear_bf16_sm80'],
  [['sm80'], { m: 64, format: 'bf16' }, 'linear_simt_sm75'],
  [['sm89'], { m: 1, format: 'f16', x: 'f16' }, 'linear_f16_sm80'],
  [['sm80'], { m: 7, format: 'int8', compute: 'int8' }, 'linear_int8_i8_sm80'],
  [['sm80'], { m: 33, format: 'int4', groupSize: 32, x: 'f16' }, 'linear_int4_f16_sm80'],
  [['sm80'], { m: 33, format: 'int4', groupSize: 128, x: 'bf16' }, 'linear_int4_bf16_sm80'],
  [['sm80'], { m: 1, format: 'int4', zeroPoint: 'integer', x: 'bf16' }, 'linear_codes_bf16_sm80'],
  [['sm80'], { m: 1, format: 'int4', zeroPoint: 'float', x: 'bf16' }, 'linear_simt_sm75'],
  [['sm90a'], { m: 1, format: 'mxfp4', x: 'f16' }, 'linear_codes_f16_sm90a'],
  [['sm90a'], { m: 1, format: 'int8', groupSize: 128, x: 'bf16' }, 'linear_codes_bf16_sm90a'],
]
;(gpuSets('linear').length > 0 ? test : test.skip).each(onGpus)(
  '%j takes %j to its row',
  (archs, call, row) => {
    expect(selectLinear({ ...big, ...call }, { archs }).row).toBe(row)
  },
)

interface LinearRow extends KernelRow {
  formats: Format[]
  layouts: Layout[]
  x: DType[]
  computes: Compute[]
  zeros: boolean
  floatZeros: boolean
  mMin: number
  mMax: number
  nMultiple: number
  kMultiple: number
  groupMultiple: number
  groupMax: number
  oneScale: boolean
  blockScales: boolean
}

/** The rule of `fits`, from the words that a row says of itself. */
function admits(row: LinearRow, call: LinearCall, layout: string): boolean {
  const { m, n, k, format, x = 'f32', compute = 'float', groupSize, zeroPoint = 'none' } = call
  const group =
    groupSize === 'block' ? 128 : groupSize === 'channel' || groupSize === 'tensor' ? k : (groupSize ?? k)
  return (
    row.formats.includes(format) &&
    (row.layouts as string[]).includes(layout) &&
    row.x.includes(x) &&
    (row.computes.includes(compute) || (compute === 'fp8_unpromoted' && row.computes.includes('fp8'))) &&
    (row.zeros || zeroPoint === 'none') &&
    (row.floatZeros || zeroPoint !== 'float') &&
    m >= row.mMin &&
    (row.mMax === 0 || m <= row.mMax) &&
    n % row.nMultiple === 0 &&
    k % row.kMultiple === 0 &&
    (k > 0 || row.kMultiple === 1) &&
    (!row.oneScale ||
      (group >= k && (groupSize !== 'block' || n <= 128)) ||
      (row.blockScales && groupSize === 'block')) &&
    (group >= k || group % row.groupMultiple === 0) &&
    (row.groupMax === 0 || Math.min(group, k) <= row.groupMax)
  )
}

function* linearCalls(): Generator<LinearCall> {
  const inputs: readonly (readonly [DType, Compute])[] = [
    ...computes.flatMap((compute) => (['f32', 'f16', 'bf16'] as const).map((x) => [x, compute] as const)),
    ...(['i8', 'e4m3', 'e5m2'] as const).map((x) => [x, 'float'] as const),
    ...[['i8', 'int8'] as const, ['e4m3', 'fp8'] as const, ['e5m2', 'fp8'] as const],
  ]
  for (const format of formats) {
    const scaled = !(format === 'f32' || format === 'f16' || format === 'bf16')
    const sizes: (GroupSize | undefined)[] = scaled ? groupSizesOf(format) : [undefined]
    const zeroPoints: ZeroPoint[] = isAffine(format) ? ['none', 'integer', 'float'] : ['none']
    for (const groupSize of sizes) {
      for (const zeroPoint of zeroPoints) {
        for (const [x, compute] of inputs) {
          for (const m of [0, 1, 2, 5, 16, 17, 64, 65, 1000]) {
            for (const [n, k] of [
              [4096, 4096],
              [1, 1],
              [37, 70],
              [64, 0],
            ] as const) {
              yield { m, n, k, format, x, compute, groupSize, zeroPoint }
            }
          }
        }
      }
    }
  }
}

/** Lays a weight where the device would, and wherever else it can lie. */
function placings(call: LinearCall): (Layout | undefined)[] {
  const one = { archs: ['cpu'] }
  return [
    undefined,
    ...layouts.filter((layout) => {
      try {
        return selectLinear({ ...call, m: 1, layout }, one).layout === layout
      } catch {
        return false
      }
    }),
  ]
}

test('no legal call of linear is left without a row, and each takes the first that admits it', () => {
  const rows = rowsOf('linear') as LinearRow[]
  const wrong: string[] = []
  let calls = 0
  for (const call of linearCalls()) {
    if (call.m !== 1 && call.m !== 64 && call.n !== 37) continue // M matters to rows, not to layouts
    for (const layout of placings(call)) {
      for (const archs of [...sets, ...gpuSets('linear')]) {
        calls++
        const device = has(archs)
        const got = selectLinear({ ...call, layout }, { archs })
        const want = rows.find(
          (row) => row.arch.every((arch) => device.has(arch)) && admits(row, call, got.layout),
        )
        if (got.row !== want?.name) wrong.push(`${JSON.stringify({ ...call, layout, archs })}: ${got.row}`)
      }
    }
  }
  expect(wrong.slice(0, 5)).toEqual([])
  expect(calls).toBeGreaterThan(10_000)
})

// ---- attention -----------------------------------------------------------------------------------------------------

const decode: AttentionCall = { seqQ: 1, seqKv: 4096, heads: 32, kvHeads: 8, headDim: 128 }
const attentions: [archs: string[], call: AttentionCall, row: string][] = [
  [['cpu'], decode, 'attention_ref'],
  [['avx2'], { ...decode, dtype: 'bf16' }, 'attention_f32_avx2'],
  [['avx512'], { ...decode, dtype: 'f16' }, 'attention_f32_avx512'],
  [['avx512vnni', 'avx512bf16'], { ...decode, seqQ: 4096 }, 'attention_f32_avx512'],
  [['avx512vnni', 'avx512bf16'], { ...decode, dtype: 'bf16' }, 'attention_bf16_avx512bf16'],
  [['avx512'], { ...decode, headDim: 2048 }, 'attention_ref'],
]
;(x86 ? test : test.skip).each(attentions)('attention: %j takes %j to its row', (archs, call, row) => {
  expect(selectAttention(call, { archs }).row).toBe(row)
})

test('no legal call of attention is left without a row, and each takes the first that admits it', () => {
  interface AttentionRow extends KernelRow {
    dtypes: DType[]
    headDimMax: number
    headDimMultiple: number
    tensors: boolean
  }
  const rows = rowsOf('attention') as AttentionRow[]
  for (const dtype of ['f32', 'f16', 'bf16'] as const) {
    for (const headDim of [1, 33, 64, 128, 1024, 1025]) {
      for (const headDimV of [headDim, 40]) {
        for (const seqQ of [0, 1, 9, 500]) {
          for (const archs of [...sets, ...gpuSets('attention')]) {
            const device = has(archs)
            const call = { ...decode, dtype, headDim, headDimV, seqQ }
            const fits = (row: AttentionRow) =>
              row.tensors &&
              row.dtypes.includes(dtype) &&
              [headDim, headDimV].every(
                (dim) => (row.headDimMax === 0 || dim <= row.headDimMax) && dim % row.headDimMultiple === 0,
              )
            const want = rows.find((row) => row.arch.every((arch) => device.has(arch)) && fits(row))
            expect([call, archs, selectAttention(call, { archs }).row]).toEqual([call, archs, want?.name])
          }
        }
      }
    }
  }
})

// ---- every op ------------------------------------------------------------------------------------------------------

test('the reference row of each op stands last and admits whatever another row of a CPU does', () => {
  for (const op of new Set(description.kernels.map((row) => row.op))) {
    const rows = rowsOf(op).filter((row) => row.arch.every((arch) => !gpus.includes(arch)))
    const reference = rows.at(-1) as KernelRow
    expect([op, reference.arch, reference.name]).toEqual([op, ['cpu'], `${op}_ref`])
    for (const row of rows) {
      for (const [property, words] of Object.entries(row)) {
        if (property === 'arch' || !Array.isArray(words)) continue
        expect([row.name, property, reference[property]]).toEqual([
          row.name,
          property,
          expect.arrayContaining(words),
        ])
      }
    }
  }
})

describe('a row that is insisted on', () => {
  const call: LinearCall = { ...big, m: 1, format: 'int4', groupSize: 128 }
  const select = (archs: string[], row: string) => selectLinear(call, { archs, row }).row
  const refused = (act: () => string) =>
    refusal(() => {
      act()
      return undefined
    })

  test('is taken before better ones', () => {
    expect(select(cpus, 'linear_ref')).toBe('linear_ref')
    if (x86) expect(select(cpus, 'linear_int4_f32_avx2')).toBe('linear_int4_f32_avx2')
  })

  ;(x86 ? test : test.skip)('is refused where the device lacks its instruction set', () => {
    const error = refused(() => select(['avx2'], 'linear_int4_f32_avx512'))
    expect(error.code).toBe('ERR_UNSUPPORTED')
    expect(error.message).toBe(
      'linear: row linear_int4_f32_avx512 needs an instruction set that this device lacks',
    )
  })

  ;(x86 ? test : test.skip)('is refused where it does not fit the call', () => {
    const error = refused(() => select(cpus, 'linear_int8_f32_avx2'))
    expect(error.code).toBe('ERR_UNSUPPORTED')
    expect(error.message).toBe("linear: row linear_int8_f32_avx2 can't serve this call")
  })

  test('of another op leaves the choice free', () => {
    expect(select(['cpu'], 'attention_ref')).toBe('linear_ref')
  })

  test('an unknown instruction set is named', () => {
    const error = refused(() => selectLinear(call, { archs: ['mmx'] }).row)
    expect(error.code).toBe('ERR_ARGUMENT')
    expect(error.message).toMatch(/there is no arch 'mmx'/)
  })

  test('a device without any row for the call says so', () => {
    if (gpuSets('linear').length > 0) return
    const error = refused(() => selectLinear(call, { archs: ['sm80'] }).row)
    expect(error.code).toBe('ERR_UNSUPPORTED')
    expect(error.message).toMatch(/no kernel row of this device serves the call/)
  })
})
