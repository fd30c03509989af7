// Which row a call would take on a device with these instruction sets: for the tests of choice and
// for `lowbit kernels`. No device is needed, because choosing looks at data only.
#include <cstring>

#include "binding/canonical.h"
#include "binding/describe.h"
#include "binding/env.h"
#include "binding/export.h"
#include "csrc/attention/attention.h"
#include "csrc/format/layout.h"
#include "csrc/linear/linear.h"

namespace lowbit::binding {

// 'avx512vnni,avx512bf16': those archs and what they imply. The forced row's name follows, or
// undefined.
struct ReadChoice {
  Choice choice;
  char forced[80];
};
static void read_choice(Reader& r, ReadChoice* out) {
  char names[200];
  r.text("archs", names, sizeof names);
  ArchSet set = 0;
  char* rest = nullptr;
  for (char* name = strtok_r(names, ",", &rest); name != nullptr;
       name = strtok_r(nullptr, ",", &rest)) {
    ArchSet found = 0;
    for (const ArchRow& row : kArchs) {
      if (std::strcmp(row.name, name) == 0) found = row.bit | row.implied;
    }
    if (found == 0) r.fail(error(Code::argument, "select: there is no arch '%s'", name));
    set |= found;
  }
  const bool named = r.text("row", out->forced, sizeof out->forced);
  out->choice = {set, named ? out->forced : nullptr};
}

template <class Kernel>
static napi_value chosen(napi_env env, const Status& status, const Kernel* row,
                         const char* layout) {
  if (!is_ok(status)) return fail(env, status);
  napi_value out;
  napi_create_object(env, &out);
  set_text(env, out, "row", row->name);
  if (layout != nullptr) set_text(env, out, "layout", layout);
  return out;
}

// m, dtype of x, compute, layout, ...format: a call of linear without data. Layout -1: the one that
// load() takes on such a device.
static LinearArgs read_linear(Reader& r, ArchSet arch) {
  const int64_t m = r.integer("m");
  const DType x = static_cast<DType>(r.word("dtype", kDTypeCount));
  LinearArgs args = {};
  args.compute = static_cast<Compute>(r.word("compute", kComputeCount));
  const int64_t layout = r.integer("layout");
  Weight& w = args.w;
  w.format = read_format(r, &w.n, &w.k);
  if (r.failed()) return args;
  const Shape shape = {w.n, w.k};
  w.layout = layout < 0 ? preferred_layout(arch, w.format, shape) : static_cast<Layout>(layout);
  if (m < 0 || layout >= kLayoutCount || !layout_serves(w.layout, w.format, shape)) {
    r.fail(error(Code::argument, "%s: no such call", r.op()));
    return args;
  }
  const int64_t x_shape[2] = {m, plane_columns(w.format, w.k)}, out_shape[2] = {m, w.n};
  args.x = make_tensor(nullptr, x, {}, x_shape, 2);
  args.out = make_tensor(nullptr, DType::f32, {}, out_shape, 2);
  args.x_scale = args.bias = args.residual = args.out_scale = absent_tensor();
  return args;
}

// selectLinear(archs, row, m, dtype of x, compute, layout, ...format)
napi_value select_linear(napi_env env, napi_callback_info info) {
  Reader r(env, info, "select");
  ReadChoice c;
  read_choice(r, &c);
  const LinearArgs args = read_linear(r, c.choice.arch);
  if (r.failed()) return nullptr;
  const LinearKernel* row = nullptr;
  const Status status = linear_select(args, c.choice, &row);
  return chosen(env, status, row, layout_name(args.w.layout));
}

// tuneLinear(archs, row, m, dtype of x, compute, layout, ...format): calls like this one, with as
// many rows of x or more, take that row from now on. A row that can't serve the call is refused.
napi_value tune_linear(napi_env env, napi_callback_info info) {
  Reader r(env, info, "tune");
  ReadChoice c;
  read_choice(r, &c);
  const LinearArgs args = read_linear(r, c.choice.arch);
  if (r.failed()) return nullptr;
  const LinearKernel* row = nullptr;
  const Status status = linear_select(args, c.choice, &row);
  if (!is_ok(status)) return fail(env, status);
  if (c.choice.forced == nullptr || std::strcmp(row->name, c.choice.forced) != 0) {
    return fail(env, error(Code::argument, "tune: linear has no row '%s'",
                           c.choice.forced == nullptr ? "" : c.choice.forced));
  }
  const Weight& w = args.w;
  linear_tuned_add(&env_of(env)->tuned, {w.format, w.layout, args.x.dtype, args.compute, w.n, w.k,
                                         args.x.shape[0], row});
  return nullptr;
}

// forgetTuned(): the order of the registry holds again.
napi_value forget_tuned(napi_env env, napi_callback_info) {
  env_of(env)->tuned.calls.clear();
  return nullptr;
}

// selectAttention(archs, row, dtype, batch, seq of q, heads, head_dim, seq of k, kv_heads,
// head_dim_v)
napi_value select_attention(napi_env env, napi_callback_info info) {
  Reader r(env, info, "select");
  ReadChoice c;
  read_choice(r, &c);
  const DType dtype = static_cast<DType>(r.word("dtype", kDTypeCount));
  const int64_t batch = r.integer("batch"), seq_q = r.integer("seqQ"), heads = r.integer("heads");
  const int64_t head_dim = r.integer("headDim"), seq_kv = r.integer("seqKv");
  const int64_t kv_heads = r.integer("kvHeads"), head_dim_v = r.integer("headDimV");
  if (r.failed()) return nullptr;
  const int64_t q[4] = {batch, seq_q, heads, head_dim}, k[4] = {batch, seq_kv, kv_heads, head_dim};
  const int64_t v[4] = {batch, seq_kv, kv_heads, head_dim_v};
  const int64_t o[4] = {batch, seq_q, heads, head_dim_v};
  AttentionArgs args = {};
  args.q = make_tensor(nullptr, dtype, {}, q, 4);
  args.k = make_tensor(nullptr, dtype, {}, k, 4);
  args.v = make_tensor(nullptr, dtype, {}, v, 4);
  args.o = make_tensor(nullptr, dtype == DType::e4m3 ? DType::bf16 : dtype, {}, o, 4);
  args.lse = args.cu_seqlens_q = args.cu_seqlens_kv = args.kv_lens = absent_tensor();
  args.alibi_slopes = args.sinks = args.bias = absent_tensor();
  args.page_table = args.prefix_rows = args.prefix_lens = absent_tensor();
  args.q_scales = args.k_scales = args.v_scales = absent_tensor();
  args.window_left = args.window_right = -1;
  const AttentionKernel* row = nullptr;
  const Status status = attention_select(args, c.choice, &row);
  return chosen(env, status, row, nullptr);
}

}  // namespace lowbit::binding
