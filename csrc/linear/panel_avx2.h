// Scales and zero points of a block of panel16 as vectors of eight rows.
#pragma once

#include "csrc/format/format.h"
#include "csrc/simd/avx2.h"

namespace lowbit::avx2 {

// Eight of the sixteen scales of a panel's block: the lower ones for h = 0.
static inline __m256 load_scales(const uint8_t* scales, DType dtype, int h) {
  if (dtype_bytes(dtype) == 1) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + h * 8));
    return dtype == DType::e8m0 ? e8m0_8(bytes) : e4m3_8(bytes);
  }
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
