import { native } from './native'

/**
 * Ops that were recorded once and are queued again by one call: what {@link Device.capture} returns. The tensors that they
 * read and write are those of the recording: `write` to an input and `replay` to compute anew.
 *
 * It holds the memory of those tensors until {@link dispose}, also of those that were disposed within the recording.
 */
export class Graph implements Disposable {
  private constructor() {}

  /** An object that a native call fills. For use inside the library. @internal */
  static shell(): Graph {
    return new Graph()
  }

  /**
   * Queues the recorded ops behind what is queued already; returns at once. A value that an op finds out of range (an id,
   * a position) poisons everything that the graph writes.
   *
   * @throws LowbitError ERR_DISPOSED; ERR_UNSUPPORTED while the device records another graph; ERR_CUDA.
   */
  replay(): void {
    native.graphReplay(this)
  }

  /** Gives the memory back, once what was replayed has run. */
  dispose(): void {
    native.graphDispose(this)
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}
