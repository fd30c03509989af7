// embedding: check, choice and run. Built without ISA flags.
#include "csrc/embedding/embedding.h"

#include <initializer_list>

#include "csrc/base/check.h"
#include "csrc/base/rows.h"
#include "csrc/base/select.h"

namespace lowbit {

#define KERNEL(name) extern const EmbeddingKernel name;
#include "csrc/embedding/kernels.inc"
#undef KERNEL

static const EmbeddingKernel* const kRows[] = {
#define KERNEL(name) &name,
#include "csrc/embedding/kernels.inc"
#undef KERNEL
};

EmbeddingTable embedding_table() {
  const RowList<EmbeddingKernel> all = all_rows("embedding", kRows);
  return {all.rows, all.count};
}

Status embedding_infer(const EmbeddingArgs& a, Tensor* out) {
  LB_TRY(check_present("embedding", {"table", &a.table}));
  LB_TRY(check_present("embedding", {"ids", &a.ids}));
  LB_TRY(check_dtype("embedding", {"table", &a.table}, kFloats));
  LB_TRY(check_dtype("embedding", {"ids", &a.ids}, bit(DType::i32)));
  if (a.table.rank != 2) {
    return error(Code::shape, "embedding: expected table as [rows, columns] but got %s",
                 shape_text(a.table).text);
  }
  if (a.ids.rank >= kMaxRank) {
    return error(Code::shape, "embedding: expected ids of at most %d dimensions but got %s",
                 kMaxRank - 1, shape_text(a.ids).text);
  }
  int64_t shape[kMaxRank];
  for (int i = 0; i < a.ids.rank; ++i) shape[i] = a.ids.shape[i];
  shape[a.ids.rank] = a.table.shape[1];
  *out = make_tensor(nullptr, a.table.dtype, a.table.device, shape, a.ids.rank + 1);
  return ok();
}

Status embedding_check(const EmbeddingArgs& a) {
  const Named table = {"table", &a.table}, ids = {"ids", &a.ids}, out = {"out", &a.out};
  Tensor expected;
  LB_TRY(embedding_infer(a, &expected));
  LB_TRY(check_present("embedding", out));
  LB_TRY(check_dtype("embedding", out, kFloats));
  LB_TRY(check_shape("embedding", out, expected, "ids, then the columns of table"));
  for (const Named& n : {table, out}) LB_TRY(check_rows("embedding", n));
  for (const Named& n : {ids, out}) LB_TRY(check_same_device("embedding", n, table));
  LB_TRY(check_injective("embedding", out));
  for (const Named& n : {table, ids}) LB_TRY(check_apart("embedding", out, n));
  return ok();
}

static bool fits(const EmbeddingArgs& a, const EmbeddingSpec& spec) {
  return has(spec.dtypes, a.table.dtype) && has(spec.dtypes, a.out.dtype);
}

Status embedding_select(const EmbeddingArgs& args, const Choice& choice,
                        const EmbeddingKernel** row) {
  const EmbeddingTable table = embedding_table();
  return select_row(table.rows, table.count, choice, fits, args, "embedding", row);
}

size_t embedding_workspace(const EmbeddingArgs& args, const EmbeddingKernel& row, int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

Status embedding_blame(const EmbeddingArgs& args, int64_t index, int32_t id) {
  return error(Code::argument, "embedding: ids[%s] = %d is outside the table of %lld rows",
               index_text(args.ids, index).text, id, ll(args.table.shape[0]));
}

static Status check_ids(const EmbeddingArgs& args) {
  const Rows ids = elements_of(args.ids);
  const auto* id = static_cast<const int32_t*>(args.ids.data);
  for (int64_t i = 0; i < ids.count; ++i) {
    const int32_t found = id[row_offset(ids, i)];
    if (found >= 0 && found < args.table.shape[0]) continue;
    return embedding_blame(args, i, found);
  }
  return ok();
}

Status embedding_run(const EmbeddingArgs& args, const EmbeddingKernel& row, const Ctx& ctx) {
  const bool checks = ctx.check == nullptr;
  if (checks) LB_TRY(check_ids(args));
  return numel(args.out) == 0 && checks ? ok() : row.run(args, ctx);
}

}  // namespace lowbit
