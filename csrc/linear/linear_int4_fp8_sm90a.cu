// linear_int4_fp8_sm90a: out[M,N] = act(sx[m] * (qx[M,K] * deq(w)[N,K]^T) + bias) + residual;
// symmetric int4 weights, x as fp8 codes, e4m3 or e5m2, with a scale a row or one for 128 columns.
//
// Shapes    any; up to 16 rows of x at a time.
// Layout    frag64: groups of 32, 64 or 128, or one scale a row, or one for all.
// Bound     memory: half a byte a weight and its share of the scale.
// Method    units_sm90a.cuh with x as f16, which holds every code of fp8: sums are those of f16 and
//           not of the tensor cores for fp8, which keep 14 bits.
// Source    NVIDIA, PTX ISA: mma, cvt.
// Measured  NOTES.md.
#include "csrc/linear/units_sm90a.cuh"

namespace lowbit {
namespace {

Status run(const LinearArgs& args, const Ctx& ctx) {
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  if (args.x.dtype == DType::e5m2) {
    return run_unit_call<UnitX::f16, kUnitTokens, UnitFrom::e5m2>(args, x, ctx);
  }
  return run_unit_call<UnitX::f16, kUnitTokens, UnitFrom::e4m3>(args, x, ctx);
}

}  // namespace

extern const LinearKernel linear_int4_fp8_sm90a;
const LinearKernel linear_int4_fp8_sm90a = {
    "linear_int4_fp8_sm90a",
    kArchSm90a,
    {.kinds = bit(Kind::int4),
     .layouts = bit(Layout::frag64),
     .x = kFloats | bit(DType::e4m3) | bit(DType::e5m2),
     .computes = bit(Compute::fp8),
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
