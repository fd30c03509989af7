// Many rows of x against int4 weights on Hopper: a block of 128 rows of w by kTokens rows of x, so
// that what is decoded once serves all of them.
//
// Operands change sides: codes of w become fragments in registers (decode_int4.cuh), the rows of a
// product; x is its columns, in a ring of tiles of 64 of K that the copy engine fills. Units of
// frag64 have a ring of their own. Two groups of warps take 64 rows of w each, all kTokens rows of
// x; while one decodes or adds up, the products of the other run.
//
// Groups of K with scales of their own: the total is kept in units of the scale of the group that
// is added to it, so from group to group it is multiplied by the ratio of two scales, which takes
// no second sum and no more than one product of f32 for each total. A group without a scale (0) or
// with one below 2^-64 of the unit adds nothing and leaves the unit. The ratio is rounded once, the
// total once a group.
//
// The grid is as large as the device; tiles go round in bands of rows of x, whose x stays in L2.
// What is left of whole rounds may be cut: a cluster of two blocks shares K of a tile.
#pragma once

#include "csrc/linear/decode_int4.cuh"
#include "csrc/linear/stream_sm90a.cuh"

namespace lowbit {
namespace {

// kGroup: columns of a group of K, 32, 64 or 128; 0: the scales are in Finish.
template <class Mma_, int kTokens_, int kGroup_>
struct TileInt4 {
  using Mma = Mma_;
  static constexpr int kTokens = kTokens_, kGroup = kGroup_;
  static constexpr bool kHalf = std::is_same_v<Mma, MmaF16>;
  // Fragments are made in sets of 64 of K, or of a group where that is less. Two sets are in
  // registers, what they hold is a turn of the loop.
  static constexpr int kSetK = kGroup == 32 ? 32 : 64, kSteps = kSetK / 16;
  static constexpr int kTile = kTokens * 128;                              // x, 64 of K
  static constexpr int kScales = kGroup == 0 ? 0 : 64 * 128 / kGroup * 4;  // at most f32
  static constexpr int kUnit = 4096 + kScales;                             // of a panel of 64 rows
  static constexpr int kUnits = 3;
  // Rows of x that leave by one copy: half a tile is finished where two blocks share it.
  static constexpr int kBox = kTokens == 64 ? 32 : 64;
  static constexpr int kOut = 2 * 16384, kBarriers = 256;
  static constexpr int kFit = (232448 - kOut - kBarriers - kUnits * 2 * kUnit) / kTile;
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static constexpr int kShared = kStages * kTile + kOut + kUnits * 2 * kUnit + kBarriers;
  static_assert(kStages >= 4 && kTokens % 64 == 0);
};

struct TileShape {
  int32_t units, unit_bytes, panels;  // along K, of a panel; of w
  DType scale_dtype;                  // of the scales in a unit
  int32_t whole;                      // tiles that one block takes; a cluster cuts K of the others
};

// What a block works on: its share of the whole tiles, one after the other, then its share of K of
// the tile that its cluster cuts.
struct TileWalk {
  const int whole, tiles, units;
  int index, begin, end;
  bool cut;

  __device__ __forceinline__ TileWalk(const TileShape& shape, int count)
      : whole(shape.whole), tiles(count), units(shape.units) {
    begin = 0, end = units, cut = false;
    index = blockIdx.y * gridDim.x + blockIdx.x;
    settle();
  }
  __device__ __forceinline__ void settle() {
    if (index < whole) return;
    cut = true;
    index = whole + blockIdx.y;
    begin = units * blockIdx.x / gridDim.x;
    end = units * (blockIdx.x + 1) / gridDim.x;
  }
  __device__ __forceinline__ bool here() const { return index < tiles; }
  __device__ __forceinline__ void next() {
    index = cut ? tiles : index + gridDim.x * gridDim.y;
    if (!cut) settle();
  }
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

// decode_step() with the values times `times`, 1 or 0, of the upper and the lower row.
template <bool kHalf>
__device__ __forceinline__ void decode_scaled(uint32_t x, const uint32_t (&times)[2],
                                              const uint32_t (&plus)[2], uint32_t (&f)[4]) {
  if constexpr (kHalf) {
    const uint32_t y = x >> 8;
    f[0] = and_or<0x000F000F, 0x64006400>(x);
    f[1] = and_or<0x00F000F0, 0x64006400>(x);
    f[2] = and_or<0x000F000F, 0x64006400>(y);
    f[3] = and_or<0x00F000F0, 0x64006400>(y);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) f[i] = and_or<0x000F000F, 0x43004300>(x >> 4 * i);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kHalf) {
      asm("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(f[i]) : "r"(times[i % 2]), "r"(plus[i % 2]));
    } else {
      asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(f[i]) : "r"(times[i % 2]), "r"(plus[i % 2]));
    }
  }
}

// As stmatrix(), each matrix transposed: row i of it in memory is column i of the fragment.
__device__ __forceinline__ void stmatrix_columns(void* p, const uint32_t (&w)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   smem_address(p)),
               "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
               : "memory");
}

