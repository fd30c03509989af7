// Builds what is missing or stale: the addon (cmake-js, incremental), dist (tsc) and, with --tests, the compiled tests.
// A stamp over names, sizes and times of the sources lets an up-to-date tree pass in a fraction of a second.
// Settings: LB_CUDA (AUTO, ON, OFF), LB_CUDA_ARCHS, LB_SANITIZE (address,undefined), LB_BUILD (another build folder).
'use strict'
const { spawnSync } = require('node:child_process')
const crypto = require('node:crypto')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')

const root = path.join(__dirname, '..')
process.chdir(root)

function stamp(inputs, extra) {
  const hash = crypto.createHash('sha256').update(extra)
  const visit = (entry) => {
    const stat = fs.statSync(entry, { throwIfNoEntry: false })
    if (stat?.isDirectory()) {
      for (const name of fs.readdirSync(entry).sort()) visit(path.join(entry, name))
    } else if (stat) {
      hash.update(`${entry} ${stat.size} ${stat.mtimeMs}\n`)
    }
  }
  inputs.forEach(visit)
  return hash.digest('hex')
}

function step(name, outputs, inputs, extra, build) {
  const file = path.join('build', `.${name}.stamp`)
  const now = stamp(inputs, extra)
  const before = fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : ''
  if (before === now && outputs.every((output) => fs.existsSync(output))) return
  console.error(`lowbit: building ${name}`)
  build()
  fs.mkdirSync('build', { recursive: true })
  fs.writeFileSync(file, now)
}

function fail(what, result) {
  if (result.stdout) process.stderr.write(result.stdout)
  if (result.stderr) process.stderr.write(result.stderr)
  if (result.error) console.error(`lowbit: ${result.error.message}`)
  console.error(`lowbit: ${what} failed`)
  process.exit(result.status || 1)
}

function bin(name, command = name) {
  const manifest = require.resolve(`${name}/package.json`, { paths: [root] })
  const entry = require(manifest).bin
  return path.join(path.dirname(manifest), typeof entry === 'string' ? entry : entry[command])
}

const sanitize = process.env.LB_SANITIZE ?? ''
const cuda = process.env.LB_CUDA ?? 'AUTO'
const archs = process.env.LB_CUDA_ARCHS ?? ''
const folder = process.env.LB_BUILD ?? 'build'

function addon() {
  const args = ['compile', '--out', folder, `--CDLB_CUDA=${cuda}`, `--CDLB_SANITIZE=${sanitize}`]
  if (archs) args.push(`--CDLB_CUDA_ARCHS=${archs}`)
  const env = { CMAKE_BUILD_PARALLEL_LEVEL: String(os.availableParallelism()), ...process.env }
  const result = spawnSync(process.execPath, [bin('cmake-js'), ...args], { encoding: 'utf8', env })
  if (result.status !== 0) fail('the build of the addon', result)
  for (const line of `${result.stdout}\n${result.stderr}`.split('\n')) {
    if (line.startsWith('-- lowbit: ')) console.error(line.slice(3))
    if (/warning:/.test(line)) console.error(line)
  }
}

function tsc(project) {
  const result = spawnSync(process.execPath, [bin('typescript', 'tsc'), '-p', project], { encoding: 'utf8' })
  if (result.status !== 0) fail(`tsc -p ${project}`, result)
}

// The ES module face: the same objects that `require` gives, by name.
function face() {
  const source = fs.readFileSync('dist/index.js', 'utf8')
  const names = [...source.matchAll(/^Object\.defineProperty\(exports, "(\w+)"|^exports\.(\w+) = /gm)]
    .map((match) => match[1] ?? match[2])
    .filter((name) => name !== '__esModule')
  const lines = [...new Set(names)].sort().map((name) => `export const ${name} = lowbit.${name}`)
  fs.writeFileSync('dist/index.mjs', `import lowbit from './index.js'\n\n${lines.join('\n')}\n`)
  fs.writeFileSync('dist/index.d.mts', "export * from './index.js'\n")
  fs.chmodSync('dist/cli/main.js', 0o755)
}

const nvcc = (process.env.PATH ?? '')
  .split(path.delimiter)
  .some((dir) => fs.existsSync(path.join(dir, 'nvcc')))
step(
  folder === 'build' ? 'addon' : path.basename(folder),
  [path.join(folder, 'Release', 'lowbit.node')],
  ['CMakeLists.txt', 'csrc', 'binding', 'package-lock.json'],
  [process.version, sanitize, cuda, archs, nvcc].join(' '),
  addon,
)
step(
  'dist',
  ['dist/index.js', 'dist/index.mjs'],
  ['lib', 'tsconfig.json', 'scripts/build.cjs'],
  process.version,
  () => {
    fs.rmSync('dist', { recursive: true, force: true })
    tsc('tsconfig.json')
    face()
  },
)
if (process.argv.includes('--tests')) {
  step('tests', ['build/test/test'], ['lib', 'test', 'bench'], process.version, () => {
    fs.rmSync('build/test', { recursive: true, force: true })
    tsc('test/tsconfig.json')
  })
}
