// attention: check, choice and run. Built without ISA flags.
#include "csrc/attention/attention.h"

#include <cmath>
#include <initializer_list>

#include "csrc/attention/sequence.h"
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

static long long ll(int64_t value) { return static_cast<long long>(value); }

// `name` should have `expected` at dimension `dim`, because of `reason`.
static Status check_size(const char* name, const Tensor& t, int dim, int64_t expected,
                         const char* reason) {
  if (t.shape[dim] == expected) return ok();
  return error(Code::shape, "attention: expected %s.shape[%d] = %lld (%s) but got %s", name, dim,
               ll(expected), reason, shape_text(t).text);
}

static Status check_rank(const AttentionArgs& a) {
  if (!present(a.q) || !present(a.k) || !present(a.v)) {
    return error(Code::type, "attention: q, k and v must be given");
  }
  if (a.q.rank != 3 && a.q.rank != 4) {
    return error(Code::shape,
                 "attention: expected q as [tokens, heads, head_dim] or [batch, seq, heads, "
                 "head_dim] but got %s",
                 shape_text(a.q).text);
  }
  for (const Tensor* t : {&a.k, &a.v}) {
    if (t->rank == a.q.rank) continue;
    return error(Code::shape, "attention: expected %s of rank %d, as q %s, but got %s",
                 t == &a.k ? "k" : "v", a.q.rank, shape_text(a.q).text, shape_text(*t).text);
  }
  return ok();
}

// The sizes that q, k and v must share; everything else is derived from them.
static Status check_inputs(const AttentionArgs& a) {
  LB_TRY(check_rank(a));
  if (!has(kFloats, a.q.dtype)) {
    return error(Code::dtype, "attention: expected q in f32, f16 or bf16 but got %s",
                 dtype_name(a.q.dtype));
  }
  for (const Tensor* t : {&a.k, &a.v}) {
    if (t->dtype == a.q.dtype) continue;
    return error(Code::dtype, "attention: expected %s in q's dtype %s but got %s",
                 t == &a.k ? "k" : "v", dtype_name(a.q.dtype), dtype_name(t->dtype));
  }
  const int rank = a.q.rank;
  if (rank == 4) {
    LB_TRY(check_size("k", a.k, 0, a.q.shape[0], "the batch of q"));
    LB_TRY(check_size("v", a.v, 0, a.q.shape[0], "the batch of q"));
  }
  LB_TRY(check_size("k", a.k, rank - 1, a.q.shape[rank - 1], "the head_dim of q"));
  LB_TRY(check_size("v", a.v, rank - 3, a.k.shape[rank - 3], "the length of k"));
  LB_TRY(check_size("v", a.v, rank - 2, a.k.shape[rank - 2], "the kv_heads of k"));
  if (head_dim_of(a) < 1 || head_dim_v_of(a) < 1 || kv_head_count(a) < 1) {
    return error(Code::shape,
                 "attention: expected head_dim, head_dim_v and kv_heads of at least 1 but got k %s "
                 "and v %s",
                 shape_text(a.k).text, shape_text(a.v).text);
  }
  if (head_count(a) % kv_head_count(a) != 0) {
    return error(Code::shape,
                 "attention: expected heads to be a multiple of kv_heads = %lld but "
                 "got %lld",
                 ll(kv_head_count(a)), ll(head_count(a)));
  }
  return ok();
}