// The finish of 64 rows of w, from row n on, by kCount rows of x, by the four warps of a group.
// `out` is 16 KB of shared memory of the group's own, `bar` its barrier.
template <class T, int kCount>
__device__ __forceinline__ void finish_tile(const Finish& f, const CUtensorMap* map_out, bool plain,
                                            uint8_t* out, int bar, int n, int first,
                                            const uint32_t (&d)[kCount / 2]) {
  constexpr int kBox = T::kBox;
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
    float x_scale[2] = {1.0f, 1.0f};
    if (f.x_scale != nullptr) {
      const int m = first + j * 8 + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) x_scale[i] = f.x_scale[min(m + i, f.m - 1)];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = fmaf(__uint_as_float(d[j * 4 + i]), x_scale[i % 2] * scale[i / 2], bias[i / 2]);
    }
  };
  if (plain) {
    constexpr int kBoxes = kCount == kBox ? 1 : 2;  // of 64 columns, at a time
#pragma unroll
    for (int round = 0; round < kCount / (kBox * kBoxes); ++round) {
      if (t == 0) store_wait_read();
      asm volatile("bar.sync %0, 128;" ::"r"(bar) : "memory");
#pragma unroll
      for (int j = 0; j < kBoxes * kBox / 8; j += 2) {
        uint32_t words[4];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          float v[4];
          scaled(round * kBoxes * kBox / 8 + j + q, v);
          words[2 * q] = pack_pair(f.out_dtype, v[0], v[1]);
          words[2 * q + 1] = pack_pair(f.out_dtype, v[2], v[3]);
        }
        const int r = j % (kBox / 8) * 8 + lane / 16 * 8 + lane % 8;
        stmatrix_columns(out + j / (kBox / 8) * 8192 + swizzled(r, warp * 32 + lane / 8 % 2 * 16),
                         words);
      }
      async_fence();
      asm volatile("bar.sync %0, 128;" ::"r"(bar) : "memory");
      if (t == 0) {
#pragma unroll
        for (int box = 0; box < kBoxes; ++box) {
          const int row = first + (round * kBoxes + box) * kBox;
          if (row < f.m && n < f.n) tma_store(map_out, out + box * 8192, n, row);
        }
        store_commit();
      }
    }
  } else {
    // kBox rows of x at a time in f32, read back in runs of 8 columns. Runs are XORed with the
    // row's pair, for the banks.
    float* const sF32 = reinterpret_cast<float*>(out);
#pragma unroll
    for (int part = 0; part < kCount / kBox; ++part) {
      asm volatile("bar.sync %0, 128;" ::"r"(bar) : "memory");
#pragma unroll
      for (int j = 0; j < kBox / 8; ++j) {
        float v[4];
        scaled(part * kBox / 8 + j, v);
        const int r = j * 8 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int run = (warp * 2 + i / 2) ^ (lane % 4);
          sF32[(r + i % 2) * 64 + run * 8 + lane / 4] = v[i];
        }
      }
      asm volatile("bar.sync %0, 128;" ::"r"(bar) : "memory");
#pragma unroll 1
      for (int i = t; i < kBox * 8; i += 128) {
        const int r = i / 8, c = i % 8;
        const float* const from = sF32 + r * 64 + (c ^ (r / 2 % 4)) * 8;
        float v[8];
        *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(from);
        *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(from + 4);
        finish_row(f, first + part * kBox + r, n + c * 8, v);
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
  if (t == 0) {
    tma_prefetch(&map_x);
    for (int s = 0; s < T::kStages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], 2);
    }
    for (int s = 0; s < T::kUnits; ++s) {
      barrier_init(&unit_full[s], 2);
      barrier_init(&unit_empty[s], 8);
    }
    barrier_init_fence();
  }
  __syncthreads();
  const int tiles = (shape.panels + 1) / 2 * ((f.m + T::kTokens - 1) / T::kTokens);
  const bool cuts = shape.whole + static_cast<int>(blockIdx.y) < tiles;
  Ring<T::kStages> ring;
  Ring<T::kUnits> unit_ring;

  if (g == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    // A thread takes about 400 cycles for a stage, hence four: the first and the second half of x,
    // the first and the second panel of w.
    if (t % 32 == 0) {
      const int role = t / 32 % 4;
      const uint64_t often = evict_last();
      if (role == 1) advance(ring);
      for (TileWalk at(shape, tiles); at.here(); at.next()) {
        int tile, first;
        int4_tile_at<T>(at.index, shape.panels, f.m, &tile, &first);
        if (role < 2) {
#pragma unroll 1
          for (int unit = at.begin; unit < at.end; ++unit) {
            barrier_wait(&empty[ring.slot], ring.parity ^ 1);
            barrier_expect(&full[ring.slot], T::kTile);
            tma_load(shared + ring.slot * T::kTile, &map_x, unit * 128 + role * 64, first,
                     &full[ring.slot]);
            advance(ring);
            advance(ring);
          }
        } else {
          const int panel = tile * 2 + role % 2;
          const uint8_t* from = w + (int64_t{panel} * shape.units + at.begin) * shape.unit_bytes;
#pragma unroll 1
          for (int unit = at.begin; unit < at.end; ++unit, from += shape.unit_bytes) {
            uint64_t* const bar = &unit_full[unit_ring.slot];
            barrier_wait(&unit_empty[unit_ring.slot], unit_ring.parity ^ 1);
            if (panel < shape.panels) {
              barrier_expect(bar, shape.unit_bytes);
              bulk_load(sUnits + (unit_ring.slot * 2 + role % 2) * T::kUnit, from, shape.unit_bytes,
                        bar, often);
            } else {
              barrier_arrive(bar);
            }
            advance(unit_ring);
          }
        }
      }
    }
    if (cuts) {  // the barriers of the exchange below
      __syncwarp();
      cluster_sync();
      cluster_sync();
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  const int lane = t % 32, warp = t / 32 % 4;
  uint32_t d[T::kTokens / 2];  // f32: (64 rows of w, kTokens) of the group
  uint32_t frag[2][T::kSteps][4];
  // Units still to be decoded; of this tile already decoded; the half of the unit, where a turn of
  // the loop is half a unit. What is decoded beyond the last unit is never used.
  int left = 0, decoded = 0, half = 0;
  for (TileWalk at(shape, tiles); at.here(); at.next()) left += at.end - at.begin;
  // Of the upper and the lower row: the unit of the group decoded last; what the total is
  // multiplied by before that group is added to it, or at the end of a tile; codes as floats times
  // `times` plus `plus` are values.
  float unit_of[2] = {1.0f, 1.0f}, ratio[2];
  uint32_t times[2], plus[2];

  constexpr int kGroups = T::kGroup == 0 ? 1 : 128 / T::kGroup;  // of a unit
  const auto take_scales = [&](const uint8_t* scales, int group) {
    const bool fresh = (decoded == 0 && half == 0) || left <= 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = group * 64 + warp * 16 + lane / 4 + i * 8;
      const float s =
          load_float(scales, shape.scale_dtype, row) * (i == 0 ? 1.0f : kLowerRows<T::kHalf>);
      const bool first = fresh && group % kGroups == 0;
      const float least = first ? 0.0f : fabsf(unit_of[i]) * 0x1p-64f;
      const bool none = fabsf(s) < fmaxf(least, 0x1p-126f);
      const float next = !none ? s : first ? 0x1p-60f : unit_of[i];
      // The quotient, its error within a unit in the last place.
      float inverse;
      asm("rcp.approx.f32 %0, %1;" : "=f"(inverse) : "f"(next));
      const float q = unit_of[i] * inverse;
      ratio[i] = first ? unit_of[i] : none ? 1.0f : fmaf(fmaf(-q, next, unit_of[i]), inverse, q);
      unit_of[i] = next;
      times[i] = none ? 0 : T::kHalf ? 0x3C003C00 : 0x3F803F80;
      plus[i] = none ? 0 : minus_of<T::kHalf>(8, i == 1) ^ 0x80008000;
    }
  };

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
    if constexpr (T::kGroup == 0) {
#pragma unroll
      for (int j = 0; j < T::kSteps; ++j) {
        decode_step<T::kHalf>(words[j], minus_of<T::kHalf>(8, false), minus_of<T::kHalf>(8, true),
                              frag[i][j]);
      }
    } else {
      if (T::kGroup < 128 || i == 0) take_scales(unit + 4096, kQuarters ? half * 2 + i : i);
#pragma unroll
      for (int j = 0; j < T::kSteps; ++j) {
        decode_scaled<T::kHalf>(words[j], times, plus, frag[i][j]);
      }
    }
#pragma unroll
    for (int j = 0; j < T::kSteps; ++j) pin(frag[i][j]);
    if (i == 1) {
      if (!kQuarters || half == 1) {
        __syncwarp();
        if (lane == 0) barrier_arrive(&unit_empty[unit_ring.slot]);
        advance(unit_ring);
        --left;
        if (++decoded == shape.units) decoded = 0;
      }
      if (kQuarters) half ^= 1;
    }
  };
  // Products of set i with the tile of x in `slot`.
  const auto issue = [&](auto set, uint32_t slot) {
    constexpr int i = decltype(set)::value;
    const uint64_t x =
        wgmma_tile(shared + slot * T::kTile) + (T::kGroup == 32 ? i * T::kSteps * kTileStep : 0);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < T::kSteps; ++j) {
      Wgmma<typename T::Mma, T::kTokens>::rs(d, frag[i][j], x + j * kTileStep, true);
    }
    wgmma_commit();
  };
  const auto rescale = [&] {
    pin(d);
#pragma unroll
    for (int i = 0; i < T::kTokens / 2; ++i) {
      d[i] = __float_as_uint(__uint_as_float(d[i]) * ratio[i / 2 % 2]);
    }
  };
  const auto wait_x = [&] { barrier_wait(&full[ring.slot], ring.parity); };
  const auto release = [&](uint32_t slot) {
    if (t % 128 == 0) barrier_arrive(&empty[slot]);
  };
  // A group's products are issued when the other's have been: those of both at one time would be
  // complete at one time, and nothing to multiply while both go on.
  const auto take_turn = [&] { asm volatile("bar.sync %0, 256;" ::"r"(4 + g) : "memory"); };
  const auto pass_turn = [&] { asm volatile("bar.arrive %0, 256;" ::"r"(5 - g) : "memory"); };
  if (T::kGroup != 0 && g == 1) pass_turn();
  constexpr int kLoops = T::kSetK == 32 ? 2 : 1;  // of a unit
  constexpr std::integral_constant<int, 0> kFirst{};
  constexpr std::integral_constant<int, 1> kSecond{};

  fetch(kFirst);
  if constexpr (T::kGroup == 128) fetch(kSecond);
  for (TileWalk at(shape, tiles); at.here(); at.next()) {
    const int begin = at.begin, end = at.end;
    int tile, first;
    int4_tile_at<T>(at.index, shape.panels, f.m, &tile, &first);
#pragma unroll
    for (uint32_t& v : d) v = 0;

    if constexpr (T::kGroup == 0) {
      uint32_t last = 0;
      for (int unit = begin; unit < end; ++unit) {
        wait_x();
        issue(kFirst, ring.slot);
        wgmma_wait<1>();
        if (unit > begin) release(last);
        fetch(kSecond);
        const uint32_t before = ring.slot;
        advance(ring);
        wait_x();
        issue(kSecond, ring.slot);
        wgmma_wait<1>();
        release(before);
        fetch(kFirst);
        last = ring.slot;
        advance(ring);
      }
      wgmma_wait<0>();
      if (begin < end) release(last);
      pin(d);
    } else if constexpr (T::kGroup == 128) {
      for (int unit = begin; unit < end; ++unit) {
        const uint32_t slot = ring.slot;
        wait_x();
        advance(ring);
        wait_x();
        take_turn();
        issue(kFirst, slot);
        issue(kSecond, ring.slot);
        pass_turn();
        wgmma_wait<1>();
        release(slot);
        fetch(kFirst);
        wgmma_wait<0>();
        release(ring.slot);
        rescale();
        fetch(kSecond);
        advance(ring);
      }
    } else {
      for (int turn = (end - begin) * kLoops; turn > 0; --turn) {
        unrolled<2>([&](auto set) {
          constexpr int i = decltype(set)::value;
          constexpr std::integral_constant<int, i ^ 1> kOther{};
          if (i == 0 || T::kSetK == 64) wait_x();
          take_turn();
          issue(set, ring.slot);
          pass_turn();
          fetch(kOther);
          wgmma_wait<0>();
          rescale();
          if (i == 1 || T::kSetK == 64) {
            release(ring.slot);
            advance(ring);
          }
        });
      }
    }
    if (!at.cut) {
      finish_tile<T, T::kTokens>(f, &map_out, plain, sOut + g * (T::kOut / 2), g + 1,
                                 tile * 128 + g * 64, first, d);
    }
  }
  if (cuts) {
    // The last tile is in `d`. Each block gets the sums of half of its rows of x from the other, in
    // the order in which threads hold them, into its drained ring.
    int tile, first;
    int4_tile_at<T>(shape.whole + blockIdx.y, shape.panels, f.m, &tile, &first);
    constexpr int kHalfSums = T::kTokens / 4;
    const uint32_t rank = blockIdx.x;
    cluster_sync();  // nobody reads either ring any more
    const uint32_t to = cluster_address(smem_address(shared) + t * 16, rank ^ 1);
#pragma unroll
    for (int i = 0; i < kHalfSums; i += 4) {
      const uint32_t v[4] = {
          rank == 0 ? d[kHalfSums + i] : d[i], rank == 0 ? d[kHalfSums + i + 1] : d[i + 1],
          rank == 0 ? d[kHalfSums + i + 2] : d[i + 2], rank == 0 ? d[kHalfSums + i + 3] : d[i + 3]};
      asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + i * 1024),
                   "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                   : "memory");
    }
    cluster_sync();
    uint32_t own[kHalfSums];
