// Elements of q, k, v and o as C++ types, and vectors of them: whole, in part, and in pairs. V is
// the vector type of an ISA file (see flash.h).
#pragma once

#include <immintrin.h>

#include "csrc/base/dtype.h"

namespace lowbit {

struct F16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};
static inline float to_f32(float x) { return x; }
static inline float to_f32(F16 x) { return f16_to_f32(x.bits); }
static inline float to_f32(Bf16 x) { return bf16_to_f32(x.bits); }

static inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
static inline __m256 load8(const F16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline __m256 load8(const Bf16* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

// A vector of the first n < kLanes elements, the lanes after them zero; and the same for stores.
// Not one byte past the elements is touched.
template <class V, class T>
static inline typename V::F load_part(const T* p, int64_t n) {
  T all[V::kLanes] = {};
  __builtin_memcpy(all, p, static_cast<size_t>(n) * sizeof(T));
  return V::load(all);
}
template <class V, class T>
static inline void store_part(T* p, typename V::F x, int64_t n) {
  T all[V::kLanes];
  V::store(all, x);
  __builtin_memcpy(p, all, static_cast<size_t>(n) * sizeof(T));
}

// A pair of vectors: 2 * kLanes elements in the order in which T is cheapest to convert. For bf16
// those are the even and the odd elements, a shift and a mask apart; else the first and the second
// half. What is multiplied with a pair, or adds pairs up, is in pair order too.
template <class V, bool kPart, class T>
static inline void load_pair(const T* p, int part, typename V::F& a, typename V::F& b) {
  if constexpr (kPart) {
    T all[2 * V::kLanes] = {};
    __builtin_memcpy(all, p, static_cast<size_t>(part) * sizeof(T));
    a = V::template load_half<0>(all);
    b = V::template load_half<1>(all);
  } else {
    a = V::template load_half<0>(p);
    b = V::template load_half<1>(p);
  }
}

// From pair order to the natural one, n a multiple of a pair.
template <class V>
static inline void unpair(const Bf16*, float* x, int64_t n) {
  for (int64_t d = 0; d < n; d += 2 * V::kLanes) {
    typename V::F a = V::load(x + d), b = V::load(x + d + V::kLanes);
    V::interleave(a, b);
    V::store(x + d, a);
    V::store(x + d + V::kLanes, b);
  }
}
template <class V, class T>
static inline void unpair(const T*, float*, int64_t) {}

}  // namespace lowbit
