// One position (decode): K and V of tensors and of pages are read where they lie, once for up to
// four query heads, and meet them without being copied. Every row sees all keys of the item.
//
//   scores   dimensions in lanes; sixteen sums (4 rows x 4 keys, 2 x 8 or 1 x 16) are added up
//            across lanes together
//   values   the rows of two keys interleaved in registers
//
// What is multiplied (a form, below):
//   bf16, fp8_e4m3   pairs of bf16, exactly what the codes are
//   int4             pairs of bf16, 16 + code, which takes two instructions for 32 of them
//   int8             pairs of whole numbers of 16 bits with sums of 32: queries to 2^-16 of the
//                    largest of a row, weights to 2^-16 of the largest of a tile, where bf16 keeps
//                    2^-9; bf16 from bytes would take five instructions where this takes one
// Scales and zeros meet scores and weights, as codes_avx512bf16.h has it.
//
// Neither K nor V is looked at for numbers out of the ordinary. Small numbers of K that vdpbf16ps
// takes for zero change no score that matters, because queries and scales are bounded; large ones
// show in the scores, those of V in o, and small ones of V in an o that is small. A scale that is
// no number shows when it is read.
#pragma once

#include "csrc/attention/codes_avx512bf16.h"

namespace lowbit {
namespace {

// Keys of a tile: eight kv heads of head_dim 128 and what follows them have room in an L2 of 1 MiB.
constexpr int kStepKeys = 64;

// How keys and values of one format become operands. `words` are 32 of them (int4: 64) from
// kBytes * 32 bytes; they have kParts parts, `dims / kParts` dimensions apart.
struct Bf16Form {
  static constexpr bool kInteger = false, kScaled = false;
  static constexpr int kBytes = 2, kParts = 1;
  static inline __m512i words(__mmask32 there, const uint8_t* at) {
    return _mm512_maskz_loadu_epi16(there, at);
  }
  template <int kPart>
  static inline __m512i part(__m512i words) {
    return words;
  }
};
struct E4m3Form : Bf16Form {
  static constexpr bool kScaled = true;
  static constexpr int kBytes = 1;
  static inline __m512i words(__mmask32 there, const uint8_t* at) {
    return bf16_of_e4m3(_mm256_maskz_loadu_epi8(there, at));
  }
};
struct Int8Form : Bf16Form {
  static constexpr bool kInteger = true, kScaled = true;
  static constexpr int kBytes = 1;
  static inline __m512i words(__mmask32 there, const uint8_t* at) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, at));
  }
};
struct Int4Form : Bf16Form {
  static constexpr bool kScaled = true;
  static constexpr int kBytes = 1, kParts = 2;
  static inline __m512i words(__mmask32 there, const uint8_t* at) {
    return _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, at));
  }
  // 16 + code: the code as the upper bits of a mantissa.
  template <int kPart>
  static inline __m512i part(__m512i words) {
    const __m512i shifted = kPart == 0 ? _mm512_slli_epi16(words, 3) : _mm512_srli_epi16(words, 1);
    return _mm512_ternarylogic_epi32(shifted, _mm512_set1_epi16(0x78), _mm512_set1_epi16(0x4180),
                                     0xea);  // a & b | c
  }
};
constexpr float kInt4Offset = 16.0f;

template <class Form>
inline __m512 add_products(__m512 sum, __m512i a, __m512i b) {
  if constexpr (Form::kInteger) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum), _mm512_madd_epi16(a, b)));
  } else {
    return dot(sum, a, b);
  }
}
template <class Form>
inline __m512 plus(__m512 a, __m512 b) {
  if constexpr (Form::kInteger) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  } else {
    return _mm512_add_ps(a, b);
  }
}
template <class Form>
inline __m512 to_floats(__m512 sum) {
  return Form::kInteger ? _mm512_cvtepi32_ps(_mm512_castps_si512(sum)) : sum;
}

inline void ask_for(const uint8_t* at, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; b += 64) __builtin_prefetch(at + b, 0, 2);  // into L2
}

