// The GEMM of mma.sync (sm_80 and newer): what its rows share, whatever w is made of.
//
// A block of eight warps multiplies 128 rows of w by kTokens rows of x. A stage is 128 bytes of K:
// x comes by cp.async into a ring of swizzled tiles (swizzle.cuh) and leaves by ldmatrix; w is the
// business of W, which says what it copies, and what fragments and scales it has. w stands on the
// side of a product that has 16 rows, x on the one that has 8, so a few rows of x waste little.
//
// K is cut where tiles alone would leave places empty: each slice writes its part to scratch, and a
// second kernel adds the parts in their order and finishes. How K is cut depends on the shape
// alone, so a call gives the same bits on every GPU that runs these rows.
//
// W has
//   Call            what the kernel is told of w
//   Sum             float or int32_t
//   kBytes          of w in a stage of the ring, a multiple of 128
//   kBeside         bytes of its own behind the ring
//   kScaled         sums of groups of K have scales of their own: ends(step), scale(...)
//   kPrepares       prepare(...) has something to do before the products of a stage
//   load(...)       asks for what a stage needs
//   begin(...), fragment(...), multiply(...)   16 rows of w by a step of 32 bytes of K
#pragma once

#include "csrc/cuda/cp_async.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/ldmatrix.cuh"
#include "csrc/cuda/mma.cuh"
#include "csrc/cuda/swizzle.cuh"
#include "csrc/linear/finish.cuh"
#include "csrc/linear/x_rows_sm80.cuh"

