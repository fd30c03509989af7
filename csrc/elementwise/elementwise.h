// elementwise: out = f(a, b), one element at a time.
//
//   add            a + b
//   mul            a * b
//   silu_mul       a / (1 + exp(-a)) * b                                     SwiGLU
//   gelu_mul       a * (1 + erf(a / sqrt(2))) / 2 * b                        GEGLU; Shazeer, 2020
//   gelu_tanh_mul  a * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 a^3))) / 2 * b
//
//   a    any shape ("gate" where it goes through an activation)
//   b    the shape of a ("up"); for add and mul its leading dimensions may be missing or 1: it is
//        then repeated along them
//   out  the shape of a
//
// Each is f32, f16 or bf16 apart from the others, with a contiguous last dimension and any other
// strides. out may be a or b itself (the same view, elements as wide; b only where it has the shape
// of a) and shares no memory otherwise. NaN and inf spread as IEEE arithmetic has it: an activation
// of -inf is -inf * 0, a NaN.
#pragma once

#include "csrc/base/kernel.h"
#include "csrc/base/rows.h"
#include "csrc/base/tensor.h"

namespace lowbit {

enum class Function : int32_t { add, mul, silu_mul, gelu_mul, gelu_tanh_mul };
static constexpr bool is_gate(Function f) { return f != Function::add && f != Function::mul; }

struct ElementwiseArgs {
  Tensor a, b, out;
  Function function;
};
static constexpr const char* elementwise_op(Function f) {
  return f == Function::add        ? "add"
         : f == Function::mul      ? "mul"
         : f == Function::silu_mul ? "siluMul"
                                   : "geluMul";
}

struct ElementwiseSpec {
  DTypeSet dtypes;  // of a, b and out
};

using ElementwiseKernel = Kernel<ElementwiseArgs, ElementwiseSpec>;
struct ElementwiseTable {
  const ElementwiseKernel* const* rows;
  int count;
};
ElementwiseTable elementwise_table();

Status elementwise_infer(const ElementwiseArgs& args, Tensor* out);
Status elementwise_check(const ElementwiseArgs& args);
Status elementwise_select(const ElementwiseArgs& args, const Choice& choice,
                          const ElementwiseKernel** row);
size_t elementwise_workspace(const ElementwiseArgs& args, const ElementwiseKernel& row,
                             int threads);
Status elementwise_run(const ElementwiseArgs& args, const ElementwiseKernel& row, const Ctx& ctx);

// b with the shape of a: strides of 0 where it is repeated.
static constexpr Tensor broadcast(const Tensor& b, const Tensor& a) {
  Tensor t = b;
  t.rank = a.rank;
  for (int i = a.rank - 1; i >= 0; --i) {
    const int j = i - (a.rank - b.rank);
    t.shape[i] = a.shape[i];
    t.strides[i] = j >= 0 && b.shape[j] == a.shape[i] ? b.strides[j] : 0;
  }
  return t;
}

// a, b and out, in this order; the elements of a row are neighbours.
static constexpr Walk elementwise_walk(const ElementwiseArgs& args) {
  const Tensor b = broadcast(args.b, args.a);
  const Tensor* views[] = {&args.a, &b, &args.out};
  return walk_rows(views, 3);
}

}  // namespace lowbit
