// What the commands share: reading their options, a progress line, tables.

import { type ParseArgsConfig, parseArgs } from 'node:util'

/** A wrong option or argument: the command prints it with its usage and exits with 2. */
export class UsageError extends Error {}

type Options = NonNullable<ParseArgsConfig['options']>
type Parsed<T extends Options> = ReturnType<
  typeof parseArgs<{ args: string[]; options: T; allowPositionals: true; strict: true }>
>

/**
 * Runs one command: parses its options, answers --help (an option that every command has), and turns a wrong option into
 * a sentence and exit code 2.
 *
 * @param argv what stands after the command's name
 * @param positionals how many arguments without a dash there may be
 * @param body the command itself; its result is the exit code
 */
export async function command<T extends Options>(
  argv: readonly string[],
  usage: string,
  options: T,
  positionals: number,
  body: (values: Parsed<T>['values'], positionals: readonly string[]) => Promise<number>,
): Promise<number> {
  // `lowbit ... | head` closes the pipe early: no reason for a stack trace.
  process.stdout.once('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0)
    throw error
  })
  if (argv.includes('--help') || argv.includes('-h')) {
    process.stdout.write(`${usage}\n`)
    return 0
  }
  try {
    let parsed: Parsed<T>
    try {
      parsed = parseArgs({ args: [...argv], options, allowPositionals: true, strict: true })
    } catch (error) {
      throw new UsageError(error instanceof Error ? error.message : String(error))
    }
    const extra = parsed.positionals[positionals]
    if (extra !== undefined) throw new UsageError(`'${extra}' is one argument too many`)
    return await body(parsed.values, parsed.positionals)
  } catch (error) {
    if (!(error instanceof UsageError)) throw error
    process.stderr.write(`lowbit: ${error.message}\n\n${usage}\n`)
    return 2
  }
}

/**
 * The number of an option such as `--windows 8`; undefined where it was not given.
 *
 * @throws UsageError where it is no number from `least` to `most`, or no integer
 */
export function numberOption(
  value: string | undefined,
  name: string,
  least: number,
  most = Number.MAX_SAFE_INTEGER,
  integer = true,
): number | undefined {
  if (value === undefined) return undefined
  const number = value.trim() === '' ? Number.NaN : Number(value)
  if (!(number >= least && number <= most) || (integer && !Number.isSafeInteger(number))) {
    const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`
    throw new UsageError(
      `--${name} expects ${integer ? 'an integer' : 'a number'} ${range} but got '${value}'`,
    )
  }
  return number
}

/** One line on the terminal that is written again and again; nothing at all where stderr is no terminal. */
export class Progress {
  private shown = false

  /** Replaces the line. */
  show(text: string): void {
    if (!process.stderr.isTTY) return
    const width = Math.max(20, process.stderr.columns || 80) - 1
    process.stderr.write(`\r\u001b[2K${text.length > width ? text.slice(0, width) : text}`)
    this.shown = true
  }

  /** Takes the line away, so that other text can be printed. */
  clear(): void {
    if (this.shown) process.stderr.write('\r\u001b[2K')
    this.shown = false
  }
}

/** A column of a table: the first is flush left, the others flush right. */
export interface Column {
  readonly title: string
  readonly width: number
}

/** One row as a line of text; `cells` in the order of `columns`. */
export function tableRow(columns: readonly Column[], cells: readonly string[]): string {
  return columns
    .map(({ width }, i) => (i === 0 ? (cells[i] ?? '').padEnd(width) : (cells[i] ?? '').padStart(width)))
    .join('  ')
    .trimEnd()
}

/** The titles of a table as a line of text. */
export function tableHead(columns: readonly Column[]): string {
  return tableRow(
    columns,
    columns.map(({ title }) => title),
  )
}
