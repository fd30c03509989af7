// The safetensors format: eight bytes of header length, a JSON header, then the tensors end to end.
// https://huggingface.co/docs/safetensors, 2022. This file knows the bytes; files and folders are in checkpoint.ts.
//
//   0        8                8 + n                        size
//   | n: u64 | {"name": {...}} | tensor | tensor | ... |
//
// Nothing in the header is believed before it is checked: the length against the file's size and a cap, the JSON
// for repeated keys, each dtype, shape and range for itself, and all ranges together for holes and overlap.

import { LowbitError } from '../errors'
import { describeJson, JsonError, JsonNumber, type JsonObject, type JsonValue, parseJson } from './json'

/** Bits of one element for each dtype word of the format. */
const dtypeBits = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const

/** A dtype as safetensors spells it. */
export type SafetensorsDType = keyof typeof dtypeBits

/** The typed array that holds a dtype's elements: 16-bit floats as Uint16Array, everything without one as bytes. */
export type SafetensorsArray =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigInt64Array
  | BigUint64Array

/** One tensor of a file: what it is and which bytes of the data section hold it. */
export interface SafetensorsEntry {
  readonly name: string
  readonly dtype: SafetensorsDType
  /** Sizes, each at least 0; `[]` is one element. */
  readonly shape: readonly number[]
  /** First byte, counted from the start of the file. */
  readonly begin: number
  readonly byteLength: number
}

/** A checked header. */
export interface SafetensorsHeader {
  /** By name, in the order of their bytes. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>
  /** The strings under `__metadata__`; empty where the file has none. */
  readonly metadata: ReadonlyMap<string, string>
}

/** A tensor in memory, as it is read and written. */
export interface SafetensorsTensor {
  /** Element type in the file. */
  readonly dtype: SafetensorsDType
  /** Sizes, outermost first. */
  readonly shape: readonly number[]
  /** The elements in row-major order; those that JavaScript has no array for, as bytes. */
  readonly data: SafetensorsArray
}

/** Largest header that is read: the same cap as the reference implementation's. */
export const maxHeaderBytes = 100_000_000

/** Bytes before the header. */
export const prefixBytes = 8

// No real tensor has more sizes; a header full of ones would otherwise keep the reader busy for long.
const maxRank = 64

const metadataKey = '__metadata__'

function fail(file: string, what: string): never {
  throw new LowbitError('ERR_FILE', `safetensors: ${file}: ${what}`)
}

/** A name for an error sentence, cut short where a stranger made it long. */
export function quoted(name: string): string {
  return JSON.stringify(name.length > 200 ? `${name.slice(0, 200)}...` : name)
}

/** Bytes of `shape` elements of `dtype`, or undefined where the count leaves the safe integers or a byte is shared. */
export function tensorBytes(dtype: SafetensorsDType, shape: readonly number[]): number | undefined {
  // A zero anywhere makes the product zero, however large the other sizes are.
  if (shape.includes(0)) return 0
  let bits: number = dtypeBits[dtype]
  for (const size of shape) {
    bits *= size
    if (!Number.isSafeInteger(bits)) return undefined
  }
  return bits % 8 === 0 ? bits / 8 : undefined
}

/** Whether `word` is a dtype of the format. */
export function isSafetensorsDType(word: unknown): word is SafetensorsDType {
  return typeof word === 'string' && Object.hasOwn(dtypeBits, word)
}

/**
 * Length of the JSON header, from the first eight bytes of a file of `fileBytes` bytes.
 *
 * @throws LowbitError ERR_FILE where the file is too short for what it promises
 */
export function headerLength(prefix: Uint8Array, fileBytes: number, file: string): number {
  if (fileBytes < prefixBytes || prefix.byteLength < prefixBytes) {
    fail(file, `expected at least ${prefixBytes} bytes but the file has ${fileBytes}`)
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset, prefixBytes).getBigUint64(0, true)
  if (length > BigInt(maxHeaderBytes)) {
    fail(file, `expected a header of at most ${maxHeaderBytes} bytes but the file says ${length}`)
  }
  if (length > BigInt(fileBytes - prefixBytes)) {
    fail(
      file,
      `the header should have ${length} bytes but the file ends after ${fileBytes - prefixBytes} of them`,
    )
  }
  return Number(length)
}

