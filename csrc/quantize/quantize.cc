// The table of the rows of quantize_rows and dequantize_rows, the check, and the call.
#include "csrc/quantize/quantize.h"

#include <initializer_list>

#include "csrc/base/check.h"
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

QuantizeTable quantize_table() {
  const RowList<QuantizeKernel> all = all_rows("quantize", kRows);
  return {all.rows, all.count};
}

static Status check_matrix(const char* op, const Named& n, DTypeSet dtypes) {
  LB_TRY(check_present(op, n));
  LB_TRY(check_dtype(op, n, dtypes));
  if (n.tensor->rank == 2) return ok();
  return error(Code::shape, "%s: expected %s of shape [M, K] but got %s", op, n.name,
               shape_text(*n.tensor).text);
}

Status quantize_infer(const Tensor& floats, DType codes, bool by_block, Tensor* out_codes,
                      Tensor* out_scale) {
  LB_TRY(check_matrix("quantizeRows", {"x", &floats}, kFloats));
  const int64_t shape[2] = {floats.shape[0], ceil_div(floats.shape[1], kScaleBlock)};
  *out_codes = make_tensor(nullptr, codes, floats.device, floats.shape, 2);
  *out_scale = make_tensor(nullptr, DType::f32, floats.device, shape, by_block ? 2 : 1);
  return check_dtype("quantizeRows", {"out.codes", out_codes}, kCodeDTypes);
}

Status quantize_check(const QuantizeArgs& a) {
  const char* op = a.inverse ? "dequantizeRows" : "quantizeRows";
  const Named floats = {a.inverse ? "out" : "x", &a.floats};
  const Named codes = {a.inverse ? "x.codes" : "out.codes", &a.codes};
  const Named scale = {a.inverse ? "x.scales" : "out.scales", &a.scale};
  LB_TRY(check_matrix(op, floats, kFloats));
  LB_TRY(check_matrix(op, codes, kCodeDTypes));
  LB_TRY(check_present(op, scale));
  LB_TRY(check_dtype(op, scale, bit(DType::f32)));
  LB_TRY(a.inverse ? check_shape(op, floats, a.codes, "as x.codes")
                   : check_shape(op, codes, a.floats, "as x"));
  const int64_t m = a.codes.shape[0], blocks = ceil_div(a.codes.shape[1], kScaleBlock);
  const bool by_row = a.scale.rank == 1 && a.scale.shape[0] == m;
  const bool by_block = a.scale.rank == 2 && a.scale.shape[0] == m && a.scale.shape[1] == blocks;
  if (!by_row && !by_block) {
    return error(Code::shape, "%s: expected %s of shape [%lld] or [%lld, %lld] but got %s", op,
                 scale.name, ll(m), ll(m), ll(blocks), shape_text(a.scale).text);
  }
  for (const Named& n : {floats, codes, scale}) {
    LB_TRY(check_rows(op, n));
    LB_TRY(check_same_device(op, n, a.inverse ? codes : floats));
  }
  if (a.inverse) {
    LB_TRY(check_injective(op, floats));
    for (const Named& n : {codes, scale}) LB_TRY(check_apart(op, floats, n));
    return ok();
  }
  for (const Named& n : {codes, scale}) {
    LB_TRY(check_injective(op, n));
    LB_TRY(check_apart(op, n, floats));
  }
  return check_apart(op, codes, scale);
}

static bool fits(const QuantizeArgs& args, const QuantizeSpec& spec) {
  return has(spec.floats, args.floats.dtype) && has(spec.codes, args.codes.dtype);
}

Status quantize_select(const QuantizeArgs& args, const Choice& choice, const QuantizeKernel** row) {
  const QuantizeTable table = quantize_table();
  return select_row(table.rows, table.count, choice, fits, args,
                    args.inverse ? "dequantizeRows" : "quantizeRows", row);
}

size_t quantize_workspace(const QuantizeArgs& args, const QuantizeKernel& row, int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

Status quantize_run(const QuantizeArgs& args, const QuantizeKernel& row, const Ctx& ctx) {
  if (args.codes.shape[0] == 0) return ok();
  return row.run(args, ctx);
}

}  // namespace lowbit
