// fp8 and up to 64 rows of x, for Hopper: w streams past once, in tiles of kWidth of its rows, as
// many of them as there are multiprocessors or a little less; sums of every 128 products move to
// f32.
//
// A block of three warp groups: two threads of the first keep a ring of stages, 128 bytes of K
// each, filled, one with x and one with w. The other two groups take stages by turns; both have
// sums of the whole tile, which the second hands to the first, and that finishes it.
//
// kScaled: each stage's sums move times the scales of its block. All scales of x lie in shared
// memory from the start; those of w are asked for a stage ahead.
#pragma once

#include "csrc/linear/promote_sm90a.cuh"

namespace lowbit {
namespace {

template <class Mma_, int kWidth_, bool kScaled_>
struct PromoteFew {
  using Mma = Mma_;
  static constexpr int kWidth = kWidth_, kRows = 64, kCols = kWidth;
  static constexpr bool kScaled = kScaled_;
  static constexpr int kStage = (kRows + kWidth) * 128;
  static constexpr int kPartStride = kWidth + 8;  // f32; 8 keeps a warp's writes apart
  static constexpr int kPart = kRows * kPartStride * 4;
  static constexpr int kOut = 4 * kWarpPatch;
  static constexpr int kColumns = 2 * kWidth * 4;  // scale and bias of every column
  static constexpr int kBarriers = 512;
  static constexpr int kRest = kPart + kOut + kColumns + kBarriers;
  static constexpr int kMost = 24;  // stages

  // Floats from row to row of the scales of x: rows lie in different banks.
  static int scale_stride(int k_blocks) { return (k_blocks + 31) / 32 * 32 + 4; }
  static int scale_bytes(int k_blocks) { return kScaled ? kRows * scale_stride(k_blocks) * 4 : 0; }
  static int stages(int k_blocks) {
    const int fit = (232448 - kRest - scale_bytes(k_blocks)) / kStage;
    return fit < kMost ? fit : kMost;
  }
};

struct FewShape {
  int32_t m, n, steps;
  int32_t stages;  // of the ring
  int32_t box;     // rows of x in a load
  int32_t tiles;
  int32_t scale_stride;
};

// A ring of a run-time number of stages.
struct FewRing {
  uint32_t slot = 0, parity = 0;
  __device__ __forceinline__ void advance(uint32_t by, uint32_t stages) {
    slot += by;
    if (slot >= stages) slot -= stages, parity ^= 1;
  }
};

template <class P>
__global__ void __launch_bounds__(384, 1)
    promote_few_kernel(const __grid_constant__ CUtensorMap map_x,
                       const __grid_constant__ CUtensorMap map_w, const Finish f,
                       const Blocks blocks, const FewShape shape, const bool plain) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t stages = shape.stages;
  float* const sPart = reinterpret_cast<float*>(shared + stages * P::kStage);
  uint8_t* const sOut = reinterpret_cast<uint8_t*>(sPart) + P::kPart;
  float* const sColumn = reinterpret_cast<float*>(sOut + P::kOut);
  uint64_t* const full = reinterpret_cast<uint64_t*>(sColumn + 2 * P::kWidth);
  uint64_t* const empty = full + P::kMost;
  float* const sFactor = reinterpret_cast<float*>(full + P::kBarriers / 8);  // scales of x
  const int t = threadIdx.x, group = __shfl_sync(~0u, t / 128, 0);

  if (t == 0) {
    tma_prefetch(&map_w);
    for (uint32_t s = 0; s < stages; ++s) {
      barrier_init(&full[s], 2);
      barrier_init(&empty[s], 1);
    }
    barrier_init_fence();
  } else if (t == 32) {
    tma_prefetch(&map_x);
  }
  __syncthreads();
  FewRing ring;

