// attention_fp8_sm90a: attention of e4m3 tensors on Hopper, made for many queries.
//
// Shapes    head_dim and head_dim_v multiples of 16 up to 128, which they are made for; scales of k
//           and v of tensors and heads. Other ones as attention_simt_sm75 has them.
// Layout    q, k and v with strides of multiples of 16 bytes, o and lse by any.
// Bound     arithmetic: 4 head_dim operations a visible pair, and one exponential.
// Method    prefill_fp8_sm90a.cuh. Products exact, sums of 128 in the tensor cores' 13 bits, of
// more
//           in f32; weights in e4m3.
// Source    Dao, FlashAttention-2, 2023; Shah et al., FlashAttention-3, 2024.
//           NVIDIA, PTX ISA: wgmma, cp.async.bulk.tensor, ldmatrix, stmatrix, setmaxnreg.
// Measured  NOTES.md.
#include "csrc/attention/prefill_fp8_sm90a.cuh"

namespace lowbit {

extern const AttentionKernel attention_fp8_sm90a;
const AttentionKernel attention_fp8_sm90a = {
    "attention_fp8_sm90a", kArchSm90a,        {bit(DType::e4m3), 4096, 1, 0, true, true, true},
    workspace_bytes,       run_prefill_bytes,
};

}  // namespace lowbit
