/** lowbit: low-precision GEMM and attention for Node.js. */
export {
  Checkpoint,
  type CheckpointReadOptions,
  type CheckpointTensor,
  openCheckpoint,
  openCheckpointSync,
  writeSafetensors,
} from './checkpoint/checkpoint'
export {
  parseSafetensors,
  type SafetensorsArray,
  type SafetensorsDType,
  type SafetensorsMetadata,
  type SafetensorsSource,
  type SafetensorsTensor,
  serializeSafetensors,
} from './checkpoint/safetensors'
export {
  type Backend,
  backends,
  type Device,
  type DeviceInfo,
  type DeviceOptions,
  type MemoryUsage,
  openDevice,
} from './device'
export { LowbitError, LowbitTypeError } from './errors'
export { measurePeaks, type PeakRow, type Peaks, type Quantity, type Rates } from './peaks'
export {
  type CanonicalFields,
  canonical,
  dequantize,
  type FloatDType,
  type GroupSize,
  QuantizedWeight,
  quantize,
  type Scheme,
  type WeightArray,
} from './quantize'
export { deserialize, serialize } from './serialize'
export type { ArrayOf, Tensor } from './tensor'
export { type LoadOptions, Weight } from './weight'
export type {
  Activation,
  BackendCode,
  Compute,
  DType,
  ErrorCode,
  Format,
  Layout,
  Score,
  ZeroPoint,
} from './words'
