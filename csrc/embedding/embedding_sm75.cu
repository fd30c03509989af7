// embedding_sm75: rows of a table by number.
//
// Shapes    all of embedding.h.
// Layout    any strides that the contract allows.
// Bound     memory: each row that is asked for, and out, once.
// Method    of one dtype: rows move as 16-byte words, one row a block, four words of a thread under
//           way at a time. Else eight neighbouring columns a thread. An id out of range is
//           reported, its row left alone.
// Source    the formula in embedding.h.
// Measured  NOTES.md.
#include "csrc/cuda/eight.cuh"
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

constexpr int kCopyThreads = 128, kCopies = 4;

// Lengths in words of 16 bytes.
struct Steps {
  int64_t ids, table, out, length;
};

__global__ void __launch_bounds__(kCopyThreads)
    embedding_words(const __grid_constant__ EmbeddingArgs args, Steps steps,
                    unsigned long long* check) {
  wait_for_others();
  const int64_t row = blockIdx.x;
  const int32_t id = static_cast<const int32_t*>(args.ids.data)[row * steps.ids];
  if (id < 0 || id >= args.table.shape[0]) {
    if (threadIdx.x == 0) report(check, row, id);
    return;
  }
  const uint4* from = static_cast<const uint4*>(args.table.data) + id * steps.table;
  uint4* to = static_cast<uint4*>(args.out.data) + row * steps.out;
  for (int64_t first = threadIdx.x; first < steps.length; first += kCopies * kCopyThreads) {
    uint4 words[kCopies];
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (first + i * kCopyThreads < steps.length) words[i] = from[first + i * kCopyThreads];
    }
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (first + i * kCopyThreads < steps.length) to[first + i * kCopyThreads] = words[i];
    }
  }
}

Status run(const EmbeddingArgs& args, const Ctx& ctx) {
  const Rows ids = elements_of(args.ids), out = rows_of(args.out);
  if (ids.count == 0) return ok();
  if (args.table.dtype == args.out.dtype && ids.rank <= 1 && out.rank <= 1 &&
      ids.count <= INT32_MAX && in_eights(args.table) && in_eights(args.out) && out.length > 0) {
    const int64_t word = 16 / dtype_bytes(args.out.dtype);  // elements
    const Steps steps = {ids.rank > 0 ? ids.strides[0] : 0, args.table.strides[0] / word,
                         out.rank > 0 ? out.strides[0] / word : 0, out.length / word};
    return launch(ctx, embedding_words, static_cast<unsigned>(ids.count), kCopyThreads, 0, args,
                  steps, ctx.check);
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
