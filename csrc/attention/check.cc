// attention: which calls are legal, and the shapes of what a call gives. Built without ISA flags.
#include "csrc/base/check.h"

#include <cmath>
#include <initializer_list>

#include "csrc/attention/attention.h"
#include "csrc/attention/sequence.h"

namespace lowbit {

static constexpr const char* kOp = "attention";

// `name` should have `expected` at dimension `dim`, because of `reason`.
static Status check_size(const char* name, const Tensor& t, int dim, int64_t expected,
                         const char* reason) {
  if (t.shape[dim] == expected) return ok();
  return error(Code::shape, "attention: expected %s.shape[%d] = %lld (%s) but got %s", name, dim,
               ll(expected), reason, shape_text(t).text);
}

static Status check_q(const AttentionArgs& a) {
  const Tensor& q = a.q;
  LB_TRY(check_present(kOp, {"q", &q}));
  if (q.rank == 3 || q.rank == 4) {
    // Codes of a KvCache meet queries in floats alone.
    return check_dtype(kOp, {"q", &q}, is_paged(a) ? kFloats : kFloats | bit(DType::e4m3));
  }
  return error(Code::shape,
               "attention: expected q as [tokens, heads, head_dim] or [batch, seq, heads, "
               "head_dim] but got %s",
               shape_text(q).text);
}

// k and v as tensors.
static Status check_plain(const AttentionArgs& a) {
  const int rank = a.q.rank;
  for (const Named& n : {Named{"k", &a.k}, Named{"v", &a.v}}) {
    LB_TRY(check_present(kOp, n));
    if (n.tensor->rank == rank) continue;
    return error(Code::shape, "attention: expected %s of rank %d, as q %s, but got %s", n.name,
                 rank, shape_text(a.q).text, shape_text(*n.tensor).text);
  }
  for (const Named& n : {Named{"k", &a.k}, Named{"v", &a.v}}) {
    if (n.tensor->dtype == a.q.dtype) continue;
    return error(Code::dtype, "attention: expected %s in q's dtype %s but got %s", n.name,
                 dtype_name(a.q.dtype), dtype_name(n.tensor->dtype));
  }
  if (rank == 4) {
    LB_TRY(check_size("k", a.k, 0, a.q.shape[0], "the batch of q"));
    LB_TRY(check_size("v", a.v, 0, a.q.shape[0], "the batch of q"));
  }
  LB_TRY(check_size("k", a.k, rank - 1, a.q.shape[rank - 1], "the head_dim of q"));
  LB_TRY(check_size("v", a.v, rank - 3, a.k.shape[rank - 3], "the length of k"));
  LB_TRY(check_size("v", a.v, rank - 2, a.k.shape[rank - 2], "the kv_heads of k"));
  if (head_dim_of(a) >= 1 && head_dim_v_of(a) >= 1 && kv_head_count(a) >= 1) return ok();
  return error(Code::shape,
               "attention: expected head_dim, head_dim_v and kv_heads of at least 1 but got k %s "
               "and v %s",
               shape_text(a.k).text, shape_text(a.v).text);
}

// The sizes that q, k and v must share; everything else is derived from them.
static Status check_inputs(const AttentionArgs& a) {
  LB_TRY(check_q(a));
  if (!is_paged(a)) {
    LB_TRY(check_plain(a));
  } else if (head_dim_of(a) != a.kv.head_dim) {
    return error(Code::shape,
                 "attention: expected q with the head_dim %lld of the cache but got %s",
                 ll(a.kv.head_dim), shape_text(a.q).text);
  }
  if (head_count(a) % kv_head_count(a) == 0) return ok();
  return error(Code::shape,
               "attention: expected heads to be a multiple of kv_heads = %lld but got %lld",
               ll(kv_head_count(a)), ll(head_count(a)));
}

Status attention_infer(const AttentionArgs& args, Tensor* o) {
  LB_TRY(check_inputs(args));
  int64_t shape[kMaxRank];
  for (int i = 0; i < args.q.rank; ++i) shape[i] = args.q.shape[i];
  shape[args.q.rank - 1] = head_dim_v_of(args);
  const DType dtype = args.q.dtype == DType::e4m3 ? DType::bf16 : args.q.dtype;
  *o = make_tensor(nullptr, dtype, args.q.device, shape, args.q.rank);
  return ok();
}

Status attention_infer_lse(const AttentionArgs& args, Tensor* lse) {
  LB_TRY(check_inputs(args));
  const int64_t batched[] = {args.q.shape[0], args.q.shape[2], args.q.shape[1]};
  const int64_t packed[] = {args.q.shape[1], args.q.shape[0]};
  const bool is_4d = is_batched(args);
  *lse = make_tensor(nullptr, DType::f32, args.q.device, is_4d ? batched : packed, is_4d ? 3 : 2);
  return ok();
}

static Status check_expected(const char* name, const Tensor& expected, const Tensor& t) {
  if (same_shape(expected, t)) return ok();
  return error(Code::shape, "attention: expected %s of shape %s but got %s", name,
               shape_text(expected).text, shape_text(t).text);
}

static Status check_list(const Named& n, DType dtype, int64_t length, const char* reason) {
  LB_TRY(check_dtype(kOp, n, bit(dtype)));
  return check_vector(kOp, n, length, reason);
}

static Status check_cu_seqlens_q(const AttentionArgs& a) {
  const Named cu_q = {"cu_seqlens_q", &a.cu_seqlens_q};
  LB_TRY(check_dtype(kOp, cu_q, bit(DType::i32)));
  if (a.cu_seqlens_q.rank != 1) {
    return error(Code::shape, "attention: expected cu_seqlens_q of shape [batch + 1] but got %s",
                 shape_text(a.cu_seqlens_q).text);
  }
  if (a.cu_seqlens_q.shape[0] >= 1) return check_rows(kOp, cu_q);
  return error(Code::shape, "attention: expected cu_seqlens_q of at least one entry");
}

static Status check_lengths(const AttentionArgs& a) {
  const Named kv_lens = {"kv_lens", &a.kv_lens}, cu_kv = {"cu_seqlens_kv", &a.cu_seqlens_kv};
  if (is_batched(a)) {
    for (const Named& n : {Named{"cu_seqlens_q", &a.cu_seqlens_q}, cu_kv}) {
      if (!present(*n.tensor)) continue;
      return error(Code::argument, "attention: %s goes with the packed form but q is batched, %s",
                   n.name, shape_text(a.q).text);
    }
    return check_list(kv_lens, DType::i32, a.q.shape[0], "the batch of q");
  }
  if (present(a.kv_lens)) {
    return error(Code::argument,
                 "attention: kv_lens goes with the batched form but q is packed, %s; give "
                 "cu_seqlens_kv",
                 shape_text(a.q).text);
  }
  if (!present(a.cu_seqlens_q)) {
    if (!present(a.cu_seqlens_kv)) return ok();
    return error(Code::argument, "attention: cu_seqlens_kv was given without cu_seqlens_q");
  }
  LB_TRY(check_cu_seqlens_q(a));
  LB_TRY(check_list(cu_kv, DType::i32, a.cu_seqlens_q.shape[0], "the length of cu_seqlens_q"));
  if (present(a.cu_seqlens_kv)) return ok();
  return check_size("k", a.k, 0, a.q.shape[0], "the tokens of q, as cu_seqlens_kv is absent");
}

static Status check_paged(const AttentionArgs& a) {
  const Named table = {"page_table", &a.page_table}, kv_lens = {"kv_lens", &a.kv_lens};
  const Named rows = {"prefix_rows", &a.prefix_rows}, lens = {"prefix_lens", &a.prefix_lens};
  for (const Named& n : {table, kv_lens}) {
    if (present(*n.tensor)) continue;
    return error(Code::argument, "attention: a KvCache needs %s", n.name);
  }
  if (present(a.v)) return error(Code::argument, "attention: v goes with a tensor k");
  if (present(a.cu_seqlens_kv)) {
    return error(Code::argument,
                 "attention: cu_seqlens_kv goes with tensors; kv_lens says how long the sequences "
                 "of a KvCache are");
  }
  if (present(a.cu_seqlens_q)) {
    if (is_batched(a)) {
      return error(Code::argument,
                   "attention: cu_seqlens_q goes with the packed form but q is batched, %s",
                   shape_text(a.q).text);
    }
    LB_TRY(check_cu_seqlens_q(a));
  }
  LB_TRY(check_dtype(kOp, table, bit(DType::i32)));
  const int64_t batch = sequence_count(a);
  if (a.page_table.rank != 2 || a.page_table.shape[0] != batch) {
    return error(Code::shape,
                 "attention: expected page_table of shape [%lld, pages] (%s) but got %s", ll(batch),
                 is_batched(a)             ? "the batch of q"
                 : present(a.cu_seqlens_q) ? "the sequences of cu_seqlens_q"
                                           : "one sequence, as cu_seqlens_q is absent",
                 shape_text(a.page_table).text);
  }
  LB_TRY(check_rows(kOp, table));
  for (const Named& n : {kv_lens, rows, lens}) {
    LB_TRY(check_list(n, DType::i32, batch, "the sequences of page_table"));
  }
  if (present(a.prefix_rows) && a.kv.prefix_rows == 0) {
    return error(Code::argument,
                 "attention: prefix_rows was given but the cache has no prefix region");
  }
  if (!present(a.prefix_lens) || present(a.prefix_rows)) return ok();
  return error(Code::argument, "attention: prefix_lens was given without prefix_rows");
}

static Status check_no_pages(const AttentionArgs& a) {
  for (const Named& n : {Named{"page_table", &a.page_table}, Named{"prefix_rows", &a.prefix_rows},
                         Named{"prefix_lens", &a.prefix_lens}}) {
    if (!present(*n.tensor)) continue;
    return error(Code::argument, "attention: %s goes with a KvCache but k is a tensor", n.name);
  }
  return ok();
}

static Status check_bias(const AttentionArgs& a) {
  const Tensor& t = a.bias;
  if (!present(t)) return ok();
  LB_TRY(check_dtype(kOp, {"bias", &t}, bit(DType::f32)));
  const bool batched = is_batched(a);
  const int64_t queries = a.q.shape[a.q.rank - 3], heads = head_count(a);
  const bool fits = (t.rank == 3 || (t.rank == 4 && batched)) && t.shape[t.rank - 2] == queries &&
                    (t.shape[t.rank - 3] == 1 || t.shape[t.rank - 3] == heads) &&
                    (t.rank == 3 || t.shape[0] == 1 || t.shape[0] == a.q.shape[0]);
  if (fits) return check_rows(kOp, {"bias", &t});
  if (batched) {
    return error(Code::shape,
                 "attention: expected bias of shape [%lld or 1, %lld, keys] or [%lld or 1, %lld or "
                 "1, %lld, keys] (batch, heads and queries of q) but got %s",
                 ll(heads), ll(queries), ll(a.q.shape[0]), ll(heads), ll(queries),
                 shape_text(t).text);
  }
  return error(Code::shape,
               "attention: expected bias of shape [%lld or 1, %lld, keys] (heads and tokens of q) "
               "but got %s",
               ll(heads), ll(queries), shape_text(t).text);
}

// Scales of codes, [tokens or 1, heads or 1] of `t`, in the batched form with batch or 1 before.
static Status check_scales(const AttentionArgs& a, const char* name, const Tensor& scales,
                           const Tensor& t) {
  if (!present(scales)) return ok();
  if (is_paged(a) || a.q.dtype != DType::e4m3) {
    return error(Code::argument, "attention: %s goes with tensors of e4m3 but q is %s%s", name,
                 dtype_name(a.q.dtype), is_paged(a) ? " and k a KvCache" : "");
  }
  LB_TRY(check_dtype(kOp, {name, &scales}, bit(DType::f32)));
  bool fits = scales.rank == t.rank - 1;
  for (int i = 0; i < scales.rank && fits; ++i) {
    fits = scales.shape[i] == 1 || scales.shape[i] == t.shape[i];
  }
  if (fits) return ok();
  if (is_batched(a)) {
    return error(Code::shape,
                 "attention: expected %s of shape [%lld or 1, %lld or 1, %lld or 1] (batch, tokens "
                 "and heads) but got %s",
                 name, ll(t.shape[0]), ll(t.shape[1]), ll(t.shape[2]), shape_text(scales).text);
  }
  return error(Code::shape,
               "attention: expected %s of shape [%lld or 1, %lld or 1] (tokens and heads) but got "
               "%s",
               name, ll(t.shape[0]), ll(t.shape[1]), shape_text(scales).text);
}

static Status check_options(const AttentionArgs& a) {
  if (!std::isfinite(a.softmax_scale)) {
    return error(Code::argument, "attention: expected a finite softmax_scale but got %g",
                 static_cast<double>(a.softmax_scale));
  }
  if (!std::isfinite(a.softcap) || a.softcap < 0) {
    return error(Code::argument, "attention: expected softcap >= 0 and finite but got %g",
                 static_cast<double>(a.softcap));
  }
  if (a.window_left < -1 || a.window_right < -1) {
    return error(Code::argument,
                 "attention: expected a window of sizes >= 0, or -1 for no limit, but got [%lld, "
                 "%lld]",
                 ll(a.window_left), ll(a.window_right));
  }
  switch (a.score) {
    case Score::softmax: return ok();
    case Score::sigmoid: break;
    default: return error(Code::argument, "attention: unknown score %d", static_cast<int>(a.score));
  }
  for (const Named& n : {Named{"lse", &a.lse}, Named{"sinks", &a.sinks}}) {
    if (!present(*n.tensor)) continue;
    return error(Code::argument, "attention: %s goes with score softmax but score is sigmoid",
                 n.name);
  }
  return ok();
}

static Status check_outputs(const AttentionArgs& a) {
  Tensor expected;
  LB_TRY(attention_infer(a, &expected));
  LB_TRY(check_present(kOp, {"out", &a.o}));
  LB_TRY(check_expected("out", expected, a.o));
  if (a.q.dtype == DType::e4m3) {
    LB_TRY(check_dtype(kOp, {"out", &a.o}, kFloats));
  } else if (a.o.dtype != a.q.dtype && a.o.dtype != DType::f32) {
    return error(Code::dtype, "attention: expected out in q's dtype %s or in f32 but got %s",
                 dtype_name(a.q.dtype), dtype_name(a.o.dtype));
  }
  if (!present(a.lse)) return ok();
  LB_TRY(attention_infer_lse(a, &expected));
  LB_TRY(check_expected("lse", expected, a.lse));
  return check_dtype(kOp, {"lse", &a.lse}, bit(DType::f32));
}

// Devices and memory of everything that is there.
static Status check_memory(const AttentionArgs& a) {
  const Named q = {"q", &a.q}, out = {"out", &a.o}, lse = {"lse", &a.lse};
  const Named inputs[] = {q,
                          {"k", &a.k},
                          {"v", &a.v},
                          {"cu_seqlens_q", &a.cu_seqlens_q},
                          {"cu_seqlens_kv", &a.cu_seqlens_kv},
                          {"kv_lens", &a.kv_lens},
                          {"alibi_slopes", &a.alibi_slopes},
                          {"sinks", &a.sinks},
                          {"bias", &a.bias},
                          {"q.scales", &a.q_scales},
                          {"k.scales", &a.k_scales},
                          {"v.scales", &a.v_scales},
                          {"page_table", &a.page_table},
                          {"prefix_rows", &a.prefix_rows},
                          {"prefix_lens", &a.prefix_lens}};
  if (is_paged(a) && !same_device(a.kv.device, a.q.device)) {
    return error(Code::device, "attention: the KvCache is on another device than q");
  }
  for (const Named& n : inputs) LB_TRY(check_same_device(kOp, n, q));
  for (const Named& n : {out, lse}) LB_TRY(check_same_device(kOp, n, q));
  for (const Named& n : {q, inputs[1], inputs[2], out}) LB_TRY(check_rows(kOp, n));
  for (const Named& n : {out, lse}) {
    LB_TRY(check_injective(kOp, n));
    for (const Named& input : inputs) LB_TRY(check_apart(kOp, n, input));
  }
  return check_apart(kOp, lse, out);
}

Status attention_check(const AttentionArgs& a) {
  LB_TRY(check_outputs(a));
  LB_TRY(check_options(a));
  LB_TRY(is_paged(a) ? check_paged(a) : check_no_pages(a));
  if (!is_paged(a)) LB_TRY(check_lengths(a));
  LB_TRY(check_list({"alibi_slopes", &a.alibi_slopes}, DType::f32, head_count(a), "heads"));
  LB_TRY(check_list({"sinks", &a.sinks}, DType::f32, head_count(a), "heads"));
  LB_TRY(check_bias(a));
  LB_TRY(check_scales(a, "q.scales", a.q_scales, a.q));
  LB_TRY(check_scales(a, "k.scales", a.k_scales, a.k));
  LB_TRY(check_scales(a, "v.scales", a.v_scales, a.v));
  return check_memory(a);
}

}  // namespace lowbit
