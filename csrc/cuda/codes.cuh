// Codes of eight bits, several at a time, with the bits of dtype.h.
#pragma once

#include "csrc/cuda/elements.cuh"

namespace lowbit {

// The low bytes of four words.
static inline __device__ uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// Four numbers to FP8, C e4m3 or e5m2, the first in the low byte. One instruction for two where the
// GPU has it; it differs in the sign of a NaN alone.
template <DType C>
static inline __device__ uint32_t fp8_four(float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 890
  uint32_t codes;
  if constexpr (C == DType::e4m3) {
    asm("{\n.reg .b16 low, high;\ncvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\nmov.b32 %0, {low, high};\n}"
        : "=r"(codes)
        : "f"(a), "f"(b), "f"(c), "f"(d));
  } else {
    asm("{\n.reg .b16 low, high;\ncvt.rn.satfinite.e5m2x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e5m2x2.f32 high, %4, %3;\nmov.b32 %0, {low, high};\n}"
        : "=r"(codes)
        : "f"(a), "f"(b), "f"(c), "f"(d));
  }
  return codes;
#else
  const auto one = [](float x) -> uint32_t {
    return C == DType::e4m3 ? f32_to_e4m3(x) : f32_to_e5m2(x);
  };
  return one(a) | one(b) << 8 | one(c) << 16 | one(d) << 24;
#endif
}

// The four codes of a word as numbers.
template <DType C>
static inline __device__ void numbers_of(uint32_t codes, float* to) {
  if constexpr (C == DType::i8) {
    // Code + 128 in the low bits of 2^23 is 2^23 + 128 + code.
    const uint32_t raised = codes ^ 0x80808080u;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      to[i] = bits_float(__byte_perm(raised, 0x4b000000u, 0x7540 | i)) - 8388736.0f;
    }
  } else if constexpr (C == DType::e5m2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[i] = half_to_f32(static_cast<uint16_t>((codes >> (8 * i) & 0xffu) << 8));
    }
  } else {
#if __CUDA_ARCH__ >= 890
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t two;
      asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(two) : "h"(static_cast<uint16_t>(codes >> 16 * i)));
      to[2 * i] = half_to_f32(static_cast<uint16_t>(two));
      to[2 * i + 1] = half_to_f32(static_cast<uint16_t>(two >> 16));
    }
#else
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = e4m3_to_f32(static_cast<uint8_t>(codes >> 8 * i));
#endif
  }
}

// Calls f with the dtype of codes as a type.
template <class F>
static inline void with_codes(DType dtype, const F& f) {
  if (dtype == DType::i8) f(std::integral_constant<DType, DType::i8>());
  if (dtype == DType::e4m3) f(std::integral_constant<DType, DType::e4m3>());
  if (dtype == DType::e5m2) f(std::integral_constant<DType, DType::e5m2>());
}

}  // namespace lowbit
