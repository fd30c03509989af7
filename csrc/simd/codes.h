// Codes of 8 and of 4 bits in lanes of f32, and back; and products with one rounding, where it
// matters which they are. Lanes are those of lanes.h.
#pragma once

#include "csrc/simd/lanes.h"
#if defined(__AVX512F__)
#include "csrc/simd/avx512.h"
#else
#include "csrc/simd/avx2.h"
#endif

namespace lowbit {

static inline Lanes to_floats(IntLanes v) { return __builtin_convertvector(v, Lanes); }

#if defined(__AVX512F__)
static inline IntLanes load_i8(const void* p) {
  return reinterpret_cast<IntLanes>(
      _mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(p))));
}
static inline IntLanes load_u8(const void* p) {
  return reinterpret_cast<IntLanes>(
      _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(p))));
}
static inline Lanes load_e4m3(const void* p) {
  return avx512::e4m3_16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
// The low bytes.
static inline void store_u8(void* p, IntLanes v) {
  _mm_storeu_si128(static_cast<__m128i*>(p),
                   _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(v)));
}
// To the nearest whole numbers, halves to even.
static inline IntLanes to_whole(Lanes v) {
  return reinterpret_cast<IntLanes>(_mm512_maskz_cvtps_epi32(0xffff, v));
}
// a * b + c and a * b - c, rounded once.
static inline Lanes fused_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
static inline Lanes fused_subtract(Lanes a, Lanes b, Lanes c) { return _mm512_fmsub_ps(a, b, c); }
#else
static inline IntLanes load_i8(const void* p) {
  return reinterpret_cast<IntLanes>(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
static inline IntLanes load_u8(const void* p) {
  return reinterpret_cast<IntLanes>(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
static inline Lanes load_e4m3(const void* p) {
  return avx2::e4m3_8(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
}
static inline void store_u8(void* p, IntLanes v) {
  const __m256i order =
      _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                       -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(v), order);
  _mm_storel_epi64(
      static_cast<__m128i*>(p),
      _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
static inline IntLanes to_whole(Lanes v) {
  return reinterpret_cast<IntLanes>(_mm256_cvtps_epi32(v));
}
static inline Lanes fused_add(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
static inline Lanes fused_subtract(Lanes a, Lanes b, Lanes c) { return _mm256_fmsub_ps(a, b, c); }
#endif

}  // namespace lowbit