/**
 * Parses and checks a header.
 *
 * @param bytes the JSON header alone, without the eight bytes before it
 * @param fileBytes size of the whole file
 * @param file name for error sentences
 * @throws LowbitError ERR_FILE with the file, the tensor, what was expected and what came
 */
export function parseHeader(bytes: Uint8Array, fileBytes: number, file: string): SafetensorsHeader {
  const root = readJson(bytes, file)
  const dataStart = prefixBytes + bytes.byteLength
  const dataBytes = fileBytes - dataStart
  const entries: SafetensorsEntry[] = []
  let metadata: ReadonlyMap<string, string> = new Map()
  for (const [name, value] of root) {
    if (name === metadataKey) metadata = readMetadata(value, file)
    else entries.push(readEntry(name, value, dataStart, dataBytes, file))
  }
  // Empty tensors share their offset with the next one and sort before it.
  entries.sort((a, b) => a.begin - b.begin || a.byteLength - b.byteLength)
  let end = dataStart
  let previous: SafetensorsEntry | undefined
  for (const entry of entries) {
    if (entry.begin !== end) {
      const before = previous === undefined ? 'the data starts' : `${quoted(previous.name)} ends`
      const what = entry.begin < end ? 'overlaps what is before it' : 'leaves a hole before it'
      fail(
        file,
        `tensor ${quoted(entry.name)} ${what}: it starts at byte ${entry.begin - dataStart} of the data but ${before} at ${end - dataStart}`,
      )
    }
    end += entry.byteLength
    previous = entry
  }
  if (end !== fileBytes) {
    fail(file, `expected ${end - dataStart} bytes of tensors after the header but the file has ${dataBytes}`)
  }
  return { tensors: new Map(entries.map((entry) => [entry.name, entry])), metadata }
}

function readJson(bytes: Uint8Array, file: string): JsonObject {
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    fail(file, 'the header is not UTF-8')
  }
  // The reference implementation wants the brace first; spaces may follow the object, none go before it.
  if (!text.startsWith('{'))
    fail(file, `the header should begin with '{' but begins with ${JSON.stringify(text.slice(0, 8))}`)
  try {
    return parseJson(text) as JsonObject
  } catch (error) {
    if (error instanceof JsonError) fail(file, `the header is not JSON: ${error.message}`)
    throw error
  }
}

function readMetadata(value: JsonValue, file: string): ReadonlyMap<string, string> {
  if (!(value instanceof Map))
    fail(file, `expected ${metadataKey} to be an object of strings but got ${describeJson(value)}`)
  const out = new Map<string, string>()
  for (const [key, word] of value) {
    if (typeof word !== 'string') {
      fail(
        file,
        `expected ${metadataKey} ${JSON.stringify(key)} to be a string but got ${describeJson(word)}`,
      )
    }
    out.set(key, word)
  }
  return out
}

function readEntry(
  name: string,
  value: JsonValue,
  dataStart: number,
  dataBytes: number,
  file: string,
): SafetensorsEntry {
  const tensor = `tensor ${quoted(name)}`
  if (!(value instanceof Map)) fail(file, `${tensor}: expected an object but got ${describeJson(value)}`)
  for (const key of value.keys()) {
    if (key !== 'dtype' && key !== 'shape' && key !== 'data_offsets') {
      fail(
        file,
        `${tensor}: expected dtype, shape and data_offsets but got ${JSON.stringify(key.slice(0, 40))} too`,
      )
    }
  }
  const dtype = value.get('dtype')
  if (!isSafetensorsDType(dtype)) {
    fail(
      file,
      `${tensor}: expected a dtype out of ${Object.keys(dtypeBits).join(', ')} but got ${describeJson(dtype)}`,
    )
  }
  const shape = readIntegers(value.get('shape'))
  if (shape === undefined) {
    fail(
      file,
      `${tensor}: expected a shape of at most ${maxRank} non-negative integers but got ${describeJson(value.get('shape'))}`,
    )
  }
  const offsets = readIntegers(value.get('data_offsets'))
  const [begin, end] = offsets ?? []
  if (offsets?.length !== 2 || begin === undefined || end === undefined || begin > end || end > dataBytes) {
    fail(
      file,
      `${tensor}: expected data_offsets [begin, end] in order inside the ${dataBytes} bytes of data but got ${describeJson(value.get('data_offsets'))}`,
    )
  }
  const bytes = tensorBytes(dtype, shape)
  if (bytes === undefined) fail(file, `${tensor}: no byte count fits ${dtype} [${shape.join(', ')}]`)
  if (bytes !== end - begin) {
    fail(
      file,
      `${tensor}: expected ${bytes} bytes for ${dtype} [${shape.join(', ')}] but data_offsets span ${end - begin}`,
    )
  }
  return { name, dtype, shape, begin: dataStart + begin, byteLength: bytes }
}

