// Many rows of x against int4 weights on Hopper: a block of 128 rows of w by kTokens rows of x, so
// that what is decoded once serves all of them.
//
// Operands change sides: codes of w become fragments in registers (decode_int4.cuh), the rows of a
// product; x is its columns, in a ring of tiles of 64 of K that the copy engine fills. Units of
// frag64 have a ring of their own. Two groups of warps take 64 rows of w each, all kTokens rows of
// x; while one decodes or adds up, the products of the other run.
//
// A group of K is added up by the tensor cores for kPart rows of x at a time; each sum enters the
// total times its scale, in f32. Weights with one scale a row need no such sums. The grid is as
// large as the device; tiles go round in bands of rows of x, whose x stays in L2.
#pragma once

#include "csrc/linear/decode_int4.cuh"
#include "csrc/linear/stream_sm90a.cuh"

namespace lowbit {
namespace {

// kGroup: columns of a group of K, 32, 64 or 128; 0: the scales are in Finish. kFlight: sums of
// groups that are in registers at once.
template <class Mma_, int kTokens_, int kPart_, int kFlight_, int kGroup_, bool kTakeTurns_ = false>
struct TileInt4 {
  using Mma = Mma_;
  static constexpr int kTokens = kTokens_, kPart = kPart_, kFlight = kFlight_, kGroup = kGroup_;
  static constexpr bool kTakeTurns = kTakeTurns_;
  static constexpr bool kHalf = std::is_same_v<Mma, MmaF16>;
  static constexpr int kParts = kTokens / kPart;
  // Fragments are made in sets of 64 of K, or of a group where that is less. Two sets are in
  // registers, what they hold is a turn of the loop.
  static constexpr int kSetK = kGroup == 32 ? 32 : 64, kSteps = kSetK / 16;
  static constexpr int kRows = 128;                                        // of w
  static constexpr int kTile = kTokens * 128;                              // x, 64 of K
  static constexpr int kScales = kGroup == 0 ? 0 : 64 * 128 / kGroup * 4;  // at most f32
  static constexpr int kUnit = 4096 + kScales;                             // of a panel of 64 rows
  static constexpr int kUnits = 3;
  static constexpr int kOut = 2 * 16384, kBarriers = 256;
  static constexpr int kFit = (232448 - kOut - kBarriers - kUnits * 2 * kUnit) / kTile;
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr int kShared = kStages * kTile + kOut + kUnits * 2 * kUnit + kBarriers;
  static_assert(kTokens * kPartStride * 4 <= kStages * kTile);
  static_assert(kStages >= 4 && kTokens % kPart == 0 && kPart % 64 == 0);
  // Totals, sums and fragments of a thread.
  static_assert(kTokens / 2 + (kGroup == 0 ? 0 : kFlight * kPart / 2) + 8 * kSteps <= 224);
};

struct TileShape {
  int32_t units, unit_bytes, panels;  // along K, of a panel; of w
  DType scale_dtype;                  // of the scales in a unit
};

// Bands of 1024 rows of x, one tile of w after the other inside: what runs at one time shares both.
template <class T>
__device__ __forceinline__ void int4_tile_at(int index, int panels, int m, int* tile, int* first) {
  const int rows = (m + T::kTokens - 1) / T::kTokens, cols = (panels + 1) / 2;
  const int band = min(1024 / T::kTokens, rows), in_band = band * cols, b = index / in_band;
  const int height = min(band, rows - b * band), i = index - b * in_band;
  *tile = i / height;
  *first = (b * band + i - *tile * height) * T::kTokens;
}

// As stmatrix(), each matrix transposed: row i of it in memory is column i of the fragment.
__device__ __forceinline__ void stmatrix_columns(void* p, const uint32_t (&w)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   smem_address(p)),
               "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
               : "memory");
}

