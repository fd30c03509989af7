// linear_ref: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; any kind, layout, dtype and
// compute.
//
// Shapes    any.
// Layout    all, read code by code through layout.h.
// Bound     none named: this row is the oracle of the others and the last resort.
// Method    three loops with double sums. x stands in scratch as f32 (exact: the values or codes of
//           stage.h), two rows of w at a time as doubles, so decoding costs 1/kRows of the
//           products. Sums of integer codes are exact, because doubles hold them.
#include "csrc/base/threads.h"
#include "csrc/format/layout.h"
#include "csrc/linear/epilogue.h"
#include "csrc/linear/stage.h"

namespace lowbit {
namespace {

constexpr int64_t kRows = 512;  // rows of x that one decoded row of w serves; bounds the scratch
constexpr int64_t kPair = 2;    // rows of w per task: a gate and its value

struct Scratch {
  double* w;     // (threads, kPair, K)
  float* x;      // (kRows, K)
  float* scale;  // (kRows)
};

size_t carve(const LinearArgs& args, int threads, void* base, Scratch* s) {
  const int64_t rows = args.x.shape[0] < kRows ? args.x.shape[0] : kRows;
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->w = take<double>(&at, threads * kPair * args.w.k);
  s->x = take<float>(&at, rows * args.w.k);
  s->scale = take<float>(&at, rows);
  return at - reinterpret_cast<uintptr_t>(base);
}

size_t workspace(const LinearArgs& args, int threads) {
  Scratch s;
  return carve(args, threads, nullptr, &s);
}

// weight_value() without its roundings to f32.
void decode_row(const Weight& w, int64_t n, double* to) {
  const Format& f = w.format;
  const Shape s = {w.n, w.k};
  const KindRow& row = kind_row(f.kind);
  int64_t group = -1;
  double scale = 1.0, zero = 0.0;
  for (int64_t k = 0; k < w.k; ++k) {
    if (row.scaled && k / f.group_k != group) {
      group = k / f.group_k;
      scale = load_f32(w.data + scale_at(w.layout, f, s, n, group), f.scale_dtype, 0);
      scale *= w.tensor_scale;
      if (row.affine) {
        const int64_t at = zero_at(w.layout, f, s, n, group);
        zero = f.zero_type == ZeroType::none ? row.mid
               : f.zero_type == ZeroType::u8 ? w.data[at]
                                             : load_f32(w.data + at, DType::f32, 0);
      }
    }
    to[k] = scale * (static_cast<double>(code_value(w, n, k)) - zero);
  }
}

double dot(const float* x, const double* w, int64_t k) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(x[i + j]) * w[i + j];
  }
  for (; i < k; ++i) sums[0] += static_cast<double>(x[i]) * w[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const int64_t m_all = args.x.shape[0], n = args.w.n, k = args.w.k;
  Scratch scratch;
  carve(args, pool_threads(ctx.pool), ctx.scratch, &scratch);
  for (int64_t m0 = 0; m0 < m_all; m0 += kRows) {
    const int64_t rows = m_all - m0 < kRows ? m_all - m0 : kRows;
    parallel_for(ctx.pool, rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t m = begin; m < end; ++m) {
        scratch.scale[m] = stage_floats(args, m0 + m, scratch.x + m * k);
      }
    });
    parallel_for(ctx.pool, ceil_div(n, kPair), 1, [&](int64_t begin, int64_t end, int thread) {
      double* w = scratch.w + thread * kPair * k;
      for (int64_t pair = begin; pair < end; ++pair) {
        const int64_t n0 = pair * kPair;
        const int64_t count = n - n0 < kPair ? n - n0 : kPair;
        for (int64_t i = 0; i < count; ++i) decode_row(args.w, n0 + i, w + i * k);
        for (int64_t m = 0; m < rows; ++m) {
          double sums[kPair];
          for (int64_t i = 0; i < count; ++i) sums[i] = dot(scratch.x + m * k, w + i * k, k);
          epilogue(args, m0 + m, n0, count, scratch.scale[m], sums);
        }
      }
    });
  }
  return ok();
}

constexpr LinearSpec spec() {
  LinearSpec s = {kAllKinds,
                  (1u << kLayoutCount) - 1,
                  kFloats | kCodeDTypes,
                  bit(Compute::floating) | bit(Compute::int8) | bit(Compute::fp8),
                  true,
                  0,
                  1,
                  1,
                  1};
  s.planes = true;
  return s;
}

}  // namespace

extern const LinearKernel linear_ref;
const LinearKernel linear_ref = {"linear_ref", kArchCpu, spec(), workspace, run};

}  // namespace lowbit
