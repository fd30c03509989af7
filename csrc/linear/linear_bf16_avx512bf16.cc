// linear_bf16_avx512bf16: out[M,N] = act(x[M,K] * w[N,K]^T + bias) + residual; bf16 by bf16, f32
// sums.
//
// Shapes    any; x in bf16, or rounded to fp8 on the way.
// Layout    w in panel16: a lane of 4 bytes holds columns 2j and 2j + 1 of its row, the pair that
//           vdpbf16ps takes; x in tiles of T rows (gemm_bf16_avx512bf16.h).
// Bound     M < about 10: memory, 2 bytes of w a product. From there vdpbf16ps, 32 products each.
// Method    Up to 12 rows of x: one panel at a time, one stream from memory. More: two panels by 12
//           rows of x, 24 sums in registers, each broadcast of x used twice: 14 loads for 24
//           products. While the tiles of a slice of w are multiplied, the next slice is asked for.
// Measured  2-core AMD EPYC (Zen 5), one thread, 4096 x 14336: M = 64 and 512 96 % of vdpbf16ps
//           alone; see NOTES.md.
#include "csrc/linear/gemm_bf16_avx512bf16.h"

namespace lowbit {
namespace {

using namespace avx512;

constexpr int64_t kTileM = 12;
// Columns of a slice: 96 rows of x by so many are 192 KiB of L2, and what begins and ends the sums
// of a tile is 2 % of it. Sums of slices are added apart from each other, so that errors stay below
// those of one long sum.
constexpr int64_t kSlice = 1024;

// sums(T, R * 16) (+)= x(T, columns) * columns of R panels.
struct Tile {
  const uint8_t* w;  // the slice's first column
  int64_t panel;     // bytes of a panel
  const uint8_t* x;  // likewise
  int64_t pairs;     // of columns
  float* sums;       // row stride `stride`
  int64_t stride;
  bool add;              // false: sums holds nothing yet
  const uint8_t* ahead;  // lines to ask for, of R panels
  int64_t lines;         // of each, in every four pairs
};

// Not inlined, so that every tile has its sums in registers.
template <int R, int T>
[[gnu::noinline]] void tile(const Tile& a) {
  // The instruction waits 5 cycles and more for its own sum; few rows take several sums each.
  constexpr int kSums = R * T < 3 ? 4 : R * T < 6 ? 2 : 1;
  constexpr int64_t kWords = 4 * T;
  __m512 acc[kSums][T][R];
#pragma GCC unroll 4
  for (int u = 0; u < kSums; ++u) {
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) acc[u][t][r] = _mm512_setzero_ps();
    }
  }
  const uint8_t *w = a.w, *x = a.x, *ahead = a.ahead;
  const int64_t panel = a.panel, lines = a.lines;
  const auto step = [&](int i) __attribute__((always_inline)) {
    __m512i v[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) v[r] = load_bytes(w + i * 64 + r * panel);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      __m512(&sum)[R] = acc[i % kSums][t];
      const uint8_t* pair = x + i * kWords + 4 * t;
      if constexpr (R == 1) {
        sum[0] = add_pairs(sum[0], v[0], pair);
      } else {
        const __m512i s = broadcast_4(pair);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) sum[r] = add_pairs(sum[r], v[r], s);
      }
    }
  };
  int64_t left = a.pairs;
  for (; left >= 4; left -= 4, w += 4 * 64, x += 4 * kWords) {
    if constexpr (R == 1) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(w) + kPrefetch + i * 64, _MM_HINT_T0);
      }
    } else {
      for (int64_t i = 0; i < lines; ++i, ahead += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(ahead) + panel, _MM_HINT_T1);
      }
#pragma GCC unroll 3
      for (int i = 0; i < T / 4; ++i) prefetch_x<R * T>(x + i * 64);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) step(i);
  }
  for (; left > 0; --left, w += 64, x += kWords) step(0);
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      __m512 sum = acc[0][t][r];
#pragma GCC unroll 4
      for (int u = 1; u < kSums; ++u) sum = _mm512_add_ps(sum, acc[u][t][r]);
      float* to = a.sums + t * a.stride + r * kPanel;
      _mm512_storeu_ps(to, a.add ? _mm512_add_ps(sum, _mm512_loadu_ps(to)) : sum);
    }
  }
}

