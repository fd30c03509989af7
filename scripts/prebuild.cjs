// prebuilds/<platform>-<arch>: the addon, tagged with its libc, and liblowbit_cuda.so beside it where nvcc is. These are
// what the package carries, so that nobody who installs it compiles anything.
'use strict'
const fs = require('node:fs')
const path = require('node:path')
const prebuildify = require('prebuildify')

const root = path.join(__dirname, '..')
const folder = path.join(root, 'prebuilds', `${process.platform}-${process.arch}`)
const work = path.join(root, 'build', 'prebuild')

fs.rmSync(folder, { recursive: true, force: true })
fs.mkdirSync(work, { recursive: true })
delete process.env.LB_BUILD
delete process.env.LB_SANITIZE
const options = {
  name: 'lowbit',
  napi: true,
  strip: true,
  tagLibc: true,
  cwd: work,
  out: root,
  targets: [`node@${process.versions.node}`], // a word that prebuildify insists on
  nodeGyp: path.join(__dirname, 'node-gyp-shim.cjs'),
}
prebuildify(options, (error) => {
  if (error) {
    console.error(`prebuild: ${error.message}`)
    process.exit(1)
  }
  for (const name of fs.readdirSync(folder).sort()) {
    const { size } = fs.statSync(path.join(folder, name))
    console.log(`${path.relative(root, path.join(folder, name))}  ${(size / 1e6).toFixed(2)} MB`)
  }
})