// The finish of 64 rows of w, from row n on, by kTokens rows of x, by the four warps of a group.
// `out` is 16 KB of shared memory of the group's own, `bar` its barrier.
template <class T>
__device__ __forceinline__ void finish_tile(const Finish& f, const CUtensorMap* map_out, bool plain,
                                            uint8_t* out, int bar, int n, int first,
                                            const uint32_t (&d)[T::kParts][T::kPart / 2]) {
  const int t = threadIdx.x % 128, lane = t % 32, warp = t / 32;
  float scale[2], bias[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = min(n + warp * 16 + lane / 4 + i * 8, f.n - 1);
    scale[i] = w_scale_of(f, row);
    bias[i] = bias_of(f, row);
  }
  if (T::kGroup == 0) scale[1] *= kLowerRows<T::kHalf>;
  // Columns 2 (lane % 4) and the next of chunk j of 8 rows of x, of both rows of w.
  const auto scaled = [&](int j, float(&v)[4]) {
    const int part = j * 8 / T::kPart, at = j % (T::kPart / 8) * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = fmaf(__uint_as_float(d[part][at + i]), scale[i / 2], bias[i / 2]);
    }
  };
  if (plain) {
    constexpr int kBoxes = T::kTokens < 128 ? 1 : 2;  // of 64 rows of x by 64 columns, at a time
#pragma unroll
    for (int round = 0; round < T::kTokens / (64 * kBoxes); ++round) {
      if (t == 0) store_wait_read();
      asm volatile("bar.sync %0, 128;" ::"r"(bar) : "memory");
#pragma unroll
      for (int j = 0; j < kBoxes * 8; j += 2) {
        uint32_t words[4];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          float v[4];
          scaled(round * kBoxes * 8 + j + q, v);
          words[2 * q] = pack_pair(f.out_dtype, v[0], v[1]);
          words[2 * q + 1] = pack_pair(f.out_dtype, v[2], v[3]);
        }
        const int r = j % 8 * 8 + lane / 16 * 8 + lane % 8;
        stmatrix_columns(out + j / 8 * 8192 + swizzled(r, warp * 32 + lane / 8 % 2 * 16), words);
      }
      async_fence();
      asm volatile("bar.sync %0, 128;" ::"r"(bar) : "memory");
      if (t == 0) {
#pragma unroll
        for (int box = 0; box < kBoxes; ++box) {
          const int row = first + (round * kBoxes + box) * 64;
          if (row < f.m && n < f.n) tma_store(map_out, out + box * 8192, n, row);
        }
        store_commit();
      }
    }
  } else {
    // 64 rows of x at a time in f32, read back in runs of 8 columns. Runs are XORed with the row's
    // pair, for the banks.
    float* const sF32 = reinterpret_cast<float*>(out);
#pragma unroll
    for (int part = 0; part < T::kTokens / 64; ++part) {
      asm volatile("bar.sync %0, 128;" ::"r"(bar) : "memory");
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float v[4];
        scaled(part * 8 + j, v);
        const int r = j * 8 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int run = (warp * 2 + i / 2) ^ (lane % 4);
          sF32[(r + i % 2) * 64 + run * 8 + lane / 4] = v[i];
        }
      }
      asm volatile("bar.sync %0, 128;" ::"r"(bar) : "memory");
