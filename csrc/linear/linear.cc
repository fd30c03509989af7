// The table of linear's rows, the only check of its arguments, and the call itself.
#include "csrc/linear/linear.h"

#include <initializer_list>

#include "csrc/base/check.h"
#include "csrc/base/select.h"
#include "csrc/base/threads.h"
#include "csrc/format/layout.h"
#include "csrc/quantize/quantize.h"

namespace lowbit {

#define KERNEL(name) extern const LinearKernel name;
#include "csrc/linear/kernels.inc"
#undef KERNEL

static constexpr const LinearKernel* kRows[] = {
#define KERNEL(name) &name,
#include "csrc/linear/kernels.inc"
#undef KERNEL
};

LinearTable linear_table() {
  const RowList<LinearKernel> all = all_rows("linear", kRows);
  return {all.rows, all.count};
}

static constexpr const char* kOp = "linear";

// One scale a row of `rows`, or (where allowed) one a block of 128 columns.
static Status check_scale(const Named& n, const Tensor& rows, bool blocks_too) {
  const Tensor& t = *n.tensor;
  LB_TRY(check_dtype(kOp, n, bit(DType::f32)));
  const int64_t m = rows.shape[0], blocks = ceil_div(rows.shape[1], kScaleBlock);
  if (t.rank == 1 && t.shape[0] == m) return check_rows(kOp, n);
  if (blocks_too && t.rank == 2 && t.shape[0] == m && t.shape[1] == blocks) {
    return check_rows(kOp, n);
  }
  if (!blocks_too) {
    return error(Code::shape, "linear: expected %s of shape [%lld] for compute 'int8' but got %s",
                 n.name, ll(m), shape_text(t).text);
  }
  return error(Code::shape, "linear: expected %s of shape [%lld] or [%lld, %lld] but got %s",
               n.name, ll(m), ll(m), ll(blocks), shape_text(t).text);
}

static Status check_words(const LinearArgs& a) {
  const int activation = static_cast<int>(a.activation), compute = static_cast<int>(a.compute);
  if (activation < 0 || activation >= kActivationCount) {
    return error(Code::argument, "linear: there is no activation number %d", activation);
  }
  if (compute < 0 || compute >= kComputeCount) {
    return error(Code::argument, "linear: there is no compute number %d", compute);
  }
  if (is_gated(a.activation) && a.w.n % 2 != 0) {
    return error(Code::shape, "linear: %s pairs the rows of w: expected an even w.n but got %lld",
                 kActivationNames[activation], ll(a.w.n));
  }
  return ok();
}

static Status check_x(const LinearArgs& a) {
  const Named x = {"x", &a.x}, x_scale = {"x.scales", &a.x_scale};
  LB_TRY(check_present(kOp, x));
  LB_TRY(check_dtype(kOp, x, kFloats | kCodeDTypes));
  if (a.x.rank != 2) {
    return error(Code::shape, "linear: expected x of shape [M, K] but got %s",
                 shape_text(a.x).text);
  }
  const int64_t k = plane_columns(a.w.format, a.w.k);
  if (a.x.shape[1] != k) {
    return error(Code::shape, "linear: expected w.k = %lld (x is %s) but got %lld",
                 ll(a.x.shape[1]), shape_text(a.x).text, ll(k));
  }
  LB_TRY(check_rows(kOp, x));
  const bool codes = is_code_dtype(a.x.dtype), i8 = a.x.dtype == DType::i8;
  if (codes && (a.compute == Compute::int8 ? !i8 : a.compute != Compute::floating && i8)) {
    return error(Code::dtype,
                 "linear: expected x in f32, f16, bf16 or %s for compute '%s' but got %s",
                 i8 ? "e4m3, e5m2" : "i8", kComputeNames[static_cast<int>(a.compute)],
                 dtype_name(a.x.dtype));
  }
  if (codes != present(a.x_scale)) {
    return error(Code::argument,
                 codes ? "linear: expected x.scales, because x holds %s codes"
                       : "linear: expected no x.scales, because x holds %s and not codes",
                 dtype_name(a.x.dtype));
  }
  if (!codes) return ok();
  LB_TRY(check_scale(x_scale, a.x, a.compute != Compute::int8));
  return check_same_device(kOp, x_scale, x);
}

Status linear_infer(const LinearArgs& a, Tensor* out) {
  LB_TRY(check_words(a));
  LB_TRY(check_x(a));
  const int64_t shape[2] = {a.x.shape[0], out_columns(a)};
  const DType dtype = is_code_dtype(a.x.dtype) ? DType::f32 : a.x.dtype;
  *out = make_tensor(nullptr, dtype, a.x.device, shape, 2);
  return ok();
}

static Status check_out(const LinearArgs& a) {
  const Named x = {"x", &a.x}, out = {"out", &a.out}, out_scale = {"out.scales", &a.out_scale};
  LB_TRY(check_present(kOp, out));
  LB_TRY(check_dtype(kOp, out, kFloats | kCodeDTypes));
  const bool codes = is_code_dtype(a.out.dtype);
  if (codes != present(a.out_scale)) {
    return error(Code::argument,
                 codes ? "linear: expected out.scales, because out holds %s codes"
                       : "linear: expected out in i8, e4m3 or e5m2 with out.scales but got %s",
                 dtype_name(a.out.dtype));
  }
  const int64_t shape[2] = {a.x.shape[0], out_columns(a)};
  const Tensor expected = make_tensor(nullptr, a.out.dtype, a.x.device, shape, 2);
  LB_TRY(check_shape(
      kOp, out, expected,
      is_gated(a.activation) ? "rows of x, pairs of rows of w" : "rows of x, rows of w"));
  if (codes) LB_TRY(check_scale(out_scale, a.out, true));
  for (const Named& n : {out, out_scale}) {
    LB_TRY(check_rows(kOp, n));
    LB_TRY(check_injective(kOp, n));
    LB_TRY(check_same_device(kOp, n, x));
  }
  return ok();
}

Status linear_check(const LinearArgs& a) {
  const Named x = {"x", &a.x}, x_scale = {"x.scales", &a.x_scale}, bias = {"bias", &a.bias};
  const Named residual = {"residual", &a.residual}, out = {"out", &a.out};
  const Named out_scale = {"out.scales", &a.out_scale};
  LB_TRY(check_words(a));
  LB_TRY(check_x(a));
  if (!same_device(a.w.device, a.x.device)) {
    return error(Code::device, "linear: w is on another device than x");
  }
  LB_TRY(check_vector(kOp, bias, a.w.n, "rows of w"));
  LB_TRY(check_out(a));
  LB_TRY(check_shape(kOp, residual, a.out, "as out"));
  LB_TRY(check_rows(kOp, residual));
  for (const Named& n : {bias, residual}) {
    LB_TRY(check_dtype(kOp, n, kFloats));
    LB_TRY(check_same_device(kOp, n, x));
  }
  // Rows are finished one by one, each after its residual was read.
  const bool same_dtype = a.residual.dtype == a.out.dtype;
  LB_TRY(same_dtype ? check_apart_or_same(kOp, out, residual) : check_apart(kOp, out, residual));
  for (const Named& n : {x, x_scale, bias}) LB_TRY(check_apart(kOp, out, n));
  for (const Named& n : {x, x_scale, bias, residual, out}) LB_TRY(check_apart(kOp, out_scale, n));
  return ok();
}

// Scales of whole rows (of each plane), none inside them; or, with `blocks`, of blocks of 128
// columns.
static bool has_one_scale(const LinearArgs& args, bool blocks) {
  const Format& f = args.w.format;
  if (!blocks && present(args.x_scale) && args.x_scale.rank == 2) return false;
  return !kind_row(f.kind).scaled ||
         (f.group_k >= args.x.shape[1] && (f.group_n == 1 || f.group_n >= args.w.n)) ||
         (blocks && f.group_n == kScaleBlock && f.group_k == kScaleBlock);
}

// What allows longer sums allows shorter ones.
static bool has_compute(uint32_t computes, Compute c) {
  return (computes & bit(c)) != 0 ||
         (c == Compute::fp8_unpromoted && (computes & bit(Compute::fp8)) != 0);
}

// K = 0 goes to rows that take any K.
static bool fits(const LinearArgs& args, const LinearSpec& spec) {
  const Format& f = args.w.format;
  const auto multiple = [](int64_t v, int64_t of) { return of <= 1 || v % of == 0; };
  return has(spec.kinds, f.kind) && (spec.layouts & bit(args.w.layout)) != 0 &&
         has(spec.x, args.x.dtype) && has_compute(spec.computes, args.compute) &&
         (spec.zeros || f.zero_type == ZeroType::none) &&
         (spec.float_zeros || f.zero_type != ZeroType::f32) &&
         (spec.many_tables || f.table_type <= TableType::tensor) &&
         (spec.planes || f.planes == 1) && args.x.shape[0] >= spec.m_min &&
         (spec.m_max == 0 || args.x.shape[0] <= spec.m_max) &&
         multiple(args.w.n, spec.n_multiple) && multiple(args.x.shape[1], spec.k_multiple) &&
         (args.w.k > 0 || spec.k_multiple <= 1) &&
         (!spec.one_scale || has_one_scale(args, spec.block_scales)) &&
         (f.group_k >= args.w.k || multiple(f.group_k, spec.group_multiple)) &&
         (spec.group_max == 0 || f.group_k <= spec.group_max || args.w.k <= spec.group_max);
}

Status linear_select(const LinearArgs& args, const Choice& choice, const LinearKernel** row) {
  const LinearTable table = linear_table();
  return select_row(table.rows, table.count, choice, fits, args, kOp, row);
}

// The call as its row sees it: x as codes where the row takes nothing else, out in f32 where the
// result is to be re-quantised. Both lie in scratch memory before the row's own.
struct Inner {
  LinearArgs args;
  size_t before;
};

static Inner inner_of(const LinearArgs& args, const LinearKernel& row, void* scratch) {
  Inner inner = {args, 0};
  const auto take = [&](int64_t bytes) -> void* {
    void* at = scratch == nullptr ? nullptr : static_cast<uint8_t*>(scratch) + inner.before;
    inner.before += static_cast<size_t>(round_up(bytes, 64));
    return at;
  };
  if (present(args.out_scale)) {
    inner.args.out =
        make_tensor(take(numel(args.out) * 4), DType::f32, args.out.device, args.out.shape, 2);
    inner.args.out_scale = absent_tensor();
  }
  if (row.spec.codes_only && !is_code_dtype(args.x.dtype)) {
    const DType codes = args.compute == Compute::int8 ? DType::i8 : DType::e4m3;
    inner.args.x = make_tensor(take(numel(args.x)), codes, args.x.device, args.x.shape, 2);
    inner.args.x_scale =
        make_tensor(take(args.x.shape[0] * 4), DType::f32, args.x.device, args.x.shape, 1);
  }
  return inner;
}

size_t linear_workspace(const LinearArgs& args, const LinearKernel& row, int threads) {
  const Inner inner = inner_of(args, row, nullptr);
  return inner.before + (row.workspace == nullptr ? 0 : row.workspace(inner.args, threads));
}

// By the row of quantize that a device takes which has what the chosen row needs.
static Status quantize_with(const LinearKernel& row, const QuantizeArgs& args, const Ctx& ctx) {
  const Choice choice = {with_implied(row.arch), nullptr};
  const QuantizeKernel* quantize_row = nullptr;
  LB_TRY(quantize_select(args, choice, &quantize_row));
  return quantize_run(args, *quantize_row, ctx);
}

Status linear_run(const LinearArgs& args, const LinearKernel& row, const Ctx& ctx) {
  if (numel(args.out) == 0 && !present(args.out_scale)) return ok();
  const Inner inner = inner_of(args, row, ctx.scratch);
  Ctx own = ctx;
  if (inner.before > 0) own.scratch = static_cast<uint8_t*>(ctx.scratch) + inner.before;
  if (numel(args.out) > 0) {
    if (inner.args.x.dtype != args.x.dtype) {
      LB_TRY(quantize_with(row, {args.x, inner.args.x, inner.args.x_scale, false}, ctx));
    }
    LB_TRY(row.run(inner.args, own));
  }
  if (!present(args.out_scale)) return ok();
  return quantize_with(row, {inner.args.out, args.out, args.out_scale, false}, ctx);
}

}  // namespace lowbit
