// What the integer rows share, whatever their instruction set: x as i8 codes in scratch with its
// sums, and the walk over the groups of a panel.
//
//   sum over a group of x * (code - zero)  =  sum of x * code  -  zero * sum of x
//
// so codes stay as they are stored (int4 without a sign), and zero points, or an offset that makes
// int8 unsigned, cost one product per group. A long group is walked in segments: 2048 products of 8
// and 4 bits and their multiples of a zero point are below 2^24, which f32 holds exactly.
#pragma once

#include "csrc/linear/panels.h"

namespace lowbit {

inline constexpr int64_t kSegmentK = 2048;
// Codes of a panel that several tiles of x read one after the other: half of L1.
inline constexpr int64_t kSliceBytes = 16 * 1024;
// Bytes of x that a block may read again and again from L2. With more, all panels of a block take a
// slice of K before the next slice.
inline constexpr int64_t kBytesInL2 = 256 * 1024;

struct Segments {
  PanelBlock block;
  int64_t k;          // columns of w
  int64_t size;       // columns of a segment; the last of a group may have fewer
  int64_t per_group;  // segments in a group
  int64_t count;      // segments in a row
  int64_t per_slice;  // segments that are walked together while their part of the panel is in L1
  int64_t unit;       // columns of whole vectors: kernels multiply so many at a time
};

static inline Segments segments_of(const Weight& w) {
  Segments s = {};
  s.block = panel_block(w.layout, w.format, {w.n, w.k});
  s.k = w.k;
  s.unit = panel_unit(w.layout, w.format.kind);
  const int64_t most = kSegmentK / s.unit * s.unit;
  s.size = s.block.k < most ? s.block.k : most;
  s.per_group = ceil_div(s.block.k, s.size);
  s.count = s.block.groups * s.per_group;
  const int64_t slice = kSliceBytes * 8 / (kPanel * kind_row(w.format.kind).bits);
  s.per_slice = s.size == 0 || s.size > slice / 2 ? 1 : slice / s.size;
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

// The segment behind `r`, which is not the last one.
static inline void next_segment(const Segments& s, Segment* r) {
  r->k += r->width;
  r->column += r->width;
  if (r->column == s.block.k) {
    r->column = 0;
    r->block += s.block.bytes;
  }
  const int64_t in_block = s.block.k - r->column, in_row = s.k - r->k;
  const int64_t end = in_block < in_row ? in_block : in_row;
  r->width = end < s.size ? end : s.size;
}

struct CodeScratch {
  uint8_t* x;       // (stage, x_stride bytes): codes, padded with zeros
  int32_t* x_sums;  // (stage, segments)
  float* scale;     // (stage)
  float* sums;      // (threads, kBlockM, kBlockN)
  float* floats;    // (threads, K): a row of x before it is quantised
  int8_t* codes;    // (threads, padded_columns)
  int64_t x_stride;
};

// Columns of x in scratch: zeros stand behind the last one for as far as any kernel's vectors
// reach.
static inline int64_t padded_columns(const Weight& w) {
  // The last group of trits16 may begin anywhere in a vector's columns.
  const int64_t unit = panel_unit(w.layout, w.format.kind);
  return round_up(round_up(w.k, unit) + (w.layout == Layout::trits16 ? unit : 0), 8);
}

// `width`: bytes that the kernel's form of x takes for a code.
static inline size_t carve_codes(const LinearArgs& args, int threads, int width, void* base,
                                 CodeScratch* s) {
  const int64_t rows = stage_rows(args.x.shape[0]), padded = padded_columns(args.w);
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->x_stride = padded * width;
  s->x = take<uint8_t>(&at, rows * s->x_stride);
  s->x_sums = take<int32_t>(&at, rows * segments_of(args.w).count);
  s->scale = take<float>(&at, rows);
  s->sums = take<float>(&at, threads * kBlockM * kBlockN);
  s->floats = take<float>(&at, threads * args.w.k);
  s->codes = take<int8_t>(&at, threads * padded);
  return at - reinterpret_cast<uintptr_t>(base);
}

static inline size_t workspace_codes(const LinearArgs& args, int threads, int width) {
  CodeScratch s;
  return carve_codes(args, threads, width, nullptr, &s);
}

// arrange(codes, padded, to): a row of i8 codes in the form that the kernel reads.
// multiply(panel, begin, end, m, rows, sums, add): segments [begin, end) of a panel times `rows`
// rows
//   of x from m on, into (rows, kBlockN).
template <class Arrange, class Multiply>
static inline Status run_codes(const LinearArgs& args, const Ctx& ctx, const Segments& segments,
                               const CodeScratch& s, int64_t tile, const Arrange& arrange,
                               const Multiply& multiply) {
  const int64_t m_all = args.x.shape[0], k = args.w.k, padded = padded_columns(args.w);
  const int64_t stage = stage_rows(m_all);
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    parallel_for(ctx.pool, rows, 4, [&](int64_t begin, int64_t end, int thread) {
      int8_t* codes = s.codes + thread * padded;
      for (int64_t i = k; i < padded; ++i) codes[i] = 0;
      for (int64_t m = begin; m < end; ++m) {
        s.scale[m] = stage_codes(args, first + m, s.floats + thread * k, codes);
        for (int64_t i = 0; i < segments.count; ++i) {
          const Segment segment = segment_at(segments, i);
          // Over the columns that the kernel multiplies: those behind a group count nothing where
          // their codes stand for zero (trits16), and are zeros of x everywhere else.
          const int64_t width = round_up(segment.width, segments.unit);
          int32_t sum = 0;
          for (int64_t j = 0; j < width; ++j) sum += codes[segment.k + j];
          s.x_sums[m * segments.count + i] = sum;
        }
        arrange(codes, padded, s.x + m * s.x_stride);
      }
    });
    for_blocks(args, ctx.pool, first, rows, tile, s.scale, s.sums,
               [&](int, int64_t n0, int64_t panels, int64_t m0, int64_t height, float* sums) {
                 if (k == 0) {
                   for (int64_t i = 0; i < height * kBlockN; ++i) sums[i] = 0.0f;
                   return;
                 }
                 const int64_t step = height <= tile ? segments.count : segments.per_slice;
                 const auto slice = [&](int64_t p, int64_t begin) {
                   const int64_t end =
                       begin + step < segments.count ? begin + step : segments.count;
                   multiply(n0 / kPanel + p, begin, end, m0, height, sums + p * kPanel, begin > 0);
                 };
                 if (height * s.x_stride <= kBytesInL2) {  // front to back through each panel
                   for (int64_t p = 0; p < panels; ++p) {
                     for (int64_t i = 0; i < segments.count; i += step) slice(p, i);
                   }
                 } else {
                   for (int64_t i = 0; i < segments.count; i += step) {
                     for (int64_t p = 0; p < panels; ++p) slice(p, i);
                   }
                 }
               });
  }
  return ok();
}

// What an integer row over panel16 serves.
static constexpr LinearSpec code_spec(KindSet kinds, Layout layout = Layout::panel16) {
  return {kinds, bit(layout), kFloats | bit(DType::i8), bit(Compute::int8), true, 0, 1, 1, 1};
}

}  // namespace lowbit
