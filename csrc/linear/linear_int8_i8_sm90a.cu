// linear_int8_i8_sm90a: out[M,N] = act(sx[m] * sw[n] * (qx[M,K] * qw[N,K]^T) + bias) + residual;
// int8 weights with a scale a row or one for all, x as int8 codes with a scale a row.
//
// Shapes    K a multiple of 16; any M and N. x of floats is quantised on the way (linear_run).
// Layout    rows: w as it is saved.
// Bound     M up to about 150: memory, 1 byte a weight. Beyond: 4096 products a cycle and
//           multiprocessor.
// Method    as linear_bf16_sm90a; M <= 128 by stream_sm90a.cuh where N is small. Products and sums
// are whole numbers. Source    NVIDIA, PTX ISA: wgmma, cp.async.bulk.tensor, mbarrier. Measured
// NOTES.md.
#include "csrc/linear/dense_sm90a.cuh"

namespace lowbit {

extern const LinearKernel linear_int8_i8_sm90a;
const LinearKernel linear_int8_i8_sm90a = {
    "linear_int8_i8_sm90a",
    kArchSm90a,
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
    x_workspace,
    run_dense<MmaS8>,
};

}  // namespace lowbit
