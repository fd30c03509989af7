// The table of linear's rows, the only check of its arguments, and the call itself.
#include "csrc/linear/linear.h"

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

LinearTable linear_table() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

static long long ll(int64_t v) { return static_cast<long long>(v); }

static Status check_float_dtype(const char* name, const Tensor& t) {
  if (has(kFloats, t.dtype)) return ok();
  return error(Code::dtype, "linear: expected %s of f32, f16 or bf16 but got %s", name,
               dtype_name(t.dtype));
}

static Status check_rows(const char* name, const Tensor& t) {
  if (rows_contiguous(t)) return ok();
  return error(Code::strides,
               "linear: expected %s with contiguous rows but got a view of stride %lld along its "
               "last dimension",
               name, ll(t.strides[t.rank - 1]));
}

static Status check_device(const char* name, DeviceTag device, const LinearArgs& args) {
  if (same_device(device, args.x.device)) return ok();
  return error(Code::device, "linear: expected %s on the device of x but it is on another one",
               name);
}

static Status check_x(const LinearArgs& args) {
  const Tensor& x = args.x;
  if (!present(x)) return error(Code::argument, "linear: x is missing");
  const bool codes = is_code_dtype(x.dtype);
  if (!codes && !has(kFloats, x.dtype)) {
    return error(Code::dtype, "linear: expected x of f32, f16, bf16, i8, e4m3 or e5m2 but got %s",
                 dtype_name(x.dtype));
  }
  if (x.rank != 2) {
    return error(Code::shape, "linear: expected x of shape [M, K] but got %s", shape_text(x).text);
  }
  if (x.shape[1] != args.w.k) {
    return error(Code::shape, "linear: expected w.k = %lld (x is %s) but got %lld", ll(x.shape[1]),
                 shape_text(x).text, ll(args.w.k));
  }
  LB_TRY(check_rows("x", x));
  const bool fits =
      args.compute == Compute::floating ||
      (args.compute == Compute::int8 ? !codes || x.dtype == DType::i8 : x.dtype != DType::i8);
  if (!fits) {
    return error(Code::dtype,
                 "linear: expected x of f32, f16, bf16 or %s for compute '%s' but got %s",
                 args.compute == Compute::int8 ? "i8" : "e4m3 or e5m2",
                 kComputeNames[static_cast<int>(args.compute)], dtype_name(x.dtype));
  }
  const Tensor& scale = args.x_scale;
  if (!codes) {
    if (!present(scale)) return ok();
    return error(Code::argument, "linear: expected no x_scale, because x holds %s and not codes",
                 dtype_name(x.dtype));
  }
  if (!present(scale)) {
    return error(Code::argument, "linear: x holds %s codes: x_scale is missing",
                 dtype_name(x.dtype));
  }
  if (scale.dtype != DType::f32) {
    return error(Code::dtype, "linear: expected x_scale of f32 but got %s",
                 dtype_name(scale.dtype));
  }
  const int64_t m = x.shape[0], blocks = ceil_div(x.shape[1], kScaleBlock);
  const bool by_row = scale.rank == 1 && scale.shape[0] == m;
  const bool by_block = scale.rank == 2 && scale.shape[0] == m && scale.shape[1] == blocks;
  if (args.compute == Compute::int8 ? !by_row : !by_row && !by_block) {
    if (args.compute == Compute::int8) {
      return error(Code::shape,
                   "linear: expected x_scale of shape [%lld] for compute 'int8' but got %s", ll(m),
                   shape_text(scale).text);
    }
    return error(Code::shape, "linear: expected x_scale of shape [%lld] or [%lld, %lld] but got %s",
                 ll(m), ll(m), ll(blocks), shape_text(scale).text);
  }
  if (by_block) LB_TRY(check_rows("x_scale", scale));
  return check_device("x_scale", scale.device, args);
}

