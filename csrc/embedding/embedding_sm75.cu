// embedding_sm75: rows of a table by number.
//
// Shapes    all of embedding.h.
// Layout    any strides that the contract allows.
// Bound     memory: each row that is asked for, and out, once.
// Method    of one dtype: rows move as 16-byte words, all of a thread's under way at a time
//           (cuda/held.cuh). Else eight neighbouring columns a thread. An id out of range is
//           reported, its row left alone.
// Source    the formula in embedding.h.
// Measured  NOTES.md.
#include "csrc/cuda/held.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/embedding/embedding.h"

namespace lowbit {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    embedding(const __grid_constant__ EmbeddingArgs args, const __grid_constant__ Rows ids,
              const __grid_constant__ Rows out, unsigned long long* check) {
  const int64_t columns = args.table.shape[1];
  const int64_t runs = columns == 0 ? 1 : (columns + kEight - 1) / kEight;
  const int64_t total = ids.count * runs, stride = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < total; at += stride) {
    const int64_t row = at / runs, first = (at - row * runs) * kEight;
    const int32_t id = static_cast<const int32_t*>(args.ids.data)[row_offset(ids, row)];
    if (id < 0 || id >= args.table.shape[0]) {
      if (first == 0) report(check, row, id);
      continue;
    }
    if (columns == 0) continue;
    const int count = columns - first < kEight ? static_cast<int>(columns - first) : kEight;
    float v[kEight];
    load_eight(args.table.data, args.table.dtype, id * args.table.strides[0] + first, count, v);
    store_eight(args.out.data, args.out.dtype, row_offset(out, row) + first, count, v);
  }
}

// Lengths in words of 16 bytes.
struct Words {
  int64_t rows;
  int words;                // of a row
  int64_t ids, table, out;  // from one row to the next
};

template <int kWords>
__global__ void __launch_bounds__(kHeldMost)
    embedding_held(const __grid_constant__ EmbeddingArgs a, const __grid_constant__ Words h,
                   unsigned long long* check) {
  wait_for_others();
  const int64_t row = held_row();
  if (row >= h.rows) return;
  const int32_t id = static_cast<const int32_t*>(a.ids.data)[row * h.ids];
  if (id < 0 || id >= a.table.shape[0]) {
    if (threadIdx.x == 0) report(check, row, id);
    return;
  }
  uint4 x[kWords];
  each_held<kWords>(h.words,
                    [&](int w, int at) { x[w] = word_at(a.table.data, id * h.table + at); });
  each_held<kWords>(h.words, [&](int w, int at) { word_at(a.out.data, row * h.out + at) = x[w]; });
}

Status run(const EmbeddingArgs& args, const Ctx& ctx) {
  const Rows ids = elements_of(args.ids), out = rows_of(args.out);
  if (ids.count == 0) return ok();
  const int64_t per_word = 16 / dtype_bytes(args.out.dtype);
  if (const Held shape = held(ids.count, out.length / per_word);
      shape.words > 0 && args.table.dtype == args.out.dtype && ids.rank <= 1 && out.rank <= 1 &&
      in_eights(args.table) && in_eights(args.out)) {
    const Words h = {ids.count, static_cast<int>(out.length / per_word),
                     ids.rank > 0 ? ids.strides[0] : 0, args.table.strides[0] / per_word,
                     out.rank > 0 ? out.strides[0] / per_word : 0};
    Status status = ok();
    with_held(shape, [&](auto words) {
      status = launch(ctx, embedding_held<decltype(words)::value>, shape.blocks, shape.block, 0,
                      args, h, ctx.check);
    });
    return status;
  }
  const int64_t runs = (args.table.shape[1] + kEight - 1) / kEight;
  const unsigned blocks =
      grid_for(ids.count * (runs > 0 ? runs : 1), kThreads, int64_t{ctx.multiprocessors} * 64);
  embedding<<<blocks, kThreads, 0, static_cast<cudaStream_t>(ctx.stream)>>>(args, ids, out,
                                                                            ctx.check);
  return launched();
}

}  // namespace

extern const EmbeddingKernel embedding_sm75;
const EmbeddingKernel embedding_sm75 = {"embedding_sm75", kArchSm75, {kFloats}, nullptr, run};

}  // namespace lowbit
