// attention_decode_f16_sm90a: attention of f16 queries over a paged cache of f16 on Hopper; made
// for few queries a sequence, right for any number.
//
// Shapes    head_dim = head_dim_v of 64 or 128. Other ones, a bias, sigmoid scores and a prefix in
//           another format go row by row, as attention_simt_sm75 does.
// Layout    csrc/attention/cache.h; q, o and lse by any strides.
// Bound     memory: the visible K and V once for each 8 or 16 rows of a kv head.
// Method    decode_sm90a.cuh. Products exact, sums in the f32 of the tensor cores, weights in f16.
// Source    Dao et al., Flash-Decoding, 2023; Sanovar et al., LeanAttention, 2024.
// Measured  NOTES.md.
#include "csrc/attention/decode_sm90a.cuh"

namespace lowbit {
namespace {

Status run(const AttentionArgs& args, const Ctx& ctx) {
  if (!takes_pages(args) || args.q.shape[args.q.rank - 3] * head_count(args) == 0) {
    return run_rows(args, ctx);
  }
  return run_format<KvFormat::f16, true>(args, ctx);
}

}  // namespace

extern const AttentionKernel attention_decode_f16_sm90a;
const AttentionKernel attention_decode_f16_sm90a = {
    "attention_decode_f16_sm90a",
    kArchSm90a,
    {bit(DType::f16), 4096, 1, bit(KvFormat::f16), true, false},
    pages_workspace,
    run,
};

}  // namespace lowbit
