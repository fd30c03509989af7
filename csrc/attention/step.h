// Few rows (decode): K and V of tensors are read where they lie, once for all rows, and converted
// in registers, because copying would cost more than the products; those of a cache as keys.h has
// decoded them. Scores are sums across lanes.
#pragma once

#include <type_traits>

#include "csrc/attention/keys.h"

namespace lowbit {

// Adds one half of a pair of dimensions to the scores of kRows rows and kKeys keys. Each key and
// each row is loaded once for all the others: with both from memory the loads would be the bound.
template <class V, int kHalf, int kRows, int kKeys, class T>
static inline void score_half(const float* q, int64_t q_stride, const T* k, int64_t k_stride,
                              typename V::F (&acc)[kRows][kKeys]) {
  using F = typename V::F;
  F x[kKeys];
#pragma GCC unroll 16
  for (int j = 0; j < kKeys; ++j) x[j] = V::template load_half<kHalf>(k + j * k_stride);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const F a = V::load(q + r * q_stride + kHalf * V::kLanes);

#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) acc[r][j] = V::fma(a, x[j], acc[r][j]);
  }
}

// s[r][j] = q[r] . k[j] for kRows rows and kKeys keys, dimensions in lanes; q in pair order.
template <class V, int kRows, int kKeys, class T>
static inline void score_step(const float* q, int64_t q_stride, const T* k, int64_t k_stride,
                              int64_t head_dim, float* s) {
  using F = typename V::F;
  constexpr int kPair = 2 * V::kLanes;
  F acc[kRows][kKeys];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) acc[r][j] = V::zero();
  }
  int64_t d = 0;
  for (; d + kPair <= head_dim; d += kPair) {
    score_half<V, 0>(q + d, q_stride, k + d, k_stride, acc);
    score_half<V, 1>(q + d, q_stride, k + d, k_stride, acc);
  }
  if (d < head_dim) {
    T rest[kKeys][kPair] = {};
    for (int j = 0; j < kKeys; ++j) {
      __builtin_memcpy(rest[j], k + j * k_stride + d,
                       static_cast<size_t>(head_dim - d) * sizeof(T));
    }
    score_half<V, 0>(q + d, q_stride, rest[0], kPair, acc);
    score_half<V, 1>(q + d, q_stride, rest[0], kPair, acc);
  }
  if constexpr (kKeys % 4 == 0) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; j += 4) {
        V::reduce_add4(acc[r][j], acc[r][j + 1], acc[r][j + 2], acc[r][j + 3],
                       s + r * V::kBlockKeys + j);
      }
    }
  } else if constexpr (kRows == 4) {
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      float sums[4];
      V::reduce_add4(acc[0][j], acc[1][j], acc[2][j], acc[3][j], sums);
#pragma GCC unroll 16
      for (int r = 0; r < 4; ++r) s[r * V::kBlockKeys + j] = sums[r];
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) s[r * V::kBlockKeys + j] = V::reduce_add(acc[r][j]);
    }
  }
}

template <class T>
static inline void prefetch_row(const T* row, int64_t n) {
  const char* at = reinterpret_cast<const char*>(row);
  for (int64_t b = 0; b < n * static_cast<int64_t>(sizeof(T)); b += 64) {
    __builtin_prefetch(at + b, 0, 2);  // into L2
  }
}

// While the scores of a key are formed, the key and the value one tile ahead are on their way to
// L2. (Into L1 there is room for fewer requests than it takes to hide the latency of memory, and
// the tile would not stay: rows of a packed tensor fall on few cache sets.)
template <class V, int kRows, class T>
static void score_steps(const Plan& p, const Source<T>& from, const Edges& e, const float* q,
                        bool prefetch, float* s) {
  constexpr int kKeys = V::step_keys(kRows);
  const int64_t q_stride = p.head_dim_pad;
  int j = e.begin;
  for (; j + kKeys <= e.end; j += kKeys) {
    for (int i = j + V::kBlockKeys; prefetch && i < j + V::kBlockKeys + kKeys; ++i) {
      prefetch_row(from.k + i * from.k_stride, p.head_dim);
      prefetch_row(from.v + i * from.v_stride, p.head_dim_v);
    }
    score_step<V, kRows, kKeys>(q, q_stride, from.k + j * from.k_stride, from.k_stride, p.head_dim,
                                s + j);
  }
  for (; j < e.end; ++j) {
    score_step<V, kRows, 1>(q, q_stride, from.k + j * from.k_stride, from.k_stride, p.head_dim,
                            s + j);
  }
}

