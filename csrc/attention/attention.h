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
// Paged form: k and v are those of a KvCache (csrc/attention/cache.h) in any of its formats; q, o
// and lse are packed or batched as above, and q's dtype is any of the three.
//   kv_lens       i32 [batch]: how many positions each sequence has in the cache
//   page_table    i32 [batch, most pages], rows contiguous: position j of sequence b is token
//                 j % page_size of page page_table[b][j / page_size]
//   prefix_rows   i32 [batch], or absent: a sequence with a row r >= 0 of the cache's prefix region
//                 has its positions below prefix_lens[b] there, as token j of row r; -1: none
//   prefix_lens   i32 [batch]; absent: all tokens of a row
// The page table is not read for positions in a prefix nor for those from kv_lens on. cu_seqlens_kv
// has no place in this form.
//
// heads is a multiple of kv_heads; query head h reads kv head h / (heads / kv_heads). The last
// dimension of q, k, v and o is contiguous, the others may have any stride (o and lse: none that
// makes two elements share memory, and no memory shared with an input). q, k and v share one dtype
// (f32, f16, bf16, and of tensors e4m3); o has q's or f32, of e4m3 bf16, f16 or f32. Any size may
// be 0 but kv_heads, head_dim and head_dim_v.
//
// e4m3: an element is its number times the scale of its token and head, which need not be positive.
//   q_scales   f32 [tokens_q or 1, heads or 1], in the batched form [batch or 1, seq_q or 1, heads
//   or
//              1], any strides; absent: 1
//   k_scales, v_scales   the same with k's tokens and kv_heads
// Rows with fp8_sums add up to 128 products as the tensor cores for fp8 do it
// (csrc/linear/linear.h), and round 2^8 P to e4m3, with P of the largest score so far 1, before it
// meets v.
//
// The numbers in cu_seqlens, kv_lens, page_table and prefix_* are checked before the first score is
// computed: one out of range poisons o and lse.
//
// Position i of seq_q stands at i + (seq_kv - seq_q): causal lets it see keys up to there,
// window_left and window_right limit how far to either side (-1: no limit).
// Order of operations on a score s = softmax_scale * (q . k):
//   softcap > 0    s = softcap * tanh(s / softcap)
//   alibi_slopes   s += slope[h] * (j - position of i)   f32 [heads]; Press et al., ALiBi, 2022
//   bias           s += bias[h, i, j]   f32 [heads or 1, tokens_q, columns], in the batched form
//                  [heads or 1, seq_q, columns] or [batch or 1, heads or 1, seq_q, columns]; i is
//                  counted as q counts it, j within the sequence; the last dimension is contiguous
//                  and no sequence has more keys than there are columns
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

#include "csrc/attention/cache.h"
#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"

namespace lowbit {

// The order is shared with lib/words.ts (`scores`).
enum class Score : int32_t { softmax, sigmoid };
inline constexpr const char* kScoreNames[] = {"softmax", "sigmoid"};

struct AttentionArgs {
  Tensor q, k, v, o, lse;
  Tensor cu_seqlens_q, cu_seqlens_kv, kv_lens;
  Tensor alibi_slopes, sinks, bias;
  KvCache kv;  // instead of k and v, which are absent then
  Tensor page_table, prefix_rows, prefix_lens;
  float softmax_scale;  // 0: 1 / sqrt(head_dim)
  float softcap;        // 0: none
  int64_t window_left, window_right;
  bool causal;
  Score score;
  Tensor q_scales, k_scales, v_scales;  // of e4m3
};

struct AttentionSpec {
  DTypeSet dtypes;            // of q, k and v
  int64_t head_dim_max;       // of head_dim and head_dim_v; 0: no limit
  int64_t head_dim_multiple;  // both are multiples of this
  KvFormatSet paged = 0;      // the formats of a cache that the row reads
  bool bias = false;          // whether it adds one
  bool tensors = true;        // whether it reads k and v that are tensors
  bool fp8_sums = false;
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
// Why an entry is refused. `place` is its index in row-major order (below 2^28) and, as bits, which
// tensor's it is (cu_seqlens_q's if none) and what is wrong. kOfBias: the index is a sequence's,
// the value its length.
inline constexpr int64_t kOfCuSeqlensKv = int64_t{1} << 28, kOfKvLens = int64_t{2} << 28;
inline constexpr int64_t kOfPageTable = int64_t{3} << 28, kOfPrefixRows = int64_t{4} << 28;
inline constexpr int64_t kOfPrefixLens = int64_t{5} << 28, kOfBias = int64_t{6} << 28;
inline constexpr int64_t kNotAllTokens = int64_t{1} << 31;
inline constexpr int64_t kPlaceIndex = (int64_t{1} << 28) - 1;
Status attention_blame(const AttentionArgs& args, int64_t place, int32_t value);
// Whether a call has numbers that are checked when it runs.
bool attention_has_values(const AttentionArgs& args);
// Checks the numbers of cu_seqlens, kv_lens, page_table and prefix_*, then runs the row; on CUDA
// the row's kernel checks them.
Status attention_run(const AttentionArgs& args, const AttentionKernel& row, const Ctx& ctx);

}  // namespace lowbit
