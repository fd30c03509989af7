// A strict JSON reader for headers that come from strangers. JSON.parse keeps the last of two equal keys without a
// word, rounds long integers and makes objects whose keys live beside a prototype; here a repeated key is an
// error, numbers keep their text and objects are Maps.

/** A number as it was written: the caller decides which spellings it takes. */
export class JsonNumber {
  constructor(readonly text: string) {}

  /** The value where the text is a plain safe integer that is not negative; else undefined. */
  integer(): number | undefined {
    if (!/^(?:0|[1-9][0-9]*)$/.test(this.text)) return undefined
    const value = Number(this.text)
    return Number.isSafeInteger(value) ? value : undefined
  }

  toString(): string {
    return this.text
  }
}

export type JsonValue = null | boolean | string | JsonNumber | JsonValue[] | JsonObject
export type JsonObject = Map<string, JsonValue>

/** Where and why a text is not JSON. */
export class JsonError extends Error {
  constructor(
    message: string,
    readonly position: number,
  ) {
    super(`${message} at character ${position}`)
  }
}

// Headers nest three deep; the limit keeps "[[[[..." from using up the stack.
const maxDepth = 32
const number = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y
const quote = 0x22
const backslash = 0x5c
const space = /[ \t\r\n]*/y
const escapes: Readonly<Record<string, string>> = {
  '"': '"',
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
}

/**
 * Parses RFC 8259 JSON. Objects become Maps in the order of the text.
 *
 * @throws JsonError where the text breaks the grammar, repeats a key or nests deeper than 32
 */
export function parseJson(text: string): JsonValue {
  let at = 0

  function fail(what: string): never {
    throw new JsonError(what, at)
  }
  function take(pattern: RegExp): string {
    pattern.lastIndex = at
    const found = pattern.exec(text)?.[0] ?? ''
    at += found.length
    return found
  }
  function expect(character: string): void {
    if (text[at] !== character) fail(`expected '${character}'`)
    at++
  }
  function string(): string {
    expect('"')
    let out = ''
    for (;;) {
      const start = at
      let code = text.charCodeAt(at)
      while (code !== quote && code !== backslash && code >= 0x20) code = text.charCodeAt(++at)
      out += text.slice(start, at)
      const c = text[at]
      if (c === undefined) fail('unterminated string')
      at++
      if (c === '"') {
        if (/\p{Surrogate}/u.test(out)) fail('lone surrogate in a string')
        return out
      }
      if (c !== '\\') fail('control character in a string')
      const letter = text[at++] ?? ''
      if (letter === 'u') {
        const hex = text.slice(at, at + 4)
        if (!/^[0-9a-fA-F]{4}$/.test(hex)) fail('bad \\u escape')
        out += String.fromCharCode(Number.parseInt(hex, 16))
        at += 4
      } else {
        if (!Object.hasOwn(escapes, letter)) fail('bad escape')
        out += escapes[letter]
      }
    }
  }
  function object(depth: number): JsonObject {
    const out: JsonObject = new Map()
    at++
    take(space)
    if (text[at] === '}') {
      at++
      return out
    }
    for (;;) {
      take(space)
      const start = at
      const key = string()
      if (out.has(key)) throw new JsonError(`the key ${describeJson(key)} comes twice, again`, start)
      take(space)
      expect(':')
      out.set(key, value(depth))
      take(space)
      if (text[at] === ',') at++
      else {
        expect('}')
        return out
      }
    }
  }
  function array(depth: number): JsonValue[] {
    const out: JsonValue[] = []
    at++
    take(space)
    if (text[at] === ']') {
      at++
      return out
    }
    for (;;) {
      out.push(value(depth))
      take(space)
      if (text[at] === ',') at++
      else {
        expect(']')
        return out
      }
    }
  }
  function word<T extends boolean | null>(name: string, meaning: T): T {
    if (!text.startsWith(name, at)) fail('expected a value')
    at += name.length
    return meaning
  }
  function value(depth: number): JsonValue {
    if (depth > maxDepth) fail(`nested deeper than ${maxDepth}`)
    take(space)
    switch (text[at]) {
      case '{':
        return object(depth + 1)
      case '[':
        return array(depth + 1)
      case '"':
        return string()
      case 't':
        return word('true', true)
      case 'f':
        return word('false', false)
      case 'n':
        return word('null', null)
      default: {
        const digits = take(number)
        if (digits === '') fail('expected a value')
        return new JsonNumber(digits)
      }
    }
  }

  const out = value(0)
  take(space)
  if (at !== text.length) fail('text after the end of the value')
  return out
}

/** What a value is, for error sentences: `"abc"`, `[1, 2]` (cut short), `an object`. */
export function describeJson(value: JsonValue | undefined): string {
  if (value === undefined) return 'nothing'
  if (value instanceof Map) return 'an object'
  if (Array.isArray(value)) {
    const shown = value.slice(0, 6).map(describeJson).join(', ')
    return value.length > 6 ? `[${shown}, ...]` : `[${shown}]`
  }
  if (value instanceof JsonNumber)
    return value.text.length > 40 ? `${value.text.slice(0, 40)}...` : value.text
  if (typeof value === 'string') return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}...` : value)
  return String(value)
}