// out's dtype and shape, given or inferred.
static Status check_out(const LinearArgs& args) {
  const Tensor& out = args.out;
  if (!present(out)) return error(Code::argument, "linear: out is missing");
  const int64_t m = args.x.shape[0], columns = out_columns(args);
  if (out.rank != 2 || out.shape[0] != m || out.shape[1] != columns) {
    return error(Code::shape, "linear: expected out of shape [%lld, %lld] but got %s", ll(m),
                 ll(columns), shape_text(out).text);
  }
  const Tensor& scale = args.out_scale;
  if (present(scale)) {
    if (!is_code_dtype(out.dtype)) {
      return error(Code::dtype,
                   "linear: expected out of i8, e4m3 or e5m2 with out_scale but got %s",
                   dtype_name(out.dtype));
    }
    if (scale.dtype != DType::f32) {
      return error(Code::dtype, "linear: expected out_scale of f32 but got %s",
                   dtype_name(scale.dtype));
    }
    const int64_t blocks = ceil_div(columns, kScaleBlock);
    const bool by_row = scale.rank == 1 && scale.shape[0] == m;
    const bool by_block = scale.rank == 2 && scale.shape[0] == m && scale.shape[1] == blocks;
    if (!by_row && !by_block) {
      return error(Code::shape,
                   "linear: expected out_scale of shape [%lld] or [%lld, %lld] but got %s", ll(m),
                   ll(m), ll(blocks), shape_text(scale).text);
    }
    if (!is_contiguous(scale)) {
      return error(Code::strides, "linear: expected a contiguous out_scale");
    }
    LB_TRY(check_device("out_scale", scale.device, args));
  } else if (is_code_dtype(out.dtype)) {
    return error(Code::argument, "linear: out is %s: out_scale is missing", dtype_name(out.dtype));
  } else {
    LB_TRY(check_float_dtype("out", out));
  }
  LB_TRY(check_rows("out", out));
  if (m > 1 && out.strides[0] < columns) {
    return error(Code::strides,
                 "linear: expected rows of out apart but its row stride is %lld of %lld columns",
                 ll(out.strides[0]), ll(columns));
  }
  return check_device("out", out.device, args);
}

// Do two row views share memory? Views of one matrix that take different columns do not.
static bool overlap(const Tensor& a, const Tensor& b) {
  const int64_t a_bytes = span_bytes(a), b_bytes = span_bytes(b);
  if (a_bytes == 0 || b_bytes == 0 || a.data == nullptr || b.data == nullptr) return false;
  const uintptr_t pa = reinterpret_cast<uintptr_t>(a.data);
  const uintptr_t pb = reinterpret_cast<uintptr_t>(b.data);
  if (pa + static_cast<uintptr_t>(a_bytes) <= pb || pb + static_cast<uintptr_t>(b_bytes) <= pa) {
    return false;
  }
  if (a.rank != 2 || b.rank != 2) return true;
  const int64_t stride = a.strides[0] * dtype_bytes(a.dtype);
  if (stride != b.strides[0] * dtype_bytes(b.dtype) || stride == 0) return true;
  const int64_t a_width = a.shape[1] * dtype_bytes(a.dtype);
  const int64_t b_width = b.shape[1] * dtype_bytes(b.dtype);
  const int64_t distance = static_cast<int64_t>(pb) - static_cast<int64_t>(pa);
  const int64_t offset = (distance % stride + stride) % stride;
  return offset < a_width || offset + b_width > stride;
}

static Status check_overlap(const LinearArgs& args) {
  const struct {
    const char* name;
    const Tensor* tensor;
  } inputs[] = {{"x", &args.x},
                {"x_scale", &args.x_scale},
                {"bias", &args.bias},
                {"residual", &args.residual}};
  for (const auto& input : inputs) {
    if (!present(*input.tensor)) continue;
    const Tensor& t = *input.tensor;
    const bool same_view = t.data == args.out.data && t.dtype == args.out.dtype && t.rank == 2 &&
                           t.strides[0] == args.out.strides[0];
    if (input.tensor == &args.residual && same_view && !present(args.out_scale)) continue;
    if (overlap(t, args.out)) {
      return error(Code::argument, "linear: out shares memory with %s", input.name);
    }
    if (present(args.out_scale) && overlap(t, args.out_scale)) {
      return error(Code::argument, "linear: out_scale shares memory with %s", input.name);
    }
  }
  if (present(args.out_scale) && overlap(args.out, args.out_scale)) {
    return error(Code::argument, "linear: out_scale shares memory with out");
  }
  return ok();
}

static Status check_words(const LinearArgs& args) {
  if (static_cast<int>(args.activation) < 0 ||
      static_cast<int>(args.activation) >= kActivationCount) {
    return error(Code::argument, "linear: there is no activation number %d",
                 static_cast<int>(args.activation));
  }
  if (static_cast<int>(args.compute) < 0 || static_cast<int>(args.compute) >= kComputeCount) {
    return error(Code::argument, "linear: there is no compute number %d",
                 static_cast<int>(args.compute));
  }
  if (is_gated(args.activation) && args.w.n % 2 != 0) {
    return error(Code::shape, "linear: %s pairs the rows of w: expected an even w.n but got %lld",
                 kActivationNames[static_cast<int>(args.activation)], ll(args.w.n));
  }
  return ok();
}

