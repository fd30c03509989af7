// Layouts: where the bytes of a packed weight lie. Pack, unpack, the references and the tests all
// go through code_at(), scale_at() and zero_at(), so a layout can't be described one way and read
// another.
//
// rows      the canonical form in one block: codes [N][row bytes], then scales, then zeros, then
//           tables, each part rounded up to 64 bytes with zeros. Every format.
//
// panel16   sixteen rows of N side by side, so that one vector lane is one row, walked front to
//           back along K. A panel is a run of blocks, one for each group of K; N is padded to 16
//           with zero codes and zero scales.
//
//             block   [ codes of 16 rows ][ 16 scales ][ 16 zeros ]
//
//           with nothing in between: rounding blocks up to 64 bytes would cost a tenth of the bytes
//           of int4 in groups of 32, and time in proportion wherever memory is the bound. So codes
//           begin at any multiple of 16. One scale for the matrix stands in all lanes.
//
//           Codes of a block, in vectors of 64 bytes = 16 lanes of 4 bytes, lane = row:
//
//             f32         vector j, lane r                      k = j
//             f16, bf16   vector j, lane r, half h              k = 2j + h   (as vdpbf16ps reads)
//             8 bits      vector j, lane r, byte b              k = 4j + b
//             4 bits      vector j, lane r, byte b, low  bits   k = 8j + b
//                         vector j, lane r, byte b, high bits   k = 8j + 4 + b
//             int2, ternary
//                         vector j, lane r, byte b, bits 2f ..  k = 16j + 4f + b     f = 0 .. 3
//             int1        vector j, lane r, byte b, bit f       k = 32j + 4f + b     f = 0 .. 7
//             int3        three vectors hold 32 columns: the two lower bits of each code as int2
//                         has them, twice 16 columns, then the high bits:
//                         vector 3j + h, bits 2f ..             k = 32j + 16h + 4f + b   h = 0, 1
//                         vector 3j + 2, bit 2f + h             k = 32j + 16h + 4f + b
//
//             byte b of an int2 lane    k+12 k+12  k+8 k+8  k+4 k+4  k k         k = 16j + b
//             byte b of an int3 lane    high bits of
//                                       k+28 k+12 k+24 k+8 k+20 k+4 k+16 k       k = 32j + b
//
//           So the same field of the four bytes of a lane holds four neighbouring columns, as
//           vpdpbusd reads them, and every field comes out with one mask.
//
//           8 bits: int8, fp8, mxfp8, mxint8. 4 bits: int4, nf4, fp4, codebook4, mxfp4, nvfp4.
//           Codes of 6 bits have no panels.
//
//           f32, f16, bf16: the panel is one block without scales; K is padded to even with zeros.
//           All others: group_n = 1 or N and group_k a multiple of 8 (3 bits and fewer: of 32), or
//           group_k = K; the block's K is padded with zero bits to a multiple of 8 (int2, ternary:
//           16; int3, int1: 32). Those bits are no zeros of int4 or of a table: kernels rely on x
//           being padded with zeros there.
//
// trits16   ternary alone: blocks as in panel16, but a byte holds five trits -1, 0, 1:
//
//             vector j, lane r, byte b   its columns are k = 20j + 4d + b for d = 0 .. 4,
//             with v = sum of 3^d * trit[d], -121 .. 121:   bits 0 .. 6 = |v|, bit 7 = (v < 0)
//
//           1.6 bits a weight where the group is long. The seven bits are an index for vpermi2b,
//           which takes 128 entries and ignores bit 7; a sign turns every trit round. The block's K
//           is padded to a multiple of 20 with trits of 0, so padding is zero bytes here too, and
//           those are zeros of the format, whatever x has there.
//
// frag64    int4 without zero points: what the tensor cores of Hopper take from registers, in the
//           order in which threads hold it. 64 rows by 128 columns are a unit, the units of a panel
//           of 64 rows stand one after the other:
//
//             unit   [ 4096 bytes of codes ][ 64 scales for each group of K in it ]
//
//           Two halves of 64 columns; 16 bytes a thread in each, in the order of the 128 threads.
//           Word j of thread t = 32w + 4a + q holds k = 16j + 2q, + 1, + 8, + 9 of rows 16w + a and
//           16w + a + 8:
//
//             bits    28   24   20   16   12   8    4    0
//             row     +8        +8        +8        +8
//             k       +9   +9   +1   +1   +8   +8   +0   +0
//
//           N is padded to 64, K to 128, with zero bits. group_k 32, 64 or 128; or one scale a row,
//           or one for the matrix, which then stand behind all units.
//
// Tables    every kind of table codes (KindRow::table) ends with its tables, in each layout: 16 f32
//           in the order of codes, 64-byte aligned; the kind's own one where the weight stores
//           none, so that a kernel reads all of these kinds alike. One for the matrix, or one a
//           row, or [scale rows, scale columns]; panel16 has tables of zeros for the rows it pads
//           to 16.
#pragma once

