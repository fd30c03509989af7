// What the pages of the formats share: the range of a group of values, the rounding of its scale,
// and the loop that turns values into uniform codes. A page (int4.h, int8.h, ternary.h, fp8.h) says
// what its kind does with them.
//
// All arithmetic on values is float32 with round to nearest even, one operation after the other: a
// division stays a division and nothing is fused, so that the codes are the same bits on every
// machine. (These files are built without FMA; a port to an ISA where the compiler fuses by default
// needs -ffp-contract=off here.) The loops are plain and free of branches: the compiler turns them
// into vectors.
#pragma once

#include <cstdint>

#include "csrc/format/format.h"

namespace lowbit {

// Columns that are worked on at once, as f32 and as one code a byte on the stack. A multiple of 8,
// so that a chunk starts at a whole byte of codes of any width; larger ones gain nothing, and cost
// stack.
inline constexpr int kChunk = 256;

// Floats as integers of the same order (-0 lies just below +0). The function is its own inverse.
// Integer minimum and maximum vectorise as they stand, and NaN and inf fall outside of every finite
// number.
static inline int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

struct Range {
  int32_t lo, hi;  // smallest and largest value, as ordered()
  double sum_abs;  // of |w|; filled where the kind's scale is a mean
  int64_t count;
};

static inline Range empty_range() { return {0x7fffffff, -0x7fffffff - 1, 0.0, 0}; }
static inline Range join(Range a, Range b) {
  return {a.lo < b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi, a.sum_abs + b.sum_abs,
          a.count + b.count};
}
static inline bool is_finite(const Range& r) {
  return r.count == 0 || (r.lo > ordered(static_cast<int32_t>(0xff800000u)) && r.hi < 0x7f800000);
}
static inline float range_lo(const Range& r) {
  return bits_float(static_cast<uint32_t>(ordered(r.lo)));
}
static inline float range_hi(const Range& r) {
  return bits_float(static_cast<uint32_t>(ordered(r.hi)));
}
static inline float max_abs(const Range& r) {
  if (r.count == 0) return 0.0f;
  const float below = -range_lo(r), above = range_hi(r);
  return below > above ? below : above;
}

static inline Range range_of(const float* w, int count) {
  Range r = empty_range();
  for (int i = 0; i < count; ++i) {
    const int32_t o = ordered(static_cast<int32_t>(float_bits(w[i])));
    r.lo = o < r.lo ? o : r.lo;
    r.hi = o > r.hi ? o : r.hi;
  }
  r.count = count;
  return r;
}

// Four running sums: a fixed order of additions, and no chain of dependent ones.
static inline double sum_abs_of(const float* w, int count) {
  double sum[4] = {};
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int j = 0; j < 4; ++j) {
      sum[j] += static_cast<double>(bits_float(float_bits(w[i + j]) & 0x7fffffffu));
    }
  }
  for (int j = 0; i + j < count; ++j) {
    sum[j] += static_cast<double>(bits_float(float_bits(w[i + j]) & 0x7fffffffu));
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Of the differences a - b, which are exact in double.
static inline double squared_distance(const float* a, const float* b, int count) {
  double sum[4] = {};
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int j = 0; j < 4; ++j) {
      const double d = static_cast<double>(a[i + j]) - static_cast<double>(b[i + j]);
      sum[j] += d * d;
    }
  }
  for (int j = 0; i + j < count; ++j) {
    const double d = static_cast<double>(a[i + j]) - static_cast<double>(b[i + j]);
    sum[j] += d * d;
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// A scale as it is stored: at least 1e-12, so that a group of zeros divides by no zero; finite;
// rounded to the scale's dtype, where it becomes neither zero (f16 ends at 2^-24) nor infinite.
static inline float round_scale(float scale, DType dtype) {
  scale = scale > 1e-12f ? scale : 1e-12f;
  if (dtype == DType::f16) {
    scale = scale < 0x1p-24f ? 0x1p-24f : scale > 65504.0f ? 65504.0f : scale;
    return f16_to_f32(f32_to_f16(scale));
  }
  const float largest = dtype == DType::bf16 ? 0x1.fep127f : 0x1.fffffep127f;
  scale = scale > largest ? largest : scale;
  return dtype == DType::bf16 ? bf16_to_f32(f32_to_bf16(scale)) : scale;
}

// How a group of a uniform kind is coded:
//   code = clamp(round(clamp((w - from) / scale, t_min, t_max)) + add, code_min, code_max)
//   value = scale * (code - zero)
// The inner clamp changes no result; it keeps the rounding below in its range whatever the scale
// is.
// Kinds whose codes are no whole numbers use the scale alone, and their table where they have one.
struct Codebook;
struct Uniform {
  float scale, zero;  // as stored
  float from, t_min, t_max;
  int32_t add, code_min, code_max;
  const Codebook* book = nullptr;
};

// 1.5 * 2^23: a float near it has units of 1, so adding it rounds |t| < 2^22 to the nearest even
// integer, and the integer is the difference of the bits.
inline constexpr float kRound = 12582912.0f;
static inline int32_t nearest(float t) {
  return static_cast<int32_t>(float_bits(t + kRound)) - 0x4b400000;
}

static inline void encode_uniform(const Uniform& u, const float* w, int count, uint8_t* codes) {
  for (int i = 0; i < count; ++i) {
    float t = (w[i] - u.from) / u.scale;
    t = t < u.t_min ? u.t_min : t;
    t = t > u.t_max ? u.t_max : t;
    int32_t code = nearest(t) + u.add;
    code = code < u.code_min ? u.code_min : code;
    code = code > u.code_max ? u.code_max : code;
    codes[i] = static_cast<uint8_t>(code);
  }
}

// The values that encode_uniform() would store and decoding give, without the codes: they are small
// integers, so that floats hold them as well.
static inline void round_trip_uniform(const Uniform& u, const float* w, int count, float* out) {
  const float add = static_cast<float>(u.add), lowest = static_cast<float>(u.code_min);
  const float highest = static_cast<float>(u.code_max);
  for (int i = 0; i < count; ++i) {
    float t = (w[i] - u.from) / u.scale;
    t = t < u.t_min ? u.t_min : t;
    t = t > u.t_max ? u.t_max : t;
    float code = ((t + kRound) - kRound) + add;
    code = code < lowest ? lowest : code;
    code = code > highest ? highest : code;
    out[i] = u.scale * (code - u.zero);
  }
}

}  // namespace lowbit
