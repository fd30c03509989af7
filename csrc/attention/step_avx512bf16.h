// One position (decode): K and V of tensors and of pages are read where they lie, once for up to
// four query heads, and meet them without being copied (products_avx512bf16.h). Every row sees all
// keys of the item.
//
// Neither K nor V is looked at for numbers out of the ordinary. Small numbers of K that vdpbf16ps
// takes for zero change no score that matters, because queries and scales are bounded; large ones
// show in the scores, those of V in o, and small ones of V in an o that is small. A scale that is
// no number shows when it is read.
#pragma once

#include "csrc/attention/products_avx512bf16.h"

namespace lowbit {
namespace {

// Keys of a tile: eight kv heads of head_dim 128 and what follows them have room in an L2 of 1 MiB.
constexpr int kStepKeys = 64;

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
  StepRows here;
  TileScales scales;
  bool whole;  // whether every scale is a number
};

// Queries of an item as scores of int8 and int4 take them, in the half of the room of queries that
// they leave.
inline uint32_t* packed_queries(const Scratch& t, const Plan& p) {
  return reinterpret_cast<uint32_t*>(t.q) + V::kBlockRows * p.head_dim_pad / 2;
}

template <class Form, int kRows>
void step_rows_of(const Call& c, const Item& item, const Scratch& t, const StepTile& tile, int r0,
                  const QueryScales& scales, Ahead& next) {
  const Plan& p = c.plan;
  const Queries q = {reinterpret_cast<const Bf16*>(t.q) + r0 * p.head_dim_pad,
                     packed_queries(t, p) + r0 * p.head_dim_pad / 2, p.head_dim_pad,
                     scales.bias + r0};
  float* s = t.s;
  auto* weights = reinterpret_cast<uint32_t*>(t.s + 4 * kTile);
  const int end = (tile.count + 31) / 32 * 32;
  score_keys<Form, kRows>(q, tile.here.k, next, tile.count, p.head_dim, s);
  for (int r = 0; r < kRows && r0 + r < item.rows && !Form::kBounded; ++r) {
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
  const bool lse = present(c.args->lse);
  if (Form::kBounded && !c.rule.transform && !c.rule.sigmoid) {
    lse ? score_code_step<Form::kInteger, true, kRows>(c.rule, t, r0, tile.count, tile.scales,
                                                       scales, s, weights, entry)
        : score_code_step<Form::kInteger, false, kRows>(c.rule, t, r0, tile.count, tile.scales,
                                                        scales, s, weights, entry);
  } else if constexpr (Form::kScaled) {
    score_code_rows<Form::kInteger>(c, item, t, tile.low, tile.high, r0, kRows, tile.first, 0, end,
                                    tile.scales, scales, s, weights, entry);
  } else {
    score_step_rows(c, item, t, tile.low, tile.high, r0, kRows, tile.first, 0, end, s, weights);
  }
  add_values<Form, kRows>(weights, {t.shrink + r0, entry}, tile.here.v, next, tile.count,
                          p.head_dim_v, t.o + r0 * p.head_dim_v_pad, p.head_dim_v_pad);
}

template <class Form>
void step_item(const Call& c, const Item& item, const Scratch& t, const StepTile& tile,
               const QueryScales& scales, Ahead& next) {
  for (int r = 0; r < item.rows; r += 4) {
    switch (item.rows - r) {
      case 1: step_rows_of<Form, 1>(c, item, t, tile, r, scales, next); break;
      case 2: step_rows_of<Form, 2>(c, item, t, tile, r, scales, next); break;
      default: step_rows_of<Form, 4>(c, item, t, tile, r, scales, next); break;
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

// What to ask for while item i of a tile is served: what follows in memory. Where the heads of a
// token lie together, a share of the next tile's tokens; pages have the heads one after the other.
void find_next(const Call& c, const Item* items, int count, int i, const StepTile& tile,
               Ahead* next) {
  const AttentionArgs& a = *c.args;
  const Plan& p = c.plan;
  start(*next);
  const bool same = p.paged && i + 1 < count;  // the next head's share of this tile
  const Item& item = items[same ? i + 1 : p.paged ? 0 : i];
  const int64_t begin = same ? tile.first : tile.first + tile.count;
  const int64_t left = item.s.seq_kv - begin;
  const int keys = static_cast<int>(left < tile.count ? left : tile.count);
  for (int j = 0; p.paged && j < keys;) {
    const KeyRun run = key_run(a, item.s, item.kv_head, begin + j, keys - j);
    const auto tokens = [&](int64_t dim, bool of_values) {
      return kv_tokens(run.format, *run.form, run.block, run.token, run.count, dim, of_values);
    };
    const KvTokens k = tokens(p.head_dim, false), v = tokens(p.head_dim_v, true);
    for (const KvTokens* of : {&k, &v}) {
      if (is_float(run.format)) break;
      add(*next, of->scales, 2 * run.count);
      if (run.format == KvFormat::int4) add(*next, of->zeros, 2 * run.count);
    }
    add(*next, k.codes, run.count * kv_row_bytes(run.format, p.head_dim));
    add(*next, v.codes, run.count * kv_row_bytes(run.format, p.head_dim_v));
    j += run.count;
  }
  if (p.paged || keys <= 0) return;
  const auto rows = [&](const Tensor& t, int64_t start, int64_t dim) {
    const int64_t token = 2 * token_stride(t), head = 2 * head_stride(t);
    const auto* base = static_cast<const uint8_t*>(t.data) + 2 * start + begin * token;
    if (head * p.kv_heads == token && count == p.kv_heads) {
      const int64_t share = keys * token / count;
      add(*next, base + i * share, share);
      return;
    }
    for (int j = 0; j < keys; ++j) add(*next, base + item.kv_head * head + j * token, 2 * dim);
  };
  rows(a.k, item.s.k, p.head_dim);
  rows(a.v, item.s.v, p.head_dim_v);
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
  fill_scales(tile->count, kStepKeys, &tile->scales);
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
  int32_t q_bias[V::kBlockRows];
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
      uint32_t* packed = packed_queries(own, p) + r * p.head_dim_pad / 2;
      if (format == KvFormat::int4) {
        pack_nibbles(from, p.head_dim, packed);
        q_sum[i * padded + r] = sum_of(from, p.head_dim);
      }
      if (format == KvFormat::int8) {
        q_unit[i * padded + r] =
            pack_bytes(from, p.head_dim, p.head_dim_pad, packed, &q_bias[i * padded + r]);
      }
    }
    if (!is_ordinary(range)) mark_queries(c, items[i], own.exact);
    start_states<V>(c, items[i], own);
    for (int64_t d = rows * p.head_dim_v_pad; d < padded * p.head_dim_v_pad; ++d) own.o[d] = 0;
  }
  StepTile tile;
  Ahead next;
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
      find_next(c, items, count, i, tile, &next);
      if (!is_float(tile.format)) {
        find_scales(c, item, &tile);
        for (int r = 0; r < rows && !tile.whole; ++r) own.exact[r] = 1;
      }
      const QueryScales scales = {q_sum + i * padded, q_unit + i * padded, q_bias + i * padded};
      switch (tile.format) {
        case KvFormat::fp8_e4m3: step_item<E4m3Form>(c, item, own, tile, scales, next); break;
        case KvFormat::int8: step_item<Int8Form>(c, item, own, tile, scales, next); break;
        case KvFormat::int4: step_item<Int4Form>(c, item, own, tile, scales, next); break;
        default: step_item<Bf16Form>(c, item, own, tile, scales, next); break;
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
