// attention: choice, run, and the numbers that are checked when a call runs. Built without ISA
// flags.
#include "csrc/attention/attention.h"

#include <initializer_list>

#include "csrc/attention/sequence.h"
#include "csrc/base/check.h"
#include "csrc/base/select.h"

namespace lowbit {

#define KERNEL(name) extern const AttentionKernel name;
#include "csrc/attention/kernels.inc"
#undef KERNEL

static const AttentionKernel* const kRows[] = {
#define KERNEL(name) &name,
#include "csrc/attention/kernels.inc"
#undef KERNEL
};

AttentionTable attention_table() {
  const RowList<AttentionKernel> all = all_rows("attention", kRows);
  return {all.rows, all.count};
}

static bool fits(const AttentionArgs& a, const AttentionSpec& spec) {
  if (!has(spec.dtypes, a.q.dtype)) return false;
  if (present(a.bias) && !spec.bias) return false;
  if (is_paged(a) ? !has(spec.paged, a.kv.format) : !spec.tensors) return false;
  if (present(a.prefix_rows) && !has(spec.paged, a.kv.prefix_format)) return false;
  for (const int64_t dim : {head_dim_of(a), head_dim_v_of(a)}) {
    if (spec.head_dim_max > 0 && dim > spec.head_dim_max) return false;
    if (dim % spec.head_dim_multiple != 0) return false;
  }
  return true;
}

Status attention_select(const AttentionArgs& args, const Choice& choice,
                        const AttentionKernel** row) {
  const AttentionTable table = attention_table();
  return select_row(table.rows, table.count, choice, fits, args, "attention", row);
}

size_t attention_workspace(const AttentionArgs& args, const AttentionKernel& row, int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

bool attention_has_values(const AttentionArgs& a) {
  return present(a.cu_seqlens_q) || present(a.kv_lens) || present(a.bias);
}

static Status blame_cu_seqlens(const AttentionArgs& a, int64_t place, int64_t i, int32_t value) {
  const bool of_kv = (place & kOfCuSeqlensKv) != 0;
  const char* name = of_kv ? "cu_seqlens_kv" : "cu_seqlens_q";
  if ((place & kNotAllTokens) != 0) {
    return error(Code::argument, "attention: expected %s[%lld] = %lld (all tokens) but got %d",
                 name, ll(i), ll(of_kv ? a.k.shape[0] : a.q.shape[0]), value);
  }
  if (i == 0) {
    return error(Code::argument, "attention: expected %s[0] = 0 but got %d", name, value);
  }
  return error(Code::argument,
               "attention: expected %s never to fall but %s[%lld] = %d follows a larger one", name,
               name, ll(i), value);
}

Status attention_blame(const AttentionArgs& a, int64_t place, int32_t value) {
  const int64_t i = place & kPlaceIndex;
  switch (place & ~(kPlaceIndex | kNotAllTokens)) {
    case kOfKvLens:
      return error(Code::argument, "attention: expected kv_lens[%lld] in 0 to %lld but got %d",
                   ll(i), ll(seq_kv_bound(a)), value);
    case kOfPageTable:
      return error(Code::argument,
                   "attention: page_table[%s] = %d is no page of the cache, 0 to %lld",
                   index_text(a.page_table, i).text, value, ll(a.kv.pages - 1));
    case kOfPrefixRows:
      return error(Code::argument, "attention: expected prefix_rows[%lld] in -1 to %lld but got %d",
                   ll(i), ll(a.kv.prefix_rows - 1), value);
    case kOfPrefixLens:
      return error(Code::argument, "attention: expected prefix_lens[%lld] in 0 to %lld but got %d",
                   ll(i), ll(a.kv.prefix_tokens), value);
    case kOfBias:
      return error(Code::argument,
                   "attention: expected bias with a column for each of the %d keys of sequence "
                   "%lld but got %s",
                   value, ll(i), shape_text(a.bias).text);
    default: return blame_cu_seqlens(a, place, i, value);
  }
}

static Status check_cu_seqlens(const AttentionArgs& a, const Tensor& cu, int64_t place,
                               int64_t tokens) {
  if (!present(cu)) return ok();
  const auto* at = static_cast<const int32_t*>(cu.data);
  const int64_t last = cu.shape[0] - 1;
  if (at[0] != 0) return attention_blame(a, place, at[0]);
  for (int64_t i = 1; i <= last; ++i) {
    if (at[i] < at[i - 1]) return attention_blame(a, place + i, at[i]);
  }
  return at[last] == tokens ? ok() : attention_blame(a, place + kNotAllTokens + last, at[last]);
}

static Status check_kv_lens(const AttentionArgs& a) {
  if (!present(a.kv_lens)) return ok();
  const auto* lens = static_cast<const int32_t*>(a.kv_lens.data);
  for (int64_t b = 0; b < a.kv_lens.shape[0]; ++b) {
    if (lens[b] < 0 || lens[b] > seq_kv_bound(a)) return attention_blame(a, kOfKvLens + b, lens[b]);
  }
  return ok();
}

static Status check_pages(const AttentionArgs& a) {
  for (int64_t b = 0; b < sequence_count(a); ++b) {
    if (present(a.prefix_rows)) {
      const auto row = static_cast<int32_t>(entry(a.prefix_rows, b));
      if (row < -1 || row >= a.kv.prefix_rows) return attention_blame(a, kOfPrefixRows + b, row);
      const auto length =
          static_cast<int32_t>(present(a.prefix_lens) ? entry(a.prefix_lens, b) : 0);
      if (row >= 0 && (length < 0 || length > a.kv.prefix_tokens)) {
        return attention_blame(a, kOfPrefixLens + b, length);
      }
    }
    const Sequence s = sequence_at(a, b);
    const int64_t size = a.kv.page_size, first = s.prefix_len / size;
    for (int64_t p = first; p * size < s.seq_kv && s.prefix_len < s.seq_kv; ++p) {
      if (s.pages[p] >= 0 && s.pages[p] < a.kv.pages) continue;
      return attention_blame(a, kOfPageTable + b * a.page_table.shape[1] + p, s.pages[p]);
    }
  }
  return ok();
}

static Status check_bias_columns(const AttentionArgs& a) {
  for (int64_t b = 0; b < sequence_count(a); ++b) {
    const int64_t keys = sequence_at(a, b).seq_kv;
    if (keys <= a.bias.shape[a.bias.rank - 1]) continue;
    return attention_blame(a, kOfBias + b, static_cast<int32_t>(keys));
  }
  return ok();
}

static Status check_values(const AttentionArgs& a) {
  LB_TRY(check_cu_seqlens(a, a.cu_seqlens_q, 0, a.q.shape[0]));
  LB_TRY(check_cu_seqlens(a, a.cu_seqlens_kv, kOfCuSeqlensKv, is_paged(a) ? 0 : a.k.shape[0]));
  LB_TRY(check_kv_lens(a));
  if (is_paged(a)) LB_TRY(check_pages(a));
  return present(a.bias) ? check_bias_columns(a) : ok();
}

Status attention_run(const AttentionArgs& args, const AttentionKernel& row, const Ctx& ctx) {
  if (ctx.check == nullptr) LB_TRY(check_values(args));
  return row.run(args, ctx);
}

}  // namespace lowbit
