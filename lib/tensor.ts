import { kindOf, LowbitError, LowbitTypeError, wordIndex } from './errors'
import { type Handle, native, nativeError, type TensorInfo } from './native'
import { type DType, dtypes } from './words'

/** The typed array that holds elements of a dtype in JavaScript. f16, bf16 and FP8 come as their bits. */
export type ArrayOf<D extends DType> = D extends 'f32'
  ? Float32Array
  : D extends 'f16' | 'bf16'
    ? Uint16Array
    : D extends 'i32'
      ? Int32Array
      : D extends 'i8'
        ? Int8Array
        : Uint8Array

const arrays: { [D in DType]: new (length: number) => ArrayOf<D> } = {
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i32: Int32Array,
  i8: Int8Array,
  u8: Uint8Array,
  e4m3: Uint8Array,
  e5m2: Uint8Array,
  e8m0: Uint8Array,
}

/**
 * An array of numbers in a device's memory. Ops take tensors and return tensors at once; the numbers are there when
 * `await tensor.read()` says so. Made by {@link Device.tensor}, {@link Device.empty} and every op.
 *
 * `dispose()` gives the memory back as soon as the queued ops that use it are done (`using` calls it); the garbage
 * collector is only the backstop.
 */
export class Tensor<D extends DType = DType> implements Disposable {
  #info: TensorInfo | undefined
  /** Keeps the type parameter; no value at run time. */
  declare readonly __dtype: D

  private constructor() {}

  /** An object without memory, which a native call fills. For use inside the library. @internal */
  static shell<D extends DType = DType>(): Tensor<D> {
    return new Tensor<D>()
  }

  get #about(): TensorInfo {
    this.#info ??= native.tensorInfo(this)
    return this.#info
  }

  /** Sizes, outermost first. */
  get shape(): readonly number[] {
    return this.#about.shape
  }
  /** Steps between neighbours of each dimension, in elements. */
  get strides(): readonly number[] {
    return this.#about.strides
  }
  /** Element type. */
  get dtype(): D {
    return dtypes[this.#about.dtype] as D
  }
  /** Which device holds it: 'cpu', 'cuda:0', ... */
  get device(): string {
    return this.#about.device
  }
  /** Whether the elements lie in row-major order without gaps. */
  get contiguous(): boolean {
    return this.#about.contiguous
  }
  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((product, n) => product * n, 1)
  }
  /** Whether {@link dispose} was called. */
  get disposed(): boolean {
    return native.tensorDisposed(this)
  }

  /**
   * The elements in row-major order, once every op queued before has run.
   *
   * @param dtype Read floats as this float dtype: `read('f32')` of a bf16 tensor gives a Float32Array.
   * @throws LowbitError the reason why an op that was to write this tensor failed; ERR_DTYPE; ERR_DISPOSED.
   */
  async read<T extends DType = D>(dtype?: T): Promise<ArrayOf<T>> {
    const to = this.#room(dtype)
    await new Promise<void>((resolve, reject) => {
      native.read(this, wordIndex(dtypes, dtype ?? this.dtype, 'read: dtype'), to, (code, text) =>
        code === undefined ? resolve() : reject(nativeError(code, text ?? '')),
      )
    })
    return to
  }

  /** {@link read} that blocks the thread: for scripts. */
  readSync<T extends DType = D>(dtype?: T): ArrayOf<T> {
    const to = this.#room(dtype)
    native.readSync(this, wordIndex(dtypes, dtype ?? this.dtype, 'readSync: dtype'), to)
    return to
  }

  #room<T extends DType>(dtype: T | undefined): ArrayOf<T> {
    const name = dtype ?? this.dtype
    wordIndex(dtypes, name, 'read: dtype')
    return new arrays[name](this.size) as ArrayOf<T>
  }

  /**
   * Replaces the elements, in row-major order. Queued like an op; `data` is copied before this returns.
   *
   * @throws LowbitError ERR_SHAPE if data has another number of elements, ERR_DTYPE if they can't become this dtype.
   */
  write(data: ArrayBufferView): this {
    native.write(this, data)
    return this
  }

  /** A view of [begin, end) along one dimension, sharing memory. */
  slice(dim: number, begin: number, end: number): Tensor<D> {
    const view = Tensor.shell<D>()
    native.slice(this, view, dim, begin, end)
    return view
  }

  /** A view with another shape, sharing memory. The tensor must be contiguous. */
  reshape(shape: readonly number[]): Tensor<D> {
    const view = Tensor.shell<D>()
    native.reshape(this, view, shape)
    return view
  }

  /** A view with two dimensions exchanged, sharing memory. */
  transpose(a: number, b: number): Tensor<D> {
    const view = Tensor.shell<D>()
    native.transpose(this, view, a, b)
    return view
  }

  /** Gives the memory back once the queued ops that use it are done. Views keep it. Calling it twice is harmless. */
  dispose(): void {
    native.tensorDispose(this)
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  /** For messages: `Tensor(f32 [2, 3])`. */
  toString(): string {
    return this.disposed ? 'Tensor(disposed)' : `Tensor(${this.dtype} [${this.shape.join(', ')}])`
  }
}

/** The tensor that an op writes: the caller's, or an object for the call to fill. */
export function outputOf(out: Tensor | undefined, op: string, name = 'out'): Tensor {
  if (out === undefined) return Tensor.shell()
  if (!(out instanceof Tensor))
    throw new LowbitTypeError(`${op}: expected ${name} to be a Tensor but got ${kindOf(out)}`)
  return out
}

/** Whole numbers that an op reads: a tensor, or a list that the call makes one of. */
export type IntList = Tensor | Int32Array | readonly number[]

/**
 * Calls `act` with a function that makes tensors of the lists among an op's arguments, in the memory of x's device. The
 * queued op holds their memory until it has run.
 */
export function withInts<T>(
  x: Handle,
  op: string,
  act: (ints: (list: IntList | undefined, name: string) => Tensor) => T,
): T {
  const made: Tensor[] = []
  try {
    return act((list, name) => {
      if (list === undefined || list instanceof Tensor) return list as Tensor
      const tensor = intTensor(x, list, `${op}: ${name}`)
      made.push(tensor)
      return tensor
    })
  } finally {
    for (const tensor of made) tensor.dispose()
  }
}

/** A list as an i32 tensor in the memory of x's device; whoever asked for it disposes it. */
export function intTensor(
  x: Handle,
  list: Int32Array | readonly number[],
  where: string,
  shape?: readonly number[],
): Tensor<'i32'> {
  if (!(list instanceof Int32Array) && !Array.isArray(list))
    throw new LowbitTypeError(
      `${where}: expected a Tensor, an Int32Array or an array of whole numbers but got ${kindOf(list)}`,
    )
  const numbers = list instanceof Int32Array ? list : Int32Array.from(list)
  for (const [i, value] of list.entries()) {
    if (typeof value !== 'number')
      throw new LowbitTypeError(`${where}[${i}]: expected a whole number but got ${kindOf(value)}`)
    if (numbers[i] !== value)
      throw new LowbitError(
        'ERR_ARGUMENT',
        `${where}[${i}]: expected a whole number of 32 bits but got ${value}`,
      )
  }
  const tensor = Tensor.shell<'i32'>()
  native.tensor(x, tensor, shape ?? [numbers.length], dtypes.indexOf('i32'), numbers)
  return tensor
}
