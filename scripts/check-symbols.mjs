// What the object files of the build may define and how they were compiled, and what the two libraries export.
//
// An object with ISA flags defines its kernel rows and nothing else that another file could see: of a weak symbol (an
// inline or template function, an inline variable) the linker keeps one copy for the whole program, and that may be the
// AVX-512 one. It has no static constructors, because those run before the CPU was asked what it can do. Every other
// object is compiled without ISA flags.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'

process.chdir(path.join(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname), '..'))

const folder = process.env.LB_BUILD || 'build'
const commandsFile = path.join(folder, 'compile_commands.json')
if (!fs.existsSync(commandsFile)) {
  console.error(`${commandsFile} is missing; run \`npm run build\` first`)
  process.exit(1)
}

const failures = []
function tool(...command) {
  const { status, stdout, stderr, error } = spawnSync(command[0], command.slice(1), { encoding: 'utf8' })
  if (status === 0) return stdout.split('\n').filter((line) => line !== '')
  console.error(`${command.join(' ')}: ${error?.message ?? stderr}`)
  process.exit(1)
}

const rows = new Set()
for (const op of fs.readdirSync('csrc')) {
  const registry = path.join('csrc', op, 'kernels.inc')
  if (!fs.existsSync(registry)) continue
  for (const [, name] of fs.readFileSync(registry, 'utf8').matchAll(/^KERNEL\((\w+)\)/gm)) rows.add(name)
}

let objects = 0
let exported = 0
for (const { file, command } of JSON.parse(fs.readFileSync(commandsFile, 'utf8'))) {
  if (!file.endsWith('.cc')) continue
  objects++
  const name = path.relative('.', file)
  const flags = command
    .split(' ')
    .filter((flag) => /^-(m(arch|tune|cpu|avx|amx|fma|f16c|sse)|flto)/.test(flag))
  if (!/_(avx\w*|amx|neon\w*)\.cc$/.test(file)) {
    if (flags.length > 0)
      failures.push(`${name}: compiled with ${flags.join(' ')}, and no ISA stands in its name`)
    continue
  }
  const object = path.join(folder, / -o (\S+)/.exec(command)[1])
  for (const line of tool('nm', '-C', '--defined-only', '--extern-only', object)) {
    const [, kind, symbol] = /^\S+ (\S) (.*)$/.exec(line)
    if (/[WwVvu]/.test(kind)) failures.push(`${name}: weak symbol ${symbol}`)
    else if (rows.has(symbol.replace(/^lowbit::/, ''))) exported++
    else failures.push(`${name}: defines ${symbol}, which is no kernel row`)
  }
  if (tool('readelf', '--sections', '--wide', object).some((line) => / \.(init_array|ctors)/.test(line)))
    failures.push(`${name}: has a static constructor`)
}

const faces = {
  'lowbit.node': ['napi_register_module_v1', 'node_api_module_get_api_version_v1'],
  'liblowbit_cuda.so': ['lowbit_cuda_api'],
}
for (const [library, expected] of Object.entries(faces)) {
  const file = path.join(folder, 'Release', library)
  if (!fs.existsSync(file)) continue
  const found = tool('nm', '-D', '-C', '--defined-only', file).map((line) => line.replace(/^\S+ \S /, ''))
  for (const symbol of found.filter((s) => !expected.includes(s)))
    failures.push(`${library}: exports ${symbol}`)
  for (const symbol of expected.filter((s) => !found.includes(s)))
    failures.push(`${library}: lacks ${symbol}`)
}

for (const failure of failures) console.error(failure)
console.log(`symbols: ${objects} objects, ${exported} rows in ISA objects, ${failures.length} faults`)
process.exit(failures.length > 0 ? 1 : 0)