// Lane i: the sum over the lanes of x[i].
template <class Form>
inline __m512 add_across(__m512 (&x)[16]) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = _mm512_mask_blend_ps(0xff00, x[i], x[i + 8]);
    const __m512 b = _mm512_mask_blend_ps(0xff00, x[i + 8], x[i]);
    x[i] = plus<Form>(a, _mm512_shuffle_f32x4(b, b, 0x4e));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_mask_blend_ps(0xf0f0, x[i], x[i + 4]);
    const __m512 b = _mm512_mask_blend_ps(0xf0f0, x[i + 4], x[i]);
    x[i] = plus<Form>(a, _mm512_shuffle_f32x4(b, b, 0xb1));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512 a = _mm512_mask_blend_ps(0xcccc, x[i], x[i + 2]);
    const __m512 b = _mm512_mask_blend_ps(0xcccc, x[i + 2], x[i]);
    x[i] = plus<Form>(a, _mm512_permute_ps(b, 0x4e));
  }
  const __m512 a = _mm512_mask_blend_ps(0xaaaa, x[0], x[1]);
  const __m512 b = _mm512_mask_blend_ps(0xaaaa, x[1], x[0]);
  return plus<Form>(a, _mm512_permute_ps(b, 0xb1));
}

// s[r][j] = q[r] . k[j] for kRows rows and 16 / kRows keys, in units of what q is multiplied with.
// What `next` points at is on its way to L2 meanwhile.
template <class Form, int kRows>
inline void score_keys(const Bf16* q, int64_t q_stride, const uint8_t* const* key,
                       const uint8_t* const* next, int64_t head_dim, float* s) {
  constexpr int kKeys = 16 / kRows, kParts = Form::kParts;
  const int64_t words = head_dim / kParts;
  __m512 acc[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) acc[i] = _mm512_setzero_ps();
  for (int64_t d = 0; d < words; d += 32) {
    const __mmask32 there = first_words(words - d);
    __m512i a[kParts][kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      a[0][r] = _mm512_loadu_si512(q + r * q_stride + d);
      if constexpr (kParts == 2) a[1][r] = _mm512_loadu_si512(q + r * q_stride + words + d);
    }
    const int64_t at = d * Form::kBytes;
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      if (at % 64 == 0) __builtin_prefetch(next[j] + at, 0, 2);
      const __m512i x = Form::words(there, key[j] + at);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        __m512& sum = acc[r * kKeys + j];
        sum = add_products<Form>(sum, a[0][r], Form::template part<0>(x));
        if constexpr (kParts == 2) {
          sum = add_products<Form>(sum, a[1][r], Form::template part<1>(x));
        }
      }
    }
  }
  const __m512 sums = to_floats<Form>(add_across<Form>(acc));
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

