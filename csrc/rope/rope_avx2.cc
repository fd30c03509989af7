// rope_avx2: RoPE for every dtype and both pairings; see rope.h.
//
// Shapes    all of rope.h.
// Layout    any strides that the contract allows.
// Bound     memory: x read and out written once; the tables are read once a token.
// Method    body.h over the lanes of simd/lanes.h.
// Source    Su et al., RoFormer, 2021.
// Measured  EPYC (Zen 4), one thread, 2048 x 4096 f32: 2290 us, 67 % of copy; see NOTES.md.
#include "csrc/rope/body.h"

namespace lowbit {
namespace {

Status run(const RopeArgs& args, const Ctx& ctx) { return rope_body(args, ctx); }

}  // namespace

extern const RopeKernel rope_avx2;
const RopeKernel rope_avx2 = {"rope_avx2", kArchAvx2, {kFloats}, nullptr, run};

}  // namespace lowbit