#pragma unroll
    for (int i = 0; i < kHalfSums; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(shared + t * 16 + i * 1024);
      const float other[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t mine = rank == 0 ? d[i + j] : d[kHalfSums + i + j];
        own[i + j] = __float_as_uint(__uint_as_float(mine) + other[j]);
      }
    }
    finish_tile<T, T::kTokens / 2>(f, &map_out, plain, sOut + g * (T::kOut / 2), g + 1,
                                   tile * 128 + g * 64, first + rank * (T::kTokens / 2), own);
  }
  if (plain && t % 128 == 0) store_wait_all();
}

// How a call is cut into tiles: rows of x in one, blocks along K of what is left of whole rounds.
struct TilePlan {
  int tokens, split;
};

// The plan of the least time, in tenths of a nanosecond on an H200 (NOTES.md): for a unit of K, for
// the end of a tile, and for that of one that two blocks share.
static inline TilePlan tile_plan(int64_t m, int64_t panels, int64_t units, int processors) {
  struct Costs {
    int tokens, unit, end, shared_end;
  };
  TilePlan best = {};
  int64_t least = INT64_MAX;
  for (const Costs& c : {Costs{256, 13800, 20000, 96000}, Costs{128, 8000, 12000, 48000},
                         Costs{64, 6000, 8000, 36000}}) {
    const int64_t tiles = ceil_div(panels, 2) * ceil_div(m, c.tokens);
    const int64_t pairs = processors / 2, rest = tiles % (2 * pairs);
    const int64_t tile = units * c.unit + c.end;
    const int64_t whole = ceil_div(tiles, processors) * tile;
    const int64_t cut = rest == 0 || rest > pairs ? INT64_MAX
                                                  : tiles / (2 * pairs) * tile +
                                                        ceil_div(units, 2) * c.unit + c.shared_end;
    if (whole < least) least = whole, best = {c.tokens, 1};
    if (cut < least) least = cut, best = {c.tokens, 2};
  }
  return best;
}

