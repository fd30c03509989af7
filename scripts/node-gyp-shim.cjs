#!/usr/bin/env node
// What prebuildify runs as `node-gyp rebuild --target=... --arch=...`: builds the addon with cmake-js, as every other
// command here does, and lays it where prebuildify looks. The target is of no account, for the addon speaks Node-API.
'use strict'
const { spawnSync } = require('node:child_process')
const fs = require('node:fs')
const path = require('node:path')

const root = path.join(__dirname, '..')
const arch = process.argv.find((arg) => arg.startsWith('--arch='))?.slice('--arch='.length)
if (arch !== undefined && arch !== process.arch) {
  console.error(`node-gyp-shim: asked for ${arch}, but this machine builds for ${process.arch} alone`)
  process.exit(1)
}
const { status } = spawnSync(process.execPath, [path.join(root, 'scripts', 'build.cjs')], {
  stdio: 'inherit',
})
if (status !== 0) process.exit(1)

// prebuildify moves the .node away and strips what it finds: it works on copies, in its own folder.
const built = path.join(root, 'build', 'Release')
const out = path.join('build', 'Release')
fs.rmSync(out, { recursive: true, force: true })
fs.mkdirSync(out, { recursive: true })
for (const name of fs.readdirSync(built)) {
  if (/\.(node|so)$/.test(name)) fs.copyFileSync(path.join(built, name), path.join(out, name))
}
