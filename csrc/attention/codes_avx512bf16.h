// Keys and values of a cache for products of bf16 pairs: codes of 8 and 4 bits are whole numbers or
// small floats that bf16 holds exactly, so a tile is decoded to rows of bf16 codes, and scales and
// zeros meet scores and weights instead of keys and values:
//
//   score     ks[j] * (q . code[j] - kz[j] * (sum of q))
//   values    w[j] = P[j] * vs[j] rounded to bf16;  sum of w[j] * code[j]  -  sum of w[j] * vz[j]
//   sum l     of w[j] / vs[j], so that the weights add up to one
//
// Where values have no scales the largest weight, P = 1, is not rounded, and the largest ones are
// what counts. So m is not the largest score itself but as little beside it as makes P * vs of its
// key a number that bf16 has: at most 2^-8 in the exponent of e.
//
// int4's codes are taken less 8, and so are its zeros: what is subtracted is small then.
// Tokens of a bf16 prefix have the scale 1 and the zero 0. step_avx512bf16.h does the same in
// registers.
#pragma once

#include "csrc/attention/pairs_avx512bf16.h"

namespace lowbit {
namespace {

// Scales and zeros of the keys of a tile; whole vectors are written.
struct TileScales {
  static constexpr int kRoom = kTile + 16;
  alignas(64) float key[kRoom], key_zero[kRoom], value[kRoom], inverse[kRoom], value_zero[kRoom];
  bool zeros;  // whether any is not 0
};

constexpr KvFormatSet kPairFormats =
    bit(KvFormat::bf16) | bit(KvFormat::fp8_e4m3) | bit(KvFormat::int8) | bit(KvFormat::int4);

// 32 bytes of codes as bf16.
inline __m512i bf16_of_int8(__m256i bytes) {
  const __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
  const __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
  return to_pairs(a, b);
}
inline __m512i bf16_of_e4m3(__m256i bytes) {
  return to_pairs(avx512::e4m3_16(_mm256_castsi256_si128(bytes)),
                  avx512::e4m3_16(_mm256_extracti128_si256(bytes, 1)));
}
// Codes 0 to 15 less 8.
inline __m512i bf16_of_int4(__m512i words) {
  alignas(64) static constexpr uint16_t kTable[32] = {
      0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
  return _mm512_permutexvar_epi16(words, _mm512_load_si512(kTable));
}

inline void decode_codes(KvFormat format, const uint8_t* codes, int64_t dim, Bf16* out) {
  if (format == KvFormat::bf16) {
    std::memcpy(out, codes, static_cast<size_t>(2 * dim));
    return;
  }
  const int64_t bytes = format == KvFormat::int4 ? dim / 2 : dim;
  for (int64_t d = 0; d < bytes; d += 32) {
    const __mmask32 there = first_words(bytes - d);
    const __m256i x = _mm256_maskz_loadu_epi8(there, codes + d);
    if (format == KvFormat::int4) {
      const __m512i words = _mm512_cvtepu8_epi16(x), low = _mm512_set1_epi16(15);
      _mm512_mask_storeu_epi16(out + d, there, bf16_of_int4(_mm512_and_si512(words, low)));
      _mm512_mask_storeu_epi16(out + bytes + d, there, bf16_of_int4(_mm512_srli_epi16(words, 4)));
    } else {
      _mm512_mask_storeu_epi16(out + d, there,
                               format == KvFormat::int8 ? bf16_of_int8(x) : bf16_of_e4m3(x));
    }
  }
}

// The scale of a token of codes is above 0 and finite, or all of it reads as NaN.
inline bool is_scale(float x) { return std::isfinite(x) && x > 0; }

// Scales of consecutive tokens, 1 where there is none or where it is no scale. Whether all are.
inline bool take_scales(const KvTokens& from, float* scale, float* inverse) {
  const __m512 ones = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
  bool good = true;
  for (int i = 0; i < from.count; i += 16) {
    __m512 x = ones;
    if (!is_float(from.format)) {
      const auto there = static_cast<__mmask16>(first_words(from.count - i));
      const __m512 read = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, from.scales + 2 * i));
      const __mmask16 is = _mm512_cmp_ps_mask(read, zero, _CMP_GT_OQ) &
                           _mm512_cmp_ps_mask(read, _mm512_set1_ps(INFINITY), _CMP_LT_OQ);
      x = _mm512_mask_mov_ps(ones, is, read);
      good = good && (is & there) == there;
    }
    _mm512_storeu_ps(scale + i, x);
    if (inverse != nullptr) _mm512_storeu_ps(inverse + i, _mm512_div_ps(ones, x));
  }
  return good;
}
// Zeros of codes that are taken `offset` larger than they are.
inline void take_zeros(const KvTokens& from, float offset, float* zero) {
  for (int i = 0; i < from.count; i += 16) {
    __m512 x = _mm512_setzero_ps();
    if (from.format == KvFormat::int4) {
      const auto there = static_cast<__mmask16>(first_words(from.count - i));
      x = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, from.zeros + 2 * i));
      x = _mm512_add_ps(x, _mm512_set1_ps(offset));
    }
    _mm512_storeu_ps(zero + i, x);
  }
}
// Of the tokens from key j of a tile on.
inline bool take_scales(const KvTokens& keys, const KvTokens& values, int j, float offset,
                        TileScales* to) {
  const bool k = take_scales(keys, to->key + j, nullptr);
  const bool v = take_scales(values, to->value + j, to->inverse + j);
  if (to->zeros) {
    take_zeros(keys, offset, to->key_zero + j);
    take_zeros(values, offset, to->value_zero + j);
  }
  return k && v;
}
// What fills up a tile of `room` keys, or its last panel, behind `count` keys.
inline void fill_scales(int count, int room, TileScales* to) {
  for (int j = count; j < room; ++j) {
    to->key[j] = to->value[j] = to->inverse[j] = 1.0f;
    to->key_zero[j] = to->value_zero[j] = 0.0f;
  }
}

