// softmax and the other ops that look at one row of scores at a time.
//
//   softmax        out[r, i] = exp(scale * x[r, i]) / sum over j of exp(scale * x[r, j])
//   argmax         out[r] = the first i with the largest x[r, i]
//   cross_entropy  out[r] = log(sum over j of exp(x[r, j])) - x[r, targets[r]]
//
//   x        [..., classes]; f32, f16 or bf16; contiguous last dimension, any other strides
//   targets  cross_entropy: i32, the shape of x without classes, any strides
//   out      softmax: the shape of x; f32, f16 or bf16; contiguous last dimension. It may be x
//            itself (the same view, elements as wide)
//            argmax: i32, cross_entropy: f32; the shape of x without classes, any strides
//   scale    softmax: finite; of either sign
//
// out shares no memory otherwise. Any number of rows may be 0; classes may be 0 for softmax only.
//
// softmax: a row that is -inf throughout (after scaling) gives zeros; a NaN or, after scaling, a
// +inf makes its row NaN; scale * x beyond the range of f32 is inf. argmax: NaN counts as larger
// than every number, 0 and -0 are equal. cross_entropy: NaN and inf spread as IEEE arithmetic has
// it (a target of -inf costs inf, a row with +inf or of -inf throughout is NaN); the result is
// accurate in f32 for any number of classes. A target below 0 or from `classes` on is found when
// the op runs, which then writes nothing.
#pragma once

#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"

namespace lowbit {

enum class RowFunction : int32_t { softmax, argmax, cross_entropy };
inline constexpr const char* kRowFunctionNames[] = {"softmax", "argmax", "crossEntropy"};

struct SoftmaxArgs {
  Tensor x, targets, out;
  float scale;
  RowFunction function;
};
static constexpr const char* softmax_op(RowFunction f) {
  return kRowFunctionNames[static_cast<int>(f)];
}

struct SoftmaxSpec {
  DTypeSet dtypes;  // of x, and of out where that is floating
};

using SoftmaxKernel = Kernel<SoftmaxArgs, SoftmaxSpec>;
struct SoftmaxTable {
  const SoftmaxKernel* const* rows;
  int count;
};
SoftmaxTable softmax_table();

Status softmax_infer(const SoftmaxArgs& args, Tensor* out);
Status softmax_check(const SoftmaxArgs& args);
Status softmax_select(const SoftmaxArgs& args, const Choice& choice, const SoftmaxKernel** row);
size_t softmax_workspace(const SoftmaxArgs& args, const SoftmaxKernel& row, int threads);
// Why the target at `index` of targets, in row-major order, is refused.
Status softmax_blame(const SoftmaxArgs& args, int64_t index, int32_t target);
// Checks the targets, then runs the row; on CUDA the row's kernel checks them.
Status softmax_run(const SoftmaxArgs& args, const SoftmaxKernel& row, const Ctx& ctx);

}  // namespace lowbit
