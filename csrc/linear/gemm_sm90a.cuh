// The GEMM of Hopper for many rows of x: both operands row-major with K innermost, eight or sixteen
// bits an element, straight from device memory through the copy engine to the tensor cores.
//
// A block of three warp groups works on tiles of 128 * kSlabs rows of x by kCols rows of w: one
// thread of the first group keeps a ring of kStages pairs of tiles, 128 bytes of K each, filled;
// the other two groups multiply, 64 * kSlabs rows each, and finish their rows. The grid is as large
// as the device; tiles go round in bands, so that what a wave reads fits in L2.
#pragma once

#include "csrc/cuda/cluster.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/tensor_map.cuh"
#include "csrc/cuda/tma.cuh"
#include "csrc/cuda/wgmma.cuh"
#include "csrc/linear/finish_warp_sm90a.cuh"
#include "csrc/linear/x_rows_sm80.cuh"

namespace lowbit {
namespace {

template <class Mma_, int kSlabs_, int kCols_>
struct Gemm {
  using Mma = Mma_;
  static constexpr int kSlabs = kSlabs_, kCols = kCols_, kRows = 128 * kSlabs;
  static constexpr bool kInteger = std::is_same_v<Mma, MmaS8>;
  static constexpr int kElement =
      std::is_same_v<Mma, MmaBf16> || std::is_same_v<Mma, MmaF16> ? 2 : 1;  // bytes
  static constexpr int kK = 128 / kElement;                                 // elements in a stage
  static constexpr int kStage = (kRows + kCols) * 128;
  // Finished rows leave by 16 KB of each group, 128 columns in 16 bits. Scale and bias of every
  // column: 8 * kCols bytes.
  static constexpr int kOut = 2 * 16384, kColumns = kCols * 8, kBarriers = 128;
  static constexpr int kSharedMax = 232448;  // of a block on sm_90
  static constexpr int kFit = (kSharedMax - kOut - kColumns - kBarriers) / kStage;
  static constexpr int kStages = kFit < 8 ? kFit : 8;  // more buys nothing: 64 KB in flight suffice
  static constexpr int kShared = kStages * kStage + kOut + kColumns + kBarriers;
  static_assert(kStages >= 3 && kCols % 64 == 0 && kSlabs * kCols <= 256);
};

struct GemmShape {
  int32_t m, n, k_blocks;  // rows of x, rows of w, stages of K
  int32_t box = 0;  // rows of x in a load: the copy engine is slow at rows that are not there
};

// Bands of 2048 rows of x, column by column inside.
template <class G>
__device__ __forceinline__ void tile_at(int index, const GemmShape& s, int* row, int* col) {
  const int rows = (s.m + G::kRows - 1) / G::kRows, cols = (s.n + G::kCols - 1) / G::kCols;
  const int band = min(2048 / G::kRows, rows), in_band = band * cols, b = index / in_band;
  const int height = min(band, rows - b * band), i = index - b * in_band;
  *col = i / height;
  *row = b * band + i - *col * height;
}

template <class G>
__device__ __forceinline__ float sum_of(uint32_t bits) {
  if constexpr (G::kInteger) return static_cast<float>(static_cast<int32_t>(bits));
  return __uint_as_float(bits);
}

template <class G>
__device__ __forceinline__ void multiply(uint32_t (&d)[G::kCols / 2], uint64_t a, uint64_t b,
                                         bool add) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    Wgmma<typename G::Mma, G::kCols>::ss(d, a + step * kTileStep, b + step * kTileStep,
                                         add || step > 0);
  }
}