// o[r] takes in p[r][j] * v[j] for `count` keys, for kRows rows and kChunks chunks of words, of
// which the last has those that are `there`. o's parts are `apart` dimensions apart.
template <class Form, int kRows, int kChunks>
inline void value_keys(const uint32_t* p, const float* shrink, const Entry& entry,
                       const uint8_t* const* value, const uint8_t* const* next, int64_t at,
                       int count, __mmask32 there, float* o, int64_t o_stride, int64_t apart) {
  constexpr int kParts = Form::kParts, kVectors = 2 * kChunks * kParts;
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  // Vector i of a row: chunks in turn, or the parts of one.
  const auto place = [=](int i) {
    return kParts == 1 ? 16 * static_cast<int64_t>(i) : i / 2 * apart + i % 2 * 16;
  };
  __m512 acc[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      acc[r][i] = _mm512_setzero_ps();
      if constexpr (!Form::kInteger) {
        const __m512 before = _mm512_loadu_ps(o + r * o_stride + place(i));
        acc[r][i] = _mm512_mul_ps(before, _mm512_set1_ps(shrink[r]));
        if constexpr (Form::kScaled) {
          acc[r][i] = _mm512_sub_ps(acc[r][i], _mm512_set1_ps(entry.subtract[r]));
        }
      }
    }
  }
  const auto add = [&](int j, __mmask32 of_next) {
    __m512i x[kVectors];
#pragma GCC unroll 2
    for (int i = 0; i < kChunks; ++i) {
      const __mmask32 here = i + 1 < kChunks ? ~__mmask32{0} : there;
      const int64_t from = at + 32 * Form::kBytes * i;
      if (from % 64 == 0) {
        __builtin_prefetch(next[j] + from, 0, 2);
        __builtin_prefetch(next[j + 1] + from, 0, 2);
      }
      const __m512i a = Form::words(here, value[j] + from);
      const __m512i b = Form::words(here & of_next, value[j + 1] + from);
      const __m512i first = _mm512_permutex2var_epi16(a, low, b);
      const __m512i second = _mm512_permutex2var_epi16(a, high, b);
      x[2 * i] = Form::template part<0>(first);
      x[2 * i + 1] = Form::template part<0>(second);
      if constexpr (kParts == 2) {
        x[2] = Form::template part<1>(first);
        x[3] = Form::template part<1>(second);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512i w = _mm512_set1_epi32(static_cast<int>(p[r * (kTile / 2) + j / 2]));
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[r][i] = add_products<Form>(acc[r][i], w, x[i]);
    }
  };
  int j = 0;
  for (; j + 2 <= count; j += 2) add(j, ~__mmask32{0});
  if (j < count) add(j, 0);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      float* to = o + r * o_stride + place(i);
      if constexpr (Form::kInteger) {
        const __m512 before = _mm512_mul_ps(_mm512_loadu_ps(to), _mm512_set1_ps(shrink[r]));
        acc[r][i] =
            _mm512_fmadd_ps(to_floats<Form>(acc[r][i]), _mm512_set1_ps(entry.unit[r]), before);
      }
      _mm512_storeu_ps(to, acc[r][i]);
    }
  }
}

// The keys and values of a tile of one item, row by row; what fills up the last sixteen repeats the
// last one. `low` and `high` are the item's limits for every row: all of its keys.
struct StepRows {
  const uint8_t *k[kStepKeys], *v[kStepKeys];
};
struct StepTile {
  KvFormat format;
  int64_t first;
  int count;
  const int *low, *high;
  StepRows here, next;  // next: what is asked for meanwhile
  TileScales scales;
  bool whole;  // whether every scale is a number
};

// Whole numbers in the place of an item's queries, which leave half of their room.
inline Bf16* whole_queries(const Scratch& t, const Plan& p) {
  return reinterpret_cast<Bf16*>(t.q) + V::kBlockRows * p.head_dim_pad;
}

