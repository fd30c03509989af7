// Online softmax, for any vector width: exp2, tanh and what one row of a score tile goes through.
// Milakov and Gimelshein, Online normalizer calculation for softmax, 2018.
//
// A row's state is (m, l, o): the largest score so far, the sum of exp and the weighted sum of
// values, both relative to m. The exponential is exp(unit * (s - m)) = 2^(factor * (s - m)), so
// that softmax_scale costs no multiplication of its own.
//
// V is the vector type of an ISA file (see flash.h). Of V's min and max this header asks that the
// second operand is returned where either is NaN, as x86 has it: then clamping keeps NaN.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

namespace lowbit {

inline constexpr float kLog2E = 1.44269504f;

// Minimax polynomial of degree 6 for 2^f on [-0.5, 0.5], relative error 2e-9, with p(0) = 1 so that
// the largest score gets P = 1 exactly. Evaluated in f32 it is within 0.94 ulp everywhere; degree 5
// saves one step of ten and is within 2.0 ulp.
inline constexpr float kExp2[] = {1.0f,           0.693147203f,   0.240226479f,   0.0555033247f,
                                  0.00961843736f, 0.00133988745f, 0.000153533621f};

// The same of degree 4, relative error 3e-6: for P that is rounded to bf16.
inline constexpr float kExp2Short[] = {1.0f, 0.693124175f, 0.240240991f, 0.0559064262f,
                                       0.00958285294f};

// Adding this leaves round(x) + 127 in the low bits of the sum's mantissa, for |x| < 2^21.
inline constexpr float kRound = 12582912.0f + 127.0f;

// (2^f - 1) / f
template <class V, bool kShort = false>
static inline typename V::F exp2_slope(typename V::F f) {
  constexpr int kDegree = kShort ? 4 : 6;
  const float* c = kShort ? kExp2Short : kExp2;
  typename V::F q = V::set1(c[kDegree]);
  for (int i = kDegree - 1; i >= 1; --i) q = V::fma(q, f, V::set1(c[i]));
  return q;
}

// 2^(factor * x) for factor * x < 128; 0 for x <= lowest = -127 / factor; NaN for NaN.
template <class V, bool kShort = false>
static inline typename V::F exp2(typename V::F x, typename V::F factor, typename V::F lowest) {
  x = V::max(lowest, x);
  const typename V::F t = V::fma(x, factor, V::set1(kRound));
  const typename V::F f = V::fms(x, factor, V::sub(t, V::set1(kRound)));
  // t's low bits are the exponent field of 2^round(factor * x): zero, and so the power, for -127.
  return V::mul(V::fma(exp2_slope<V, kShort>(f), f, V::set1(1.0f)), V::shift_to_exponent(t));
}

// tanh(x) = (e - 1) / (e + 1), e = exp(2 |x|), with e - 1 formed without cancellation: a softcap
// leaves small scores nearly as they were, so the relative error counts.
template <class V>
static inline typename V::F tanh(typename V::F x) {
  // 2^30 is far enough: tanh is 1 in f32 from e = 2^25 on.
  const typename V::F u = V::min(V::set1(30.0f), V::mul(V::abs(x), V::set1(2.0f * kLog2E)));
  const typename V::F t = V::add(u, V::set1(kRound));
  const typename V::F f = V::sub(u, V::sub(t, V::set1(kRound)));
  const typename V::F power = V::shift_to_exponent(t);
  const typename V::F e1 = V::fma(power, V::mul(exp2_slope<V>(f), f), V::sub(power, V::set1(1.0f)));
  return V::copysign(V::div(e1, V::add(e1, V::set1(2.0f))), x);
}

// What scores go through before the exponential, fixed for a call.
struct ScoreRule {
  float scale;    // softmax_scale
  float softcap;  // 0: none
  bool alibi;
  bool sigmoid;
  bool transform;  // transform_scores comes first; else it is left out and s stays q . k
  float unit;    // one unit of s is this much of a final score: scale, or 1 after transform_scores
  float factor;  // unit * log2(e)
  float lowest;  // -127 / factor
};

static inline ScoreRule make_rule(float scale, float softcap, bool alibi, bool bias, bool sigmoid) {
  ScoreRule rule = {scale, softcap, alibi, sigmoid, softcap > 0 || alibi || bias, 0, 0, 0};
  // The maximum is taken in units of s, so a unit must be positive; a tiny one would overflow
  // `lowest`.
  if (!(scale > 0x1p-60f)) rule.transform = true;
  rule.unit = rule.transform ? 1.0f : scale;
  rule.factor = rule.unit * kLog2E;
  rule.lowest = -127.0f / rule.factor;
  return rule;
}

// s[j] = cap(scale * s[j]) + slope * (offset + j) for the whole vectors of [begin, end).
template <class V>
static void transform_scores(const ScoreRule& rule, float slope, float offset, float* s, int begin,
                             int end) {
  const bool capped = rule.softcap > 0;
  const typename V::F scale = V::set1(capped ? rule.scale / rule.softcap : rule.scale);
  const typename V::F cap = V::set1(rule.softcap);
  for (int j = begin; j < end; j += V::kLanes) {
    typename V::F x = V::mul(V::load(s + j), scale);
    if (capped) x = V::mul(tanh<V>(x), cap);
    if (rule.alibi) {
      const typename V::F distance =
          V::add(V::set1(offset + static_cast<float>(j)), V::iota());  // whole numbers: exact
      x = V::fma(V::set1(slope), distance, x);
    }
    V::store(s + j, x);
  }
}

// P = 1 / (1 + exp(-s)) for the whole vectors of [begin, end).
template <class V>
static void sigmoid_row(const ScoreRule& rule, float* s, int begin, int end) {
  const typename V::F factor = V::set1(-rule.factor), one = V::set1(1.0f);
  for (int j = begin; j < end; j += V::kLanes) {
    const typename V::F x = V::min(V::set1(126.0f), V::mul(V::load(s + j), factor));
    V::store(s + j, V::div(one, V::add(exp2<V>(x, one, V::set1(-127.0f)), one)));
  }
}

// The largest score, to which the others are relative.
struct Largest {
  float operator()(float largest) const { return largest; }
};

// One row of a tile: s[j] becomes P for j in [low, high), low < high, which are the keys that the
// row sees, and (m, l) take them in; l has a partial sum for each lane. Works on whole vectors:
// lanes outside [low, high) are overwritten with P = 0. A new largest score becomes the m that
// `settle` makes of it, which must be near it. Returns the factor by which o shrinks.
template <class V, class Settle = Largest>
static float softmax_row(const ScoreRule& rule, float* s, int low, int high, float* m, float* l,
                         Settle settle = {}) {
  using F = typename V::F;
  const int begin = low / V::kLanes * V::kLanes;
  const int end = (high + V::kLanes - 1) / V::kLanes * V::kLanes;
  for (int j = begin; j < low; ++j) s[j] = -INFINITY;
  for (int j = high; j < end; ++j) s[j] = -INFINITY;
  F largest = V::load(s + begin);
  for (int j = begin + V::kLanes; j < end; j += V::kLanes) {
    largest = V::max(largest, V::load(s + j));
  }
  const float row_max = V::reduce_max(largest);
  const float before = *m;
  const float after = row_max > before ? settle(row_max) : before;
  // Relative to 0 while all scores are -inf: -inf minus -inf is no number.
  const float base = after == -INFINITY ? 0.0f : after;
  const F shift = V::set1(base), factor = V::set1(rule.factor), lowest = V::set1(rule.lowest);
  F sum = V::zero();
  for (int j = begin; j < end; j += V::kLanes) {
    const F p = exp2<V>(V::sub(V::load(s + j), shift), factor, lowest);
    sum = V::add(sum, p);
    V::store(s + j, p);
  }
  if (after == before) {
    V::store(l, V::add(V::load(l), sum));
    return 1.0f;
  }
  *m = after;
  const F shrink = exp2<V>(V::set1(before - base), factor, lowest);
  V::store(l, V::fma(V::load(l), shrink, sum));
  return V::first(shrink);
}

}  // namespace lowbit
