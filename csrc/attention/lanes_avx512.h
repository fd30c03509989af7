// Avx512: the vector type of flash.h for AVX-512 F, BW, DQ and VL.
#pragma once

#include <immintrin.h>

#include "csrc/attention/element.h"

namespace lowbit {
namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int kLanes = 16;
  // 24 sums and two vectors of keys; the broadcasts are operands in memory. 32 registers have room
  // for 14 rows, of which a block's 192 are no multiple.
  static constexpr int kMR = 12;
  // A multiple of kMR. A block packs every tile that it sees anew: more rows, fewer packs. At
  // head_dim 128 its q, o and scores and a tile's K and V are 310 KiB of an L2 of 1 MiB.
  static constexpr int kBlockRows = 192;
  static constexpr int kBlockKeys = 64;
  static constexpr bool kRoundsP = false;
  // Up to here reading K and V in place for each four rows beats copying them first.
  static constexpr int kStepRows = 8;
  // Sums of a step: eight or more hide the latency of FMA, sixteen leave room for what is
  // multiplied. Four keys at a time are added up across lanes together.
  static constexpr int step_keys(int rows) { return rows <= 2 ? 8 : 4; }
  static constexpr int step_pairs(int rows) { return rows == 1 ? 4 : 2; }

  static inline F zero() { return _mm512_setzero_ps(); }
  static inline F set1(float x) { return _mm512_set1_ps(x); }
  static inline F iota() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static inline F load(const float* p) { return _mm512_loadu_ps(p); }
  static inline F load(const F16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline F load(const Bf16* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  // Half of thirty-two elements in pair order.
  template <int kHalf, class T>
  static inline F load_half(const T* p) {
    return load(p + 16 * kHalf);
  }
  template <int kHalf>
  static inline F load_half(const Bf16* p) {
    const __m512i x = _mm512_loadu_si512(p);
    return _mm512_castsi512_ps(kHalf == 0 ? _mm512_slli_epi32(x, 16)
                                          : _mm512_and_si512(x, _mm512_set1_epi32(-65536)));
  }
  static inline void interleave(F& a, F& b) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const F x = _mm512_permutex2var_ps(a, low, b);
    b = _mm512_permutex2var_ps(a, high, b);
    a = x;
  }
  static inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static inline void store(F16* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static inline void store(Bf16* p, F x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i high = _mm512_srli_epi32(u, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i even =  // round to nearest even
        _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))),
                          16);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i words = _mm512_mask_blend_epi32(is_nan, even, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(words));
  }

  static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
  static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static inline F div(F a, F b) { return _mm512_div_ps(a, b); }
  static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static inline F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  static inline F min(F a, F b) { return _mm512_min_ps(a, b); }
  static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
  static inline F abs(F x) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x); }
  static inline F copysign(F x, F sign) {
    return _mm512_or_ps(x, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign));
  }
  static inline F shift_to_exponent(F x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23));
  }
  static inline float first(F x) { return _mm512_cvtss_f32(x); }
  static inline float reduce_max(F x) {
    const __m256 z = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(z), _mm256_extractf128_ps(z, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static inline __m256 fold(F x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  }
  static inline float reduce_add(F x) {
    const __m256 z = fold(x);
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(z), _mm256_extractf128_ps(z, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }
  // The sums of four vectors.
  static inline void reduce_add4(F a, F b, F c, F d, float* out) {
    const __m256 x =
        _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
  }
};

}  // namespace
}  // namespace lowbit
