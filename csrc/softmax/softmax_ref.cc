// softmax_ref: the formulas of softmax.h, row by row, the oracle of every kernel.
//
// Shapes    all of softmax.h.
// Layout    any strides that the contract allows.
// Bound     arithmetic: one exponential at a time.
// Method    the row's maximum, then exp and the sum in double; out alone is rounded.
// Source    the formulas in softmax.h.
#include <cmath>

#include "csrc/base/rows.h"
#include "csrc/base/threads.h"
#include "csrc/softmax/softmax.h"

namespace lowbit {
namespace {

double value(const SoftmaxArgs& a, int64_t index) { return load_f32(a.x.data, a.x.dtype, index); }

// scale * x, exact but for the range of f32.
double scaled(const SoftmaxArgs& a, int64_t index, double scale) {
  const double v = scale * value(a, index);
  const float rounded = static_cast<float>(v);
  return std::isinf(rounded) ? static_cast<double>(rounded) : v;
}

// The largest of scale * x that is no NaN; -inf: there is none.
double largest(const SoftmaxArgs& a, int64_t x, int64_t classes, double scale) {
  double max = -INFINITY;
  for (int64_t i = 0; i < classes; ++i) {
    const double v = scaled(a, x + i, scale);
    if (v > max) max = v;
  }
  return max;
}

// The sum of exp(scale * x - max). With max = -inf every term is exp(-inf - 0) = 0, or NaN.
double sum_of_exp(const SoftmaxArgs& a, int64_t x, int64_t classes, double scale, double max) {
  double sum = 0;
  for (int64_t i = 0; i < classes; ++i) sum += std::exp(scaled(a, x + i, scale) - max);
  return sum;
}

void softmax(const SoftmaxArgs& a, int64_t x, int64_t out, int64_t classes) {
  const double scale = a.scale, max = largest(a, x, classes, scale);
  const double shift = max == -INFINITY ? 0 : max;
  const double sum = sum_of_exp(a, x, classes, scale, shift);
  for (int64_t i = 0; i < classes; ++i) {
    const double p = sum == 0 ? 0 : std::exp(scaled(a, x + i, scale) - shift) / sum;
    store_f32(a.out.data, a.out.dtype, out + i, static_cast<float>(p));
  }
}

int32_t argmax(const SoftmaxArgs& a, int64_t x, int64_t classes) {
  int64_t best = 0;
  for (int64_t i = 0; i < classes; ++i) {
    const double v = value(a, x + i);
    if (std::isnan(v)) return static_cast<int32_t>(i);
    if (v > value(a, x + best)) best = i;
  }
  return static_cast<int32_t>(best);
}

float cross_entropy(const SoftmaxArgs& a, int64_t x, int64_t classes, int32_t target) {
  const double max = largest(a, x, classes, 1);
  const double sum = sum_of_exp(a, x, classes, 1, max);
  return static_cast<float>(std::log(sum) + (max - value(a, x + target)));
}

Status run(const SoftmaxArgs& args, const Ctx& ctx) {
  const SoftmaxArgs* a = &args;
  const Rows x = rows_of(args.x);
  const bool shaped = args.function == RowFunction::softmax;
  const Rows out = shaped ? rows_of(args.out) : elements_of(args.out);
  const Rows targets = elements_of(present(args.targets) ? args.targets : args.out);
  parallel_for(ctx.pool, x.count, row_grain(x.length, 2048), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t from = row_offset(x, r), to = row_offset(out, r);
      switch (a->function) {
        case RowFunction::softmax: softmax(*a, from, to, x.length); break;
        case RowFunction::argmax:
          static_cast<int32_t*>(a->out.data)[to] = argmax(*a, from, x.length);
          break;
        case RowFunction::cross_entropy: {
          const auto* target = static_cast<const int32_t*>(a->targets.data);
          static_cast<float*>(a->out.data)[to] =
              cross_entropy(*a, from, x.length, target[row_offset(targets, r)]);
          break;
        }
      }
    }
  });
  return ok();
}

}  // namespace

extern const SoftmaxKernel softmax_ref;
const SoftmaxKernel softmax_ref = {"softmax_ref", kArchCpu, {kFloats}, nullptr, run};

}  // namespace lowbit
