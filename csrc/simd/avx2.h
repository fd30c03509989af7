// Small wrappers over AVX2, FMA and F16C intrinsics.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "csrc/base/dtype.h"

namespace lowbit::avx2 {

static inline __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// Four bytes in every lane of four.
static inline __m256i broadcast_4(const void* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// Eight f32, f16 or bf16 as f32.
static inline __m256 load_8(const void* p, DType dtype) {
  if (dtype == DType::f32) return _mm256_loadu_ps(static_cast<const float*>(p));
  const __m128i halves = _mm_loadu_si128(static_cast<const __m128i*>(p));
  if (dtype == DType::f16) return _mm256_cvtph_ps(halves);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

}  // namespace lowbit::avx2
