// linear_narrow_f32_avx512: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; int3, int2,
// int1 and ternary weights, f32 products.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns; zeros none, u8 or
//           f32.
// Layout    w in panel16.
// Bound     M up to 3: the pipes that shift and permute, 8 (int1), 12 (int2) or 14 to 15 (int3)
//           instructions for 128 weights. From there FMA.
// Method    codes become pairs of bf16, which a shift and a mask widen (narrow_pairs_avx512.h); up
//           to six rows of x meet them in registers.
#include "csrc/linear/narrow_pairs_avx512.h"

namespace lowbit {
namespace {

using namespace avx512;

Status run(const LinearArgs& args, const Ctx& ctx) {
  const bool zeros = args.w.format.zero_type != ZeroType::none;
  switch (args.w.format.kind) {
    case Kind::int1:
      return zeros ? run_float_tiles<Widened<Bits>, true>(args, ctx)
                   : run_float_tiles<Widened<Bits>, false>(args, ctx);
    case Kind::int3:
      return zeros ? run_float_tiles<Widened<Int3Codes<false>>, true>(args, ctx)
                   : run_float_tiles<Widened<Int3Codes<false>>, false>(args, ctx);
    default:
      return zeros ? run_float_tiles<Widened<Crumbs>, true>(args, ctx)
                   : run_float_tiles<Widened<Crumbs>, false>(args, ctx);
  }
}

}  // namespace

extern const LinearKernel linear_narrow_f32_avx512;
const LinearKernel linear_narrow_f32_avx512 = {
    "linear_narrow_f32_avx512",
    kArchAvx512,
    float_spec(kNarrowKinds, Layout::panel16, true),
    workspace_tiles,
    run,
};

}  // namespace lowbit
