// Layouts: where the bytes of a packed weight lie. Pack, unpack, the references and the tests all
// go through code_at(), scale_at() and zero_at(), so a layout can't be described one way and read
// another.
//
// rows      the canonical form in one block: codes [N][row bytes], then scales, then zeros, each
//           part rounded up to 64 bytes with zeros. Every format.
//
// panel16   sixteen rows of N side by side, so that one vector lane is one row, walked front to
//           back along K. A panel is a run of blocks, one for each group of K; N is padded to 16
//           with zero codes and zero scales.
//
//             block   [ codes of 16 rows ][ 16 scales ][ 16 zeros ]   rounded up to 64 bytes
//
//           Codes of a block, in vectors of 64 bytes = 16 lanes of 4 bytes, lane = row:
//
//             f32         vector j, lane r                      k = j
//             f16, bf16   vector j, lane r, half h              k = 2j + h   (as vdpbf16ps reads)
//             int8        vector j, lane r, byte b              k = 4j + b
//             int4        vector j, lane r, byte b, low  bits   k = 8j + b
//                         vector j, lane r, byte b, high bits   k = 8j + 4 + b
//
//           f32, f16, bf16: the panel is one block without scales; K is padded to even with zeros.
//           int8 and int4: group_n = 1 and group_k a multiple of 8, or group_k = K; the block's K
//           is padded to a multiple of 8 with zero bits. Those are no zeros of int4: kernels rely
//           on x being padded with zeros there.
#pragma once

#include <cstdint>

#include "csrc/format/weight.h"

