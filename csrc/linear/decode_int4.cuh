// Codes of frag64 (format/layout.h) as fragments of the tensor cores, in registers: a code of four
// bits becomes a 16-bit float without conversion, OR-ed into the fraction of 1024 (f16) or 128
// (bf16), minus that and the zero 8, all exact.
//
// In f16 the odd codes stay four bits up, as 16 q: they belong to the lower rows of the fragments,
// whose scale takes the 1/16. That saves two shifts of eight codes.
#pragma once

#include <cstdint>

namespace lowbit {
namespace {

// What the scales of the lower rows are multiplied by.
template <bool kHalf>
inline constexpr float kLowerRows = kHalf ? 1.0f / 16.0f : 1.0f;

__device__ __forceinline__ uint32_t subtract_f16(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// a * 1 - b: sm_80 multiplies and adds bf16, sm_90 subtracts as well, for the same price.
__device__ __forceinline__ uint32_t subtract_bf16(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3F803F80u), "r"(b ^ 0x80008000u));
  return r;
}
// (a & mask) | bits, one instruction.
template <uint32_t kMask, uint32_t kBits>
__device__ __forceinline__ uint32_t and_or(uint32_t a) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "n"(kMask), "n"(kBits));
  return r;
}

// A word of codes into the fragments of a step of 16 of K, less the numbers of two rows: the upper
// row's in `upper`, the lower one's in `lower`, as minus_of() has them.
template <bool kHalf>
__device__ __forceinline__ void decode_step(uint32_t x, uint32_t upper, uint32_t lower,
                                            uint32_t (&f)[4]) {
  if constexpr (kHalf) {
    const uint32_t y = x >> 8;
    f[0] = subtract_f16(and_or<0x000F000F, 0x64006400>(x), upper);
    f[1] = subtract_f16(and_or<0x00F000F0, 0x64006400>(x), lower);
    f[2] = subtract_f16(and_or<0x000F000F, 0x64006400>(y), upper);
    f[3] = subtract_f16(and_or<0x00F000F0, 0x64006400>(y), lower);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      f[i] = subtract_bf16(and_or<0x000F000F, 0x43004300>(x >> 4 * i), i % 2 == 0 ? upper : lower);
    }
  }
}
// Of a zero point, 0 to 16: 1024 + zero or 1024 + 16 * zero in f16, 128 + zero in bf16, twice.
template <bool kHalf>
__device__ __forceinline__ constexpr uint32_t minus_of(uint32_t zero, bool lower) {
  return ((kHalf ? 0x6400u : 0x4300u) + (kHalf && lower ? 16 * zero : zero)) * 0x10001u;
}

// 32 codes of a thread into its fragments of four steps of 16 of K.
template <bool kHalf>
__device__ __forceinline__ void decode(const uint4& w, uint32_t (&f)[4][4]) {
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    decode_step<kHalf>(words[j], minus_of<kHalf>(8, false), minus_of<kHalf>(8, true), f[j]);
  }
}

}  // namespace
}  // namespace lowbit
