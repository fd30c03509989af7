/**
 * Canonical weights in a safetensors file. Each weight is up to four tensors, `<name>.codes`, `<name>.scales`,
 * `<name>.zeros` and `<name>.table`, and a line of JSON under `<name>` in the metadata that says what they mean:
 *
 *   __metadata__   { "format": "lowbit", "version": "1", "lowbit:<name>": "{\"format\":\"int4\",\"shape\":[N,K],...}" }
 *
 * Codes that fill their bytes have the dtype of their numbers (F32, F16, BF16, I8, F8_E4M3, F8_E5M2; [N, K]), packed ones
 * are U8 [N, bytes of a row]. Scales of e8m0 are F8_E8M0 and those of e4m3 F8_E4M3; tables are F32 [tables, 16]; the
 * tensorScale of nvfp4 stands in the JSON.
 */
import {
  parseSafetensors,
  type SafetensorsDType,
  type SafetensorsTensor,
  serializeSafetensors,
} from './checkpoint/safetensors'
import { kindOf, LowbitError, LowbitTypeError } from './errors'
import { type CanonicalFields, canonical, nativeCanonical, type QuantizedWeight } from './quantize'
import type { Format } from './words'

const version = '1'
const prefix = 'lowbit:'

const wholeCodes: Partial<Record<Format, SafetensorsDType>> = {
  f32: 'F32',
  f16: 'F16',
  bf16: 'BF16',
  int8: 'I8',
  fp8_e4m3: 'F8_E4M3',
  fp8_e5m2: 'F8_E5M2',
  mxfp8_e4m3: 'F8_E4M3',
  mxfp8_e5m2: 'F8_E5M2',
  mxint8: 'I8',
}
const scaleDTypes = { f32: 'F32', f16: 'F16', bf16: 'BF16', e8m0: 'F8_E8M0', e4m3: 'F8_E4M3' } as const

function codesDType(format: Format): SafetensorsDType {
  return wholeCodes[format] ?? 'U8'
}

/**
 * A safetensors file with canonical weights by name. Equal weights give equal bytes.
 *
 * @throws LowbitError ERR_ARGUMENT for a weight whose arrays hold what no weight may hold.
 * @throws LowbitTypeError for a value that is no QuantizedWeight.
 */
export function serialize(weights: Readonly<Record<string, QuantizedWeight>>): Uint8Array {
  if (typeof weights !== 'object' || weights === null) {
    throw new LowbitTypeError(`serialize: expected an object of weights by name but got ${kindOf(weights)}`)
  }
  const tensors = new Map<string, SafetensorsTensor>()
  const metadata = new Map([
    ['format', 'lowbit'],
    ['version', version],
  ])
  for (const [name, q] of Object.entries(weights)) {
    nativeCanonical(q, `serialize: ${name}`)
    const { format, shape, groupSize, zeroPoint, scaleDtype, scaleShape, tablePer, tensorScale } = q
    const planes = q.planes > 1 ? { planes: q.planes } : {}
    const dtype = codesDType(format)
    const rowBytes = shape[0] === 0 ? 0 : q.codes.byteLength / shape[0]
    const put = (part: string, tensor: SafetensorsTensor): void => {
      if (tensors.has(`${name}.${part}`))
        throw new LowbitError('ERR_ARGUMENT', `serialize: two weights would both be called '${name}.${part}'`)
      tensors.set(`${name}.${part}`, tensor)
    }
    put('codes', { dtype, shape: dtype === 'U8' ? [shape[0], rowBytes] : shape, data: q.codes })
    if (q.scales !== undefined && scaleDtype !== undefined)
      put('scales', { dtype: scaleDTypes[scaleDtype], shape: scaleShape, data: q.scales })
    if (q.zeros !== undefined)
      put('zeros', { dtype: zeroPoint === 'float' ? 'F32' : 'U8', shape: scaleShape, data: q.zeros })
    if (q.table !== undefined) put('table', { dtype: 'F32', shape: [q.table.length / 16, 16], data: q.table })
    const tables = tablePer === 'none' ? {} : { tablePer }
    const line = { format, shape, groupSize, zeroPoint, scaleDtype, ...tables, ...planes, tensorScale }
    metadata.set(prefix + name, JSON.stringify(line))
  }
  return serializeSafetensors(tensors, metadata)
}

function fail(what: string): never {
  throw new LowbitError('ERR_FILE', `deserialize: ${what}`)
}

/** The JSON line of a weight. What stands in it is checked where a weight is made of it. */
function parseLine(name: string, line: string): CanonicalFields & { shape: readonly number[] } {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch (error) {
    fail(`weight '${name}': its metadata is not JSON: ${(error as Error).message}`)
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    fail(`weight '${name}': expected its metadata to be an object but got ${kindOf(value)}`)
  return value as CanonicalFields & { shape: readonly number[] }
}

/**
 * The weights of a file that {@link serialize} made. Nothing in it is believed before it is checked. The arrays are views
 * of `bytes` where its alignment allows.
 *
 * @throws LowbitError ERR_FILE where the bytes are damaged, of another kind of file, or hold a weight that is not legal,
 *   with the name of the weight.
 */
export function deserialize(bytes: Uint8Array): Record<string, QuantizedWeight> {
  const { tensors, metadata } = parseSafetensors(bytes, 'deserialize')
  const kind = metadata.get('format')
  if (kind !== 'lowbit') fail(`expected a file of format 'lowbit' but got ${kindOf(kind)}`)
  if (metadata.get('version') !== version)
    fail(`expected version ${version} but got ${kindOf(metadata.get('version'))}`)
  const out: [string, QuantizedWeight][] = []
  const seen = new Set<string>()
  for (const [key, line] of metadata) {
    if (!key.startsWith(prefix)) continue
    const name = key.slice(prefix.length)
    const { format, shape, groupSize, zeroPoint, scaleDtype, tablePer, planes, tensorScale } = parseLine(
      name,
      line,
    )
    const part = (which: string): SafetensorsTensor | undefined => {
      seen.add(`${name}.${which}`)
      return tensors.get(`${name}.${which}`)
    }
    const codes = part('codes')
    if (codes === undefined) fail(`weight '${name}': the file has no tensor '${name}.codes'`)
    const scales = part('scales')?.data
    const zeros = part('zeros')?.data
    try {
      const q = canonical({
        format,
        shape,
        groupSize,
        zeroPoint,
        scaleDtype,
        tablePer,
        planes,
        tensorScale,
        codes: codes.data,
        scales,
        zeros,
        table: part('table')?.data,
      })
      if (codes.dtype !== codesDType(q.format))
        fail(`weight '${name}': expected codes of ${codesDType(q.format)} but got ${codes.dtype}`)
      out.push([name, q])
    } catch (error) {
      if (!(error instanceof LowbitError || error instanceof LowbitTypeError) || error.code === 'ERR_FILE')
        throw error
      throw new LowbitError('ERR_FILE', `deserialize: weight '${name}': ${error.message}`, { cause: error })
    }
  }
  for (const name of tensors.keys()) {
    if (!seen.has(name)) fail(`tensor '${name}' belongs to no weight`)
  }
  return Object.fromEntries(out)
}
