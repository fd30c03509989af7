// What threads of attention_*_sm90a do with scores of their rows: options, masks, softmax; and rows
// whose results are no numbers.
//
// A warpgroup has 64 rows, a thread two of them: row 16 w + l / 4 and the one 8 below, of each the
// columns 8 j + 2 (l % 4) and the next. So what a row needs from all its columns crosses the four
// lanes of a quad.
//
// Weights are 2^(c x - base), with base a number that need not be the largest so far: it follows
// once a score passes it by kSlack, so that sums are rescaled rarely. They stay below 2^kSlack,
// which every type has. Weights of bf16 may be much larger: once a row has seen keys, its base
// follows where a sum of weights has become large, and the largest score is not looked for.
//
// A masked key has weight 0, but 0 times a NaN or an inf of its value is no number. An item with a
// row that is no number is computed once more: of tiles that not all rows see whole such values are
// cleared then, which leaves the rows that don't see them the same bits. Rows that see them, and
// rows whose results are no numbers still, are computed by one warp each, key by key.
#pragma once

#include "csrc/attention/prefill_items_sm90a.cuh"
#include "csrc/cuda/eight.cuh"
#include "csrc/cuda/functions.cuh"
#include "csrc/cuda/reduce.cuh"

namespace lowbit {
namespace {

inline constexpr float kLog2 = 1.44269504f, kSlack = 8.0f, kMostSum = 0x1p10f, kFarSum = 0x1p100f;
inline constexpr double kLn2 = 0.693147180559945309;

// The element of a wave of accumulators: which of the two rows, and how many columns further.
constexpr int row_of(int i) { return i / 2 % 2; }
constexpr int column_of(int i) { return i / 4 * 8 + i % 2; }

struct Rows {
  int lo[2], hi[2];  // keys that they see
  int position[2];   // where they stand
  float base[2];     // -inf: no score was seen
  float sum[2];      // of weights, in this thread's columns
  float factor[2];   // what results of before still have to be multiplied by
  const float* bias[2];
  float slope;  // in units of log2
};

template <class F>
__device__ __forceinline__ Rows rows_of(const Call& call, const Item& t, int row) {
  Rows r;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    r.position[e] = row + 8 * e + t.seq_kv - t.seq_q;
    r.lo[e] = first_key(call, r.position[e]);
    r.hi[e] = end_key(call, r.position[e], t.seq_kv);
    r.base[e] = -INFINITY;
    r.sum[e] = 0.0f;
    r.factor[e] = 1.0f;
    r.bias[e] = nullptr;
    if (!present(call.args.bias)) continue;
    const Tensor& b = call.args.bias;
    const int64_t i = t.q + min(row + 8 * e, t.seq_q - 1);  // t.q: 0 in the batched form
    r.bias[e] = static_cast<const float*>(b.data) + i * b.strides[b.rank - 2];
    if (b.shape[b.rank - 3] > 1) r.bias[e] += t.head * b.strides[b.rank - 3];
    if (b.rank == 4 && b.shape[0] > 1) r.bias[e] += t.batch * b.strides[0];
  }
  r.slope = present(call.args.alibi_slopes)
                ? static_cast<const float*>(call.args.alibi_slopes.data)[t.head] * kLog2
                : 0.0f;
  return r;
}

// Products to scores in units of log2. `key`: of the first column of this thread.
template <int kCount>
__device__ __forceinline__ void score(const Call& call, const Rows& r, int key,
                                      uint32_t (&s)[kCount]) {
  const auto scale = static_cast<float>(call.scale);
  if (call.args.softcap > 0) {
    const float in = scale / call.args.softcap, out = call.args.softcap * kLog2;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      s[i] = __float_as_uint(out * tanhf(in * __uint_as_float(s[i])));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      s[i] = __float_as_uint(scale * kLog2 * __uint_as_float(s[i]));
    }
  }
  if (r.slope != 0.0f) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const auto distance = static_cast<float>(key + column_of(i) - r.position[row_of(i)]);
      s[i] = __float_as_uint(fmaf(r.slope, distance, __uint_as_float(s[i])));
    }
  }
  if (r.bias[0] != nullptr) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int e = row_of(i), j = key + column_of(i);
      if (j < r.lo[e] || j >= r.hi[e]) continue;
      s[i] = __float_as_uint(fmaf(kLog2, r.bias[e][j], __uint_as_float(s[i])));
    }
  }
}

