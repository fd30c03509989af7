// A tile of keys: what each row sees of it, and the values of what it sees added to its result.
#pragma once

#include "csrc/attention/element.h"
#include "csrc/attention/plan.h"

namespace lowbit {

// Rows [begin, end) of keys that any of some rows sees, and [full_begin, full_end) that all see.
struct Edges {
  int begin, full_begin, full_end, end;
};

static inline bool is_ragged(const Edges& e) {
  return e.begin != e.full_begin || e.full_end != e.end;
}

static inline Edges edges_of(const int* low, const int* high, int rows) {
  Edges e = {1 << 30, 0, 1 << 30, 0};
  for (int r = 0; r < rows; ++r) {
    if (low[r] < high[r]) {
      e.begin = low[r] < e.begin ? low[r] : e.begin;
      e.end = high[r] > e.end ? high[r] : e.end;
    }
    e.full_begin = low[r] > e.full_begin ? low[r] : e.full_begin;
    e.full_end = high[r] < e.full_end ? high[r] : e.full_end;
  }
  if (e.begin >= e.end) return {0, 0, 0, 0};
  if (e.full_begin >= e.full_end) e.full_begin = e.full_end = e.end;
  return e;
}

// low and high of all rows for the tile of `count` keys from `first`; rows that only fill up a
// register tile follow the last real one. True if every row sees every key.
static inline bool set_limits(const Plan& p, const Item& item, int rows, int64_t first, int count,
                              int* low, int* high) {
  const int64_t p0 = position_of(item.s, item.first), p1 = p0 + item.positions - 1;
  const KeyRange early = visible_keys(p.mask, p0, item.s.seq_kv);
  const KeyRange late = visible_keys(p.mask, p1, item.s.seq_kv);
  const bool all = late.begin <= first && early.end >= first + count;
  int r = 0;
  for (int64_t i = 0; i < item.positions && !all; ++i) {
    const KeyRange see = visible_keys(p.mask, p0 + i, item.s.seq_kv);
    int64_t a = see.begin - first, b = see.end - first;
    a = a < 0 ? 0 : a > count ? count : a;
    b = b < a ? a : b > count ? count : b;
    for (int64_t h = 0; h < item.heads_here; ++h, ++r) {
      low[r] = static_cast<int>(a);
      high[r] = static_cast<int>(b);
    }
  }
  for (; r < rows; ++r) {
    low[r] = all ? 0 : low[r - 1];
    high[r] = all ? count : high[r - 1];
  }
  return all;
}

// o[r] = o[r] * shrink[r] + sum of p[r][j] * v[j] over the keys [e.full_begin, e.full_end), for
// kRows rows and kPairs pairs of vectors of head_dim_v, or with kPart for one pair of which `part`
// elements are there.
template <class V, int kRows, int kPairs, bool kPart, class T>
static inline void value_tile(const Edges& e, const float* p, const float* shrink, const T* v,
                              int64_t v_stride, float* o, int64_t o_stride, int part) {
  using F = typename V::F;
  constexpr int kVectors = 2 * kPairs;
  F acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      acc[r][i] = V::mul(V::load(o + r * o_stride + i * V::kLanes), V::set1(shrink[r]));
    }
  }
  for (int j = e.full_begin; j < e.full_end; ++j) {
    F x[kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; i += 2) {
      load_pair<V, kPart>(v + j * v_stride + i * V::kLanes, part, x[i], x[i + 1]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F w = V::set1(p[r * V::kBlockKeys + j]);
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) acc[r][i] = V::fma(w, x[i], acc[r][i]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) V::store(o + r * o_stride + i * V::kLanes, acc[r][i]);
  }
}

// The keys that value_tile leaves out: row r adds its own in [low, high), no other row's. `width`
// elements of head_dim_v; o is padded to whole pairs.
template <class V, class T>
static void value_edges(const Edges& e, const int* low, const int* high, int rows, const float* p,
                        const T* v, int64_t v_stride, float* o, int64_t o_stride, int64_t width) {
  using F = typename V::F;
  for (int r = 0; r < rows; ++r) {
    const int ends[2][2] = {{low[r], high[r] < e.full_begin ? high[r] : e.full_begin},
                            {low[r] > e.full_end ? low[r] : e.full_end, high[r]}};
    for (const auto& [begin, end] : ends) {
      for (int64_t d = 0; d < width && begin < end; d += 2 * V::kLanes) {
        const int part = static_cast<int>(width - d);
        float* to = o + r * o_stride + d;
        F a = V::load(to), b = V::load(to + V::kLanes);
        for (int j = begin; j < end; ++j) {
          F x, y;
          if (part >= 2 * V::kLanes)
            load_pair<V, false>(v + j * v_stride + d, part, x, y);
          else
            load_pair<V, true>(v + j * v_stride + d, part, x, y);
          const F w = V::set1(p[r * V::kBlockKeys + j]);
          a = V::fma(w, x, a);
          b = V::fma(w, y, b);
        }
        V::store(to, a);
        V::store(to + V::kLanes, b);
      }
    }
  }
}

}  // namespace lowbit