namespace lowbit {
namespace {

inline constexpr int kTileRows = 128;     // rows of w in a tile
inline constexpr int kTileThreads = 256;  // eight warps
inline constexpr int kTileSteps = 4;      // of 32 bytes of K in a stage
// What every GPU from sm_80 on gives a block: sm_86, sm_89 and sm_120 have 99 KB.
inline constexpr int kTileShared = 96 * 1024;
// Blocks that a call is cut into, about what large GPUs hold: 128 to 132 multiprocessors.
inline constexpr int kTilePlaces = 128, kMostSlices = 8;

template <class W_, int kTokens_>
struct Tile {
  using W = W_;
  using Sum = typename W::Sum;
  static constexpr int kTokens = kTokens_;
  static constexpr int kWarpsT = kTokens >= 64 ? 2 : 1;  // warps along rows of x
  static constexpr int kStrips = kWarpsT;                // of 16 rows of w, of a warp
  static constexpr int kColumns = kTokens / kWarpsT / 8;
  // Two tiles of sums of 128 rows do not fit in the registers of half a multiprocessor.
  static constexpr int kBlocks = W::kScaled && kTokens == 128 ? 1 : 2;
  static constexpr int kX = kTokens * 128;
  static constexpr int kStage = kX + W::kBytes;
  static constexpr int kFit = (kTileShared / (kBlocks == 2 ? 2 : 1) - W::kBeside) / kStage;
  static constexpr int kStages = kFit < 3 ? 3 : kFit > 8 ? 8 : kFit;
  // Finished rows pass through shared memory, 64 at a time; 4 keeps a warp's writes off one bank.
  static constexpr int kRound = kTokens < 64 ? kTokens : 64, kStride = kTileRows + 4;
  static constexpr int kOut = kRound * kStride * 4;
  static constexpr int kRing = kStages * kStage + W::kBeside;
  static constexpr int kShared = kRing > kOut ? kRing : kOut;
  static_assert(kShared <= kTileShared + 2048 && kColumns % 2 == 0);
};

struct TileCall {
  const uint8_t* x;  // rows begin at multiples of 16 bytes
  int64_t x_row_bytes;
  int32_t k_bytes, stages;  // of a row of x
  int32_t row_tiles, token_tiles, slices, tokens;
  uint32_t* parts;  // [slices][row_tiles * token_tiles][tokens][kTileRows], where slices > 1
  Finish finish;
};

__device__ __forceinline__ float float_sum(float v) { return v; }
__device__ __forceinline__ float float_sum(int32_t v) { return static_cast<float>(v); }
__device__ __forceinline__ uint32_t bits_of(float v) { return __float_as_uint(v); }
__device__ __forceinline__ uint32_t bits_of(int32_t v) { return static_cast<uint32_t>(v); }

template <class T>
__global__ void __launch_bounds__(kTileThreads, T::kBlocks)
    tile_kernel(const __grid_constant__ TileCall p,
                const __grid_constant__ typename T::W::Call call) {
  using Sum = typename T::Sum;
  extern __shared__ __align__(128) uint8_t shared[];
  const int t = threadIdx.x, lane = t % 32, warp = t / 32;
  const int warp_t = warp % T::kWarpsT, warp_r = warp / T::kWarpsT;
  const int slice = blockIdx.x % p.slices, tile = blockIdx.x / p.slices;
  // Bands of 8 tiles of x, one tile of w after the other inside: what runs at a time shares both.
  const int band = min(8, p.token_tiles), in_band = band * p.row_tiles, b = tile / in_band;
  const int height = min(band, p.token_tiles - b * band), in = tile - b * in_band;
  const int row_tile = in / height, token_tile = b * band + in - row_tile * height;
  const int row0 = row_tile * kTileRows, token0 = token_tile * T::kTokens;
  const int begin = static_cast<int>(int64_t{p.stages} * slice / p.slices);
  const int end = static_cast<int>(int64_t{p.stages} * (slice + 1) / p.slices);

  wait_for_others();
  typename T::W w(call, row0, shared + T::kStages * T::kStage);

  const uint32_t ring = smem_address(shared);
  const uint8_t* const x = p.x + (token0 + t / 8) * p.x_row_bytes + t % 8 * 16;
  const auto load = [&](int stage, int slot) {
    const int from = stage * 128 + t % 8 * 16;
    const uint32_t left = min(max(p.k_bytes - from, 0), 16);
#pragma unroll
    for (int r = 0; r < T::kTokens; r += kTileThreads / 8) {
      const int token = r + t / 8;
      if (T::kTokens < kTileThreads / 8 && token >= T::kTokens) break;
      const bool there = token0 + token < p.finish.m && left > 0;
      cp_async_16(ring + slot * T::kStage + swizzled(token, t % 8 * 16),
                  there ? x + r * p.x_row_bytes + int64_t{stage} * 128 : p.x, there ? left : 0);
    }
    w.load(stage, shared + slot * T::kStage + T::kX);
  };
#pragma unroll
  for (int s = 0; s < T::kStages - 1; ++s) {
    if (begin + s < end) load(begin + s, s);
    cp_async_commit();
  }

  Sum total[T::kStrips][T::kColumns][4] = {};
  Sum part[T::kStrips][T::kColumns][4] = {};  // of a group, where those have scales
  int slot = 0;
  for (int stage = begin; stage < end; ++stage) {
    cp_async_wait<T::kStages - 2>();
    __syncthreads();  // the stage has landed for all, and nobody reads the one before it any more
    const uint8_t* const sW = shared + slot * T::kStage + T::kX;
    if constexpr (T::W::kPrepares) {
      w.prepare(stage, sW, stage + 1 < end);
      __syncthreads();
    }
    const int next = stage + T::kStages - 1;
    if (next < end) load(next, slot == 0 ? T::kStages - 1 : slot - 1);
    cp_async_commit();

    const uint32_t sX = ring + slot * T::kStage;  // (kTokens, 128 bytes of K)
    const int token = warp_t * (T::kTokens / T::kWarpsT) + lane / 16 * 8 + lane % 8;
    w.begin(sW, warp_r * T::kStrips);
#pragma unroll
    for (int step = 0; step < kTileSteps; ++step) {
      uint32_t xs[T::kColumns][2];
#pragma unroll
      for (int c = 0; c < T::kColumns; c += 2) {
        ldmatrix(sX + swizzled(token + c * 8, step * 32 + lane / 8 % 2 * 16), xs[c][0], xs[c][1],
                 xs[c + 1][0], xs[c + 1][1]);
      }
#pragma unroll
      for (int s = 0; s < T::kStrips; ++s) {
        uint32_t a[4];
        w.fragment(sW, step, warp_r * T::kStrips + s, s, a);
#pragma unroll
        for (int c = 0; c < T::kColumns; ++c) {
          T::W::multiply(T::W::kScaled ? part[s][c] : total[s][c], a, xs[c][0], xs[c][1]);
        }
      }
      if constexpr (T::W::kScaled) {
        if (!w.ends(step)) continue;
#pragma unroll
        for (int s = 0; s < T::kStrips; ++s) {
          float scale[2];
          w.scale(sW, step, warp_r * T::kStrips + s, scale);
#pragma unroll
          for (int c = 0; c < T::kColumns; ++c) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              total[s][c][i] = fmaf(part[s][c][i], scale[i / 2], total[s][c][i]);
              part[s][c][i] = 0.0f;
            }
          }
        }
      }
    }
    slot = slot == T::kStages - 1 ? 0 : slot + 1;
  }
  cp_async_wait<0>();

