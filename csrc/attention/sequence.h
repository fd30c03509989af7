// Sequence: the packed, the batched and the paged form of a call as one thing, for all rows.
//
// Rows walk sequences 0 to sequence_count(), and each sequence's tokens and heads by strides; only
// this header knows which form the caller used. Offsets and strides count elements. Keys of a cache
// are found by position: key_slot().
#pragma once

#include "csrc/attention/attention.h"

namespace lowbit {

struct Sequence {
  int64_t q, k, v, o, lse;  // offset of the first token
  int64_t seq_q, seq_kv;
  int64_t index, token;        // of the sequence, and of its first query as bias counts them
  int64_t key;                 // of its first key, counted as k counts them
  const int32_t* pages;        // paged: its row of the page table
  int64_t prefix, prefix_len;  // paged: the row of the prefix region; 0 tokens: none
};

// The token and head strides of q, k, v or o, in either form.
static constexpr int64_t token_stride(const Tensor& t) { return t.strides[t.rank - 3]; }
static constexpr int64_t head_stride(const Tensor& t) { return t.strides[t.rank - 2]; }

static constexpr bool is_batched(const AttentionArgs& a) { return a.q.rank == 4; }
static constexpr int64_t head_count(const AttentionArgs& a) { return a.q.shape[a.q.rank - 2]; }
static constexpr bool is_paged(const AttentionArgs& a) { return present(a.kv); }
static constexpr int64_t kv_head_count(const AttentionArgs& a) {
  return is_paged(a) ? a.kv.kv_heads : a.k.shape[a.k.rank - 2];
}
static constexpr int64_t head_dim_of(const AttentionArgs& a) { return a.q.shape[a.q.rank - 1]; }
static constexpr int64_t head_dim_v_of(const AttentionArgs& a) {
  return is_paged(a) ? a.kv.head_dim_v : a.v.shape[a.v.rank - 1];
}

static constexpr int64_t sequence_count(const AttentionArgs& a) {
  if (is_batched(a)) return a.q.shape[0];
  return present(a.cu_seqlens_q) ? a.cu_seqlens_q.shape[0] - 1 : 1;
}

static constexpr int64_t entry(const Tensor& t, int64_t i) {
  return static_cast<const int32_t*>(t.data)[i];
}

static constexpr Sequence sequence_at(const AttentionArgs& a, int64_t b) {
  Sequence s = {};
  s.index = b;
  if (is_paged(a)) {
    s.pages = static_cast<const int32_t*>(a.page_table.data) + b * a.page_table.strides[0];
    s.seq_kv = entry(a.kv_lens, b);
    if (present(a.prefix_rows) && entry(a.prefix_rows, b) >= 0) {
      s.prefix = entry(a.prefix_rows, b);
      s.prefix_len = present(a.prefix_lens) ? entry(a.prefix_lens, b) : a.kv.prefix_tokens;
    }
  }
  if (is_batched(a)) {
    s.q = b * a.q.strides[0];
    s.o = b * a.o.strides[0];
    if (present(a.lse)) s.lse = b * a.lse.strides[0];
    s.seq_q = a.q.shape[1];
    if (is_paged(a)) return s;
    s.k = b * a.k.strides[0];
    s.v = b * a.v.strides[0];
    s.seq_kv = present(a.kv_lens) ? entry(a.kv_lens, b) : a.k.shape[1];
    return s;
  }
  int64_t q1 = a.q.shape[0];
  if (present(a.cu_seqlens_q)) {
    s.token = entry(a.cu_seqlens_q, b);
    q1 = entry(a.cu_seqlens_q, b + 1);
  }
  s.q = s.token * a.q.strides[0];
  s.o = s.token * a.o.strides[0];
  if (present(a.lse)) s.lse = s.token * a.lse.strides[1];
  s.seq_q = q1 - s.token;
  if (is_paged(a)) return s;
  int64_t kv0 = s.token, kv1 = present(a.cu_seqlens_q) ? q1 : a.k.shape[0];
  if (present(a.cu_seqlens_kv)) {
    kv0 = entry(a.cu_seqlens_kv, b);
    kv1 = entry(a.cu_seqlens_kv, b + 1);
  }
  s.key = kv0;
  s.k = kv0 * a.k.strides[0];
  s.v = kv0 * a.v.strides[0];
  s.seq_kv = kv1 - kv0;
  return s;
}

// Paged: the slot of position j.
static constexpr int64_t key_slot(const AttentionArgs& a, const Sequence& s, int64_t j) {
  const KvCache& c = a.kv;
  if (j < s.prefix_len) return kv_page_slots(c) + s.prefix * c.prefix_tokens + j;
  return s.pages[j / c.page_size] * c.page_size + j % c.page_size;
}

// Paged: the block that has position j of a head, from which token on, and for how many positions,
// `most` at most.
struct KeyRun {
  const uint8_t* block;
  const KvBlock* form;
  KvFormat format;
  int64_t token;
  int count;
};
static constexpr KeyRun key_run(const AttentionArgs& a, const Sequence& s, int64_t head, int64_t j,
                                int most) {
  const KvCache& c = a.kv;
  const bool prefix = j < s.prefix_len;
  const int64_t token = prefix ? j : j % c.page_size;
  const int64_t left = prefix ? s.prefix_len - j : c.page_size - token;
  const int count = left < most ? static_cast<int>(left) : most;
  if (prefix) return {kv_prefix(c, s.prefix, head), &c.prefix, c.prefix_format, token, count};
  return {kv_page(c, s.pages[j / c.page_size], head), &c.page, c.format, token, count};
}

// Where the bias of query i and head h begins.
static constexpr const float* bias_row(const AttentionArgs& a, const Sequence& s, int64_t i,
                                       int64_t h) {
  const Tensor& t = a.bias;
  int64_t at = (s.token + i) * t.strides[t.rank - 2];
  if (t.shape[t.rank - 3] > 1) at += h * t.strides[t.rank - 3];
  if (t.rank == 4 && t.shape[0] > 1) at += s.index * t.strides[0];
  return static_cast<const float*>(t.data) + at;
}

// The scale of a row of q, k or v: of a token (of all, or in a batch) and a head. `t` has a size or
// 1 in each dimension.
static constexpr float scale_of(const Tensor& t, int64_t batch, int64_t token, int64_t head) {
  if (!present(t)) return 1.0f;
  const int last = t.rank - 1;
  int64_t at = 0;
  if (t.rank == 3 && t.shape[0] > 1) at += batch * t.strides[0];
  if (t.shape[last - 1] > 1) at += token * t.strides[last - 1];
  if (t.shape[last] > 1) at += head * t.strides[last];
  return static_cast<const float*>(t.data)[at];
}

// Of query i, and of the key or the value of position j.
static constexpr float query_scale(const AttentionArgs& a, const Sequence& s, int64_t i,
                                   int64_t h) {
  if (a.q.dtype != DType::e4m3) return 1.0f;
  return scale_of(a.q_scales, s.index, s.token + i, h);
}
static constexpr float key_scale(const AttentionArgs& a, const Sequence& s, int64_t kv_head,
                                 int64_t j, bool of_values) {
  if (a.q.dtype != DType::e4m3) return 1.0f;
  return scale_of(of_values ? a.v_scales : a.k_scales, s.index, s.key + j, kv_head);
}

// An upper bound of seq_kv over the sequences, known from the shapes alone, and of the sum of all.
static constexpr int64_t seq_kv_bound(const AttentionArgs& a) {
  return is_paged(a) ? a.page_table.shape[1] * a.kv.page_size : a.k.shape[a.k.rank - 3];
}
static constexpr int64_t keys_bound(const AttentionArgs& a) {
  return (is_batched(a) || is_paged(a) ? sequence_count(a) : 1) * seq_kv_bound(a);
}

}  // namespace lowbit
