// What the integer rows share, whatever their instruction set: x as i8 codes in scratch with its
// sums, and the walk over panels, tiles of x and the groups of a panel.
//
//   sum over a group of x * (code - zero)  =  sum of x * code  -  zero * sum of x
//
// so codes stay as they are stored (int4 without a sign), and zero points, or an offset that makes
// int8 unsigned, cost at most one product per group. A long group is walked in segments: 2048
// products of 8 and 4 bits and their multiples of a zero point are below 2^24, which f32 holds
// exactly.
//
// x lies in tiles of T rows, as many as the kernel multiplies at a time: four columns of its first
// row, the same four of the next one, and so on for T rows; then the next four columns.
//
//   tile    k = 0 .. 3      k = 4 .. 7
//           [m0][m1][m2]    [m0][m1][m2]   ...    each [ ] four codes; T = 3
//
// A kernel so reads one stream at constant offsets. With each row on its own, rows a power of two
// apart would share a few sets of L1, and push each other and the panel out of it.
#pragma once

#include "csrc/linear/panels.h"
#include "csrc/linear/words.h"

namespace lowbit {

inline constexpr int64_t kSegmentK = 2048;
// Bytes of x that the panels of a block read again and again from L2, half of it. With more, all
// panels take a slice of K before the next slice.
inline constexpr int64_t kBytesInL2 = 512 * 1024;
// Codes of a panel that tiles which wait for L2 read one after the other: half of L1.
inline constexpr int64_t kSliceBytes = 16 * 1024;
// Codes of x that a task of staging makes or moves: some microseconds of work.
inline constexpr int64_t kStageTask = 8192;

struct Segments {
  PanelBlock block;
  int64_t k;          // columns of w
  int64_t size;       // columns of a segment; the last of a group may have fewer
  int64_t per_group;  // segments in a group
  int64_t count;      // segments in a row
  int64_t unit;       // columns of whole vectors: kernels multiply so many at a time
};

static inline Segments segments_of(const Weight& w, int64_t segment_k) {
  Segments s = {};
  s.block = panel_block(w.layout, w.format, {w.n, w.k});
  s.k = w.k;
  s.unit = panel_unit(w.layout, w.format.kind);
  const int64_t most = segment_k / s.unit * s.unit;
  s.size = s.block.k < most ? s.block.k : most;
  s.per_group = ceil_div(s.block.k, s.size);
  s.count = s.block.groups * s.per_group;
  return s;
}

struct Segment {
  int64_t block;   // offset of the group's block in the panel
  int64_t column;  // first column, within the group
  int64_t k;       // first column, within the row
  int64_t width;   // columns
};

static inline Segment segment_at(const Segments& s, int64_t i) {
  Segment r;
  const int64_t group = i / s.per_group;
  r.block = group * s.block.bytes;
  r.column = i % s.per_group * s.size;
  r.k = group * s.block.k + r.column;
  const int64_t end = s.block.k < s.k - group * s.block.k ? s.block.k : s.k - group * s.block.k;
  r.width = end - r.column < s.size ? end - r.column : s.size;
  return r;
}

// The segment behind `r`, which is not the last one. The bounds are hardly ever met: as branches
// they cost nothing, as minima they would hold up the addresses of every group.
static inline void next_segment(const Segments& s, Segment* r) {
  r->k += r->width;
  r->column += r->width;
  if (r->column == s.block.k) {
    r->column = 0;
    r->block += s.block.bytes;
  }
  r->width = s.size;
  if (__builtin_expect(r->column + s.size > s.block.k, 0)) r->width = s.block.k - r->column;
  if (__builtin_expect(r->k + r->width > s.k, 0)) r->width = s.k - r->k;
}

// One call of a kernel's tile: sums(rows, 16) (+)= x(rows, K) times segments [begin, end) of the
// panel at w.
struct CodeTile {
  const Format* format;
  const Segments* segments;
  const uint8_t* w;
  int64_t begin, end;
  const uint8_t* x;         // as above; four codes take 4 * CodeKernel.width bytes
  const int32_t* x_sums;    // (segments, rows)
  float* sums;              // row stride kBlockN
  bool add;                 // false: sums holds nothing yet
  const uint8_t* unpacked;  // what CodeKernel.unpack made of these segments, for its tiles
  int64_t panels;           // that the tile serves, one after the other
};
using CodeTileRun = void (*)(const CodeTile&);

// What an integer row brings.
struct CodeKernel {
  const CodeTileRun* tiles;  // tiles[T - 1] multiplies T rows, up to `height`
  const CodeTileRun* pairs;  // the same for two panels that follow each other; null: there is none
  int64_t height;
  int64_t pair_from;    // the least T for `pairs`
  int64_t slice_bytes;  // of a panel's codes, that tiles read one after the other; 0: no bound
  int64_t width;        // bytes of a code in the kernel's form of x
  // Four codes in that form; null: as they are.
  void (*arrange)(const uint8_t* four, uint8_t* to);
  int64_t segment_k = kSegmentK;  // columns of a segment at most
  // Columns of a row of x in the kernel's form, in place of `arrange`: as many as a multiple of
  // what vectors hold. Height 1.
  void (*arrange_columns)(const uint8_t* codes, int64_t columns, uint8_t* to) = nullptr;
  // Columns that a tile takes of all panels of a block, one row of x after the other: what x
  // becomes for them fits L1, beside their codes. 0: a tile has one panel.
  int64_t slice_columns = 0;
  // Where so many rows of x or more read a panel, `unpack` lays the codes of a slice of it out in
  // L1, `unpacked_width` bytes for each and then `unpacked_scales` bytes a segment, and these tiles
  // read them there; null: there are none.
  const CodeTileRun* unpacked = nullptr;
  void (*unpack)(const CodeTile& tile, uint8_t* to) = nullptr;
  int64_t unpack_from = 0;
  int64_t unpacked_width = 0;
  int64_t unpacked_scales = 0;
};

struct CodeScratch {
  uint8_t* codes;          // (stage, columns): rows of codes, padded with zeros, that x has not
  uint8_t* x;              // the same in tiles
  int32_t* x_sums;         // (stage, segments), by tiles
  float* scale;            // (stage)
  float* sums;             // (threads, kBlockM, kBlockN)
  float* floats;           // (threads, K): a row of x before it is quantised
  uint8_t* unpacked;       // (threads, unpacked_bytes)
  int64_t unpacked_bytes;  // of a slice of a panel
  int64_t columns;
};

// Columns of x in scratch: zeros stand behind the last one for as far as a kernel's vectors reach.
static inline int64_t padded_columns(const Weight& w) {
  // The last group of trits16 may begin anywhere in a vector's columns.
  const int64_t unit = panel_unit(w.layout, w.format.kind);
  return round_up(round_up(w.k, unit) + (w.layout == Layout::trits16 ? unit : 0), 8);
}

// Codes may be read where x has them: no zeros have to stand behind a row of them.
static inline bool reads_codes(const LinearArgs& args) {
  return args.x.dtype == DType::i8 && padded_columns(args.w) == args.x.shape[1];
}

// Segments whose codes are unpacked at a time.
static inline int64_t unpacked_segments(const CodeKernel& kernel, const Segments& s) {
  const int64_t columns = kSliceBytes / 2 / (kPanel * kernel.unpacked_width);
  return columns < s.size ? 1 : columns / s.size;
}

static inline size_t carve_codes(const LinearArgs& args, const CodeKernel& kernel, int threads,
                                 void* base, CodeScratch* s) {
  const int64_t rows = stage_rows(args.x.shape[0]);
  const Segments segments = segments_of(args.w, kernel.segment_k);
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->columns = padded_columns(args.w);
  s->codes = take<uint8_t>(&at, reads_codes(args) ? 0 : rows * s->columns);
  s->x = take<uint8_t>(&at, rows * s->columns * kernel.width);
  s->x_sums = take<int32_t>(&at, rows * segments.count);
  s->scale = take<float>(&at, rows);
  s->sums = take<float>(&at, threads * kBlockM * kBlockN);
  s->floats = take<float>(&at, threads * args.w.k);
  s->unpacked_bytes = 0;
  if (kernel.unpack != nullptr && args.w.k > 0) {
    const int64_t codes = round_up(segments.size, segments.unit) * kPanel * kernel.unpacked_width;
    s->unpacked_bytes =
        round_up(unpacked_segments(kernel, segments) * (codes + kernel.unpacked_scales), 64);
  }
  s->unpacked = take<uint8_t>(&at, threads * s->unpacked_bytes);
  return at - reinterpret_cast<uintptr_t>(base);
}

static inline size_t workspace_codes(const LinearArgs& args, const CodeKernel& kernel,
                                     int threads) {
  CodeScratch s;
  return carve_codes(args, kernel, threads, nullptr, &s);
}

struct CodeRows {
  const uint8_t* data;
  int64_t stride;
};

// Segments [begin, end) of a tile of `rows` rows from m on: from rows of codes, the first of which
// is the tile's, to the tile, and the sums.
static inline void arrange_tile(const CodeKernel& kernel, const Segments& segments,
                                const CodeScratch& s, const CodeRows& from, int32_t factor,
                                int64_t m, int64_t rows, int64_t begin, int64_t end) {
  const int64_t four = 4 * kernel.width;
  const int64_t k0 = segment_at(segments, begin).k;
  const int64_t k1 = end == segments.count ? s.columns : segment_at(segments, end).k;
  uint8_t* tile = s.x + m * s.columns * kernel.width;
  int32_t* sums = s.x_sums + m * segments.count;
  const bool plain = kernel.arrange == nullptr && kernel.arrange_columns == nullptr;
  // Segments begin at multiples of four columns.
  if (plain) {
    interleave_words(from.data + k0, from.stride, rows, (k1 - k0) / 4, tile + k0 * rows);
  }
  for (int64_t t = 0; t < rows && !plain; ++t) {
    const uint8_t* codes = from.data + t * from.stride;
    if (kernel.arrange_columns != nullptr) {
      kernel.arrange_columns(codes + k0, k1 - k0, tile + (k0 * rows + t * 4) * kernel.width);
      continue;
    }
    for (int64_t q = k0 / 4; q < k1 / 4; ++q) {
      kernel.arrange(codes + q * 4, tile + (q * rows + t) * four);
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    const Segment segment = segment_at(segments, i);
    // Over the columns that the kernel multiplies: those behind a group count nothing where
    // their codes stand for zero (trits16), and are zeros of x everywhere else.
    const int64_t width = round_up(segment.width, segments.unit);
    // Words behind k1 may not be in the tile yet.
    if (plain && rows >= 8 && width % 4 == 0 && segment.k + width <= k1) {
      sum_words(tile + segment.k * rows, rows, width / 4, factor, sums + i * rows);
      continue;
    }
    for (int64_t t = 0; t < rows; ++t) {
      const uint8_t* codes = from.data + t * from.stride + segment.k;
      sums[i * rows + t] = sum_codes(reinterpret_cast<const int8_t*>(codes), width) * factor;
    }
  }
}

// Stages `rows` rows of x from `first` on, in tiles of `height` rows; the last one may have fewer.
static inline void stage_tiles(const LinearArgs& args, const Ctx& ctx, const CodeKernel& kernel,
                               const Segments& segments, const CodeScratch& s, int32_t factor,
                               int64_t first, int64_t rows, int64_t height) {
  const int64_t k = args.w.k;
  CodeRows from = {s.codes, s.columns};
  if (reads_codes(args)) {
    from.stride = args.x.strides[0];
    from.data = static_cast<const uint8_t*>(args.x.data) + first * from.stride;
    for (int64_t m = 0; m < rows; ++m) s.scale[m] = code_scale(args, first + m);
  } else {
    parallel_for(ctx.pool, rows, ceil_div(kStageTask, k + 1),
                 [&](int64_t m0, int64_t m1, int thread) {
                   for (int64_t m = m0; m < m1; ++m) {
                     uint8_t* codes = s.codes + m * s.columns;
                     s.scale[m] = stage_codes(args, first + m, s.floats + thread * k,
                                              reinterpret_cast<int8_t*>(codes));
                     std::memset(codes + k, 0, static_cast<size_t>(s.columns - k));
                   }
                 });
  }
  if (k == 0) return;
  // By tiles and not by rows: the rows of a tile share cache lines. By columns too, for there may
  // be one tile only.
  const int64_t step = ceil_div(kStageTask, segments.size * height);
  const int64_t steps = ceil_div(segments.count, step);
  parallel_for(ctx.pool, ceil_div(rows, height) * steps, 1, [&](int64_t i0, int64_t i1, int) {
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t m = i / steps * height, begin = i % steps * step;
      const CodeRows tile = {from.data + m * from.stride, from.stride};
      arrange_tile(kernel, segments, s, tile, factor, m, rows - m < height ? rows - m : height,
                   begin, begin + step < segments.count ? begin + step : segments.count);
    }
  });
}

// `factor`: what the kernel wants x_sums multiplied by.
static inline Status run_codes(const LinearArgs& args, const Ctx& ctx, const CodeKernel& kernel,
                               int32_t factor) {
  const int64_t m_all = args.x.shape[0], k = args.w.k, stage = stage_rows(m_all);
  const Segments segments = segments_of(args.w, kernel.segment_k);
  CodeScratch s;
  carve_codes(args, kernel, pool_threads(ctx.pool), ctx.scratch, &s);
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    const int64_t height = tile_height(rows, kernel.height);
    stage_tiles(args, ctx, kernel, segments, s, factor, first, rows, height);
    const auto block = [&](int thread, int64_t n0, int64_t panels, int64_t m0, int64_t block_rows,
                           float* sums) {
      if (k == 0) {
        for (int64_t i = 0; i < block_rows * kBlockN; ++i) sums[i] = 0.0f;
        return;
      }
      const bool unpack = kernel.unpack != nullptr && block_rows >= kernel.unpack_from;
      int64_t columns = k;
      if (block_rows > height) {
        columns = kBytesInL2 / (block_rows * kernel.width);
        const int64_t most = kernel.slice_bytes * 8 / (kPanel * kind_row(args.w.format.kind).bits);
        if (most > 0 && most < columns) columns = most;
      }
      int64_t step = columns < segments.size ? 1 : columns / segments.size;
      if (unpack) step = unpacked_segments(kernel, segments);
      if (kernel.slice_columns > 0) {
        step = kernel.slice_columns < segments.size ? 1 : kernel.slice_columns / segments.size;
      }
      for (int64_t begin = 0; begin < segments.count; begin += step) {
        CodeTile tile = {&args.w.format, &segments, nullptr,   begin,   0, nullptr,
                         nullptr,        nullptr,   begin > 0, nullptr, 1};
        tile.end = begin + step < segments.count ? begin + step : segments.count;
        const int64_t panel_bytes = segments.block.groups * segments.block.bytes;
        const uint8_t* w = args.w.data + n0 / kPanel * panel_bytes;
        if (kernel.slice_columns > 0) {
          tile.w = w;
          tile.panels = panels;
          for (int64_t m = m0; m < m0 + block_rows; ++m) {
            tile.x = s.x + m * s.columns * kernel.width;
            tile.x_sums = s.x_sums + m * segments.count;
            tile.sums = sums + (m - m0) * kBlockN;
            kernel.tiles[0](tile);
          }
          continue;
        }
        for (int64_t p = 0; p < panels;) {
          const bool pair = kernel.pairs != nullptr && height >= kernel.pair_from && p + 1 < panels;
          tile.w = w + p * panel_bytes;
          const CodeTileRun* tiles = pair ? kernel.pairs : kernel.tiles;
          if (unpack) {
            uint8_t* to = s.unpacked + thread * s.unpacked_bytes;
            kernel.unpack(tile, to);
            tile.unpacked = to;
            tiles = kernel.unpacked;
          }
          for (int64_t m = m0; m < m0 + block_rows; m += height) {
            const int64_t count = m0 + block_rows - m < height ? m0 + block_rows - m : height;
            if (tile.end == segments.count && block_rows > height) {
              const int64_t n = n0 + p * kPanel, width = pair ? 2 * kPanel : kPanel;
              const int64_t left = args.w.n - n < width ? args.w.n - n : width;
              prefetch_rows(args, args.out, first + m, count, n, left);
            }
            tile.x = s.x + m * s.columns * kernel.width;
            tile.x_sums = s.x_sums + m * segments.count;
            tile.sums = sums + (m - m0) * kBlockN + p * kPanel;
            tiles[count - 1](tile);
          }
          p += pair ? 2 : 1;
        }
      }
    };
    for_blocks(args, ctx.pool, first, rows, height, s.scale, s.sums, block);
  }
  return ok();
}

// What an integer row over panel16 or trits16 serves.
static constexpr LinearSpec code_spec(KindSet kinds, Layout layout = Layout::panel16) {
  LinearSpec s = {kinds, bit(layout), kFloats | bit(DType::i8), bit(Compute::int8), true, 0, 1, 1,
                  1};
  s.planes = true;
  return s;
}

}  // namespace lowbit
