// Random schedules of ops on random views against the same schedule in plain TypeScript. Every number is a small whole
// one, so every op is exact and the two must agree to the bit: what is tested is order, aliasing, views and lifetimes.
import {
  add,
  argmax,
  attention,
  canonical,
  copy,
  type Device,
  embedding,
  linear,
  openDevice,
  rope,
  type Tensor,
  type Weight,
} from 'lowbit'
import { Random } from './ref/random'

/** A view as plain numbers: which cells of which buffer. */
interface Model {
  cells: { buffer: Float32Array; at: number }[]
  shape: readonly [number, number]
}
interface Live {
  tensor: Tensor
  model: Model
}

const values = (model: Model) => model.cells.map(({ buffer, at }) => buffer[at] ?? Number.NaN)
const assign = (model: Model, numbers: readonly number[]) =>
  model.cells.forEach(({ buffer, at }, i) => {
    buffer[at] = numbers[i] ?? Number.NaN
  })

class Schedule {
  readonly live: Live[] = []
  readonly reads: { promise: Promise<ArrayLike<number>>; expected: number[] }[] = []
  readonly log: string[] = []
  readonly #weight: { weight: Weight; codes: number[][] }
  constructor(
    readonly random: Random,
    readonly device: Device,
  ) {
    const codes = Array.from({ length: 4 }, () => Array.from({ length: 4 }, () => random.int(-1, 1)))
    const q = canonical({
      format: 'int8',
      shape: [4, 4],
      groupSize: 'channel',
      codes: new Uint8Array(Int8Array.from(codes.flat()).buffer),
      scales: new Float32Array(4).fill(1),
    })
    this.#weight = { weight: device.load(q), codes }
  }

  create(rows: number, columns: number): Live {
    const numbers = Float32Array.from({ length: rows * columns }, () => this.random.int(-3, 3))
    const tensor = this.device.tensor(numbers, [rows, columns]) as Tensor
    const buffer = numbers.slice()
    const model: Model = { cells: Array.from(buffer, (_, at) => ({ buffer, at })), shape: [rows, columns] }
    const live = { tensor, model }
    this.live.push(live)
    return live
  }

  /** A view of a live tensor: some rows, some columns, perhaps transposed. */
  view(): Live {
    const base = this.random.pick(this.live)
    const [rows, columns] = base.model.shape
    const r0 = this.random.int(0, rows - 1)
    const r1 = this.random.int(r0 + 1, rows)
    const c0 = this.random.int(0, columns - 1)
    const c1 = this.random.int(c0 + 1, columns)
    let tensor = base.tensor.slice(0, r0, r1).slice(1, c0, c1)
    const at = (r: number, c: number) => {
      const cell = base.model.cells[(r0 + r) * columns + c0 + c]
      if (cell === undefined) throw new Error('view: no such cell')
      return cell
    }
    let shape: readonly [number, number] = [r1 - r0, c1 - c0]
    let cells = Array.from({ length: shape[0] * shape[1] }, (_, i) =>
      at(Math.floor(i / (c1 - c0)), i % (c1 - c0)),
    )
    if (this.random.next() < 0.3) {
      tensor = tensor.transpose(0, 1)
      const [h, w] = shape
      cells = Array.from({ length: h * w }, (_, i) => cells[(i % h) * w + Math.floor(i / h)] as never)
      shape = [w, h]
    }
    const live = { tensor, model: { cells, shape } }
    if (this.random.next() < 0.5) this.live.push(live)
    return live
  }

  like(model: Model): Live {
    const same = this.live.filter((other) => String(other.model.shape) === String(model.shape))
    return same.length > 0 && this.random.next() < 0.6 ? this.random.pick(same) : this.create(...model.shape)
  }

  /** A view whose rows have no gaps, which is what most ops read: a transposed one is copied. */
  rows(): Live {
    const { tensor, model } = this.view()
    const whole = tensor.strides[1] === 1 || tensor.shape[1] === 1
    return { tensor: whole ? tensor : copy(tensor), model }
  }

