// The GEMM of Hopper for fp8 and many rows of x, with sums of every 128 products moved to f32.
//
// A block of three warp groups works on tiles of 128 rows of x by kHalves * kWidth rows of w: one
// thread of the first group keeps a ring of stages, 128 bytes of K each, filled; the other two
// multiply 64 rows each. A unit is 64 rows by kWidth columns of one stage: its products add up in
// registers of their own, a part, which then moves to the sums of the tile. With two parts a group
// has two units in flight, and one moves while the other multiplies: two units a stage, or (one
// half) stages by turns. With one part the other group's products fill the time of the move.
//
// Without parts products add up in the sums of the tile over all of K.
//
// kScaled: each part moves times the scales of its block. More warps of the first group bring
// those.
//
// kCut: a cluster shares one tile, a slice of K each: every block lays its sums in its shared
// memory and finishes an equal share of the tile, adding its peers' parts in the order of ranks.
#pragma once

#include "csrc/cuda/cluster.cuh"
#include "csrc/cuda/cp_async.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/tensor_map.cuh"
#include "csrc/cuda/tma.cuh"
#include "csrc/cuda/wgmma.cuh"
#include "csrc/linear/finish_warp_sm90a.cuh"
#include "csrc/linear/gemm_sm90a.cuh"

namespace lowbit {
namespace {

template <class Mma_, int kHalves_, int kWidth_, int kParts_, bool kCut_, bool kScaled_>
struct Promote {
  using Mma = Mma_;
  static constexpr int kHalves = kHalves_, kWidth = kWidth_, kParts = kParts_;
  static constexpr bool kCut = kCut_, kScaled = kScaled_;
  static constexpr int kRows = 128, kCols = kHalves * kWidth;
  static constexpr int kStage = (kRows + kCols) * 128;
  static constexpr int kStep = kParts == 2 && kHalves == 1 ? 2 : 1;  // stages taken together
  // Boxes of 64 columns in 16 bits that a finished tile leaves by: all at once, so that the next
  // tile begins before this one has left, unless that costs the fourth stage.
  static constexpr int kBoxes = kCols == 256 && kParts > 0 ? 1 : kCols / 64;
  static constexpr int kOut = kCut ? 0 : kBoxes * 8192;  // of each group
  static constexpr int kColumns =
      kCut ? 0 : 2 * kCols * 8;  // of each group: scale and bias of every column
  // Columns that have one scale of w: tiles begin at multiples of it.
  static constexpr int kChunk = kCols % 128 == 0 ? 128 : 64, kChunks = kCols / kChunk;
  // Scales of blocks come with the stage they belong to, or for four stages at a time in a ring of
  // their own, which suits long sums: a float for each stage of every row of x, then of every chunk
  // of w.
  static constexpr int kTogether = kCols == 256 ? 4 : 1, kScaleRing = kTogether == 4 ? 3 : 0;
  static constexpr int kScales = kScaled ? (kRows + (kChunks + 3) / 4 * 4) * 4 * kTogether : 0;
  static constexpr int kBarriers = 256;
  static constexpr int kRest = kScaleRing * kScales + 2 * kOut + kColumns + kBarriers;
  static constexpr int kEach = kStage + (kTogether == 1 ? kScales : 0);
  static constexpr int kFit = (232448 - kRest) / kEach;  // 227 KB
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr int kShared = kStages * kEach + kRest;
  static constexpr int kPartStride = kCols + 8;  // f32; 8 keeps a warp's writes apart
  static_assert(kStages >= 3 && (kParts < 2 || kHalves <= kParts) && kCols % 64 == 0 &&
                kWidth * 128 % 1024 == 0);
  static_assert(!kCut || kRows * kPartStride * 4 <= kStages * kStage);
};

inline constexpr int kMostSlices = 4;  // of K

struct PromoteShape {
  int32_t m, n, steps;  // rows of x, rows of w, kStep stages of K each
  int32_t split;        // blocks of a cluster that share a tile
  int32_t box;          // rows of x in a load: the copy engine is slow at rows that are not there
};

// The thread's arrival, one of those the barrier counts, once its cp.async so far have landed.
__device__ __forceinline__ void barrier_arrive_copied(uint64_t* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_address(bar))
               : "memory");
}

