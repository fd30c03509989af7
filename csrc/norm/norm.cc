// norm: check, choice and run. Built without ISA flags.
#include "csrc/norm/norm.h"

#include <cmath>
#include <initializer_list>

#include "csrc/base/check.h"
#include "csrc/base/select.h"

namespace lowbit {

#define KERNEL(name) extern const NormKernel name;
#include "csrc/norm/kernels.inc"
#undef KERNEL

static const NormKernel* const kRows[] = {
#define KERNEL(name) &name,
#include "csrc/norm/kernels.inc"
#undef KERNEL
};

NormTable norm_table() {
  const RowList<NormKernel> all = all_rows("norm", kRows);
  return {all.rows, all.count};
}

static Status check_x(const char* op, const Tensor& x) {
  LB_TRY(check_present(op, {"x", &x}));
  LB_TRY(check_dtype(op, {"x", &x}, kFloats));
  if (x.rank >= 1) return ok();
  return error(Code::shape, "%s: expected x of at least one dimension but got []", op);
}

Status norm_infer(const NormArgs& a, Tensor* out) {
  LB_TRY(check_x(norm_op(a.kind), a.x));
  *out = make_tensor(nullptr, a.x.dtype, a.x.device, a.x.shape, a.x.rank);
  return ok();
}

Status norm_check(const NormArgs& a) {
  const char* op = norm_op(a.kind);
  const Named x = {"x", &a.x}, out = {"out", &a.out}, residual = {"residual", &a.residual};
  const Named residual_out = {"residualOut", &a.residual_out};
  const Named weight = {"weight", &a.weight}, bias = {"bias", &a.bias};
  LB_TRY(check_x(op, a.x));
  LB_TRY(check_present(op, out));
  if (a.kind == NormKind::rms && present(a.bias)) {
    return error(Code::argument, "%s: bias goes with layerNorm", op);
  }
  if (present(a.residual_out) && !present(a.residual)) {
    return error(Code::argument, "%s: residualOut was given without residual", op);
  }
  if (!std::isfinite(a.eps) || a.eps < 0) {
    return error(Code::argument, "%s: expected a finite eps >= 0 but got %g", op, a.eps);
  }
  for (const Named& n : {out, residual, residual_out}) LB_TRY(check_shape(op, n, a.x, "as x"));
  for (const Named& n : {weight, bias}) {
    LB_TRY(check_vector(op, n, a.x.shape[a.x.rank - 1], "the columns of x"));
  }
  for (const Named& n : {x, weight, bias, residual, out, residual_out}) {
    LB_TRY(check_dtype(op, n, kFloats));
    LB_TRY(check_rows(op, n));
    LB_TRY(check_same_device(op, n, x));
  }
  for (const Named& written : {out, residual_out}) {
    LB_TRY(check_injective(op, written));
    for (const Named& n : {x, residual}) LB_TRY(check_apart_or_same(op, written, n));
    for (const Named& n : {weight, bias}) LB_TRY(check_apart(op, written, n));
  }
  return check_apart(op, residual_out, out);
}

static bool fits(const NormArgs& a, const NormSpec& spec) {
  for (const Tensor* t : {&a.x, &a.weight, &a.bias, &a.residual, &a.out, &a.residual_out}) {
    if (present(*t) && !has(spec.dtypes, t->dtype)) return false;
  }
  return true;
}

Status norm_select(const NormArgs& args, const Choice& choice, const NormKernel** row) {
  const NormTable table = norm_table();
  return select_row(table.rows, table.count, choice, fits, args, norm_op(args.kind), row);
}

size_t norm_workspace(const NormArgs& args, const NormKernel& row, int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

Status norm_run(const NormArgs& args, const NormKernel& row, const Ctx& ctx) {
  return numel(args.x) == 0 ? ok() : row.run(args, ctx);
}

}  // namespace lowbit