  step(): void {
    const kind = this.random.int(0, 12)
    if (kind === 0 || this.live.length < 2) {
      this.create(this.random.int(1, 9), this.random.int(1, 9))
    } else if (kind === 1) {
      const a = this.view()
      const b = this.like(a.model)
      const sum = values(a.model).map((x, i) => Math.fround((x + (values(b.model)[i] ?? 0)) % 1024))
      // Sums are kept small by starting anew from the numbers modulo 1024.
      const exact = values(a.model).map((x, i) => x + (values(b.model)[i] ?? 0))
      if (exact.every((x, i) => x === sum[i])) {
        // add reads rows without gaps; transposed views go through copy.
        const [left, right] = [a.tensor, b.tensor].map((t) =>
          t.strides[1] === 1 || t.shape[1] === 1 ? t : copy(t),
        )
        this.#record(add(left as Tensor, right as Tensor), exact, a.model.shape)
      }
    } else if (kind === 2) {
      const a = this.view()
      const out = this.create(...a.model.shape)
      copy(a.tensor, { out: out.tensor })
      assign(out.model, values(a.model))
    } else if (kind === 3) {
      const a = this.view()
      const numbers = values(a.model).map(() => this.random.int(-3, 3))
      a.tensor.write(Float32Array.from(numbers))
      assign(a.model, numbers)
    } else if (kind === 4) {
      const x = this.create(this.random.int(1, 6), 4)
      const [rows] = x.model.shape
      const numbers = values(x.model)
      const out = Array.from({ length: rows * 4 }, (_, i) => {
        const row = this.#weight.codes[i % 4] ?? []
        return row.reduce((s, w, k) => s + w * (numbers[Math.floor(i / 4) * 4 + k] ?? 0), 0)
      })
      this.#record(linear(x.tensor, this.#weight.weight), out, [rows, 4])
    } else if (kind === 5) {
      const index = this.random.int(0, this.live.length - 1)
      this.live[index]?.tensor.dispose()
      this.live.splice(index, 1)
    } else if (kind === 6) {
      const a = this.random.pick(this.live)
      this.reads.push({ promise: a.tensor.read('f32'), expected: values(a.model) })
    } else if (kind === 7) {
      const a = this.rows()
      const [rows, columns] = a.model.shape
      const numbers = values(a.model)
      const expected = Array.from({ length: rows }, (_, r) => {
        const row = numbers.slice(r * columns, (r + 1) * columns)
        return row.indexOf(Math.max(...row))
      })
      this.reads.push({ promise: argmax(a.tensor).read(), expected })
    } else if (kind === 8) {
      const a = this.rows()
      const [rows, columns] = a.model.shape
      const ids = Int32Array.from({ length: this.random.int(1, 5) }, () => this.random.int(0, rows - 1))
      const numbers = values(a.model)
      const expected = [...ids].flatMap((id) => numbers.slice(id * columns, (id + 1) * columns))
      const list = this.device.tensor(ids, [ids.length], 'i32')
      this.#record(embedding(a.tensor, list), expected, [ids.length, columns])
      list.dispose()
    } else if (kind === 9) {
      this.#quarterTurns()
    } else if (kind === 10) {
      this.#fused()
    } else if (kind === 11) {
      this.#ownKey()
    } else {
      const a = this.random.pick(this.live)
      const b = this.create(...a.model.shape)
      add(b.tensor, b.tensor, { out: b.tensor })
      assign(
        b.model,
        values(b.model).map((x) => x + x),
      )
    }
  }