using TileRun = void (*)(const Tile&);
constexpr TileRun kTiles[] = {
    tile<1, 1>, tile<1, 2>, tile<1, 3>, tile<1, 4>,  tile<1, 5>,  tile<1, 6>,
    tile<1, 7>, tile<1, 8>, tile<1, 9>, tile<1, 10>, tile<1, 11>, tile<1, 12>,
};
constexpr TileRun kPairs[] = {
    tile<2, 1>, tile<2, 2>, tile<2, 3>, tile<2, 4>,  tile<2, 5>,  tile<2, 6>,
    tile<2, 7>, tile<2, 8>, tile<2, 9>, tile<2, 10>, tile<2, 11>, tile<2, 12>,
};

// Many rows of x do not stay in L3, which strangers share: blocks of 256 columns read them a
// quarter as often.
BlockSize block_size(int64_t m) { return {kBlockM, m > 2 * kBlockM ? 256 : kBlockN}; }

// All tiles of a block, sums(count, size.n) = x(count, K) * `panels` panels.
struct Walk {
  const uint8_t *w, *x;  // the block's first panel, its first tile
  int64_t k, panel, panels, count, height;
  int64_t x_row;  // bytes
  float* sums;
  int64_t stride;
};

void few_rows(const Walk& b) {
  Tile t = {b.w, b.panel, b.x, ceil_div(b.k, 2), b.sums, b.stride, false, nullptr, 0};
  for (int64_t p = 0; p < b.panels; ++p, t.w += b.panel, t.sums += kPanel) kTiles[b.count - 1](t);
}

void many_rows(const Walk& b) {
  // So many that the tiles of a slice ask for all of the next one.
  const int64_t lines = ceil_div(4, ceil_div(b.count, b.height));
  for (int64_t k0 = 0; k0 < b.k; k0 += kSlice) {
    const int64_t width = b.k - k0 < kSlice ? b.k - k0 : kSlice;
    for (int64_t p = 0, next_p; p < b.panels; p = next_p) {
      const bool pair = p + 1 < b.panels;
      next_p = p + (pair ? 2 : 1);
      // What comes next: the panels behind these, or the first ones of the next slice, or, most
      // likely, of the next block.
      const uint8_t* next = next_p < b.panels  ? b.w + next_p * b.panel + k0 * 32
                            : k0 + width < b.k ? b.w + (k0 + width) * 32
                                               : b.w + b.panels * b.panel;
      Tile t = {b.w + p * b.panel + k0 * 32,
                b.panel,
                nullptr,
                ceil_div(width, 2),
                nullptr,
                b.stride,
                k0 > 0,
                next,
                lines};
      for (int64_t m = 0; m < b.count; m += b.height) {
        const int64_t rows = b.count - m < b.height ? b.count - m : b.height;
        t.x = b.x + m * b.x_row + k0 * 2 * rows;
        t.sums = b.sums + m * b.stride + p * kPanel;
        (pair ? kPairs : kTiles)[rows - 1](t);
        t.ahead += ceil_div(t.pairs, 4) * t.lines * 64;
      }
    }
  }
}

size_t workspace(const LinearArgs& args, int threads) {
  const BlockSize size = block_size(args.x.shape[0]);
  PairScratch s;
  return carve_pairs(args, threads, size, nullptr, &s);
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const int64_t m_all = args.x.shape[0], k = args.w.k, stage = stage_rows(m_all);
  const int64_t panel = panel_block(args.w.format, {args.w.n, k}).bytes;
  const BlockSize size = block_size(m_all);
  PairScratch s;
  carve_pairs(args, pool_threads(ctx.pool), size, ctx.scratch, &s);
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    const int64_t height = tile_height(rows, kTileM);
    if (k > 0) stage_pairs(args, ctx, s, 0x76543210, first, rows, height);
    for_blocks(
        args, ctx.pool, first, rows, height, s.scale, s.sums,
        [&](int, int64_t n0, int64_t panels, int64_t m0, int64_t count, float* sums) {
          if (k == 0) {
            for (int64_t i = 0; i < count * size.n; ++i) sums[i] = 0.0f;
            return;
          }
          const Walk walk = {args.w.data + n0 / kPanel * panel,
                             s.x + m0 * s.columns * 2,
                             k,
                             panel,
                             panels,
                             count,
                             height,
                             s.columns * 2,
                             sums,
                             size.n};
          count <= height ? few_rows(walk) : many_rows(walk);
        },
        size);
  }
  return ok();
}

}  // namespace

extern const LinearKernel linear_bf16_avx512bf16;
const LinearKernel linear_bf16_avx512bf16 = {
    "linear_bf16_avx512bf16", kArchAvx512Bf16, pair_spec(bit(Kind::bf16)), workspace, run,
};

}  // namespace lowbit
