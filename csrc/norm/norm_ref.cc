// norm_ref: the formulas of norm.h, row by row, the oracle of every kernel.
//
// Shapes    all of norm.h.
// Layout    any strides that the contract allows.
// Bound     arithmetic: one element at a time.
// Method    sums, means and the quotient in double; out and residual_out alone are rounded.
// Source    the formulas in norm.h.
#include <cmath>

#include "csrc/base/rows.h"
#include "csrc/base/threads.h"
#include "csrc/norm/norm.h"

namespace lowbit {
namespace {

struct Row {
  const NormArgs& a;
  int64_t x, residual, out, residual_out;  // offsets of the row's first elements
};

double value(const Tensor& t, int64_t index, double absent) {
  return present(t) ? static_cast<double>(load_f32(t.data, t.dtype, index)) : absent;
}

// Element i of u.
double summed(const Row& r, int64_t i) {
  if (present(r.a.residual_out)) return value(r.a.residual_out, r.residual_out + i, 0);
  return value(r.a.x, r.x + i, 0) + value(r.a.residual, r.residual + i, 0);
}

void normalise(const Row& r, int64_t length) {
  const NormArgs& a = r.a;
  if (present(a.residual_out)) {
    for (int64_t i = 0; i < length; ++i) {
      const double u = value(a.x, r.x + i, 0) + value(a.residual, r.residual + i, 0);
      store_f32(a.residual_out.data, a.residual_out.dtype, r.residual_out + i,
                static_cast<float>(u));
    }
  }
  const double n = static_cast<double>(length);
  double mean = 0, squares = 0;
  if (a.kind == NormKind::layer) {
    for (int64_t i = 0; i < length; ++i) mean += summed(r, i);
    mean /= n;
  }
  for (int64_t i = 0; i < length; ++i) {
    const double d = summed(r, i) - mean;
    squares += d * d;
  }
  const double scale = 1 / std::sqrt(squares / n + a.eps);
  for (int64_t i = 0; i < length; ++i) {
    const double y = (summed(r, i) - mean) * scale * value(a.weight, i, 1) + value(a.bias, i, 0);
    store_f32(a.out.data, a.out.dtype, r.out + i, static_cast<float>(y));
  }
}

Status run(const NormArgs& args, const Ctx& ctx) {
  const NormArgs* a = &args;
  const Rows x = rows_of(args.x), out = rows_of(args.out);
  const Rows residual = rows_of(present(args.residual) ? args.residual : args.x);
  const Rows sum = rows_of(present(args.residual_out) ? args.residual_out : args.x);
  parallel_for(ctx.pool, x.count, row_grain(x.length, 4096), [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const Row row = {*a, row_offset(x, i), row_offset(residual, i), row_offset(out, i),
                       row_offset(sum, i)};
      normalise(row, x.length);
    }
  });
  return ok();
}

}  // namespace

extern const NormKernel norm_ref;
const NormKernel norm_ref = {"norm_ref", kArchCpu, {kFloats}, nullptr, run};

}  // namespace lowbit
