// Options that are lists, shared by the commands that measure.
import type { Named } from '../bench/run'
import type { GroupSize } from '../quantize'
import { numberOption, UsageError } from './terminal'

/** Words of --group. */
export const groupSizes = ['32', '64', '128', 'channel', 'tensor', 'block']
/** Words of --x. */
export const floats = ['f32', 'f16', 'bf16'] as const

/** The words of a list such as "int4,int8"; undefined where it was not given. */
export function wordsOption<W extends string>(
  value: string | undefined,
  name: string,
  known: readonly W[],
): W[] | undefined {
  return value?.split(',').map((text) => {
    const word = known.find((candidate) => candidate === text.trim())
    if (word === undefined) throw new UsageError(`--${name} expects ${known.join(', ')} but got '${text}'`)
    return word
  })
}

/** The numbers of a list such as "1,64". */
export function numbersOption(value: string | undefined, name: string, most: number): number[] | undefined {
  return value?.split(',').map((text) => numberOption(text, name, 1, most) as number)
}

/** "4096x14336" as numbers. */
export function sizesOf(text: string, form: string, names: readonly string[]): number[] {
  const sizes = text.split('x').map(Number)
  const right =
    sizes.length === form.split('x').length && sizes.every((n) => Number.isSafeInteger(n) && n > 0)
  if (right) return sizes
  const known = names.length > 0 ? `all, ${names.join(', ')} or ` : ''
  throw new UsageError(`--shape expects ${known}${form} but got '${text}'`)
}

/** The shapes of a list: names of the table, "all" of them, or sizes. */
export function shapesOption<S>(
  value: string | undefined,
  table: Readonly<Record<string, S>>,
  usual: readonly string[],
  form: string,
  made: (sizes: number[]) => S,
): Named<S>[] {
  const names = Object.keys(table)
  const list = value === undefined ? usual : value === 'all' ? names : value.split(',')
  return list.map((text) => {
    const shape = table[text]
    return shape === undefined ? { name: '', shape: made(sizesOf(text, form, names)) } : { name: text, shape }
  })
}

/** The group sizes of a list such as "32,channel". */
export function groupsOption(value: string | undefined): GroupSize[] | undefined {
  return wordsOption(value, 'group', groupSizes)?.map(
    (text) => (Number.isNaN(Number(text)) ? text : Number(text)) as GroupSize,
  )
}
