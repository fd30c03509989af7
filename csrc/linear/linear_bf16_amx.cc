// linear_bf16_amx: out[M,N] = act(x[M,K] * w[N,K]^T + bias) + residual; bf16 by bf16, f32 sums in
// tiles.
//
// Shapes    M of 16 and more, any N, K; x in bf16.
// Layout    w in panel16, 1 KiB of which is a tile of 32 columns as it lies; x in tiles
//           (gemm_amx.h).
// Bound     16 x 16 x 32 products in 16 cycles.
// Method    32 x 32 sums in four tiles, kept in memory between slices of 512 columns. The
//           instruction takes denormals as zeros.
// Source    Intel 64 and IA-32 Optimization Reference Manual, chapter on AMX.
#include "csrc/linear/gemm_amx.h"

namespace lowbit {
namespace {

using namespace amx;

constexpr int64_t kStep = 32;  // columns of a tile of bf16

struct Bf16Scratch {
  TiledX x;       // (stage rounded up to 32)
  float* sums;    // (threads, rows, columns of a block)
  uint8_t* tail;  // (threads, a pair of panels of a slice)
};

size_t carve(const LinearArgs& args, int threads, void* base, Bf16Scratch* s) {
  const int64_t rows = stage_rows(args.x.shape[0]), steps = ceil_div(args.w.k, kStep);
  const int64_t bands = round_up(rows, kPairRows) / kTileRows;
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->x = {take<uint8_t>(&at, bands * steps * kTileBytes), steps, kSliceSteps, bands};
  s->sums = take<float>(&at, threads * block_words(rows));
  s->tail = take<uint8_t>(&at, threads * kPairPanels * kSliceSteps * kTileBytes);
  return at - reinterpret_cast<uintptr_t>(base);
}

size_t workspace(const LinearArgs& args, int threads) {
  Bf16Scratch s;
  return carve(args, threads, nullptr, &s);
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const int64_t m_all = args.x.shape[0], k = args.w.k, stage = stage_rows(m_all);
  const PanelBlock block = panel_block(args.w.format, {args.w.n, k});
  Bf16Scratch s;
  carve(args, pool_threads(ctx.pool), ctx.scratch, &s);
  const int64_t steps = s.x.steps;
  const Walk walk = {steps, steps, s.x.slice};
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    parallel_for(ctx.pool, rows, kStagedRows, [&](int64_t begin, int64_t end, int) {
      for (int64_t m = begin; m < end; ++m) {
        const uint8_t* x = static_cast<const uint8_t*>(args.x.data);
        put_row(s.x, m, x + (first + m) * args.x.strides[0] * 2, k * 2);
      }
    });
    const auto products = [&](int thread, const Block& b, float* sums) {
      uint8_t* tail = s.tail + thread * kPairPanels * kSliceSteps * kTileBytes;
      multiply_block<Bf16Pairs>(
          walk, s.x, b, sums,
          [&](int64_t panel, int64_t step, int64_t count, int64_t which, bool) {
            return whole_steps(args.w.data + panel * block.bytes, block.codes, step, count,
                               tail + which * kSliceSteps * kTileBytes, false);
          },
          [&](int64_t panel, int64_t step) {
            return args.w.data + panel * block.bytes + step * kTileBytes;
          },
          [](auto...) {});
    };
    for_amx_blocks(args, ctx.pool, first, rows, nullptr, s.sums, products,
                   [](int64_t, int64_t, int64_t count, const uint8_t* tile, uint8_t* to) {
                     copy_sums(tile, count, to);
                   });
  }
  return ok();
}

}  // namespace

extern const LinearKernel linear_bf16_amx;
const LinearKernel linear_bf16_amx = {
    "linear_bf16_amx",
    kArchAmx,
    {bit(Kind::bf16), bit(Layout::panel16), bit(DType::bf16), bit(Compute::floating), false, 0, 1,
     1, 1, kLeastM},
    workspace,
    run,
};

}  // namespace lowbit
