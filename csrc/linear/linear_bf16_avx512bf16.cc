// linear_bf16_avx512bf16: out[M,N] = act(x[M,K] * w[N,K]^T + bias) + residual; bf16 by bf16, f32
// sums.
//
// Shapes    any; x in bf16, or rounded to fp8 on the way.
// Layout    w in panel16: a lane of 4 bytes holds columns 2j and 2j + 1 of its row, the pair that
//           vdpbf16ps takes.
// Bound     M < about 10: memory, 2 bytes of w a product. From there vdpbf16ps, 32 products a
//           cycle.
// Method    gemm_bf16_avx512bf16.h, from the panel as it lies.
#include "csrc/linear/gemm_bf16_avx512bf16.h"

namespace lowbit {
namespace {

using namespace avx512;

Status run(const LinearArgs& args, const Ctx& ctx) { return run_pairs<PairCodes>(args, ctx); }

}  // namespace

extern const LinearKernel linear_bf16_avx512bf16;
const LinearKernel linear_bf16_avx512bf16 = {
    "linear_bf16_avx512bf16", kArchAvx512Bf16, pair_spec(bit(Kind::bf16)), workspace_pairs, run,
};

}  // namespace lowbit
