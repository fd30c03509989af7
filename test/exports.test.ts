// What dist/index.d.ts exports is documented: each name where it is declared, and each of its members. Names that say all
// there is to say of themselves (`shape`, `dispose`) are no exception: an editor shows the text, not the source.
import fs from 'node:fs'
import path from 'node:path'
import * as lowbit from 'lowbit'

const dist = path.join(__dirname, '..', '..', '..', 'dist')
const read = (file: string) => fs.readFileSync(path.join(dist, `${file}.d.ts`), 'utf8')

/** Name -> file that declares it, from `export { a, type B } from './c'`. */
function exported(): Map<string, string> {
  const found = new Map<string, string>()
  for (const [, names, file] of read('index').matchAll(/export (?:type )?\{([^}]*)\} from '\.\/([^']*)'/g)) {
    for (const name of (names as string).split(','))
      found.set(name.replace(/^\s*type\s/, '').trim(), file as string)
  }
  found.delete('')
  return found
}

const lines = (text: string) => text.split('\n')
/** Whether a comment of its own ends right above a line. */
const documented = (text: readonly string[], line: number) => /\*\/\s*$/.test(text[line - 1] ?? '')

/** Lines that declare a name: functions may have several, of which one must be documented. */
function declarations(text: readonly string[], name: string): number[] {
  const declares = new RegExp(
    `^export (declare )?(abstract )?(class|function|interface|type|const) ${name}\\b`,
  )
  return text.flatMap((line, i) => (declares.test(line) ? [i] : []))
}

/** Lines of the members between the braces of a class or interface. */
function members(text: readonly string[], from: number): number[] {
  if (!/(class|interface) /.test(text[from] ?? '')) return []
  const found: number[] = []
  for (let i = from + 1; text[i] !== '}' && i < text.length; i++) {
    const line = text[i] as string
    if (/^ {4}[\w[]/.test(line) && !/^ {4}(private|#|\[Symbol\.dispose\])/.test(line)) found.push(i)
  }
  return found
}

const names = exported()

test('the exports are those that the package has at run time, and types', () => {
  expect(names.size).toBeGreaterThan(60)
  for (const name of Object.keys(lowbit)) expect([...names.keys()]).toContain(name)
})

test.each([...names])('%s is documented', (name, file) => {
  const text = lines(read(file))
  const places = declarations(text, name)
  expect([name, places.length]).not.toEqual([name, 0])
  expect([name, places.some((line) => documented(text, line))]).toEqual([name, true])
  const seen = new Set<string>()
  const bare = members(text, places[0] as number).flatMap((line) => {
    const member = (text[line] as string).trim()
    const own = /^(?:readonly |static |get |set )*([\w[\]]+)/.exec(member)?.[1] ?? member
    if (documented(text, line)) seen.add(own)
    return seen.has(own) ? [] : [member]
  })
  expect([name, bare]).toEqual([name, []])
})