// The first code of a token without a scale becomes NaN.
inline void mark_tokens(const KvTokens& from, Bf16* row, int64_t stride) {
  for (int i = 0; i < from.count && !is_float(from.format); ++i, row += stride) {
    if (!is_scale(f16_to_f32(kv_half(from.scales + 2 * i)))) row->bits = 0x7fc0;
  }
}

// The keys [first, first + count) of an item.
inline Source<Bf16> decode_pairs(const Call& c, const Item& item, int64_t first, int count,
                                 const Scratch& t, TileScales* scales) {
  const Plan& p = c.plan;
  auto* k = reinterpret_cast<Bf16*>(t.tile_k);
  auto* v = reinterpret_cast<Bf16*>(t.tile_v);
  scales->zeros = c.args->kv.format == KvFormat::int4;
  for (int j = 0; j < count;) {
    const KeyRun run = key_run(*c.args, item.s, item.kv_head, first + j, count - j);
    const auto tokens = [&](int64_t dim, bool of_values) {
      return kv_tokens(run.format, *run.form, run.block, run.token, run.count, dim, of_values);
    };
    const KvTokens keys = tokens(p.head_dim, false), values = tokens(p.head_dim_v, true);
    const int64_t k_bytes = kv_row_bytes(run.format, p.head_dim);
    const int64_t v_bytes = kv_row_bytes(run.format, p.head_dim_v);
    Bf16 *to_k = k + j * p.head_dim_pad, *to_v = v + j * p.head_dim_v_pad;
    for (int i = 0; i < run.count; ++i) {
      decode_codes(run.format, keys.codes + i * k_bytes, p.head_dim, to_k + i * p.head_dim_pad);
      decode_codes(run.format, values.codes + i * v_bytes, p.head_dim_v,
                   to_v + i * p.head_dim_v_pad);
    }
    if (!take_scales(keys, values, j, -8.0f, scales)) {
      mark_tokens(keys, to_k, p.head_dim_pad);
      mark_tokens(values, to_v, p.head_dim_v_pad);
    }
    j += run.count;
  }
  fill_scales(count, (count + 31) / 32 * 32, scales);
  return {k, v, p.head_dim_pad, p.head_dim_v_pad, count};
}

