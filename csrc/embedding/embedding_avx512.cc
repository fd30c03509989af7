// embedding_avx512: rows of a table by number, for every dtype; see embedding.h.
//
// Shapes    all of embedding.h.
// Layout    any strides that the contract allows.
// Bound     memory: a row of the table read and one of out written for each id.
// Method    body.h: memcpy, or the conversions of simd/convert.h.
// Source    embedding.h.
// Measured  see NOTES.md.
#include "csrc/embedding/body.h"

namespace lowbit {
namespace {

Status run(const EmbeddingArgs& args, const Ctx& ctx) { return embedding_body(args, ctx); }

}  // namespace

extern const EmbeddingKernel embedding_avx512;
const EmbeddingKernel embedding_avx512 = {"embedding_avx512", kArchAvx512, {kFloats}, nullptr, run};

}  // namespace lowbit
