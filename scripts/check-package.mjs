// Tries the package as a stranger meets it: packs it, installs the tarball into an empty project outside of the tree,
// runs README's first example there as an ES module and as CommonJS, compiles it as TypeScript under each way of module
// resolution, and holds the tarball, its exports and its binaries against what they promise. Needs `npm run prebuild`.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

const root = path.join(path.dirname(new URL(import.meta.url).pathname), '..')
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'lowbit-package-'))
process.on('exit', () => fs.rmSync(work, { recursive: true, force: true }))

const glibcFloor = 2.34 // of Debian 12, RHEL 9 and Ubuntu 22.04; README promises it
const exported = {
  'lowbit.glibc.node': ['napi_register_module_v1', 'node_api_module_get_api_version_v1'],
  'liblowbit_cuda.so': ['lowbit_cuda_api'],
}
const needed = /^(libc|libm|libdl|libpthread|librt|libgcc_s|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d$/

let passed = 0
let failed = 0
function check(what, fault) {
  if (fault === undefined || fault === '') passed++
  else failed++
  console.log(fault ? `  FAILED ${what}: ${fault}` : `  ok ${what}`)
}

/** Runs a command; its output, or the fault. */
function run(command, args, cwd, env = {}) {
  const variables = { ...process.env, PREBUILDS_ONLY: '1', ...env }
  delete variables.LB_ADDON
  const child = spawnSync(command, args, { cwd, env: variables, encoding: 'utf8' })
  const fault =
    child.status === 0
      ? undefined
      : `${child.error?.message ?? ''}${child.stdout}${child.stderr}`.trim() || 'no exit status'
  return { stdout: child.stdout ?? '', fault }
}
const tool = (name) => path.join(root, 'node_modules', '.bin', name)

// ---- the tarball
const pack = run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', work], root)
if (pack.fault) {
  console.error(pack.fault)
  process.exit(1)
}
const [{ filename, size, unpackedSize, files }] = JSON.parse(pack.stdout)
const tarball = path.join(work, filename)
const names = files.map((file) => file.path)
console.log(
  `${filename}: ${(size / 1e6).toFixed(2)} MB packed, ${(unpackedSize / 1e6).toFixed(2)} MB unpacked, ${names.length} files`,
)
const platform = `prebuilds/${process.platform}-${process.arch}`
for (const name of [
  'dist/index.js',
  'dist/index.mjs',
  'dist/index.d.ts',
  'dist/index.d.mts',
  'README.md',
  'LICENSE',
])
  check(`carries ${name}`, names.includes(name) ? '' : 'missing')
check(
  `carries ${platform}/lowbit.glibc.node`,
  names.includes(`${platform}/lowbit.glibc.node`) ? '' : 'missing; run `npm run prebuild`',
)
const strangers = names.filter(
  (name) =>
    /^(test|bench|build|node_modules|\.)|\.(ts|o|gguf|safetensors)$/.test(name) && !/\.d\.m?ts$/.test(name),
)
check('carries nothing of the workshop', strangers.join(', '))
const scripts = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')).scripts
check(
  'has no install script',
  Object.keys(scripts)
    .filter((name) => /install/.test(name))
    .join(', ') || (names.includes('binding.gyp') ? 'binding.gyp' : ''),
)

// ---- publint and attw
check('publint', run(tool('publint'), [tarball, '--strict'], root).fault)
check('attw', run(tool('attw'), [tarball, '--no-emoji', '--no-color'], root).fault)

// ---- installed into an empty project
const project = path.join(work, 'project')
fs.mkdirSync(project)
fs.writeFileSync(path.join(project, 'package.json'), '{ "name": "stranger", "private": true }\n')
const install = run(
  'npm',
  ['install', tarball, '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline'],
  project,
)
check('npm install of the tarball, scripts off', install.fault)
const installed = fs.readdirSync(path.join(project, 'node_modules')).filter((name) => !name.startsWith('.'))
check(
  'brings itself and two dependencies',
  installed.sort().join(' ') === '@huggingface lowbit node-gyp-build' ? '' : installed.join(' '),
)

const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8')
const example = /```ts\n(.*?)```/s.exec(readme)?.[1]
if (example === undefined) check("README's first example", 'README.md has no block marked ts')
else {
  const [imports, rest] = [example.match(/^import .*\n/gm).join(''), example.replace(/^import .*\n/gm, '')]
  const asRequire = imports.replace(/^import (\{[^}]*\}) from ('[^']*').*$/gm, 'const $1 = require($2)')
  fs.writeFileSync(path.join(project, 'example.mjs'), example)
  fs.writeFileSync(
    path.join(project, 'example.cjs'),
    `${asRequire}async function main() {\n${rest}}\nmain()\n`,
  )
  fs.writeFileSync(path.join(project, 'example.mts'), example)
  fs.writeFileSync(path.join(project, 'example.cts'), `${imports}async function main() {\n${rest}}\nmain()\n`)
  const [esm, cjs] = ['example.mjs', 'example.cjs'].map((name) => run(process.execPath, [name], project))
  check("README's first example as an ES module", esm.fault)
  check("README's first example as CommonJS", cjs.fault)
  check(
    'both print the same',
    esm.stdout === cjs.stdout && esm.stdout !== '' ? '' : `${esm.stdout} and ${cjs.stdout}`,
  )

  // Types as a project has them that checks its dependencies' declarations too.
  fs.cpSync(path.join(root, 'node_modules/@types/node'), path.join(project, 'node_modules/@types/node'), {
    recursive: true,
  })
  fs.cpSync(path.join(root, 'node_modules/undici-types'), path.join(project, 'node_modules/undici-types'), {
    recursive: true,
  })
  const common = ['--noEmit', '--strict', '--target', 'es2022', '--types', 'node', '--skipLibCheck', 'false']
  const ways = [
    ['node16', ['--module', 'node16', '--moduleResolution', 'node16'], ['example.mts', 'example.cts']],
    ['bundler', ['--module', 'esnext', '--moduleResolution', 'bundler'], ['example.mts']],
  ]
  for (const [way, options, sources] of ways)
    check(
      `types under moduleResolution ${way}`,
      run(tool('tsc'), [...common, ...options, ...sources], project).fault,
    )
}

const lowbit = path.join(project, 'node_modules', '.bin', 'lowbit')
const version = run(lowbit, ['--version'], project)
check(
  'lowbit --version',
  version.fault ??
    (version.stdout.trim() === JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')).version
      ? ''
      : version.stdout),
)
const doctor = run(lowbit, ['doctor', '--json'], project)
check(
  'lowbit doctor',
  doctor.fault ?? (JSON.parse(doctor.stdout).addon.file.includes('/prebuilds/') ? '' : doctor.stdout),
)
const sameObject = `import('lowbit').then((m) => process.exit(m.Tensor === undefined || m.openDevice === require('lowbit').openDevice ? 0 : 1))`
check('import and require give the same objects', run(process.execPath, ['-e', sameObject], project).fault)

// ---- the binaries
const binaries = path.join(project, 'node_modules', 'lowbit', platform)
for (const name of fs.existsSync(binaries) ? fs.readdirSync(binaries).sort() : []) {
  const file = path.join(binaries, name)
  const symbols = run('objdump', ['-T', file], project)
  check(`objdump of ${name}`, symbols.fault)
  const versions = [...symbols.stdout.matchAll(/\(?GLIBC_(\d+)\.(\d+)/g)].map(
    (m) => Number(m[1]) + Number(m[2]) / 100,
  )
  const floor = Math.max(...versions)
  console.log(
    `  ${name}: ${(fs.statSync(file).size / 1e6).toFixed(2)} MB, asks for glibc ${floor.toFixed(2)}`,
  )
  check(`${name} runs on glibc ${glibcFloor}`, floor <= glibcFloor ? '' : `asks for ${floor}`)
  check(
    `${name} brings its libstdc++`,
    /GLIBCXX_|CXXABI_/.test(symbols.stdout) ? 'asks for the system’s' : '',
  )
  const libraries = [...run('objdump', ['-p', file], project).stdout.matchAll(/NEEDED\s+(\S+)/g)].map(
    (m) => m[1],
  )
  check(`${name} needs glibc alone`, libraries.filter((library) => !needed.test(library)).join(', '))
  const defined = run('nm', ['-D', '--defined-only', file], project).stdout.split('\n').filter(Boolean)
  const found = defined
    .map((line) => line.split(' ').at(-1))
    .sort()
    .join(' ')
  check(`${name} exports what it should`, found === exported[name]?.join(' ') ? '' : found)
}

console.log(`package: ${passed} passed, ${failed} failed`)
process.exit(failed > 0 ? 1 : 0)
