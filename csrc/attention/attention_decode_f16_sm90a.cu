// attention_decode_f16_sm90a: attention of f16 queries over a paged cache of f16 on Hopper; made
// for few queries a sequence, right for any number.
//
// Shapes    head_dim = head_dim_v of 64 or 128. Other ones, a bias, sigmoid scores and a prefix in
//           another format go to attention_f16_sm80; many
//           queries over a cache of f16 to attention_f16_sm90a.
// Layout    csrc/attention/cache.h; q, o and lse by any strides.
// Bound     memory: the visible K and V once for each 8 or 16 rows of a kv head.
// Method    decode_sm90a.cuh. Products exact, sums in the f32 of the tensor cores, weights in f16.
// Source    Dao et al., Flash-Decoding, 2023; Sanovar et al., LeanAttention, 2024.
// Measured  NOTES.md.
#include "csrc/attention/decode_sm90a.cuh"

namespace lowbit {

extern const AttentionKernel attention_f16_sm80, attention_f16_sm90a;

namespace {

// The row that a call is passed on to, if it is: many queries of a sequence, and other forms.
const AttentionKernel* other_row(const AttentionArgs& args) {
  const int64_t tokens = is_batched(args) ? args.q.shape[0] * args.q.shape[1] : args.q.shape[0];
  if (tokens >= 64 * sequence_count(args)) return &attention_f16_sm90a;
  return takes_pages(args) && tokens * head_count(args) > 0 ? nullptr : &attention_f16_sm80;
}

size_t workspace(const AttentionArgs& args, int threads) {
  const AttentionKernel* const other = other_row(args);
  return other == nullptr ? pages_workspace(args, threads) : other->workspace(args, threads);
}

Status run(const AttentionArgs& args, const Ctx& ctx) {
  if (const AttentionKernel* const other = other_row(args)) return other->run(args, ctx);
  return run_format<KvFormat::f16, true>(args, ctx);
}

}  // namespace

extern const AttentionKernel attention_decode_f16_sm90a;
const AttentionKernel attention_decode_f16_sm90a = {
    "attention_decode_f16_sm90a",
    kArchSm90a,
    {bit(DType::f16), 4096, 1, bit(KvFormat::f16), true, false},
    workspace,
    run,
};

}  // namespace lowbit
