// pack() and unpack(): canonical weights to a device's layout and back.
//
// rows is a copy. panel16 is a transposition of words: in every kind that it holds, four bytes of a
// packed vector are one row's next 1, 2, 4 or 8 codes, which a canonical row has in one aligned
// word too (int4 has its eight nibbles in another order). So a block is packed by reading one word
// of each of sixteen rows and writing 64 bytes. The tests hold every byte against code_at(),
// scale_at() and zero_at().
#include "csrc/format/pack.h"

#include <cstring>

#include "csrc/base/arch.h"
#include "csrc/base/threads.h"

namespace lowbit {

namespace {

constexpr int64_t kRows = 16;  // of a panel

// About 20 us of copying: long against the price of a turn, short against a thread that was taken
// away.
constexpr int64_t kGrainBytes = 1 << 17;

template <class F>
void for_each(Pool* pool, int64_t count, int64_t bytes_each, const F& f) {
  if (pool == nullptr) {
    if (count > 0) f(int64_t{0}, count, 0);
    return;
  }
  const int64_t grain = bytes_each >= kGrainBytes ? 1 : kGrainBytes / (bytes_each + 1) + 1;
  parallel_for(pool, count, grain, f);
}

// Nibbles 0 1 2 3 4 5 6 7 (lowest first) to 0 4 1 5 2 6 3 7: byte b then holds k = b and k = b + 4.
// Two rounds of swapping the middle: bytes of the word, then nibbles of each half.
uint32_t interleave(uint32_t x) {
  uint32_t t = (x ^ x >> 8) & 0x0000ff00u;
  x ^= t ^ t << 8;
  t = (x ^ x >> 4) & 0x00f000f0u;
  return x ^ t ^ t << 4;
}
uint32_t deinterleave(uint32_t x) {
  uint32_t t = (x ^ x >> 4) & 0x00f000f0u;
  x ^= t ^ t << 4;
  t = (x ^ x >> 8) & 0x0000ff00u;
  return x ^ t ^ t << 8;
}

// The parts of panel16 that pack and unpack walk alike.
struct Panels {
  Format format;
  Shape shape;
  PanelBlock block;
  int64_t row_bytes;    // of a canonical row
  int64_t group_bytes;  // of one group's codes in a canonical row
  int64_t cols;         // scales of a canonical row
  int64_t panel_bytes;
  bool nibbles;
};

Panels panels_of(const Format& f, Shape s) {
  Panels p = {};
  p.format = f;
  p.shape = s;
  p.block = panel_block(f, s);
  p.row_bytes = code_row_bytes(f.kind, s.k);
  p.group_bytes = code_row_bytes(f.kind, p.block.k);
  p.cols = kind_row(f.kind).scaled ? scale_cols(f, s.k) : 0;
  p.panel_bytes = p.block.groups * p.block.bytes;
  p.nibbles = f.kind == Kind::int4;
  return p;
}

int64_t bytes_of_group(const Panels& p, int64_t g) {
  const int64_t left = p.row_bytes - g * p.group_bytes;
  return left < p.group_bytes ? left : p.group_bytes;
}

// Words of one row that are moved before the next row's turn: sixteen rows of them are 4 KiB on
// either side, which stay in L1 while each line of the panel is visited sixteen times.
constexpr int64_t kTile = 64;

// Calls f(r, byte of the row's group, bytes) for runs of at most kTile words of each row.
template <class F>
void tiles(int64_t rows, int64_t bytes, const F& f) {
  for (int64_t at = 0; at < bytes; at += kTile * 4) {
    const int64_t size = bytes - at < kTile * 4 ? bytes - at : kTile * 4;
    for (int64_t r = 0; r < rows; ++r) f(r, at, size);
  }
}

// A row's bytes to one lane of the vectors from `to` on, and back. The last word may be cut.
void scatter_words(bool nibbles, const uint8_t* from, int64_t bytes, uint8_t* to) {
  for (int64_t at = 0; at < bytes; at += 4, to += 64) {
    uint32_t word = 0;
    if (bytes - at >= 4) {
      std::memcpy(&word, from + at, 4);
    } else {
      std::memcpy(&word, from + at, static_cast<size_t>(bytes - at));
    }
    word = nibbles ? interleave(word) : word;
    std::memcpy(to, &word, 4);
  }
}
void gather_words(bool nibbles, const uint8_t* from, int64_t bytes, uint8_t* to) {
  for (int64_t at = 0; at < bytes; at += 4, from += 64) {
    uint32_t word;
    std::memcpy(&word, from, 4);
    word = nibbles ? deinterleave(word) : word;
    if (bytes - at >= 4) {
      std::memcpy(to + at, &word, 4);
    } else {
      std::memcpy(to + at, &word, static_cast<size_t>(bytes - at));
    }
  }
}

void pack_panel(const Panels& p, const Canonical& c, int64_t panel, uint8_t* out) {
  const int64_t n0 = panel * kRows, rows = p.shape.n - n0 < kRows ? p.shape.n - n0 : kRows;
  const int64_t scale_size = p.cols > 0 ? dtype_bytes(p.format.scale_dtype) : 0;
  const int64_t zero_size = zero_bytes(p.format.zero_type);
  for (int64_t g = 0; g < p.block.groups; ++g, out += p.block.bytes) {
    const int64_t bytes = bytes_of_group(p, g);
    // Full rows of full words are written over; all else of the block is padding.
    const int64_t full = rows == kRows ? bytes / 4 * 64 : 0;
    std::memset(out + full, 0, static_cast<size_t>(p.block.bytes - full));
    const uint8_t* codes = c.codes + n0 * p.row_bytes + g * p.group_bytes;
    tiles(rows, bytes, [&](int64_t r, int64_t at, int64_t size) {
      scatter_words(p.nibbles, codes + r * p.row_bytes + at, size, out + at * 16 + r * 4);
    });
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t index = (n0 + r) * p.cols + g;
      if (scale_size > 0) {
        std::memcpy(out + p.block.scales + r * scale_size,
                    static_cast<const uint8_t*>(c.scales) + index * scale_size,
                    static_cast<size_t>(scale_size));
      }
      if (zero_size > 0) {
        std::memcpy(out + p.block.zeros + r * zero_size,
                    static_cast<const uint8_t*>(c.zeros) + index * zero_size,
                    static_cast<size_t>(zero_size));
      }
    }
  }
}

void unpack_panel(const Panels& p, const uint8_t* in, int64_t panel, uint8_t* codes, void* scales,
                  void* zeros) {
  const int64_t n0 = panel * kRows, rows = p.shape.n - n0 < kRows ? p.shape.n - n0 : kRows;
  const int64_t scale_size = p.cols > 0 ? dtype_bytes(p.format.scale_dtype) : 0;
  const int64_t zero_size = zero_bytes(p.format.zero_type);
  for (int64_t g = 0; g < p.block.groups; ++g, in += p.block.bytes) {
    uint8_t* to = codes + n0 * p.row_bytes + g * p.group_bytes;
    tiles(rows, bytes_of_group(p, g), [&](int64_t r, int64_t at, int64_t size) {
      gather_words(p.nibbles, in + at * 16 + r * 4, size, to + r * p.row_bytes + at);
    });
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t index = (n0 + r) * p.cols + g;
      if (scale_size > 0) {
        std::memcpy(static_cast<uint8_t*>(scales) + index * scale_size,
                    in + p.block.scales + r * scale_size, static_cast<size_t>(scale_size));
      }
      if (zero_size > 0) {
        std::memcpy(static_cast<uint8_t*>(zeros) + index * zero_size,
                    in + p.block.zeros + r * zero_size, static_cast<size_t>(zero_size));
      }
    }
  }
}

