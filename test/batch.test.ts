// Batch: whatever runs beside a request, its tokens are those of a session of its own.
import * as fs from 'node:fs'
import * as os from 'node:os'
import { join } from 'node:path'
import { Batch, type Device, Llama, type RequestOptions } from 'lowbit'
import { schemeOf } from 'lowbit/llama/scheme'
import { openTest } from './ref/device'
import { Random } from './ref/random'
import { rejection } from './ref/refusal'

const small = join(process.cwd(), 'test/checkpoints/small')
const { heldout_tokens: text, prompt_tokens: prompt } = JSON.parse(
  fs.readFileSync(join(small, 'reference.json'), 'utf8'),
) as { heldout_tokens: number[]; prompt_tokens: number[] }

let device: Device
let model: Llama
beforeAll(async () => {
  device = openTest()
  model = await Llama.load(small, { device, scheme: schemeOf('f32') })
})
afterAll(() => {
  model.dispose()
  device.close()
})

async function tokensOf(from: AsyncIterable<{ token: number }>): Promise<number[]> {
  const out: number[] = []
  for await (const { token } of from) out.push(token)
  return out
}

// Prompts of many lengths, and what each is to make.
const requests = Array.from({ length: 14 }, (_, i) => {
  const random = new Random(i)
  const begin = random.int(0, 20000)
  const length = i % 5 === 0 ? 1 : random.int(2, 90)
  return { tokens: text.slice(begin, begin + length), maxTokens: random.int(1, 30) }
})
const alone: number[][] = []
async function expected(): Promise<number[][]> {
  if (alone.length === 0)
    for (const { tokens, maxTokens } of requests)
      alone.push(await tokensOf(model.generate(tokens, { maxTokens })))
  return alone
}

describe('the tokens are those of sessions', () => {
  test.each([
    ['all at once', { sequences: 16 }],
    ['more requests than may run', { sequences: 3, chunk: 16, pageSize: 8 }],
    ['prompts in small pieces beside the tokens of others', { sequences: 8, chunk: 8, pageSize: 16 }],
    ['too few pages: the youngest give theirs back', { sequences: 8, chunk: 32, pageSize: 8, pages: 17 }],
    ['one after the other', { sequences: 1, length: 128 }],
    ['first tokens in a prefix', { sequences: 6, chunk: 24, pageSize: 8, prefixTokens: 12 }],
  ])('%s', async (_, options) => {
    using batch = new Batch(model, options)
    const total = batch.freePages
    const found = await Promise.all(
      requests.map(({ tokens, maxTokens }) => tokensOf(batch.add(tokens, { maxTokens }))),
    )
    expect(found).toEqual(await expected())
    expect([batch.active, batch.queued, batch.freePages]).toEqual([0, 0, total])
  })

  test('requests that come while others run, and some that leave early', async () => {
    using batch = new Batch(model, { sequences: 4, chunk: 16, pageSize: 8, pages: 30 })
    const random = new Random(5)
    const all = await expected()
    await Promise.all(
      requests.map(async ({ tokens, maxTokens }, i) => {
        for (let turns = random.int(0, 40); turns > 0; turns--) await device.sync()
        const found: number[] = []
        for await (const { token } of batch.add(tokens, { maxTokens })) {
          found.push(token)
          if (i % 4 === 3 && found.length === 2) break
        }
        expect(found).toEqual(i % 4 === 3 ? all[i]?.slice(0, 2) : all[i])
      }),
    )
    expect([batch.active, batch.freePages]).toEqual([0, 30])
  })

  test('texts that end while the step after is already queued', async () => {
    // The same weights with another end of text: a token that several of the texts make in their middle.
    const counts = new Map<number, number>()
    for (const tokens of await expected())
      for (const token of new Set(tokens.slice(1, -1))) counts.set(token, (counts.get(token) ?? 0) + 1)
    const [eos, many] = [...counts].reduce((best, one) => (one[1] > best[1] ? one : best))
    expect(many).toBeGreaterThanOrEqual(3)
    const folder = fs.mkdtempSync(join(os.tmpdir(), 'lowbit-batch-'))
    for (const name of fs.readdirSync(small)) fs.symlinkSync(join(small, name), join(folder, name))
    for (const name of ['config.json', 'generation_config.json']) {
      const file = join(folder, name)
      if (!fs.existsSync(file)) continue
      const json = JSON.parse(fs.readFileSync(file, 'utf8'))
      fs.rmSync(file)
      fs.writeFileSync(file, JSON.stringify({ ...json, eos_token_id: eos }))
    }
    using other = await Llama.load(folder, { device, scheme: schemeOf('f32') })
    fs.rmSync(folder, { recursive: true })
    let short = 0
    const want: number[][] = []
    for (const { tokens, maxTokens } of requests) {
      want.push(await tokensOf(other.generate(tokens, { maxTokens })))
      if (want.at(-1)?.at(-1) === eos && (want.at(-1)?.length ?? 0) < maxTokens) short++
    }
    expect(short).toBeGreaterThanOrEqual(3)
    for (const sequences of [1, 4, 14]) {
      using batch = new Batch(other, { sequences, pageSize: 8 })
      const total = batch.freePages
      const found = requests.map(({ tokens, maxTokens }) => tokensOf(batch.add(tokens, { maxTokens })))
      expect(await Promise.all(found)).toEqual(want)
      await device.sync()
      expect([batch.active, batch.queued, batch.freePages]).toEqual([0, 0, total])
    }
  })

  test('sampled, each with a seed of its own, beside greedy ones', async () => {
    using batch = new Batch(model, { sequences: 4, chunk: 16 })
    const options: RequestOptions[] = [
      { temperature: 0.9, topP: 0.9, seed: 1 },
      { temperature: 1.1, topK: 20, seed: 2 },
      {},
      { temperature: 0.9, topP: 0.9, seed: 3 },
    ]
    const each = options.map((one) => ({ ...one, maxTokens: 12 }))
    const found = await Promise.all(each.map((one) => tokensOf(batch.add(prompt, one))))
    for (const [i, one] of each.entries())
      expect(found[i]).toEqual(await tokensOf(model.generate(prompt, one)))
    expect(found[0]).not.toEqual(found[3])
  })

  test('text: whole characters, the same as generate', async () => {
    using batch = new Batch(model, { sequences: 2 })
    let found = ''
    for await (const piece of batch.add('def fibonacci(n):', { maxTokens: 40 })) found += piece.text
    let other = ''
    for await (const piece of model.generate('def fibonacci(n):', { maxTokens: 40 })) other += piece.text
    expect(found).toBe(other)
  })

  test.each(['bf16', 'fp8_e4m3', 'int8', 'int4'] as const)('a cache of %s, prompts whole', async (kv) => {
    // Decode rows differ in rounding from those of a prompt, so a cache that rounds may tip a tie; these texts have none.
    using batch = new Batch(model, { sequences: 8, kv })
    const found = await Promise.all(
      requests.slice(0, 4).map(({ tokens }) => tokensOf(batch.add(tokens, { maxTokens: 6 }))),
    )
    for (const [i, { tokens }] of requests.slice(0, 4).entries())
      expect(found[i]).toEqual(await tokensOf(model.generate(tokens, { maxTokens: 6, kv })))
  })
})

