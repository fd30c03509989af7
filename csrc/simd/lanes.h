// Lanes: as many f32 as one register of the including file's instruction set holds, loaded from and
// stored to f32, f16 and bf16. Written with the compiler's vector types, so that one source serves
// every instruction set; 16-bit elements alone need instructions by name.
//
// Loops over plain floats become vector code too, but where a choice is made on the way (the clamps
// of exp) compilers carry both sides through the whole computation: twice the instructions.
#pragma once

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "csrc/base/dtype.h"

namespace lowbit {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
using Lanes [[gnu::vector_size(64)]] = float;
using IntLanes [[gnu::vector_size(64)]] = int32_t;
using BitLanes [[gnu::vector_size(64)]] = uint32_t;
#else
inline constexpr int kLanes = 8;
using Lanes [[gnu::vector_size(32)]] = float;
using IntLanes [[gnu::vector_size(32)]] = int32_t;
using BitLanes [[gnu::vector_size(32)]] = uint32_t;
#endif

static inline BitLanes float_bits(Lanes v) { return reinterpret_cast<BitLanes>(v); }
static inline Lanes bits_float(BitLanes v) { return reinterpret_cast<Lanes>(v); }
static inline BitLanes halve(BitLanes v) {
  return reinterpret_cast<BitLanes>(reinterpret_cast<IntLanes>(v) >> 1);
}
static inline Lanes either(IntLanes condition, Lanes a, Lanes b) { return condition ? a : b; }
static inline Lanes absolute(Lanes v) { return bits_float(float_bits(v) & 0x7fffffffu); }
// NaN stays NaN in both.
static inline Lanes at_most(Lanes v, float limit) {
  const Lanes l = Lanes{} + limit;
  return l < v ? l : v;
}
static inline Lanes at_least(Lanes v, float limit) {
  const Lanes l = Lanes{} + limit;
  return l > v ? l : v;
}

// Elements of 16-bit tensors, for loads and stores to be chosen by type.
struct F16Bits {
  uint16_t bits;
};
struct Bf16Bits {
  uint16_t bits;
};

static inline Lanes load_lanes(const float* x) {
  Lanes v;
  std::memcpy(&v, x, sizeof v);
  return v;
}
static inline void store_lanes(float* x, Lanes v) { std::memcpy(x, &v, sizeof v); }

// To and from 16 bits by name: of the compiler's own conversion between vectors g++ 12 makes
// several times the instructions. The maskz forms with a full mask, because it warns of an
// undefined value in the plain ones.
#if defined(__AVX512F__)
static inline BitLanes widen(const void* x) {
  return reinterpret_cast<BitLanes>(
      _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(x))));
}
static inline void narrow(void* x, BitLanes v) {
  _mm256_storeu_si256(static_cast<__m256i*>(x),
                      _mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(v)));
}
static inline Lanes load_lanes(const F16Bits* x) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
static inline void store_lanes(F16Bits* x, Lanes v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x),
                      _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
static inline BitLanes widen(const void* x) {
  return reinterpret_cast<BitLanes>(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(x))));
}
static inline void narrow(void* x, BitLanes v) {
  const __m256i all = reinterpret_cast<__m256i>(v);
  _mm_storeu_si128(static_cast<__m128i*>(x),
                   _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
static inline Lanes load_lanes(const F16Bits* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
static inline void store_lanes(F16Bits* x, Lanes v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

#if defined(__AVX2__)
static inline Lanes load_lanes(const Bf16Bits* x) { return bits_float(widen(x) << 16); }
// As f32_to_bf16: to nearest even, NaN kept.
static inline void store_lanes(Bf16Bits* x, Lanes v) {
  const BitLanes u = float_bits(v);
  const BitLanes rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  narrow(x, v != v ? (u >> 16 | 0x40u) : rounded);
}
#endif

// The first n < kLanes; the others are 0.
template <class T>
static inline Lanes load_part(const T* x, int64_t n) {
  T all[kLanes] = {};
  std::memcpy(all, x, static_cast<size_t>(n) * sizeof(T));
  return load_lanes(all);
}
template <class T>
static inline void store_part(T* x, Lanes v, int64_t n) {
  T all[kLanes];
  store_lanes(all, v);
  std::memcpy(x, all, static_cast<size_t>(n) * sizeof(T));
}

// out[i] = f(a[i]) or f(a[i], b[i]); out may be a or b. A, B and O are float, F16Bits or Bf16Bits.
template <class A, class O, class F>
static inline void map_run(const A* a, O* out, int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_lanes(out + i, f(load_lanes(a + i)));
  if (i < count) store_part(out + i, f(load_part(a + i, count - i)), count - i);
}
template <class A, class B, class O, class F>
static inline void map_run(const A* a, const B* b, O* out, int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store_lanes(out + i, f(load_lanes(a + i), load_lanes(b + i)));
  }
  if (i < count) {
    store_part(out + i, f(load_part(a + i, count - i), load_part(b + i, count - i)), count - i);
  }
}

// Calls f with a pointer of the dtype's element type that points nowhere: for a choice of
// templates.
template <class F>
static inline void with_float_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32: return f(static_cast<float*>(nullptr));
    case DType::f16: return f(static_cast<F16Bits*>(nullptr));
    default: return f(static_cast<Bf16Bits*>(nullptr));
  }
}

}  // namespace lowbit
