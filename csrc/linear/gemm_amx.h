// The walk of the AMX rows: blocks of x by panels of w in tiles of 32 by 32.
//
// Eight tile registers: four sums of 16 x 16, two of x, two of w. Two panels of panel16 side by
// side give the tiles of w where they lie: 16 vectors of int8 or bf16 are one tile. x is copied
// into tiles as it is staged, so that every load is 1 KiB in a row: rows a power of two apart would
// fight for the same lines of L1.
//
// Four loads of 1 KiB feed four products of 16 cycles, which is all that L2 can give. So w goes by
// slices that stay in L1 while all of the block's x streams past, and the sums wait in memory
// between the slices.
#pragma once

#include "csrc/linear/panels.h"
#include "csrc/simd/amx.h"
#include "csrc/simd/avx512.h"

namespace lowbit::amx {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileBytes = 1024;
inline constexpr int64_t kPairRows = 2 * kTileRows;  // divides kBlockM
// Steps of K (a tile each) in a slice: two panels of it are 32 KiB of the 48 KiB of L1 that every
// CPU with AMX has. Each slice costs a load and a store of the sums, an eighth of the products'
// time at 16 steps.
inline constexpr int64_t kSliceSteps = 16;
// Below this M a tile is half empty and the vector rows read w as fast.
inline constexpr int64_t kLeastM = 16;

// x in tiles: tile (band, step) holds rows [16 band, 16 band + 16) and 64 bytes of each from 64
// step on.
struct TiledX {
  uint8_t* data;
  int64_t steps;
  const uint8_t* tile(int64_t row, int64_t step) const {
    return data + (row / kTileRows * steps + step) * kTileBytes;
  }
};

// Copies a row of 64 * steps bytes into its place.
static inline void put_row(const TiledX& x, int64_t row, const uint8_t* bytes) {
  uint8_t* to = x.data + row / kTileRows * x.steps * kTileBytes + row % kTileRows * 64;
  for (int64_t i = 0; i < x.steps; ++i) {
    _mm512_storeu_si512(to + i * kTileBytes, _mm512_loadu_si512(bytes + i * 64));
  }
}

// Tiles of two panels: `w[p] + step * 1024` for panel p; the second may be null.
struct PairW {
  const uint8_t* first;
  const uint8_t* second;
};

// sums(32, 32) (+)= x(32, steps) * w(steps, 32), in the tile's own 4-byte words; sums_stride in
// words. `rows` of x are wanted, `steps` of both from `step` of x on. What is not wanted is not
// computed by halves: rows up to 32 of sums are written.
template <class Dot>
static inline void multiply_pair(const TiledX& x, int64_t row, int64_t rows, int64_t step,
                                 int64_t steps, const PairW& w, void* sums, int64_t sums_stride,
                                 bool add) {
  uint8_t* c = static_cast<uint8_t*>(sums);
  const int64_t stride = sums_stride * 4;
  const uint8_t* upper = x.tile(row, step);
  const uint8_t* lower = rows > kTileRows ? x.tile(row + kTileRows, step) : nullptr;
  const bool right = w.second != nullptr, below = lower != nullptr;
  if (add) {
    load_tile<0>(c, stride);
    if (right) load_tile<1>(c + 64, stride);
    if (below) load_tile<2>(c + 16 * stride, stride);
    if (right && below) load_tile<3>(c + 16 * stride + 64, stride);
  } else {
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
  }
  if (right && below) {
    for (int64_t i = 0; i < steps; ++i) {
      load_tile<4>(upper + i * kTileBytes, 64);
      load_tile<6>(w.first + i * kTileBytes, 64);
      Dot::template multiply<0, 4, 6>();
      load_tile<7>(w.second + i * kTileBytes, 64);
      Dot::template multiply<1, 4, 7>();
      load_tile<5>(lower + i * kTileBytes, 64);
      Dot::template multiply<2, 5, 6>();
      Dot::template multiply<3, 5, 7>();
    }
  } else {
    for (int64_t i = 0; i < steps; ++i) {
      load_tile<4>(upper + i * kTileBytes, 64);
      load_tile<6>(w.first + i * kTileBytes, 64);
      Dot::template multiply<0, 4, 6>();
      if (right) {
        load_tile<7>(w.second + i * kTileBytes, 64);
        Dot::template multiply<1, 4, 7>();
      }
      if (below) {
        load_tile<5>(lower + i * kTileBytes, 64);
        Dot::template multiply<2, 5, 6>();
      }
    }
  }
  store_tile<0>(c, stride);
  if (right) store_tile<1>(c + 64, stride);
  if (below) store_tile<2>(c + 16 * stride, stride);
  if (right && below) store_tile<3>(c + 16 * stride + 64, stride);
}

// Steps [begin, begin + steps) of a panel whose codes end at `bytes`: where they lie, or, where the
// last one is cut short, copied to `to` and padded with zeros there.
static inline const uint8_t* whole_steps(const uint8_t* codes, int64_t bytes, int64_t begin,
                                         int64_t steps, uint8_t* to) {
  const uint8_t* from = codes + begin * kTileBytes;
  const int64_t left = bytes - begin * kTileBytes;
  if (left >= steps * kTileBytes) return from;
  std::memcpy(to, from, static_cast<size_t>(left));
  std::memset(to + left, 0, static_cast<size_t>(steps * kTileBytes - left));
  return to;
}

}  // namespace lowbit::amx