template <class P>
__global__ void __launch_bounds__(384, 1)
    promote_kernel(const __grid_constant__ CUtensorMap map_x,
                   const __grid_constant__ CUtensorMap map_w,
                   const __grid_constant__ CUtensorMap map_out, const Finish f, const Blocks blocks,
                   const PromoteShape shape, const int tiles, const bool plain) {
  extern __shared__ __align__(1024) uint8_t shared[];
  uint8_t* const sOut = shared + P::kStages * P::kStage;
  float* const sColumns = reinterpret_cast<float*>(sOut + 2 * P::kOut);
  float* const sFactor = sColumns + P::kColumns / 4;
  constexpr int kSlots = P::kTogether == 4 ? P::kScaleRing : P::kStages;
  constexpr int kSlotFactors = P::kScales / 4;
  constexpr bool kWithStage = P::kScaled && P::kTogether == 1;
  constexpr bool kApart = P::kScaled && P::kTogether == 4;
  uint64_t* const full = reinterpret_cast<uint64_t*>(sFactor + kSlots * kSlotFactors);
  uint64_t* const empty = full + P::kStages;
  uint64_t* const full_scales = empty + P::kStages;
  uint64_t* const empty_scales = full_scales + P::kScaleRing;
  // The shuffle tells the compiler that a warp is of one group: its addresses stay out of the
  // loops.
  const int t = threadIdx.x, group = __shfl_sync(~0u, t / 128, 0);
  const int split = P::kCut ? shape.split : 1;
  const int start = blockIdx.x / split, stride = gridDim.x / split;
  const int slice = P::kCut ? static_cast<int>(cluster_rank()) : 0;
  const int begin = shape.steps * slice / split * P::kStep;
  const int end = shape.steps * (slice + 1) / split * P::kStep;

  if (P::kCut) {  // its finish has nothing to hide loads behind
    int row, col;
    tile_at<P>(start, {shape.m, shape.n, 0}, &row, &col);
    prefetch_finish(f, col * P::kCols, P::kCols, row * P::kRows,
                    min(P::kRows, shape.m - row * P::kRows));
  }
  if (t == 0) {
    tma_prefetch(&map_x);
    tma_prefetch(&map_w);
    for (int s = 0; s < P::kStages; ++s) {
      barrier_init(&full[s], kWithStage ? 1 + 64 + 1 : 1);
      barrier_init(&empty[s], kWithStage ? 8 : 2);
    }
    for (int s = 0; kApart && s < P::kScaleRing; ++s) {
      barrier_init(&full_scales[s], 32 + 1);
      barrier_init(&empty_scales[s], 8);
    }
    barrier_init_fence();
  }
  if constexpr (P::kScaled) {  // what has no scales of blocks keeps these
    for (int i = t; i < kSlots * kSlotFactors; i += 384) sFactor[i] = 1.0f;
  }
  __syncthreads();
  Ring<P::kStages> ring;

  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (t == 0) {
      for (int tile = start; tile < tiles; tile += stride) {
        int row, col;
        tile_at<P>(tile, {shape.m, shape.n, 0}, &row, &col);
        for (int kb = begin; kb < end; ++kb) {
          uint64_t* const bar = &full[ring.slot];
          barrier_wait(&empty[ring.slot], ring.parity ^ 1);
          barrier_expect(bar, (shape.box + P::kCols) * 128);
          uint8_t* const sX = shared + ring.slot * P::kStage;  // (kRows, 128 bytes of K)
          uint8_t* const sW = sX + P::kRows * 128;             // (kCols, 128 bytes of K)
          tma_load(sX, &map_x, kb * 128, row * P::kRows, bar);
          tma_load(sW, &map_w, kb * 128, col * P::kCols, bar);
          advance(ring);
        }
      }
    } else if (kWithStage && t >= 32 && t < 96) {
      // Scales of x, a row or more a thread.
      for (int tile = start; tile < tiles; tile += stride) {
        int row, col;
        tile_at<P>(tile, {shape.m, shape.n, 0}, &row, &col);
        for (int kb = begin; kb < end; ++kb) {
          barrier_wait(&empty[ring.slot], ring.parity ^ 1);
          if (blocks.x != nullptr) {
            const uint32_t to = smem_address(sFactor + ring.slot * kSlotFactors);
#pragma unroll
            for (int i = 0; i < P::kRows / 64; ++i) {
              const int r = t - 32 + i * 64, m = row * P::kRows + r;
              const bool there = m < shape.m && kb < blocks.k_blocks;
              cp_async<4>(to + r * 4, blocks.x + (there ? m * blocks.x_stride + kb : 0), there);
            }
          }
          barrier_arrive_copied(&full[ring.slot]);
          advance(ring);
        }
      }
    } else if (kWithStage && t >= 96) {
      // Scales of w: those of 32 stages at once, one stage a lane.
      const int lane = t - 96;
      for (int tile = start; tile < tiles; tile += stride) {
        int row, col;
        tile_at<P>(tile, {shape.m, shape.n, 0}, &row, &col);
        float scale[P::kChunks];
        for (int kb = begin; kb < end; ++kb) {
          const int i = (kb - begin) % 32;
          if (i == 0) {
#pragma unroll
            for (int c = 0; c < P::kChunks; ++c) {
              const int n = col * P::kCols + c * P::kChunk, k = kb + lane;
              scale[c] = 1.0f;
              if (n < shape.n && k < blocks.k_blocks) scale[c] = w_block_of(blocks, n / 128, k);
            }
          }
          barrier_wait(&empty[ring.slot], ring.parity ^ 1);
          float* const to = sFactor + ring.slot * kSlotFactors + P::kRows;
#pragma unroll
          for (int c = 0; c < P::kChunks; ++c) {
            const float of = __shfl_sync(~0u, scale[c], i);
            if (lane == c) to[c] = of;
          }
          __syncwarp();
          if (lane == 0) barrier_arrive(&full[ring.slot]);
          advance(ring);
        }
      }
    } else if (kApart && t >= 32 && t < 64) {
      // Of four stages at a time.
      const int lane = t - 32;
      Ring<P::kScaleRing> scales;
      const bool whole =
          blocks.x_stride % 4 == 0 && (reinterpret_cast<uintptr_t>(blocks.x) & 15) == 0;
      for (int tile = start; tile < tiles; tile += stride) {
        int row, col;
        tile_at<P>(tile, {shape.m, shape.n, 0}, &row, &col);
        for (int kb = begin / 4 * 4; kb < end; kb += 4) {
          // Of w: a lane for each chunk and stage.
          float of_w = 1.0f;
          const int n = col * P::kCols + lane / 4 * P::kChunk, k = kb + lane % 4;
          if (lane < 4 * P::kChunks && n < shape.n && k < blocks.k_blocks) {
            of_w = w_block_of(blocks, n / 128, k);
          }
          barrier_wait(&empty_scales[scales.slot], scales.parity ^ 1);
          float* const to = sFactor + scales.slot * kSlotFactors;
          if (blocks.x != nullptr) {
#pragma unroll 1
            for (int i = 0; i < P::kRows / 32; ++i) {
              const int r = lane + i * 32, m = row * P::kRows + r;
              const float* const from = blocks.x + (m < shape.m ? m * blocks.x_stride + kb : 0);
              const uint32_t at = smem_address(to + r * 4);
              if (whole && kb + 4 <= blocks.k_blocks) {
                cp_async<16>(at, from, m < shape.m);
              } else {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                  const bool there = m < shape.m && kb + j < blocks.k_blocks;
                  cp_async<4>(at + j * 4, there ? from + j : blocks.x, there);
                }
              }
            }
          }
          if (lane < 4 * P::kChunks) to[P::kRows * 4 + lane] = of_w;
          barrier_arrive_copied(&full_scales[scales.slot]);
          __syncwarp();
          if (lane == 0) barrier_arrive(&full_scales[scales.slot]);
          advance(scales);
        }
      }
    }
    __syncwarp();
    if constexpr (P::kCut) {
      cluster_sync();
      cluster_sync_read();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int g = group - 1, lane = t % 32, warp = t / 32 % 4;
    uint8_t* const sMine = sOut + g * P::kOut + warp * kWarpPatch;
    float* const sColumn = sColumns + g * 2 * P::kCols;
    uint32_t d[P::kHalves][P::kWidth / 2];  // (64, kCols) of the group
    uint32_t part[P::kParts > 0 ? P::kParts : 1][P::kWidth / 2];
    constexpr int kMine = (P::kCols + 127) / 128;

    // Every warp, where warps read scales from the stage; else one thread for the group.
    const auto release = [&](uint32_t slot) {
      if ((kWithStage ? lane : t % 128) == 0) barrier_arrive(&empty[slot]);
    };
    float factor[P::kChunks][2];
    Ring<kSlots> scales;
    int k_at = begin;  // the stage whose scales are read next, where they lie apart
    const auto read_factors = [&](uint32_t slot) {
      if constexpr (kWithStage) {
        const float* const of = sFactor + slot * kSlotFactors;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float x = of[g * 64 + warp * 16 + lane / 4 + r * 8];
#pragma unroll
          for (int c = 0; c < P::kChunks; ++c) factor[c][r] = x * of[P::kRows + c];
        }
      }
      if constexpr (kApart) {
        const int j = k_at % 4;
        if (j == 0 || k_at == begin) barrier_wait(&full_scales[scales.slot], scales.parity);
        const float* const of = sFactor + scales.slot * kSlotFactors + j;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float x = of[(g * 64 + warp * 16 + lane / 4 + r * 8) * 4];
#pragma unroll
          for (int c = 0; c < P::kChunks; ++c) factor[c][r] = x * of[(P::kRows + c) * 4];
        }
        if (++k_at == end) k_at = begin;
        if (j == 3 || k_at == begin) {
          if (lane == 0) barrier_arrive(&empty_scales[scales.slot]);
          advance(scales);
        }
      }
    };
    const auto ask = [&](uint32_t(&to)[P::kWidth / 2], uint32_t slot, int half, bool add = false) {
      const uint8_t* const stage = shared + slot * P::kStage;
      const uint64_t x = wgmma_tile(stage + g * 64 * 128);
      const uint64_t w = wgmma_tile(stage + (P::kRows + half * P::kWidth) * 128);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<typename P::Mma, P::kWidth>::ss(to, x + step * kTileStep, w + step * kTileStep,
                                              add || step > 0);
      }
      wgmma_commit();
    };
    const auto move = [&](const uint32_t(&from)[P::kWidth / 2], int half) {
#pragma unroll
      for (int i = 0; i < P::kWidth / 2; ++i) {
        const float a = __uint_as_float(from[i]), b = __uint_as_float(d[half][i]);
        const int c = (half * P::kWidth + i / 4 * 8) / P::kChunk;
        d[half][i] = __float_as_uint(P::kScaled ? fmaf(a, factor[c][i / 2 % 2], b) : a + b);
      }
    };

    for (int tile = start; tile < tiles; tile += stride) {
      int row, col;
      tile_at<P>(tile, {shape.m, shape.n, 0}, &row, &col);
      // Asked for now, used after the products: the latency hides behind them.
      float column_scale[kMine], column_bias[kMine], row_scale[2];
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const int c = t % 128 + i * 128, n = col * P::kCols + c;
        const bool there = !P::kCut && c < P::kCols && n < shape.n;
        column_scale[i] = there ? w_scale_of(f, n) : 0.0f;
        column_bias[i] = there ? bias_of(f, n) : 0.0f;
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int m = row * P::kRows + g * 64 + warp * 16 + lane / 4 + r * 8;
        row_scale[r] = !P::kCut && f.x_scale != nullptr && m < shape.m ? f.x_scale[m] : 1.0f;
      }
