import type { ErrorCode } from './words'

/** Every error that lowbit throws, except wrong JavaScript types (see {@link LowbitTypeError}). */
export class LowbitError extends Error {
  /** What went wrong, for programs. The message says it for people. */
  readonly code: ErrorCode
  /** For importers and the like that throw errors of the same kind. */
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'LowbitError'
    this.code = code
  }
}

/** A JavaScript value of the wrong kind, such as a number where a Tensor is expected. */
export class LowbitTypeError extends TypeError {
  /** The same for all of them: what is wrong is a value's type. */
  readonly code = 'ERR_TYPE'
  /** See {@link LowbitError}. */
  constructor(message: string) {
    super(message)
    this.name = 'LowbitTypeError'
  }
}

/** The error for a code and a text: native code calls this for everything that it throws. */
export function makeError(code: string, text: string): LowbitError | LowbitTypeError {
  return code === 'ERR_TYPE' ? new LowbitTypeError(text) : new LowbitError(code as ErrorCode, text)
}

/** For messages: what kind of value this is. */
export function kindOf(value: unknown): string {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'an array'
  if (ArrayBuffer.isView(value)) return `a ${value.constructor.name}`
  if (typeof value === 'string') return `'${value.slice(0, 40)}'`
  if (typeof value === 'number' || typeof value === 'boolean') return String(value)
  return typeof value === 'undefined' ? 'undefined' : `a value of type ${typeof value}`
}

/** Position of a word in its list. */
export function wordIndex(list: readonly string[], value: unknown, where: string): number {
  const index = list.indexOf(value as string)
  if (index >= 0) return index
  if (typeof value !== 'string')
    throw new LowbitTypeError(`${where}: expected a string but got ${kindOf(value)}`)
  throw new LowbitError(
    'ERR_ARGUMENT',
    `${where}: expected one of ${list.join(', ')} but got ${kindOf(value)}`,
  )
}
