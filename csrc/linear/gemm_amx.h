// The walk of the AMX rows: blocks of x by panels of w in tiles of 32 by 32.
//
// Eight tile registers: four sums of 16 x 16, two of x, two of w. Two panels of panel16 side by
// side give the tiles of w where they lie: 16 vectors of int8 or bf16 are one tile. x is copied
// into tiles as it is staged, slice by slice, so that a block reads it front to back and every load
// is 1 KiB in a row. Sums wait between slices as tiles too.
//
// Four loads of 1 KiB feed four products of 16 cycles. So K goes by slices: 32 columns of w stay in
// L1 while the slice of all of the block's x streams past from L2, 32 bytes for each cycle of
// products; the sums, in and out of L2 once a slice, are a quarter as much again. More panels by
// shorter slices, or longer slices, only move bytes from one to the other.
#pragma once

#include "csrc/linear/panels.h"
#include "csrc/simd/amx.h"
#include "csrc/simd/avx512.h"

namespace lowbit::amx {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileBytes = 1024;
inline constexpr int64_t kStagedRows = 4;  // of a task: few rows have to do for all threads
inline constexpr int64_t kPairRows = 2 * kTileRows;
inline constexpr int64_t kPairPanels = 2;
// Steps of K (a tile each) in a slice: two panels of it are 32 KiB of the 48 KiB of L1 that every
// CPU with AMX has.
inline constexpr int64_t kSliceSteps = 16;
// Below this M a tile is half empty and the vector rows read w as fast.
inline constexpr int64_t kLeastM = 16;
// Blocks of 256 rows by 256 columns: the slice of x and the sums are 256 KiB each. Larger ones
// would read x from L3 less often, but cores under AMX run at speeds a factor of two and more
// apart, so that the second half of the columns goes by smaller blocks, and its second half by the
// smallest. Few rows leave time for no more than reading w, and the less work a column is, the more
// even its shares have to be.
inline constexpr int64_t kBlockRows = 256, kWideColumns = 256;
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
// [band of x][panel]; without kLower for the upper 16 rows alone. w[1] may be null. What is asked
// for ahead stands between the products: in front of a step's loads it would hold them up.
template <class Dot, bool kLower>
static inline void multiply_quad(const uint8_t* upper, const uint8_t* lower,
                                 const uint8_t* const* w, int64_t steps, uint8_t* sums, bool add,
                                 Ahead ahead) {
  const uint8_t *left = w[0], *right = w[1] == nullptr ? w[0] : w[1];
  if (add) {
    load_tile<0>(sums, 64);
    load_tile<1>(sums + kTileBytes, 64);
    if constexpr (kLower) {
      load_tile<2>(sums + 2 * kTileBytes, 64);
      load_tile<3>(sums + 3 * kTileBytes, 64);
    }
  } else {
    zero_tile<0>();
    zero_tile<1>();
    if constexpr (kLower) {
      zero_tile<2>();
      zero_tile<3>();
    }
  }
  for (int64_t i = 0; i < steps; ++i) {
    load_tile<4>(upper + i * kTileBytes, 64);
    load_tile<6>(left + i * kTileBytes, 64);
    Dot::template multiply<0, 4, 6>();
    if constexpr (!kLower) fetch(&ahead, 0);
    load_tile<7>(right + i * kTileBytes, 64);
    Dot::template multiply<1, 4, 7>();
    if constexpr (kLower) {
      fetch(&ahead, 0);
      load_tile<5>(lower + i * kTileBytes, 64);
      Dot::template multiply<2, 5, 6>();
      Dot::template multiply<3, 5, 7>();
    }
    fetch(&ahead, 1);
  }
  store_tile<0>(sums, 64);
  store_tile<1>(sums + kTileBytes, 64);
  if constexpr (kLower) {
    store_tile<2>(sums + 2 * kTileBytes, 64);
    store_tile<3>(sums + 3 * kTileBytes, 64);
  }
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

// Rows [m, m + rows) of the stage by columns [n, n + columns) of out, which are whole panels of w
// but for the last one.
struct Block {
  int64_t m, rows, n, columns;
  int64_t panel() const { return n / kPanel; }
  int64_t panels() const { return ceil_div(columns, kPanel); }
  // The tile of sums of a band of 16 rows and a panel, both counted from the block's first.
  uint8_t* tile(float* sums, int64_t band, int64_t p) const {
    const int64_t quad = p / 2 * ceil_div(rows, kPairRows) + band / 2;
    return reinterpret_cast<uint8_t*>(sums) + quad * kQuadBytes +
           (band % 2 * 2 + p % 2) * kTileBytes;
  }
};

// How the rows of a stage and the columns of w are cut into blocks: up to three runs of columns,
// each in blocks of one size.
struct Blocks {
  struct Run {
    int64_t begin, end, rows, columns, count;
  };
  int64_t rows = 0, count = 0;
  int runs = 0;
  Run run[3] = {};

  void add(int64_t begin, int64_t end, int64_t height, int64_t columns) {
    const int64_t blocks = ceil_div(rows, height) * ceil_div(end - begin, columns);
    run[runs++] = {begin, end, height, columns, blocks};
    count += blocks;
  }
  // Blocks that share columns of w follow each other, so that w comes from memory once.
  Block block(int64_t i) const {
    const Run* r = run;
    for (; i >= r->count; ++r) i -= r->count;
    const int64_t m_blocks = ceil_div(rows, r->rows);
    const int64_t m = i % m_blocks * r->rows, n = r->begin + i / m_blocks * r->columns;
    return {m, rows - m < r->rows ? rows - m : r->rows, n,
            r->end - n < r->columns ? r->end - n : r->columns};
  }
};
static inline Blocks blocks_of(int64_t rows, int64_t n) {
  Blocks b;
  b.rows = rows;
  const int64_t height = even_part(rows, kBlockRows, kPairRows);
  if (rows <= kNarrowRows) {
    b.add(0, n, height, rows <= kTileRows ? kBandColumns : kNarrowColumns);
    return b;
  }
  const int64_t half = n / 2 / kWideColumns * kWideColumns;
  const int64_t last = n * 3 / 4 / kWideColumns * kWideColumns;
  b.add(0, half, height, kWideColumns);
  b.add(half, last, height, kWideColumns / 2);
  b.add(last, n, round_up(height / 2, kPairRows), kWideColumns / 4);
  return b;
}

// Words that the sums of any block of up to `rows` rows take.
static inline int64_t block_words(int64_t rows) {
  const int64_t whole = round_up(rows, kPairRows);
  return (whole < kBlockRows ? whole : kBlockRows) * kWideColumns;
}

// The products of a block, in tiles of sums.
//   tiles(panel, step, count, which, align)   steps [step, step + count) of a panel, number
//                                      `which` of its pair; align: as whole_steps() has it
//   raw(panel, step)                   where they come from; null where tiles() asks ahead itself
//   scale(panel, step, m, rows, tile, to, add)   for periods: the tile of rows [m, m + rows) that
//                                      holds the sums of the period from `step` on goes to `to`
template <class Dot, class Tiles, class Raw, class Scale>
static inline void multiply_block(const Walk& walk, const TiledX& x, const Block& b, float* sums,
                                  const Tiles& tiles, const Raw& raw, const Scale& scale) {
  alignas(64) uint8_t products[2 * kQuadBytes];
  const bool whole = walk.period >= walk.steps;
  const int64_t pairs = ceil_div(b.rows, kPairRows), panels = b.panels();
  if (walk.steps == 0) {
    std::memset(sums, 0, static_cast<size_t>(pairs * ceil_div(panels, 2) * kQuadBytes));
    return;
  }
  configure_tiles();
  for (int64_t step = 0; step < walk.steps; step += walk.slice) {
    const int64_t count = x.count(step), period = whole ? count : walk.period;
    for (int64_t p = 0; p < panels; p += kPairPanels) {
      const int64_t panel = b.panel() + p;
      const uint8_t* w[kPairPanels] = {};
      for (int64_t j = 0; j < kPairPanels && p + j < panels; ++j) {
        w[j] = tiles(panel + j, step, count, j, b.rows > kNarrowRows);
      }
      // The next pair of this slice, or the first one of the next slice.
      const bool last = p + kPairPanels >= panels;
      const int64_t soon = last ? b.panel() : panel + kPairPanels;
      const int64_t soon_step = last ? step + count : step;
      const bool ask = soon_step < walk.steps && raw(soon, soon_step) != nullptr;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const int64_t m = b.m + pair * kPairRows, rows = b.rows - pair * kPairRows;
        const uint8_t* upper = x.tiles(m, step);
        const uint8_t* lower = rows > kTileRows ? x.tiles(m + kTileRows, step) : nullptr;
        Ahead ahead = {};
        if (ask) {  // each pair of rows for its share
          ahead.lines = ceil_div(kTileBytes / 64, pairs);
          for (int64_t j = 0; j < kPairPanels; ++j) {
            ahead.w[j] = raw(soon + j, soon_step) + pair * count * ahead.lines * 64;
          }
        }
        for (int64_t i = 0; i < count; i += period) {
          const int64_t part = count - i < period ? count - i : period, at = i * kTileBytes;
          const uint8_t* from[] = {w[0] + at, w[1] == nullptr ? nullptr : w[1] + at};
          uint8_t* to = whole ? b.tile(sums, 2 * pair, p) : products + i / period % 2 * kQuadBytes;
          const bool add = whole && step > 0;
          if (lower != nullptr) {
            multiply_quad<Dot, true>(upper + at, lower + at, from, part, to, add, ahead);
          } else {
            multiply_quad<Dot, false>(upper + at, nullptr, from, part, to, add, ahead);
          }
          if (whole) continue;
          ahead.w[0] += part * ahead.lines * 64;
          ahead.w[1] += part * ahead.lines * 64;
          for (int64_t t = 0; t < 4; ++t) {
            const int64_t height = rows - t / 2 * kTileRows;
            if (height <= 0 || w[t % 2] == nullptr) continue;
            scale(panel + t % 2, step + i, m + t / 2 * kTileRows,
                  height < kTileRows ? height : kTileRows, to + t * kTileBytes,
                  b.tile(sums, 2 * pair + t / 2, p + t % 2), step + i > 0);
          }
        }
      }
    }
  }
  release_tiles();
}

// Rows of sums in f32 as the epilogue takes them: (16, kWideColumns).
inline constexpr int64_t kRowBytes = kWideColumns * 4;

static inline void copy_sums(const uint8_t* tile, int64_t rows, uint8_t* to) {
  for (int64_t m = 0; m < rows; ++m) {
    _mm512_store_ps(to + m * kRowBytes, _mm512_load_ps(tile + m * 64));
  }
}

// Calls products(thread, block, sums) for every block, then, for 16 rows at a time,
// finish(panel, m, rows, tile, to) for each tile of sums, and the epilogue for the rows that these
// make, once for the block's whole width.
template <class Products, class Finish>
static inline void for_amx_blocks(const LinearArgs& args, Pool* pool, int64_t m_first, int64_t rows,
                                  const float* row_scale, float* sums_of_threads,
                                  const Products& products, const Finish& finish) {
  const Blocks blocks = blocks_of(rows, args.w.n);
  parallel_for(pool, blocks.count, 1, [&](int64_t begin, int64_t end, int thread) {
    float* sums = sums_of_threads + thread * block_words(rows);
    for (int64_t i = begin; i < end; ++i) {
      const Block b = blocks.block(i);
      products(thread, b, sums);
      alignas(64) uint8_t ready[kTileRows * kRowBytes];
      for (int64_t m = 0; m < b.rows; m += kTileRows) {
        const int64_t height = b.rows - m < kTileRows ? b.rows - m : kTileRows;
        for (int64_t p = 0; p < b.panels(); ++p) {
          finish(b.panel() + p, b.m + m, height, b.tile(sums, m / kTileRows, p), ready + p * 64);
        }
        for (int64_t r = 0; r < height; ++r) {
          epilogue(args, m_first + b.m + m + r, b.n, b.columns,
                   row_scale == nullptr ? 1.0f : row_scale[b.m + m + r],
                   reinterpret_cast<const float*>(ready + r * kRowBytes));
        }
      }
    }
  });
}

}  // namespace lowbit::amx