  /** rope by whole quarters of a turn, in place or not. */
  #quarterTurns(): void {
    const x = this.create(this.random.int(1, 6), 4)
    const [tokens] = x.model.shape
    const quarter = Array.from({ length: tokens * 2 }, () => this.random.int(0, 3))
    const table = (of: readonly number[]) =>
      this.device.tensor(
        Float32Array.from(quarter, (turns) => of[turns] ?? 0),
        [tokens, 2],
      )
    const cos = table([1, 0, -1, 0])
    const sin = table([0, 1, 0, -1])
    const pairing = this.random.pick(['half', 'interleaved'] as const)
    const numbers = values(x.model)
    const turned = [...numbers]
    for (let i = 0; i < tokens * 2; i++) {
      const [t, pair] = [Math.floor(i / 2), i % 2]
      const [a, b] =
        pairing === 'half' ? [t * 4 + pair, t * 4 + pair + 2] : [t * 4 + pair * 2, t * 4 + pair * 2 + 1]
      const [u, v] = [numbers[a] ?? 0, numbers[b] ?? 0]
      const by = quarter[i] ?? 0
      const [p, q] = [[u, -v, -u, v][by] ?? 0, [v, u, -v, -u][by] ?? 0]
      turned[a] = p
      turned[b] = q
    }
    const heads = x.tensor.reshape([tokens, 1, 4])
    if (this.random.next() < 0.5) {
      rope(heads, { cos, sin, pairing, out: heads })
      assign(x.model, turned)
    } else {
      this.#record(rope(heads, { cos, sin, pairing }).reshape([tokens, 4]), turned, [tokens, 4])
    }
    for (const used of [cos, sin, heads]) used.dispose()
  }

  /** linear with bias, relu and residual, written into a view. */
  #fused(): void {
    const x = this.create(this.random.int(1, 6), 4)
    const [rows] = x.model.shape
    const home = this.create(rows + 2, 4 + this.random.int(0, 3))
    const [, columns] = home.model.shape
    const bias = Float32Array.from({ length: 4 }, () => this.random.int(-3, 3))
    const residual = this.create(rows, 4)
    const numbers = values(x.model)
    const kept = values(residual.model)
    const out = home.tensor.slice(0, 1, rows + 1).slice(1, 0, 4)
    const biases = this.device.tensor(bias, [4])
    linear(x.tensor, this.#weight.weight, {
      bias: biases,
      activation: 'relu',
      residual: residual.tensor,
      out,
    })
    for (const used of [biases, out]) used.dispose()
    for (let i = 0; i < rows * 4; i++) {
      const codes = this.#weight.codes[i % 4] ?? []
      const dot = codes.reduce((s, w, k) => s + w * (numbers[Math.floor(i / 4) * 4 + k] ?? 0), 0)
      const cell = home.model.cells[(Math.floor(i / 4) + 1) * columns + (i % 4)]
      if (cell !== undefined) cell.buffer[cell.at] = Math.max(0, dot + (bias[i % 4] ?? 0)) + (kept[i] ?? 0)
    }
  }

  /** attention where each query sees its own key alone gives the values. */
  #ownKey(): void {
    const tokens = this.random.int(1, 5)
    const [q, k, v] = Array.from({ length: 3 }, () => this.create(tokens, 16)) as [Live, Live, Live]
    const heads = [q, k, v].map(({ tensor }) => tensor.reshape([tokens, 1, 16])) as [Tensor, Tensor, Tensor]
    const out = attention(...heads, { window: [0, 0] })
    this.#record(out.reshape([tokens, 16]), values(v.model), [tokens, 16])
    for (const used of [...heads, out]) used.dispose()
  }

  #record(tensor: Tensor, numbers: readonly number[], shape: readonly [number, number]): void {
    const buffer = Float32Array.from(numbers)
    this.live.push({ tensor, model: { cells: Array.from(buffer, (_, at) => ({ buffer, at })), shape } })
  }
}

test.each([1, 2, 3])('random schedules on %i threads equal the reference', async (threads) => {
  const device = openDevice('cpu', { threads })
  for (let seed = 1; seed <= 40; seed++) {
    const schedule = new Schedule(new Random(seed * 7919 + threads), device)
    for (let i = 0; i < 150; i++) schedule.step()
    for (const { promise, expected } of schedule.reads) {
      const got = Array.from(await promise)
      if (String(got) !== String(expected))
        throw new Error(`seed ${schedule.random.seed}: expected ${expected} but got ${got}`)
    }
    for (const { tensor, model } of schedule.live) {
      const got = Array.from(tensor.readSync('f32'))
      if (String(got) !== String(values(model))) {
        throw new Error(`seed ${schedule.random.seed}: expected ${values(model)} but got ${got}`)
      }
      tensor.dispose()
    }
  }
  device.close()
})