#pragma unroll 1
      for (int i = t; i < 64 * 8; i += 128) {
        const int r = i / 8, c = i % 8;
        const float* const from = sF32 + r * 64 + (c ^ (r / 2 % 4)) * 8;
        float v[8];
        *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(from);
        *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(from + 4);
        finish_row(f, first + part * 64 + r, n + c * 8, v);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(384, 1)
    tile_int4_kernel(const __grid_constant__ CUtensorMap map_x,
                     const __grid_constant__ CUtensorMap map_out, const uint8_t* w, const Finish f,
                     const TileShape shape, const bool plain) {
  extern __shared__ __align__(1024) uint8_t shared[];
  uint8_t* const sOut = shared + T::kStages * T::kTile;
  uint8_t* const sUnits = sOut + T::kOut;
  uint64_t* const full = reinterpret_cast<uint64_t*>(sUnits + T::kUnits * 2 * T::kUnit);
  uint64_t* const empty = full + T::kStages;
  uint64_t* const unit_full = empty + T::kStages;
  uint64_t* const unit_empty = unit_full + T::kUnits;
  const int t = threadIdx.x, g = t / 128;
  const int begin = shape.units * blockIdx.x / gridDim.x;
  const int end = shape.units * (blockIdx.x + 1) / gridDim.x;
  if (t == 0) {
    tma_prefetch(&map_x);
    for (int s = 0; s < T::kStages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], 2);
    }
    for (int s = 0; s < T::kUnits; ++s) {
      barrier_init(&unit_full[s], 1);
      barrier_init(&unit_empty[s], 8);
    }
    barrier_init_fence();
  }
  __syncthreads();
  const int tiles = (shape.panels + 1) / 2 * ((f.m + T::kTokens - 1) / T::kTokens);
  Ring<T::kStages> ring;
  Ring<T::kUnits> unit_ring;

  if (g == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (t == 256) {
      const uint64_t often = evict_last();
      for (int index = blockIdx.y; index < tiles; index += gridDim.y) {
        int tile, first;
        int4_tile_at<T>(index, shape.panels, f.m, &tile, &first);
        const int panels = min(2, shape.panels - tile * 2);
        for (int unit = begin; unit < end; ++unit) {
          uint64_t* const bar = &unit_full[unit_ring.slot];
          barrier_wait(&unit_empty[unit_ring.slot], unit_ring.parity ^ 1);
          barrier_expect(bar, panels * shape.unit_bytes);
          for (int p = 0; p < panels; ++p) {
            bulk_load(sUnits + (unit_ring.slot * 2 + p) * T::kUnit,
                      w + (int64_t{tile * 2 + p} * shape.units + unit) * shape.unit_bytes,
                      shape.unit_bytes, bar, often);
          }
          advance(unit_ring);
          for (int half = 0; half < 2; ++half) {
            barrier_wait(&empty[ring.slot], ring.parity ^ 1);
            barrier_expect(&full[ring.slot], T::kTile);
            tma_load(shared + ring.slot * T::kTile, &map_x, unit * 128 + half * 64, first,
                     &full[ring.slot]);
            advance(ring);
          }
        }
      }
    }
    if (gridDim.x > 1) {  // the barriers of finish_parts()
      __syncwarp();
      cluster_sync();
      cluster_sync_read();
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int lane = t % 32, warp = t / 32 % 4;
  uint32_t d[T::kParts][T::kPart / 2];  // f32: (64 rows of w, kTokens) of the group
  uint32_t part[T::kFlight][T::kPart / 2];
  uint32_t frag[2][T::kSteps][4];
  float scale[2][2];  // of a set, or all of a unit in the first
  // Units still to be decoded. What is decoded beyond the last one is never used.
  int left = (tiles - static_cast<int>(blockIdx.y) + static_cast<int>(gridDim.y) - 1) /
             static_cast<int>(gridDim.y) * (end - begin);
  int half = 0;  // of the unit, where a turn of the loop is half a unit

  // Set `i` of a turn decoded, scales with it. Fragments are never written under a condition
  // (C7520), hence no test of `left` around it.
  const auto fetch = [&](auto set) {
    constexpr int i = decltype(set)::value;
    constexpr bool kQuarters = T::kGroup == 32;
    if (i == 0 && half == 0 && left > 0) {
      barrier_wait(&unit_full[unit_ring.slot], unit_ring.parity);
    }
    const uint8_t* const unit = sUnits + (unit_ring.slot * 2 + g) * T::kUnit;
    const uint8_t* const codes = unit + (kQuarters ? half : i) * 2048 + t % 128 * 16;
    uint32_t words[T::kSteps];
    if constexpr (kQuarters) {
      const uint2 c = *reinterpret_cast<const uint2*>(codes + i * 8);
      words[0] = c.x, words[1] = c.y;
    } else {
      const uint4 c = *reinterpret_cast<const uint4*>(codes);
      words[0] = c.x, words[1] = c.y, words[2] = c.z, words[3] = c.w;
    }
    if constexpr (T::kGroup == 128 ? i == 1 : T::kGroup != 0) {
      const int at = T::kGroup == 128 ? 0 : kQuarters ? half * 2 + i : i;
      float(&s)[2] = scale[T::kGroup == 128 ? 0 : i];
      const int row = at * 64 + warp * 16 + lane / 4;
      s[0] = load_float(unit + 4096, shape.scale_dtype, row);
      s[1] = load_float(unit + 4096, shape.scale_dtype, row + 8) * kLowerRows<T::kHalf>;
    }
#pragma unroll
    for (int j = 0; j < T::kSteps; ++j) {
      decode_step<T::kHalf>(words[j], minus_of<T::kHalf>(8, false), minus_of<T::kHalf>(8, true),
                            frag[i][j]);
    }
#pragma unroll
    for (int j = 0; j < T::kSteps; ++j) pin(frag[i][j]);
    if (i == 1) {
      if (!kQuarters || half == 1) {
        __syncwarp();
        if (lane == 0) barrier_arrive(&unit_empty[unit_ring.slot]);
        advance(unit_ring);
        --left;
      }
      if (kQuarters) half ^= 1;
    }
  };
  // Products of set i with rows p * kPart on of the tile of x in `slot`.
  const auto issue = [&](auto set, uint32_t slot, int p, uint32_t(&sum)[T::kPart / 2], bool add) {
    constexpr int i = decltype(set)::value;
    const uint64_t x = wgmma_tile(shared + slot * T::kTile + p * T::kPart * 128) +
                       (T::kGroup == 32 ? i * T::kSteps * kTileStep : 0);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < T::kSteps; ++j) {
      Wgmma<typename T::Mma, T::kPart>::rs(sum, frag[i][j], x + j * kTileStep, add || j > 0);
    }
    wgmma_commit();
  };
  const auto promote = [&](uint32_t(&sum)[T::kPart / 2], uint32_t(&total)[T::kPart / 2],
                           const float(&s)[2]) {
    pin(sum);
#pragma unroll
    for (int i = 0; i < T::kPart / 2; ++i) {
      total[i] =
          __float_as_uint(fmaf(__uint_as_float(sum[i]), s[i / 2 % 2], __uint_as_float(total[i])));
    }
  };
  const auto wait_x = [&] { barrier_wait(&full[ring.slot], ring.parity); };
  const auto release = [&](uint32_t slot) {
    if (t % 128 == 0) barrier_arrive(&empty[slot]);
  };
  const auto take_turn = [&] {
    if (T::kTakeTurns) asm volatile("bar.sync %0, 256;" ::"r"(4 + g) : "memory");
  };
  const auto pass_turn = [&] {
    if (T::kTakeTurns) asm volatile("bar.arrive %0, 256;" ::"r"(5 - g) : "memory");
  };
  if (g == 1) pass_turn();
  constexpr int kTurns = T::kSetK == 32 ? 2 : 1;  // of the loop for a unit
  constexpr std::integral_constant<int, 0> kFirst{};
  constexpr std::integral_constant<int, 1> kSecond{};

  fetch(kFirst);
  if constexpr (T::kGroup == 128) fetch(kSecond);
  for (int index = blockIdx.y; index < tiles; index += gridDim.y) {
    int tile, first;
    int4_tile_at<T>(index, shape.panels, f.m, &tile, &first);
#pragma unroll
    for (int p = 0; p < T::kParts; ++p) {
#pragma unroll
      for (uint32_t& v : d[p]) v = 0;
    }

    if constexpr (T::kGroup == 0) {
      static_assert(T::kGroup != 0 || T::kParts == 1);
      uint32_t last = 0;
      for (int unit = begin; unit < end; ++unit) {
        wait_x();
        issue(kFirst, ring.slot, 0, d[0], true);
        wgmma_wait<1>();
        if (unit > begin) release(last);
        fetch(kSecond);
        const uint32_t before = ring.slot;
        advance(ring);
        wait_x();
        issue(kSecond, ring.slot, 0, d[0], true);
        wgmma_wait<1>();
        release(before);
        fetch(kFirst);
        last = ring.slot;
        advance(ring);
      }
      wgmma_wait<0>();
      release(last);
      pin(d[0]);
    } else if constexpr (T::kGroup == 128 && T::kFlight == 1) {
      for (int unit = begin; unit < end; ++unit) {
        const uint32_t slot = ring.slot;
        wait_x();
        advance(ring);
        wait_x();
#pragma unroll
        for (int p = 0; p < T::kParts; ++p) {
          take_turn();
          issue(kFirst, slot, p, part[0], false);
          issue(kSecond, ring.slot, p, part[0], true);
          pass_turn();
          if (p == T::kParts - 1) {
            wgmma_wait<1>();
            release(slot);
            fetch(kFirst);
          }
          wgmma_wait<0>();
          if (p == T::kParts - 1) release(ring.slot);
          promote(part[0], d[p], scale[0]);
        }
        fetch(kSecond);
        advance(ring);
      }
    } else if constexpr (T::kGroup == 128) {
      for (int unit = begin; unit < end; ++unit) {
        const uint32_t slot = ring.slot;
        wait_x();
        advance(ring);
        wait_x();
#pragma unroll
        for (int p = 0; p < T::kParts; ++p) {
          issue(kFirst, slot, p, part[p % 2], false);
          issue(kSecond, ring.slot, p, part[p % 2], true);
          if (p > 0) {
            wgmma_wait<2>();
            promote(part[(p + 1) % 2], d[p - 1], scale[0]);
          }
        }
        wgmma_wait<1>();
        release(slot);
        fetch(kFirst);
        wgmma_wait<0>();
        release(ring.slot);
        promote(part[1], d[T::kParts - 1], scale[0]);
        fetch(kSecond);
        advance(ring);
      }
    } else if constexpr (T::kFlight == 1) {
      for (int turn = (end - begin) * kTurns; turn > 0; --turn) {
        unrolled<2>([&](auto set) {
          constexpr int i = decltype(set)::value;
          constexpr std::integral_constant<int, i ^ 1> kOther{};
          if (i == 0 || T::kSetK == 64) wait_x();
#pragma unroll
          for (int p = 0; p < T::kParts; ++p) {
            take_turn();
            issue(set, ring.slot, p, part[0], false);
            pass_turn();
            if (p == 0) fetch(kOther);
            wgmma_wait<0>();
            promote(part[0], d[p], scale[i]);
          }
          if (i == 1 || T::kSetK == 64) {
            release(ring.slot);
            advance(ring);
          }
        });
      }
    } else {
      for (int turn = (end - begin) * kTurns; turn > 0; --turn) {
        unrolled<2>([&](auto set) {
          constexpr int i = decltype(set)::value;
          constexpr std::integral_constant<int, i ^ 1> kOther{};
          if (i == 0 || T::kSetK == 64) wait_x();
#pragma unroll
          for (int p = 0; p < T::kParts; ++p) {
            issue(set, ring.slot, p, part[p % 2], false);
            if (p == 0) fetch(kOther);
            if (p > 0) {
              wgmma_wait<1>();
              promote(part[(p + 1) % 2], d[p - 1], scale[i]);
            }
          }
          wgmma_wait<0>();
          promote(part[1], d[T::kParts - 1], scale[i]);
          if (i == 1 || T::kSetK == 64) {
            release(ring.slot);
            advance(ring);
          }
        });
      }
    }
    if (gridDim.x == 1) {
      finish_tile<T>(f, &map_out, plain, sOut + g * (T::kOut / 2), g + 1, tile * 128 + g * 64,
                     first, d);
    }
  }
  if (gridDim.x > 1) {  // its only tile is in `d`
    int tile, first;
    int4_tile_at<T>(blockIdx.y, shape.panels, f.m, &tile, &first);
    uint32_t sums[T::kTokens / 2];
#pragma unroll
    for (int i = 0; i < T::kTokens / 2; ++i) {
      sums[i] = d[i / (T::kPart / 2)][i % (T::kPart / 2)];
      if (T::kGroup == 0 && T::kHalf && i / 2 % 2 == 1) {
        sums[i] = __float_as_uint(__uint_as_float(sums[i]) * kLowerRows<T::kHalf>);
      }
    }
    asm volatile("bar.sync 3, 256;" ::: "memory");  // nobody reads the ring any more
    put_part<false, T::kTokens>(reinterpret_cast<float*>(shared), sums);
    finish_parts<false>(f, reinterpret_cast<float*>(shared), tile, first,
                        min(T::kTokens, f.m - first));
  } else if (plain && t % 128 == 0) {
    store_wait_all();
  }
}