template <class Form, int kRows>
void step_rows_of(const Call& c, const Item& item, const Scratch& t, const StepTile& tile, int r0,
                  const QueryScales& scales) {
  const Plan& p = c.plan;
  const auto* q = (Form::kInteger ? whole_queries(t, p) : reinterpret_cast<const Bf16*>(t.q)) +
                  r0 * p.head_dim_pad;
  float* s = t.s;
  auto* weights = reinterpret_cast<uint32_t*>(t.s + 4 * kTile);
  const int end = (tile.count + 31) / 32 * 32;
  for (int j = 0; j < tile.count; j += 16 / kRows) {
    score_keys<Form, kRows>(q, p.head_dim_pad, tile.here.k + j, tile.next.k + j, p.head_dim, s + j);
  }
  for (int r = 0; r < kRows && r0 + r < item.rows && !Form::kInteger; ++r) {
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
  float subtract[kRows] = {}, unit[kRows] = {};
  const Entry entry = {subtract, unit};
  if constexpr (Form::kScaled) {
    score_code_rows<Form::kInteger>(c, item, t, tile.low, tile.high, r0, kRows, tile.first, 0, end,
                                    tile.scales, scales, s, weights, entry);
  } else {
    score_step_rows(c, item, t, tile.low, tile.high, r0, kRows, tile.first, 0, end, s, weights);
  }
  const int64_t words = p.head_dim_v / Form::kParts;
  float* o = t.o + r0 * p.head_dim_v_pad;
  for (int64_t d = 0; d < words;) {
    const int64_t left = words - d, at = d * Form::kBytes;
    if (Form::kParts == 1 && left > 32) {
      value_keys<Form, kRows, 2 / Form::kParts>(weights, t.shrink + r0, entry, tile.here.v,
                                                tile.next.v, at, tile.count, first_words(left - 32),
                                                o + d, p.head_dim_v_pad, words);
      d += 64;
    } else {
      value_keys<Form, kRows, 1>(weights, t.shrink + r0, entry, tile.here.v, tile.next.v, at,
                                 tile.count, first_words(left), o + d, p.head_dim_v_pad, words);
      d += 32;
    }
  }
}

template <class Form>
void step_item(const Call& c, const Item& item, const Scratch& t, const StepTile& tile,
               const QueryScales& scales) {
  for (int r = 0; r < item.rows; r += 4) {
    switch (item.rows - r) {
      case 1: step_rows_of<Form, 1>(c, item, t, tile, r, scales); break;
      case 2: step_rows_of<Form, 2>(c, item, t, tile, r, scales); break;
      default: step_rows_of<Form, 4>(c, item, t, tile, r, scales); break;
    }
  }
}

// Marks the rows whose o is no finite number, or so small that what was taken for zero may count:
// of values in bf16, because codes are whole numbers or not that small.
void settle(const Call& c, const Item& item, const Scratch& t) {
  const AttentionArgs& a = *c.args;
  const Plan& p = c.plan;
  const __m512i sign = _mm512_set1_epi32(0x7fffffff);
  bool small = false;
  for (int r = 0; r < item.rows; ++r) {
    const float* o = t.o + r * p.head_dim_v_pad;
    __m512i most = _mm512_setzero_si512(), least = sign;
    for (int64_t d = 0; d < p.head_dim_v; d += 16) {
      const __m512i x = _mm512_castps_si512(_mm512_loadu_ps(o + d)) & sign;
      const auto there = static_cast<__mmask16>(first_words(p.head_dim_v - d));
      most = _mm512_mask_max_epu32(most, there, most, x);
      least = _mm512_mask_min_epu32(least, there, least, x);
    }
    if (_mm512_cmpge_epu32_mask(most, _mm512_set1_epi32(0x7f800000)) != 0) t.exact[r] = 1;
    small = small || _mm512_cmplt_epu32_mask(least, _mm512_set1_epi32((127 - 80) << 23)) != 0;
  }
  if (!small) return;
  Range range = no_range();
  const auto take_rows = [&](const Bf16* v, int64_t stride, int64_t n) {
    for (int64_t j = 0; j < n; ++j) take_row(range, v + j * stride, p.head_dim_v);
  };
  if (p.paged) {
    for (int64_t j = item.keys.begin; j < item.keys.end;) {
      const KeyRun run = key_run(a, item.s, item.kv_head, j, static_cast<int>(item.keys.end - j));
      if (run.format == KvFormat::bf16) {
        const KvTokens values =
            kv_tokens(run.format, *run.form, run.block, run.token, run.count, p.head_dim_v, true);
        take_rows(reinterpret_cast<const Bf16*>(values.codes), p.head_dim_v, run.count);
      }
      j += run.count;
    }
  } else {
    const int64_t stride = token_stride(a.v);
    take_rows(static_cast<const Bf16*>(a.v.data) + item.s.v + item.kv_head * head_stride(a.v) +
                  item.keys.begin * stride,
              stride, item.keys.end - item.keys.begin);
  }
  if (is_ordinary(range)) return;
  for (int r = 0; r < item.rows; ++r) t.exact[r] = 1;
}

// Whether the items of a step can be read in place. Queries of 16 bits are too short for lse, which
// is wanted to the last places of f32.
inline bool can_step(const Call& c, const Item& item) {
  if (item.positions != 1) return false;
  if (!c.plan.paged) return true;
  switch (c.args->kv.format) {
    case KvFormat::int8: return !present(c.args->lse);
    case KvFormat::int4: return c.plan.head_dim % 64 == 0 && c.plan.head_dim_v % 64 == 0;
    default: return true;
  }
}

// Queries as whole numbers of 16 bits, such that no sum of products with int8 leaves 32.
inline float to_whole(const Bf16* q, int64_t n, int64_t padded, Bf16* out) {
  float most = 0;
  for (int64_t d = 0; d < n; ++d) most = std::max(most, std::fabs(to_f32(q[d])));
  const float largest = n <= 512 ? 32767.0f : 16383.0f;
  const float by = most > 0 ? largest / most : 0.0f;
  for (int64_t d = 0; d < padded; d += 16) {
    const __mmask32 there = first_words(n - d) & 0xffff;
    const __m256i x = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(there), q + d);
    const __m512 f = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    const __m512i i = _mm512_cvtps_epi32(_mm512_mul_ps(f, _mm512_set1_ps(by)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), _mm512_cvtsepi32_epi16(i));
  }
  return most / largest;
}

