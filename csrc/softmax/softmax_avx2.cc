// softmax_avx2: softmax, argmax and cross_entropy for every dtype; see softmax.h.
//
// Shapes    all of softmax.h.
// Layout    any strides that the contract allows.
// Bound     softmax and cross_entropy: arithmetic, the exponential; argmax: memory.
// Method    body.h over the lanes of simd/lanes.h, functions of simd/math.h.
// Source    softmax.h.
// Measured  EPYC (Zen 4), one thread, 2048 x 4096 f32: softmax 6111 us, argmax 1217 us;
//           see NOTES.md.
#include "csrc/softmax/body.h"

namespace lowbit {
namespace {

size_t workspace(const SoftmaxArgs& args, int threads) {
  return softmax_workspace_body(args, threads);
}
Status run(const SoftmaxArgs& args, const Ctx& ctx) { return softmax_body(args, ctx); }

}  // namespace

extern const SoftmaxKernel softmax_avx2;
const SoftmaxKernel softmax_avx2 = {"softmax_avx2", kArchAvx2, {kFloats}, workspace, run};

}  // namespace lowbit
