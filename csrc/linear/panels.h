// How the vector rows share out their work, whatever their instruction set: rows of x in stages,
// stages in blocks of kBlockM rows by kBlockN columns, one task a block. A block's sums stand in a
// small matrix of the thread until the epilogue takes them row by row.
//
// The partition depends on shapes only, and every sum is made within one task: so the bits are the
// same for any number of threads.
#pragma once

#include "csrc/base/threads.h"
#include "csrc/format/layout.h"
#include "csrc/linear/epilogue.h"
#include "csrc/linear/stage.h"

namespace lowbit {

inline constexpr int64_t kPanel = 16;     // rows of w in one panel
inline constexpr int64_t kBlockN = 64;    // four panels: at M = 1 a task reads 128 KiB of int4
                                          // weights of K = 4096, far more than its start costs
inline constexpr int64_t kBlockM = 96;    // a multiple of every tile height; 96 rows by 256 columns
                                          // of x are 96 KiB and stay in L2
inline constexpr int64_t kStageM = 1024;  // bounds the scratch that a converted x takes; w is read
                                          // again for each stage

// Rows of x that stand in scratch at a time, and rows of one block: as even as the bounds allow.
static inline int64_t even_part(int64_t whole, int64_t most, int64_t multiple) {
  if (whole <= multiple) return whole;
  const int64_t parts = ceil_div(whole, most);
  return round_up(ceil_div(whole, parts), multiple);
}
static inline int64_t stage_rows(int64_t m) { return even_part(m, kStageM, kBlockM); }

// Rows of a tile: as even as possible, so that no call ends with a tile of one row.
static inline int64_t tile_height(int64_t rows, int64_t most) {
  return ceil_div(rows, ceil_div(rows, most));
}

// Rows of x and columns of a block.
struct BlockSize {
  int64_t m = kBlockM, n = kBlockN;
};

struct Staged {
  const float* x;      // (rows, x_stride): the values, or what stands for them
  int64_t x_stride;    // in elements
  const float* scale;  // (rows): the factor of each row; null: 1
};

// Calls block(thread, n0, panels, m0, rows, sums) for every block of `rows` staged rows of x and
// all of w, then the epilogue for what it left in sums: (rows, size.n), row by row. `m_first` is
// the row of out that the stage begins with. `tile` is the height of the kernel's tile.
template <class Block>
static inline void for_blocks(const LinearArgs& args, Pool* pool, int64_t m_first, int64_t rows,
                              int64_t tile, const float* scale, float* sums_of_threads,
                              const Block& block, BlockSize size = {}) {
  const int64_t mc = even_part(rows, size.m, tile);
  const int64_t m_blocks = ceil_div(rows, mc), n_blocks = ceil_div(args.w.n, size.n);
  // Blocks that share columns of w follow each other, so that w comes from memory once.
  parallel_for(pool, m_blocks * n_blocks, 1, [&](int64_t begin, int64_t end, int thread) {
    float* sums = sums_of_threads + thread * size.m * size.n;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n0 = i / m_blocks * size.n, m0 = i % m_blocks * mc;
      const int64_t width = args.w.n - n0 < size.n ? args.w.n - n0 : size.n;
      const int64_t height = rows - m0 < mc ? rows - m0 : mc;
      prefetch_epilogue(args, m_first + m0, height, n0, width);
      block(thread, n0, ceil_div(width, kPanel), m0, height, sums);
      for (int64_t m = 0; m < height; ++m) {
        epilogue(args, m_first + m0 + m, n0, width, scale == nullptr ? 1.0f : scale[m0 + m],
                 sums + m * size.n);
      }
    }
  });
}

// What a float kernel serves: every dtype of x and every compute that leaves sums in
// f32 (with `codes`, x may be quantised to int8 on the way; integer kinds have integer rows for
// that).
static constexpr LinearSpec float_spec(KindSet kinds, Layout layout, bool codes) {
  LinearSpec s = {kinds,
                  bit(layout),
                  kFloats | kCodeDTypes,
                  bit(Compute::floating) | bit(Compute::fp8) | (codes ? bit(Compute::int8) : 0),
                  true,
                  0,
                  1,
                  1,
                  1};
  s.planes = true;
  return s;
}

// Splits `rows` into tiles of at most `tile` rows, as even as possible: calls f(first, count).
template <class F>
static inline void for_tiles(int64_t rows, int64_t tile, const F& f) {
  int64_t left = ceil_div(rows, tile);
  for (int64_t m = 0; m < rows; --left) {
    const int64_t count = ceil_div(rows - m, left);
    f(m, count);
    m += count;
  }
}

}  // namespace lowbit
