// One position (decode): K and V are read where they lie, once for up to four query heads, and meet
// them as pairs of bf16 without being copied. Every row sees all keys of the item.
//
//   scores   dimensions in lanes; sixteen sums (4 rows x 4 keys, 2 x 8 or 1 x 16) are added up
//            across lanes together
//   values   the rows of two keys interleaved in registers, in the order of the unpack
//            instructions, which o has until the end
//
// Neither K nor V is looked at for numbers out of the ordinary. Small numbers of K that vdpbf16ps
// takes for zero change no score that matters, because queries and scales are bounded; large ones
// show in the scores, those of V in o, and small ones of V in an o that is small.
#pragma once

#include "csrc/attention/pairs_avx512bf16.h"

namespace lowbit {
namespace {

// Keys of a tile: eight kv heads of head_dim 128 and what follows them have room in an L2 of 1 MiB.
// The key and the value as far ahead are asked for in the same breath as each is read, which comes
// out as the order of memory, tile by tile, where heads of a token lie together; what comes after
// an item is most often the next one's.
constexpr int kStepKeys = 64;

// Lane i: the sum over the lanes of x[i].
inline __m512 add_across(__m512 (&x)[16]) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = _mm512_mask_blend_ps(0xff00, x[i], x[i + 8]);
    const __m512 b = _mm512_mask_blend_ps(0xff00, x[i + 8], x[i]);
    x[i] = _mm512_add_ps(a, _mm512_shuffle_f32x4(b, b, 0x4e));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_mask_blend_ps(0xf0f0, x[i], x[i + 4]);
    const __m512 b = _mm512_mask_blend_ps(0xf0f0, x[i + 4], x[i]);
    x[i] = _mm512_add_ps(a, _mm512_shuffle_f32x4(b, b, 0xb1));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512 a = _mm512_mask_blend_ps(0xcccc, x[i], x[i + 2]);
    const __m512 b = _mm512_mask_blend_ps(0xcccc, x[i + 2], x[i]);
    x[i] = _mm512_add_ps(a, _mm512_permute_ps(b, 0x4e));
  }
  const __m512 a = _mm512_mask_blend_ps(0xaaaa, x[0], x[1]);
  const __m512 b = _mm512_mask_blend_ps(0xaaaa, x[1], x[0]);
  return _mm512_add_ps(a, _mm512_permute_ps(b, 0xb1));
}

// s[r][j] = q[r] . k[j] for kRows rows and 16 / kRows keys; keys past the last one repeat it.
template <int kRows>
inline void score_keys(const Bf16* q, int64_t q_stride, const Bf16* k, int64_t k_stride, int left,
                       int64_t head_dim, float* s) {
  constexpr int kKeys = 16 / kRows;
  const Bf16* key[kKeys];
#pragma GCC unroll 16
  for (int j = 0; j < kKeys; ++j) key[j] = k + (j < left ? j : left - 1) * k_stride;
  __m512 acc[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) acc[i] = _mm512_setzero_ps();
  for (int64_t d = 0; d < head_dim; d += 32) {
    const __mmask32 words = first_words(head_dim - d);
    __m512i a[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) a[r] = _mm512_loadu_si512(q + r * q_stride + d);
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      __builtin_prefetch(key[j] + kStepKeys * k_stride + d, 0, 2);  // the next tile's, into L2
      const __m512i x = _mm512_maskz_loadu_epi16(words, key[j] + d);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[r * kKeys + j] = dot(acc[r * kKeys + j], a[r], x);
    }
  }
  const __m512 sums = add_across(acc);
  if constexpr (kRows == 1) {
    _mm512_storeu_ps(s, sums);
  } else if constexpr (kRows == 2) {
    _mm256_storeu_ps(s, _mm512_castps512_ps256(sums));
    _mm256_storeu_ps(s + kTile, _mm512_extractf32x8_ps(sums, 1));
  } else {
    _mm_storeu_ps(s, _mm512_castps512_ps128(sums));
    _mm_storeu_ps(s + kTile, _mm512_extractf32x4_ps(sums, 1));
    _mm_storeu_ps(s + 2 * kTile, _mm512_extractf32x4_ps(sums, 2));
    _mm_storeu_ps(s + 3 * kTile, _mm512_extractf32x4_ps(sums, 3));
  }
}