#include <cstdint>

#include "csrc/format/weight.h"

namespace lowbit {

// A code: its lowest bit is bit `shift` of byte `byte`; it may run on into the following bytes. In
// trits16 `shift` is the number d of the trit. int3 in panel16 has a third bit elsewhere.
struct Place {
  int64_t byte;
  int32_t shift;
  int64_t high_byte;  // of the third bit of int3 in panel16
  int32_t high_shift;
};

struct Shape {
  int64_t n, k;
};

// Sizes of the blocks of panel16 and trits16; kernels walk with these.
struct PanelBlock {
  int64_t codes;   // bytes of codes, a multiple of 64
  int64_t scales;  // offset of the 16 scales
  int64_t zeros;   // offset of the 16 zeros
  int64_t bytes;   // of the whole block, a multiple of 16
  int64_t groups;  // blocks in one panel
  int64_t k;       // columns of one block, before padding
};

// Columns of the least number of whole vectors: what a block's K is padded to.
static constexpr int64_t panel_unit(Layout layout, Kind kind) {
  if (layout == Layout::trits16) return 20;
  switch (placed_as(kind)) {
    case Kind::int3:
    case Kind::int1: return 32;
    case Kind::int2:
    case Kind::ternary: return 16;
    case Kind::int8:
    case Kind::int4: return 8;
    default: return 2;
  }
}

static constexpr int64_t panel_code_bytes(Layout layout, Kind kind, int64_t k) {
  const int64_t padded = round_up(k, panel_unit(layout, kind));
  if (layout == Layout::trits16) return padded / 5 * 16;
  return padded * 2 * kind_row(kind).bits;
}

static constexpr PanelBlock panel_block(Layout layout, const Format& f, Shape s) {
  PanelBlock b = {};
  const bool scaled = kind_row(f.kind).scaled;
  b.k = scaled && f.group_k < s.k ? f.group_k : s.k;
  b.groups = b.k == 0 ? 0 : ceil_div(s.k, b.k);
  b.codes = panel_code_bytes(layout, f.kind, b.k);
  b.scales = b.codes;
  b.zeros = b.scales + (scaled ? 16 * dtype_bytes(f.scale_dtype) : 0);
  b.bytes = b.zeros + 16 * zero_bytes(f.zero_type);
  return b;
}
// Of a weight in panel16.
static constexpr PanelBlock panel_block(const Format& f, Shape s) {
  return panel_block(Layout::panel16, f, s);
}

// Sizes of the units of frag64; kernels walk with these.
struct FragUnit {
  int64_t units;   // of a panel
  int64_t groups;  // scales of a row in one unit; 0: they stand behind the units
  int64_t bytes;   // of a unit, a multiple of 16
  int64_t end;     // of all units
};
inline constexpr int64_t kFragRows = 64, kFragColumns = 128, kFragCodes = 4096;

static constexpr FragUnit frag_unit(const Format& f, Shape s) {
  FragUnit u = {};
  u.units = ceil_div(s.k, kFragColumns);
  u.groups = f.group_k >= s.k ? 0 : kFragColumns / f.group_k;
  u.bytes = kFragCodes + kFragRows * u.groups * dtype_bytes(f.scale_dtype);
  u.end = ceil_div(s.n, kFragRows) * u.units * u.bytes;
  return u;
}

static constexpr bool layout_serves(Layout layout, const Format& f, Shape s) {
  if (layout == Layout::rows) return true;
  if (layout == Layout::trits16 && f.kind != Kind::ternary) return false;
  const bool one_scale = f.group_n == s.n && f.group_k >= s.k;
  if (layout == Layout::frag64) {
    const bool whole = f.group_k == 32 || f.group_k == 64 || f.group_k == 128;
    return f.kind == Kind::int4 && f.zero_type == ZeroType::none &&
           (one_scale || (f.group_n == 1 && (f.group_k >= s.k || whole)));
  }
  switch (placed_as(f.kind)) {
    case Kind::f32:
    case Kind::f16:
    case Kind::bf16: return true;
    case Kind::int8:
    case Kind::int4:
      return one_scale || (f.group_n == 1 && (f.group_k >= s.k || f.group_k % 8 == 0));
    case Kind::int3:
    case Kind::int2:
    case Kind::int1:
    case Kind::ternary:
      // One scale for the matrix is one for each plane of it.
      return one_scale ||
             ((f.group_n == 1 || f.planes > 1) && (f.group_k >= s.k || f.group_k % 32 == 0));
    default: return false;
  }
}

static constexpr int64_t rows_scales_at(const Format& f, Shape s) {
  return round_up(s.n * code_row_bytes(f.kind, s.k), 64);
}
static constexpr int64_t rows_zeros_at(const Format& f, Shape s) {
  const int64_t count = kind_row(f.kind).scaled ? scale_rows(f, s.n) * scale_cols(f, s.k) : 0;
  const int64_t each = kind_row(f.kind).scaled ? dtype_bytes(f.scale_dtype) : 0;
  return rows_scales_at(f, s) + round_up(count * each, 64);
}

// Bytes before the tables: a multiple of 64 where there are any.
static constexpr int64_t tables_at(Layout layout, const Format& f, Shape s) {
  if (layout == Layout::frag64) {
    const FragUnit u = frag_unit(f, s);
    const int64_t behind = u.groups > 0 ? 0 : scale_rows(f, s.n) * scale_cols(f, s.k);
    return u.end + round_up(behind * dtype_bytes(f.scale_dtype), 16);
  }
  if (layout != Layout::rows) {
    const PanelBlock b = panel_block(layout, f, s);
    return round_up(ceil_div(s.n, 16) * b.groups * b.bytes, kind_row(f.kind).table ? 64 : 16);
  }
  return rows_zeros_at(f, s) +
         round_up(scale_rows(f, s.n) * scale_cols(f, s.k) * zero_bytes(f.zero_type), 64);
}

static constexpr int64_t layout_bytes(Layout layout, const Format& f, Shape s) {
  const int64_t tables = tables_at(layout, f, s);
  if (!kind_row(f.kind).table) return tables;
  if (f.table_type == TableType::none) return tables + 64;
  const bool padded = layout != Layout::rows && f.group_n == 1;
  return tables + table_count(f, padded ? round_up(s.n, 16) : s.n, s.k) * 64;
}

// Byte offset of the table for row n and column group g of a kind of table codes.
static constexpr int64_t table_at(Layout layout, const Format& f, Shape s, int64_t n, int64_t g) {
  const int64_t index = f.table_type == TableType::row     ? n
                        : f.table_type == TableType::group ? n / f.group_n * scale_cols(f, s.k) + g
                                                           : 0;
  return tables_at(layout, f, s) + index * 64;
}

static constexpr Place code_at(Layout layout, const Format& f, Shape s, int64_t n, int64_t k) {
  if (layout == Layout::rows) {
    const int64_t bit = k * kind_row(f.kind).bits;
    return {n * code_row_bytes(f.kind, s.k) + bit / 8, static_cast<int32_t>(bit % 8), 0, 0};
  }
  if (layout == Layout::frag64) {
    const FragUnit u = frag_unit(f, s);
    const int64_t unit = n / kFragRows * u.units + k / kFragColumns;
    const int64_t thread = n % 64 / 16 * 32 + n % 8 * 4 + k % 8 / 2;
    const int64_t nibble = k % 2 * 4 + k % 16 / 8 * 2 + n % 16 / 8;
    const int64_t word = k % 128 / 64 * 2048 + thread * 16 + k % 64 / 16 * 4;
    return {unit * u.bytes + word + nibble / 2, static_cast<int32_t>(nibble % 2 * 4), 0, 0};
  }
  const PanelBlock b = panel_block(layout, f, s);
  const int64_t g = k / b.k, i = k % b.k, r = n % 16;
  const int64_t lane = (n / 16 * b.groups + g) * b.bytes + r * 4;
  const auto place = [](int64_t byte, int64_t shift) -> Place {
    return {byte, static_cast<int32_t>(shift), 0, 0};
  };
  if (layout == Layout::trits16) return place(lane + i / 20 * 64 + i % 4, i % 20 / 4);
  switch (placed_as(f.kind)) {
    case Kind::f32: return place(lane + i * 64, 0);
    case Kind::f16:
    case Kind::bf16: return place(lane + i / 2 * 64 + i % 2 * 2, 0);
    case Kind::int8: return place(lane + i / 4 * 64 + i % 4, 0);
    case Kind::int4: return place(lane + i / 8 * 64 + i % 4, i % 8 / 4 * 4);
    case Kind::int1: return place(lane + i / 32 * 64 + i % 4, i % 32 / 4);
    case Kind::int3: {
      const int64_t base = lane + i / 32 * 192 + i % 4, half = i % 32 / 16, field = i % 16 / 4;
      return {base + half * 64, static_cast<int32_t>(field * 2), base + 128,
              static_cast<int32_t>(field * 2 + half)};
    }
    default: return place(lane + i / 16 * 64 + i % 4, i % 16 / 4 * 2);  // int2, ternary
  }
}

// Byte offset of the scale of column group g = k / group_k for row n.
static constexpr int64_t scale_at(Layout layout, const Format& f, Shape s, int64_t n, int64_t g) {
  if (layout == Layout::rows) {
    return rows_scales_at(f, s) +
           (n / f.group_n * scale_cols(f, s.k) + g) * dtype_bytes(f.scale_dtype);
  }
  if (layout == Layout::frag64) {
    const FragUnit u = frag_unit(f, s);
    const int64_t size = dtype_bytes(f.scale_dtype);
    if (u.groups == 0) return u.end + n / f.group_n * size;
    const int64_t unit = n / kFragRows * u.units + g / u.groups;
    return unit * u.bytes + kFragCodes + (g % u.groups * kFragRows + n % kFragRows) * size;
  }
  const PanelBlock b = panel_block(layout, f, s);
  return (n / 16 * b.groups + g) * b.bytes + b.scales + n % 16 * dtype_bytes(f.scale_dtype);
}

static constexpr int64_t zero_at(Layout layout, const Format& f, Shape s, int64_t n, int64_t g) {
  if (layout == Layout::rows) {
    return rows_zeros_at(f, s) + (n / f.group_n * scale_cols(f, s.k) + g) * zero_bytes(f.zero_type);
  }
  const PanelBlock b = panel_block(layout, f, s);
  return (n / 16 * b.groups + g) * b.bytes + b.zeros + n % 16 * zero_bytes(f.zero_type);
}

// Reads `bits` <= 32 bits.
static constexpr uint32_t read_bits(const uint8_t* data, int64_t byte, int32_t shift, int bits) {
  uint64_t word = 0;
  const int bytes = (shift + bits + 7) / 8;
  for (int i = 0; i < bytes; ++i) word |= static_cast<uint64_t>(data[byte + i]) << (8 * i);
  return static_cast<uint32_t>(word >> shift & ((1ull << bits) - 1));
}

// The stored code at (n, k).
static constexpr uint32_t read_code(const Weight& w, int64_t n, int64_t k) {
  const Kind kind = w.format.kind;
  const Place p = code_at(w.layout, w.format, {w.n, w.k}, n, k);
  if (w.layout == Layout::trits16) {
    const int byte = w.data[p.byte], size = byte & 127;
    int v = 121 + (byte < 128 ? size : -size);  // each trit + 1 as a digit of base 3
    for (int32_t d = 0; d < p.shift; ++d) v /= 3;
    return static_cast<uint32_t>(v % 3);
  }
  if (w.layout == Layout::panel16 && kind == Kind::int3) {
    return read_bits(w.data, p.byte, p.shift, 2) | read_bits(w.data, p.high_byte, p.high_shift, 1)
                                                       << 2;
  }
  return read_bits(w.data, p.byte, p.shift, kind_row(kind).bits);
}

// The value of the code at (n, k) before scale and zero.
static constexpr float code_value(const Weight& w, int64_t n, int64_t k) {
  const Format& f = w.format;
  const uint32_t code = read_code(w, n, k);
  if (!kind_row(f.kind).table) return decode_code(f.kind, code);
  const int64_t at = table_at(w.layout, f, {w.n, w.k}, n, k / f.group_k);
  return load_f32(w.data + at, DType::f32, code);
}

// The float value at (n, k) of a packed weight: what every reference reads.
static constexpr float weight_value(const Weight& w, int64_t n, int64_t k) {
  const Format& f = w.format;
  const Shape s = {w.n, w.k};
  const KindRow& row = kind_row(f.kind);
  const float value = code_value(w, n, k);
  if (!row.scaled) return value;
  const int64_t g = k / f.group_k;
  const float scale = load_f32(w.data + scale_at(w.layout, f, s, n, g), f.scale_dtype, 0);
  if (!row.affine) return scale * value * w.tensor_scale;
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
inline constexpr int kLayoutCount = 4;

}  // namespace lowbit
