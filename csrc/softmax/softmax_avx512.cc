// softmax_avx512: softmax, argmax and cross_entropy for every dtype; see softmax.h.
//
// Shapes    all of softmax.h.
// Layout    any strides that the contract allows.
// Bound     softmax and cross_entropy: arithmetic, the exponential; argmax: memory.
// Method    body.h over the lanes of simd/lanes.h, functions of simd/math.h.
// Source    softmax.h.
// Measured  see NOTES.md.
#include "csrc/softmax/body.h"

namespace lowbit {
namespace {

size_t workspace(const SoftmaxArgs& args, int threads) {
  return softmax_workspace_body(args, threads);
}
Status run(const SoftmaxArgs& args, const Ctx& ctx) { return softmax_body(args, ctx); }

}  // namespace

extern const SoftmaxKernel softmax_avx512;
const SoftmaxKernel softmax_avx512 = {"softmax_avx512", kArchAvx512, {kFloats}, workspace, run};

}  // namespace lowbit
