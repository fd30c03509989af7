// What the rows of Hopper share whose operands lie row-major as the tensor cores multiply them: x
// for the copy engine, and which kernel and tile serve a call.
#pragma once

#include "csrc/format/layout.h"
#include "csrc/linear/stream_sm90a.cuh"
#include "csrc/linear/x_rows_sm80.cuh"

namespace lowbit {
namespace {

// The time of a call in tiles of 128 by `cols`, in units of a column's products of one stage:
// whole waves of tiles, each with what a stage (16 columns) and the finish of a tile (8 stages)
// cost besides.
static inline int64_t gemm_cost(const GemmShape& s, int cols, int processors) {
  const int64_t tiles = ceil_div(s.m, 128) * ceil_div(s.n, cols);
  return ceil_div(tiles, processors) * (int64_t{s.k_blocks} * (cols + 16) + 8 * cols);
}

// Few rows of x stream w past; more go in tiles, as wide as whole waves of them suit.
template <class Mma>
static cudaError_t launch_dense(const Matrix& x, const Matrix& w, const Finish& f, int processors,
                                cudaStream_t stream) {
  if (f.m <= 16) return launch_tiles<Stream<Mma, 16>>(x, w, f, processors, stream);
  if (f.m <= 32) return launch_tiles<Stream<Mma, 32>>(x, w, f, processors, stream);
  if (f.m <= 64) return launch_tiles<Stream<Mma, 64>>(x, w, f, processors, stream);
  if constexpr (std::is_same_v<Mma, MmaS8>) {
    using Wide = Stream<Mma, 128, false, 64>;
    if (f.m <= 128 && streams_64_rows<Wide>(f.n, processors)) {
      return launch_tiles<Wide>(x, w, f, processors, stream);
    }
  }
  constexpr int kK = Gemm<Mma, 1, 64>::kK;
  const GemmShape shape = {f.m, f.n, static_cast<int32_t>(ceil_div(x.columns, kK))};
  int best = 256;
  for (const int cols : {192, 128, 64}) {
    if (gemm_cost(shape, cols, processors) < gemm_cost(shape, best, processors)) best = cols;
  }
  switch (best) {
    case 64: return launch_gemm<Gemm<Mma, 1, 64>>(x, w, f, processors, stream);
    case 128: return launch_gemm<Gemm<Mma, 1, 128>>(x, w, f, processors, stream);
    case 192: return launch_gemm<Gemm<Mma, 1, 192>>(x, w, f, processors, stream);
    default: return launch_gemm<Gemm<Mma, 1, 256>>(x, w, f, processors, stream);
  }
}

template <class Mma>
static Status run_dense(const LinearArgs& args, const Ctx& ctx) {
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  const Weight& w = args.w;
  const int64_t row_bytes = code_row_bytes(w.format.kind, w.k);
  const bool scaled = kind_row(w.format.kind).scaled;
  const uint8_t* scales =
      scaled ? w.data + scale_at(w.layout, w.format, {w.n, w.k}, 0, 0) : nullptr;
  return launched(launch_dense<Mma>(x, {w.data, w.n, w.k, row_bytes}, finish_of(args, scales),
                                    ctx.multiprocessors, static_cast<cudaStream_t>(ctx.stream)));
}

}  // namespace
}  // namespace lowbit
