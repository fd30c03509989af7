// attention_decode_bf16_sm90a: attention of bf16 queries over a paged cache of bf16, fp8_e4m3, int8
// or int4 on Hopper; made for few queries a sequence, right for any number.
//
// Shapes    head_dim = head_dim_v of 64 or 128. Other ones, a bias, sigmoid scores and a prefix in
//           another format than the cache's go to attention_bf16_sm80; many
//           queries over a cache of bf16 to attention_bf16_sm90a.
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

extern const AttentionKernel attention_bf16_sm80, attention_bf16_sm90a;

namespace {

// The row that a call is passed on to, if it is: many queries of a sequence, and other forms.
const AttentionKernel* other_row(const AttentionArgs& args) {
  const int64_t tokens = is_batched(args) ? args.q.shape[0] * args.q.shape[1] : args.q.shape[0];
  if (args.kv.format == KvFormat::bf16 && tokens >= 64 * sequence_count(args))
    return &attention_bf16_sm90a;
  return takes_pages(args) && tokens * head_count(args) > 0 ? nullptr : &attention_bf16_sm80;
}

size_t workspace(const AttentionArgs& args, int threads) {
  const AttentionKernel* const other = other_row(args);
  return other == nullptr ? pages_workspace(args, threads) : other->workspace(args, threads);
}

Status run(const AttentionArgs& args, const Ctx& ctx) {
  if (const AttentionKernel* const other = other_row(args)) return other->run(args, ctx);
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