describe('shared prompts', () => {
  test.each([64, 77, 5])('%i tokens computed once, continued by many', async (length) => {
    using batch = new Batch(model, {
      sequences: 6,
      chunk: 24,
      pageSize: 16,
      prefixTokens: length === 5 ? 8 : 0,
    })
    const total = batch.freePages
    const begin = text.slice(100, 100 + length)
    using shared = batch.share(begin)
    const ends = [text.slice(300, 310), [7], text.slice(400, 440), [], [9], [], text.slice(20, 21)]
    const found = await Promise.all(
      ends.map((end) => tokensOf(batch.add(end, { after: shared, maxTokens: 9 }))),
    )
    for (const [i, end] of ends.entries())
      expect(found[i]).toEqual(await tokensOf(model.generate([...begin, ...end], { maxTokens: 9 })))
    expect(batch.freePages).toBe(total - Math.ceil(length / 16))
    shared.dispose()
    expect(batch.freePages).toBe(total)
    // It is gone, and its tokens are still known.
    expect(await tokensOf(batch.add([7], { after: shared, maxTokens: 3 }))).toEqual(found[1]?.slice(0, 3))
  })

  test('in a prefix that is full of sequences, each shared prompt has a row of its own', async () => {
    using batch = new Batch(model, { sequences: 3, chunk: 24, pageSize: 8, prefixTokens: 12 })
    const begins = [text.slice(0, 5), text.slice(50, 70)]
    const prompts = begins.map((begin) => batch.share(begin))
    const runs = [0, 1, 2, 3, 4, 5].map((i) => ({ end: text.slice(90 + i, 93 + 2 * i), at: i % 2 }))
    const found = await Promise.all(
      runs.map(({ end, at }) => tokensOf(batch.add(end, { after: prompts[at], maxTokens: 20 }))),
    )
    for (const [i, { end, at }] of runs.entries())
      expect(found[i]).toEqual(
        await tokensOf(model.generate([...(begins[at] ?? []), ...end], { maxTokens: 20 })),
      )
    for (const shared of prompts) shared.dispose()
    expect([batch.active, batch.queued]).toEqual([0, 0])
  })

  test('what it holds may be too much for others', async () => {
    using batch = new Batch(model, { sequences: 2, pageSize: 8, pages: 8 })
    using shared = batch.share(text.slice(0, 50))
    const own = batch.add(text.slice(0, 30), { maxTokens: 2 })
    const error = await rejection(() => tokensOf(own))
    expect(error.code).toBe('ERR_PAGES')
    expect(error.message).toMatch(/needs more than the \d free of 8 pages of 8; shared prompts keep 7/)
    // The batch goes on.
    expect(await tokensOf(batch.add([5], { after: shared, maxTokens: 2 }))).toHaveLength(2)
  })
})

