// clang-format over the C++ of the tree: a check, or with --write the formatting. Versions of clang-format differ in what
// they write, so one is used: 14, as Debian 12 has it. Where it is absent the check is skipped, unless --require is given.
'use strict'
const { spawnSync } = require('node:child_process')
const fs = require('node:fs')
const path = require('node:path')

process.chdir(path.join(__dirname, '..'))
const version = 14
const tool = [`clang-format-${version}`, 'clang-format'].find((name) => {
  const { stdout } = spawnSync(name, ['--version'], { encoding: 'utf8' })
  return new RegExp(`version ${version}\\.`).test(stdout ?? '')
})
if (tool === undefined) {
  const required = process.argv.includes('--require')
  console.error(
    `format: clang-format ${version} was not found (Debian: apt-get install clang-format-${version}); C++ is not checked`,
  )
  process.exit(required ? 1 : 0)
}

const files = ['csrc', 'binding', 'test/fake']
  .flatMap((dir) => fs.readdirSync(dir, { recursive: true }).map((name) => path.join(dir, name)))
  .filter((file) => /\.(cc|h|cu|cuh|c)$/.test(file))
const mode = process.argv.includes('--write') ? ['-i'] : ['--dry-run', '-Werror']
const { status, stderr } = spawnSync(tool, ['--style=file', ...mode, ...files], { encoding: 'utf8' })
if (status !== 0) {
  const faults = new Set([...stderr.matchAll(/^(\S+?):\d+:\d+: error/gm)].map((match) => match[1]))
  console.error(
    `format: not as clang-format ${version} writes it: ${[...faults].join(', ') || stderr}; run \`npm run format\``,
  )
} else {
  console.log(`format: ${files.length} files of C++ in order`)
}
process.exit(status === 0 ? 0 : 1)
