// embedding_sm75: rows of a table by number.
//
// Shapes    all of embedding.h.
// Layout    any strides that the contract allows.
// Bound     memory: each row that is asked for, and out, once.
// Method    eight neighbouring columns a thread. An id out of range is reported, its row left
// alone. Source    the formula in embedding.h. Measured  NOTES.md.
#include "csrc/cuda/elements.cuh"
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

Status run(const EmbeddingArgs& args, const Ctx& ctx) {
  const Rows ids = elements_of(args.ids), out = rows_of(args.out);
  if (ids.count == 0) return ok();
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