// The sum of a query's numbers.
inline float sum_of(const Bf16* q, int64_t n) {
  const __m512i ones = _mm512_set1_epi16(0x3f80);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t d = 0; d < n; d += 32) {
    sum = dot(sum, _mm512_maskz_loadu_epi16(first_words(n - d), q + d), ones);
  }
  return V::reduce_add(sum);
}

// Scores of codes, in units of `unit`, become scores of keys, for the panels [begin, end).
inline void scale_scores(const TileScales& scales, float q_sum, float unit, int begin, int end,
                         float* s) {
  const __m512 sum = _mm512_set1_ps(q_sum), by = _mm512_set1_ps(unit);
  for (int j = begin; j < end; j += 16) {
    __m512 x = _mm512_loadu_ps(s + j);
    if (scales.zeros) x = _mm512_fnmadd_ps(_mm512_loadu_ps(scales.key_zero + j), sum, x);
    x = _mm512_mul_ps(x, by);
    _mm512_storeu_ps(s + j, _mm512_mul_ps(x, _mm512_loadu_ps(scales.key + j)));
  }
}

// The m for largest scores of `top` whose keys have these value scales.
inline __m128 settled(const ScoreRule& rule, __m128 top, __m128 scale) {
  const __m128i words = _mm_cvtepu16_epi32(reinterpret_cast<__m128i>(_mm_cvtneps_pbh(scale)));
  const __m128 one = _mm_set1_ps(1.0f), rounded = _mm_castsi128_ps(_mm_slli_epi32(words, 16));
  const __m128 x = _mm_sub_ps(_mm_div_ps(rounded, scale), one);
  // log(1 + x) for |x| <= 2^-8
  const __m128 bend = _mm_fnmadd_ps(x, _mm_set1_ps(1.0f / 3), _mm_set1_ps(0.5f));
  const __m128 log = _mm_mul_ps(x, _mm_fnmadd_ps(x, bend, one));
  return _mm_fnmadd_ps(log, _mm_set1_ps(kLog2E / rule.factor), top);
}
// The same for one row and the scores that it is the largest of.
struct Settled {
  const ScoreRule& rule;
  const TileScales& scales;
  const float* s;
  int begin, end;
  float operator()(float top) const {
    __m512 found = _mm512_setzero_ps();
    for (int j = begin; j < end; j += 16) {
      const __mmask16 is =
          _mm512_cmp_ps_mask(_mm512_loadu_ps(s + j), _mm512_set1_ps(top), _CMP_EQ_OQ);
      found = _mm512_mask_max_ps(found, is, found, _mm512_loadu_ps(scales.value + j));
    }
    return _mm_cvtss_f32(settled(rule, _mm_set1_ps(top), _mm_set1_ps(V::reduce_max(found))));
  }
};

// Weights of keys become weights of codes, for the panels [begin, end): p is overwritten from the
// unrounded P in s. Returns what is to be subtracted from each value; *sum takes in the weights.
inline float scale_weights(const TileScales& scales, int begin, int end, const float* s,
                           uint32_t* p, __m512* sum) {
  __m512 zeros = _mm512_setzero_ps();
  for (int j = begin; j < end; j += 32) {
    const __m512 a = _mm512_mul_ps(_mm512_loadu_ps(s + j), _mm512_loadu_ps(scales.value + j));
    const __m512 b =
        _mm512_mul_ps(_mm512_loadu_ps(s + j + 16), _mm512_loadu_ps(scales.value + j + 16));
    const __m512i pairs = to_pairs(a, b);
    _mm512_storeu_si512(p + j / 2, pairs);
    const auto rounded = [](__m256i words) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
    };
    const __m512 first = rounded(_mm512_castsi512_si256(pairs));
    const __m512 second = rounded(_mm512_extracti64x4_epi64(pairs, 1));
    *sum = _mm512_fmadd_ps(first, _mm512_loadu_ps(scales.inverse + j), *sum);
    *sum = _mm512_fmadd_ps(second, _mm512_loadu_ps(scales.inverse + j + 16), *sum);
    if (!scales.zeros) continue;
    zeros = _mm512_fmadd_ps(first, _mm512_loadu_ps(scales.value_zero + j), zeros);
    zeros = _mm512_fmadd_ps(second, _mm512_loadu_ps(scales.value_zero + j + 16), zeros);
  }
  return scales.zeros ? V::reduce_add(zeros) : 0.0f;
}