#pragma unroll
      for (int u = 0; u < P::kHalves; ++u) {
#pragma unroll
        for (uint32_t& v : d[u]) v = 0;
      }

      if constexpr (P::kParts == 2) {
        constexpr int kSecond = P::kHalves - 1;  // the half of part 1
        // kSteps times both parts. Nothing is in flight between runs: ptxas makes products wait
        // for each other where a part is read while another is in flight around a loop (C7514).
        const auto run = [&](auto steps) {
          constexpr int kSteps = decltype(steps)::value;
          uint32_t at[2];  // the stages of both parts
          barrier_wait(&full[ring.slot], ring.parity);
          at[0] = at[1] = ring.slot;
          ask(part[0], at[0], 0);
          if constexpr (P::kStep == 2) {
            advance(ring);
            barrier_wait(&full[ring.slot], ring.parity);
            at[1] = ring.slot;
          }
          ask(part[1], at[1], kSecond);
          advance(ring);
          unrolled<kSteps>([&](auto index) {
            constexpr int j = decltype(index)::value;
            read_factors(at[0]);
            wgmma_wait<1>();
            pin(part[0]);
            if constexpr (P::kStep == 2) release(at[0]);
            move(part[0], 0);
            uint32_t next = 0;
            if constexpr (j + 1 < kSteps) {
              barrier_wait(&full[ring.slot], ring.parity);
              next = ring.slot;
              ask(part[0], next, 0);
            }
            if constexpr (P::kStep == 2) read_factors(at[1]);
            wgmma_wait<(j + 1 < kSteps ? 1 : 0)>();
            pin(part[1]);
            release(at[1]);
            move(part[1], kSecond);
            if constexpr (j + 1 < kSteps) {
              at[0] = at[1] = next;
              if constexpr (P::kStep == 2) {
                advance(ring);
                barrier_wait(&full[ring.slot], ring.parity);
                at[1] = ring.slot;
              }
              ask(part[1], at[1], kSecond);
              advance(ring);
            }
          });
        };
        constexpr int kRun = 8 / P::kStep;
        int kb = begin;
        for (; kb + kRun * P::kStep <= end; kb += kRun * P::kStep) {
          run(std::integral_constant<int, kRun>{});
        }
        for (; kb < end; kb += P::kStep) run(std::integral_constant<int, 1>{});
      } else if constexpr (P::kParts == 1) {
        for (int kb = begin; kb < end; ++kb) {
          barrier_wait(&full[ring.slot], ring.parity);
#pragma unroll
          for (int half = 0; half < P::kHalves; ++half) {
            // Factors that come with the stage are read first: behind the request tiles of 192
            // columns take a tenth longer.
            if (kWithStage && half == 0) read_factors(ring.slot);
            ask(part[0], ring.slot, half);
            if (kApart && half == 0) read_factors(ring.slot);
            wgmma_wait<0>();
            pin(part[0]);
            if (half == P::kHalves - 1) release(ring.slot);
            move(part[0], half);
          }
          advance(ring);
        }
      } else {
        uint32_t last = 0;
        for (int kb = begin; kb < end; ++kb) {
          barrier_wait(&full[ring.slot], ring.parity);
          ask(d[0], ring.slot, 0, kb > begin);
          if (kb > begin) {
            wgmma_wait<1>();
            release(last);
          }
          last = ring.slot;
          advance(ring);
        }
        wgmma_wait<0>();
        release(last);
      }