  if (group == 0) {
    if (t == 0 || t == 32) {
      for (int tile = blockIdx.x; tile < shape.tiles; tile += gridDim.x) {
        for (int kb = 0; kb < shape.steps; ++kb) {
          uint64_t* const bar = &full[ring.slot];
          barrier_wait(&empty[ring.slot], ring.parity ^ 1);
          uint8_t* const stage = shared + ring.slot * P::kStage;
          if (t == 0) {
            barrier_expect(bar, P::kWidth * 128);
            tma_load(stage + P::kRows * 128, &map_w, kb * 128, tile * P::kWidth, bar);
          } else {
            barrier_expect(bar, shape.box * 128);
            tma_load(stage, &map_x, kb * 128, 0, bar);
          }
          ring.advance(1, stages);
        }
      }
    }
    return;
  }

  const int g = group - 1, lane = t % 32, warp = t / 32 % 4;
  if constexpr (P::kScaled) {  // while the first stages are on their way
    for (int r = warp + g * 4; r < shape.m; r += 8) {
      for (int k = lane; k < shape.steps; k += 32) {
        float* const to = sFactor + r * shape.scale_stride + k;
        if (blocks.x != nullptr) {
          cp_async<4>(smem_address(to), blocks.x + r * blocks.x_stride + k, true);
        } else {
          *to = 1.0f;
        }
      }
    }
    cp_async_commit();
    cp_async_wait<0>();
    asm volatile("bar.sync 1, 256;" ::: "memory");
  }

  constexpr bool kStraddles = 128 % P::kWidth != 0;
  uint32_t d[P::kWidth / 2], part[P::kWidth / 2];
  ring.advance(g, stages);
  for (int tile = blockIdx.x; tile < shape.tiles; tile += gridDim.x) {
    const int col = tile * P::kWidth;
    float column_scale = 0.0f, column_bias = 0.0f, row_scale[2] = {1.0f, 1.0f};
    if (g == 0) {
      const int n = col + t % 128;
      if (t % 128 < P::kWidth && n < shape.n) {
        column_scale = w_scale_of(f, n);
        column_bias = bias_of(f, n);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int m = warp * 16 + lane / 4 + r * 8;
        if (f.x_scale != nullptr && m < shape.m) row_scale[r] = f.x_scale[m];
      }
    }
#pragma unroll
    for (uint32_t& v : d) v = 0;

    // A tile meets two blocks of 128 rows of w at most; the second begins at column `border`.
    const int border = 128 - col % 128;
    // Bits, of the dtype that the scales have: a conversion would wait for them.
    uint32_t of_w[2] = {};
    const auto ask_scales = [&](int kb) {
      if (!P::kScaled || blocks.w == nullptr) return;
#pragma unroll
      for (int i = 0; i < (kStraddles ? 2 : 1); ++i) {
        const int row = min(col / 128 + i, (shape.n - 1) / 128);
        const int64_t at = int64_t{row} * blocks.k_blocks + min(kb, shape.steps - 1);
        of_w[i] = blocks.w_dtype == DType::f32 ? static_cast<const uint32_t*>(blocks.w)[at]
                                               : static_cast<const uint16_t*>(blocks.w)[at];
      }
    };
    // Stages of a tile go on where those of the last ended, so the groups may have changed places.
    const int begin = (g + (tile / gridDim.x) * (shape.steps & 1)) & 1;
    if (begin < shape.steps) ask_scales(begin);
    for (int kb = begin; kb < shape.steps; kb += 2) {
      barrier_wait(&full[ring.slot], ring.parity);
      const uint8_t* const stage = shared + ring.slot * P::kStage;
      const uint64_t x = wgmma_tile(stage), w = wgmma_tile(stage + P::kRows * 128);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<typename P::Mma, P::kWidth>::ss(part, x + step * kTileStep, w + step * kTileStep,
                                              step > 0);
      }
      wgmma_commit();
      float factor[2][2];
      if constexpr (P::kScaled) {
#pragma unroll
        for (int i = 0; i < (kStraddles ? 2 : 1); ++i) {
          const float w_scale = blocks.w == nullptr ? 1.0f : float_of(blocks.w_dtype, of_w[i]);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            factor[i][r] =
                w_scale * sFactor[(warp * 16 + lane / 4 + r * 8) * shape.scale_stride + kb];
          }
        }
        ask_scales(kb + 2);
      }
      wgmma_wait<0>();
      pin(part);
      if (t % 128 == 0) barrier_arrive(&empty[ring.slot]);
#pragma unroll
      for (int i = 0; i < P::kWidth / 2; ++i) {
        const float a = __uint_as_float(part[i]), b = __uint_as_float(d[i]);
        if constexpr (P::kScaled) {
          const int r = i / 2 % 2;
          const float s = !kStraddles || i / 4 * 8 < border ? factor[0][r] : factor[1][r];
          d[i] = __float_as_uint(fmaf(a, s, b));
        } else {
          d[i] = __float_as_uint(a + b);
        }
      }
      ring.advance(2, stages);
    }