function readIntegers(value: JsonValue | undefined): number[] | undefined {
  if (!Array.isArray(value) || value.length > maxRank) return undefined
  const out: number[] = []
  for (const item of value) {
    const integer = item instanceof JsonNumber ? item.integer() : undefined
    if (integer === undefined) return undefined
    out.push(integer)
  }
  return out
}

/**
 * The elements of a tensor over `bytes`, which is not copied unless it starts at an address that the typed array
 * can't use. BOOL, F8, F6, F4 and C64 come as bytes; BF16 and F16 as Uint16Array.
 */
export function viewElements(dtype: SafetensorsDType, bytes: Uint8Array): SafetensorsArray {
  const size = dtypeBits[dtype] / 8
  const aligned = Number.isInteger(size) && bytes.byteOffset % size !== 0 ? bytes.slice() : bytes
  const { buffer, byteOffset, byteLength } = aligned
  switch (dtype) {
    case 'I8':
      return new Int8Array(buffer, byteOffset, byteLength)
    case 'U16':
    case 'F16':
    case 'BF16':
      return new Uint16Array(buffer, byteOffset, byteLength / 2)
    case 'I16':
      return new Int16Array(buffer, byteOffset, byteLength / 2)
    case 'I32':
      return new Int32Array(buffer, byteOffset, byteLength / 4)
    case 'U32':
      return new Uint32Array(buffer, byteOffset, byteLength / 4)
    case 'F32':
      return new Float32Array(buffer, byteOffset, byteLength / 4)
    case 'F64':
      return new Float64Array(buffer, byteOffset, byteLength / 8)
    case 'I64':
      return new BigInt64Array(buffer, byteOffset, byteLength / 8)
    case 'U64':
      return new BigUint64Array(buffer, byteOffset, byteLength / 8)
    default:
      return new Uint8Array(buffer, byteOffset, byteLength)
  }
}

/**
 * Parses a whole file that is in memory. The arrays are views of `bytes` where its alignment allows.
 *
 * @param bytes the file
 * @param file name for error sentences
 * @returns tensors by name, in the order of their bytes, and the metadata
 * @throws LowbitError ERR_FILE where the bytes are not a sound safetensors file
 */
export function parseSafetensors(
  bytes: Uint8Array,
  file = 'bytes',
): { tensors: Map<string, SafetensorsTensor>; metadata: ReadonlyMap<string, string> } {
  const length = headerLength(bytes, bytes.byteLength, file)
  const header = parseHeader(bytes.subarray(prefixBytes, prefixBytes + length), bytes.byteLength, file)
  const tensors = new Map<string, SafetensorsTensor>()
  for (const { name, dtype, shape, begin, byteLength } of header.tensors.values()) {
    tensors.set(name, { dtype, shape, data: viewElements(dtype, bytes.subarray(begin, begin + byteLength)) })
  }
  return { tensors, metadata: header.metadata }
}

/** What the writer takes: tensors by name, in a Map or a plain object. */
export type SafetensorsSource =
  | ReadonlyMap<string, SafetensorsTensor>
  | Readonly<Record<string, SafetensorsTensor>>

/** Metadata for the writer: strings by key. */
export type SafetensorsMetadata = ReadonlyMap<string, string> | Readonly<Record<string, string>>

/** A file cut into the pieces that are written one after the other. */
export interface SafetensorsPlan {
  /** The eight length bytes and the padded header. */
  readonly head: Uint8Array
  readonly pieces: readonly Uint8Array[]
  readonly byteLength: number
}

function asMap<T>(source: ReadonlyMap<string, T> | Readonly<Record<string, T>>): ReadonlyMap<string, T> {
  return source instanceof Map ? source : new Map(Object.entries(source))
}

