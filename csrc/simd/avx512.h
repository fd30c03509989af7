// Small wrappers over AVX-512 intrinsics.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "csrc/base/dtype.h"

namespace lowbit::avx512 {

static inline __m512i load_bytes(const void* p) { return _mm512_loadu_si512(p); }

// Four bytes in every lane of four.
static inline __m512i broadcast_4(const void* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

// Sixteen f32, f16 or bf16 as f32.
static inline __m512 load_16(const void* p, DType dtype) {
  if (dtype == DType::f32) return _mm512_loadu_ps(p);
  const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  if (dtype == DType::f16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Sixteen bytes as e4m3; see e4m3_8 and e8m0_8 of avx2.h.
static inline __m512 e4m3_16(__m128i bytes) {
  const __m256i words = _mm256_cvtepu8_epi16(bytes);
  const __m256i magnitude = _mm256_and_si256(words, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0x80)), 8);
  const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
  const __m256i half = _mm256_or_si256(_mm256_or_si256(sign, nan), _mm256_slli_epi16(magnitude, 7));
  return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
}
static inline __m512 e8m0_16(__m128i bytes) {
  const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);
  const __m512i quiet = _mm512_set1_epi32(0x00400000);
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  const __m512i least = _mm512_max_epu32(bits, quiet);
  return _mm512_castsi512_ps(_mm512_mask_or_epi32(least, nan, least, quiet));
}

}  // namespace lowbit::avx512
