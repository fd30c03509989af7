// copy: check, choice and run. Built without ISA flags.
#include "csrc/copy/copy.h"

#include "csrc/base/check.h"
#include "csrc/base/convert.h"
#include "csrc/base/select.h"

namespace lowbit {

#define KERNEL(name) extern const CopyKernel name;
#include "csrc/copy/kernels.inc"
#undef KERNEL

static const CopyKernel* const kRows[] = {
#define KERNEL(name) &name,
#include "csrc/copy/kernels.inc"
#undef KERNEL
};

CopyTable copy_table() {
  const RowList<CopyKernel> all = all_rows("copy", kRows);
  return {all.rows, all.count};
}

static Status check_pair(DType to, DType from) {
  if (convertible(to, from)) return ok();
  return error(Code::dtype, "copy: %s can't become %s; floats become floats, integers stay",
               dtype_name(from), dtype_name(to));
}

Status copy_infer(const CopyArgs& a, Tensor* out) {
  LB_TRY(check_present("copy", {"x", &a.x}));
  const DType dtype = a.dtype == DType::none ? a.x.dtype : a.dtype;
  LB_TRY(check_pair(dtype, a.x.dtype));
  *out = make_tensor(nullptr, dtype, a.x.device, a.x.shape, a.x.rank);
  return ok();
}

Status copy_check(const CopyArgs& a) {
  const Named x = {"x", &a.x}, out = {"out", &a.out};
  LB_TRY(check_present("copy", x));
  LB_TRY(check_present("copy", out));
  LB_TRY(check_shape("copy", out, a.x, "as x"));
  if (a.dtype != DType::none) LB_TRY(check_dtype("copy", out, bit(a.dtype)));
  LB_TRY(check_pair(a.out.dtype, a.x.dtype));
  LB_TRY(check_same_device("copy", out, x));
  LB_TRY(check_injective("copy", out));
  return check_apart_or_same("copy", out, x);
}

static bool fits(const CopyArgs& a, const CopySpec& spec) {
  return a.x.dtype == a.out.dtype || (has(spec.dtypes, a.x.dtype) && has(spec.dtypes, a.out.dtype));
}

Status copy_select(const CopyArgs& args, const Choice& choice, const CopyKernel** row) {
  const CopyTable table = copy_table();
  return select_row(table.rows, table.count, choice, fits, args, "copy", row);
}

size_t copy_workspace(const CopyArgs& args, const CopyKernel& row, int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

Status copy_run(const CopyArgs& args, const CopyKernel& row, const Ctx& ctx) {
  return numel(args.out) == 0 ? ok() : row.run(args, ctx);
}

}  // namespace lowbit
