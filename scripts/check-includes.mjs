// Who may know whom: every #include of csrc and binding and every import of lib, against the tables below.
import fs from 'node:fs'
import path from 'node:path'

process.chdir(path.join(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname), '..'))

// A room of the tree -> the rooms whose headers it may include; 'self' is its own folder. `op` is any other folder of csrc.
const rooms = {
  base: ['base'],
  format: ['format', 'base'],
  simd: ['simd', 'base'],
  cuda: ['cuda', 'base'],
  op: ['self', 'format', 'simd', 'base'],
  kernel: ['self', 'format', 'simd', 'cuda', 'base'], // files with the suffix of an ISA or of a GPU
  binding: ['binding', 'op', 'format', 'base'], // and csrc/cuda/rows.cc
}
// Of another op, its public header alone; these are shared beside it, with the reason.
const shared = new Map([
  ['csrc/attention/cache.h', 'kv fills the cache that attention reads'],
  ['csrc/attention/decode.h', 'kv reads tokens as attention does'],
  ['csrc/attention/decode_sm75.cuh', 'the same on the device'],
  ['csrc/quantize/rows.h', 'kernels that quantise x on the way round it as quantizeRows does'],
])
// System headers that one room alone may include.
const systemRules = [
  {
    header: /^(napi|node_api|js_native_api|v8|uv)/,
    allowed: (f) => f.startsWith('binding/'),
    why: 'csrc never heard of JavaScript',
  },
  {
    header: /^cuda|^mma\.h|^nv/,
    allowed: (f) => /\.cuh?$/.test(f),
    why: 'CUDA headers stay in .cu and .cuh',
  },
  { header: /intrin\.h$|^arm_/, allowed: (f) => f.startsWith('csrc/'), why: 'binding holds no intrinsics' },
  {
    header:
      /^(vector|string|map|set|unordered_\w+|deque|list|functional|memory|algorithm|array|sstream|iostream)$/,
    allowed: (f) => !isaFile.test(f) && !f.startsWith('csrc/simd/'),
    why: 'the linker may keep the AVX-512 copy of a standard template for every CPU',
  },
]
const isaFile = /_(avx\w*|neon\w*|sm\d+a?)\.(cc|cu|h|cuh)$/

const failures = []
let edges = 0
const filesUnder = (dir) => fs.readdirSync(dir, { recursive: true }).map((name) => path.join(dir, name))
const linesOf = (file) => fs.readFileSync(file, 'utf8').split('\n').entries()
const roomOf = (file) => {
  const [top, folder] = file.split('/')
  if (top !== 'csrc') return top
  return folder in rooms && folder !== 'op' ? folder : 'op'
}
const refuse = (file, line, why) => failures.push(`${file}:${line + 1}: ${why}`)

for (const file of [...filesUnder('csrc'), ...filesUnder('binding')].filter((f) =>
  /\.(cc|cuh?|h|inc)$/.test(f),
)) {
  const from = roomOf(file)
  // The list of the CUDA library's rows knows every op, as the binding does.
  const list = file === 'csrc/cuda/rows.cc'
  const room = from === 'op' && isaFile.test(file) ? 'kernel' : list ? 'binding' : from
  for (const [line, text] of linesOf(file)) {
    const [, bracket, header] = /^\s*#\s*include\s+([<"])([^>"]+)/.exec(text) ?? []
    if (header === undefined) continue
    edges++
    const rule =
      bracket === '<' ? systemRules.find((r) => r.header.test(header) && !r.allowed(file)) : undefined
    if (rule !== undefined) refuse(file, line, `<${header}>: ${rule.why}`)
    if (bracket === '<') continue
    const to = roomOf(header)
    const own = path.dirname(header) === path.dirname(file)
    const isPublic = header === `csrc/${header.split('/')[1]}/${header.split('/')[1]}.h`
    if (!fs.existsSync(header)) refuse(file, line, `"${header}": paths are given from the root of the tree`)
    else if (to === 'op' && !own && room !== 'binding' && !isPublic && !shared.has(header))
      refuse(file, line, `"${header}": an op is used through its public header alone`)
    else if (
      !own && to === 'op' ? !['op', 'kernel', 'binding'].includes(room) : !own && !rooms[room].includes(to)
    )
      refuse(file, line, `"${header}": ${room} may include ${rooms[room].join(', ')}`)
  }
}

// lib reaches the addon through lib/native.ts; checkpoint, kv, llama, bench and cli know those below them. Files of lib itself know
// checkpoint's files too, because a canonical weight is stored as one.
const above = {
  '': ['checkpoint'],
  checkpoint: ['checkpoint'],
  kv: ['kv'],
  llama: ['llama', 'checkpoint', 'kv'],
  bench: ['bench', 'llama'],
  cli: ['cli', 'llama', 'checkpoint', 'bench'],
}
for (const file of filesUnder('lib').filter((f) => f.endsWith('.ts'))) {
  const folder = file.split('/').length > 2 ? file.split('/')[1] : ''
  for (const [line, text] of linesOf(file)) {
    const target = /(?:from|import|require\()\s*\(?['"]([^'"]+)['"]/.exec(text)?.[1]
    if (target === undefined) continue
    edges++
    if (/\.node$|^node-gyp-build$/.test(target) && file !== 'lib/native.ts')
      refuse(file, line, `'${target}': lib/native.ts alone loads the addon`)
    if (!target.startsWith('.')) continue
    const [top, sub, ...rest] = path.join(path.dirname(file), target).split('/')
    if (top !== 'lib' && sub !== undefined)
      refuse(file, line, `'${target}': lib knows nothing outside of lib`)
    else if (rest.length > 0 && sub !== folder && file !== 'lib/index.ts' && !above[folder]?.includes(sub))
      refuse(file, line, `'${target}': ${folder || 'an op'} may not know ${sub}`)
    else if (sub === 'native' && ['llama', 'checkpoint'].includes(folder))
      refuse(file, line, `'${target}': ${folder} is written with the public API alone`)
  }
}

for (const failure of failures) console.error(failure)
console.log(`include and import edges: ${edges} checked, ${failures.length} forbidden`)
process.exit(failures.length > 0 ? 1 : 0)