Status attention_infer(const AttentionArgs& args, Tensor* o) {
  LB_TRY(check_inputs(args));
  int64_t shape[kMaxRank];
  for (int i = 0; i < args.q.rank; ++i) shape[i] = args.q.shape[i];
  shape[args.q.rank - 1] = head_dim_v_of(args);
  *o = make_tensor(nullptr, args.q.dtype, args.q.device, shape, args.q.rank);
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

static Status check_rows(const char* name, const Tensor& t) {
  if (rows_contiguous(t)) return ok();
  return error(Code::strides,
               "attention: expected %s with a contiguous last dimension but its stride is %lld",
               name, ll(t.strides[t.rank - 1]));
}

// False if two elements share memory: walks the dimensions from the smallest stride up, each must
// step over all that the smaller ones reach.
static bool is_injective(const Tensor& t) {
  if (numel(t) == 0) return true;
  bool used[kMaxRank] = {};
  int64_t reach = 0;
  for (int step = 0; step < t.rank; ++step) {
    int next = -1;
    for (int i = 0; i < t.rank; ++i) {
      if (!used[i] && (next < 0 || t.strides[i] < t.strides[next])) next = i;
    }
    used[next] = true;
    if (t.shape[next] == 1) continue;
    if (t.strides[next] <= reach) return false;
    reach += (t.shape[next] - 1) * t.strides[next];
  }
  return true;
}

struct Named {
  const char* name;
  const Tensor* tensor;
};

static Status check_written(Named out, const Named* others, int count) {
  if (!is_injective(*out.tensor)) {
    return error(Code::strides, "attention: expected %s without elements that share memory",
                 out.name);
  }
  for (int i = 0; i < count; ++i) {
    const Tensor& t = *others[i].tensor;
    if (&t == out.tensor || !present(t) || !overlaps(*out.tensor, t)) continue;
    return error(Code::argument, "attention: expected %s in memory of its own but it overlaps %s",
                 out.name, others[i].name);
  }
  return ok();
}

static Status check_vector(const Named& n, DType dtype, int64_t length, const char* reason) {
  const Tensor& t = *n.tensor;
  if (!present(t)) return ok();
  if (t.dtype != dtype) {
    return error(Code::dtype, "attention: expected %s in %s but got %s", n.name, dtype_name(dtype),
                 dtype_name(t.dtype));
  }
  if (t.rank != 1 || (length >= 0 && t.shape[0] != length)) {
    if (length < 0) {
      return error(Code::shape, "attention: expected %s of shape [%s] but got %s", n.name, reason,
                   shape_text(t).text);
    }
    return error(Code::shape, "attention: expected %s of shape [%lld] (%s) but got %s", n.name,
                 ll(length), reason, shape_text(t).text);
  }
  if (!is_contiguous(t)) {
    return error(Code::strides, "attention: expected a contiguous %s but its stride is %lld",
                 n.name, ll(t.strides[0]));
  }
  return ok();
}

static Status check_lengths(const AttentionArgs& a) {
  const Named cu_q = {"cu_seqlens_q", &a.cu_seqlens_q}, kv_lens = {"kv_lens", &a.kv_lens};
  const Named cu_kv = {"cu_seqlens_kv", &a.cu_seqlens_kv};
  if (is_batched(a)) {
    for (const Named& n : {cu_q, cu_kv}) {
      if (!present(*n.tensor)) continue;
      return error(Code::argument, "attention: %s goes with the packed form but q is batched, %s",
                   n.name, shape_text(a.q).text);
    }
    return check_vector(kv_lens, DType::i32, a.q.shape[0], "the batch of q");
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
  LB_TRY(check_vector(cu_q, DType::i32, -1, "batch + 1"));
  if (a.cu_seqlens_q.shape[0] < 1) {
    return error(Code::shape, "attention: expected cu_seqlens_q of at least one entry");
  }
  LB_TRY(check_vector(cu_kv, DType::i32, a.cu_seqlens_q.shape[0], "the length of cu_seqlens_q"));
  if (!present(a.cu_seqlens_kv)) {
    LB_TRY(check_size("k", a.k, 0, a.q.shape[0], "the tokens of q, as cu_seqlens_kv is absent"));
  }
  return ok();
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

Status attention_check(const AttentionArgs& a) {
  Tensor expected;
  LB_TRY(attention_infer(a, &expected));
  if (!present(a.o)) return error(Code::type, "attention: out must be given");
  LB_TRY(check_expected("out", expected, a.o));
  if (a.o.dtype != a.q.dtype && a.o.dtype != DType::f32) {
    return error(Code::dtype, "attention: expected out in q's dtype %s or in f32 but got %s",
                 dtype_name(a.q.dtype), dtype_name(a.o.dtype));
  }
  LB_TRY(check_options(a));
  if (present(a.lse)) {
    LB_TRY(attention_infer_lse(a, &expected));
    LB_TRY(check_expected("lse", expected, a.lse));
    if (a.lse.dtype != DType::f32) {
      return error(Code::dtype, "attention: expected lse in f32 but got %s",
                   dtype_name(a.lse.dtype));
    }
  }
  LB_TRY(check_lengths(a));
  LB_TRY(check_vector({"alibi_slopes", &a.alibi_slopes}, DType::f32, head_count(a), "heads"));
  LB_TRY(check_vector({"sinks", &a.sinks}, DType::f32, head_count(a), "heads"));

  const Named all[] = {{"q", &a.q},
                       {"k", &a.k},
                       {"v", &a.v},
                       {"out", &a.o},
                       {"lse", &a.lse},
                       {"cu_seqlens_q", &a.cu_seqlens_q},
                       {"cu_seqlens_kv", &a.cu_seqlens_kv},
                       {"kv_lens", &a.kv_lens},
                       {"alibi_slopes", &a.alibi_slopes},
                       {"sinks", &a.sinks}};
  constexpr int kCount = sizeof all / sizeof *all;
  for (const Named& n : all) {
    if (!present(*n.tensor) || same_device(n.tensor->device, a.q.device)) continue;
    return error(Code::device, "attention: expected %s on the device of q but it is on another",
                 n.name);
  }
  for (int i = 0; i < 4; ++i) LB_TRY(check_rows(all[i].name, *all[i].tensor));
  LB_TRY(check_written(all[3], all, kCount));
  if (present(a.lse)) LB_TRY(check_written(all[4], all, kCount));
  return ok();
}

static bool fits(const AttentionArgs& a, const AttentionSpec& spec) {
  if (!has(spec.dtypes, a.q.dtype)) return false;
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

Status attention_blame(const AttentionArgs& a, int64_t place, int32_t value) {
  const int64_t i = place & (kNotAllTokens - 1);
  if ((place & kOfKvLens) != 0) {
    return error(Code::argument, "attention: expected kv_lens[%lld] in 0 to %lld but got %d", ll(i),
                 ll(a.k.shape[1]), value);
  }
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

static Status check_cu_seqlens(const AttentionArgs& a, const Tensor& cu, int64_t place,
                               int64_t tokens) {
  const auto* at = static_cast<const int32_t*>(cu.data);
  const int64_t last = cu.shape[0] - 1;
  if (at[0] != 0) return attention_blame(a, place, at[0]);
  for (int64_t i = 1; i <= last; ++i) {
    if (at[i] < at[i - 1]) return attention_blame(a, place + i, at[i]);
  }
  return at[last] == tokens ? ok() : attention_blame(a, place + kNotAllTokens + last, at[last]);
}

static Status check_lens(const AttentionArgs& a) {
  if (present(a.cu_seqlens_q)) {
    LB_TRY(check_cu_seqlens(a, a.cu_seqlens_q, 0, a.q.shape[0]));
  }
  if (present(a.cu_seqlens_kv)) {
    LB_TRY(check_cu_seqlens(a, a.cu_seqlens_kv, kOfCuSeqlensKv, a.k.shape[0]));
  }
  if (!present(a.kv_lens)) return ok();
  const auto* lens = static_cast<const int32_t*>(a.kv_lens.data);
  for (int64_t b = 0; b < a.kv_lens.shape[0]; ++b) {
    if (lens[b] < 0 || lens[b] > a.k.shape[1]) return attention_blame(a, kOfKvLens + b, lens[b]);
  }
  return ok();
}

Status attention_run(const AttentionArgs& args, const AttentionKernel& row, const Ctx& ctx) {
  if (ctx.check == nullptr) LB_TRY(check_lens(args));
  return row.run(args, ctx);
}

}  // namespace lowbit
