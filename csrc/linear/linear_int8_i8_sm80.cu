// linear_int8_i8_sm80: out[M,N] = act(sx[m] * sw[n] * (qx[M,K] * qw[N,K]^T) + bias) + residual;
// int8 weights with a scale a row or one for all, x as int8 codes with a scale a row.
//
// Shapes    K a multiple of 16; any M and N. x of floats is quantised on the way (linear_run).
// Layout    rows: w as it is saved.
// Bound     M up to about 150: memory, 1 byte a weight. Beyond: 2048 products a cycle and
//           multiprocessor.
// Method    tile_sm80.cuh. Products and sums are whole numbers, so K may be cut anywhere.
// Source    NVIDIA, PTX ISA: mma, ldmatrix, cp.async.
// Measured  NOTES.md.
#include "csrc/linear/dense_sm80.cuh"

namespace lowbit {

extern const LinearKernel linear_int8_i8_sm80;
const LinearKernel linear_int8_i8_sm80 = {
    "linear_int8_i8_sm80",
    kArchSm80,
    {.kinds = bit(Kind::int8),
     .layouts = bit(Layout::rows),
     .x = kFloats | bit(DType::i8),
     .computes = bit(Compute::int8),
     .zeros = false,
     .m_max = 0,
     .n_multiple = 1,
     .k_multiple = 16,
     .group_multiple = 1,
     .one_scale = true,
     .codes_only = true},
    tile_workspace,
    run_dense_sm80<Dense::int8>,
};

}  // namespace lowbit