// Scores of masked keys become -inf. `key`: of the first column of this thread; kUp: no key of the
// tile stands before the first one that a row sees.
template <bool kUp, int kCount>
__device__ __forceinline__ void mask_as(const Rows& r, int key, uint32_t (&s)[kCount]) {
  const int lo[2] = {r.lo[0] - key, r.lo[1] - key}, hi[2] = {r.hi[0] - key, r.hi[1] - key};
  const unsigned count[2] = {static_cast<unsigned>(max(0, r.hi[0] - r.lo[0])),
                             static_cast<unsigned>(max(0, r.hi[1] - r.lo[1]))};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int e = row_of(i);
    const bool seen =
        kUp ? column_of(i) < hi[e] : static_cast<unsigned>(column_of(i) - lo[e]) < count[e];
    s[i] = seen ? s[i] : 0xff800000u;  // -inf
  }
}
template <int kCount>
__device__ __forceinline__ void mask(const Rows& r, int key, uint32_t (&s)[kCount]) {
  if (__any_sync(~0u, max(r.lo[0], r.lo[1]) > key)) {
    mask_as<false>(r, key, s);
  } else {
    mask_as<true>(r, key, s);
  }
}

// Scores, or products to which `unit` belongs, to weights in place.
template <int kCount>
__device__ __forceinline__ void weigh(float unit, Rows& r, uint32_t (&s)[kCount]) {
  float most[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float& m = most[row_of(i) * 2 + i % 2];
    m = fmaxf(m, __uint_as_float(s[i]));
  }
  float shift[2], factor[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float m = quad_max(fmaxf(most[2 * e], most[2 * e + 1])) * unit;
    const bool passed = m > r.base[e] + kSlack;
    factor[e] = passed ? power_of_two(r.base[e] - m) : 1.0f;
    r.base[e] = passed ? m : r.base[e];
    r.factor[e] *= factor[e];
    shift[e] = r.base[e] == -INFINITY ? 0.0f : r.base[e];
  }
  float sum[4] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float p = power_of_two(fmaf(__uint_as_float(s[i]), unit, -shift[row_of(i)]));
    sum[row_of(i) * 2 + i % 2] += p;
    s[i] = __float_as_uint(p);
  }
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    r.sum[e] = fmaf(r.sum[e], factor[e], sum[2 * e] + sum[2 * e + 1]);
  }
}

// The same without a look at the largest score, for elements kFrom to kTo - 1: the base stays as it
// is, and follow() moves it where sums show that it has to.
template <int kFrom, int kTo, int kCount>
__device__ __forceinline__ void weigh_on(float unit, const Rows& r, uint32_t (&s)[kCount],
                                         float (&sum)[2]) {
  const float shift[2] = {r.base[0] == -INFINITY ? 0.0f : r.base[0],
                          r.base[1] == -INFINITY ? 0.0f : r.base[1]};
#pragma unroll
  for (int i = kFrom; i < kTo; ++i) {
    const float p = power_of_two(fmaf(__uint_as_float(s[i]), unit, -shift[row_of(i)]));
    sum[row_of(i)] += p;
    s[i] = __float_as_uint(p);
  }
}
// Takes the sums of a tile, which were made with the base of before, once its weights are on their
// way. Where one of them is large,
// the base grows by a whole number, so that what is rescaled loses nothing. Where it is out of all
// proportion, the row's sum is inf from then on, and the item is computed once more. Returns
// whether results of before may have to be rescaled.
__device__ __forceinline__ bool follow(Rows& r, float (&sum)[2]) {
  const float tile[2] = {sum[0], sum[1]};
  sum[0] = sum[1] = 0.0f;
  r.sum[0] += tile[0];
  r.sum[1] += tile[1];
  if (!__any_sync(~0u, fmaxf(tile[0], tile[1]) > kMostSum)) return false;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float most = quad_max(tile[e]);
    if (!(most > kMostSum)) continue;
    if (most >= kFarSum) {
      r.sum[e] = INFINITY;
      continue;
    }
    const int by = static_cast<int>(__float_as_uint(most) >> 23) - 127;
    const float factor = __uint_as_float(static_cast<uint32_t>(127 - by) << 23);
    r.base[e] += static_cast<float>(by);
    r.sum[e] *= factor;
    r.factor[e] *= factor;
  }
  return true;
}
template <int kCount>
__device__ __forceinline__ void weigh_sigmoid(uint32_t (&s)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    s[i] = __float_as_uint(reciprocal(1.0f + power_of_two(-__uint_as_float(s[i]))));
  }
}

// Weights as the a of products whose K is keys.
template <DType kType, int kCount>
__device__ __forceinline__ void pack_weights(const uint32_t (&s)[kCount],
                                             uint32_t (&p)[kCount / 8][4]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    p[i / 4][i % 4] = pack_two<kType>(__uint_as_float(s[2 * i]), __uint_as_float(s[2 * i + 1]));
  }
}

