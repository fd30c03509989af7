// flash: attention in one pass over tiles of keys, for any vector width. The rows of attention give
// the vector type V and its tile sizes; masks, states and the order of work are the same for all.
//
// Two ways through a tile:
//   block   many rows (prefill). K and V of the tile are copied to scratch as f32, K transposed, so
//           that keys are in lanes and no sum runs across lanes; then two matrix products with
//           kMR x 2 vectors of sums in registers, and softmax_row between them.
//   step    few rows (decode). K and V are read where they lie, once for all rows, and converted in
//           registers: copying would cost more than the products. Scores are sums across lanes.
//
//   q   [rows / kMR][head_dim][kMR]         block    or [rows][head_dim_pad]     step
//   k   [keys / kNR][head_dim][kNR]         block; kNR = two vectors
//   v   [head_dim_v_pad / kNR][keys + 1][kNR]   block; + 1: panels don't fall on the same cache
//   sets s   [rows][kBlockKeys]                  scores, then P in place o   [rows][head_dim_v_pad]
//   not normalised, relative to m
//
// A row sees one interval [low, high) of a tile's keys (mask.h). Products skip what no row of a
// step sees; where rows differ, values are added row by row, because P = 0 times a NaN in a value
// that the row must not see would be NaN.
//
// V: F, kLanes, kMR, kBlockRows, kBlockKeys, kStepRows, step_keys, step_pairs and the functions
// used below. This header needs AVX2 for the transposes.
#pragma once

#include <immintrin.h>

#include <cmath>

#include "csrc/attention/plan.h"
#include "csrc/attention/softmax.h"
#include "csrc/base/threads.h"

namespace lowbit {

// Element types of q, k, v and o as C++ types.
struct F16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};
static inline float to_f32(float x) { return x; }
static inline float to_f32(F16 x) { return f16_to_f32(x.bits); }
static inline float to_f32(Bf16 x) { return bf16_to_f32(x.bits); }

static inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
static inline __m256 load8(const F16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline __m256 load8(const Bf16* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

// A vector of the first n < kLanes elements, the lanes after them zero; and the same for stores.
// Not one byte past the elements is touched.
template <class V, class T>
static inline typename V::F load_part(const T* p, int64_t n) {
  T all[V::kLanes] = {};
  __builtin_memcpy(all, p, static_cast<size_t>(n) * sizeof(T));
  return V::load(all);
}
template <class V, class T>
static inline void store_part(T* p, typename V::F x, int64_t n) {
  T all[V::kLanes];
  V::store(all, x);
  __builtin_memcpy(p, all, static_cast<size_t>(n) * sizeof(T));
}

// Scratch of one thread.
struct Scratch {
  float *q, *k, *v, *s, *o;
  float *m, *l, *shrink;  // [rows], [rows][kLanes], [rows]
  int *low, *high;        // [rows]
};

template <class V>
static size_t carve(const Plan& p, float* at, Scratch* out) {
  constexpr int64_t kNR = 2 * V::kLanes, rows = V::kBlockRows;
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* here = at == nullptr ? nullptr : at + used;
    used += round_to(floats, 16);  // 64 bytes
    return here;
  };
  Scratch s = {};
  s.q = take(rows * p.head_dim_pad + 8);
  s.k = take(V::kBlockKeys * p.head_dim);
  s.v = take((V::kBlockKeys + 1) * (p.head_dim_v_pad / kNR) * kNR);
  s.s = take(rows * V::kBlockKeys);
  s.o = take(rows * p.head_dim_v_pad);
  s.m = take(rows);
  s.l = take(rows * V::kLanes);
  s.shrink = take(rows);
  s.low = reinterpret_cast<int*>(take(rows));
  s.high = reinterpret_cast<int*>(take(rows));
  if (out != nullptr) *out = s;
  return static_cast<size_t>(used) * sizeof(float);
}

// What every item of a call shares.
struct Call {
  const AttentionArgs* args;
  Plan plan;
  ScoreRule rule;
  float* states;
};

// ---------------------------------------------------------------- masks of a tile

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

// ---------------------------------------------------------------- states

static inline float option_of(const Tensor& t, int64_t h, float absent) {
  return present(t) ? static_cast<const float*>(t.data)[h] : absent;
}

// A sink is a score without a value, so a row starts as if it had seen one: m = sink, l = 1. Of the
// splits of a sequence only the first takes it in.
template <class V>
static void start_states(const Call& c, const Item& item, const Scratch& t) {
  const bool sinks = present(c.args->sinks) && item.split == 0;
  for (int r = 0; r < item.rows; ++r) {
    float m = c.rule.sigmoid ? 0.0f : -INFINITY, l = 0.0f;
    if (sinks) {
      const float sink = option_of(c.args->sinks, item.head + r % item.heads_here, 0);
      m = sink / c.rule.unit;
      l = sink == -INFINITY ? 0.0f : 1.0f + (sink - sink);  // NaN where exp(sink - sink) is
    }
    t.m[r] = m;
    V::store(t.l + r * V::kLanes, V::zero());
    t.l[r * V::kLanes] = l;
    for (int64_t d = 0; d < c.plan.head_dim_v_pad; d += V::kLanes) {
      V::store(t.o + r * c.plan.head_dim_v_pad + d, V::zero());
    }
  }
}

// P of all rows from their scores; shrink for the products that follow.
template <class V>
static void score_rows(const Call& c, const Item& item, int64_t first, const Scratch& t) {
  for (int r = 0; r < item.rows; ++r) {
    t.shrink[r] = 1.0f;
    const int low = t.low[r], high = t.high[r];
    if (low >= high) continue;
    float* s = t.s + r * V::kBlockKeys;
    const int begin = low / V::kLanes * V::kLanes;
    if (c.rule.transform) {
      const int64_t position = position_of(item.s, item.first + r / item.heads_here);
      const float slope = option_of(c.args->alibi_slopes, item.head + r % item.heads_here, 0);
      transform_scores<V>(c.rule, slope, static_cast<float>(first - position), s, begin, high);
    }
    if (c.rule.sigmoid) {
      sigmoid_row<V>(c.rule, s, begin, high);
    } else {
      t.shrink[r] = softmax_row<V>(c.rule, s, low, high, t.m + r, t.l + r * V::kLanes);
    }
  }
}

template <class V, class T>
static void write_o(const float* o, float divisor, T* out, int64_t n) {
  int64_t d = 0;
  const typename V::F by = V::set1(divisor);
  for (; d + V::kLanes <= n; d += V::kLanes) V::store(out + d, V::div(V::load(o + d), by));
  if (d < n) store_part<V>(out + d, V::div(V::load(o + d), by), n - d);
}

// Rounds one finished row to o and lse.
template <class V>
static void write_row(const Call& c, const Sequence& s, int64_t i, int64_t h, float* o, float m,
                      float l) {
  const AttentionArgs& a = *c.args;
  const KeyRange see = visible_keys(c.plan.mask, position_of(s, i), s.seq_kv);
  const bool empty = see.begin == see.end;
  // A row without keys has l = 0, or 1 from its sink, and o = 0 / 1 either way.
  const float divisor = empty || c.rule.sigmoid ? 1.0f : l;
  const int64_t at = s.o + i * token_stride(a.o) + h * head_stride(a.o), n = c.plan.head_dim_v;
  switch (a.o.dtype) {
    case DType::f32: write_o<V>(o, divisor, static_cast<float*>(a.o.data) + at, n); break;
    case DType::f16: write_o<V>(o, divisor, static_cast<F16*>(a.o.data) + at, n); break;
    default: write_o<V>(o, divisor, static_cast<Bf16*>(a.o.data) + at, n); break;
  }
  if (!present(a.lse)) return;
  double lse = static_cast<double>(m) * static_cast<double>(c.rule.unit);
  if (empty)
    lse = static_cast<double>(option_of(a.sinks, h, -INFINITY));
  else
    lse += std::log(static_cast<double>(l));
  const int64_t to = s.lse + h * a.lse.strides[a.lse.rank - 2] + i * a.lse.strides[a.lse.rank - 1];
  static_cast<float*>(a.lse.data)[to] = static_cast<float>(lse);
}

template <class V>
static void finish(const Call& c, const Item& item, const Scratch& t) {
  const int64_t width = c.plan.head_dim_v_pad;
  for (int r = 0; r < item.rows; ++r) {
    float* o = t.o + r * width;
    const float m = t.m[r], l = V::reduce_add(V::load(t.l + r * V::kLanes));
    if (item.splits == 1) {
      write_row<V>(c, item.s, item.first + r / item.heads_here, item.head + r % item.heads_here, o,
                   m, l);
      continue;
    }
    float* state = c.states + state_row(item, r) * c.plan.state_floats;
    for (int64_t d = 0; d < width; d += V::kLanes) V::store(state + d, V::load(o + d));
    state[width] = m;
    state[width + 1] = l;
  }
}

// Adds up the states that the splits of one query head of a sequence have left, in their order.
template <class V>
static void merge(const Call& c, const Share& share, int64_t first_state, int64_t h, float* o) {
  const int64_t width = c.plan.head_dim_v_pad;
  const typename V::F factor = V::set1(c.rule.factor), lowest = V::set1(c.rule.lowest);
  for (int64_t i = 0; i < share.s.seq_q; ++i) {
    const auto state = [&](int64_t split) {
      return c.states +
             (first_state + (split * c.plan.heads + h) * share.s.seq_q + i) * c.plan.state_floats;
    };
    float m = -INFINITY, l = 0;
    for (int64_t k = 0; k < share.splits; ++k) {
      if (state(k)[width] > m) m = state(k)[width];
    }
    const float base = m == -INFINITY ? 0.0f : m;
    for (int64_t k = 0; k < share.splits; ++k) {
      const float* from = state(k);
      const typename V::F weight = exp2<V>(V::set1(from[width] - base), factor, lowest);
      l += V::first(weight) * from[width + 1];
      for (int64_t d = 0; d < width; d += V::kLanes) {
        const typename V::F sum = k == 0 ? V::zero() : V::load(o + d);
        V::store(o + d, V::fma(weight, V::load(from + d), sum));
      }
    }
    write_row<V>(c, share.s, i, h, o, m, l);
  }
}

// ---------------------------------------------------------------- products

// A pair of vectors: 2 * kLanes elements in the order in which T is cheapest to convert. For bf16
// those are the even and the odd elements, a shift and a mask apart; else the first and the second
// half. What is multiplied with a pair, or adds pairs up, is in pair order too.
template <class V, bool kPart, class T>
static inline void load_pair(const T* p, int part, typename V::F& a, typename V::F& b) {
  if constexpr (kPart) {
    T all[2 * V::kLanes] = {};
    __builtin_memcpy(all, p, static_cast<size_t>(part) * sizeof(T));
    a = V::template load_half<0>(all);
    b = V::template load_half<1>(all);
  } else {
    a = V::template load_half<0>(p);
    b = V::template load_half<1>(p);
  }
}

// From pair order to the natural one, n a multiple of a pair.
template <class V>
static inline void unpair(const Bf16*, float* x, int64_t n) {
  for (int64_t d = 0; d < n; d += 2 * V::kLanes) {
    typename V::F a = V::load(x + d), b = V::load(x + d + V::kLanes);
    V::interleave(a, b);
    V::store(x + d, a);
    V::store(x + d + V::kLanes, b);
  }
}
template <class V, class T>
static inline void unpair(const T*, float*, int64_t) {}

// s[r][j] = q[r] . k[j] for kMR rows and two vectors of keys.
template <class V>
static void score_tile(const float* q, const float* k, int64_t head_dim, float* s) {
  using F = typename V::F;
  F acc[V::kMR][2];
#pragma GCC unroll 16
  for (int r = 0; r < V::kMR; ++r) acc[r][0] = acc[r][1] = V::zero();
  for (int64_t d = 0; d < head_dim; ++d) {
    const F k0 = V::load(k), k1 = V::load(k + V::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < V::kMR; ++r) {
      const F x = V::set1(q[r]);
      acc[r][0] = V::fma(x, k0, acc[r][0]);
      acc[r][1] = V::fma(x, k1, acc[r][1]);
    }
    q += V::kMR;
    k += 2 * V::kLanes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < V::kMR; ++r) {
    V::store(s + r * V::kBlockKeys, acc[r][0]);
    V::store(s + r * V::kBlockKeys + V::kLanes, acc[r][1]);
  }
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

// ---------------------------------------------------------------- block: many rows

// Eight rows of eight elements, transposed.
static inline void transpose8(__m256 (&x)[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

// Columns of eight rows: out[d * stride + i] = row[i][d].
template <class T>
static inline void pack_columns(const T* const* row, int64_t n, float* out, int64_t stride) {
  int64_t d = 0;
  for (; d + 8 <= n; d += 8) {
    __m256 x[8];
    for (int i = 0; i < 8; ++i) x[i] = load8(row[i] + d);
    transpose8(x);
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(out + (d + i) * stride, x[i]);
  }
  for (; d < n; ++d) {
    for (int i = 0; i < 8; ++i) out[d * stride + i] = to_f32(row[i][d]);
  }
}

template <class T>
static inline const T* query_row(const Call& c, const Item& item, int r) {
  const Tensor& q = c.args->q;
  return static_cast<const T*>(q.data) + item.s.q +
         (item.first + r / item.heads_here) * token_stride(q) +
         (item.head + r % item.heads_here) * head_stride(q);
}

// The rows that fill up the last step repeat the last real one. Eight rows are written at a time
// where kMR may leave room for fewer: what hangs over is the next column's or the next step's
// beginning, which the order, backwards within a step, writes later. Scratch ends 8 floats later.
template <class V, class T>
static void pack_q(const Call& c, const Item& item, int steps, float* out) {
  for (int i = 0; i < steps; ++i, out += V::kMR * c.plan.head_dim) {
    for (int at = (V::kMR - 1) / 8 * 8; at >= 0; at -= 8) {
      const T* row[8];
      for (int r = 0; r < 8; ++r) {
        const int real = i * V::kMR + at + r;
        row[r] = query_row<T>(c, item, real < item.rows ? real : item.rows - 1);
      }
      pack_columns(row, c.plan.head_dim, out + at, V::kMR);
    }
  }
}

// Transposes the tile's keys into panels. Lanes past the last key repeat it; nobody sees them.
template <class V, class T>
static void pack_k(const T* k, int64_t stride, int count, int64_t head_dim, float* out) {
  constexpr int kNR = 2 * V::kLanes;
  const int padded = (count + kNR - 1) / kNR * kNR;
  for (int j = 0; j < padded; j += 8) {
    const T* row[8];
    for (int i = 0; i < 8; ++i) row[i] = k + (j + i < count ? j + i : count - 1) * stride;
    pack_columns(row, head_dim, out + j / kNR * kNR * head_dim + j % kNR, kNR);
  }
}

// Copies the tile's values into panels, padding head_dim_v with zeros.
template <class V, class T>
static void pack_v(const T* v, int64_t stride, int count, const Plan& p, float* out) {
  constexpr int64_t kNR = 2 * V::kLanes, kPanel = (V::kBlockKeys + 1) * kNR;
  for (int64_t j = 0; j < count; ++j, v += stride, out += kNR) {
    float* to = out;
    int64_t d = 0;
    for (; d + kNR <= p.head_dim_v; d += kNR, to += kPanel) {
      V::store(to, V::load(v + d));
      V::store(to + V::kLanes, V::load(v + d + V::kLanes));
    }
    for (int64_t i = 0; d + i < p.head_dim_v_pad; i += V::kLanes) {
      const int64_t left = p.head_dim_v - d - i;
      V::store(to + i, left >= V::kLanes ? V::load(v + d + i)
                       : left > 0        ? load_part<V>(v + d + i, left)
                                         : V::zero());
    }
  }
}

template <class V, class T>
static void run_block(const Call& c, const Item& item, const Scratch& t) {
  constexpr int kNR = 2 * V::kLanes, kSteps = V::kBlockRows / V::kMR;
  const AttentionArgs& a = *c.args;
  const Plan& p = c.plan;
  const int64_t k_stride = token_stride(a.k), v_stride = token_stride(a.v);
  const T* k = static_cast<const T*>(a.k.data) + item.s.k + item.kv_head * head_stride(a.k);
  const T* v = static_cast<const T*>(a.v.data) + item.s.v + item.kv_head * head_stride(a.v);
  const int steps = (item.rows + V::kMR - 1) / V::kMR, rows = steps * V::kMR;
  pack_q<V, T>(c, item, steps, t.q);
  start_states<V>(c, item, t);
  // Rows that fill up the last register tile go through the products too: give them numbers.
  for (int64_t i = item.rows * p.head_dim_v_pad; i < rows * p.head_dim_v_pad; ++i) t.o[i] = 0;
  for (int64_t i = item.rows * V::kBlockKeys; i < rows * V::kBlockKeys; ++i) t.s[i] = 0;
  for (int r = item.rows; r < rows; ++r) t.shrink[r] = 0;

  for (int64_t first = item.keys.begin; first < item.keys.end; first += V::kBlockKeys) {
    const int64_t left = item.keys.end - first;
    const int count = left < V::kBlockKeys ? static_cast<int>(left) : V::kBlockKeys;
    const bool all = set_limits(p, item, rows, first, count, t.low, t.high);
    Edges edges[kSteps];
    for (int i = 0; i < steps; ++i) {
      edges[i] = all ? Edges{0, 0, count, count}
                     : edges_of(t.low + i * V::kMR, t.high + i * V::kMR, V::kMR);
    }
    pack_k<V>(k + first * k_stride, k_stride, count, p.head_dim, t.k);
    pack_v<V>(v + first * v_stride, v_stride, count, p, t.v);
    for (int j = 0; j < count; j += kNR) {
      for (int i = 0; i < steps; ++i) {
        if (j + kNR <= edges[i].begin || j >= edges[i].end) continue;
        score_tile<V>(t.q + i * V::kMR * p.head_dim, t.k + j * p.head_dim, p.head_dim,
                      t.s + i * V::kMR * V::kBlockKeys + j);
      }
    }
    score_rows<V>(c, item, first, t);
    for (int64_t d = 0; d < p.head_dim_v_pad; d += kNR) {
      const float* panel = t.v + d * (V::kBlockKeys + 1);
      for (int i = 0; i < steps; ++i) {
        if (edges[i].begin == edges[i].end) continue;
        const int r = i * V::kMR;
        const float* s = t.s + r * V::kBlockKeys;
        float* o = t.o + r * p.head_dim_v_pad + d;
        value_tile<V, V::kMR, 1, false>(edges[i], s, t.shrink + r, panel, kNR, o, p.head_dim_v_pad,
                                        0);
        if (is_ragged(edges[i])) {
          value_edges<V>(edges[i], t.low + r, t.high + r, V::kMR, s, panel, kNR, o,
                         p.head_dim_v_pad, kNR);
        }
      }
    }
  }
  finish<V>(c, item, t);
}

// ---------------------------------------------------------------- step: few rows

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

// The tile of one item whose keys are read in place.
template <class T>
struct Source {
  const T *k, *v;  // the tile's first key and value
  int64_t k_stride, v_stride;
  int count;
};

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

template <class V, class T>
static void run_step(const Call& c, const Item& item, const Scratch& t) {
  using F = typename V::F;
  const AttentionArgs& a = *c.args;
  const Plan& p = c.plan;
  const T* k = static_cast<const T*>(a.k.data) + item.s.k + item.kv_head * head_stride(a.k);
  const T* v = static_cast<const T*>(a.v.data) + item.s.v + item.kv_head * head_stride(a.v);
  for (int r = 0; r < item.rows; ++r) {
    const T* q = query_row<T>(c, item, r);
    float* to = t.q + r * p.head_dim_pad;
    for (int64_t d = 0; d < p.head_dim_pad; d += 2 * V::kLanes) {
      const int64_t left = p.head_dim - d, pair = 2 * V::kLanes;
      F x, y;
      load_pair<V, true>(q + d, static_cast<int>(left < pair ? left : pair), x, y);
      V::store(to + d, x);
      V::store(to + d + V::kLanes, y);
    }
  }
  start_states<V>(c, item, t);

  const int groups = (item.rows + 3) / 4;  // of at most four rows, as even as can be
  for (int64_t first = item.keys.begin; first < item.keys.end; first += V::kBlockKeys) {
    const int64_t left = item.keys.end - first;
    const int count = left < V::kBlockKeys ? static_cast<int>(left) : V::kBlockKeys;
    set_limits(p, item, item.rows, first, count, t.low, t.high);
    const Source<T> from = {k + first * token_stride(a.k), v + first * token_stride(a.v),
                            token_stride(a.k), token_stride(a.v), count};
    for (int g = 0; g < groups; ++g) {
      const int r = item.rows * g / groups, n = item.rows * (g + 1) / groups - r;
      const Edges e = edges_of(t.low + r, t.high + r, n);
      const float* q = t.q + r * p.head_dim_pad;
      float* s = t.s + r * V::kBlockKeys;
      switch (n) {
        case 1: score_steps<V, 1>(p, from, e, q, g == 0, s); break;
        case 2: score_steps<V, 2>(p, from, e, q, g == 0, s); break;
        case 3: score_steps<V, 3>(p, from, e, q, g == 0, s); break;
        default: score_steps<V, 4>(p, from, e, q, g == 0, s); break;
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
  unpair<V>(v, t.o, item.rows * p.head_dim_v_pad);
  finish<V>(c, item, t);
}

// ---------------------------------------------------------------- a call

// Scratch of a call: first items and first states of the sequences, the states, and each thread's.
template <class V>
static size_t flash_workspace(const AttentionArgs& args, int threads) {
  const Plan p = make_plan(args, {V::kLanes, V::kBlockRows, V::kBlockKeys});
  const int64_t table = round_to(2 * (sequence_count(args) + 1) * 8, 64);
  const int64_t states = round_to(p.states_max * p.state_floats * 4, 64);
  return static_cast<size_t>(table + states) +
         static_cast<size_t>(threads) * carve<V>(p, nullptr, nullptr);
}

template <class V, class T>
static void run_item(const Call& c, const Item& item, const Scratch& t) {
  if (item.rows <= V::kStepRows) {
    run_step<V, T>(c, item, t);
  } else {
    run_block<V, T>(c, item, t);
  }
}

// A call of fewer multiplications than this takes some 20 us on one core: waking others would cost
// more than they give.
inline constexpr int64_t kWorthThreads = 1 << 19;

template <class V>
static Status flash_run(const AttentionArgs& args, const Ctx& ctx) {
  if (numel(args.o) == 0) return ok();
  Call call = {};
  call.args = &args;
  call.plan = make_plan(args, {V::kLanes, V::kBlockRows, V::kBlockKeys});
  const Plan& p = call.plan;
  const float scale = args.softmax_scale != 0
                          ? args.softmax_scale
                          : static_cast<float>(1 / std::sqrt(static_cast<double>(p.head_dim)));
  call.rule =
      make_rule(scale, args.softcap, present(args.alibi_slopes), args.score == Score::sigmoid);

  const int64_t batch = sequence_count(args);
  auto* bytes = static_cast<char*>(ctx.scratch);
  auto* first_item = reinterpret_cast<int64_t*>(bytes);
  int64_t* first_state = first_item + batch + 1;
  bytes += round_to(2 * (batch + 1) * 8, 64);
  call.states = reinterpret_cast<float*>(bytes);
  bytes += round_to(p.states_max * p.state_floats * 4, 64);
  int64_t items = 0, states = 0, work = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const Share share = share_of(args, p, b);
    first_item[b] = items;
    first_state[b] = states;
    items += share.items;
    states += share.states;
    work +=
        share.s.seq_q * (share.keys.end - share.keys.begin) * p.heads * (p.head_dim + p.head_dim_v);
  }
  first_item[batch] = items;
  if (states > p.states_max) return error(Code::internal, "attention: the plan has no room");

  const Call* c = &call;
  const size_t scratch_bytes = carve<V>(p, nullptr, nullptr);
  const bool alone = work < kWorthThreads;
  parallel_for(ctx.pool, items, alone ? items : 1, [=](int64_t begin, int64_t end, int thread) {
    Scratch t;
    carve<V>(c->plan, reinterpret_cast<float*>(bytes + static_cast<size_t>(thread) * scratch_bytes),
             &t);
    int64_t b = 0;
    for (int64_t i = begin; i < end; ++i) {
      int64_t after = batch;  // the sequence b with first_item[b] <= i < first_item[b + 1]
      while (after - b > 1) {
        const int64_t middle = b + (after - b) / 2;
        (first_item[middle] <= i ? b : after) = middle;
      }
      const Item item =
          item_at(c->plan, share_of(*c->args, c->plan, b), first_state[b], i - first_item[b]);
      switch (c->args->q.dtype) {
        case DType::f32: run_item<V, float>(*c, item, t); break;
        case DType::f16: run_item<V, F16>(*c, item, t); break;
        default: run_item<V, Bf16>(*c, item, t); break;
      }
    }
  });
  if (states == 0) return ok();
  parallel_for(
      ctx.pool, batch * p.heads, alone ? batch * p.heads : 1,
      [=](int64_t begin, int64_t end, int thread) {
        Scratch t;
        carve<V>(c->plan,
                 reinterpret_cast<float*>(bytes + static_cast<size_t>(thread) * scratch_bytes), &t);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t b = i / c->plan.heads;
          const Share share = share_of(*c->args, c->plan, b);
          if (share.splits > 1) {
            merge<V>(*c, share, first_state[b], i % c->plan.heads, t.o);
          }
        }
      });
  return ok();
}

}  // namespace lowbit
