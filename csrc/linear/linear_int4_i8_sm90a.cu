// linear_int4_i8_sm90a: out[M,N] = act(sx[m] * (qx[M,K] * deq(w)[N,K]^T) + bias) + residual;
// symmetric int4 weights, x as int8 codes with a scale a row.
//
// Shapes    any. x of floats is quantised on the way (linear_run).
// Layout    frag64: groups of 32, 64 or 128, or one scale a row, or one for all.
// Bound     memory: half a byte a weight and its share of the scale.
// Method    M <= 8: one_unit_sm90a.cuh where x and sums fit. M <= 16: units_sm90a.cuh. Beyond:
//           stream_int4_sm90a.cuh, up to 128 rows of x a tile. A code less 8 becomes the high half
//           of a byte, 16 times its value, by one or two instructions for four; products and sums
//           of a group are whole numbers.
// Source    NVIDIA, PTX ISA: mma; Lin et al., QServe, 2024 (W4A8).
// Measured  NOTES.md.
#include "csrc/linear/int4_sm90a.cuh"

namespace lowbit {

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
    run_int4<MmaS8>,
};

}  // namespace lowbit
