// attention_decode_bf16_sm90a: attention of bf16 queries over a paged cache of bf16, fp8_e4m3, int8
// or int4 on Hopper; made for few queries a sequence, right for any number.
//
// Shapes    head_dim = head_dim_v of 64 or 128. Other ones, a bias, sigmoid scores and a prefix in
//           another format than the cache's go to attention_bf16_sm80.
// Layout    csrc/attention/cache.h; q, o and lse by any strides.
// Bound     memory: the visible K and V once for each 8 or 16 rows of a kv head, 2 head_dim codes
// and
//           their scales a token.
// Method    decode_sm90a.cuh. Products exact, sums in the f32 of the tensor cores, weights in bf16.
// Source    Dao et al., Flash-Decoding, 2023; Sanovar et al., LeanAttention, 2024; NVIDIA, PTX ISA:
//           cp.async.bulk.tensor, mma.
// Measured  NOTES.md.
#include "csrc/attention/decode_sm90a.cuh"

namespace lowbit {

extern const AttentionKernel attention_bf16_sm80;

namespace {

size_t workspace(const AttentionArgs& args, int threads) {
  return takes_pages(args) ? pages_workspace(args, threads)
                           : attention_bf16_sm80.workspace(args, threads);
}

Status run(const AttentionArgs& args, const Ctx& ctx) {
  if (!takes_pages(args) || args.q.shape[args.q.rank - 3] * head_count(args) == 0) {
    return attention_bf16_sm80.run(args, ctx);
  }
  switch (args.kv.format) {
    case KvFormat::bf16: return run_format<KvFormat::bf16, false>(args, ctx);
    case KvFormat::fp8_e4m3: return run_format<KvFormat::fp8_e4m3, false>(args, ctx);
    case KvFormat::int8: return run_format<KvFormat::int8, false>(args, ctx);
    default: return run_format<KvFormat::int4, false>(args, ctx);
  }
}

constexpr KvFormatSet kFormats =
    bit(KvFormat::bf16) | bit(KvFormat::fp8_e4m3) | bit(KvFormat::int8) | bit(KvFormat::int4);

}  // namespace

extern const AttentionKernel attention_decode_bf16_sm90a;
const AttentionKernel attention_decode_bf16_sm90a = {
    "attention_decode_bf16_sm90a",
    kArchSm90a,
    {bit(DType::bf16), 4096, 1, kFormats, true, false},
    workspace,
    run,
};

}  // namespace lowbit