template <class T>
static cudaError_t launch_int4_tile(const Matrix& x, const uint8_t* w, const TileShape& shape,
                                    const Finish& f, int split, int processors,
                                    cudaStream_t stream) {
  CUtensorMap map_x, map_out = {};
  const bool plain = stores_plainly(f);
  cudaError_t e = tile_map({x.data, x.rows, x.columns, x.row_bytes, 2, T::kTokens}, &map_x);
  if (e == cudaSuccess && plain) {
    e = tile_map({f.out, f.m, f.n, f.out_stride * 2, 2, T::kBox}, &map_out);
  }
  if (e != cudaSuccess) return e;
  auto* const kernel = tile_int4_kernel<T>;
  static std::atomic<uint64_t> asked = 0;
  e = allow_shared(kernel, T::kShared, asked);
  if (e != cudaSuccess) return e;
  const int tiles =
      static_cast<int>(ceil_div(shape.panels, 2) * ceil_div(f.m, int64_t{T::kTokens}));
  const int clusters = processors / split, blocks = clusters * split;
  TileShape s = shape;
  s.whole = split == 1 ? tiles : tiles - tiles % blocks;
  if (tiles - s.whole > clusters) s.whole = tiles;
  const int wanted = s.whole > 0 ? static_cast<int>(ceil_div(s.whole, split)) : tiles;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(split),
                        static_cast<unsigned>(wanted < clusters ? wanted : clusters));
  config.blockDim = dim3(384);
  config.dynamicSmemBytes = T::kShared;
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(split), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, map_x, map_out, w, f, s, plain);
}

}  // namespace
}  // namespace lowbit
