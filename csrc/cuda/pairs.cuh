// Two floats of 16 bits in a register, as the operands of the tensor cores have them.
#pragma once

#include "csrc/cuda/elements.cuh"

namespace lowbit {

template <bool kHalf>
static __device__ __forceinline__ uint32_t pair_of(float low, float high) {
  uint32_t w;
  if constexpr (kHalf) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  }
  return w;
}
template <bool kHalf>
static __device__ __forceinline__ float low_of(uint32_t w) {
  if constexpr (kHalf) return half_to_f32(static_cast<uint16_t>(w));
  return __uint_as_float(w << 16);
}
template <bool kHalf>
static __device__ __forceinline__ float high_of(uint32_t w) {
  if constexpr (kHalf) return half_to_f32(static_cast<uint16_t>(w >> 16));
  return __uint_as_float(w & 0xffff0000u);
}

}  // namespace lowbit