// o[r] = o[r] * shrink[r] + sum of p[r][j] * v[j] over `count` keys, for kRows rows and kParts
// parts of 32 dimensions, of which the last has `words`.
template <int kRows, int kParts>
inline void value_keys(const uint32_t* p, const float* shrink, const Bf16* v, int64_t v_stride,
                       int count, __mmask32 words, float* o, int64_t o_stride) {
  constexpr int kVectors = 2 * kParts;
  __m512 acc[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m512 by = _mm512_set1_ps(shrink[r]);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      acc[r][i] = _mm512_mul_ps(_mm512_loadu_ps(o + r * o_stride + 16 * i), by);
    }
  }
  const auto add = [&](int j, __mmask32 of_next) {
    const Bf16 *row = v + j * v_stride, *next = row + v_stride;
    __m512i x[kVectors];
#pragma GCC unroll 2
    for (int i = 0; i < kParts; ++i) {
      const __mmask32 here = i + 1 < kParts ? ~__mmask32{0} : words;
      __builtin_prefetch(row + kStepKeys * v_stride + 32 * i, 0, 2);
      __builtin_prefetch(next + kStepKeys * v_stride + 32 * i, 0, 2);
      const __m512i a = _mm512_maskz_loadu_epi16(here, row + 32 * i);
      const __m512i b = _mm512_maskz_loadu_epi16(here & of_next, next + 32 * i);
      x[2 * i] = _mm512_unpacklo_epi16(a, b);
      x[2 * i + 1] = _mm512_unpackhi_epi16(a, b);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512i w = _mm512_set1_epi32(static_cast<int>(p[r * (kTile / 2) + j / 2]));
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[r][i] = dot(acc[r][i], w, x[i]);
    }
  };
  int j = 0;
  for (; j + 2 <= count; j += 2) add(j, ~__mmask32{0});
  if (j < count) add(j, 0);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(o + r * o_stride + 16 * i, acc[r][i]);
  }
}

// The tile of one item. `low` and `high` are its limits for every row: all of its keys.
struct StepTile {
  const Bf16 *k, *v;
  int64_t k_stride, v_stride;
  int64_t first;
  int count;
  const int *low, *high;
};

template <int kRows>
void step_rows_of(const Call& c, const Item& item, const Scratch& t, const StepTile& tile, int r0) {
  const Plan& p = c.plan;
  const auto* q = reinterpret_cast<const Bf16*>(t.q) + r0 * p.head_dim_pad;
  float* s = t.s;
  auto* weights = reinterpret_cast<uint32_t*>(t.s + 4 * kTile);
  const int end = (tile.count + 31) / 32 * 32;
  for (int j = 0; j < tile.count; j += 16 / kRows) {
    score_keys<kRows>(q, p.head_dim_pad, tile.k + j * tile.k_stride, tile.k_stride, tile.count - j,
                      p.head_dim, s + j);
  }
  for (int r = 0; r < kRows && r0 + r < item.rows; ++r) {
    __m512i most = _mm512_setzero_si512();
    for (int j = 0; j < tile.count; j += 16) {
      const auto lanes = static_cast<__mmask16>(first_words(tile.count - j));
      most = _mm512_max_epu32(most, _mm512_maskz_loadu_epi32(lanes, s + r * kTile + j) &
                                        _mm512_set1_epi64(0x7fffffff7fffffff));
    }
    // Not below 2^96, or no number.
    const __m512i limit = _mm512_set1_epi32((127 + 96) << 23);
    if (_mm512_cmpge_epu32_mask(most, limit) != 0) t.exact[r0 + r] = 1;
  }
  score_step_rows(c, item, t, tile.low, tile.high, r0, kRows, tile.first, 0, end, s, weights);
  for (int64_t d = 0; d < p.head_dim_v;) {
    const int64_t left = p.head_dim_v - d;
    float* o = t.o + r0 * p.head_dim_v_pad + d;
    if (left > 32) {
      value_keys<kRows, 2>(weights, t.shrink + r0, tile.v + d, tile.v_stride, tile.count,
                           first_words(left - 32), o, p.head_dim_v_pad);
      d += 64;
    } else {
      value_keys<kRows, 1>(weights, t.shrink + r0, tile.v + d, tile.v_stride, tile.count,
                           first_words(left), o, p.head_dim_v_pad);
      d += 32;
    }
  }
}

