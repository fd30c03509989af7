// attention_bf16_sm80: attention of bf16 queries over tensors and paged caches, for any number of
// queries.
//
// Shapes    head_dim and head_dim_v to 256; of caches of codes multiples of 8, int4's of 16. Other
//           ones, and caches or prefixes in f32 or of two types, go row by row, as
//           attention_simt_sm75 does; caches of f16 and of codes as attention_f16_sm80 does.
// Layout    any strides that the contract allows; caches of every format.
// Bound     many queries: 1024 products a cycle and multiprocessor (sm_80; 680 of mma.sync on
//           sm_90). Few: memory, the visible K and V once for each 16 rows of a kv head.
// Method    attention_sm80.cuh. Products exact, sums in the f32 of the tensor cores, weights in
//           bf16; beside codes in two parts.
// Source    Dao, FlashAttention-2, 2023; Dao et al., Flash-Decoding, 2023; NVIDIA, PTX ISA: mma,
//           ldmatrix, cp.async.
// Measured  NOTES.md.
#include "csrc/attention/run_sm80.cuh"

namespace lowbit {

extern const AttentionKernel attention_bf16_sm80, attention_f16_sm80;

namespace {

size_t workspace(const AttentionArgs& args, int threads) {
  if (takes_tiles<false>(args)) return tiles_workspace<false>(args, threads);
  return attention_f16_sm80.workspace(args, threads);
}

Status run(const AttentionArgs& args, const Ctx& ctx) {
  return takes_tiles<false>(args) ? run_tiles<false>(args, ctx) : attention_f16_sm80.run(args, ctx);
}

}  // namespace

const AttentionKernel attention_bf16_sm80 = {
    "attention_bf16_sm80",
    kArchSm80,
    {bit(DType::bf16), 4096, 1, kAllKvFormats, true},
    workspace,
    run,
};

}  // namespace lowbit
