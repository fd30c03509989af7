// elementwise_avx512: add, siluMul and geluMul for every dtype; see elementwise.h.
//
// Shapes    all of elementwise.h.
// Layout    any strides that the contract allows.
// Bound     memory: a and b read and out written once. The gates, from cache or in 16 bits:
//           arithmetic, the exponential.
// Method    body.h over the lanes of simd/lanes.h, functions of simd/math.h.
// Source    Shazeer, GLU Variants Improve Transformer, 2020.
// Measured  see NOTES.md.
#include "csrc/elementwise/body.h"

namespace lowbit {
namespace {

Status run(const ElementwiseArgs& args, const Ctx& ctx) { return elementwise_body(args, ctx); }

}  // namespace

extern const ElementwiseKernel elementwise_avx512;
const ElementwiseKernel elementwise_avx512 = {
    "elementwise_avx512", kArchAvx512, {kFloats}, nullptr, run};

}  // namespace lowbit
