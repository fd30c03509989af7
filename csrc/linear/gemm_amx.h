// The walk of the AMX rows: blocks of x by panels of w in tiles of 32 by 32.
//
// Eight tile registers: four sums of 16 x 16, two of x, two of w. Two panels of panel16 side by
// side give the tiles of w where they lie: 16 vectors of int8 or bf16 are one tile. x is copied
// into tiles as it is staged, slice by slice, so that a block reads it front to back and every load
// is 1 KiB in a row. Sums wait between slices as tiles too.
//
// Four loads of 1 KiB feed four products of 16 cycles. So K goes by slices: 64 columns of w stay in
// L1 while the slice of all of the block's x streams past from L2, each tile of it used for four
// panels: 16 bytes from L2 for each cycle of products, and the sums, in and out of L2 once a slice,
// are as much again. More panels by shorter slices, or fewer by longer ones, only move bytes from
// one to the other.
#pragma once

#include "csrc/linear/panels.h"
#include "csrc/simd/amx.h"
#include "csrc/simd/avx512.h"

namespace lowbit::amx {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileBytes = 1024;
inline constexpr int64_t kStagedRows = 4;  // of a task: few rows have to do for all threads
inline constexpr int64_t kPairRows = 2 * kTileRows;
// Panels of w that stay in L1, and steps of K (a tile each) in a slice: 32 KiB of the 48 KiB of L1
// that every CPU with AMX has.
inline constexpr int64_t kGroupPanels = 4;
inline constexpr int64_t kSliceSteps = 8;
// Below this M a tile is half empty and the vector rows read w as fast.
inline constexpr int64_t kLeastM = 16;
// Blocks of 256 rows by 128 columns: the slice of x and the sums are 128 KiB each. Larger ones read
// less from L3, but cores under AMX run at speeds a factor of two apart, so that many blocks are
// worth more. Few rows leave time for no more than reading w, and the less work a column is, the
// more even its shares have to be.
inline constexpr int64_t kBlockRows = 256, kWideColumns = 128;
inline constexpr int64_t kNarrowRows = 64, kNarrowColumns = 64, kBandColumns = 32;

// How K is walked, in steps of a tile.
struct Walk {
  int64_t steps;   // of a row of x
  int64_t period;  // whose sums one scale holds for, or all of them
  int64_t slice;   // walked at a time: whole periods, or a part of the only one
};

// x in tiles: [slices][bands of 16 rows][steps of the slice], the last slice with fewer steps. A
// tile holds 64 bytes of each of its rows.
struct TiledX {
  uint8_t* data;
  int64_t steps, slice, bands;
  int64_t count(int64_t step) const { return steps - step < slice ? steps - step : slice; }
  // The tiles of a row's band in the slice that begins with `step`.
  uint8_t* tiles(int64_t row, int64_t step) const {
    return data + (step * bands + row / kTileRows * count(step)) * kTileBytes;
  }
};

// Copies a row of that many bytes into its place; zeros behind it.
static inline void put_row(const TiledX& x, int64_t row, const uint8_t* from, int64_t bytes) {
  uint8_t* to = nullptr;
  for (int64_t step = 0; step < x.steps; ++step, to += kTileBytes, from += 64, bytes -= 64) {
    if (step % x.slice == 0) to = x.tiles(row, step) + row % kTileRows * 64;
    const __mmask64 there = bytes >= 64 ? ~__mmask64{0} : (__mmask64{1} << bytes) - 1;
    _mm512_store_si512(to, _mm512_maskz_loadu_epi8(there, from));
  }
}

// What is to be in L2 soon, asked for step by step: of each of the next two panels so many lines.
struct Ahead {
  const uint8_t* w[2];
  int64_t lines;
};

static inline void fetch(Ahead* ahead, int which) {
  for (int64_t i = 0; i < ahead->lines; ++i, ahead->w[which] += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead->w[which]), _MM_HINT_T1);
  }
}

inline constexpr int64_t kQuadBytes = 4 * kTileBytes;  // sums of 32 rows by two panels

// sums(32, 32) (+)= x(32, steps) * w(steps, 32), in the tile's own 4-byte words: tiles of sums
// [band of x][panel]. w[1] may be null. What is asked for ahead stands between the products: in
// front of a step's loads it would hold them up.
template <class Dot>
static inline void multiply_quad(const uint8_t* upper, const uint8_t* lower,
                                 const uint8_t* const* w, int64_t steps, uint8_t* sums, bool add,
                                 Ahead ahead) {
  const uint8_t *left = w[0], *right = w[1] == nullptr ? w[0] : w[1];
  if (add) {
    load_tile<0>(sums, 64);
    load_tile<1>(sums + kTileBytes, 64);
    load_tile<2>(sums + 2 * kTileBytes, 64);
    load_tile<3>(sums + 3 * kTileBytes, 64);
  } else {
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
  }
  for (int64_t i = 0; i < steps; ++i) {
    load_tile<4>(upper + i * kTileBytes, 64);
    load_tile<6>(left + i * kTileBytes, 64);
    Dot::template multiply<0, 4, 6>();
    load_tile<7>(right + i * kTileBytes, 64);
    Dot::template multiply<1, 4, 7>();
    fetch(&ahead, 0);
    load_tile<5>(lower + i * kTileBytes, 64);
    Dot::template multiply<2, 5, 6>();
    Dot::template multiply<3, 5, 7>();
    fetch(&ahead, 1);
  }
  store_tile<0>(sums, 64);
  store_tile<1>(sums + kTileBytes, 64);
  store_tile<2>(sums + 2 * kTileBytes, 64);
  store_tile<3>(sums + 3 * kTileBytes, 64);
}

