// elementwise_ref: the formulas of elementwise.h, one element at a time, the oracle of every
// kernel.
//
// Shapes    all of elementwise.h.
// Layout    any strides that the contract allows.
// Bound     arithmetic: one function of the C library an element.
// Method    double, rounded once into out. The integral of the normal distribution is taken from
//           erfc, which keeps its digits where it is small.
// Source    the formulas in elementwise.h.
#include <cmath>

#include "csrc/base/threads.h"
#include "csrc/elementwise/elementwise.h"

namespace lowbit {
namespace {

double apply(Function f, double a, double b) {
  switch (f) {
    case Function::add: return a + b;
    case Function::mul: return a * b;
    case Function::silu_mul: return a / (1 + std::exp(-a)) * b;
    case Function::gelu_mul: return a * (std::erfc(-a / std::sqrt(2.0)) / 2) * b;
    case Function::gelu_tanh_mul: {
      // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u))
      const double u = 0.79788456080286535588 * (a + 0.044715 * a * a * a);
      return a / (1 + std::exp(-2 * u)) * b;
    }
  }
  return 0;
}

Status run(const ElementwiseArgs& args, const Ctx& ctx) {
  const ElementwiseArgs* g = &args;
  const Walk walk = elementwise_walk(args);
  const Walk* w = &walk;
  parallel_for(ctx.pool, w->count * w->length, 4096, [=](int64_t begin, int64_t end, int) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t row = e / w->length, i = e % w->length;
      const double a = load_f32(g->a.data, g->a.dtype, walk_offset(*w, 0, row) + i);
      const double b = load_f32(g->b.data, g->b.dtype, walk_offset(*w, 1, row) + i);
      store_f32(g->out.data, g->out.dtype, walk_offset(*w, 2, row) + i,
                static_cast<float>(apply(g->function, a, b)));
    }
  });
  return ok();
}

}  // namespace

extern const ElementwiseKernel elementwise_ref;
const ElementwiseKernel elementwise_ref = {"elementwise_ref", kArchCpu, {kFloats}, nullptr, run};

}  // namespace lowbit