// The same as whole numbers of 16 bits for codes without zeros, in units of the largest / 32767.
// Returns the unit.
inline float scale_whole_weights(const TileScales& scales, int begin, int end, float* s,
                                 uint32_t* p, __m512* sum) {
  __m512 most = _mm512_setzero_ps();
  for (int j = begin; j < end; j += 16) {
    const __m512 w = _mm512_mul_ps(_mm512_loadu_ps(s + j), _mm512_loadu_ps(scales.value + j));
    most = _mm512_max_ps(most, w);
    _mm512_storeu_ps(s + j, w);
  }
  const float largest = V::reduce_max(most);
  if (!(largest > 0x1p-100f)) {  // nothing that counts beside a weight of 1
    for (int j = begin; j < end; j += 32) _mm512_storeu_si512(p + j / 2, _mm512_setzero_si512());
    return 0.0f;
  }
  const float unit = largest * (1.0f / 32767.0f);
  const __m512 by = _mm512_set1_ps(32767.0f / largest), back = _mm512_set1_ps(unit);
  __m512 taken = _mm512_setzero_ps();
  for (int j = begin; j < end; j += 16) {
    const __m512i w = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(s + j), by));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + j / 2), _mm512_cvtsepi32_epi16(w));
    taken = _mm512_fmadd_ps(_mm512_cvtepi32_ps(w), _mm512_loadu_ps(scales.inverse + j), taken);
  }
  *sum = _mm512_fmadd_ps(taken, back, *sum);
  return unit;
}

// What rows of queries bring to the scores of codes: their sums, the units in which they are
// multiplied, and what sums of products in these units have too much.
struct QueryScales {
  const float *sum, *unit;
  const int32_t* bias;
};
// What the products of rows with a tile's values need besides: o * shrink - subtract + unit *
// products.
struct Entry {
  float *subtract, *unit;
};

// score_step_rows() for a tile of codes; `entry` is of the step's rows. kWhole: weights are whole
// numbers.
template <bool kWhole>
void score_code_rows(const Call& c, const Item& item, const Scratch& t, const int* low,
                     const int* high, int r0, int rows, int64_t first, int begin, int end,
                     const TileScales& scales, const QueryScales& q, float* s, uint32_t* p,
                     const Entry& entry) {
  for (int r = 0; r < rows; ++r, s += kTile, p += kTile / 2) {
    const int row = r0 + r, a = low[row], b = high[row];
    t.shrink[row] = 1.0f;
    entry.subtract[r] = entry.unit[r] = 0.0f;
    if (row >= item.rows || a >= b) {
      for (int j = begin; j < end; j += 32) {
        _mm512_storeu_si512(p + j / 2, _mm512_setzero_si512());
      }
      continue;
    }
    scale_scores(scales, q.sum[row], kWhole ? q.unit[row] : 1.0f, begin, end, s);
    if (c.rule.transform) {
      const int64_t position = position_of(item.s, item.first + row / item.heads_here);
      const float slope = option_of(c.args->alibi_slopes, item.head + row % item.heads_here, 0);
      transform_scores<V>(c.rule, slope, static_cast<float>(first - position), s, begin, end);
    }
    float* l = t.l + row * V::kLanes;
    if (c.rule.sigmoid) {
      sigmoid_row<V>(c.rule, s, begin, end);
    } else {
      float *m = t.m + row, *lse = t.lse_l + row * V::kLanes;
      const int whole = a / 16 * 16;
      t.shrink[row] =
          kWhole ? softmax_row<V>(c.rule, s, a, b, m, lse)
                 : softmax_row<V>(c.rule, s, a, b, m, lse, Settled{c.rule, scales, s, whole, b});
    }
    fill_outside(s, begin, end, a, b, 0.0f);
    __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(l), _mm512_set1_ps(t.shrink[row]));
    if constexpr (kWhole) {
      entry.unit[r] = scale_whole_weights(scales, begin, end, s, p, &sum);
    } else {
      entry.subtract[r] = scale_weights(scales, begin, end, s, p, &sum);
    }
    _mm512_storeu_ps(l, sum);
  }
}

