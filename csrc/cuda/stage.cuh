// A row of f32 that a block reads more than once: in shared memory where it fits, so that a kernel
// passes over device memory once. Longer rows are read again from where they came.
#pragma once

#include "csrc/cuda/elements.cuh"

namespace lowbit {

// 48 KiB is what every GPU gives a block without asking, less what reductions need.
inline constexpr int64_t kStagedMax = 11776;

static inline size_t staged_bytes(int64_t length) {
  return length <= kStagedMax ? static_cast<size_t>((length + 7) / 8 * 8) * sizeof(float) : 0;
}

// A thread takes eight elements at a time; small rows get fewer threads than a full block.
static inline unsigned threads_for(int64_t length) {
  const int64_t threads = (length + kEight - 1) / kEight;
  return static_cast<unsigned>(threads < 32 ? 32 : threads > 512 ? 512 : (threads + 31) / 32 * 32);
}

static inline __device__ void stage_eight(float* stage, int64_t first, const float (&v)[kEight]) {
  reinterpret_cast<float4*>(stage + first)[0] = {v[0], v[1], v[2], v[3]};
  reinterpret_cast<float4*>(stage + first)[1] = {v[4], v[5], v[6], v[7]};
}
static inline __device__ void staged_eight(const float* stage, int64_t first, float (&v)[kEight]) {
  const float4 a = reinterpret_cast<const float4*>(stage + first)[0];
  const float4 b = reinterpret_cast<const float4*>(stage + first)[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

static inline __device__ int ragged(int64_t first, int64_t length) {
  return length - first < kEight ? static_cast<int>(length - first) : kEight;
}

}  // namespace lowbit
