// embedding_avx2: rows of a table by number, for every dtype; see embedding.h.
//
// Shapes    all of embedding.h.
// Layout    any strides that the contract allows.
// Bound     memory: a row of the table read and one of out written for each id.
// Method    body.h: memcpy, or the conversions of simd/convert.h.
// Source    embedding.h.
// Measured  EPYC (Zen 4), one thread, 2048 rows of 4096 f32: 2567 us, 58 % of copy; see NOTES.md.
#include "csrc/embedding/body.h"

namespace lowbit {
namespace {

Status run(const EmbeddingArgs& args, const Ctx& ctx) { return embedding_body(args, ctx); }

}  // namespace

extern const EmbeddingKernel embedding_avx2;
const EmbeddingKernel embedding_avx2 = {"embedding_avx2", kArchAvx2, {kFloats}, nullptr, run};

}  // namespace lowbit
