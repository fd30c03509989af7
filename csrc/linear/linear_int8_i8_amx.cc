// linear_int8_i8_amx: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int8 weights, i8 activations, int32 sums in tiles.
//
// Shapes    M of 16 and more, any N, K; one scale a row, or for each group of a multiple of 64
//           columns.
// Layout    w in panel16, 1 KiB of which is a tile as it lies; x in tiles (gemm_amx.h).
// Bound     16 x 16 x 64 products in 16 cycles: 8 times the VNNI rows.
// Method    32 x 32 sums in four tiles. Per channel they stay int32 for all of K; with groups each
//           group's sums are stored and scaled in f32, which takes as long as its products at 128.
// Source    Intel 64 and IA-32 Optimization Reference Manual, chapter on AMX.
#include "csrc/linear/codes_amx.h"

namespace lowbit {
namespace {

using namespace amx;

Status run(const LinearArgs& args, const Ctx& ctx) {
  return run_tiles<SignedBytes>(args, ctx, true, 0, whole_steps);
}

}  // namespace

extern const LinearKernel linear_int8_i8_amx;
const LinearKernel linear_int8_i8_amx = {
    "linear_int8_i8_amx", kArchAmx, tile_spec(bit(Kind::int8)), workspace_tiles, run,
};

}  // namespace lowbit
