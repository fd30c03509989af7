// elementwise_avx512: add, siluMul and geluMul for every dtype; see elementwise.h.
//
// Shapes    all of elementwise.h.
// Layout    any strides that the contract allows.
// Bound     memory: a and b read and out written once; with 16-bit dtypes in cache, the
// exponential. Method    the loops of body.h, which the compiler turns into vector code. Source
// Shazeer, GLU Variants Improve Transformer, 2020. Measured  see NOTES.md.
#include "csrc/elementwise/body.h"

namespace lowbit {
namespace {

Status run(const ElementwiseArgs& args, const Ctx& ctx) { return elementwise_body(args, ctx); }

}  // namespace

extern const ElementwiseKernel elementwise_avx512;
const ElementwiseKernel elementwise_avx512 = {
    "elementwise_avx512", kArchAvx512, {kFloats}, nullptr, run};

}  // namespace lowbit
