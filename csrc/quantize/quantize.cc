// The table of the rows of quantize_rows and dequantize_rows, the check, and the call.
#include "csrc/quantize/quantize.h"

#include "csrc/base/select.h"
#include "csrc/format/format.h"

namespace lowbit {

#define KERNEL(name) extern const QuantizeKernel name;
#include "csrc/quantize/kernels.inc"
#undef KERNEL

static constexpr const QuantizeKernel* kRows[] = {
#define KERNEL(name) &name,
#include "csrc/quantize/kernels.inc"
#undef KERNEL
};

QuantizeTable quantize_table() { return {kRows, sizeof kRows / sizeof kRows[0]}; }

static long long ll(int64_t v) { return static_cast<long long>(v); }

static Status check_floats(const char* op, const Tensor& floats) {
  if (!present(floats)) {
    return error(Code::argument, "%s: %s is missing", op, op[0] == 'q' ? "x" : "out");
  }
  if (!has(kFloats, floats.dtype)) {
    return error(Code::dtype, "%s: expected %s of f32, f16 or bf16 but got %s", op,
                 op[0] == 'q' ? "x" : "out", dtype_name(floats.dtype));
  }
  if (floats.rank != 2) {
    return error(Code::shape, "%s: expected %s of shape [M, K] but got %s", op,
                 op[0] == 'q' ? "x" : "out", shape_text(floats).text);
  }
  return ok();
}

static Status check_code_dtype(const char* op, DType codes) {
  if (is_code_dtype(codes)) return ok();
  return error(Code::dtype, "%s: expected codes of i8, e4m3 or e5m2 but got %s", op,
               dtype_name(codes));
}

Status quantize_infer(const Tensor& floats, DType codes, bool by_block, Tensor* out_codes,
                      Tensor* out_scale) {
  LB_TRY(check_floats("quantize_rows", floats));
  LB_TRY(check_code_dtype("quantize_rows", codes));
  const int64_t shape[2] = {floats.shape[0], ceil_div(floats.shape[1], kScaleBlock)};
  *out_codes = make_tensor(nullptr, codes, floats.device, floats.shape, 2);
  *out_scale = make_tensor(nullptr, DType::f32, floats.device, shape, by_block ? 2 : 1);
  return ok();
}

Status quantize_check(const QuantizeArgs& args) {
  const char* op = args.inverse ? "dequantize_rows" : "quantize_rows";
  const Tensor &floats = args.floats, &codes = args.codes, &scale = args.scale;
  LB_TRY(check_floats(op, floats));
  if (!present(codes)) return error(Code::argument, "%s: codes is missing", op);
  if (!present(scale)) return error(Code::argument, "%s: scale is missing", op);
  LB_TRY(check_code_dtype(op, codes.dtype));
  if (scale.dtype != DType::f32) {
    return error(Code::dtype, "%s: expected scale of f32 but got %s", op, dtype_name(scale.dtype));
  }
  if (!same_shape(codes, floats)) {
    return error(Code::shape, "%s: expected codes of shape %s but got %s", op,
                 shape_text(floats).text, shape_text(codes).text);
  }
  const int64_t m = floats.shape[0], blocks = ceil_div(floats.shape[1], kScaleBlock);
  const bool by_row = scale.rank == 1 && scale.shape[0] == m;
  const bool by_block = scale.rank == 2 && scale.shape[0] == m && scale.shape[1] == blocks;
  if (!by_row && !by_block) {
    return error(Code::shape, "%s: expected scale of shape [%lld] or [%lld, %lld] but got %s", op,
                 ll(m), ll(m), ll(blocks), shape_text(scale).text);
  }
  const struct {
    const char* name;
    const Tensor* tensor;
    bool written;
  } tensors[] = {{args.inverse ? "out" : "x", &floats, args.inverse},
                 {"codes", &codes, !args.inverse},
                 {"scale", &scale, !args.inverse}};
  for (const auto& t : tensors) {
    const Tensor& view = *t.tensor;
    if (!same_device(view.device, floats.device)) {
      return error(Code::device, "%s: expected %s on the device of %s but it is on another one", op,
                   t.name, tensors[0].name);
    }
    if (view.rank == 2 && !rows_contiguous(view)) {
      return error(Code::strides,
                   "%s: expected %s with contiguous rows but got a view of stride %lld along its "
                   "last dimension",
                   op, t.name, ll(view.strides[1]));
    }
    const int64_t width = view.rank == 2 ? view.shape[1] : 1;
    if (t.written && view.shape[0] > 1 && view.strides[0] < width) {
      return error(Code::strides, "%s: expected rows of %s apart but its row stride is %lld", op,
                   t.name, ll(view.strides[0]));
    }
  }
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < i; ++j) {
      if (!tensors[i].written && !tensors[j].written) continue;
      const uint8_t* a = static_cast<const uint8_t*>(tensors[i].tensor->data);
      const uint8_t* b = static_cast<const uint8_t*>(tensors[j].tensor->data);
      if (a < b + span_bytes(*tensors[j].tensor) && b < a + span_bytes(*tensors[i].tensor)) {
        return error(Code::argument, "%s: %s shares memory with %s", op, tensors[i].name,
                     tensors[j].name);
      }
    }
  }
  return ok();
}

static bool fits(const QuantizeArgs& args, const QuantizeSpec& spec) {
  return has(spec.floats, args.floats.dtype) && has(spec.codes, args.codes.dtype);
}

Status quantize_select(const QuantizeArgs& args, const Choice& choice, const QuantizeKernel** row) {
  const QuantizeTable table = quantize_table();
  return select_row(table.rows, table.count, choice, fits, args, "quantize_rows", row);
}

size_t quantize_workspace(const QuantizeArgs& args, const QuantizeKernel& row, int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

Status quantize_run(const QuantizeArgs& args, const QuantizeKernel& row, const Ctx& ctx) {
  if (args.codes.shape[0] == 0) return ok();
  return row.run(args, ctx);
}

}  // namespace lowbit
