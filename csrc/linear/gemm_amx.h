// The walk of the AMX rows: blocks of x by panels of w in tiles of 32 by 32.
//
// Eight tile registers: four sums of 16 x 16, two of x, two of w. Two panels of panel16 side by
// side give the tiles of w where they lie: 16 vectors of int8 or bf16 are one tile. x is copied
// into tiles as it is staged, so that every load is 1 KiB in a row: rows a power of two apart would
// fight for the same lines of L1.
//
// Four loads of 1 KiB feed four products of 16 cycles, which is all that L2 can give. So K goes by
// slices: 32 columns of w stay in L1 while the slice of all of the block's x streams past from L2,
// and the sums wait in L2 as well. The block is as high as L2 allows, because each of its rows is 2
// products for each byte of w that comes from memory: at 3 Tera-products a core, 256 rows are the
// least that 16 GB/s can feed.
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
// A block of 512 rows by 256 columns: two slices of x (this and the next) and the sums are 512 KiB
// each, of 2 MiB of L2. Few rows leave time for no more than reading w: narrow blocks then, for
// enough of them.
inline constexpr int64_t kBlockRows = 512;
inline constexpr int64_t kWideColumns = 256, kNarrowColumns = 64, kNarrowRows = 64;

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

// What is to be in L2 soon, asked for step by step: the next pair of panels, and this pair's share
// of the next slice of the same 32 rows of x.
struct Ahead {
  const uint8_t *first, *second;  // w
  const uint8_t *upper, *lower;   // x
  int64_t w_lines;                // a step, of each panel
};
inline constexpr int64_t kXLines = 2;  // a step, of each band: 8 pairs of panels ask for all of it
inline constexpr int64_t kXShare = kSliceSteps * kXLines * 64;

static inline void fetch_line(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}
static inline void fetch(Ahead* ahead) {
  for (int64_t i = 0; i < ahead->w_lines; ++i) {
    fetch_line(ahead->first + i * 64);
    fetch_line(ahead->second + i * 64);
  }
  for (int64_t i = 0; i < kXLines; ++i) {
    fetch_line(ahead->upper + i * 64);
    fetch_line(ahead->lower + i * 64);
  }
  ahead->first += ahead->w_lines * 64;
  ahead->second += ahead->w_lines * 64;
  ahead->upper += kXLines * 64;
  ahead->lower += kXLines * 64;
}

// sums(32, 32) (+)= x(32, steps) * w(steps, 32), in the tile's own 4-byte words; sums_stride in
// words. `rows` of x are wanted, `steps` of both from `step` of x on; a tile of sums of which one
// row is wanted is computed whole.
template <class Dot>
static inline void multiply_pair(const TiledX& x, int64_t row, int64_t rows, int64_t step,
                                 const PairW& w, int64_t steps, void* sums, int64_t sums_stride,
                                 bool add, Ahead ahead) {
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
      fetch(&ahead);
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
      fetch(&ahead);
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

// How the rows of a stage and the columns of w are cut into blocks.
struct Blocks {
  int64_t rows, columns;
};
static inline Blocks blocks_of(int64_t rows) {
  return {even_part(rows, kBlockRows, kPairRows),
          rows <= kNarrowRows ? kNarrowColumns : kWideColumns};
}
// Words that the sums of any block of up to `rows` rows take.
static inline int64_t block_words(int64_t rows) {
  const int64_t whole = round_up(rows, kPairRows);
  return (whole < kBlockRows ? whole : kBlockRows) * kWideColumns;
}

// Calls block(thread, panel, panels, m0, height, sums) for every block, then the epilogue for what
// it left in sums: (height, columns of a block).
template <class Block>
static inline void for_amx_blocks(const LinearArgs& args, Pool* pool, int64_t m_first, int64_t rows,
                                  const float* scale, float* sums_of_threads, const Block& block) {
  const Blocks b = blocks_of(rows);
  const int64_t m_blocks = ceil_div(rows, b.rows), n_blocks = ceil_div(args.w.n, b.columns);
  parallel_for(pool, m_blocks * n_blocks, 1, [&](int64_t begin, int64_t end, int thread) {
    float* sums = sums_of_threads + thread * block_words(rows);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n0 = i / m_blocks * b.columns, m0 = i % m_blocks * b.rows;
      const int64_t width = args.w.n - n0 < b.columns ? args.w.n - n0 : b.columns;
      const int64_t height = rows - m0 < b.rows ? rows - m0 : b.rows;
      block(thread, n0 / kPanel, ceil_div(width, kPanel), m0, height, sums, b.columns);
      for (int64_t m = 0; m < height; ++m) {
        epilogue(args, m_first + m0 + m, n0, width, scale == nullptr ? 1.0f : scale[m0 + m],
                 sums + m * b.columns);
      }
    }
  });
}

// For the product of rows [m, m + 32) of a block from row m0 on with pair `pair` of panels:
// `next_w` are the panels of the product with the next pair, `calls` the products that share in
// asking for them (0: none does).
static inline Ahead ahead_of(const TiledX& x, int64_t m0, int64_t m, int64_t pair,
                             int64_t next_step, const PairW& next_w, int64_t calls) {
  Ahead a;
  a.w_lines = calls == 0 ? 0 : ceil_div(kTileBytes / 64, calls);
  const int64_t at = m / kPairRows * kSliceSteps * a.w_lines * 64;
  const int64_t share = pair * kXShare % (kSliceSteps * kTileBytes);
  a.first = next_w.first + at;
  a.second = (next_w.second == nullptr ? next_w.first : next_w.second) + at;
  a.upper = x.tile(m0 + m, next_step) + share;
  a.lower = a.upper + x.steps * kTileBytes;
  return a;
}

}  // namespace lowbit::amx
