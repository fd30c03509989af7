// The GEMM of Hopper for few rows of x: w streams past once, at the speed of device memory.
//
// Operands change sides: 128 or 64 rows of w are the rows of a product, up to 128 rows of x its
// columns, so that a small M wastes nothing. A cluster of up to 8 blocks shares one such tile along
// K; each block keeps a ring filled, adds up its part in registers and lays it in its shared
// memory; then every block finishes an equal share of the tile, reading its peers' parts in the
// order of their ranks. Of 128 rows each of a block's two groups multiplies 64; of 64 rows they
// take every other stage and have a part each. How K is cut depends on N and K alone, so a row of x
// gives the same bits in any company.
//
// Two blocks live on a multiprocessor. More tiles than that share the memory evenly, because what a
// block gets follows the bytes it has in flight: hence no persistent grid here.
#pragma once

#include "csrc/cuda/cluster.cuh"
#include "csrc/linear/gemm_sm90a.cuh"

namespace lowbit {
namespace {

inline constexpr int kStreamRows = 128;           // rows of w in a tile
inline constexpr int kStreamThreads = 288;        // two groups that multiply, one warp that loads
inline constexpr int kStreamShared = 113 * 1024;  // of a block, when two share the 228 KB
template <int kRows>
inline constexpr int kRowStride = kRows + 4;  // f32; 4 keeps a warp's writes apart
inline constexpr int kPartStride = kRowStride<kStreamRows>;

inline constexpr int kStreamSplit = 8;  // blocks of a cluster at most

// The part of a block, or of a group: sums of K's slice, [tokens][kRowStride], in the memory of
// the drained ring.
template <bool kInteger, int kTokens, int kRows = kStreamRows>
__device__ __forceinline__ void put_part(float* sPart, const uint32_t (&d)[kTokens / 2]) {
  constexpr int kStride = kRowStride<kRows>;
  const int t = threadIdx.x, lane = t % 32, g = kRows == 64 ? t / 128 : 0;
  float* const to =
      sPart + (g * kTokens + lane % 4 * 2) * kStride + t / 32 % (kRows / 16) * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    to[(i / 4 * 8 + i % 2) * kStride + i / 2 % 2 * 8] = __uint_as_float(d[i]);
  }
}

// All threads of all blocks of the cluster come here. kTokens: between the parts of two groups.
template <bool kInteger, int kRows = kStreamRows, int kTokens = 0>
__device__ __forceinline__ void finish_parts(const Finish& f, float* sPart, int tile, int first,
                                             int tokens) {
  constexpr int kStride = kRowStride<kRows>, kGroups = kRows == 64 ? 2 : 1;
  const int t = threadIdx.x, blocks = gridDim.x, rank = blockIdx.x;
  cluster_sync();
  if (t < 256) {
    const uint32_t own = smem_address(sPart);
    for (int i = rank * 256 + t; i < tokens * (kRows / 8); i += blocks * 256) {
      const int token = i / (kRows / 8), c = i % (kRows / 8) * 8;
      const int n = tile * kRows + c;
      if (n >= f.n) continue;
      const uint32_t at = own + (token * kStride + c) * 4;
      float v[8] = {};
      int32_t whole[8] = {};
      // All parts are asked for before the first is used.
      constexpr int kMost = kStreamSplit / kGroups;
      float part[kMost][kGroups][8];
#pragma unroll
      for (int r = 0; r < kMost; ++r) {
        if (r >= blocks) break;
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          const uint32_t from = cluster_address(at + g * kTokens * kStride * 4, r);
          *reinterpret_cast<float4*>(part[r][g]) = cluster_load(from);
          *reinterpret_cast<float4*>(part[r][g] + 4) = cluster_load(from + 16);
        }
      }
#pragma unroll
      for (int r = 0; r < kMost; ++r) {
        if (r >= blocks) break;
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            if (kInteger) whole[j] += __float_as_int(part[r][g][j]);
            if (!kInteger) v[j] += part[r][g][j];
          }
        }
      }
      if (kInteger) {
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = static_cast<float>(whole[j]);
      }
      scale_row(f, first + token, n, v);
      finish_row(f, first + token, n, v);
    }
  }
  cluster_sync_read();  // peers may still read this block's part
}

