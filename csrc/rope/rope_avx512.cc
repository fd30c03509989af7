// rope_avx512: RoPE for every dtype and both pairings; see rope.h.
//
// Shapes    all of rope.h.
// Layout    any strides that the contract allows.
// Bound     memory: x read and out written once; the tables are read once a token.
// Method    body.h over the lanes of simd/lanes.h.
// Source    Su et al., RoFormer, 2021.
// Measured  see NOTES.md.
#include "csrc/rope/body.h"

namespace lowbit {
namespace {

Status run(const RopeArgs& args, const Ctx& ctx) { return rope_body(args, ctx); }

}  // namespace

extern const RopeKernel rope_avx512;
const RopeKernel rope_avx512 = {"rope_avx512", kArchAvx512, {kFloats}, nullptr, run};

}  // namespace lowbit