// The widest tiles that head_dim_v has room for, then narrower ones.
template <class V, int kRows, int kPairs, class T>
static inline int64_t value_widths(const Plan& p, const Source<T>& from, const Edges& e,
                                   const float* s, const float* shrink, float* o, int64_t d) {
  constexpr int kWidth = 2 * kPairs * V::kLanes;
  for (; d + kWidth <= p.head_dim_v; d += kWidth) {
    value_tile<V, kRows, kPairs, false>(e, s, shrink, from.v + d, from.v_stride, o + d,
                                        p.head_dim_v_pad, 0);
  }
  if constexpr (kPairs > 1) {
    d = value_widths<V, kRows, kPairs / 2>(p, from, e, s, shrink, o, d);
  }
  return d;
}

template <class V, int kRows, class T>
static void value_steps(const Plan& p, const Source<T>& from, const Edges& e, const float* s,
                        const float* shrink, float* o) {
  const int64_t d = value_widths<V, kRows, V::step_pairs(kRows)>(p, from, e, s, shrink, o, 0);
  if (d < p.head_dim_v) {
    value_tile<V, kRows, 1, true>(e, s, shrink, from.v + d, from.v_stride, o + d, p.head_dim_v_pad,
                                  static_cast<int>(p.head_dim_v - d));
  }
}

// The queries as f32, in the order in which E, the type of the keys, comes in pairs.
template <class V, class T, class E>
static void load_queries(const Call& c, const Item& item, float* to) {
  const Plan& p = c.plan;
  for (int r = 0; r < item.rows; ++r, to += p.head_dim_pad) {
    const T* q = query_row<T>(c, item, r);
    for (int64_t d = 0; d < p.head_dim_pad; d += 2 * V::kLanes) {
      const int64_t left = p.head_dim - d, pair = 2 * V::kLanes;
      typename V::F x, y;
      load_pair<V, true>(q + d, static_cast<int>(left < pair ? left : pair), x, y);
      V::store(to + d, x);
      V::store(to + d + V::kLanes, y);
    }
    if constexpr (!std::is_same_v<T, E>) unpair<V>(q, to, p.head_dim_pad);
  }
}

template <class V, class T, class Keys>
static void run_step(const Call& c, const Item& item, const Keys& keys, const Scratch& t) {
  using E = typename Keys::Element;
  const Plan& p = c.plan;
  load_queries<V, T, E>(c, item, t.q);
  start_states<V>(c, item, t);

  constexpr bool ahead = Keys::kInPlace;
  const int groups = (item.rows + 3) / 4;  // of at most four rows, as even as can be
  for (int64_t first = item.keys.begin; first < item.keys.end; first += V::kBlockKeys) {
    const int64_t left = item.keys.end - first;
    const int count = left < V::kBlockKeys ? static_cast<int>(left) : V::kBlockKeys;
    set_limits(p, item, item.rows, first, count, t.low, t.high);
    const Source<E> from = keys.tile(first, count);
    for (int g = 0; g < groups; ++g) {
      const int r = item.rows * g / groups, n = item.rows * (g + 1) / groups - r;
      const Edges e = edges_of(t.low + r, t.high + r, n);
      const float* q = t.q + r * p.head_dim_pad;
      float* s = t.s + r * V::kBlockKeys;
      switch (n) {
        case 1: score_steps<V, 1>(p, from, e, q, ahead && g == 0, s); break;
        case 2: score_steps<V, 2>(p, from, e, q, ahead && g == 0, s); break;
        case 3: score_steps<V, 3>(p, from, e, q, ahead && g == 0, s); break;
        default: score_steps<V, 4>(p, from, e, q, ahead && g == 0, s); break;
      }
    }
    score_rows<V>(c, item, first, t);
    for (int g = 0; g < groups; ++g) {
      const int r = item.rows * g / groups, n = item.rows * (g + 1) / groups - r;
      const int *low = t.low + r, *high = t.high + r;
      const Edges e = edges_of(low, high, n);
      const float *s = t.s + r * V::kBlockKeys, *shrink = t.shrink + r;
      float* o = t.o + r * p.head_dim_v_pad;
      switch (n) {
        case 1: value_steps<V, 1>(p, from, e, s, shrink, o); break;
        case 2: value_steps<V, 2>(p, from, e, s, shrink, o); break;
        case 3: value_steps<V, 3>(p, from, e, s, shrink, o); break;
        default: value_steps<V, 4>(p, from, e, s, shrink, o); break;
      }
      if (is_ragged(e)) {
        value_edges<V>(e, low, high, n, s, from.v, from.v_stride, o, p.head_dim_v_pad,
                       p.head_dim_v);
      }
    }
  }
  unpair<V>(static_cast<const E*>(nullptr), t.o, item.rows * p.head_dim_v_pad);
  finish<V>(c, item, t);
}

}  // namespace lowbit
