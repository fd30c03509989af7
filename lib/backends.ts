/** Which devices there are and, for each that can't be used, a code and a sentence. */
import { type CudaProbe, cudaLibrary, native } from './native'
import type { BackendCode } from './words'

/** A row of {@link backends}. */
export interface Backend {
  /** The name that `openDevice` takes: 'cpu', 'cuda:0', ...; 'cuda' where no GPU was reached. */
  readonly device: string
  /** Name of the hardware. */
  readonly name: string
  /** Whether `openDevice(device)` opens it. */
  readonly usable: boolean
  /** 'OK', or why it can't be used. */
  readonly code: 'OK' | BackendCode
  /** The code as a sentence: what was found, what is needed, what to do. Empty with 'OK'. */
  readonly reason: string
}

const driver = process.env.LB_CUDA_DRIVER || undefined

/**
 * Where CUDA is looked for: the files that LB_CUDA_LIBRARY and LB_CUDA_DRIVER name, else liblowbit_cuda.so beside the
 * addon and the system's libcuda.so.1.
 */
export const cudaFiles = { library: cudaLibrary, driver } as const

/** What the native probe finds, or its answer where LB_DISABLE_CUDA=1 keeps it from looking. */
export function probeCuda(): CudaProbe {
  if (process.env.LB_DISABLE_CUDA === '1') {
    const reason = 'LB_DISABLE_CUDA=1 is set; unset it to use a GPU'
    return { code: 'DISABLED', reason, driver: 0, runtime: 0, devices: [] }
  }
  return native.probe(cudaLibrary, driver)
}

/** The rows of {@link backends} that are GPUs, `cuda:0` first; one row named 'cuda' where none was reached. */
export function cudaBackends(): Backend[] {
  const probe = probeCuda()
  if (probe.code !== 'OK') {
    const code = probe.code as BackendCode
    return [{ device: 'cuda', name: 'CUDA', usable: false, code, reason: probe.reason }]
  }
  return probe.devices.map((found, index) => {
    const row = { device: `cuda:${index}`, name: found.name }
    const capability = (found.capability / 10).toFixed(1)
    if (!found.usable) {
      const reason = `compute capability ${capability} is below 7.5 (Turing), the oldest that lowbit supports`
      return { ...row, usable: false, code: 'UNSUPPORTED_DEVICE', reason }
    }
    return { ...row, usable: true, code: 'OK', reason: '' }
  })
}

/** Every device of this machine, usable or not, best first; the CPU is last and always usable. */
export function backends(): Backend[] {
  const host = native.hostInfo()
  return [...cudaBackends(), { device: 'cpu', name: host.name, usable: true, code: 'OK', reason: '' }]
}
