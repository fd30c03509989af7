// attention_bf16_sm90a: attention of bf16 tensors on Hopper, made for many queries.
//
// Shapes    head_dim and head_dim_v multiples of 8 up to 256; made for 64, 96, 128, 192 (with
//           head_dim_v of 128 or 192) and 256. Caches of bf16 too, for rows that pass a call on.
// Layout    q, k and v with strides of multiples of 16 bytes, o and lse by any. Other ones, other
//           head dims and few queries go to attention_bf16_sm80.
// Bound     arithmetic: 4 head_dim operations a visible pair, and one exponential.
// Method    prefill_sm90a.cuh. Products exact, sums in the tensor cores' f32, weights in bf16.
// Source    Dao, FlashAttention-2, 2023; Shah et al., FlashAttention-3, 2024.
//           NVIDIA, PTX ISA: wgmma, cp.async.bulk.tensor, setmaxnreg.
// Measured  NOTES.md.
#include "csrc/attention/prefill_sm90a.cuh"

namespace lowbit {

extern const AttentionKernel attention_bf16_sm80;

namespace {

size_t workspace(const AttentionArgs& args, int threads) {
  return workspace_beside(args, threads, attention_bf16_sm80);
}

Status run(const AttentionArgs& args, const Ctx& ctx) {
  return run_beside<DType::bf16>(args, ctx, attention_bf16_sm80);
}

}  // namespace

extern const AttentionKernel attention_bf16_sm90a;
const AttentionKernel attention_bf16_sm90a = {
    "attention_bf16_sm90a", kArchSm90a, {bit(DType::bf16), 4096, 1, 0, true}, workspace, run,
};

}  // namespace lowbit
