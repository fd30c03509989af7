// Reads what `npm start -- --json` printed and holds every scheme against the checkpoint's own records, by numbers stated
// here once more: eval is not its own judge.
import fs from 'node:fs'
import path from 'node:path'

const report = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'))
const expected = JSON.parse(fs.readFileSync(path.join(report.checkpoint, 'expected.json'), 'utf8'))
/** Scheme -> how far its perplexity may be from the recorded one, as a fraction. bf16 is held against f32's. */
const limits = { f32: 0.0002, bf16: 0.003, 'int2-g64': 0.02, ternary: 0.02 }
const wanted = [
  'f32',
  'bf16',
  'int8',
  'int8-a8',
  'fp8_e4m3',
  'int4-g32',
  'int4-g64',
  'int4-g128',
  'int4-g64-a8',
  'int3-g64',
  'int2-g64',
  'ternary',
]

let passed = 0
let failed = 0
function check(what, fault) {
  if (fault === '') passed++
  else failed++
  console.log(fault === '' ? `  ok ${what}` : `  FAILED ${what}: ${fault}`)
}

for (const scheme of wanted) {
  const found = report.schemes.find((row) => row.scheme === scheme)
  if (found === undefined) {
    check(scheme, 'missing')
    continue
  }
  const record = expected[scheme] ?? expected.f32
  const off = Math.abs(found.perplexity / record - 1)
  const limit = limits[scheme] ?? 0.005
  const faults = [
    off <= limit ? '' : `perplexity ${found.perplexity} is ${(off * 100).toFixed(3)} % from ${record}`,
  ]
  for (const name of ['bitsPerWeight', 'weightBytes', 'prefillTokensPerSecond', 'decodeTokensPerSecond'])
    if (!(found[name] > 0)) faults.push(`${name} is ${found[name]}`)
  check(
    `${scheme}: perplexity ${found.perplexity?.toFixed(4)}, recorded ${record.toFixed(4)}`,
    faults.filter((fault) => fault !== '').join('; '),
  )
}
const greedy = report.schemes.find((row) => row.scheme === 'f32')?.greedyTokensEqual
check('greedy continuation under f32, token for token', greedy === true ? '' : String(greedy))
check('a sampled text', typeof report.text === 'string' && report.text.length > 20 ? '' : String(report.text))

console.log(`eval: ${passed} passed, ${failed} failed`)
process.exit(failed > 0 ? 1 : 0)