// Rows of K and V of `count` keys from `first` on, up to sixteen more that repeat the last.
void find_rows(const Call& c, const Item& item, int64_t first, int count, StepRows* rows) {
  const AttentionArgs& a = *c.args;
  const Plan& p = c.plan;
  const auto walk = [](const uint8_t* at, int64_t stride, int n, const uint8_t** out) {
    for (int j = 0; j < n; ++j) out[j] = at + j * stride;
  };
  if (!p.paged) {
    const auto row = [&](const Tensor& t, int64_t start) {
      return static_cast<const uint8_t*>(t.data) +
             2 * (start + item.kv_head * head_stride(t) + first * token_stride(t));
    };
    walk(row(a.k, item.s.k), 2 * token_stride(a.k), count, rows->k);
    walk(row(a.v, item.s.v), 2 * token_stride(a.v), count, rows->v);
  }
  for (int j = 0; p.paged && j < count;) {
    const KeyRun run = key_run(a, item.s, item.kv_head, first + j, count - j);
    const auto part = [&](int64_t dim, bool of_values, const uint8_t** out) {
      walk(kv_row(run.format, *run.form, const_cast<uint8_t*>(run.block), run.token, dim, of_values)
               .codes,
           kv_row_bytes(run.format, dim), run.count, out);
    };
    part(p.head_dim, false, rows->k + j);
    part(p.head_dim_v, true, rows->v + j);
    j += run.count;
  }
  for (int j = count; j % 16 != 0; ++j) {
    rows->k[j] = rows->k[count - 1];
    rows->v[j] = rows->v[count - 1];
  }
}

// What to ask for while item i of a tile is served, as many rows as it has: what follows in memory.
// Where the heads of a token lie together, those of the next tile one token after the other; pages
// have them one after the other.
void find_next(const Call& c, const Item* items, int count, int i, const StepTile& tile,
               StepRows* next) {
  const AttentionArgs& a = *c.args;
  const int64_t after = tile.first + tile.count;
  if (c.plan.paged) {
    const int64_t last = items[0].s.seq_kv;
    if (i + 1 < count) {
      find_rows(c, items[i + 1], tile.first, tile.count, next);
      return;
    }
    *next = tile.here;
    const int64_t left = last - after;
    if (left > 0) {
      find_rows(c, items[0], after, static_cast<int>(left < tile.count ? left : tile.count), next);
    }
    return;
  }
  const auto walk = [&](const Tensor& t, int64_t start, const uint8_t** out) {
    const auto* base = static_cast<const uint8_t*>(t.data) +
                       2 * (start + items[0].kv_head * head_stride(t) + after * token_stride(t));
    const int64_t token = 2 * token_stride(t), head = 2 * head_stride(t);
    if (head > token) {
      for (int j = 0; j < kStepKeys; ++j) out[j] = base + i * head + j * token;
      return;
    }
    int64_t h = i * kStepKeys % count;
    base += i * kStepKeys / count * token;
    for (int j = 0; j < kStepKeys; ++j) {
      out[j] = base + h * head;
      if (++h == count) {
        h = 0;
        base += token;
      }
    }
  };
  walk(a.k, items[0].s.k, next->k);
  walk(a.v, items[0].s.v, next->v);
}