// The largest of each of four vectors.
inline __m128 max_across(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_max_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  const __m512 z = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(z), _mm512_extractf32x8_ps(z, 1));
  return _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// score_code_rows() for the rows from r0 on of a step and whole tiles of up to 64 keys, of which
// they see all `count`; softmax and nothing else is made of scores. s, p, scales and the states of
// four rows have room for it.
template <bool kWhole, bool kLse, int kRows>
void score_code_step(const ScoreRule& rule, const Scratch& t, int r0, int count,
                     const TileScales& scales, const QueryScales& q, float* s, uint32_t* p,
                     const Entry& entry) {
  constexpr int kVectors = 4;
  const auto all_rows = [](const __m512(&x)[kRows]) {
    const auto row = [&](int r) { return x[r < kRows ? r : 0]; };
    return max_across(row(0), row(1), row(2), row(3));
  };
  __mmask16 there[kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    there[i] = static_cast<__mmask16>(count > 16 * i ? first_words(count - 16 * i) : 0);
  }
  __m512 most[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) most[r] = _mm512_set1_ps(-INFINITY);
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    const __m512 by = _mm512_loadu_ps(scales.key + 16 * i);
    const __m512 zero = kWhole ? by : _mm512_loadu_ps(scales.key_zero + 16 * i);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      float* at = s + r * kTile + 16 * i;
      __m512 x = _mm512_loadu_ps(at);
      if constexpr (kWhole) {
        x = _mm512_mul_ps(x, _mm512_set1_ps(q.unit[r0 + r]));
      } else {
        x = _mm512_fnmadd_ps(zero, _mm512_set1_ps(q.sum[r0 + r]), x);
      }
      x = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), there[i], x, by);
      most[r] = _mm512_max_ps(x, most[r]);
      _mm512_storeu_ps(at, x);
    }
  }
  // m and shrink of all rows at once.
  const __m512 factor = _mm512_set1_ps(rule.factor), lowest = _mm512_set1_ps(rule.lowest);
  const __m128 before = _mm_loadu_ps(t.m + r0), top = all_rows(most);
  __m128 after = _mm_max_ps(top, before);
  if constexpr (!kWhole) {
    alignas(16) float tops[4];
    _mm_store_ps(tops, top);
    __m512 found[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512 largest = _mm512_set1_ps(tops[r]);
      found[r] = _mm512_setzero_ps();
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        const __m512 x = _mm512_loadu_ps(s + r * kTile + 16 * i);
        const __mmask16 is = _mm512_cmp_ps_mask(x, largest, _CMP_EQ_OQ) & there[i];
        const __m512 of = _mm512_loadu_ps(scales.value + 16 * i);
        found[r] = _mm512_mask_max_ps(found[r], is, found[r], of);
      }
    }
    const __m128 rises = _mm_cmpgt_ps(top, before);
    after = _mm_blendv_ps(after, settled(rule, top, all_rows(found)), rises);
  }
  const __m128 none = _mm_cmpeq_ps(after, _mm_set1_ps(-INFINITY));
  const __m128 base = _mm_andnot_ps(none, after);
  const __m512 by = exp2<V>(_mm512_castps128_ps512(_mm_sub_ps(before, base)), factor, lowest);
  alignas(16) float shift[4];
  _mm_store_ps(shift, base);
  _mm_storeu_ps(t.m + r0, after);
  _mm_storeu_ps(t.shrink + r0, _mm512_castps512_ps128(by));
  __m512 sum[kRows], exact[kRows], zeros[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m512 shrink = _mm512_set1_ps(t.shrink[r0 + r]);
    sum[r] = _mm512_mul_ps(_mm512_loadu_ps(t.l + (r0 + r) * V::kLanes), shrink);
    exact[r] = _mm512_setzero_ps();
    if constexpr (kLse) {
      exact[r] = _mm512_mul_ps(_mm512_loadu_ps(t.lse_l + (r0 + r) * V::kLanes), shrink);
    }
    zeros[r] = most[r] = _mm512_setzero_ps();
  }
  const auto rounded = [](__m256i words) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
  };
