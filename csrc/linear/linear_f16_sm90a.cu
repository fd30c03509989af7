// linear_f16_sm90a: out[M,N] = act(x[M,K] * w[N,K]^T + bias) + residual; x and w in f16.
//
// Shapes    K a multiple of 8; any M and N. An x whose rows do not begin at multiples of 16 bytes
//           is copied first.
// Layout    rows: w as it is saved.
// Bound     M up to about 180: memory, 2 bytes a weight. Beyond: 2048 products a cycle and
//           multiprocessor.
// Method    stream_sm90a.cuh for M <= 64, gemm_sm90a.cuh beyond, tiles chosen by waves
//           (dense_sm90a.cuh). Products exact, sums in the f32 of the tensor cores.
// Source    NVIDIA, PTX ISA: wgmma, cp.async.bulk.tensor, mbarrier.
// Measured  NOTES.md.
#include "csrc/linear/dense_sm90a.cuh"

namespace lowbit {

extern const LinearKernel linear_f16_sm90a;
const LinearKernel linear_f16_sm90a = {
    "linear_f16_sm90a",
    kArchSm90a,
    {bit(Kind::f16), bit(Layout::rows), bit(DType::f16), bit(Compute::floating), false, 0, 1, 8, 1},
    x_workspace,
    run_dense<MmaF16>,
};

}  // namespace lowbit