// The same for the upper 16 rows alone.
template <class Dot>
static inline void multiply_pair(const uint8_t* x, const uint8_t* const* w, int64_t steps,
                                 uint8_t* sums, bool add, Ahead ahead) {
  const uint8_t *left = w[0], *right = w[1] == nullptr ? w[0] : w[1];
  if (add) {
    load_tile<0>(sums, 64);
    load_tile<1>(sums + kTileBytes, 64);
  } else {
    zero_tile<0>();
    zero_tile<1>();
  }
  for (int64_t i = 0; i < steps; ++i) {
    load_tile<4>(x + i * kTileBytes, 64);
    load_tile<6>(left + i * kTileBytes, 64);
    Dot::template multiply<0, 4, 6>();
    fetch(&ahead, 0);
    load_tile<7>(right + i * kTileBytes, 64);
    Dot::template multiply<1, 4, 7>();
    fetch(&ahead, 1);
  }
  store_tile<0>(sums, 64);
  store_tile<1>(sums + kTileBytes, 64);
}

// Steps [begin, begin + steps) of a panel whose codes end at `bytes`: where they lie, or copied to
// `to`: where the last one is cut short, with zeros behind it, and, with `align`, where scales
// between the panels have put them across cache lines (a load then takes 3.5 times as long).
static inline const uint8_t* whole_steps(const uint8_t* codes, int64_t bytes, int64_t begin,
                                         int64_t steps, uint8_t* to, bool align) {
  const uint8_t* from = codes + begin * kTileBytes;
  const int64_t size = steps * kTileBytes, left = bytes - begin * kTileBytes;
  const bool across = reinterpret_cast<uintptr_t>(from) % 64 != 0;
  if (left >= size && !(align && across)) return from;
  const int64_t there = left < size ? left : size;
  for (int64_t i = 0; i < there; i += 64) {
    _mm512_store_si512(to + i, _mm512_loadu_si512(from + i));
  }
  std::memset(to + there, 0, static_cast<size_t>(size - there));
  return to;
}

// Rows [m, m + rows) of the stage by panels [panel, panel + panels) of w.
struct Block {
  int64_t m, rows, panel, panels;
  // The tile of sums of a band of 16 rows and a panel, both counted from the block's first.
  uint8_t* tile(float* sums, int64_t band, int64_t p) const {
    const int64_t quad = p / 2 * ceil_div(rows, kPairRows) + band / 2;
    return reinterpret_cast<uint8_t*>(sums) + quad * kQuadBytes +
           (band % 2 * 2 + p % 2) * kTileBytes;
  }
};

// How the rows of a stage and the columns of w are cut into blocks.
struct Blocks {
  int64_t rows, columns;
};
static inline Blocks blocks_of(int64_t rows) {
  return {even_part(rows, kBlockRows, kPairRows), rows <= kTileRows     ? kBandColumns
                                                  : rows <= kNarrowRows ? kNarrowColumns
                                                                        : kWideColumns};
}
// Words that the sums of any block of up to `rows` rows take.
static inline int64_t block_words(int64_t rows) {
  const int64_t whole = round_up(rows, kPairRows);
  return (whole < kBlockRows ? whole : kBlockRows) * kWideColumns;
}

