// Many rows (prefill): K and V of a tile are copied to scratch as f32, K transposed, so that keys
// are in lanes and no sum runs across lanes; then two matrix products with kMR x 2 vectors of sums
// in registers, and softmax_row between them. Needs AVX2 for the transposes.
#pragma once

#include <immintrin.h>

#include "csrc/attention/keys.h"

namespace lowbit {

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

template <class V, class T, class Keys>
static void run_block(const Call& c, const Item& item, const Keys& keys, const Scratch& t) {
  constexpr int kNR = 2 * V::kLanes, kSteps = V::kBlockRows / V::kMR;
  const Plan& p = c.plan;
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
    const auto from = keys.tile(first, count);
    pack_k<V>(from.k, from.k_stride, count, p.head_dim, t.k);
    pack_v<V>(from.v, from.v_stride, count, p, t.v);
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

}  // namespace lowbit