#pragma unroll
      for (int u = 0; u < P::kHalves; ++u) pin(d[u]);
      if constexpr (P::kCut) {
        asm volatile("bar.sync 3, 256;" ::: "memory");  // nobody reads the ring any more
        float* const to = reinterpret_cast<float*>(shared) +
                          (g * 64 + warp * 16 + lane / 4) * P::kPartStride + lane % 4 * 2;
#pragma unroll
        for (int c = 0; c < P::kCols / 8; ++c) {
          const uint32_t* const sums = d[c / (P::kWidth / 8)] + c % (P::kWidth / 8) * 4;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            *reinterpret_cast<float2*>(to + r * 8 * P::kPartStride + c * 8) =
                float2{__uint_as_float(sums[2 * r]), __uint_as_float(sums[2 * r + 1])};
          }
        }
      } else {
        asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");  // the last tile's are read
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          const int c = t % 128 + i * 128;
          if (c < P::kCols) set_column(sColumn, c, column_scale[i], column_bias[i]);
        }
        asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");
        const int first = row * P::kRows + g * 64;  // row of x
        // Columns 8 * chunk to 8 * chunk + 7 of the warp's rows.
        const auto scaled = [&](int chunk, float(&v)[4]) {
          const int at = chunk % (P::kWidth / 8) * 4;
          const uint32_t(&sums)[P::kWidth / 2] = d[chunk / (P::kWidth / 8)];
          const float4 of = reinterpret_cast<const float4*>(sColumn)[chunk * 4 + lane % 4];
          v[0] = fmaf(__uint_as_float(sums[at]), row_scale[0] * of.x, of.z);
          v[1] = fmaf(__uint_as_float(sums[at + 1]), row_scale[0] * of.y, of.w);
          v[2] = fmaf(__uint_as_float(sums[at + 2]), row_scale[1] * of.x, of.z);
          v[3] = fmaf(__uint_as_float(sums[at + 3]), row_scale[1] * of.y, of.w);
        };
        const int m = first + warp * 16, n = col * P::kCols;
        if (!plain) {
          walk_warp<P::kCols>(f, sMine, m, n, scaled);
        } else if (f.out_dtype == DType::bf16) {
          send_warp<P::kCols, P::kBoxes, DType::bf16>(&map_out, sMine, m, n, scaled);
        } else {
          send_warp<P::kCols, P::kBoxes, DType::f16>(&map_out, sMine, m, n, scaled);
        }
      }
    }
    if constexpr (P::kCut) {
      cluster_sync();
      int row, col;
      tile_at<P>(start, {shape.m, shape.n, 0}, &row, &col);
      constexpr int kRuns = P::kCols / 8;  // of eight columns
      for (int i = slice * 256 + t - 128; i < P::kRows * kRuns; i += split * 256) {
        const int r = i / kRuns, c = i % kRuns * 8;
        const int m = row * P::kRows + r, n = col * P::kCols + c;
        if (m >= shape.m || n >= shape.n) continue;
        const uint32_t at = smem_address(shared) + (r * P::kPartStride + c) * 4;
        float v[8] = {}, peers[kMostSlices][8];  // all are asked for before the first is used
#pragma unroll
        for (int peer = 0; peer < kMostSlices; ++peer) {
          if (peer >= split) break;
          *reinterpret_cast<float4*>(peers[peer]) = cluster_load(cluster_address(at, peer));
          *reinterpret_cast<float4*>(peers[peer] + 4) =
              cluster_load(cluster_address(at + 16, peer));
        }
#pragma unroll
        for (int peer = 0; peer < kMostSlices; ++peer) {
          if (peer >= split) break;
#pragma unroll
          for (int j = 0; j < 8; ++j) v[j] += peers[peer][j];
        }
        scale_row(f, m, n, v);
        finish_row(f, m, n, v);
      }
      cluster_sync_read();  // peers may still read this block's part
    } else {
      if (plain && lane == 0) store_wait_all();
      __syncwarp();
    }
  }
}

