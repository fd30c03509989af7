// What a thread knows while it goes through the keys of an item: the scratch memory, and for every
// row its maximum m, its sum l and its result o, from their start to what is written.
#pragma once

#include <cmath>
#include <initializer_list>

#include "csrc/attention/element.h"
#include "csrc/attention/plan.h"
#include "csrc/attention/softmax.h"

namespace lowbit {

// Scratch of one thread.
struct Scratch {
  float *q, *k, *v, *s, *o;
  float *tile_k, *tile_v;  // [kBlockKeys][head_dim_pad], [kBlockKeys][head_dim_v_pad] if paged
  float *m, *l, *shrink;   // [rows], [rows][kLanes], [rows]
  float* lse_l;            // [rows][kLanes]: l where lse is meant; l itself unless P is rounded
  int *low, *high;         // [rows]
  // [rows], of rows whose P is rounded: nonzero for a row that f32 arithmetic must serve. finish()
  // writes the rows that have this flag as `wanted`; all of them where there are no flags.
  int32_t* exact;
  int32_t wanted;
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
  s.k = take(V::kBlockKeys * p.head_dim_pad);
  s.v = take((V::kBlockKeys + 1) * (p.head_dim_v_pad / kNR) * kNR);
  s.tile_k = take(p.paged ? V::kBlockKeys * p.head_dim_pad : 0);
  s.tile_v = take(p.paged ? V::kBlockKeys * p.head_dim_v_pad : 0);
  s.s = take(rows * V::kBlockKeys);
  s.o = take(rows * p.head_dim_v_pad);
  s.m = take(rows);
  s.l = take(rows * V::kLanes);
  s.lse_l = V::kRoundsP ? take(rows * V::kLanes) : s.l;
  s.shrink = take(rows);
  s.low = reinterpret_cast<int*>(take(rows));
  s.high = reinterpret_cast<int*>(take(rows));
  s.exact = V::kRoundsP ? reinterpret_cast<int32_t*>(take(rows)) : nullptr;
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
    for (float* sum : {t.l, t.lse_l}) {
      V::store(sum + r * V::kLanes, V::zero());
      sum[r * V::kLanes] = l;
    }
    for (int64_t d = 0; d < c.plan.head_dim_v_pad; d += V::kLanes) {
      V::store(t.o + r * c.plan.head_dim_v_pad + d, V::zero());
    }
  }
}

// Adds the bias of a row to its scores over the whole vectors of [begin, end); not one column past
// the last is touched.
template <class V>
static void add_bias(const Call& c, const Item& item, int r, int64_t first, float* s, int begin,
                     int end) {
  const AttentionArgs& a = *c.args;
  const float* bias =
      bias_row(a, item.s, item.first + r / item.heads_here, item.head + r % item.heads_here) +
      first;
  const int64_t columns = a.bias.shape[a.bias.rank - 1] - first;
  for (int j = begin; j < end; j += V::kLanes) {
    const typename V::F x =
        j + V::kLanes <= columns ? V::load(bias + j) : load_part<V>(bias + j, columns - j);
    V::store(s + j, V::add(V::load(s + j), x));
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
      if (present(c.args->bias)) add_bias<V>(c, item, r, first, s, begin, high);
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
                      float l, float lse_l) {
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
    lse += std::log(static_cast<double>(lse_l));
  const int64_t to = s.lse + h * a.lse.strides[a.lse.rank - 2] + i * a.lse.strides[a.lse.rank - 1];
  static_cast<float*>(a.lse.data)[to] = static_cast<float>(lse);
}

template <class V>
static void finish(const Call& c, const Item& item, const Scratch& t) {
  const int64_t width = c.plan.head_dim_v_pad;
  for (int r = 0; r < item.rows; ++r) {
    if (t.exact != nullptr && t.exact[r] != t.wanted) continue;
    float* o = t.o + r * width;
    const float m = t.m[r], l = V::reduce_add(V::load(t.l + r * V::kLanes));
    const float lse_l = V::kRoundsP ? V::reduce_add(V::load(t.lse_l + r * V::kLanes)) : l;
    if (item.splits == 1) {
      write_row<V>(c, item.s, item.first + r / item.heads_here, item.head + r % item.heads_here, o,
                   m, l, lse_l);
      continue;
    }
    float* state = c.states + state_row(item, r) * c.plan.state_floats;
    for (int64_t d = 0; d < width; d += V::kLanes) V::store(state + d, V::load(o + d));
    state[width] = m;
    state[width + 1] = l;
    state[width + 2] = lse_l;
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
    float m = -INFINITY, l = 0, lse_l = 0;
    for (int64_t k = 0; k < share.splits; ++k) {
      if (state(k)[width] > m) m = state(k)[width];
    }
    const float base = m == -INFINITY ? 0.0f : m;
    for (int64_t k = 0; k < share.splits; ++k) {
      const float* from = state(k);
      const typename V::F weight = exp2<V>(V::set1(from[width] - base), factor, lowest);
      l += V::first(weight) * from[width + 1];
      lse_l += V::first(weight) * from[width + 2];
      for (int64_t d = 0; d < width; d += V::kLanes) {
        const typename V::F sum = k == 0 ? V::zero() : V::load(o + d);
        V::store(o + d, V::fma(weight, V::load(from + d), sum));
      }
    }
    write_row<V>(c, share.s, i, h, o, m, l, lse_l);
  }
}

// The query of an item's row r: its heads are together, position after position.
template <class T>
static inline const T* query_row(const Call& c, const Item& item, int r) {
  const Tensor& q = c.args->q;
  return static_cast<const T*>(q.data) + item.s.q +
         (item.first + r / item.heads_here) * token_stride(q) +
         (item.head + r % item.heads_here) * head_stride(q);
}

}  // namespace lowbit