template <class T>
static cudaError_t launch_int4_tile(const Matrix& x, const uint8_t* w, const TileShape& shape,
                                    const Finish& f, int split, int processors,
                                    cudaStream_t stream) {
  CUtensorMap map_x, map_out = {};
  const bool plain =
      is_plain(f) && (reinterpret_cast<uintptr_t>(f.out) | f.out_stride * 2) % 16 == 0;
  cudaError_t e = tile_map({x.data, x.rows, x.columns, x.row_bytes, 2, T::kTokens}, &map_x);
  if (e == cudaSuccess && plain) {
    e = tile_map({f.out, f.m, f.n, f.out_stride * 2, 2, 64}, &map_out);
  }
  if (e != cudaSuccess) return e;
  auto* const kernel = tile_int4_kernel<T>;
  static std::atomic<uint64_t> asked = 0;
  e = allow_shared(kernel, T::kShared, asked);
  if (e != cudaSuccess) return e;
  const int tiles =
      static_cast<int>(ceil_div(shape.panels, 2) * ceil_div(f.m, int64_t{T::kTokens}));
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(static_cast<unsigned>(split),
           static_cast<unsigned>(split > 1 || tiles < processors ? tiles : processors));
  config.blockDim = dim3(384);
  config.dynamicSmemBytes = T::kShared;
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(split), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, map_x, map_out, w, f, shape, plain);
}

}  // namespace
}  // namespace lowbit
