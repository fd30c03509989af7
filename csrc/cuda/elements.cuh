// Eight elements of any floating dtype at a time, as f32 in registers: 16-byte accesses where the
// address allows, single elements at ragged ends and in views that lie askew. The dtype is a
// run-time choice that all threads of a kernel share; what takes time is memory.
#pragma once

#include <cuda_fp16.h>

#include "csrc/base/rows.h"

namespace lowbit {

inline constexpr int kEight = 8;

// One instruction each, where dtype.h has ten; the results are the same bits, but for a NaN's
// payload.
static inline __device__ float half_to_f32(uint16_t h) { return __half2float(__ushort_as_half(h)); }
static inline __device__ uint16_t f32_to_half(float f) {
  return __half_as_ushort(__float2half_rn(f));
}

static inline __host__ __device__ bool is_aligned(const void* p) {
  return (reinterpret_cast<uintptr_t>(p) & 15) == 0;
}

static inline __device__ void load_eight(const void* base, DType dtype, int64_t first, int count,
                                         float (&to)[kEight]) {
  const void* p = element(base, dtype, first);
  if (count >= kEight && dtype == DType::f32 && is_aligned(p)) {
    const float4 a = static_cast<const float4*>(p)[0], b = static_cast<const float4*>(p)[1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
    return;
  }
  if (count >= kEight && (dtype == DType::bf16 || dtype == DType::f16) && is_aligned(p)) {
    const uint4 v = *static_cast<const uint4*>(p);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto low = static_cast<uint16_t>(words[i]),
                 high = static_cast<uint16_t>(words[i] >> 16);
      to[2 * i] = dtype == DType::bf16 ? bf16_to_f32(low) : half_to_f32(low);
      to[2 * i + 1] = dtype == DType::bf16 ? bf16_to_f32(high) : half_to_f32(high);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) to[i] = i < count ? load_f32(base, dtype, first + i) : 0.0f;
}

static inline __device__ void store_eight(void* base, DType dtype, int64_t first, int count,
                                          const float (&from)[kEight]) {
  void* p = element(base, dtype, first);
  if (count >= kEight && dtype == DType::f32 && is_aligned(p)) {
    static_cast<float4*>(p)[0] = {from[0], from[1], from[2], from[3]};
    static_cast<float4*>(p)[1] = {from[4], from[5], from[6], from[7]};
    return;
  }
  if (count >= kEight && (dtype == DType::bf16 || dtype == DType::f16) && is_aligned(p)) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float a = from[2 * i], b = from[2 * i + 1];
      words[i] = dtype == DType::bf16
                     ? f32_to_bf16(a) | static_cast<uint32_t>(f32_to_bf16(b)) << 16
                     : f32_to_half(a) | static_cast<uint32_t>(f32_to_half(b)) << 16;
    }
    *static_cast<uint4*>(p) = {words[0], words[1], words[2], words[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if (i < count) store_f32(base, dtype, first + i, from[i]);
  }
}

}  // namespace lowbit
