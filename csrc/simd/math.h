// exp, the logistic function and the normal distribution's integral for single precision, of a
// float or of Lanes: no branches and no tables, so that a loop over the float form becomes vector
// code under the flags of whichever file includes this one. The double overloads are for the
// reference rows and call the C library.
//
// Largest errors against the exact value, over every 1025th float: exp_of 1.0 ulp, sigmoid_of 2.1;
// normal_cdf 6 where it is below one half (where 1 + erf would cancel: 14 ulp at -2, all digits
// from -6 on) and 1.5 above.
#pragma once

#include <cmath>

#include "csrc/base/dtype.h"
#include "csrc/simd/lanes.h"

namespace lowbit {

// condition ? a : b, by masks: compilers sink the computation of a and b into a branch otherwise,
// which they then can't turn into vector code.
static inline float either(bool condition, float a, float b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return bits_float((float_bits(a) & mask) | (float_bits(b) & ~mask));
}
static inline uint32_t halve(uint32_t v) {
  return static_cast<uint32_t>(static_cast<int32_t>(v) >> 1);
}
static inline float absolute(float v) { return v < 0.0f ? -v : v; }
// Written so that a NaN passes both comparisons.
static inline float at_most(float v, float limit) { return v > limit ? limit : v; }
static inline float at_least(float v, float limit) { return v < limit ? limit : v; }

// F is float or Lanes from here on.

// e^(x + low) for |low| < 2^-3, x finite and within [-104, 89].
template <class F>
static inline F exp_of_sum(F x, F low) {
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  const F shifted = x * 0x1.715476p0f + 0x1.8p23f;
  const F n = shifted - 0x1.8p23f;
  const auto i = float_bits(shifted) - 0x4b400000u;
  // ln 2 in two parts; n has at most 8 bits and the first part 9, so the first product is exact.
  const F r = (x - n * 0x1.63p-1f) - (n * -0x1.bd0106p-13f - low);
  // (e^r - 1 - r) / r^2 on [-0.35, 0.35]: minimax of degree 4, error 8e-9 of e^r.
  F p = r * 0x1.6d7c4ap-10f + 0x1.12107p-7f;
  p = p * r + 0x1.5554b2p-5f;
  p = p * r + 0x1.5554d8p-3f;
  p = p * r + 0.5f;
  const F y = (p * (r * r) + r) + 1.0f;
  // 2^n in two factors: either alone is a normal number for every n from -150 to 129.
  const auto half = halve(i);
  return y * bits_float((half + 127u) << 23) * bits_float((i - half + 127u) << 23);
}

// e^x. Overflows to inf above 88.72, rounds gradually to 0 below -87.3; a NaN stays a NaN.
template <class F>
static inline F exp_of(F x) {
  // Outside of these bounds the result is inf or 0 anyway.
  return exp_of_sum(at_least(at_most(x, 89.0f), -104.0f), F{});
}
static inline double exp_of(double x) { return std::exp(x); }

// 1 / (1 + e^-x), by way of e^-|x|, which can't overflow.
template <class F>
static inline F sigmoid_of(F x) {
  const F z = exp_of_sum(at_least(-absolute(x), -104.0f), F{});
  return either(x < 0.0f, z, F{} + 1.0f) / (1.0f + z);
}
static inline double sigmoid_of(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// The integral of the normal distribution up to x: (1 + erf(x / sqrt 2)) / 2.
template <class F>
static inline F normal_cdf(F x) {
  const F a = at_most(absolute(x), 14.4f);  // the tail is 0 in f32 from there on
  // e^(-a^2 / 2) loses digits when a^2 is rounded: split a so that its head's square is exact.
  const F head = bits_float(float_bits(a) & 0xfffff000u);
  const F e = exp_of_sum(head * head * -0.5f, (a - head) * (a + head) * -0.5f);
  // tail(a) e^(a^2 / 2) (a + 3) as a polynomial in a / (a + 3): minimax on [0, 14.5], error 1e-9 of
  // it.
  const F u = 1.0f / (a + 3.0f);
  const F t = a * u;
  F p = t * 0.0557619221f + -0.211607704f;
  p = p * t + 0.262255856f;
  p = p * t + -0.11314598f;
  p = p * t + 0.115811788f;
  p = p * t + -0.138906755f;
  p = p * t + -0.256546822f;
  p = p * t + 0.206746954f;
  p = p * t + 1.06905837f;
  p = p * t + -2.09048093f;
  p = p * t + 1.5f;
  const F tail = e * (p * u);
  // tail where x is negative, 1 - tail elsewhere (a NaN included).
  return either(x < 0.0f, tail, 1.0f - tail);
}
static inline double normal_cdf(double x) { return 0.5 * std::erfc(x * -0.70710678118654752440); }

}  // namespace lowbit
