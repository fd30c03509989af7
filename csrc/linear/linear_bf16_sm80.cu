// linear_bf16_sm80: out[M,N] = act(x[M,K] * w[N,K]^T + bias) + residual; x and w in bf16.
//
// Shapes    K a multiple of 8; any M and N. An x whose rows do not begin at multiples of 16 bytes
// is
//           copied first.
// Layout    rows: w as it is saved.
// Bound     few rows of x: memory, 2 bytes a weight. Many: 1024 products a cycle and multiprocessor
//           (sm_80; 680 of mma.sync on sm_90).
// Method    tile_sm80.cuh: 128 rows of w by 16, 64 or 128 of x, both by cp.async and ldmatrix.
//           Products exact, sums in the f32 of the tensor cores.
// Source    NVIDIA, PTX ISA: mma, ldmatrix, cp.async.
// Measured  NOTES.md.
#include "csrc/linear/dense_sm80.cuh"

namespace lowbit {

extern const LinearKernel linear_bf16_sm80;
const LinearKernel linear_bf16_sm80 = {
    "linear_bf16_sm80",
    kArchSm80,
    {bit(Kind::bf16), bit(Layout::rows), bit(DType::bf16), bit(Compute::floating), false, 0, 1, 8,
     1},
    tile_workspace,
    run_dense_sm80<Dense::bf16>,
};

}  // namespace lowbit
