// The loop of embedding, compiled once under the flags of each row's file.
#pragma once

#include "csrc/base/threads.h"
#include "csrc/embedding/embedding.h"
#include "csrc/simd/run.h"

namespace lowbit {

static inline Status embedding_body(const EmbeddingArgs& a, const Ctx& ctx) {
  const Rows ids = elements_of(a.ids), out = rows_of(a.out);
  const int32_t* id = static_cast<const int32_t*>(a.ids.data);
  // 16384 elements are 2 to 6 us, and rows of a table are seldom in cache.
  parallel_for(ctx.pool, out.count, row_grain(out.length, 16384),
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t r = begin; r < end; ++r) {
                   run_convert(a.out, row_offset(out, r), a.table,
                               id[row_offset(ids, r)] * a.table.strides[0], out.length);
                 }
               });
  return ok();
}

}  // namespace lowbit
