// Lanes: as many f32 as one register of the including file's instruction set holds. Written with
// the compiler's vector types, so that one source serves every instruction set; f16 alone, in
// convert.h, needs an instruction by name.
//
// Loops over plain floats become vector code too, but where a choice is made on the way (the clamps
// of exp) compilers carry both sides through the whole computation: twice the instructions.
#pragma once

#include <cstring>

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

static inline Lanes load_lanes(const float* x) {
  Lanes v;
  std::memcpy(&v, x, sizeof v);
  return v;
}
static inline void store_lanes(float* x, Lanes v) { std::memcpy(x, &v, sizeof v); }

// The first n < kLanes; the others are 0.
static inline Lanes load_part(const float* x, int64_t n) {
  Lanes v = {};
  std::memcpy(&v, x, static_cast<size_t>(n) * sizeof(float));
  return v;
}
static inline void store_part(float* x, Lanes v, int64_t n) {
  std::memcpy(x, &v, static_cast<size_t>(n) * sizeof(float));
}

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

// out[i] = f(a[i]) or f(a[i], b[i]); out may be a or b.
template <class F>
static inline void map_run(const float* a, float* out, int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_lanes(out + i, f(load_lanes(a + i)));
  if (i < count) store_part(out + i, f(load_part(a + i, count - i)), count - i);
}
template <class F>
static inline void map_run(const float* a, const float* b, float* out, int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store_lanes(out + i, f(load_lanes(a + i), load_lanes(b + i)));
  }
  if (i < count) {
    store_part(out + i, f(load_part(a + i, count - i), load_part(b + i, count - i)), count - i);
  }
}

}  // namespace lowbit
