// attention_ref: o = score(softmax_scale * q k^T + bias) v, row by row, the oracle of every kernel.
//
// Shapes    all of attention.h.
// Layout    any strides that the contract allows.
// Bound     arithmetic: 2 * (head_dim + head_dim_v) operations a visible pair, one at a time.
// Method    per row of q: all its scores into scratch, their maximum, then exp, sum and the
//           weighted sum of v. Scores, sums and outputs are double; only o and lse are rounded.
// Source    the formula in attention.h; two-pass softmax.
#include <cmath>

#include "csrc/attention/attention.h"
#include "csrc/attention/mask.h"
#include "csrc/attention/sequence.h"
#include "csrc/base/threads.h"

namespace lowbit {
namespace {

template <class T>
double value(const void* base, int64_t i);
template <>
double value<float>(const void* base, int64_t i) {
  return static_cast<const float*>(base)[i];
}
struct F16 {};
template <>
double value<F16>(const void* base, int64_t i) {
  return f16_to_f32(static_cast<const uint16_t*>(base)[i]);
}
struct Bf16 {};
template <>
double value<Bf16>(const void* base, int64_t i) {
  return bf16_to_f32(static_cast<const uint16_t*>(base)[i]);
}

struct E4m3 {};
template <>
double value<E4m3>(const void* base, int64_t i) {
  return e4m3_to_f32(static_cast<const uint8_t*>(base)[i]);
}

// One query row: sequence s, position i of seq_q, query head h.
struct Row {
  Sequence s;
  int64_t i, h;
};

// Scratch of one thread: a score for each key, the row of o, and a key or a value.
int64_t scratch_doubles(const AttentionArgs& a) {
  const int64_t d = head_dim_of(a), dv = head_dim_v_of(a);
  return seq_kv_bound(a) + dv + (d > dv ? d : dv);
}

double option(const Tensor& t, int64_t h, double absent) {
  return present(t) ? static_cast<const float*>(t.data)[h] : absent;
}

// The keys and values that one head of a sequence reads, as tensors of T or in a cache.
template <class T>
struct Keys {
  const AttentionArgs& a;
  const Sequence& s;
  int64_t kv_head;

  void load(const Tensor& t, int64_t first, int64_t j, bool of_values, double* to) const {
    const int64_t dim = of_values ? head_dim_v_of(a) : head_dim_of(a);
    if (is_paged(a)) {
      const KvRow row = kv_row_at(a.kv, key_slot(a, s, j), kv_head, of_values);
      for (int64_t d = 0; d < dim; ++d) to[d] = kv_at<double>(row, dim, d);
      return;
    }
    const int64_t at = first + kv_head * head_stride(t) + j * token_stride(t);
    const double scale = key_scale(a, s, kv_head, j, of_values);
    for (int64_t d = 0; d < dim; ++d) to[d] = scale * value<T>(t.data, at + d);
  }
  void key(int64_t j, double* to) const { load(a.k, s.k, j, false, to); }
  void value_of(int64_t j, double* to) const { load(a.v, s.v, j, true, to); }
};

template <class T>
void attend(const AttentionArgs& a, const Row& row, double* score, double* o) {
  const Sequence& s = row.s;
  const int64_t h = row.h, kv_head = h / (head_count(a) / kv_head_count(a));
  const int64_t head_dim = head_dim_of(a), head_dim_v = head_dim_v_of(a);
  const int64_t q = s.q + row.i * token_stride(a.q) + h * head_stride(a.q);
  const Keys<T> source = {a, s, kv_head};
  double* kv = o + head_dim_v;  // a key, then a value
  const double scale = a.softmax_scale != 0 ? static_cast<double>(a.softmax_scale)
                                            : 1 / std::sqrt(static_cast<double>(head_dim));
  const double q_scale = query_scale(a, s, row.i, h);
  const double softcap = a.softcap, slope = option(a.alibi_slopes, h, 0);
  const double sink = option(a.sinks, h, -INFINITY);
  const int64_t position = row.i + s.seq_kv - s.seq_q;
  const Mask mask = make_mask(a.causal, a.window_left, a.window_right);
  const KeyRange keys = visible_keys(mask, position, s.seq_kv);

  double max = sink;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    double dot = 0;
    source.key(j, kv);
    for (int64_t d = 0; d < head_dim; ++d) dot += q_scale * value<T>(a.q.data, q + d) * kv[d];
    double x = scale * dot;
    if (softcap > 0) x = softcap * std::tanh(x / softcap);
    if (present(a.alibi_slopes)) x += slope * static_cast<double>(j - position);
    if (present(a.bias)) x += bias_row(a, s, row.i, h)[j];
    score[j] = x;
    if (x > max) max = x;  // a NaN is no maximum, but makes its own exp below NaN
  }

  // Where every term is exp(-inf) the sum is 0, so o is 0 / 0 and lse is -inf.
  const double shift = max == -INFINITY ? 0 : max;
  double sum = sink == -INFINITY ? 0 : std::exp(sink - shift);
  for (int64_t d = 0; d < head_dim_v; ++d) o[d] = 0;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    const double p =
        a.score == Score::sigmoid ? 1 / (1 + std::exp(-score[j])) : std::exp(score[j] - shift);
    sum += p;
    source.value_of(j, kv);
    for (int64_t d = 0; d < head_dim_v; ++d) o[d] += p * kv[d];
  }

  const bool empty = keys.begin == keys.end;
  const int64_t out = s.o + row.i * token_stride(a.o) + h * head_stride(a.o);
  for (int64_t d = 0; d < head_dim_v; ++d) {
    const double x = empty ? 0 : a.score == Score::softmax ? o[d] / sum : o[d];
    store_f32(a.o.data, a.o.dtype, out + d, static_cast<float>(x));
  }
  if (present(a.lse)) {
    const int64_t at =
        s.lse + h * a.lse.strides[a.lse.rank - 2] + row.i * a.lse.strides[a.lse.rank - 1];
    const double lse = empty ? sink : shift + std::log(sum);
    static_cast<float*>(a.lse.data)[at] = static_cast<float>(lse);
  }
}

size_t workspace(const AttentionArgs& args, int threads) {
  return static_cast<size_t>(threads * scratch_doubles(args)) * sizeof(double);
}

Status run(const AttentionArgs& args, const Ctx& ctx) {
  const AttentionArgs* a = &args;
  const int64_t heads = head_count(args);
  auto* scratch = static_cast<double*>(ctx.scratch);
  for (int64_t b = 0; b < sequence_count(args); ++b) {
    const Sequence s = sequence_at(args, b);
    parallel_for(ctx.pool, s.seq_q * heads, 1,
                 [a, s, heads, scratch](int64_t begin, int64_t end, int thread) {
                   double* score = scratch + thread * scratch_doubles(*a);
                   double* o = score + seq_kv_bound(*a);
                   for (int64_t r = begin; r < end; ++r) {
                     const Row row = {s, r / heads, r % heads};
                     switch (a->q.dtype) {
                       case DType::f32: attend<float>(*a, row, score, o); break;
                       case DType::f16: attend<F16>(*a, row, score, o); break;
                       case DType::e4m3: attend<E4m3>(*a, row, score, o); break;
                       default: attend<Bf16>(*a, row, score, o); break;
                     }
                   }
                 });
  }
  return ok();
}

}  // namespace

extern const AttentionKernel attention_ref;
const AttentionKernel attention_ref = {
    "attention_ref", kArchCpu, {kFloats | bit(DType::e4m3), 0, 1, kAllKvFormats, true},
    workspace,       run,
};

}  // namespace lowbit