// A row from its definition, in f32, by a warp: lanes share its elements. Not known: if it sees a
// value that is no number, of those that were cleared.
template <class F>
__device__ __forceinline__ void mend_row(const Call& call, const Item& t, int row, bool known) {
  constexpr int kEach = F::kDim / 32;
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32;
  const int head_dim = static_cast<int>(head_dim_of(a)), dim_v = static_cast<int>(head_dim_v_of(a));
  const int position = row + t.seq_kv - t.seq_q;
  const int begin = first_key(call, position), end = end_key(call, position, t.seq_kv);
  const auto start = [&](const Tensor& x, int token, int head) {
    return (is_batched(a) ? t.batch : token) * x.strides[0] + head * head_stride(x);
  };
  const int64_t q_at = start(a.q, t.q, t.head) + row * token_stride(a.q);
  const int kv_head = t.head / call.group;
  const auto at_of = [&](const Tensor& x) { return is_paged(a) ? 0 : start(x, t.kv, kv_head); };
  const int64_t k_at = at_of(a.k), v_at = at_of(a.v);
  // The key or the value of position j.
  const auto element_of = [&](bool of_values, int j, int d) {
    if (!is_paged(a)) {
      const Tensor& x = of_values ? a.v : a.k;
      return load_f32(x.data, F::kType, (of_values ? v_at : k_at) + j * token_stride(x) + d);
    }
    const int page = call.table[int64_t{t.sequence} * call.table_stride + (j >> call.page_shift)];
    const int token = j & ((1 << call.page_shift) - 1);
    const uint8_t* block = kv_page(a.kv, page >= 0 && page < call.pages ? page : 0, kv_head);
    return load_f32(block + (of_values ? a.kv.page.v : a.kv.page.k), F::kType,
                    int64_t{token} * (of_values ? dim_v : head_dim) + d);
  };
  if (!known) {
    bool bad = false;
    const int last = min(end - 1, t.bad_last);
#pragma unroll 1
    for (int j = max(begin, t.bad_first); j <= last; ++j) {
#pragma unroll 1
      for (int d = lane; d < dim_v; d += 32) {
        bad = bad || !(fabsf(element_of(true, j, d)) < INFINITY);
      }
    }
    if (!__any_sync(~0u, bad)) return;
  }
  float q[kEach], o[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int d = lane + 32 * e;
    q[e] = d < head_dim ? load_f32(a.q.data, F::kType, q_at + d) : 0.0f;
    o[e] = 0.0f;
  }
  const Rows own = rows_of<F>(call, t, row);
  const bool sigmoid_score = a.score == Score::sigmoid;
  const float sink = present(a.sinks) ? static_cast<const float*>(a.sinks.data)[t.head] : -INFINITY;
  float most = sink, sum = sink == -INFINITY ? 0.0f : 1.0f;
#pragma unroll 1
  for (int j = begin; j < end; ++j) {
    float x = 0.0f;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int d = lane + 32 * e;
      if (d < head_dim) {
        x = fmaf(q[e], element_of(false, j, d), x);
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    x *= static_cast<float>(call.scale);
    if (a.softcap > 0) x = a.softcap * tanhf(x / a.softcap);
    if (own.slope != 0.0f) {
      x +=
          static_cast<const float*>(a.alibi_slopes.data)[t.head] * static_cast<float>(j - position);
    }
    if (own.bias[0] != nullptr) x += own.bias[0][j];
    float factor = 1.0f;
    if (sigmoid_score) {
      x = sigmoid(x);
    } else {
      const float next = x > most ? x : most, shift = next == -INFINITY ? 0.0f : next;
      factor = most == -INFINITY ? 0.0f : expf(most - shift);
      x = expf(x - shift);
      sum = sum * factor + x;
      most = next;
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int d = lane + 32 * e;
      if (d >= dim_v) continue;
      o[e] = o[e] * factor + x * element_of(true, j, d);
    }
  }
  const int64_t to = start(a.o, t.q, t.head) + row * token_stride(a.o);
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int d = lane + 32 * e;
    if (d < dim_v) store_f32(a.o.data, a.o.dtype, to + d, sigmoid_score ? o[e] : o[e] / sum);
  }
  if (lane != 0 || !present(a.lse)) return;
  const int64_t at = (is_batched(a) ? t.batch * a.lse.strides[0] : t.q * a.lse.strides[1]) +
                     t.head * a.lse.strides[a.lse.rank - 2] + row * a.lse.strides[a.lse.rank - 1];
  static_cast<float*>(a.lse.data)[at] = (most == -INFINITY ? 0.0f : most) + logf(sum);
}

}  // namespace
}  // namespace lowbit
