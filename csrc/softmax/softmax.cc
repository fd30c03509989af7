// softmax, argmax, cross_entropy: check, choice and run. Built without ISA flags.
#include "csrc/softmax/softmax.h"

#include <cmath>
#include <initializer_list>

#include "csrc/base/check.h"
#include "csrc/base/rows.h"
#include "csrc/base/select.h"

namespace lowbit {

#define KERNEL(name) extern const SoftmaxKernel name;
#include "csrc/softmax/kernels.inc"
#undef KERNEL

static const SoftmaxKernel* const kRows[] = {
#define KERNEL(name) &name,
#include "csrc/softmax/kernels.inc"
#undef KERNEL
};

SoftmaxTable softmax_table() {
  const RowList<SoftmaxKernel> all = all_rows("softmax", kRows);
  return {all.rows, all.count};
}

static const char* x_name(RowFunction f) {
  return f == RowFunction::cross_entropy ? "logits" : "x";
}

Status softmax_infer(const SoftmaxArgs& a, Tensor* out) {
  const char* op = softmax_op(a.function);
  const Named x = {x_name(a.function), &a.x};
  LB_TRY(check_present(op, x));
  LB_TRY(check_dtype(op, x, kFloats));
  if (a.x.rank < 1) {
    return error(Code::shape, "%s: expected %s of at least one dimension but got []", op, x.name);
  }
  if (a.function == RowFunction::softmax) {
    *out = make_tensor(nullptr, a.x.dtype, a.x.device, a.x.shape, a.x.rank);
    return ok();
  }
  if (a.x.shape[a.x.rank - 1] < 1) {
    return error(Code::shape, "%s: expected %s with at least one class but got %s", op, x.name,
                 shape_text(a.x).text);
  }
  // Indices are i32.
  if (a.x.shape[a.x.rank - 1] > INT32_MAX) {
    return error(Code::shape, "%s: expected %s with fewer than 2^31 classes but got %s", op, x.name,
                 shape_text(a.x).text);
  }
  const DType dtype = a.function == RowFunction::argmax ? DType::i32 : DType::f32;
  *out = make_tensor(nullptr, dtype, a.x.device, a.x.shape, a.x.rank - 1);
  return ok();
}

Status softmax_check(const SoftmaxArgs& a) {
  const char* op = softmax_op(a.function);
  const Named x = {x_name(a.function), &a.x}, targets = {"targets", &a.targets};
  const Named out = {"out", &a.out};
  Tensor expected;
  LB_TRY(softmax_infer(a, &expected));
  LB_TRY(check_present(op, out));
  LB_TRY(check_rows(op, x));
  if (a.function == RowFunction::softmax) {
    if (!std::isfinite(a.scale)) {
      return error(Code::argument, "%s: expected a finite scale but got %g", op,
                   static_cast<double>(a.scale));
    }
    LB_TRY(check_dtype(op, out, kFloats));
    LB_TRY(check_shape(op, out, expected, "as x"));
    LB_TRY(check_rows(op, out));
    LB_TRY(check_apart_or_same(op, out, x));
  } else {
    LB_TRY(check_dtype(op, out, bit(expected.dtype)));
    LB_TRY(check_shape(op, out, expected,
                       a.function == RowFunction::argmax ? "x without its last dimension"
                                                         : "logits without their last dimension"));
    LB_TRY(check_apart(op, out, x));
  }
  if (a.function == RowFunction::cross_entropy) {
    LB_TRY(check_present(op, targets));
    LB_TRY(check_dtype(op, targets, bit(DType::i32)));
    LB_TRY(check_shape(op, targets, expected, "logits without their last dimension"));
    LB_TRY(check_apart(op, out, targets));
  }
  for (const Named& n : {targets, out}) LB_TRY(check_same_device(op, n, x));
  return check_injective(op, out);
}

static bool fits(const SoftmaxArgs& a, const SoftmaxSpec& spec) {
  return has(spec.dtypes, a.x.dtype) &&
         (a.function != RowFunction::softmax || has(spec.dtypes, a.out.dtype));
}

Status softmax_select(const SoftmaxArgs& args, const Choice& choice, const SoftmaxKernel** row) {
  const SoftmaxTable table = softmax_table();
  return select_row(table.rows, table.count, choice, fits, args, softmax_op(args.function), row);
}

size_t softmax_workspace(const SoftmaxArgs& args, const SoftmaxKernel& row, int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

Status softmax_blame(const SoftmaxArgs& args, int64_t index, int32_t target) {
  return error(Code::argument, "crossEntropy: targets[%s] = %d is none of the %lld classes",
               index_text(args.targets, index).text, target, ll(args.x.shape[args.x.rank - 1]));
}

static Status check_targets(const SoftmaxArgs& args) {
  const Rows targets = elements_of(args.targets);
  const auto* target = static_cast<const int32_t*>(args.targets.data);
  const int64_t classes = args.x.shape[args.x.rank - 1];
  for (int64_t i = 0; i < targets.count; ++i) {
    const int32_t found = target[row_offset(targets, i)];
    if (found >= 0 && found < classes) continue;
    return softmax_blame(args, i, found);
  }
  return ok();
}

Status softmax_run(const SoftmaxArgs& args, const SoftmaxKernel& row, const Ctx& ctx) {
  if (numel(args.x) == 0) return ok();
  const bool checks = args.function == RowFunction::cross_entropy && ctx.check == nullptr;
  if (checks) LB_TRY(check_targets(args));
  return row.run(args, ctx);
}

}  // namespace lowbit
