// Sequence: the packed and the batched form of a call as one thing, for all rows.
//
// Rows walk sequences 0 to sequence_count(), and each sequence's tokens and heads by strides; only
// this header knows which form the caller used. Offsets and strides count elements.
#pragma once

#include "csrc/attention/attention.h"

namespace lowbit {

struct Sequence {
  int64_t q, k, v, o, lse;  // offset of the first token
  int64_t seq_q, seq_kv;
};

// The token and head strides of q, k, v or o, in either form.
static constexpr int64_t token_stride(const Tensor& t) { return t.strides[t.rank - 3]; }
static constexpr int64_t head_stride(const Tensor& t) { return t.strides[t.rank - 2]; }

static constexpr bool is_batched(const AttentionArgs& a) { return a.q.rank == 4; }
static constexpr int64_t head_count(const AttentionArgs& a) { return a.q.shape[a.q.rank - 2]; }
static constexpr int64_t kv_head_count(const AttentionArgs& a) { return a.k.shape[a.k.rank - 2]; }
static constexpr int64_t head_dim_of(const AttentionArgs& a) { return a.q.shape[a.q.rank - 1]; }
static constexpr int64_t head_dim_v_of(const AttentionArgs& a) { return a.v.shape[a.v.rank - 1]; }

static constexpr int64_t sequence_count(const AttentionArgs& a) {
  if (is_batched(a)) return a.q.shape[0];
  return present(a.cu_seqlens_q) ? a.cu_seqlens_q.shape[0] - 1 : 1;
}

static constexpr Sequence sequence_at(const AttentionArgs& a, int64_t b) {
  Sequence s = {};
  if (is_batched(a)) {
    s.q = b * a.q.strides[0];
    s.k = b * a.k.strides[0];
    s.v = b * a.v.strides[0];
    s.o = b * a.o.strides[0];
    if (present(a.lse)) s.lse = b * a.lse.strides[0];
    s.seq_q = a.q.shape[1];
    s.seq_kv = present(a.kv_lens) ? static_cast<const int32_t*>(a.kv_lens.data)[b] : a.k.shape[1];
    return s;
  }
  int64_t q0 = 0, q1 = a.q.shape[0], kv0 = 0, kv1 = a.k.shape[0];
  if (present(a.cu_seqlens_q)) {
    const auto* cu_q = static_cast<const int32_t*>(a.cu_seqlens_q.data);
    const auto* cu_kv =
        present(a.cu_seqlens_kv) ? static_cast<const int32_t*>(a.cu_seqlens_kv.data) : cu_q;
    q0 = cu_q[b];
    q1 = cu_q[b + 1];
    kv0 = cu_kv[b];
    kv1 = cu_kv[b + 1];
  }
  s.q = q0 * a.q.strides[0];
  s.k = kv0 * a.k.strides[0];
  s.v = kv0 * a.v.strides[0];
  s.o = q0 * a.o.strides[0];
  if (present(a.lse)) s.lse = q0 * a.lse.strides[1];
  s.seq_q = q1 - q0;
  s.seq_kv = kv1 - kv0;
  return s;
}

// An upper bound of seq_kv over the sequences, known from the shapes alone.
static constexpr int64_t seq_kv_bound(const AttentionArgs& a) { return a.k.shape[a.k.rank - 3]; }

}  // namespace lowbit