struct Parts {
  int64_t codes, scales, zeros;  // bytes
};
Parts parts_of(const Format& f, Shape s) {
  Parts p = {};
  p.codes = s.n * code_row_bytes(f.kind, s.k);
  if (kind_row(f.kind).scaled) {
    const int64_t count = scale_rows(f, s.n) * scale_cols(f, s.k);
    p.scales = count * dtype_bytes(f.scale_dtype);
    p.zeros = count * zero_bytes(f.zero_type);
  }
  return p;
}

void copy_bytes(Pool* pool, uint8_t* to, const void* from, int64_t bytes) {
  for_each(pool, ceil_div(bytes, kGrainBytes), kGrainBytes, [&](int64_t begin, int64_t end, int) {
    const int64_t at = begin * kGrainBytes;
    const int64_t stop = end * kGrainBytes < bytes ? end * kGrainBytes : bytes;
    std::memcpy(to + at, static_cast<const uint8_t*>(from) + at, static_cast<size_t>(stop - at));
  });
}

// A copy and the zeros that fill its part up to `end`.
void copy_part(Pool* pool, uint8_t* to, const void* from, int64_t bytes, int64_t end) {
  if (bytes > 0) copy_bytes(pool, to, from, bytes);
  if (end > bytes) std::memset(to + bytes, 0, static_cast<size_t>(end - bytes));
}

}  // namespace

void pack(const Canonical& c, Layout layout, uint8_t* data, Pool* pool) {
  const Shape s = {c.n, c.k};
  if (layout == Layout::panel16) {
    const Panels p = panels_of(c.format, s);
    for_each(pool, ceil_div(c.n, kRows), p.panel_bytes, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) pack_panel(p, c, i, data + i * p.panel_bytes);
    });
    return;
  }
  const Parts parts = parts_of(c.format, s);
  const int64_t scales = rows_scales_at(c.format, s), zeros = rows_zeros_at(c.format, s);
  copy_part(pool, data, c.codes, parts.codes, scales);
  copy_part(pool, data + scales, c.scales, parts.scales, zeros - scales);
  copy_part(pool, data + zeros, c.zeros, parts.zeros, layout_bytes(layout, c.format, s) - zeros);
}

void unpack(const Weight& w, uint8_t* codes, void* scales, void* zeros, Pool* pool) {
  const Shape s = {w.n, w.k};
  if (w.layout == Layout::panel16) {
    const Panels p = panels_of(w.format, s);
    for_each(pool, ceil_div(w.n, kRows), p.panel_bytes, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        unpack_panel(p, w.data + i * p.panel_bytes, i, codes, scales, zeros);
      }
    });
    return;
  }
  const Parts parts = parts_of(w.format, s);
  if (parts.codes > 0) copy_bytes(pool, codes, w.data, parts.codes);
  if (parts.scales > 0) {
    copy_bytes(pool, static_cast<uint8_t*>(scales), w.data + rows_scales_at(w.format, s),
               parts.scales);
  }
  if (parts.zeros > 0) {
    copy_bytes(pool, static_cast<uint8_t*>(zeros), w.data + rows_zeros_at(w.format, s),
               parts.zeros);
  }
}

// Every AVX2 and AVX-512 row of linear walks panels of 16 rows; a CPU without AVX2 runs the
// reference, which reads any layout, and keeps what needs no padding.
Layout preferred_layout(uint32_t arch, const Format& f, Shape s) {
  const bool vectors = (arch & kArchAvx2) != 0;
  return vectors && layout_serves(Layout::panel16, f, s) ? Layout::panel16 : Layout::rows;
}

const char* layout_name(Layout layout) {
  switch (layout) {
    case Layout::rows: return "rows";
    case Layout::panel16: return "panel16";
  }
  return "unknown";
}

}  // namespace lowbit