namespace lowbit {

// A code: its lowest bit is bit `shift` of byte `byte`; it may run on into the following bytes.
struct Place {
  int64_t byte;
  int32_t shift;
};

struct Shape {
  int64_t n, k;
};

// Sizes of the blocks of panel16; kernels walk with these.
struct PanelBlock {
  int64_t codes;   // bytes of codes, a multiple of 64
  int64_t scales;  // offset of the 16 scales
  int64_t zeros;   // offset of the 16 zeros
  int64_t bytes;   // of the whole block, a multiple of 64
  int64_t groups;  // blocks in one panel
  int64_t k;       // columns of one block, before padding
};

static inline int64_t panel_code_bytes(Kind kind, int64_t k) {
  switch (kind) {
    case Kind::f32: return round_up(k, 2) * 64;
    case Kind::f16:
    case Kind::bf16: return round_up(k, 2) * 32;
    case Kind::int8: return round_up(k, 8) * 16;
    case Kind::int4: return round_up(k, 8) * 8;
    default: return 0;
  }
}

static inline PanelBlock panel_block(const Format& f, Shape s) {
  PanelBlock b = {};
  const bool scaled = kind_row(f.kind).scaled;
  b.k = scaled && f.group_k < s.k ? f.group_k : s.k;
  b.groups = b.k == 0 ? 0 : ceil_div(s.k, b.k);
  b.codes = panel_code_bytes(f.kind, b.k);
  b.scales = b.codes;
  b.zeros = b.scales + (scaled ? 16 * dtype_bytes(f.scale_dtype) : 0);
  b.bytes = round_up(b.zeros + 16 * zero_bytes(f.zero_type), 64);
  return b;
}

static inline bool layout_serves(Layout layout, const Format& f, Shape s) {
  if (layout == Layout::rows) return true;
  switch (f.kind) {
    case Kind::f32:
    case Kind::f16:
    case Kind::bf16: return true;
    case Kind::int8:
    case Kind::int4: return f.group_n == 1 && (f.group_k >= s.k || f.group_k % 8 == 0);
    default: return false;
  }
}

static inline int64_t rows_scales_at(const Format& f, Shape s) {
  return round_up(s.n * code_row_bytes(f.kind, s.k), 64);
}
static inline int64_t rows_zeros_at(const Format& f, Shape s) {
  const int64_t count = kind_row(f.kind).scaled ? scale_rows(f, s.n) * scale_cols(f, s.k) : 0;
  const int64_t each = kind_row(f.kind).scaled ? dtype_bytes(f.scale_dtype) : 0;
  return rows_scales_at(f, s) + round_up(count * each, 64);
}

static inline int64_t layout_bytes(Layout layout, const Format& f, Shape s) {
  if (layout == Layout::panel16) {
    const PanelBlock b = panel_block(f, s);
    return ceil_div(s.n, 16) * b.groups * b.bytes;
  }
  return rows_zeros_at(f, s) +
         round_up(scale_rows(f, s.n) * scale_cols(f, s.k) * zero_bytes(f.zero_type), 64);
}

static inline Place code_at(Layout layout, const Format& f, Shape s, int64_t n, int64_t k) {
  if (layout == Layout::rows) {
    const int64_t bit = k * kind_row(f.kind).bits;
    return {n * code_row_bytes(f.kind, s.k) + bit / 8, static_cast<int32_t>(bit % 8)};
  }
  const PanelBlock b = panel_block(f, s);
  const int64_t g = k / b.k, i = k % b.k, r = n % 16;
  const int64_t base = (n / 16 * b.groups + g) * b.bytes;
  switch (f.kind) {
    case Kind::f32: return {base + i * 64 + r * 4, 0};
    case Kind::f16:
    case Kind::bf16: return {base + i / 2 * 64 + r * 4 + i % 2 * 2, 0};
    case Kind::int8: return {base + i / 4 * 64 + r * 4 + i % 4, 0};
    default:
      return {base + i / 8 * 64 + r * 4 + i % 4, static_cast<int32_t>(i % 8 / 4 * 4)};  // int4
  }
}

// Byte offset of the scale of column group g = k / group_k for row n.
static inline int64_t scale_at(Layout layout, const Format& f, Shape s, int64_t n, int64_t g) {
  if (layout == Layout::rows) {
    return rows_scales_at(f, s) +
           (n / f.group_n * scale_cols(f, s.k) + g) * dtype_bytes(f.scale_dtype);
  }
  const PanelBlock b = panel_block(f, s);
  return (n / 16 * b.groups + g) * b.bytes + b.scales + n % 16 * dtype_bytes(f.scale_dtype);
}

static inline int64_t zero_at(Layout layout, const Format& f, Shape s, int64_t n, int64_t g) {
  if (layout == Layout::rows) {
    return rows_zeros_at(f, s) + (n / f.group_n * scale_cols(f, s.k) + g) * zero_bytes(f.zero_type);
  }
  const PanelBlock b = panel_block(f, s);
  return (n / 16 * b.groups + g) * b.bytes + b.zeros + n % 16 * zero_bytes(f.zero_type);
}

// Reads and writes one code; bits <= 32.
static inline uint32_t read_code(const uint8_t* data, Place p, int bits) {
  uint64_t word = 0;
  const int bytes = (p.shift + bits + 7) / 8;
  for (int i = 0; i < bytes; ++i) word |= static_cast<uint64_t>(data[p.byte + i]) << (8 * i);
  return static_cast<uint32_t>(word >> p.shift & ((1ull << bits) - 1));
}
static inline void write_code(uint8_t* data, Place p, int bits, uint32_t code) {
  const uint64_t mask = ((1ull << bits) - 1) << p.shift;
  const uint64_t word = static_cast<uint64_t>(code) << p.shift;
  const int bytes = (p.shift + bits + 7) / 8;
  for (int i = 0; i < bytes; ++i) {
    uint8_t& byte = data[p.byte + i];
    byte = static_cast<uint8_t>((byte & ~(mask >> (8 * i))) | (word >> (8 * i) & mask >> (8 * i)));
  }
}

// The float value at (n, k) of a packed weight: what every reference reads.
static inline float weight_value(const Weight& w, int64_t n, int64_t k) {
  const Format& f = w.format;
  const Shape s = {w.n, w.k};
  const KindRow& row = kind_row(f.kind);
  const uint32_t code = read_code(w.data, code_at(w.layout, f, s, n, k), row.bits);
  const float value = decode_code(f.kind, code);
  if (!row.scaled) return value;
  const int64_t g = k / f.group_k;
  const float scale = load_f32(w.data + scale_at(w.layout, f, s, n, g), f.scale_dtype, 0);
  if (!row.affine) return scale * value;
  float zero = static_cast<float>(row.mid);
  if (f.zero_type == ZeroType::u8) zero = w.data[zero_at(w.layout, f, s, n, g)];
  if (f.zero_type == ZeroType::f32) {
    zero = load_f32(w.data + zero_at(w.layout, f, s, n, g), DType::f32, 0);
  }
  return scale * (value - zero);
}

// The layout that the kernels of `arch` read fastest: what dev.load() packs into.
Layout preferred_layout(uint32_t arch, const Format& f, Shape s);
const char* layout_name(Layout layout);
inline constexpr int kLayoutCount = 2;

}  // namespace lowbit