    float* const mine = sPart + (warp * 16 + lane / 4) * P::kPartStride + lane % 4 * 2;
    if (g == 1) {
#pragma unroll
      for (int c = 0; c < P::kWidth / 8; ++c) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          *reinterpret_cast<float2*>(mine + r * 8 * P::kPartStride + c * 8) =
              float2{__uint_as_float(d[c * 4 + 2 * r]), __uint_as_float(d[c * 4 + 2 * r + 1])};
        }
      }
    } else if (t % 128 < P::kWidth) {
      set_column(sColumn, t % 128, column_scale, column_bias);
    }
    asm volatile("bar.sync 1, 256;" ::: "memory");
    if (g == 0 && warp * 16 < shape.m) {
      const auto scaled = [&](int chunk, float(&v)[4]) {
        const float4 of = reinterpret_cast<const float4*>(sColumn)[chunk * 4 + lane % 4];
        const float2 p = *reinterpret_cast<const float2*>(mine + chunk * 8);
        const float2 q = *reinterpret_cast<const float2*>(mine + 8 * P::kPartStride + chunk * 8);
        const uint32_t* const sums = d + chunk * 4;
        v[0] = fmaf(__uint_as_float(sums[0]) + p.x, row_scale[0] * of.x, of.z);
        v[1] = fmaf(__uint_as_float(sums[1]) + p.y, row_scale[0] * of.y, of.w);
        v[2] = fmaf(__uint_as_float(sums[2]) + q.x, row_scale[1] * of.x, of.z);
        v[3] = fmaf(__uint_as_float(sums[3]) + q.y, row_scale[1] * of.y, of.w);
      };
      uint8_t* const patch = sOut + warp * kWarpPatch;
      if (!plain) {
        walk_warp<P::kWidth>(f, patch, warp * 16, col, scaled);
      } else if (f.out_dtype == DType::bf16) {
        store_warp<P::kWidth, DType::bf16>(f, patch, warp * 16, col, scaled);
      } else {
        store_warp<P::kWidth, DType::f16>(f, patch, warp * 16, col, scaled);
      }
    }
    // The parts are read before the next tile's are written.
    if (tile + gridDim.x < shape.tiles) asm volatile("bar.sync 1, 256;" ::: "memory");
  }
}

template <class P>
static cudaError_t launch_promote_few(const Matrix& x, const Matrix& w, const Finish& f,
                                      int processors, cudaStream_t stream, const Blocks& blocks) {
  CUtensorMap map_x, map_w;
  const bool plain = stores_plainly(f);
  cudaError_t e = tile_map({x.data, x.rows, x.columns, x.row_bytes, 1, f.m}, &map_x);
  if (e == cudaSuccess) {
    e = tile_map({w.data, w.rows, w.columns, w.row_bytes, 1, P::kWidth}, &map_w);
  }
  if (e != cudaSuccess) return e;
  const int steps = static_cast<int>((x.columns + 127) / 128);
  const int tiles = (f.n + P::kWidth - 1) / P::kWidth;
  const FewShape shape = {f.m, f.n, steps, P::stages(steps), f.m, tiles, P::scale_stride(steps)};
  auto* const kernel = promote_few_kernel<P>;
  static std::atomic<uint64_t> asked = 0;
  e = allow_shared(kernel, 232448, asked);
  if (e != cudaSuccess) return e;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(tiles < processors ? tiles : processors));
  config.blockDim = dim3(384);
  config.dynamicSmemBytes = shape.stages * P::kStage + P::kRest + P::scale_bytes(steps);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, map_x, map_w, f, blocks, shape, plain);
}

}  // namespace
}  // namespace lowbit