template <class G>
__global__ void __launch_bounds__(384, 1)
    gemm_kernel(const __grid_constant__ CUtensorMap map_x,
                const __grid_constant__ CUtensorMap map_w,
                const __grid_constant__ CUtensorMap map_out, const Finish f, const GemmShape shape,
                const bool plain) {
  extern __shared__ __align__(1024) uint8_t shared[];
  uint8_t* const sOut = shared + G::kStages * G::kStage;
  float* const sColumn = reinterpret_cast<float*>(sOut + G::kOut);
  uint64_t* const full = reinterpret_cast<uint64_t*>(sColumn + 2 * G::kCols);
  uint64_t* const empty = full + G::kStages;
  // The shuffle tells the compiler that a warp is of one group.
  const int t = threadIdx.x, group = __shfl_sync(~0u, t / 128, 0);

  if (t == 0) {
    for (int s = 0; s < G::kStages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], 2);
    }
    barrier_init_fence();
  }
  __syncthreads();
  const int tiles = ((shape.m + G::kRows - 1) / G::kRows) * ((shape.n + G::kCols - 1) / G::kCols);
  Ring<G::kStages> ring;

  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (t != 0) return;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      int row, col;
      tile_at<G>(tile, shape, &row, &col);
      for (int kb = 0; kb < shape.k_blocks; ++kb) {
        barrier_wait(&empty[ring.slot], ring.parity ^ 1);
        barrier_expect(&full[ring.slot], (shape.box + G::kCols) * 128);
        uint8_t* const sX = shared + ring.slot * G::kStage;  // (kRows, 128 bytes of K)
        uint8_t* const sW = sX + G::kRows * 128;             // (kCols, 128 bytes of K)
        tma_load(sX, &map_x, kb * G::kK, row * G::kRows, &full[ring.slot]);
        tma_load(sW, &map_w, kb * G::kK, col * G::kCols, &full[ring.slot]);
        advance(ring);
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  const int g = group - 1, lane = t % 32, warp = t / 32 % 4;
  uint8_t* const sMine = sOut + g * (G::kOut / 2) + warp * kWarpPatch;
  uint32_t d[G::kSlabs][G::kCols / 2];  // (64 * kSlabs, kCols) of the group

  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int row, col;
    tile_at<G>(tile, shape, &row, &col);
    // Asked for now, stored after the products: the latency hides behind them. Group 1 takes the
    // scales, group 2 the biases.
    float column[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int c = t % 128 + i * 128, n = col * G::kCols + c;
      column[i] = 0.0f;
      if (c < G::kCols && n < shape.n) column[i] = g == 0 ? w_scale_of(f, n) : bias_of(f, n);
    }

    uint32_t last = 0;
    for (int kb = 0; kb < shape.k_blocks; ++kb) {
      barrier_wait(&full[ring.slot], ring.parity);
      const uint64_t x = wgmma_tile(shared + ring.slot * G::kStage + g * G::kSlabs * 64 * 128);
      const uint64_t w = wgmma_tile(shared + ring.slot * G::kStage + G::kRows * 128);
      wgmma_fence();
#pragma unroll
      for (int slab = 0; slab < G::kSlabs; ++slab) {
        multiply<G>(d[slab], x + slab * kTileSlab, w, kb > 0);
      }
      wgmma_commit();
      if (kb > 0) {  // the products of the stage before are done
        wgmma_wait<1>();
        if (t % 128 == 0) barrier_arrive(&empty[last]);
      }
      last = ring.slot;
      advance(ring);
    }
    wgmma_wait<0>();
    if (t % 128 == 0) barrier_arrive(&empty[last]);

#pragma unroll
    for (int slab = 0; slab < G::kSlabs; ++slab) pin(d[slab]);
    asm volatile("bar.sync 3, 256;" ::: "memory");  // both groups have read the last tile's columns
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int c = t % 128 + i * 128;
      if (c < G::kCols) column_slot(sColumn, c)[g * 2] = column[i];
    }
    asm volatile("bar.sync 3, 256;" ::: "memory");

#pragma unroll
    for (int slab = 0; slab < G::kSlabs; ++slab) {
      const int first = row * G::kRows + (g * G::kSlabs + slab) * 64;  // row of x
      const int upper = first + warp * 16 + lane / 4;
      float scale[2] = {1.0f, 1.0f};
      if (f.x_scale != nullptr) {
        if (upper < shape.m) scale[0] = f.x_scale[upper];
        if (upper + 8 < shape.m) scale[1] = f.x_scale[upper + 8];
      }
      // Scales and bias of accumulators 4 * chunk to 4 * chunk + 3: 8 columns of the warp's rows.
      const auto scaled = [&](int chunk, float(&v)[4]) {
        const float4 of = reinterpret_cast<const float4*>(sColumn)[chunk * 4 + lane % 4];
        v[0] = fmaf(sum_of<G>(d[slab][4 * chunk]), scale[0] * of.x, of.z);
        v[1] = fmaf(sum_of<G>(d[slab][4 * chunk + 1]), scale[0] * of.y, of.w);
        v[2] = fmaf(sum_of<G>(d[slab][4 * chunk + 2]), scale[1] * of.x, of.z);
        v[3] = fmaf(sum_of<G>(d[slab][4 * chunk + 3]), scale[1] * of.y, of.w);
      };
      const int m = first + warp * 16, n = col * G::kCols;
      if (!plain) {
        walk_warp<G::kCols>(f, sMine, m, n, scaled);
      } else if (f.out_dtype == DType::bf16) {
        send_warp<G::kCols, 2, DType::bf16>(&map_out, sMine, m, n, scaled);
      } else {
        send_warp<G::kCols, 2, DType::f16>(&map_out, sMine, m, n, scaled);
      }
    }
  }
  if (plain && lane == 0) store_wait_all();
}

// Operands whose rows start at multiples of 16 bytes.
template <class G>
static cudaError_t launch_gemm(const Matrix& x, const Matrix& w, const Finish& f, int processors,
                               cudaStream_t stream) {
  CUtensorMap map_x, map_w, map_out = {};
  const bool plain = stores_plainly(f);
  const int box = f.m < G::kRows ? f.m : G::kRows;
  cudaError_t e = tile_map({x.data, x.rows, x.columns, x.row_bytes, G::kElement, box}, &map_x);
  if (e == cudaSuccess) {
    e = tile_map({w.data, w.rows, w.columns, w.row_bytes, G::kElement, G::kCols}, &map_w);
  }
  if (e == cudaSuccess && plain) {
    e = tile_map({f.out, f.m, f.n, f.out_stride * 2, 2, 16}, &map_out);
  }
  if (e != cudaSuccess) return e;
  const GemmShape shape = {f.m, f.n, static_cast<int32_t>((x.columns + G::kK - 1) / G::kK), box};
  const int tiles = ((f.m + G::kRows - 1) / G::kRows) * ((f.n + G::kCols - 1) / G::kCols);
  auto* const kernel = gemm_kernel<G>;
  static std::atomic<uint64_t> asked = 0;
  e = allow_shared(kernel, G::kShared, asked);
  if (e != cudaSuccess) return e;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(tiles < processors ? tiles : processors));
  config.blockDim = dim3(384);
  config.dynamicSmemBytes = G::kShared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, map_x, map_w, map_out, f, shape, plain);
}

}  // namespace
}  // namespace lowbit
