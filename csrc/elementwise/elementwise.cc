// elementwise: check, choice and run. Built without ISA flags.
#include "csrc/elementwise/elementwise.h"

#include <initializer_list>

#include "csrc/base/check.h"
#include "csrc/base/select.h"

namespace lowbit {

#define KERNEL(name) extern const ElementwiseKernel name;
#include "csrc/elementwise/kernels.inc"
#undef KERNEL

static const ElementwiseKernel* const kRows[] = {
#define KERNEL(name) &name,
#include "csrc/elementwise/kernels.inc"
#undef KERNEL
};

ElementwiseTable elementwise_table() {
  const RowList<ElementwiseKernel> all = all_rows("elementwise", kRows);
  return {all.rows, all.count};
}

static Named first(const ElementwiseArgs& a) { return {is_gate(a.function) ? "gate" : "a", &a.a}; }
static Named second(const ElementwiseArgs& a) { return {is_gate(a.function) ? "up" : "b", &a.b}; }

Status elementwise_infer(const ElementwiseArgs& args, Tensor* out) {
  const char* op = elementwise_op(args.function);
  LB_TRY(check_present(op, first(args)));
  LB_TRY(check_dtype(op, first(args), kFloats));
  *out = make_tensor(nullptr, args.a.dtype, args.a.device, args.a.shape, args.a.rank);
  return ok();
}

static bool repeats_into(const Tensor& b, const Tensor& a) {
  if (b.rank > a.rank || (b.rank == 0) != (a.rank == 0)) return false;
  for (int i = 0; i < b.rank; ++i) {
    const int64_t size = a.shape[i + a.rank - b.rank];
    if (b.shape[i] != size && (b.shape[i] != 1 || i == b.rank - 1)) return false;
  }
  return true;
}

Status elementwise_check(const ElementwiseArgs& args) {
  const char* op = elementwise_op(args.function);
  const Named a = first(args), b = second(args), out = {"out", &args.out};
  for (const Named& n : {a, b, out}) {
    LB_TRY(check_present(op, n));
    LB_TRY(check_dtype(op, n, kFloats));
    LB_TRY(check_same_device(op, n, a));
  }
  if (is_gate(args.function)) {
    LB_TRY(check_shape(op, b, args.a, "as gate"));
  } else if (!repeats_into(args.b, args.a)) {
    return error(Code::shape,
                 "%s: expected b of the shape of a, %s, or of its last dimensions but got %s", op,
                 shape_text(args.a).text, shape_text(args.b).text);
  }
  LB_TRY(check_shape(op, out, args.a, is_gate(args.function) ? "as gate" : "as a"));
  for (const Named& n : {a, b, out}) LB_TRY(check_rows(op, n));
  LB_TRY(check_injective(op, out));
  for (const Named& n : {a, b}) LB_TRY(check_apart_or_same(op, out, n));
  return ok();
}

static bool fits(const ElementwiseArgs& args, const ElementwiseSpec& spec) {
  return has(spec.dtypes, args.a.dtype) && has(spec.dtypes, args.b.dtype) &&
         has(spec.dtypes, args.out.dtype);
}

Status elementwise_select(const ElementwiseArgs& args, const Choice& choice,
                          const ElementwiseKernel** row) {
  const ElementwiseTable table = elementwise_table();
  return select_row(table.rows, table.count, choice, fits, args, elementwise_op(args.function),
                    row);
}

size_t elementwise_workspace(const ElementwiseArgs& args, const ElementwiseKernel& row,
                             int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

Status elementwise_run(const ElementwiseArgs& args, const ElementwiseKernel& row, const Ctx& ctx) {
  return numel(args.out) == 0 ? ok() : row.run(args, ctx);
}

}  // namespace lowbit