#pragma GCC unroll 2
  for (int i = 0; i < kVectors; i += 2) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      __m512 w[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        float* at = s + r * kTile + 16 * (i + h);
        const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(at), _mm512_set1_ps(shift[r]));
        const __m512 power = exp2<V, !kLse>(x, factor, lowest);
        if constexpr (kLse) exact[r] = _mm512_add_ps(exact[r], power);
        w[h] = _mm512_mul_ps(power, _mm512_loadu_ps(scales.value + 16 * (i + h)));
        if constexpr (kWhole) {
          most[r] = _mm512_max_ps(w[h], most[r]);
          _mm512_storeu_ps(at, w[h]);
        }
      }
      if constexpr (!kWhole) {
        const __m512i pairs = to_pairs(w[0], w[1]);
        _mm512_storeu_si512(p + r * (kTile / 2) + 8 * i, pairs);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const __m512 y =
              rounded(h == 0 ? _mm512_castsi512_si256(pairs) : _mm512_extracti64x4_epi64(pairs, 1));
          const int j = 16 * (i + h);
          sum[r] = _mm512_fmadd_ps(y, _mm512_loadu_ps(scales.inverse + j), sum[r]);
          zeros[r] = _mm512_fmadd_ps(y, _mm512_loadu_ps(scales.value_zero + j), zeros[r]);
        }
      }
    }
  }
  if constexpr (kWhole) {
    // Units of the largest of a row / 32767; nothing counts beside a weight of 1 that is small.
    const __m128 largest = all_rows(most);
    const __m128 counts = _mm_cmpgt_ps(largest, _mm_set1_ps(0x1p-100f));
    const __m128 unit = _mm_and_ps(counts, _mm_mul_ps(largest, _mm_set1_ps(1.0f / 32767.0f)));
    alignas(16) float units[4], inverse[4];
    _mm_store_ps(units, unit);
    _mm_store_ps(inverse, _mm_and_ps(counts, _mm_div_ps(_mm_set1_ps(32767.0f), largest)));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      entry.unit[r] = units[r];
      __m512 taken = _mm512_setzero_ps();
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        const __m512 x = _mm512_loadu_ps(s + r * kTile + 16 * i);
        const __m512i w = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse[r])));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + r * (kTile / 2) + 8 * i),
                            _mm512_cvtsepi32_epi16(w));
        taken =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(w), _mm512_loadu_ps(scales.inverse + 16 * i), taken);
      }
      sum[r] = _mm512_fmadd_ps(taken, _mm512_set1_ps(units[r]), sum[r]);
    }
  } else {
    const auto sums = [&](int r) { return r < kRows ? V::reduce_add(zeros[r]) : 0.0f; };
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) entry.subtract[r] = sums(r);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(t.l + (r0 + r) * V::kLanes, sum[r]);
    if constexpr (kLse) _mm512_storeu_ps(t.lse_l + (r0 + r) * V::kLanes, exact[r]);
  }
}

}  // namespace
}  // namespace lowbit