// w as it lies in device memory, row-major: tiles of both operands by the copy engine.
template <class Mma_, int kTokens_, bool kPromote_ = false, int kRows_ = kStreamRows>
struct Stream {
  using Mma = Mma_;
  static constexpr int kRows = kRows_, kGroups = kRows == 64 ? 2 : 1;  // that share K
  static_assert(kRows == 64 || kRows == 128);
  static constexpr int kTokens = kTokens_, kCols = kTokens_;
  static constexpr bool kPromote = kPromote_;
  static constexpr bool kInteger = std::is_same_v<Mma, MmaS8>;
  static constexpr int kElement =
      std::is_same_v<Mma, MmaBf16> || std::is_same_v<Mma, MmaF16> ? 2 : 1;
  static constexpr int kK = 128 / kElement;
  static constexpr int kStage = (kRows + kTokens) * 128;
  // Pairs of blocks have a multiprocessor each to themselves.
  static constexpr int kBlocks = kRows == 64 ? 1 : 2;
  static constexpr int kFit = ((kBlocks == 1 ? 224 * 1024 : kStreamShared) - 1024) / kStage;
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr int kShared = kStages * kStage + 128;
  static_assert(kGroups * kTokens * kRowStride<kRows> * 4 <= kStages * kStage);
};

template <class S>
__global__ void __launch_bounds__(kStreamThreads, S::kBlocks)
    stream_kernel(const __grid_constant__ CUtensorMap map_x,
                  const __grid_constant__ CUtensorMap map_w, const Finish f, const Blocks blocks,
                  const int k_blocks) {
  extern __shared__ __align__(1024) uint8_t shared[];
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + S::kStages * S::kStage);
  uint64_t* const empty = full + S::kStages;
  const int t = threadIdx.x, tile = blockIdx.y;
  const int begin = k_blocks * blockIdx.x / gridDim.x;
  const int end = k_blocks * (blockIdx.x + 1) / gridDim.x;
  prefetch_finish(f, tile * S::kRows, S::kRows, 0, f.m);
  if (t == 0) {
    tma_prefetch(&map_x);
    tma_prefetch(&map_w);
    for (int s = 0; s < S::kStages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], 2 / S::kGroups);
    }
    barrier_init_fence();
  }
  __syncthreads();
  Ring<S::kStages> ring;

  if (t >= 256) {
    if (t == 256) {
      const uint64_t once = evict_first(), often = evict_last();
      for (int kb = begin; kb < end; ++kb) {
        barrier_wait(&empty[ring.slot], ring.parity ^ 1);
        barrier_expect(&full[ring.slot], S::kStage);
        uint8_t* const sW = shared + ring.slot * S::kStage;  // (kRows, 128 bytes of K)
        uint8_t* const sX = sW + S::kRows * 128;             // (kTokens, 128 bytes of K)
        tma_load(sW, &map_w, kb * S::kK, tile * S::kRows, &full[ring.slot], once);
        tma_load(sX, &map_x, kb * S::kK, 0, &full[ring.slot], often);
        advance(ring);
      }
    }
    __syncwarp();
  } else {
    const int g = t / 128, first = S::kGroups == 2 ? begin + g : begin;
    uint32_t d[S::kTokens / 2];  // (64 rows of w, kTokens) of the group
#pragma unroll
    for (uint32_t& v : d) v = 0;
    uint32_t last = 0;
    // Scales of blocks, of columns 8j + 2 (lane % 4) and the next, are asked for a stage ahead
    // where registers allow it.
    constexpr bool kAhead = S::kTokens <= 32;
    float w_next = 1.0f, x_next[S::kTokens / 4];
    const auto ask = [&](int kb) {
      if (kb >= end) return;
      w_next = w_block_of(blocks, tile * S::kRows / 128, kb);
#pragma unroll
      for (int i = 0; i < S::kTokens / 4; ++i) {
        const int m = i / 2 * 8 + t % 4 * 2 + i % 2;
        if (blocks.x != nullptr && m < f.m) x_next[i] = blocks.x[m * blocks.x_stride + kb];
      }
    };
    if constexpr (S::kPromote) {
#pragma unroll
      for (float& v : x_next) v = 1.0f;
      if (kAhead) ask(first);
    }
    if (first > begin) advance(ring);
    for (int kb = first; kb < end; kb += S::kGroups) {
      float factor[S::kTokens / 4];
      if constexpr (S::kPromote) {
        if (!kAhead) ask(kb);
#pragma unroll
        for (int i = 0; i < S::kTokens / 4; ++i) factor[i] = w_next * x_next[i];
        if (kAhead) ask(kb + S::kGroups);
      }
      barrier_wait(&full[ring.slot], ring.parity);
      const int slab = S::kGroups == 2 ? 0 : g * 64 * 128;
      const uint64_t w = wgmma_tile(shared + ring.slot * S::kStage + slab);
      const uint64_t x = wgmma_tile(shared + ring.slot * S::kStage + S::kRows * 128);
      if constexpr (S::kPromote) {
        uint32_t part[S::kTokens / 2];
        wgmma_fence();
        multiply<S>(part, w, x, false);
        wgmma_commit();
        wgmma_wait<0>();
        pin(part);
        if (t % 128 == 0) barrier_arrive(&empty[ring.slot]);
#pragma unroll
        for (int i = 0; i < S::kTokens / 2; ++i) {
          d[i] = __float_as_uint(
              fmaf(__uint_as_float(part[i]), factor[i / 4 * 2 + i % 2], __uint_as_float(d[i])));
        }
      } else {
        wgmma_fence();
        multiply<S>(d, w, x, true);
        wgmma_commit();
        if constexpr (S::kGroups == 2) {
          // The other group's products fill the wait; a slot kept until this group's next stage is
          // there would be one less asked for.
          wgmma_wait<0>();
          if (t % 128 == 0) barrier_arrive(&empty[ring.slot]);
          advance(ring);
          advance(ring);
          continue;
        }
        wgmma_wait<1>();
        if (kb > first && t % 128 == 0) barrier_arrive(&empty[last]);
        last = ring.slot;
      }
#pragma unroll
      for (int i = 0; i < S::kGroups; ++i) advance(ring);
    }
    wgmma_wait<0>();
    pin(d);
    asm volatile("bar.sync 1, 256;" ::: "memory");  // nobody reads the ring any more
    put_part<S::kInteger, S::kTokens, S::kRows>(reinterpret_cast<float*>(shared), d);
  }
  finish_parts<S::kInteger, S::kRows, S::kTokens>(f, reinterpret_cast<float*>(shared), tile, 0,
                                                  f.m);
}

