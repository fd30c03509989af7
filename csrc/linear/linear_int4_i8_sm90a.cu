// linear_int4_i8_sm90a: out[M,N] = act(sx[m] * (qx[M,K] * deq(w)[N,K]^T) + bias) + residual;
// symmetric int4 weights, x as int8 codes with a scale a row.
//
// Shapes    any; up to 32 rows of x at a time. x of floats is quantised on the way (linear_run).
// Layout    frag64: groups of 32, 64 or 128, or one scale a row, or one for all.
// Bound     memory: half a byte a weight and its share of the scale.
// Method    few_sm90a.cuh. A code less 8 becomes the high half of a byte, 16 times its value, by
//           one or two instructions for four; products and sums of a group are whole numbers.
// Source    NVIDIA, PTX ISA: mma; Lin et al., QServe, 2024 (W4A8).
// Measured  NOTES.md.
#include "csrc/linear/few_codes_sm90a.cuh"

namespace lowbit {
namespace {

Status run(const LinearArgs& args, const Ctx& ctx) {
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  return run_few_frag<FewX::s8>(args, x, ctx);
}

}  // namespace

extern const LinearKernel linear_int4_i8_sm90a;
const LinearKernel linear_int4_i8_sm90a = {
    "linear_int4_i8_sm90a",
    kArchSm90a,
    {.kinds = bit(Kind::int4),
     .layouts = bit(Layout::frag64),
     .x = kFloats | bit(DType::i8),
     .computes = bit(Compute::int8),
     .zeros = false,
     .m_max = 0,
     .n_multiple = 1,
     .k_multiple = 1,
     .group_multiple = 1,
     .codes_only = true},
    x_workspace,
    run,
};

}  // namespace lowbit
