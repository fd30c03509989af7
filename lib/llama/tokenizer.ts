// Text to token ids and back, from a checkpoint's tokenizer.json by @huggingface/tokenizers, and the pieces of text
// that a stream of tokens completes.

import { join } from 'node:path'
import type { Tokenizer as HfTokenizer } from '@huggingface/tokenizers' with { 'resolution-mode': 'import' }
import { LowbitError } from '../errors'
import { readJsonFile } from './config'

/** The tokenizer of a checkpoint. */
export class Tokenizer {
  private constructor(private readonly inner: HfTokenizer) {}

  /**
   * Reads tokenizer.json, and tokenizer_config.json where there is one.
   *
   * @returns undefined where the folder has no tokenizer.json
   * @throws LowbitError ERR_FILE where a file is there and can't be used
   */
  static read(folder: string): Tokenizer | undefined {
    const json = readJsonFile(folder, 'tokenizer.json')
    if (json === undefined) return undefined
    const config = readJsonFile(folder, 'tokenizer_config.json') ?? {}
    // Required here, so that programs without text don't load it. The package has a CommonJS build but declares its
    // types for ES modules alone, hence no plain import.
    const { Tokenizer: Inner } = require('@huggingface/tokenizers') as { Tokenizer: typeof HfTokenizer }
    try {
      return new Tokenizer(new Inner(json as object, config as object))
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      throw new LowbitError('ERR_FILE', `${join(folder, 'tokenizer.json')}: can't be used: ${why}`)
    }
  }

  /** Token ids of a text, with the special tokens that the tokenizer puts around it. */
  encode(text: string): number[] {
    return [...this.inner.encode(text).ids]
  }

  /** The text of some tokens; special tokens are left out. */
  decode(tokens: readonly number[]): string {
    if (tokens.length === 0) return ''
    return this.inner.decode([...tokens], { skip_special_tokens: true, clean_up_tokenization_spaces: false })
  }

  /** The text of tokens that come one at a time. */
  stream(): TextStream {
    return new TextStream(this)
  }
}

/**
 * Text of a growing list of tokens, given out only where it is final: a character whose bytes are spread over several
 * tokens comes out when its last byte is there, never as U+FFFD before.
 */
export class TextStream {
  // The last token whose text is out, then those after it. Decoding the last one again keeps the space before a word,
  // which some tokenizers drop from the first token of what they decode.
  private tokens: number[] = []
  // How many characters of the text of `tokens` have been given out.
  private given = 0

  /** Begins a text. */
  constructor(private readonly tokenizer: Tokenizer) {}

  /** The text that one more token completes; often the token's own text, sometimes ''. */
  push(token: number): string {
    this.tokens.push(token)
    const text = this.tokenizer.decode(this.tokens)
    // Bytes of an unfinished character decode to one U+FFFD; all before it stays as it is.
    const final = text.endsWith('\ufffd') ? text.length - 1 : text.length
    const out = text.slice(this.given, final)
    if (final === text.length) {
      this.tokens = [token]
      this.given = this.tokenizer.decode(this.tokens).length
    } else {
      this.given = Math.max(this.given, final)
    }
    return out
  }

  /** What is left when no more tokens come: the U+FFFD of an unfinished character, or ''. */
  end(): string {
    const out = this.tokenizer.decode(this.tokens).slice(this.given)
    this.tokens = []
    this.given = 0
    return out
  }
}
