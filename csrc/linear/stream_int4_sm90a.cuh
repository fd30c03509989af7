// Few rows of x against int4 weights: stream_sm90a.cuh with w's codes decoded in registers.
//
// w lies in frag64 (format/layout.h), where 16 bytes of a thread are what it multiplies next, so a
// stage is two runs of bytes: 128 of K of two panels of 64 rows, scales behind the codes
// (decode_int4.cuh). Products of a group of K are added in the tensor core, their sum enters the
// total times its scale. With x in bytes the lanes of four first exchange codes, because frag64 has
// them in the order of 16-bit fragments.
#pragma once

#include "csrc/linear/decode_int4.cuh"
#include "csrc/linear/stream_sm90a.cuh"

namespace lowbit {
namespace {

// kRows: of w in a tile. Of 64 a block's two groups multiply every other unit and have a part each.
template <class Mma_, int kTokens_, int kGroup_, int kRows_ = kStreamRows>
struct StreamInt4 {
  using Mma = Mma_;
  static constexpr int kRows = kRows_, kPanels = kRows / 64, kGroups = 2 / kPanels;
  static constexpr int kTokens = kTokens_, kGroup = kGroup_, kParts = 128 / kGroup;
  static_assert(kTokens * kParts <= 256);  // registers
  static constexpr bool kHalf = std::is_same_v<Mma, MmaF16>, kBytes = std::is_same_v<Mma, MmaS8>;
  static constexpr int kElement = kBytes ? 1 : 2;
  static constexpr int kColumns = kBytes ? 32 : 16,
                       kSteps = 64 / kColumns;  // of a product; of a half
  // What the scales of the upper and lower rows are multiplied by.
  static constexpr float kUpper = kBytes ? 1.0f / 16 : 1.0f;
  static constexpr float kLower = kBytes ? 1.0f / 16 : kLowerRows<kHalf>;
  static constexpr int kK = 128;  // of a stage
  static constexpr int kCodes = 64 * kK / 2;
  static constexpr int kUnit = kCodes + 64 * kParts * 4;   // f32 scales; 16-bit ones leave a gap
  static constexpr int kTiles = kTokens * 128 * kElement;  // bytes of x in a stage
  static constexpr int kStage = kTiles + kPanels * kUnit;
  static constexpr int kBlocks = kTokens >= 64 || kParts == 4 ? 1 : 2;  // of a multiprocessor
  static constexpr int kRing = (kBlocks == 2 ? kStreamShared : 220 * 1024) - 1024;
  // x first in every stage, for its alignment; the units of all stages behind.
  static constexpr int kFit = kRing / kStage;
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr int kShared = kStages * kStage + 128;
  static_assert(kTiles % 1024 == 0);
  static_assert(kGroups * kTokens * kRowStride<kRows> * 4 <= kStages * kStage);
};

struct Int4Shape {
  int32_t units, unit_bytes, panels;  // along K, of a panel; of w
  int32_t groups;                     // of K in a unit; 0: its scales are in Finish
  DType scale_dtype;                  // of the scales in a unit
};

// 32 codes of a thread into its fragments of two steps of 32 of K in bytes, less 8 and 16 times
// their value. Columns 4 q to 4 q + 3 of 16 lie with two of the four lanes.
__device__ __forceinline__ void decode_bytes(const uint4& w, uint32_t (&f)[2][4]) {
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
  const int lane = threadIdx.x % 32, from = (lane & ~3) + lane % 2 * 2;
  const uint32_t order = lane % 4 < 2 ? 0x6420 : 0x7531;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t low = __shfl_sync(~0u, words[j], from);
    const uint32_t high = __shfl_sync(~0u, words[j], from + 1);
    const uint32_t own = __byte_perm(low, high, order);
    f[j / 2][j % 2 * 2] = ((own << 4) & 0xF0F0F0F0u) ^ 0x80808080u;
    f[j / 2][j % 2 * 2 + 1] = (own & 0xF0F0F0F0u) ^ 0x80808080u;
  }
}

// Bands of 8 tiles of x, one tile of w after the other inside: what runs at one time shares both.
template <class S>
__device__ __forceinline__ void tile_of(int index, int panels, int m, int* tile, int* first) {
  const int rows = (m + S::kTokens - 1) / S::kTokens, cols = (panels + S::kPanels - 1) / S::kPanels;
  const int band = min(8, rows), in_band = band * cols, b = index / in_band;
  const int height = min(band, rows - b * band), i = index - b * in_band;
  *tile = i / height;
  *first = (b * band + i - *tile * height) * S::kTokens;
}

template <class S>
__global__ void __launch_bounds__(kStreamThreads, S::kBlocks)
    stream_int4_kernel(const __grid_constant__ CUtensorMap map_x, const uint8_t* w, const Finish f,
                       const Int4Shape shape) {
  extern __shared__ __align__(1024) uint8_t shared[];
  uint8_t* const sUnits = shared + S::kStages * S::kTiles;
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + S::kStages * S::kStage);
  uint64_t* const empty = full + S::kStages;
  const int t = threadIdx.x, lane = t % 32, warp = t / 32 % 4, g = t / 128;
  int tile, first;  // rows of w, in tiles; the first row of x
  tile_of<S>(blockIdx.y, shape.panels, f.m, &tile, &first);
  const int begin = shape.units * blockIdx.x / gridDim.x;
  const int end = shape.units * (blockIdx.x + 1) / gridDim.x;
  prefetch_finish(f, tile * S::kRows, S::kRows, first, min(S::kTokens, f.m - first));
  if (t == 0) {
    tma_prefetch(&map_x);
    for (int s = 0; s < S::kStages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], S::kPanels);
    }
    barrier_init_fence();
  }
  __syncthreads();
  Ring<S::kStages> ring;

  if (t >= 256) {
    if (t == 256) {
      const uint64_t once = evict_first(), often = evict_last();
      const int panels = min(S::kPanels, shape.panels - tile * S::kPanels);
      for (int unit = begin; unit < end; ++unit) {
        uint64_t* const bar = &full[ring.slot];
        barrier_wait(&empty[ring.slot], ring.parity ^ 1);
        barrier_expect(bar, S::kTiles + panels * shape.unit_bytes);
        for (int p = 0; p < panels; ++p) {
          bulk_load(sUnits + (ring.slot * S::kPanels + p) * S::kUnit,
                    w + (int64_t{tile * S::kPanels + p} * shape.units + unit) * shape.unit_bytes,
                    shape.unit_bytes, bar, once);
        }
        uint8_t* const sX = shared + ring.slot * S::kTiles;  // 2 x (kTokens, 64 of K), or all 128
        tma_load(sX, &map_x, unit * 128, first, bar, often);
        if constexpr (!S::kBytes) {
          tma_load(sX + S::kTokens * 128, &map_x, unit * 128 + 64, first, bar, often);
        }
        advance(ring);
      }
    }
    __syncwarp();
  } else {
    uint32_t d[S::kTokens / 2];  // f32: (64 rows of w, kTokens) of the group
    uint32_t part[S::kParts][S::kTokens / 2];
    uint32_t frag[2][S::kSteps][4];
    float scale[S::kParts][2], next_scale[S::kParts][2];
#pragma unroll
    for (uint32_t& v : d) v = 0;

    // 64 of K, half a unit, decoded; the first half brings the unit's scales.
    const auto fetch = [&](auto half, const Ring<S::kStages>& at) {
      constexpr int kHalf = decltype(half)::value;
      const uint8_t* const unit = sUnits + (at.slot * S::kPanels + g % S::kPanels) * S::kUnit;
      if constexpr (kHalf == 0) {
        barrier_wait(&full[at.slot], at.parity);
#pragma unroll
        for (int p = 0; p < S::kParts; ++p) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            // A group may be wider than a part, but no unit has half a group.
            const int group = p * shape.groups / S::kParts;
            const int row = group * 64 + warp * 16 + lane / 4 + i * 8;
            next_scale[p][i] =
                shape.groups == 0 ? 1.0f : load_float(unit + S::kCodes, shape.scale_dtype, row);
          }
          next_scale[p][0] *= S::kUpper;
          next_scale[p][1] *= S::kLower;
        }
      }
      const uint4& codes = *reinterpret_cast<const uint4*>(unit + kHalf * 2048 + t % 128 * 16);
      if constexpr (S::kBytes) {
        decode_bytes(codes, frag[kHalf]);
      } else {
        decode<S::kHalf>(codes, frag[kHalf]);
      }