// The products of a block, in tiles of sums.
//   tiles(panel, step, count, which, align)   steps [step, step + count) of a panel, number
//                                      `which` of its group; align: as whole_steps() has it
//   raw(panel, step)                   where they come from; null where tiles() asks ahead itself
//   scale(panel, step, m, rows, tile, to, add)   for periods: the tile of rows [m, m + rows) that
//                                      holds the sums of the period from `step` on goes to `to`
template <class Dot, class Tiles, class Raw, class Scale>
static inline void multiply_block(const Walk& walk, const TiledX& x, const Block& b, float* sums,
                                  const Tiles& tiles, const Raw& raw, const Scale& scale) {
  alignas(64) uint8_t products[2 * kQuadBytes];
  const bool whole = walk.period >= walk.steps;
  const int64_t pairs = ceil_div(b.rows, kPairRows);
  if (walk.steps == 0) {
    std::memset(sums, 0, static_cast<size_t>(pairs * ceil_div(b.panels, 2) * kQuadBytes));
    return;
  }
  configure_tiles();
  for (int64_t step = 0; step < walk.steps; step += walk.slice) {
    const int64_t count = x.count(step), period = whole ? count : walk.period;
    for (int64_t p0 = 0; p0 < b.panels; p0 += kGroupPanels) {
      const int64_t panels = b.panels - p0 < kGroupPanels ? b.panels - p0 : kGroupPanels;
      const uint8_t* w[kGroupPanels + 1] = {};
      for (int64_t j = 0; j < panels; ++j) {
        w[j] = tiles(b.panel + p0 + j, step, count, j, b.rows > kNarrowRows);
      }
      // The next group of this slice, or the first one of the next slice.
      const bool last = p0 + kGroupPanels >= b.panels;
      const int64_t soon = b.panel + (last ? 0 : p0 + kGroupPanels);
      const int64_t soon_step = last ? step + count : step;
      const bool ask = soon_step < walk.steps && raw(soon, soon_step) != nullptr;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const int64_t m = b.m + pair * kPairRows, rows = b.rows - pair * kPairRows;
        const uint8_t* upper = x.tiles(m, step);
        const uint8_t* lower = rows > kTileRows ? x.tiles(m + kTileRows, step) : nullptr;
        for (int64_t j = 0; j < panels; j += 2) {
          Ahead ahead = {};
          if (ask) {  // each pair of rows for its share
            ahead.lines = ceil_div(kTileBytes / 64, pairs);
            for (int64_t i = 0; i < 2; ++i) {
              ahead.w[i] = raw(soon + j + i, soon_step) + pair * count * ahead.lines * 64;
            }
          }
          for (int64_t i = 0; i < count; i += period) {
            const int64_t part = count - i < period ? count - i : period;
            const uint8_t* at[2] = {w[j] + i * kTileBytes,
                                    w[j + 1] == nullptr ? nullptr : w[j + 1] + i * kTileBytes};
            uint8_t* to =
                whole ? b.tile(sums, 2 * pair, p0 + j) : products + i / period % 2 * kQuadBytes;
            const bool add = whole && step > 0;
            if (lower != nullptr) {
              multiply_quad<Dot>(upper + i * kTileBytes, lower + i * kTileBytes, at, part, to, add,
                                 ahead);
            } else {
              multiply_pair<Dot>(upper + i * kTileBytes, at, part, to, add, ahead);
            }
            if (whole) continue;
            ahead.w[0] += part * ahead.lines * 64;
            ahead.w[1] += part * ahead.lines * 64;
            for (int64_t t = 0; t < 4; ++t) {
              const int64_t height = rows - t / 2 * kTileRows;
              if (height <= 0 || w[j + t % 2] == nullptr) continue;
              scale(b.panel + p0 + j + t % 2, step + i, m + t / 2 * kTileRows,
                    height < kTileRows ? height : kTileRows, to + t * kTileBytes,
                    b.tile(sums, 2 * pair + t / 2, p0 + j + t % 2), step + i > 0);
            }
          }
        }
      }
    }
  }
  release_tiles();
}

// Calls block(thread, block, sums) for every block, then, for 16 rows by 64 columns at a time,
// scale(panel, m, rows, tile) for each tile of sums, and the epilogue.
template <class Products, class Scale>
static inline void for_amx_blocks(const LinearArgs& args, Pool* pool, int64_t m_first, int64_t rows,
                                  const float* row_scale, float* sums_of_threads,
                                  const Products& products, const Scale& scale) {
  constexpr int64_t kColumns = 64;  // of an epilogue: what it takes at a time
  const Blocks cut = blocks_of(rows);
  const int64_t m_blocks = ceil_div(rows, cut.rows), n_blocks = ceil_div(args.w.n, cut.columns);
  parallel_for(pool, m_blocks * n_blocks, 1, [&](int64_t begin, int64_t end, int thread) {
    float* sums = sums_of_threads + thread * block_words(rows);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n0 = i / m_blocks * cut.columns, m0 = i % m_blocks * cut.rows;
      const int64_t width = args.w.n - n0 < cut.columns ? args.w.n - n0 : cut.columns;
      const Block b = {m0, rows - m0 < cut.rows ? rows - m0 : cut.rows, n0 / kPanel,
                       ceil_div(width, kPanel)};
      products(thread, b, sums);
      for (int64_t m = 0; m < b.rows; m += kTileRows) {
        const int64_t height = b.rows - m < kTileRows ? b.rows - m : kTileRows;
        for (int64_t n = 0; n < width; n += kColumns) {
          const uint8_t* tiles[kColumns / kPanel];
          for (int64_t p = n / kPanel; p < b.panels && p < (n + kColumns) / kPanel; ++p) {
            uint8_t* tile = b.tile(sums, m / kTileRows, p);
            scale(b.panel + p, m0 + m, height, tile);
            tiles[p - n / kPanel] = tile;
          }
          const int64_t columns = width - n < kColumns ? width - n : kColumns;
          for (int64_t r = 0; r < height; ++r) {
            alignas(64) float row[kColumns];
            for (int64_t j = 0; j < columns; j += kPanel) {
              _mm512_store_ps(row + j, _mm512_load_ps(tiles[j / kPanel] + r * 64));
            }
            epilogue(args, m_first + m0 + m + r, n0 + n, columns,
                     row_scale == nullptr ? 1.0f : row_scale[m0 + m + r], row);
          }
        }
      }
    }
  });
}

}  // namespace lowbit::amx
