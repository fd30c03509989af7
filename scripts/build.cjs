// Builds what is missing or stale: the addon (cmake-js, incremental), dist (tsc) and, with --tests, the compiled tests.
// A stamp over names, sizes and times of the sources lets an up-to-date tree pass in a fraction of a second.
//
// Settings, as variables: LB_CUDA (AUTO, ON, OFF), LB_CUDA_ARCHS, LB_SANITIZE (address,undefined and the like) and
// LB_BUILD, the folder of the addon where it is not build: one for each set of settings keeps them from undoing another.
'use strict'
const { spawn, spawnSync } = require('node:child_process')
const crypto = require('node:crypto')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')

const root = path.join(__dirname, '..')
process.chdir(root)

const folder = process.env.LB_BUILD || 'build'
const settings = {
  LB_CUDA: process.env.LB_CUDA || 'AUTO',
  LB_CUDA_ARCHS: process.env.LB_CUDA_ARCHS || '',
  LB_SANITIZE: process.env.LB_SANITIZE || '',
}

function say(text) {
  process.stderr.write(`lowbit: ${text}\n`)
}

function give_up(text) {
  say(text)
  process.exit(1)
}

function on_path(program) {
  return (process.env.PATH ?? '')
    .split(path.delimiter)
    .map((dir) => path.join(dir, program))
    .find((file) => fs.existsSync(file))
}

/** The script that a dependency's command runs, or undefined where it is not installed. */
function command_of(name, command = name) {
  try {
    const manifest = require.resolve(`${name}/package.json`, { paths: [root, process.cwd()] })
    const entry = require(manifest).bin
    return path.join(path.dirname(manifest), typeof entry === 'string' ? entry : entry[command])
  } catch {
    return undefined
  }
}

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

async function step(name, place, outputs, inputs, extra, build) {
  const file = path.join(place, `.${name}.stamp`)
  const now = stamp(inputs, extra)
  const before = fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : ''
  if (before === now && outputs.every((output) => fs.existsSync(output))) return
  say(`building ${name}`)
  await build()
  fs.mkdirSync(place, { recursive: true })
  fs.writeFileSync(file, now)
}

// ---- the addon -----------------------------------------------------------------------------------------------------

/** Runs cmake-js. On a terminal one line follows the compiler; what it printed is shown only if it failed. */
function cmake_js(tool, args) {
  return new Promise((resolve) => {
    const env = { CMAKE_BUILD_PARALLEL_LEVEL: String(os.availableParallelism()), ...process.env }
    const child = spawn(process.execPath, [tool, ...args, '--out', folder], {
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let output = ''
    const read = (chunk) => {
      output += chunk
      const at = /\[ *(\d+(?:\/\d+|%))\] [^\n]*\n?$/.exec(String(chunk))
      if (at !== null && process.stderr.isTTY) process.stderr.write(`\rlowbit: building addon ${at[1]}\x1b[K`)
    }
    child.stdout.on('data', read)
    child.stderr.on('data', read)
    child.on('close', (status) => {
      if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
      resolve({ status, lines: output.split('\n') })
    })
  })
}

/** What the compiler, the linker or CMake said, without what cmake-js and ninja say on every run. */
function complaint(lines) {
  const noise =
    /^(-- |INFO |ERROR OMG|\[\d+\/\d+\]|\[ *\d+%\]|ninja: |gmake|make\[|RUN \[|Not searching| {2}'|\]$|\/\S+ -D)/
  const kept = lines.filter((line) => line.trim() !== '' && !noise.test(line))
  return (kept.length > 0 ? kept : lines).slice(0, 200).join('\n')
}

async function addon() {
  const tool = command_of('cmake-js')
  if (tool === undefined)
    give_up('cmake-js is not installed; run `npm ci` first (in a project that has lowbit: `npm i cmake-js`)')
  if (on_path('cmake') === undefined)
    give_up('CMake was not found; install CMake 3.20 or newer and a C++20 compiler')
  // A folder that was configured for something else starts afresh: CMake keeps the compilers it found, or did not find.
  const key = JSON.stringify({
    root,
    ...settings,
    nvcc: on_path('nvcc'),
    cudacxx: process.env.CUDACXX,
    cxx: process.env.CXX,
  })
  const file = path.join(folder, '.configured')
  if (!fs.existsSync(file) || fs.readFileSync(file, 'utf8') !== key) {
    fs.rmSync(folder, { recursive: true, force: true })
    const options = Object.entries(settings)
      .filter(([, value]) => value !== '')
      .map(([name, value]) => `--CD${name}=${value}`)
    const { status, lines } = await cmake_js(tool, ['configure', ...options])
    if (status !== 0) give_up(`CMake could not configure the build:\n${complaint(lines)}`)
    for (const line of lines) {
      if (line.startsWith('-- lowbit: ')) say(line.slice('-- lowbit: '.length))
    }
    fs.writeFileSync(file, key)
  }
  const { status, lines } = await cmake_js(tool, ['build'])
  if (status !== 0) give_up(`the addon does not compile:\n${complaint(lines)}`)
  for (const line of lines) {
    if (line.includes('warning:')) process.stderr.write(`${line}\n`)
  }
}

// ---- JavaScript ----------------------------------------------------------------------------------------------------

function tsc(project) {
  const tool = command_of('typescript', 'tsc')
  if (tool === undefined) give_up('TypeScript is not installed; run `npm ci` first')
  const result = spawnSync(process.execPath, [tool, '-p', project], { encoding: 'utf8' })
  if (result.status !== 0) give_up(`tsc -p ${project} failed:\n${result.stdout}${result.stderr}`)
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

async function main() {
  await step(
    'addon',
    folder,
    [path.join(folder, 'Release', 'lowbit.node')],
    ['CMakeLists.txt', 'csrc', 'binding', 'package-lock.json'],
    JSON.stringify([settings, on_path('nvcc'), process.env.CUDACXX, process.env.CXX]),
    addon,
  )
  if (!fs.existsSync('lib')) return // an installed package: its dist came with it
  await step(
    'dist',
    'build',
    ['dist/index.js', 'dist/index.mjs'],
    ['lib', 'tsconfig.json', __filename],
    '',
    () => {
      fs.rmSync('dist', { recursive: true, force: true })
      tsc('tsconfig.json')
      face()
    },
  )
  if (process.argv.includes('--tests')) {
    await step('tests', 'build', ['build/test/test'], ['lib', 'test', 'bench'], '', () => {
      fs.rmSync('build/test', { recursive: true, force: true })
      tsc('test/tsconfig.json')
    })
  }
}

main()
