// The README's TypeScript examples run as they stand.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

const root = path.join(__dirname, '..', '..', '..')
const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8')
const examples = [...readme.matchAll(/```ts\n([\s\S]*?)```/g)].map((match) => match[1] ?? '')

test('there is an example', () => {
  expect(examples.length).toBeGreaterThanOrEqual(1)
})

test.each(examples.map((source, i) => [i + 1, source] as const))('example %i runs', (_, source) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lowbit-readme-'))
  fs.mkdirSync(path.join(folder, 'node_modules'))
  fs.symlinkSync(root, path.join(folder, 'node_modules', 'lowbit'))
  fs.symlinkSync(path.join(root, 'test'), path.join(folder, 'test'))
  const file = path.join(folder, 'example.mjs')
  fs.writeFileSync(file, source)
  const result = spawnSync(process.execPath, [file], { encoding: 'utf8', cwd: folder, timeout: 60_000 })
  fs.rmSync(folder, { recursive: true })
  expect(result.stderr).toBe('')
  expect(result.status).toBe(0)
  expect(result.stdout).not.toBe('')
})
