// One query row of one head by a block of 128 threads, with every option of attention.h: what
// attention_simt_sm75 does for all rows, and rows of tiles for those that need it.
//
// 128 keys at a time: a thread takes the score of one key, q waits in shared memory; the block
// agrees on the maximum and the sum (online softmax); then a thread takes columns of v. f32
// throughout. Where the values of a tile's keys stand in a cache is left in shared memory by the
// threads of their keys. Lengths and pages that make no sense are reported by check_lens; rows are
// left alone, keys on such pages left out.
#pragma once

#include <cmath>

#include "csrc/attention/attention.h"
#include "csrc/attention/decode_sm75.cuh"
#include "csrc/attention/mask.h"
#include "csrc/attention/sequence.h"
#include "csrc/cuda/elements.cuh"
#include "csrc/cuda/functions.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/reduce.cuh"

namespace lowbit {
namespace {

inline constexpr int kRowThreads = 128;  // and keys at a time

__device__ inline float add(float a, float b) { return a + b; }

__device__ inline bool has_prefix_fault(const AttentionArgs& a, int64_t b) {
  if (!present(a.prefix_rows) || entry(a.prefix_rows, b) == -1) return false;
  if (entry(a.prefix_rows, b) < -1 || entry(a.prefix_rows, b) >= a.kv.prefix_rows) return true;
  if (!present(a.prefix_lens)) return false;
  return entry(a.prefix_lens, b) < 0 || entry(a.prefix_lens, b) > a.kv.prefix_tokens;
}

__device__ inline bool is_page(const AttentionArgs& a, int32_t page) {
  return page >= 0 && page < a.kv.pages;
}

// Pages that hold positions from the prefix to kv_lens.
__device__ inline void check_pages(const AttentionArgs& a, unsigned long long* check,
                                   int64_t thread, int64_t threads) {
  const int64_t width = a.page_table.shape[1], size = a.kv.page_size;
  for (int64_t i = thread; i < sequence_count(a) * width; i += threads) {
    const int64_t b = i / width, p = i - b * width;
    if (has_prefix_fault(a, b)) continue;
    const Sequence s = sequence_at(a, b);
    const int64_t from = s.prefix_len > p * size ? s.prefix_len : p * size;
    const int64_t end = s.seq_kv < (p + 1) * size ? s.seq_kv : (p + 1) * size;
    if (from < end && !is_page(a, s.pages[p])) report(check, kOfPageTable + i, s.pages[p]);
  }
}

// The checks of attention.cc, by this many threads.
__device__ inline void check_lens(const AttentionArgs& a, unsigned long long* check,
                                  int64_t thread = threadIdx.x, int64_t threads = kRowThreads) {
  const Tensor* cus[2] = {&a.cu_seqlens_q, &a.cu_seqlens_kv};
  for (int which = 0; which < 2; ++which) {
    const Tensor& cu = *cus[which];
    if (!present(cu)) continue;
    const auto* at = static_cast<const int32_t*>(cu.data);
    const int64_t place = which == 0 ? 0 : kOfCuSeqlensKv, last = cu.shape[0] - 1;
    const int64_t tokens = which == 0 ? a.q.shape[0] : a.k.shape[0];
    for (int64_t i = thread; i <= last; i += threads) {
      if (i == 0 ? at[0] != 0 : at[i] < at[i - 1]) report(check, place + i, at[i]);
    }
    if (thread == 0 && at[last] != tokens) {
      report(check, place + kNotAllTokens + last, at[last]);
    }
  }
  for (int64_t b = thread; b < sequence_count(a); b += threads) {
    bool good = true;
    if (present(a.kv_lens) && (entry(a.kv_lens, b) < 0 || entry(a.kv_lens, b) > seq_kv_bound(a))) {
      report(check, kOfKvLens + b, static_cast<int32_t>(entry(a.kv_lens, b)));
      good = false;
    }
    if (is_paged(a) && has_prefix_fault(a, b)) {
      const bool of_row =
          entry(a.prefix_rows, b) >= a.kv.prefix_rows || entry(a.prefix_rows, b) < 0;
      report(check, (of_row ? kOfPrefixRows : kOfPrefixLens) + b,
             static_cast<int32_t>(entry(of_row ? a.prefix_rows : a.prefix_lens, b)));
      good = false;
    }
    if (!good) continue;
    const Sequence s = sequence_at(a, b);
    if (present(a.bias) && s.seq_kv > a.bias.shape[a.bias.rank - 1]) {
      report(check, kOfBias + b, static_cast<int32_t>(s.seq_kv));
    }
  }
  if (is_paged(a)) check_pages(a, check, thread, threads);
}

// The sequence of query `token` of all, and its index there; false where the lengths make no sense.
__device__ inline bool find(const AttentionArgs& a, int64_t token, Sequence* s, int64_t* index) {
  int64_t b = 0;
  *index = token;
  if (is_batched(a)) {
    b = token / a.q.shape[1];
    *index = token - b * a.q.shape[1];
  } else if (present(a.cu_seqlens_q)) {
    const auto* cu = static_cast<const int32_t*>(a.cu_seqlens_q.data);
    int64_t low = 0, high = a.cu_seqlens_q.shape[0] - 1;  // the last b with cu[b] <= token
    if (high == 0) return false;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (cu[middle] <= token) {
        low = middle;
      } else {
        high = middle;
      }
    }
    b = low;
    *index = token - cu[b];
    if (cu[b] < 0 || *index < 0 || token >= cu[b + 1] || cu[b + 1] > a.q.shape[0]) return false;
    const auto* kv = static_cast<const int32_t*>(present(a.cu_seqlens_kv) ? a.cu_seqlens_kv.data
                                                                          : a.cu_seqlens_q.data);
    if (!is_paged(a) && (kv[b] < 0 || kv[b + 1] < kv[b] || kv[b + 1] > a.k.shape[0])) return false;
  }
  if (is_paged(a) && has_prefix_fault(a, b)) return false;
  *s = sequence_at(a, b);
  if (s->seq_kv < 0 || s->seq_kv > seq_kv_bound(a)) return false;
  return !present(a.bias) || s->seq_kv <= a.bias.shape[a.bias.rank - 1];
}

// The key or the value of position j of a kv head; those of tensors as rows of a format.
__device__ inline KvNumbers key_at(const AttentionArgs& a, const Sequence& s, int64_t kv_head,
                                   int64_t j, bool of_values) {
  if (is_paged(a)) {
    const bool paged = j >= s.prefix_len;
    if (paged && !is_page(a, s.pages[j / a.kv.page_size])) return {};
    return kv_numbers(kv_row_at(a.kv, key_slot(a, s, j), kv_head, of_values));
  }
  const Tensor& t = of_values ? a.v : a.k;
  const int64_t at = (of_values ? s.v : s.k) + kv_head * head_stride(t) + j * token_stride(t);
  const KvFormat format = t.dtype == DType::f32    ? KvFormat::f32
                          : t.dtype == DType::f16  ? KvFormat::f16
                          : t.dtype == DType::bf16 ? KvFormat::bf16
                                                   : KvFormat::fp8_e4m3;
  return {format, static_cast<const uint8_t*>(element(t.data, t.dtype, at)),
          key_scale(a, s, kv_head, j, of_values), 0.0f};
}

__device__ inline float score_of(const KvNumbers& k, const float* q, int64_t head_dim,
                                 float scale) {
  float sum[4] = {};
  int64_t d = 0;
  for (; d + kEight <= head_dim; d += kEight) {
    float v[kEight];
    kv_eight(k, head_dim, d, kEight, v);
#pragma unroll
    for (int i = 0; i < kEight; ++i) sum[i % 4] += q[d + i] * v[i];
  }
  for (; d < head_dim; ++d) sum[0] += q[d] * kv_number(k, head_dim, d);
  return scale * ((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// What a block needs beside its dynamic shared memory of row_shared() bytes.
struct RowRoom {
  float reduce[32];
  KvNumbers values[kRowThreads];
};
static inline size_t row_shared(const AttentionArgs& a) {
  return static_cast<size_t>(head_dim_of(a) + head_dim_v_of(a) + kRowThreads) * sizeof(float);
}

// o and lse of query `token` of all and head h, by all threads of the block.
__device__ inline void attend_row(const AttentionArgs& a, int64_t token, int64_t h, float* shared,
                                  RowRoom& own) {
  const int64_t heads = head_count(a), head_dim = head_dim_of(a), head_dim_v = head_dim_v_of(a);
  float* q = shared;           // (head_dim)
  float* p = q + head_dim;     // (kRowThreads)
  float* o = p + kRowThreads;  // (head_dim_v)
  float(&room)[32] = own.reduce;
  KvNumbers(&values)[kRowThreads] = own.values;
  const int thread = threadIdx.x;
  const bool sigmoid_score = a.score == Score::sigmoid;
  const float scale = a.softmax_scale != 0 ? a.softmax_scale : rsqrtf(static_cast<float>(head_dim));
  const Mask mask = make_mask(a.causal, a.window_left, a.window_right);
  Sequence s;
  int64_t i;
  if (!find(a, token, &s, &i)) return;
  const int64_t kv_head = h / (heads / kv_head_count(a));
  const int64_t from = s.q + i * token_stride(a.q) + h * head_stride(a.q);
  const int64_t position = i + s.seq_kv - s.seq_q;
  const KeyRange keys = visible_keys(mask, position, s.seq_kv);
  const float slope =
      present(a.alibi_slopes) ? static_cast<const float*>(a.alibi_slopes.data)[h] : 0.0f;
  const float sink = present(a.sinks) ? static_cast<const float*>(a.sinks.data)[h] : -INFINITY;
  const float q_scale = query_scale(a, s, i, h);
  __syncthreads();  // the row before is done with q, p and o
  for (int64_t d = thread; d < head_dim; d += kRowThreads) {
    q[d] = q_scale * load_f32(a.q.data, a.q.dtype, from + d);
  }
  for (int64_t d = thread; d < head_dim_v; d += kRowThreads) o[d] = 0.0f;
  __syncthreads();

  float max = sink, sum = sink == -INFINITY ? 0.0f : 1.0f;
  for (int64_t j0 = keys.begin; j0 < keys.end; j0 += kRowThreads) {
    const int64_t j = j0 + thread;
    float x = -INFINITY;
    KvNumbers key = {};
    if (j < keys.end) {
      key = key_at(a, s, kv_head, j, false);
      values[thread] = key_at(a, s, kv_head, j, true);
    }
    if (key.codes != nullptr) {
      x = score_of(key, q, head_dim, scale);
      if (a.softcap > 0) x = a.softcap * tanhf(x / a.softcap);
      if (present(a.alibi_slopes)) x += slope * static_cast<float>(j - position);
      if (present(a.bias)) x += bias_row(a, s, i, h)[j];
    }
    float factor = 1.0f;
    if (!sigmoid_score) {
      const float tile = max_block(x, room), next = tile > max ? tile : max;
      const float shift = next == -INFINITY ? 0.0f : next;
      factor = max == -INFINITY ? 0.0f : expf(max - shift);
      x = j < keys.end ? expf(x - shift) : 0.0f;
      sum = sum * factor + reduce_block(x, 0.0f, add, room);
      max = next;
    } else {
      x = j < keys.end ? sigmoid(x) : 0.0f;
    }
    p[thread] = x;
    __syncthreads();
    const int64_t count = keys.end - j0 < kRowThreads ? keys.end - j0 : kRowThreads;
    for (int64_t d = thread; d < head_dim_v; d += kRowThreads) {
      // The first tile's factor is 0, and o is 0 then: no product of a NaN.
      float acc = 0.0f;
      for (int64_t t = 0; t < count; ++t) {
        if (values[t].codes != nullptr) acc += p[t] * kv_number(values[t], head_dim_v, d);
      }
      o[d] = o[d] * factor + acc;
    }
    __syncthreads();
  }

  const bool empty = keys.begin == keys.end;
  const int64_t to = s.o + i * token_stride(a.o) + h * head_stride(a.o);
  for (int64_t d = thread; d < head_dim_v; d += kRowThreads) {
    store_f32(a.o.data, a.o.dtype, to + d, empty ? 0.0f : sigmoid_score ? o[d] : o[d] / sum);
  }
  if (present(a.lse) && thread == 0) {
    const int64_t lse =
        s.lse + h * a.lse.strides[a.lse.rank - 2] + i * a.lse.strides[a.lse.rank - 1];
    const float shift = max == -INFINITY ? 0.0f : max;
    static_cast<float*>(a.lse.data)[lse] = empty ? sink : shift + logf(sum);
  }
}

__global__ void __launch_bounds__(kRowThreads)
    attend(const __grid_constant__ AttentionArgs a, int64_t tokens, unsigned long long* check) {
  extern __shared__ float shared[];
  __shared__ RowRoom room;
  const int64_t heads = head_count(a);
  if (check != nullptr && blockIdx.x == 0) check_lens(a, check);
  for (int64_t at = blockIdx.x; at < tokens * heads; at += gridDim.x) {
    attend_row(a, at / heads, at % heads, shared, room);
  }
}

// Whether scores would show what tensor cores cut off. They align products by exponents as stored,
// and an f16 below 2^-14 has that exponent however small it is, so a sum keeps bits down to about
// 2^-37 of the other factor; softmax_scale may bring those into sight. bf16 has no such numbers to
// speak of.
static inline bool shows_cut_sums(const AttentionArgs& args) {
  return args.q.dtype == DType::f16 && !(std::fabs(args.softmax_scale) <= 0x1p6f);
}

static Status run_rows(const AttentionArgs& args, const Ctx& ctx) {
  const int64_t tokens = is_batched(args) ? args.q.shape[0] * args.q.shape[1] : args.q.shape[0];
  const int64_t rows = tokens * head_count(args);
  if (rows == 0 && ctx.check == nullptr) return ok();
  const unsigned blocks = rows == 0 ? 1 : grid_for(rows, 1, int64_t{1} << 24);
  attend<<<blocks, kRowThreads, row_shared(args), static_cast<cudaStream_t>(ctx.stream)>>>(
      args, tokens, ctx.check);
  return launched();
}

}  // namespace
}  // namespace lowbit