// The scales of a paged tile.
void find_scales(const Call& c, const Item& item, StepTile* tile) {
  const Plan& p = c.plan;
  tile->scales.zeros = tile->format == KvFormat::int4;
  tile->whole = true;
  for (int j = 0; j < tile->count;) {
    const KeyRun run = key_run(*c.args, item.s, item.kv_head, tile->first + j, tile->count - j);
    const auto tokens = [&](int64_t dim, bool of_values) {
      return kv_tokens(run.format, *run.form, run.block, run.token, run.count, dim, of_values);
    };
    const bool all = take_scales(tokens(p.head_dim, false), tokens(p.head_dim_v, true), j,
                                 kInt4Offset, &tile->scales);
    tile->whole = tile->whole && all;
    j += run.count;
  }
  fill_scales(tile->count, &tile->scales);
}

// Keys of the tile that begins at `first`: of one format.
int step_count(const Sequence& s, int64_t first, int64_t end) {
  int64_t most = end;
  if (first < s.prefix_len && s.prefix_len < most) most = s.prefix_len;
  return static_cast<int>(most - first < kStepKeys ? most - first : kStepKeys);
}

// Items of one position that differ in the kv head alone; `padded` is the room of each one's rows.
void step_pairs(const Call& c, const Item* items, int count, int padded, const Scratch& t) {
  const Plan& p = c.plan;
  const int rows = items[0].rows;
  const KeyRange keys = items[0].keys;
  const Sequence& s = items[0].s;
  const KvFormat format = p.paged ? c.args->kv.format : KvFormat::bf16;
  float q_sum[V::kBlockRows], q_unit[V::kBlockRows];
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
      if (format == KvFormat::int4) q_sum[i * padded + r] = sum_of(from, p.head_dim);
      if (format == KvFormat::int8) {
        q_unit[i * padded + r] =
            to_whole(from, p.head_dim, p.head_dim_pad, whole_queries(own, p) + r * p.head_dim_pad);
      }
    }
    if (!is_ordinary(range)) mark_queries(c, items[i], own.exact);
    start_states<V>(c, items[i], own);
    for (int64_t d = rows * p.head_dim_v_pad; d < padded * p.head_dim_v_pad; ++d) own.o[d] = 0;
  }
  StepTile tile;
  tile.low = t.low;
  tile.high = t.high;
  for (int64_t first = keys.begin; first < keys.end;) {
    tile.first = first;
    tile.count = step_count(s, first, keys.end);
    tile.format = first < s.prefix_len ? KvFormat::bf16 : format;
    for (int r = 0; r < padded; ++r) {
      t.low[r] = 0;
      t.high[r] = tile.count;
    }
    for (int i = 0; i < count; ++i) {
      const Item& item = items[i];
      const Scratch own = from_row(t, p, i * padded);
      find_rows(c, item, first, tile.count, &tile.here);
      find_next(c, items, count, i, tile, &tile.next);
      if (!is_float(tile.format)) {
        find_scales(c, item, &tile);
        for (int r = 0; r < rows && !tile.whole; ++r) own.exact[r] = 1;
      }
      const QueryScales scales = {q_sum + i * padded, q_unit + i * padded};
      switch (tile.format) {
        case KvFormat::fp8_e4m3: step_item<E4m3Form>(c, item, own, tile, scales); break;
        case KvFormat::int8: step_item<Int8Form>(c, item, own, tile, scales); break;
        case KvFormat::int4: step_item<Int4Form>(c, item, own, tile, scales); break;
        default: step_item<Bf16Form>(c, item, own, tile, scales); break;
      }
    }
    first += tile.count;
  }
  for (int i = 0; i < count; ++i) {
    const Scratch own = from_row(t, p, i * padded);
    settle(c, items[i], own);
    finish<V>(c, items[i], own);
  }
}

}  // namespace
}  // namespace lowbit