describe('ends', () => {
  test('abort, before and in the middle', async () => {
    using batch = new Batch(model, { sequences: 4 })
    const total = batch.freePages
    const never = batch.add(prompt, { signal: AbortSignal.abort(new Error('never')) })
    await expect(tokensOf(never)).rejects.toThrow('never')
    const abort = new AbortController()
    const seen: number[] = []
    const other = tokensOf(batch.add(prompt, { maxTokens: 20, ignoreEos: true }))
    const run = async () => {
      for await (const { token } of batch.add(prompt, { signal: abort.signal, ignoreEos: true })) {
        seen.push(token)
        if (seen.length === 4) abort.abort(new Error('enough'))
      }
    }
    await expect(run()).rejects.toThrow('enough')
    expect(seen).toEqual((await other).slice(0, seen.length))
    expect(await other).toHaveLength(20)
    expect(batch.freePages).toBe(total)
  })

  test('cancel keeps what was made; the end of text; nothing to make', async () => {
    using batch = new Batch(model, { sequences: 4 })
    const request = batch.add(prompt, { maxTokens: 500, ignoreEos: true })
    const one = request[Symbol.asyncIterator]()
    expect((await one.next()).done).toBe(false)
    request.cancel()
    while ((await one.next()).done !== true);
    expect(batch.active).toBe(0)
    expect(await tokensOf(batch.add(prompt, { maxTokens: 0 }))).toEqual([])
    expect(await tokensOf(batch.add('', { maxTokens: 3 }))).toEqual(
      await tokensOf(model.generate('', { maxTokens: 3 })),
    )
    const full = new Batch(model, { sequences: 1, pages: 2, pageSize: 16 })
    expect(await tokensOf(full.add([1, 2, 3], { ignoreEos: true }))).toHaveLength(29)
    full.close()
  })

  test('close ends every request, and gives the memory back', async () => {
    await device.sync()
    const before = device.memoryUsage().used
    const batch = new Batch(model, { sequences: 2 })
    const runs = [1, 2, 3].map((n) => tokensOf(batch.add([n], { ignoreEos: true })))
    for (let i = 0; i < 20; i++) await device.sync()
    batch.close()
    for (const run of runs) expect((await rejection(() => run)).code).toBe('ERR_DISPOSED')
    expect((await rejection(() => batch.add([1]))).code).toBe('ERR_DISPOSED')
    await device.sync()
    expect(device.memoryUsage().used).toBe(before)
  })

  test('what can not be is refused at once, by name', async () => {
    using batch = new Batch(model, { sequences: 2, pages: 4, pageSize: 8 })
    const cases: [() => unknown, string, string][] = [
      [
        () => batch.add(text.slice(0, 32)),
        'ERR_PAGES',
        'a prompt of 32 tokens can never fit: a request has 32 positions',
      ],
      [() => batch.add([2048]), 'ERR_ARGUMENT', 'add: expected tokens from 0 to 2047 but got 2048'],
      [() => batch.add([1], { temperature: -1 }), 'ERR_ARGUMENT', 'temperature'],
      [() => batch.add([1], { maxTokens: -1 }), 'ERR_ARGUMENT', 'expected maxTokens to be at least 0'],
      [
        () => new Batch(model, { sequences: 0 }),
        'ERR_ARGUMENT',
        'expected sequences to be an integer of at least 1',
      ],
      [
        () => new Batch(model, { sequences: 8, chunk: 4 }),
        'ERR_ARGUMENT',
        'expected chunk to be an integer of at least 8',
      ],
      [() => new Batch(model, { pageSize: 12 }), 'ERR_ARGUMENT', 'pageSize'],
    ]
    for (const [f, code, sentence] of cases) {
      const error = await rejection(f)
      expect([error.code, error.message]).toEqual([code, expect.stringContaining(sentence)])
    }
    expect(await tokensOf(batch.add([1], { maxTokens: 2 }))).toHaveLength(2)
  })
})