/**
 * Lays a file out: the header, padded with spaces so that the data starts at a multiple of 8, and the tensors from
 * the widest elements to the narrowest and by name (the bytes of its UTF-8), so that each starts at a multiple of
 * its own element size and equal contents give equal files.
 *
 * @throws LowbitError ERR_ARGUMENT for a name, dtype, shape, array or metadata that the format can't hold
 */
export function planSafetensors(source: SafetensorsSource, metadata?: SafetensorsMetadata): SafetensorsPlan {
  const bad = (what: string): never => {
    throw new LowbitError('ERR_ARGUMENT', `writeSafetensors: ${what}`)
  }
  const encode = (text: string): Buffer => {
    if (/\p{Surrogate}/u.test(text))
      bad(`${JSON.stringify(text)} has a lone surrogate, which UTF-8 can't hold`)
    return Buffer.from(text, 'utf8')
  }
  const sorted = <T>(map: ReadonlyMap<string, T>, rank: (value: T) => number): [string, T][] =>
    [...map]
      .map(([name, value]) => ({ name, value, key: encode(name) }))
      .sort((a, b) => rank(b.value) - rank(a.value) || Buffer.compare(a.key, b.key))
      .map(({ name, value }) => [name, value])

  const tensors = asMap(source)
  for (const [name, { dtype, shape, data }] of tensors) {
    const tensor = `tensor ${JSON.stringify(name)}`
    if (name === metadataKey) bad(`${JSON.stringify(name)} is no name for a tensor: the header uses it`)
    if (!isSafetensorsDType(dtype)) bad(`${tensor}: ${String(dtype)} is no dtype of safetensors`)
    if (!Array.isArray(shape) || !shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
      bad(
        `${tensor}: expected a shape of at most ${maxRank} non-negative integers but got [${String(shape)}]`,
      )
    }
    if (!ArrayBuffer.isView(data)) bad(`${tensor}: expected data to be a typed array`)
    const bytes = tensorBytes(dtype, shape)
    if (bytes !== data.byteLength) {
      bad(
        `${tensor}: expected ${bytes} bytes for ${dtype} [${shape.join(', ')}] but data has ${data.byteLength}`,
      )
    }
  }
  const fields: string[] = []
  const words = sorted(asMap(metadata ?? {}), () => 0).map(([key, word]) => {
    if (typeof word !== 'string')
      bad(`expected metadata ${JSON.stringify(key)} to be a string but got ${typeof word}`)
    encode(word)
    return `${JSON.stringify(key)}:${JSON.stringify(word)}`
  })
  if (words.length > 0) fields.push(`"${metadataKey}":{${words.join(',')}}`)
  const pieces: Uint8Array[] = []
  let end = 0
  for (const [name, { dtype, shape, data }] of sorted(tensors, (tensor) => dtypeBits[tensor.dtype])) {
    pieces.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    fields.push(
      `${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join(',')}],"data_offsets":[${end},${end + data.byteLength}]}`,
    )
    end += data.byteLength
  }
  const json = Buffer.from(`{${fields.join(',')}}`, 'utf8')
  const length = Math.ceil(json.byteLength / 8) * 8
  if (length > maxHeaderBytes) bad(`the header would have ${length} bytes but readers take ${maxHeaderBytes}`)
  const head = new Uint8Array(prefixBytes + length).fill(0x20)
  new DataView(head.buffer).setBigUint64(0, BigInt(length), true)
  head.set(json, prefixBytes)
  return { head, pieces, byteLength: head.byteLength + end }
}

/**
 * A safetensors file in memory; `parseSafetensors` reads it back.
 *
 * @param source tensors by name; `data` holds exactly the elements of `shape`
 * @param metadata strings for the header's `__metadata__`
 * @returns the bytes of the file; equal arguments give equal bytes
 * @throws LowbitError ERR_ARGUMENT for anything the format can't hold
 */
export function serializeSafetensors(source: SafetensorsSource, metadata?: SafetensorsMetadata): Uint8Array {
  const { head, pieces, byteLength } = planSafetensors(source, metadata)
  const out = new Uint8Array(byteLength)
  out.set(head)
  let at = head.byteLength
  for (const piece of pieces) {
    out.set(piece, at)
    at += piece.byteLength
  }
  return out
}