// Blocks along K for one tile: as many as make up to `wanted` blocks, but each with work enough to
// be worth the exchange.
static inline int stream_split(int tiles, int k_blocks, int wanted, int most) {
  int split = 1;
  while (split < most && tiles * split * 2 <= wanted && k_blocks >= split * 2 * 4) split *= 2;
  return split;
}

template <class... Params, class... Given>
static cudaError_t launch_stream(void (*kernel)(Params...), int tiles, int split, int shared,
                                 cudaStream_t stream, const Given&... given) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(split), static_cast<unsigned>(tiles));
  config.blockDim = dim3(kStreamThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(split), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, given...);
}

// Whether tiles of 64 rows of w are better, by what was measured (NOTES.md): clusters of 4 take
// long over their exchange, pairs do not. x and w in bytes also where such tiles have a
// multiprocessor each and K is not cut.
template <class S>
static bool streams_64_rows(int n, int processors) {
  return ceil_div(n, 64) * (S::kElement == 1 ? 1 : 2) <= processors;
}

template <class S>
static cudaError_t launch_tiles(const Matrix& x, const Matrix& w, const Finish& f, int processors,
                                cudaStream_t stream, const Blocks& blocks = {}) {
  if constexpr (S::kRows == kStreamRows && !S::kPromote && S::kTokens <= 64) {
    if (streams_64_rows<S>(f.n, processors)) {
      return launch_tiles<Stream<typename S::Mma, S::kTokens, false, 64>>(x, w, f, processors,
                                                                          stream, blocks);
    }
  }
  CUtensorMap map_x, map_w;
  cudaError_t e =
      tile_map({x.data, x.rows, x.columns, x.row_bytes, S::kElement, S::kTokens}, &map_x);
  if (e == cudaSuccess) {
    e = tile_map({w.data, w.rows, w.columns, w.row_bytes, S::kElement, S::kRows}, &map_w);
  }
  if (e != cudaSuccess) return e;
  static std::atomic<uint64_t> asked = 0;
  e = allow_shared(stream_kernel<S>, S::kShared, asked);
  if (e != cudaSuccess) return e;
  const int k_blocks = static_cast<int>((x.columns + S::kK - 1) / S::kK);
  const int tiles = (f.n + S::kRows - 1) / S::kRows;
  // At most a block a multiprocessor and 4 a cluster: what more blocks keep in flight is less than
  // their exchange takes.
  constexpr int kMost = S::kRows == 64 ? 2 : 4;
  return launch_stream(stream_kernel<S>, tiles, stream_split(tiles, k_blocks, processors, kMost),
                       S::kShared, stream, map_x, map_w, f, blocks, k_blocks);
}

}  // namespace
}  // namespace lowbit
