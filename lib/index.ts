/** lowbit: low-precision GEMM and attention for Node.js. */

export {
  type AttentionOptions,
  type AttentionResult,
  type AttentionWindow,
  attention,
  type PagedAttentionOptions,
  type ScoreOptions,
} from './attention'
export { type Backend, backends } from './backends'
export {
  type AppendOptions,
  KvCache,
  type KvCacheOptions,
  type KvPrefix,
  type KvRead,
  type KvRope,
} from './cache'
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
export { type CopyOptions, copy } from './copy'
export {
  type Device,
  type DeviceInfo,
  type DeviceOptions,
  type MemoryUsage,
  openDevice,
} from './device'
export { add, type ElementwiseOptions, type GeluMulOptions, geluMul, mul, siluMul } from './elementwise'
export { type EmbeddingOptions, embedding } from './embedding'
export { LowbitError, LowbitTypeError } from './errors'
export { Graph } from './graph'
export { type Growth, KvSequence, PagePool, type PagePoolOptions } from './kv/pool'
export { type LinearOptions, type LinearQuantOptions, linear } from './linear'
export {
  Batch,
  type BatchOptions,
  type BatchRequest,
  type RequestOptions,
  type SharedPrompt,
} from './llama/batch'
export type { LlamaConfig, RopeScaling } from './llama/config'
export type { KvOptions } from './llama/decoder'
export type { GeneratedToken, GenerateOptions } from './llama/generate'
export {
  Llama,
  type LlamaOptions,
  type WeightUsage,
} from './llama/model'
export type { Perplexity, PerplexityOptions } from './llama/perplexity'
export type { SampleOptions } from './llama/sample'
export type { LlamaScheme } from './llama/scheme'
export type { LlamaSession, SessionOptions } from './llama/session'
export type { TextStream, Tokenizer } from './llama/tokenizer'
export { layerNorm, type NormOptions, rmsNorm } from './norm'
export { measurePeaks, type PeakOptions, type PeakRow, type Peaks, type Quantity, type Rates } from './peaks'
export {
  bitPlanes,
  type LowRankTerm,
  lowRankPlanes,
  lowRankTerms,
  type Plane,
  type PlaneOptions,
  signPlanes,
} from './planes'
export {
  type CanonicalFields,
  canonical,
  dequantize,
  type FloatDType,
  type GroupSize,
  QuantizedWeight,
  quantize,
  type ScaleDType,
  type Scheme,
  type WeightArray,
} from './quantize'
export {
  type CodeDType,
  type DequantizeRowsOptions,
  dequantizeRows,
  QuantizedRows,
  type QuantizeRowsOptions,
  quantizeRows,
  type RowQuantization,
} from './quantize-rows'
export { type Pairing, type RopeOptions, rope } from './rope'
export { deserialize, serialize } from './serialize'
export {
  argmax,
  crossEntropy,
  type RowResultOptions,
  type SoftmaxOptions,
  softmax,
} from './softmax'
export type { ArrayOf, IntList, Tensor } from './tensor'
export { type LoadOptions, Weight } from './weight'
export type {
  Activation,
  BackendCode,
  Compute,
  DType,
  ErrorCode,
  Format,
  KvFormat,
  Layout,
  Score,
  ZeroPoint,
} from './words'
