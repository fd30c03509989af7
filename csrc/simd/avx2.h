// Small wrappers over AVX2, FMA and F16C intrinsics.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "csrc/format/format.h"

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

// Eight of the sixteen scales of a panel's block: the lower ones for h = 0.
static inline __m256 load_scales(const uint8_t* scales, DType dtype, int h) {
  return load_8(scales + h * 8 * (dtype == DType::f32 ? 4 : 2), dtype);
}

// And of its zero points; `middle` is that of the symmetric kind.
static inline __m256 load_zeros(const uint8_t* zeros, ZeroType type, float middle, int h) {
  if (type == ZeroType::f32) return load_8(zeros + h * 32, DType::f32);
  if (type == ZeroType::none) return _mm256_set1_ps(middle);
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros + h * 8));
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}

static inline float sum_of(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

}  // namespace lowbit::avx2