  // The warp's sums: rows of w (lane / 4 and 8 below), rows of x (twice lane % 4 and the next).
  const auto each = [&](const auto& put) {
#pragma unroll
    for (int s = 0; s < T::kStrips; ++s) {
#pragma unroll
      for (int c = 0; c < T::kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          put(c * 8 + lane % 4 * 2 + i % 2, (warp_r * T::kStrips + s) * 16 + lane / 4 + i / 2 * 8,
              total[s][c][i]);
        }
      }
    }
  };
  constexpr int kWarpTokens = T::kTokens / T::kWarpsT;
  if (p.slices > 1) {
    const int64_t tiles = int64_t{p.row_tiles} * p.token_tiles;
    const int64_t at = slice * tiles + int64_t{token_tile} * p.row_tiles + row_tile;
    uint32_t* const to = p.parts + (at * T::kTokens + warp_t * kWarpTokens) * kTileRows;
    each([&](int token, int row, Sum v) { to[token * kTileRows + row] = bits_of(v); });
    return;
  }
  const Finish& f = p.finish;
  uint32_t* const sOut = reinterpret_cast<uint32_t*>(shared);  // (kRound, kStride)
#pragma unroll
  for (int from = 0; from < T::kTokens; from += T::kRound) {
    __syncthreads();
    const int mine = warp_t * kWarpTokens - from;
    if (mine >= 0 && mine < T::kRound) {
      each(
          [&](int token, int row, Sum v) { sOut[(mine + token) * T::kStride + row] = bits_of(v); });
    }
    __syncthreads();
#pragma unroll 1
    for (int i = t; i < T::kRound * (kTileRows / 8); i += kTileThreads) {
      const int token = i / (kTileRows / 8), c = i % (kTileRows / 8) * 8;
      const int m = token0 + from + token;
      if (m >= f.m || row0 + c >= f.n) continue;
      const Sum* const sums = reinterpret_cast<const Sum*>(sOut) + token * T::kStride + c;
      float v[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = float_sum(sums[j]);
      scale_row(f, m, row0 + c, v);
      finish_row(f, m, row0 + c, v);
    }
  }
}

