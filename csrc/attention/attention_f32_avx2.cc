// attention_f32_avx2: o = score(softmax_scale * q k^T + bias) v; f32, f16 and bf16 in, f32
// arithmetic.
//
// Shapes    all of attention.h up to head_dim 1024.
// Layout    any strides that the contract allows; flash.h has the tiles in scratch.
// Bound     prefill: f32 FMA, 2 * (head_dim + head_dim_v) operations a visible pair. Decode: one
//           read of the visible K and V.
// Method    flash.h with vectors of eight.
// Source    Dao, FlashAttention-2, 2023; Hong et al., FlashDecoding++, 2023 (split keys).
// Measured  see NOTES.md.
#include <immintrin.h>

#include "csrc/attention/attention.h"
#include "csrc/attention/flash.h"

namespace lowbit {
namespace {

struct Avx2 {
  using F = __m256;
  static constexpr int kLanes = 8;
  // 12 sums, two vectors of keys and one broadcast fill 15 of 16 registers.
  static constexpr int kMR = 6;
  // At head_dim 128 a block's q, o and scores and a tile's K and V are 250 KiB: they stay in an L2
  // of 256 KiB.
  static constexpr int kBlockRows = 144;
  static constexpr int kBlockKeys = 64;
  static constexpr bool kRoundsP = false;
  // Up to here reading K and V in place for each four rows beats copying them first.
  static constexpr int kStepRows = 8;
  // Sums of a step: at least eight, to hide the latency of FMA (four cycles, two a cycle), and at
  // most twelve, to leave registers for what is multiplied.
  static constexpr int step_keys(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 3; }
  static constexpr int step_pairs(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

  static inline F zero() { return _mm256_setzero_ps(); }
  static inline F set1(float x) { return _mm256_set1_ps(x); }
  static inline F iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
  template <class T>
  static inline F load(const T* p) {
    return load8(p);
  }
  // Half of sixteen elements in pair order.
  template <int kHalf, class T>
  static inline F load_half(const T* p) {
    return load8(p + 8 * kHalf);
  }
  template <int kHalf>
  static inline F load_half(const Bf16* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(kHalf == 0 ? _mm256_slli_epi32(x, 16)
                                          : _mm256_and_si256(x, _mm256_set1_epi32(-65536)));
  }
  static inline void interleave(F& a, F& b) {
    const F low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    a = _mm256_permute2f128_ps(low, high, 0x20);
    b = _mm256_permute2f128_ps(low, high, 0x31);
  }
  static inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static inline void store(F16* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static inline void store(Bf16* p, F x) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i even =  // round to nearest even
        _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))),
                          16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(even, quiet, is_nan);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }

  static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
  static inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static inline F div(F a, F b) { return _mm256_div_ps(a, b); }
  static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static inline F fms(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
  static inline F min(F a, F b) { return _mm256_min_ps(a, b); }
  static inline F max(F a, F b) { return _mm256_max_ps(a, b); }
  static inline F abs(F x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  static inline F copysign(F x, F sign) {
    return _mm256_or_ps(x, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
  }
  static inline F shift_to_exponent(F x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23));
  }
  static inline float first(F x) { return _mm256_cvtss_f32(x); }
  static inline float reduce_max(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static inline float reduce_add(F x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }
  // The sums of four vectors.
  static inline void reduce_add4(F a, F b, F c, F d, float* out) {
    const F x = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
  }
};

}  // namespace

extern const AttentionKernel attention_f32_avx2;
const AttentionKernel attention_f32_avx2 = {
    "attention_f32_avx2",  kArchAvx2,       {kFloats, 1024, 1, kAllKvFormats, true},
    flash_workspace<Avx2>, flash_run<Avx2>,
};

}  // namespace lowbit
