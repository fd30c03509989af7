// The loops of copy, compiled once under the flags of each row's file.
//
// Method    Dimensions are put into the order of out's strides and merged. If the innermost one is
//           without gaps in both views, rows are copied or converted. If not, tiles of 64 x 64
//           elements are, between the dimension that is innermost in out and the one that is in x,
//           so that both sides use the whole of each cache line that they touch.
#pragma once

#include "csrc/base/threads.h"
#include "csrc/copy/copy.h"
#include "csrc/simd/run.h"

namespace lowbit {

inline constexpr int64_t kPiece = 32768;  // elements of one piece of work: 3 to 10 us

static inline void copy_rows(const CopyArgs& a, const Walk& w, const Ctx& ctx) {
  const int64_t pieces = (w.length + kPiece - 1) / kPiece;
  parallel_for(ctx.pool, w.count * pieces, row_grain(w.length, kPiece),
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t p = begin; p < end; ++p) {
                   const int64_t row = p / pieces, first = p % pieces * kPiece;
                   const int64_t count = w.length - first < kPiece ? w.length - first : kPiece;
                   run_convert(a.out, walk_offset(w, 1, row) + first, a.x,
                               walk_offset(w, 0, row) + first, count);
                 }
               });
}

// A tile of rows x columns, and the steps between its elements.
struct CopyTile {
  int64_t rows, columns, x_row, x_column, out_row, out_column;
};

// 64 rows and columns: lines of 64 bytes or more on both sides, and the buffers below stay in L1.
inline constexpr int64_t kTile = 64;

// `turned` becomes the tile row by row, by way of `collected`: x is read along its own lines, and
// the turning stays in L1.
template <class T>
static inline void turn(const T* x, const CopyTile& tile, T* collected, T* turned) {
  for (int64_t j = 0; j < tile.columns; ++j) {
    T* to = collected + j * kTile;
    if (tile.x_row == 1) {
      std::memcpy(to, x + j * tile.x_column, static_cast<size_t>(tile.rows) * sizeof(T));
    } else {
      for (int64_t i = 0; i < tile.rows; ++i) to[i] = x[i * tile.x_row + j * tile.x_column];
    }
  }
  for (int64_t i = 0; i < tile.rows; ++i) {
    for (int64_t j = 0; j < tile.columns; ++j) turned[i * kTile + j] = collected[j * kTile + i];
  }
}

// out is written in whole rows of the tile: stores of single elements to lines that are not in
// cache would fill the store queue and leave two or four misses in flight.
static inline void copy_tile(const CopyArgs& a, int64_t x, int64_t out, const CopyTile& tile) {
  alignas(64) unsigned char collected[4 * kTile * kTile], turned[4 * kTile * kTile];
  const void* from = element(a.x.data, a.x.dtype, x);
  switch (dtype_bytes(a.x.dtype)) {
    case 4:
      turn(static_cast<const uint32_t*>(from), tile, reinterpret_cast<uint32_t*>(collected),
           reinterpret_cast<uint32_t*>(turned));
      break;
    case 2:
      turn(static_cast<const uint16_t*>(from), tile, reinterpret_cast<uint16_t*>(collected),
           reinterpret_cast<uint16_t*>(turned));
      break;
    default: turn(static_cast<const uint8_t*>(from), tile, collected, turned);
  }
  Tensor square = a.x;
  square.data = turned;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t to = out + i * tile.out_row;
    if (tile.out_column == 1) {
      run_convert(a.out, to, square, i * kTile, tile.columns);
    } else {
      for (int64_t j = 0; j < tile.columns; ++j) {
        run_convert(a.out, to + j * tile.out_column, square, i * kTile + j, 1);
      }
    }
  }
}

// w.rank >= 1. Tiles between the innermost dimension and the one of x's smallest step among the
// others.
static inline void copy_tiles(const CopyArgs& a, Walk w, const Ctx& ctx) {
  int other = w.rank - 1;
  for (int i = 0; i < w.rank; ++i) {
    if (w.strides[0][i] < w.strides[0][other]) other = i;
  }
  const int64_t rows = w.shape[other], x_row = w.strides[0][other], out_row = w.strides[1][other];
  const int64_t row_tiles = (rows + kTile - 1) / kTile;
  const int64_t column_tiles = (w.length + kTile - 1) / kTile;
  // What is left numbers the matrices.
  w.shape[other] = 1;
  w.count /= rows;
  const int64_t tiles = row_tiles * column_tiles;
  const int64_t grain =
      row_grain(rows * w.length < kTile * kTile ? rows * w.length : kTile * kTile, kPiece / 2);
  parallel_for(ctx.pool, w.count * tiles, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t matrix = t / tiles, i = t % tiles / column_tiles * kTile;
      const int64_t j = t % tiles % column_tiles * kTile;
      const CopyTile b = {rows - i < kTile ? rows - i : kTile,
                          w.length - j < kTile ? w.length - j : kTile,
                          x_row,
                          w.step[0],
                          out_row,
                          w.step[1]};
      copy_tile(a, walk_offset(w, 0, matrix) + i * x_row + j * w.step[0],
                walk_offset(w, 1, matrix) + i * out_row + j * w.step[1], b);
    }
  });
}

static inline void exchange(Tensor* t, int i, int j) {
  const int64_t size = t->shape[i], stride = t->strides[i];
  t->shape[i] = t->shape[j];
  t->strides[i] = t->strides[j];
  t->shape[j] = size;
  t->strides[j] = stride;
}

// Both views with their dimensions in the order of out's strides.
static inline void order_by_strides(Tensor* x, Tensor* out) {
  for (int i = 1; i < out->rank; ++i) {
    for (int j = i; j > 0 && out->strides[j - 1] < out->strides[j]; --j) {
      exchange(x, j - 1, j);
      exchange(out, j - 1, j);
    }
  }
}

static inline Status copy_body(const CopyArgs& args, const Ctx& ctx) {
  CopyArgs a = args;
  order_by_strides(&a.x, &a.out);
  const Tensor* views[] = {&a.x, &a.out};
  Walk w = walk_of(views, 2);
  if (w.length == 1 || (w.step[0] == 1 && w.step[1] == 1)) {
    copy_rows(a, w, ctx);
  } else {
    if (w.rank == 0) {
      w.shape[0] = 1;
      w.rank = 1;
    }
    copy_tiles(a, w, ctx);
  }
  return ok();
}

}  // namespace lowbit
