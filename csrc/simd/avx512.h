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

}  // namespace lowbit::avx512
