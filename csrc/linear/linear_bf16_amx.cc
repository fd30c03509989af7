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
  uint8_t* row;   // (threads, steps * 64): a row of x, padded with zeros
  uint8_t* tail;  // (threads, two panels of a slice)
};

size_t carve(const LinearArgs& args, int threads, void* base, Bf16Scratch* s) {
  const int64_t rows = stage_rows(args.x.shape[0]), steps = ceil_div(args.w.k, kStep);
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->x = {take<uint8_t>(&at, round_up(rows, kPairRows) / kTileRows * steps * kTileBytes), steps};
  s->sums = take<float>(&at, threads * block_words(rows));
  s->row = take<uint8_t>(&at, threads * steps * 64);
  s->tail = take<uint8_t>(&at, threads * 2 * kSliceSteps * kTileBytes);
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
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    parallel_for(ctx.pool, rows, kTileRows, [&](int64_t begin, int64_t end, int thread) {
      uint8_t* row = s.row + thread * steps * 64;
      std::memset(row, 0, static_cast<size_t>(steps * 64));
      for (int64_t m = begin; m < end; ++m) {
        const uint8_t* from =
            static_cast<const uint8_t*>(args.x.data) + (first + m) * args.x.strides[0] * 2;
        std::memcpy(row, from, static_cast<size_t>(k * 2));
        put_row(s.x, m, row);
      }
    });
    for_amx_blocks(
        args, ctx.pool, first, rows, nullptr, s.sums,
        [&](int thread, int64_t panel0, int64_t panels, int64_t m0, int64_t height, float* sums,
            int64_t stride) {
          if (steps == 0) {
            for (int64_t i = 0; i < height * stride; ++i) sums[i] = 0.0f;
            return;
          }
          uint8_t* tail = s.tail + thread * 2 * kSliceSteps * kTileBytes;
          const auto panel_at = [&](int64_t panel) {
            return args.w.data + (panel0 + panel) * block.bytes;
          };
          const int64_t calls = ceil_div(height, kPairRows);
          configure_tiles();
          for (int64_t step = 0; step < steps; step += kSliceSteps) {
            const int64_t count = steps - step < kSliceSteps ? steps - step : kSliceSteps;
            const int64_t next = step + count < steps ? step + count : step;
            for (int64_t panel = 0; panel < panels; panel += 2) {
              const auto tiles = [&](int64_t which) {
                return whole_steps(panel_at(panel + which), block.codes, step, count,
                                   tail + which * kSliceSteps * kTileBytes);
              };
              const PairW w = {tiles(0), panel + 1 < panels ? tiles(1) : nullptr};
              const bool last = panel + 2 >= panels;
              const uint8_t* soon =
                  panel_at(last ? 0 : panel + 2) + (last ? next : step) * kTileBytes;
              const PairW next_w = {soon, soon + block.bytes};
              for (int64_t m = 0; m < height; m += kPairRows) {
                multiply_pair<Bf16Pairs>(s.x, m0 + m, height - m, step, w, count,
                                         sums + m * stride + panel * kPanel, stride, step > 0,
                                         ahead_of(s.x, m0, m, panel / 2, next, next_w, calls));
              }
            }
          }
          release_tiles();
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
