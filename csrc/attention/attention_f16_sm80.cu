// attention_f16_sm80: attention of f16 queries over tensors and paged caches, for any number of
// queries.
//
// Shapes    head_dim and head_dim_v to 256; of caches of codes multiples of 8, int4's of 16. Other
//           ones, caches or prefixes in f32 or bf16, and softmax scales beyond 64 (they would show
//           what the tensor cores cut off) go row by row, as attention_simt_sm75 does. Queries in
//           bf16, which attention_bf16_sm80 hands over, become f16 by a power of two a row.
// Layout    any strides that the contract allows; caches of every format.
// Bound     many queries: 1024 products a cycle and multiprocessor (sm_80; 680 of mma.sync on
//           sm_90). Few: memory, the visible K and V once for each 16 rows of a kv head.
// Method    attention_sm80.cuh. Products exact, sums in the f32 of the tensor cores, weights in
// f16. Source    Dao, FlashAttention-2, 2023; Dao et al., Flash-Decoding, 2023; NVIDIA, PTX ISA:
// mma,
//           ldmatrix, cp.async.
// Measured  NOTES.md.
#include "csrc/attention/run_sm80.cuh"

namespace lowbit {
namespace {

Status run(const AttentionArgs& args, const Ctx& ctx) {
  return takes_tiles<true>(args) ? run_tiles<true>(args, ctx) : run_rows(args, ctx);
}

}  // namespace

extern const AttentionKernel attention_f16_sm80;
const AttentionKernel attention_f16_sm80 = {
    "attention_f16_sm80",  kArchSm80, {bit(DType::f16), 4096, 1, kAllKvFormats, true},
    tiles_workspace<true>, run,
};

}  // namespace lowbit