#pragma unroll
      for (int j = 0; j < S::kSteps; ++j) pin(frag[kHalf][j]);
    };
    const auto issue = [&](auto half, const Ring<S::kStages>& at) {
      constexpr int kHalf = decltype(half)::value;
      const uint64_t x =
          wgmma_tile(shared + at.slot * S::kTiles + (S::kBytes ? 0 : kHalf * S::kTokens * 128)) +
          (S::kBytes ? kHalf * S::kSteps * kTileStep : 0);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < S::kSteps; ++j) {
        constexpr int kSteps = S::kGroup / S::kColumns;  // of a part
        const int step = kHalf * S::kSteps + j;
        Wgmma<typename S::Mma, S::kTokens>::rs(part[step / kSteps], frag[kHalf][j],
                                               x + j * kTileStep, step % kSteps > 0);
      }
      wgmma_commit();
    };
    const auto promote = [&](const Ring<S::kStages>& at) {
      wgmma_wait<0>();
#pragma unroll
      for (int p = 0; p < S::kParts; ++p) {
        pin(part[p]);
#pragma unroll
        for (int i = 0; i < S::kTokens / 2; ++i) {
          const float sum = S::kBytes ? static_cast<float>(static_cast<int32_t>(part[p][i]))
                                      : __uint_as_float(part[p][i]);
          d[i] = __float_as_uint(fmaf(sum, scale[p][i / 2 % 2], __uint_as_float(d[i])));
        }
      }
      if (t % 128 == 0) barrier_arrive(&empty[at.slot]);
    };
    const auto take_scales = [&] {
#pragma unroll
      for (int p = 0; p < S::kParts; ++p) {
        scale[p][0] = next_scale[p][0];
        scale[p][1] = next_scale[p][1];
      }
    };
    // While the tensor cores work on one half the next is decoded. Fragments are never written
    // under a condition (C7520), hence the last unit on its own.
    constexpr std::integral_constant<int, 0> kFirst{};
    constexpr std::integral_constant<int, 1> kSecond{};
    const int mine = S::kGroups == 2 ? begin + g : begin;
    if (mine > begin) advance(ring);
    if (mine < end) {
      fetch(kFirst, ring);
      for (int unit = mine; unit + S::kGroups < end; unit += S::kGroups) {
        const Ring<S::kStages> at = ring;
        issue(kFirst, at);
        fetch(kSecond, at);
        issue(kSecond, at);
        take_scales();
        wgmma_wait<1>();  // the first half's fragments are free again
#pragma unroll
        for (int i = 0; i < S::kGroups; ++i) advance(ring);
        fetch(kFirst, ring);
        promote(at);
      }
      issue(kFirst, ring);
      fetch(kSecond, ring);
      issue(kSecond, ring);
      take_scales();
      promote(ring);
    }
    asm volatile("bar.sync 1, 256;" ::: "memory");  // nobody reads the ring any more
    put_part<false, S::kTokens, S::kRows>(reinterpret_cast<float*>(shared), d);
  }
  finish_parts<false, S::kRows, S::kTokens>(f, reinterpret_cast<float*>(shared), tile, first,
                                            min(S::kTokens, f.m - first));
}

