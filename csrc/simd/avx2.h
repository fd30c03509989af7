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

// The lower eight bytes as e4m3.
static inline __m256 e4m3_8(__m128i bytes) {
  // e4m3 in the place of an f16's bits is 2^-8 of its value, subnormals included.
  const __m128i words = _mm_cvtepu8_epi16(bytes);
  const __m128i magnitude = _mm_and_si128(words, _mm_set1_epi16(0x7f));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(words, _mm_set1_epi16(0x80)), 8);
  const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
  const __m128i half = _mm_or_si128(_mm_or_si128(sign, nan), _mm_slli_epi16(magnitude, 7));
  return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}

// And as e8m0: the exponent of an f32, apart from 0, which is a subnormal, and 0xff, which is NaN.
static inline __m256 e8m0_8(__m128i bytes) {
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23);
  const __m256i quiet = _mm256_set1_epi32(0x00400000);
  const __m256i nan = _mm256_cmpeq_epi32(bits, _mm256_set1_epi32(0x7f800000));
  return _mm256_castsi256_ps(
      _mm256_or_si256(_mm256_max_epu32(bits, quiet), _mm256_and_si256(nan, quiet)));
}

}  // namespace lowbit::avx2
