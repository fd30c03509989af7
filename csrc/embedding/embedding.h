// embedding: rows of a table by number. out[..., :] = table[ids[...], :]
//
//   table  [rows, D]; f32, f16 or bf16; contiguous last dimension, any stride between rows
//   ids    i32, up to 4 dimensions, any strides
//   out    [the shape of ids, D]; f32, f16 or bf16, rounded to nearest even where that is narrower
//          than table; contiguous last dimension, no memory shared with table or ids
//
// An id below 0 or from `rows` on is found when the op runs, which then writes nothing.
#pragma once

#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"

namespace lowbit {

struct EmbeddingArgs {
  Tensor table, ids, out;
};

struct EmbeddingSpec {
  DTypeSet dtypes;  // of table and out
};

using EmbeddingKernel = Kernel<EmbeddingArgs, EmbeddingSpec>;
struct EmbeddingTable {
  const EmbeddingKernel* const* rows;
  int count;
};
EmbeddingTable embedding_table();

Status embedding_infer(const EmbeddingArgs& args, Tensor* out);
Status embedding_check(const EmbeddingArgs& args);
Status embedding_select(const EmbeddingArgs& args, const Choice& choice,
                        const EmbeddingKernel** row);
size_t embedding_workspace(const EmbeddingArgs& args, const EmbeddingKernel& row, int threads);
// Why the id at `index` of ids, in row-major order, is refused.
Status embedding_blame(const EmbeddingArgs& args, int64_t index, int32_t id);
// Checks the ids, then runs the row; on CUDA the row's kernel checks them.
Status embedding_run(const EmbeddingArgs& args, const EmbeddingKernel& row, const Ctx& ctx);

}  // namespace lowbit
