// What the two ways of attention_bf16_avx512bf16 share: products of bf16 pairs, what they can't
// take, and P of a row of scores.
#pragma once

#include "csrc/attention/flash.h"
#include "csrc/attention/lanes_avx512.h"

namespace lowbit {
namespace {

struct Bf16Dots : Avx512 {
  static constexpr bool kRoundsP = true;
};
using V = Bf16Dots;

// Keys of a tile of scores at most, the stride of s and twice that of p.
constexpr int kTile = 128;

inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

inline __mmask32 first_words(int64_t n) {
  return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
}

// What was packed: the largest magnitude as bits, and the least of those that are not zero less
// one.
struct Range {
  __m512i largest, least;
};
inline Range no_range() { return {_mm512_setzero_si512(), _mm512_set1_epi16(-1)}; }
inline void take(Range& range, __m512i x) {
  const __m512i magnitude = _mm512_and_si512(x, _mm512_set1_epi16(0x7fff));
  range.largest = _mm512_max_epu16(range.largest, magnitude);
  range.least = _mm512_min_epu16(range.least, _mm512_add_epi16(magnitude, _mm512_set1_epi16(-1)));
}
// All zero or of magnitudes in [2^-64, 2^48): no product or sum of them leaves the normal numbers
// of f32 by more than what rounding loses anyway, and none is inf.
inline bool is_ordinary(const Range& range) {
  constexpr short kLeast = (127 - 64) << 7, kMost = (127 + 48) << 7;
  return (_mm512_cmpge_epu16_mask(range.largest, _mm512_set1_epi16(kMost)) |
          _mm512_cmplt_epu16_mask(range.least, _mm512_set1_epi16(kLeast - 1))) == 0;
}

inline void take_row(Range& range, const Bf16* row, int64_t n) {
  for (int64_t d = 0; d < n; d += 32) {
    take(range, _mm512_maskz_loadu_epi16(first_words(n - d), row + d));
  }
}

// Whether the options of the call keep all scores finite.
bool has_ordinary_options(const Call& c, const Item& item) {
  const ScoreRule& rule = c.rule;
  if (!(std::fabs(rule.scale) <= 0x1p20f)) return false;
  for (int64_t h = item.head; h < item.head + item.heads_here; ++h) {
    for (const Tensor* t : {&c.args->alibi_slopes, &c.args->sinks}) {
      if (!(std::fabs(option_of(*t, h, 0)) <= 0x1p30f)) return false;
    }
  }
  return true;
}

inline __m512i to_pairs(__m512 a, __m512 b) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
}

// One row of a tile over [begin, end), whole vectors of 32 keys: s becomes P for the keys [low,
// high) that the row sees and 0 elsewhere, (m, l) take them in. Returns the factor by which o
// shrinks.
template <bool kLse>
inline float softmax_pairs(const ScoreRule& rule, const float* s, int begin, int end, float* m,
                           float* l, float* lse_l, uint32_t* p) {
  __m512 largest = _mm512_max_ps(_mm512_loadu_ps(s + begin), _mm512_loadu_ps(s + begin + 16));
  for (int j = begin + 32; j < end; j += 32) {
    largest =
        _mm512_max_ps(largest, _mm512_max_ps(_mm512_loadu_ps(s + j), _mm512_loadu_ps(s + j + 16)));
  }
  const float before = *m;
  const __m512 factor = _mm512_set1_ps(rule.factor), lowest = _mm512_set1_ps(rule.lowest);
  __m512 sum = _mm512_loadu_ps(l), lse_sum = _mm512_setzero_ps();
  if constexpr (kLse) lse_sum = _mm512_loadu_ps(lse_l);
  float shrink = 1.0f;
  if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(before), _CMP_GT_OQ) != 0) {
    *m = V::reduce_max(largest);
    const __m512 by = exp2<V>(_mm512_set1_ps(before - *m), factor, lowest);
    shrink = _mm512_cvtss_f32(by);
    sum = _mm512_mul_ps(sum, by);
    if constexpr (kLse) lse_sum = _mm512_mul_ps(lse_sum, by);
  }
  const __m512 shift = _mm512_set1_ps(*m);
  const __m512i ones = _mm512_set1_epi16(0x3f80);
  for (int j = begin; j < end; j += 32) {
    const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(s + j), shift);
    const __m512 y = _mm512_sub_ps(_mm512_loadu_ps(s + j + 16), shift);
    const __m512 a = exp2<V, !kLse>(x, factor, lowest), b = exp2<V, !kLse>(y, factor, lowest);
    const __m512i pairs = to_pairs(a, b);
    sum = dot(sum, pairs, ones);
    if constexpr (kLse) lse_sum = _mm512_add_ps(lse_sum, _mm512_add_ps(a, b));
    _mm512_storeu_si512(p + j / 2, pairs);
  }
  _mm512_storeu_ps(l, sum);
  if constexpr (kLse) _mm512_storeu_ps(lse_l, lse_sum);
  return shrink;
}

