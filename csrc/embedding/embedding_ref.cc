// embedding_ref: rows of a table by number, the oracle of every kernel.
//
// Shapes    all of embedding.h.
// Layout    any strides that the contract allows.
// Bound     arithmetic: one element at a time.
// Method    each element by way of f32, which holds all three dtypes exactly.
// Source    the formula in embedding.h.
#include "csrc/base/rows.h"
#include "csrc/base/threads.h"
#include "csrc/embedding/embedding.h"

namespace lowbit {
namespace {

Status run(const EmbeddingArgs& args, const Ctx& ctx) {
  const EmbeddingArgs* a = &args;
  const Rows ids = elements_of(args.ids), out = rows_of(args.out);
  parallel_for(ctx.pool, out.count, row_grain(out.length, 4096),
               [=](int64_t begin, int64_t end, int) {
                 for (int64_t r = begin; r < end; ++r) {
                   const int64_t id = static_cast<const int32_t*>(a->ids.data)[row_offset(ids, r)];
                   const int64_t from = id * a->table.strides[0], to = row_offset(out, r);
                   for (int64_t i = 0; i < out.length; ++i) {
                     store_f32(a->out.data, a->out.dtype, to + i,
                               load_f32(a->table.data, a->table.dtype, from + i));
                   }
                 }
               });
  return ok();
}

}  // namespace

extern const EmbeddingKernel embedding_ref;
const EmbeddingKernel embedding_ref = {"embedding_ref", kArchCpu, {kFloats}, nullptr, run};

}  // namespace lowbit
