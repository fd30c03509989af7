// rope: check, choice and run. Built without ISA flags.
#include "csrc/rope/rope.h"

#include <initializer_list>

#include "csrc/base/check.h"
#include "csrc/base/rows.h"
#include "csrc/base/select.h"

namespace lowbit {

#define KERNEL(name) extern const RopeKernel name;
#include "csrc/rope/kernels.inc"
#undef KERNEL

static const RopeKernel* const kRows[] = {
#define KERNEL(name) &name,
#include "csrc/rope/kernels.inc"
#undef KERNEL
};

RopeTable rope_table() {
  const RowList<RopeKernel> all = all_rows("rope", kRows);
  return {all.rows, all.count};
}

static Status check_x(const Tensor& x) {
  LB_TRY(check_present("rope", {"x", &x}));
  LB_TRY(check_dtype("rope", {"x", &x}, kFloats));
  if (x.rank == 3 || x.rank == 4) return ok();
  return error(Code::shape,
               "rope: expected x as [tokens, heads, headDim] or [batch, seq, heads, headDim] but "
               "got %s",
               shape_text(x).text);
}

Status rope_infer(const RopeArgs& a, Tensor* out) {
  LB_TRY(check_x(a.x));
  *out = make_tensor(nullptr, a.x.dtype, a.x.device, a.x.shape, a.x.rank);
  return ok();
}

static Status check_tables(const RopeArgs& a) {
  const Named cos = {"cos", &a.cos}, sin = {"sin", &a.sin};
  for (const Named& n : {cos, sin}) {
    LB_TRY(check_present("rope", n));
    LB_TRY(check_dtype("rope", n, bit(DType::f32)));
    LB_TRY(check_rows("rope", n));
  }
  const int64_t head_dim = a.x.shape[a.x.rank - 1];
  if (a.cos.rank != 2 || a.cos.shape[1] < 1 || 2 * a.cos.shape[1] > head_dim) {
    return error(Code::shape,
                 "rope: expected cos of shape [positions, rotaryDim / 2] with rotaryDim from 2 to "
                 "headDim = %lld but got %s",
                 ll(head_dim), shape_text(a.cos).text);
  }
  return check_shape("rope", sin, a.cos, "as cos");
}

static Status check_positions(const RopeArgs& a) {
  const Tensor& p = a.positions;
  const bool batched = a.x.rank == 4;
  const int64_t seq = a.x.shape[batched ? 1 : 0];
  if (!present(p)) {
    if (a.offset >= 0 && a.offset <= a.cos.shape[0] - seq) return ok();
    return error(Code::argument,
                 "rope: expected positions within the tables, 0 to %lld, but got %lld to %lld",
                 ll(a.cos.shape[0] - 1), ll(a.offset), ll(a.offset + seq - 1));
  }
  LB_TRY(check_dtype("rope", {"positions", &p}, bit(DType::i32)));
  if (p.rank == 1 && p.shape[0] == seq) return ok();
  if (batched && p.rank == 2 && p.shape[0] == a.x.shape[0] && p.shape[1] == seq) return ok();
  if (batched) {
    return error(Code::shape,
                 "rope: expected positions of shape [%lld] or [%lld, %lld] (seq, or batch and seq, "
                 "of x) but got %s",
                 ll(seq), ll(a.x.shape[0]), ll(seq), shape_text(p).text);
  }
  return error(Code::shape, "rope: expected positions of shape [%lld] (the tokens of x) but got %s",
               ll(seq), shape_text(p).text);
}

Status rope_check(const RopeArgs& a) {
  const Named x = {"x", &a.x}, out = {"out", &a.out}, positions = {"positions", &a.positions};
  const Named cos = {"cos", &a.cos}, sin = {"sin", &a.sin};
  LB_TRY(check_x(a.x));
  LB_TRY(check_present("rope", out));
  LB_TRY(check_dtype("rope", out, kFloats));
  LB_TRY(check_shape("rope", out, a.x, "as x"));
  LB_TRY(check_tables(a));
  LB_TRY(check_positions(a));
  for (const Named& n : {x, out}) LB_TRY(check_rows("rope", n));
  for (const Named& n : {out, cos, sin, positions}) LB_TRY(check_same_device("rope", n, x));
  LB_TRY(check_injective("rope", out));
  LB_TRY(check_apart_or_same("rope", out, x));
  for (const Named& n : {cos, sin, positions}) LB_TRY(check_apart("rope", out, n));
  return ok();
}

static bool fits(const RopeArgs& a, const RopeSpec& spec) {
  return has(spec.dtypes, a.x.dtype) && has(spec.dtypes, a.out.dtype);
}

Status rope_select(const RopeArgs& args, const Choice& choice, const RopeKernel** row) {
  const RopeTable table = rope_table();
  return select_row(table.rows, table.count, choice, fits, args, "rope", row);
}

size_t rope_workspace(const RopeArgs& args, const RopeKernel& row, int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

Status rope_blame(const RopeArgs& args, int64_t index, int32_t position) {
  return error(Code::argument, "rope: positions[%s] = %d is outside the tables of %lld positions",
               index_text(args.positions, index).text, position, ll(args.cos.shape[0]));
}

static Status check_values(const RopeArgs& args) {
  const Rows tokens = elements_of(args.positions);
  const auto* position = static_cast<const int32_t*>(args.positions.data);
  for (int64_t i = 0; i < tokens.count; ++i) {
    const int32_t found = position[row_offset(tokens, i)];
    if (found >= 0 && found < args.cos.shape[0]) continue;
    return rope_blame(args, i, found);
  }
  return ok();
}

Status rope_run(const RopeArgs& args, const RopeKernel& row, const Ctx& ctx) {
  if (numel(args.x) == 0) return ok();
  if (present(args.positions) && ctx.check == nullptr) LB_TRY(check_values(args));
  return row.run(args, ctx);
}

}  // namespace lowbit