// Sets what lies outside of [low, high) in [begin, end).
inline void fill_outside(float* s, int begin, int end, int low, int high, float value) {
  for (int j = begin; j < low; ++j) s[j] = value;
  for (int j = high; j < end; ++j) s[j] = value;
}

// P of the rows of a step, from their scores over the panels [begin, end) of the tile whose keys
// start at `first`. r0 is the step's first row of the item.
void score_step_rows(const Call& c, const Item& item, const Scratch& t, const int* low,
                     const int* high, int r0, int rows, int64_t first, int begin, int end, float* s,
                     uint32_t* p) {
  const bool lse = present(c.args->lse);
  for (int r = 0; r < rows; ++r, s += kTile, p += kTile / 2) {
    const int row = r0 + r, a = low[row], b = high[row];
    if (row >= item.rows || a >= b) {
      for (int j = begin; j < end; j += 32) {
        _mm512_storeu_si512(p + j / 2, _mm512_setzero_si512());
      }
      t.shrink[row] = 1.0f;
      continue;
    }
    if (c.rule.transform) {
      const int64_t position = position_of(item.s, item.first + row / item.heads_here);
      const float slope = option_of(c.args->alibi_slopes, item.head + row % item.heads_here, 0);
      transform_scores<V>(c.rule, slope, static_cast<float>(first - position), s, begin, end);
    }
    if (c.rule.sigmoid) {
      sigmoid_row<V>(c.rule, s, begin, end);
      fill_outside(s, begin, end, a, b, 0.0f);
      for (int j = begin; j < end; j += 32) {
        _mm512_storeu_si512(p + j / 2, to_pairs(V::load(s + j), V::load(s + j + 16)));
      }
      t.shrink[row] = 1.0f;
      continue;
    }
    if (a > begin || b < end) fill_outside(s, begin, end, a, b, -INFINITY);
    float *m = t.m + row, *l = t.l + row * V::kLanes, *lse_l = t.lse_l + row * V::kLanes;
    t.shrink[row] = lse ? softmax_pairs<true>(c.rule, s, begin, end, m, l, lse_l, p)
                        : softmax_pairs<false>(c.rule, s, begin, end, m, l, lse_l, p);
  }
}

// Scratch of the rows from r on.
Scratch from_row(const Scratch& t, const Plan& p, int r) {
  Scratch out = t;
  out.q += r * p.head_dim_pad / 2;
  out.o += r * p.head_dim_v_pad;
  out.m += r;
  out.l += r * V::kLanes;
  out.lse_l += r * V::kLanes;
  out.shrink += r;
  out.exact += r;
  return out;
}

// Marks the rows whose query is out of the ordinary.
void mark_queries(const Call& c, const Item& item, int32_t* exact) {
  for (int r = 0; r < item.rows; ++r) {
    Range range = no_range();
    take_row(range, query_row<Bf16>(c, item, r), c.plan.head_dim);
    if (!is_ordinary(range)) exact[r] = 1;
  }
}

}  // namespace
}  // namespace lowbit