Status linear_infer(const LinearArgs& args, Tensor* out) {
  LB_TRY(check_words(args));
  LB_TRY(check_x(args));
  const int64_t shape[2] = {args.x.shape[0], out_columns(args)};
  const DType dtype = is_code_dtype(args.x.dtype) ? DType::f32 : args.x.dtype;
  *out = make_tensor(nullptr, dtype, args.x.device, shape, 2);
  return ok();
}

Status linear_check(const LinearArgs& args) {
  LB_TRY(check_words(args));
  LB_TRY(check_x(args));
  LB_TRY(check_device("w", args.w.device, args));
  const Tensor& bias = args.bias;
  if (present(bias)) {
    LB_TRY(check_float_dtype("bias", bias));
    if (bias.rank != 1 || bias.shape[0] != args.w.n) {
      return error(Code::shape,
                   "linear: expected bias of shape [%lld] (w is [%lld, %lld]) but got %s",
                   ll(args.w.n), ll(args.w.n), ll(args.w.k), shape_text(bias).text);
    }
    LB_TRY(check_rows("bias", bias));
    LB_TRY(check_device("bias", bias.device, args));
  }
  LB_TRY(check_out(args));
  const Tensor& residual = args.residual;
  if (present(residual)) {
    LB_TRY(check_float_dtype("residual", residual));
    if (!same_shape(residual, args.out)) {
      return error(Code::shape, "linear: expected residual of out's shape %s but got %s",
                   shape_text(args.out).text, shape_text(residual).text);
    }
    LB_TRY(check_rows("residual", residual));
    LB_TRY(check_device("residual", residual.device, args));
  }
  return check_overlap(args);
}

static bool fits(const LinearArgs& args, const LinearSpec& spec) {
  const Format& f = args.w.format;
  const auto multiple = [](int64_t v, int64_t of) { return of <= 1 || v % of == 0; };
  return has(spec.kinds, f.kind) && (spec.layouts & bit(args.w.layout)) != 0 &&
         has(spec.x, args.x.dtype) && (spec.computes & bit(args.compute)) != 0 &&
         (spec.zeros || f.zero_type == ZeroType::none) &&
         (spec.m_max == 0 || args.x.shape[0] <= spec.m_max) &&
         multiple(args.w.n, spec.n_multiple) && multiple(args.w.k, spec.k_multiple) &&
         (f.group_k >= args.w.k || multiple(f.group_k, spec.group_multiple));
}

Status linear_select(const LinearArgs& args, const Choice& choice, const LinearKernel** row) {
  const LinearTable table = linear_table();
  return select_row(table.rows, table.count, choice, fits, args, "linear", row);
}

// What a row writes where the result is to be re-quantised: f32, after the row's own scratch.
static LinearArgs unquantised(const LinearArgs& args, void* data) {
  LinearArgs inner = args;
  inner.out = make_tensor(data, DType::f32, args.out.device, args.out.shape, 2);
  inner.out_scale = absent_tensor();
  return inner;
}

static size_t row_workspace(const LinearArgs& args, const LinearKernel& row, int threads) {
  const size_t bytes = row.workspace == nullptr ? 0 : row.workspace(args, threads);
  return static_cast<size_t>(round_up(static_cast<int64_t>(bytes), 64));
}

size_t linear_workspace(const LinearArgs& args, const LinearKernel& row, int threads) {
  if (!present(args.out_scale)) return row_workspace(args, row, threads);
  const LinearArgs inner = unquantised(args, nullptr);
  return row_workspace(inner, row, threads) + static_cast<size_t>(numel(inner.out)) * 4;
}

Status linear_run(const LinearArgs& args, const LinearKernel& row, const Ctx& ctx) {
  if (numel(args.out) == 0 && !present(args.out_scale)) return ok();
  if (!present(args.out_scale)) return row.run(args, ctx);
  const size_t used = row_workspace(unquantised(args, nullptr), row,
                                    ctx.pool == nullptr ? 1 : pool_threads(ctx.pool));
  const LinearArgs inner = unquantised(args, static_cast<uint8_t*>(ctx.scratch) + used);
  if (numel(inner.out) > 0) LB_TRY(row.run(inner, ctx));
  QuantizeArgs quantize = {inner.out, args.out, args.out_scale, false};
  // The device has at least the instruction sets that the chosen row needs.
  const ArchRow* arch = find_arch(row.arch);
  const Choice choice = {row.arch | (arch == nullptr ? 0 : arch->implied), nullptr};
  const QuantizeKernel* quantize_row = nullptr;
  LB_TRY(quantize_select(quantize, choice, &quantize_row));
  return quantize_run(quantize, *quantize_row, ctx);
}

}  // namespace lowbit