// Brings o into its natural order, and marks the rows whose o is no finite number, or so small that
// what was taken for zero may count.
void settle(const Call& c, const Item& item, const Scratch& t) {
  const AttentionArgs& a = *c.args;
  const Plan& p = c.plan;
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const __m512i sign = _mm512_set1_epi32(0x7fffffff);
  bool small = false;
  for (int r = 0; r < item.rows; ++r) {
    float* o = t.o + r * p.head_dim_v_pad;
    __m512i most = _mm512_setzero_si512(), least = sign;
    for (int64_t d = 0; d < p.head_dim_v_pad; d += 32, o += 32) {
      const __m512 x = _mm512_loadu_ps(o), y = _mm512_loadu_ps(o + 16);
      const __m512 first = _mm512_permutex2var_ps(x, low, y);
      const __m512 second = _mm512_permutex2var_ps(x, high, y);
      _mm512_storeu_ps(o, first);
      _mm512_storeu_ps(o + 16, second);
      const __m512i u = _mm512_castps_si512(first) & sign, v = _mm512_castps_si512(second) & sign;
      const __mmask32 there = first_words(p.head_dim_v - d);
      most = _mm512_max_epu32(most, _mm512_max_epu32(u, v));
      least = _mm512_mask_min_epu32(least, static_cast<__mmask16>(there), least, u);
      least = _mm512_mask_min_epu32(least, static_cast<__mmask16>(there >> 16), least, v);
    }
    if (_mm512_cmpge_epu32_mask(most, _mm512_set1_epi32(0x7f800000)) != 0) t.exact[r] = 1;
    small = small || _mm512_cmplt_epu32_mask(least, _mm512_set1_epi32((127 - 80) << 23)) != 0;
  }
  if (!small) return;
  Range range = no_range();
  const Bf16* v = static_cast<const Bf16*>(a.v.data) + item.s.v + item.kv_head * head_stride(a.v);
  for (int64_t j = item.keys.begin; j < item.keys.end; ++j) {
    take_row(range, v + j * token_stride(a.v), p.head_dim_v);
  }
  if (is_ordinary(range)) return;
  for (int r = 0; r < item.rows; ++r) t.exact[r] = 1;
}

// Items of one position that differ in the kv head alone; `padded` is the room of each one's rows.
void step_pairs(const Call& c, const Item* items, int count, int padded, const Scratch& t) {
  const AttentionArgs& a = *c.args;
  const Plan& p = c.plan;
  const int rows = items[0].rows;
  const KeyRange keys = items[0].keys;
  for (int i = 0; i < count; ++i) {
    const Scratch own = from_row(t, p, i * padded);
    const int32_t flag = has_ordinary_options(c, items[i]) ? 0 : 1;
    Range range = no_range();
    auto* q = reinterpret_cast<Bf16*>(own.q);
    for (int r = 0; r < padded; ++r, q += p.head_dim_pad) {
      own.exact[r] = flag;
      const Bf16* from = query_row<Bf16>(c, items[i], r < rows ? r : rows - 1);
      for (int64_t d = 0; d < p.head_dim; d += 32) {
        _mm512_storeu_si512(q + d, _mm512_maskz_loadu_epi16(first_words(p.head_dim - d), from + d));
      }
      take_row(range, from, p.head_dim);
    }
    if (!is_ordinary(range)) mark_queries(c, items[i], own.exact);
    start_states<V>(c, items[i], own);
    for (int64_t d = rows * p.head_dim_v_pad; d < padded * p.head_dim_v_pad; ++d) own.o[d] = 0;
  }
  StepTile tile = {};
  tile.k_stride = token_stride(a.k);
  tile.v_stride = token_stride(a.v);
  tile.low = t.low;
  tile.high = t.high;
  for (int64_t first = keys.begin; first < keys.end; first += kStepKeys) {
    const int64_t left = keys.end - first;
    tile.first = first;
    tile.count = left < kStepKeys ? static_cast<int>(left) : kStepKeys;
    for (int r = 0; r < padded; ++r) {
      t.low[r] = 0;
      t.high[r] = tile.count;
    }
    for (int i = 0; i < count; ++i) {
      const Item& item = items[i];
      const Bf16* k = static_cast<const Bf16*>(a.k.data) + item.s.k + first * tile.k_stride;
      const Bf16* v = static_cast<const Bf16*>(a.v.data) + item.s.v + first * tile.v_stride;
      tile.k = k + item.kv_head * head_stride(a.k);
      tile.v = v + item.kv_head * head_stride(a.v);
      const Scratch own = from_row(t, p, i * padded);
      for (int r = 0; r < rows; r += 4) {
        switch (rows - r) {
          case 1: step_rows_of<1>(c, item, own, tile, r); break;
          case 2: step_rows_of<2>(c, item, own, tile, r); break;
          default: step_rows_of<4>(c, item, own, tile, r); break;
        }
      }
    }
  }
  for (int i = 0; i < count; ++i) {
    const Scratch own = from_row(t, p, i * padded);
    settle(c, items[i], own);
    finish<V>(c, items[i], own);
  }
}

}  // namespace
}  // namespace lowbit
