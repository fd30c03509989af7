// attention: o = P v with P = score(softmax_scale * q k^T + bias), without ever storing P.
// Dao, FlashAttention-2, 2023.
//
// Packed form (rank 3): all sequences end to end.
//   q    [tokens_q, heads, head_dim]          k [tokens_kv, kv_heads, head_dim]
//   o    [tokens_q, heads, head_dim_v]        v [tokens_kv, kv_heads, head_dim_v]
//   lse  f32 [heads, tokens_q], or absent
//   cu_seqlens_q, cu_seqlens_kv   i32 [batch + 1]: first 0, never falling, last = tokens. Both
//     absent: one sequence. cu_seqlens_kv absent: the same as q's.
// Batched form (rank 4):
//   q    [batch, seq_q, heads, head_dim]      k [batch, seq_kv, kv_heads, head_dim]
//   o    [batch, seq_q, heads, head_dim_v]    v [batch, seq_kv, kv_heads, head_dim_v]
//   lse  f32 [batch, heads, seq_q], or absent
//   kv_lens   i32 [batch]: how many of the seq_kv positions of each sequence are there; or absent
//
// heads is a multiple of kv_heads; query head h reads kv head h / (heads / kv_heads). The last
// dimension of q, k, v and o is contiguous, the others may have any stride (o and lse: none that
// makes two elements share memory, and no memory shared with an input). q, k and v share one dtype
// (f32, f16, bf16); o has q's or f32. Any size may be 0 but kv_heads, head_dim and head_dim_v.
// cu_seqlens and kv_lens are in host memory of the device's queue and checked before the first
// score is computed: an entry out of range poisons o.
//
// Position i of seq_q stands at i + (seq_kv - seq_q): causal lets it see keys up to there,
// window_left and window_right limit how far to either side (-1: no limit).
// Order of operations on a score s = softmax_scale * (q . k):
//   softcap > 0    s = softcap * tanh(s / softcap)
//   alibi_slopes   s += slope[h] * (j - position of i)   f32 [heads]; Press et al., ALiBi, 2022
//   masks          the key is left out of every sum below
// score softmax:   P = exp(s - lse), lse = log(sum of exp(s)); sinks (f32 [heads]) add exp(sink[h])
//                  to that sum and nothing to o.
// score sigmoid:   P = 1 / (1 + exp(-s)), no normalisation, hence neither lse nor sinks.
//                  Ramapuram et al., Sigmoid Self-Attention, 2024.
// A row that sees no key gives o = 0 and lse = -inf (with sinks: lse = sink). NaN and inf in a
// visible key, value or query spread to the rows that see them as IEEE arithmetic has it; masked
// positions never do.
#pragma once

#include <cstdint>

#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"

namespace lowbit {

// The order is shared with lib/words.ts (`scores`).
enum class Score : int32_t { softmax, sigmoid };
inline constexpr const char* kScoreNames[] = {"softmax", "sigmoid"};

struct AttentionArgs {
  Tensor q, k, v, o, lse;
  Tensor cu_seqlens_q, cu_seqlens_kv, kv_lens;
  Tensor alibi_slopes, sinks;
  float softmax_scale;  // 0: 1 / sqrt(head_dim)
  float softcap;        // 0: none
  int64_t window_left, window_right;
  bool causal;
  Score score;
};

struct AttentionSpec {
  DTypeSet dtypes;            // of q, k and v
  int64_t head_dim_max;       // of head_dim and head_dim_v; 0: no limit
  int64_t head_dim_multiple;  // both are multiples of this
};

using AttentionKernel = Kernel<AttentionArgs, AttentionSpec>;
struct AttentionTable {
  const AttentionKernel* const* rows;
  int count;
};
AttentionTable attention_table();

// Shape and dtype of o and of lse when the caller gives none.
Status attention_infer(const AttentionArgs& args, Tensor* o);
Status attention_infer_lse(const AttentionArgs& args, Tensor* lse);
Status attention_check(const AttentionArgs& args);
Status attention_select(const AttentionArgs& args, const Choice& choice,
                        const AttentionKernel** row);
size_t attention_workspace(const AttentionArgs& args, const AttentionKernel& row, int threads);
// Why an entry of a tensor of lengths is refused. `place` is its index and what is wrong, as bits.
inline constexpr int64_t kOfCuSeqlensKv = int64_t{1} << 30, kOfKvLens = int64_t{1} << 31;
inline constexpr int64_t kNotAllTokens = int64_t{1} << 29;
Status attention_blame(const AttentionArgs& args, int64_t place, int32_t value);
// Checks the values of cu_seqlens and kv_lens, then runs the row; on CUDA the row's kernel checks
// them.
Status attention_run(const AttentionArgs& args, const AttentionKernel& row, const Ctx& ctx);

}  // namespace lowbit