// Eight rows of w for a row of x a thread.
template <class Sum>
__global__ void __launch_bounds__(kTileThreads)
    add_slices_kernel(const __grid_constant__ TileCall p) {
  wait_for_others();
  const Finish& f = p.finish;
  const int runs = (f.n + 7) / 8;
  const int64_t index = int64_t{blockIdx.x} * kTileThreads + threadIdx.x;
  const int m = static_cast<int>(index / runs), n = static_cast<int>(index % runs) * 8;
  if (m >= f.m) return;
  const int64_t tiles = int64_t{p.row_tiles} * p.token_tiles;
  const int64_t tile = int64_t{m / p.tokens} * p.row_tiles + n / kTileRows;
  const int64_t size = tiles * p.tokens * kTileRows;  // of a slice
  const uint32_t* from = p.parts + (tile * p.tokens + m % p.tokens) * kTileRows + n % kTileRows;
  Sum sums[8] = {};
  for (int s = 0; s < p.slices; ++s, from += size) {
    Sum part[8];
    *reinterpret_cast<uint4*>(part) = *reinterpret_cast<const uint4*>(from);
    *reinterpret_cast<uint4*>(part + 4) = *reinterpret_cast<const uint4*>(from + 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[j] += part[j];
  }
  float v[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] = float_sum(sums[j]);
  scale_row(f, m, n, v);
  finish_row(f, m, n, v);
}

// How a call is cut.
struct TilePlan {
  int32_t tokens, row_tiles, token_tiles, stages, slices;
  int64_t x_bytes;  // of scratch, before the parts
};

// A slice has four stages at least, or its start costs more than it does.
static inline TilePlan tile_plan(const LinearArgs& args) {
  TilePlan p = {};
  const int64_t m = args.x.shape[0];
  p.tokens = m <= 16 ? 16 : m <= 64 ? 64 : 128;
  p.row_tiles = static_cast<int32_t>(ceil_div(args.w.n, kTileRows));
  p.token_tiles = static_cast<int32_t>(ceil_div(m, p.tokens));
  p.stages = static_cast<int32_t>(ceil_div(args.w.k * dtype_bytes(args.x.dtype), 128));
  const int64_t tiles = int64_t{p.row_tiles} * p.token_tiles;
  const int64_t places = (p.tokens == 128 ? 1 : 2) * kTilePlaces;
  int64_t slices = tiles == 0 ? 1 : places / tiles;
  if (slices > kMostSlices) slices = kMostSlices;
  if (slices > p.stages / 4) slices = p.stages / 4;
  p.slices = static_cast<int32_t>(slices < 1 ? 1 : slices);
  p.x_bytes = round_up(static_cast<int64_t>(x_workspace(args, 1)), 64);
  return p;
}

static size_t tile_workspace(const LinearArgs& args, int) {
  const TilePlan p = tile_plan(args);
  const int64_t sums =
      p.slices > 1 ? int64_t{p.slices} * p.row_tiles * p.token_tiles * p.tokens * kTileRows : 0;
  return static_cast<size_t>(p.x_bytes + sums * 4);
}

template <class T>
static Status launch_tile(const TileCall& p, const typename T::W::Call& call, const Ctx& ctx) {
  static std::atomic<uint64_t> asked = 0;
  if (T::kShared > 48 * 1024) {
    LB_TRY(launched(allow_shared(tile_kernel<T>, T::kShared, asked)));
  }
  const int64_t blocks = int64_t{p.row_tiles} * p.token_tiles * p.slices;
  LB_TRY(launch(ctx, tile_kernel<T>, dim3(static_cast<unsigned>(blocks)), kTileThreads, T::kShared,
                p, call));
  if (p.slices == 1) return ok();
  const int64_t runs = p.finish.m * ceil_div(p.finish.n, 8);
  return launch(ctx, add_slices_kernel<typename T::Sum>,
                dim3(static_cast<unsigned>(ceil_div(runs, kTileThreads))), kTileThreads, 0, p);
}

template <class W>
static Status run_tiles(const LinearArgs& args, const typename W::Call& call, const Finish& finish,
                        const Ctx& ctx) {
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  const TilePlan plan = tile_plan(args);
  TileCall p = {};
  p.x = static_cast<const uint8_t*>(x.data);
  p.x_row_bytes = x.row_bytes;
  p.k_bytes = static_cast<int32_t>(args.w.k * dtype_bytes(args.x.dtype));
  p.stages = plan.stages;
  p.row_tiles = plan.row_tiles;
  p.token_tiles = plan.token_tiles;
  p.slices = plan.slices;
  p.tokens = plan.tokens;
  if (p.slices > 1) {
    p.parts = reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(ctx.scratch) + plan.x_bytes);
  }
  p.finish = finish;
  switch (p.tokens) {
    case 16: return launch_tile<Tile<W, 16>>(p, call, ctx);
    case 64: return launch_tile<Tile<W, 64>>(p, call, ctx);
    default: return launch_tile<Tile<W, 128>>(p, call, ctx);
  }
}

}  // namespace
}  // namespace lowbit
