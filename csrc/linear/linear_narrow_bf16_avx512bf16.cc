// linear_narrow_bf16_avx512bf16: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; int3,
// int2, int1 and ternary weights, x in bf16, exact products, f32 sums.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns; zeros none or u8;
//           x in bf16, or rounded to fp8 on the way.
// Layout    w in panel16.
// Bound     M up to 3: decoding, 4 shifts and 4 permutations (int1: 4 of logic) beside 4 products
//           for 128 weights, int3 5 to 8 more. From there vdpbf16ps.
// Method    int2 and ternary: fields are shifted to the low end of 16-bit words and looked up in a
//           table of bf16 (vpermw). int1: a bit is the sign of 1. int3, and int2 with zeros: bytes
//           of codes, less the zero point, are looked up twice.
#include "csrc/linear/gemm_bf16_avx512bf16.h"
#include "csrc/linear/narrow_pairs_avx512.h"

namespace lowbit {
namespace {

using namespace avx512;

Status run(const LinearArgs& args, const Ctx& ctx) {
  const bool zeros = args.w.format.zero_type != ZeroType::none;
  switch (args.w.format.kind) {
    case Kind::int1: return run_pairs<Bits>(args, ctx);
    case Kind::int3:
      return zeros ? run_pairs<Int3Codes<true>>(args, ctx) : run_pairs<Int3Codes<false>>(args, ctx);
    default: return zeros ? run_pairs<CrumbDifferences>(args, ctx) : run_pairs<Crumbs>(args, ctx);
  }
}

}  // namespace

extern const LinearKernel linear_narrow_bf16_avx512bf16;
const LinearKernel linear_narrow_bf16_avx512bf16 = {
    "linear_narrow_bf16_avx512bf16", kArchAvx512Bf16, pair_spec(kNarrowKinds), workspace_pairs, run,
};

}  // namespace lowbit