template <class S>
static cudaError_t launch_int4(const Matrix& x, const uint8_t* w, const Int4Shape& shape,
                               const Finish& f, int processors, cudaStream_t stream) {
  // Tiles of 64 rows of w where all of them fit at one time.
  if constexpr (S::kRows == kStreamRows && S::kGroup == 128 &&
                (S::kTokens == 32 || S::kTokens == 64)) {
    if (f.m <= S::kTokens && shape.panels <= processors) {
      return launch_int4<StreamInt4<typename S::Mma, S::kTokens, 128, 64>>(x, w, shape, f,
                                                                           processors, stream);
    }
  }
  CUtensorMap map_x = {};
  cudaError_t e = cudaSuccess;
  if (x.columns > 0) {
    e = tile_map({x.data, x.rows, x.columns, x.row_bytes, S::kElement, S::kTokens}, &map_x);
    if (e != cudaSuccess) return e;
  }
  static std::atomic<uint64_t> asked = 0;
  e = allow_shared(stream_int4_kernel<S>, S::kShared, asked);
  if (e != cudaSuccess) return e;
  const int tiles = static_cast<int>(ceil_div(f.n, S::kRows) * ceil_div(f.m, S::kTokens));
  return launch_stream(
      stream_int4_kernel<S>, tiles,
      stream_split(tiles, shape.units, processors, S::kTokens >= 64 || S::kRows == 64 ? 2 : 4),
      S::kShared, stream, map_x, w, f, shape);
}

}  // namespace
}  // namespace lowbit