// Operands whose rows start at multiples of 16 bytes.
template <class P>
static cudaError_t launch_promote(const Matrix& x, const Matrix& w, const Finish& f, int processors,
                                  cudaStream_t stream, const Blocks& blocks, int split = 1) {
  CUtensorMap map_x, map_w, map_out = {};
  const bool plain = stores_plainly(f);
  const int box = f.m < P::kRows ? f.m : P::kRows;
  cudaError_t e = tile_map({x.data, x.rows, x.columns, x.row_bytes, 1, box}, &map_x);
  if (e == cudaSuccess) {
    e = tile_map({w.data, w.rows, w.columns, w.row_bytes, 1, P::kCols}, &map_w);
  }
  if (e == cudaSuccess && plain) {
    e = tile_map({f.out, f.m, f.n, f.out_stride * 2, 2, 16}, &map_out);
  }
  if (e != cudaSuccess) return e;
  const int steps = static_cast<int>((x.columns + 127) / 128 + P::kStep - 1) / P::kStep;
  const PromoteShape shape = {f.m, f.n, steps, split, box};
  const int tiles = ((f.m + P::kRows - 1) / P::kRows) * ((f.n + P::kCols - 1) / P::kCols);
  auto* const kernel = promote_kernel<P>;
  static std::atomic<uint64_t> asked = 0;
  e = allow_shared(kernel, P::kShared, asked);
  if (e != cudaSuccess) return e;
  const int blocks_used = P::kCut ? tiles * split : tiles < processors ? tiles : processors;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks_used));
  config.blockDim = dim3(384);
  config.dynamicSmemBytes = P::kShared;
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(split), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = P::kCut ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, map_x, map_w, map_out, f, blocks, shape, tiles, plain);
}

}  // namespace
}  // namespace lowbit
