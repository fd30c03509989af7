// pack() and unpack(): canonical weights to a device's layout and back.
//
// rows is a copy. panel16 is a transposition of words: four bytes of a packed vector are one row's
// next 1, 2, 4, 8, 16 or 32 codes, which a canonical row has in one aligned word too, with its bits
// in another order. So a block is packed by reading one word of each of sixteen rows and writing 64
// bytes. int3 makes three words of twelve bytes, trits16 one word of five. The tests hold every
// byte against the pictures of layout.h.
#include "csrc/format/pack.h"

#include <cstring>
#include <type_traits>

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

// Swaps the bits of x under `mask` with those that lie `by` above them.
uint32_t swap_bits(uint32_t x, uint32_t mask, int by) {
  const uint32_t t = (x ^ x >> by) & mask;
  return x ^ t ^ t << by;
}

// How the codes of a word or more of a canonical row become words of a lane.
enum class Coding { words, int4, int3, int2, int1, trits };

struct Piece {
  int64_t bytes;  // of a canonical row
  int64_t words;  // of a lane
};
constexpr Piece piece_of(Coding coding) {
  return coding == Coding::int3    ? Piece{12, 3}
         : coding == Coding::trits ? Piece{5, 1}
                                   : Piece{4, 1};
}

// Nibbles 0 1 2 3 4 5 6 7 (lowest first) to 0 4 1 5 2 6 3 7, and back: two rounds of swapping the
// middle, bytes of the word and nibbles of each half.
uint32_t interleave_4(uint32_t x) {
  return swap_bits(swap_bits(x, 0x0000ff00u, 8), 0x00f000f0u, 4);
}
uint32_t deinterleave_4(uint32_t x) {
  return swap_bits(swap_bits(x, 0x00f000f0u, 4), 0x0000ff00u, 8);
}

// Sixteen codes of two bits as a 4 x 4 matrix, transposed: k = 4f + b to field f of byte b. It is
// its own inverse.
uint32_t transpose_2(uint32_t x) {
  return swap_bits(swap_bits(x, 0x00cc00ccu, 6), 0x0000f0f0u, 12);
}

// Thirty-two bits: k = 4f + b to bit f of byte b, and back.
uint32_t transpose_1(uint32_t x) {
  x = swap_bits(swap_bits(x, 0x0000ccccu, 14), 0x00aa00aau, 7);
  return swap_bits(swap_bits(x, 0x0c0c0c0cu, 2), 0x22222222u, 1);
}
uint32_t untranspose_1(uint32_t x) {
  x = swap_bits(swap_bits(x, 0x22222222u, 1), 0x0c0c0c0cu, 2);
  return swap_bits(swap_bits(x, 0x00aa00aau, 7), 0x0000ccccu, 14);
}

// The high bits of 32 codes of int3: k = 16h + 4f + b to bit 2f + h of byte b, and back.
uint32_t transpose_high(uint32_t x) {
  x = swap_bits(swap_bits(x, 0x0000ccccu, 14), 0x00aa00aau, 7);
  return swap_bits(swap_bits(x, 0x0a0a0a0au, 3), 0x22222222u, 1);
}
uint32_t untranspose_high(uint32_t x) {
  x = swap_bits(swap_bits(x, 0x22222222u, 1), 0x0a0a0a0au, 3);
  return swap_bits(swap_bits(x, 0x00aa00aau, 7), 0x0000ccccu, 14);
}

// Eight codes of three bits: their lower two bits side by side, and their high bits. Masks in octal
// have one digit a code.
uint32_t low_bits(uint32_t x) {
  x = (x & 003030303u) | (x >> 1 & 003030303u << 2);
  x = (x & 000170017u) | (x >> 2 & 000170017u << 4);
  return (x & 0xffu) | (x >> 4 & 0xff00u);
}
uint32_t high_bits(uint32_t x) {
  x = x >> 2 & 011111111u;
  x = (x | x >> 2) & 003030303u;
  x = (x | x >> 4) & 000170017u;
  return (x | x >> 8) & 0xffu;
}
uint32_t join_bits(uint32_t low, uint32_t high) {
  low = (low & 0xffu) | (low & 0xff00u) << 4;
  low = (low & 000170017u) | (low & 000170017u << 4) << 2;
  low = (low & 003030303u) | (low & 003030303u << 2) << 1;
  high = (high | high << 8) & 000170017u;
  high = (high | high << 4) & 003030303u;
  high = (high | high << 2) & 011111111u;
  return low | high << 2;
}

// Four codes of two bits, one to a byte.
uint32_t spread_2(uint32_t x) {
  x = (x | x << 12) & 0x000f000fu;
  return (x | x << 6) & 0x03030303u;
}

// Five bytes of ternary codes, k = 4d + b, to a word of trits16.
uint32_t to_trits(const uint8_t* from) {
  uint32_t digits = 0;  // in each byte, the codes of one b in base 3
  for (int d = 4; d >= 0; --d) digits = digits * 3 + spread_2(from[d]);
  uint32_t word = 0;
  for (int b = 0; b < 4; ++b) {
    const int v = static_cast<int>(digits >> (8 * b) & 255) - 121;
    word |= static_cast<uint32_t>(v < 0 ? 128 - v : v) << (8 * b);
  }
  return word;
}
void from_trits(uint32_t word, uint8_t* to) {
  uint64_t digits = 0;  // in 16 bits each
  for (int b = 0; b < 4; ++b) {
    const int byte = static_cast<int>(word >> (8 * b) & 255), size = byte & 127;
    digits |= static_cast<uint64_t>(121 + (byte < 128 ? size : -size)) << (16 * b);
  }
  for (int d = 0; d < 5; ++d) {
    const uint64_t third = digits * 171 >> 9 & 0x007f007f007f007full;  // right up to 255
    const uint64_t codes = digits - 3 * third;
    to[d] = static_cast<uint8_t>(codes | codes >> 14 | codes >> 28 | codes >> 42);
    digits = third;
  }
}

uint32_t load_word(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}
void store_word(uint8_t* p, uint32_t word) { std::memcpy(p, &word, 4); }

// One piece of a row to the words of its lane, which are 64 bytes apart, and back.
template <Coding C>
void scatter_piece(const uint8_t* from, uint8_t* to) {
  if constexpr (C == Coding::trits) {
    store_word(to, to_trits(from));
  } else if constexpr (C == Coding::int3) {
    const uint32_t w0 = load_word(from), w1 = load_word(from + 4), w2 = load_word(from + 8);
    const uint32_t x[4] = {w0 & 0xffffffu, w0 >> 24 | (w1 & 0xffffu) << 8,
                           w1 >> 16 | (w2 & 0xffu) << 16, w2 >> 8};
    store_word(to, transpose_2(low_bits(x[0]) | low_bits(x[1]) << 16));
    store_word(to + 64, transpose_2(low_bits(x[2]) | low_bits(x[3]) << 16));
    store_word(to + 128, transpose_high(high_bits(x[0]) | high_bits(x[1]) << 8 |
                                        high_bits(x[2]) << 16 | high_bits(x[3]) << 24));
  } else {
    const uint32_t x = load_word(from);
    store_word(to, C == Coding::int4   ? interleave_4(x)
                   : C == Coding::int2 ? transpose_2(x)
                   : C == Coding::int1 ? transpose_1(x)
                                       : x);
  }
}
template <Coding C>
void gather_piece(const uint8_t* from, uint8_t* to) {
  if constexpr (C == Coding::trits) {
    from_trits(load_word(from), to);
  } else if constexpr (C == Coding::int3) {
    const uint32_t a = transpose_2(load_word(from)), b = transpose_2(load_word(from + 64));
    const uint32_t h = untranspose_high(load_word(from + 128));
    const uint32_t x0 = join_bits(a & 0xffffu, h & 255), x1 = join_bits(a >> 16, h >> 8 & 255);
    const uint32_t x2 = join_bits(b & 0xffffu, h >> 16 & 255), x3 = join_bits(b >> 16, h >> 24);
    store_word(to, x0 | x1 << 24);
    store_word(to + 4, x1 >> 8 | x2 << 16);
    store_word(to + 8, x2 >> 16 | x3 << 8);
  } else {
    const uint32_t x = load_word(from);
    store_word(to, C == Coding::int4   ? deinterleave_4(x)
                   : C == Coding::int2 ? transpose_2(x)
                   : C == Coding::int1 ? untranspose_1(x)
                                       : x);
  }
}

// What pack and unpack of panel16 and trits16 walk alike.
struct Panels {
  Format format;
  Shape shape;
  PanelBlock block;
  int64_t row_bytes;    // of a canonical row
  int64_t group_bytes;  // of one group's codes in a canonical row
  int64_t cols;         // scales of a canonical row
  bool one_scale;       // all rows have the same ones
  int64_t panel_bytes;
};

Panels panels_of(Layout layout, const Format& f, Shape s) {
  Panels p = {};
  p.format = f;
  p.shape = s;
  p.block = panel_block(layout, f, s);
  p.row_bytes = code_row_bytes(f.kind, s.k);
  p.group_bytes = code_row_bytes(f.kind, p.block.k);
  p.cols = kind_row(f.kind).scaled ? scale_cols(f, s.k) : 0;
  p.one_scale = f.group_n > 1;
  p.panel_bytes = p.block.groups * p.block.bytes;
  return p;
}

// Calls f with the coding of a weight's pieces as a constant.
template <class F>
void with_coding(Layout layout, Kind kind, const F& f) {
  if (layout == Layout::trits16) return f(std::integral_constant<Coding, Coding::trits>{});
  switch (placed_as(kind)) {
    case Kind::int4: return f(std::integral_constant<Coding, Coding::int4>{});
    case Kind::int3: return f(std::integral_constant<Coding, Coding::int3>{});
    case Kind::int2:
    case Kind::ternary: return f(std::integral_constant<Coding, Coding::int2>{});
    case Kind::int1: return f(std::integral_constant<Coding, Coding::int1>{});
    default: return f(std::integral_constant<Coding, Coding::words>{});
  }
}

int64_t columns_of_group(const Panels& p, int64_t g) {
  const int64_t left = p.shape.k - g * p.block.k;
  return left < p.block.k ? left : p.block.k;
}

// Pieces of one row that are moved before the next row's turn: sixteen rows of 64 words are 4 KiB
// on either side, which stay in L1 while each line of the panel is visited sixteen times.
constexpr int64_t kTile = 64;

// Calls f(r, first piece, pieces) for runs of at most kTile pieces of each row.
template <class F>
void tiles(int64_t rows, int64_t pieces, const F& f) {
  for (int64_t at = 0; at < pieces; at += kTile) {
    const int64_t count = pieces - at < kTile ? pieces - at : kTile;
    for (int64_t r = 0; r < rows; ++r) f(r, at, count);
  }
}

// What stands behind the last of a group's columns in its last bytes and piece: codes of 0, but
// trits of 0 (code 1) in trits16.
template <Coding C>
void fill_tail(int64_t columns, int64_t bytes, uint8_t* piece) {
  constexpr int64_t kSize = piece_of(C).bytes;
  std::memset(piece + bytes, C == Coding::trits ? 0x55 : 0, static_cast<size_t>(kSize - bytes));
  if (C == Coding::trits && columns % 4 != 0) {
    piece[bytes - 1] = static_cast<uint8_t>(piece[bytes - 1] | 0x55 << columns % 4 * 2);
  }
}

// Pieces of a row that hold codes alone: `columns` columns, the last bytes of which may be filled.
template <Coding C>
int64_t whole_pieces(const Panels& p, int64_t columns) {
  const int64_t bytes = C == Coding::trits ? columns / 4 : code_row_bytes(p.format.kind, columns);
  return bytes / piece_of(C).bytes;
}

template <Coding C>
void pack_codes(const Panels& p, const uint8_t* codes, int64_t rows, int64_t columns,
                uint8_t* out) {
  constexpr Piece kPiece = piece_of(C);
  const int64_t bytes = code_row_bytes(p.format.kind, columns);
  const int64_t whole = whole_pieces<C>(p, columns);
  tiles(rows, whole, [&](int64_t r, int64_t at, int64_t count) {
    const uint8_t* from = codes + r * p.row_bytes + at * kPiece.bytes;
    uint8_t* to = out + at * kPiece.words * 64 + r * 4;
    for (int64_t i = 0; i < count; ++i, from += kPiece.bytes, to += kPiece.words * 64) {
      scatter_piece<C>(from, to);
    }
  });
  const int64_t rest = bytes - whole * kPiece.bytes;
  for (int64_t r = 0; r < rows && rest > 0; ++r) {
    uint8_t piece[16];
    std::memcpy(piece, codes + r * p.row_bytes + whole * kPiece.bytes, static_cast<size_t>(rest));
    fill_tail<C>(columns, rest, piece);
    scatter_piece<C>(piece, out + whole * kPiece.words * 64 + r * 4);
  }
}

template <Coding C>
void unpack_codes(const Panels& p, const uint8_t* in, int64_t rows, int64_t columns,
                  uint8_t* codes) {
  constexpr Piece kPiece = piece_of(C);
  const int64_t bytes = code_row_bytes(p.format.kind, columns);
  const int64_t whole = whole_pieces<C>(p, columns);
  tiles(rows, whole, [&](int64_t r, int64_t at, int64_t count) {
    const uint8_t* from = in + at * kPiece.words * 64 + r * 4;
    uint8_t* to = codes + r * p.row_bytes + at * kPiece.bytes;
    for (int64_t i = 0; i < count; ++i, from += kPiece.words * 64, to += kPiece.bytes) {
      gather_piece<C>(from, to);
    }
  });
  const int64_t rest = bytes - whole * kPiece.bytes;
  for (int64_t r = 0; r < rows && rest > 0; ++r) {
    uint8_t piece[16];
    gather_piece<C>(in + whole * kPiece.words * 64 + r * 4, piece);
    if (C == Coding::trits && columns % 4 != 0) {
      piece[rest - 1] = static_cast<uint8_t>(piece[rest - 1] & ((1 << columns % 4 * 2) - 1));
    }
    std::memcpy(codes + r * p.row_bytes + whole * kPiece.bytes, piece, static_cast<size_t>(rest));
  }
}

// Calls f(part, offset in the canonical part, offset in the block, bytes) for each scale (part 0)
// and zero point (part 1) of `rows` rows of a block.
template <class F>
void for_scales(const Panels& p, int64_t n0, int64_t rows, int64_t g, const F& f) {
  const int64_t scale_size = p.cols > 0 ? dtype_bytes(p.format.scale_dtype) : 0;
  const int64_t zero_size = zero_bytes(p.format.zero_type);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t index = p.one_scale ? g : (n0 + r) * p.cols + g;
    if (scale_size > 0) f(0, index * scale_size, p.block.scales + r * scale_size, scale_size);
    if (zero_size > 0) f(1, index * zero_size, p.block.zeros + r * zero_size, zero_size);
  }
}

template <Coding C>
void pack_panel(const Panels& p, const Canonical& c, int64_t panel, uint8_t* out) {
  const int64_t n0 = panel * kRows, rows = p.shape.n - n0 < kRows ? p.shape.n - n0 : kRows;
  const uint8_t* parts[2] = {static_cast<const uint8_t*>(c.scales),
                             static_cast<const uint8_t*>(c.zeros)};
  for (int64_t g = 0; g < p.block.groups; ++g, out += p.block.bytes) {
    const int64_t columns = columns_of_group(p, g);
    // Whole pieces of all rows are written over; all else of the block is padding.
    const int64_t full = rows == kRows ? whole_pieces<C>(p, columns) * piece_of(C).words * 64 : 0;
    std::memset(out + full, 0, static_cast<size_t>(p.block.bytes - full));
    pack_codes<C>(p, c.codes + n0 * p.row_bytes + g * p.group_bytes, rows, columns, out);
    for_scales(p, n0, rows, g, [&](int part, int64_t at, int64_t to, int64_t size) {
      std::memcpy(out + to, parts[part] + at, static_cast<size_t>(size));
    });
  }
}

template <Coding C>
void unpack_panel(const Panels& p, const uint8_t* in, int64_t panel, const Buffers& c) {
  const int64_t n0 = panel * kRows, rows = p.shape.n - n0 < kRows ? p.shape.n - n0 : kRows;
  uint8_t* parts[2] = {static_cast<uint8_t*>(c.scales), static_cast<uint8_t*>(c.zeros)};
  for (int64_t g = 0; g < p.block.groups; ++g, in += p.block.bytes) {
    unpack_codes<C>(p, in, rows, columns_of_group(p, g),
                    c.codes + n0 * p.row_bytes + g * p.group_bytes);
    // A scale of the whole matrix is the same in every panel: one thread writes it.
    if (p.one_scale && panel > 0) continue;
    for_scales(p, n0, p.one_scale ? 1 : rows, g,
               [&](int part, int64_t to, int64_t at, int64_t size) {
                 std::memcpy(parts[part] + to, in + at, static_cast<size_t>(size));
               });
  }
}

// A word of frag64 from four bytes of canonical rows, k and k + 1 in each: row a, row a + 8, and
// both eight columns on. And back.
uint32_t to_fragment(uint32_t bytes) {
  const uint32_t low = bytes & 0x0f0f0f0fu, high = bytes >> 4 & 0x0f0f0f0fu;
  const auto squeeze = [](uint32_t x) { return (x & 15u) | (x >> 4 & 240u); };
  return squeeze(low) | squeeze(low >> 16) << 8 | squeeze(high) << 16 | squeeze(high >> 16) << 24;
}
uint32_t from_fragment(uint32_t word) {
  const auto spread = [](uint32_t x) { return (x & 15u) | (x & 240u) << 4; };
  const uint32_t low = spread(word & 255) | spread(word >> 8 & 255) << 16;
  const uint32_t high = spread(word >> 16 & 255) | spread(word >> 24) << 16;
  return low | high << 4;
}

// Calls f(row, byte of that row, byte of the panel's unit, 4 of them) for the words of a unit of
// frag64: rows and columns are counted from its first.
template <class F>
void for_fragments(const F& f) {
  for (int64_t at = 0; at < kFragCodes / 4; ++at) {
    const int64_t j = at % 4, t = at / 4 % 128, half = at / 512;
    f(t / 32 * 16 + t % 32 / 4, half * 32 + j * 8 + t % 4, at * 4);
  }
}

// Calls f(offset in the canonical scales, offset in the packed weight, bytes) for the scales of a
// unit; of the first one, for those behind all units too.
template <class F>
void for_fragment_scales(const Format& format, Shape s, int64_t panel, int64_t unit, const F& f) {
  const FragUnit u = frag_unit(format, s);
  const int64_t size = dtype_bytes(format.scale_dtype), cols = scale_cols(format, s.k);
  if (u.groups == 0) {
    if (panel == 0 && unit == 0) f(int64_t{0}, u.end, scale_rows(format, s.n) * cols * size);
    return;
  }
  for (int64_t g = unit * u.groups; g < (unit + 1) * u.groups && g < cols; ++g) {
    for (int64_t n = panel * kFragRows; n < (panel + 1) * kFragRows && n < s.n; ++n) {
      f((n * cols + g) * size, scale_at(Layout::frag64, format, s, n, g), size);
    }
  }
}

void pack_fragments(const Canonical& c, int64_t panel, uint8_t* data) {
  const Shape s = {c.n, c.k};
  const FragUnit u = frag_unit(c.format, s);
  const int64_t row_bytes = code_row_bytes(c.format.kind, c.k);
  for (int64_t unit = 0; unit < u.units; ++unit) {
    uint8_t* out = data + (panel * u.units + unit) * u.bytes;
    for_fragments([&](int64_t row, int64_t byte, int64_t to) {
      const auto code = [&](int64_t n, int64_t b) -> uint32_t {
        return n < c.n && b < row_bytes ? c.codes[n * row_bytes + b] : 0;
      };
      const int64_t n = panel * kFragRows + row, b = unit * kFragColumns / 2 + byte;
      store_word(out + to, to_fragment(code(n, b) | code(n + 8, b) << 8 | code(n, b + 4) << 16 |
                                       code(n + 8, b + 4) << 24));
    });
    std::memset(out + kFragCodes, 0, static_cast<size_t>(u.bytes - kFragCodes));
    for_fragment_scales(c.format, s, panel, unit, [&](int64_t from, int64_t to, int64_t bytes) {
      std::memcpy(data + to, static_cast<const uint8_t*>(c.scales) + from,
                  static_cast<size_t>(bytes));
    });
  }
}

void unpack_fragments(const Weight& w, int64_t panel, const Buffers& c) {
  const Shape s = {w.n, w.k};
  const FragUnit u = frag_unit(w.format, s);
  const int64_t row_bytes = code_row_bytes(w.format.kind, w.k);
  for (int64_t unit = 0; unit < u.units; ++unit) {
    const uint8_t* in = w.data + (panel * u.units + unit) * u.bytes;
    for_fragments([&](int64_t row, int64_t byte, int64_t from) {
      const uint32_t codes = from_fragment(load_word(in + from));
      for (int i = 0; i < 4; ++i) {
        const int64_t n = panel * kFragRows + row + i % 2 * 8;
        const int64_t b = unit * kFragColumns / 2 + byte + i / 2 * 4;
        if (n < w.n && b < row_bytes) {
          c.codes[n * row_bytes + b] = static_cast<uint8_t>(codes >> (8 * i));
        }
      }
    });
    for_fragment_scales(w.format, s, panel, unit, [&](int64_t to, int64_t from, int64_t bytes) {
      std::memcpy(static_cast<uint8_t*>(c.scales) + to, w.data + from, static_cast<size_t>(bytes));
    });
  }
}

void copy_bytes(Pool* pool, void* to, const void* from, int64_t bytes) {
  for_each(pool, ceil_div(bytes, kGrainBytes), kGrainBytes, [&](int64_t begin, int64_t end, int) {
    const int64_t at = begin * kGrainBytes;
    const int64_t stop = end * kGrainBytes < bytes ? end * kGrainBytes : bytes;
    std::memcpy(static_cast<uint8_t*>(to) + at, static_cast<const uint8_t*>(from) + at,
                static_cast<size_t>(stop - at));
  });
}

// A copy and the zeros that fill its part up to `end`.
void copy_part(Pool* pool, uint8_t* to, const void* from, int64_t bytes, int64_t end) {
  if (bytes > 0) copy_bytes(pool, to, from, bytes);
  if (end > bytes) std::memset(to + bytes, 0, static_cast<size_t>(end - bytes));
}

// The tables behind all else; zeros fill the gap before them and what panel16 pads.
void pack_tables(const Canonical& c, Layout layout, uint8_t* data, int64_t from, Pool* pool) {
  const Shape s = {c.n, c.k};
  const int64_t tables = tables_at(layout, c.format, s), end = layout_bytes(layout, c.format, s);
  std::memset(data + from, 0, static_cast<size_t>(tables - from));
  if (tables == end) return;
  const bool own = c.format.table_type == TableType::none;
  copy_part(pool, data + tables, own ? kind_table(c.format.kind) : c.tables,
            own ? 64 : canonical_sizes(c.format, c.n, c.k).tables, end - tables);
}

}  // namespace

void pack(const Canonical& c, Layout layout, uint8_t* data, Pool* pool) {
  const Shape s = {c.n, c.k};
  if (layout == Layout::frag64) {
    const FragUnit u = frag_unit(c.format, s);
    std::memset(data + u.end, 0, static_cast<size_t>(layout_bytes(layout, c.format, s) - u.end));
    for_each(pool, ceil_div(c.n, kFragRows), u.units * u.bytes,
             [&](int64_t begin, int64_t end, int) {
               for (int64_t i = begin; i < end; ++i) pack_fragments(c, i, data);
             });
    return;
  }
  if (layout != Layout::rows) {
    const Panels p = panels_of(layout, c.format, s);
    const int64_t panels = ceil_div(c.n, kRows);
    with_coding(layout, c.format.kind, [&](auto coding) {
      for_each(pool, panels, p.panel_bytes, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          pack_panel<decltype(coding)::value>(p, c, i, data + i * p.panel_bytes);
        }
      });
    });
    pack_tables(c, layout, data, panels * p.panel_bytes, pool);
    return;
  }
  const Sizes sizes = canonical_sizes(c.format, c.n, c.k);
  const int64_t scales = rows_scales_at(c.format, s), zeros = rows_zeros_at(c.format, s);
  const int64_t tables = tables_at(layout, c.format, s);
  copy_part(pool, data, c.codes, sizes.codes, scales);
  copy_part(pool, data + scales, c.scales, sizes.scales, zeros - scales);
  copy_part(pool, data + zeros, c.zeros, sizes.zeros, tables - zeros);
  pack_tables(c, layout, data, tables, pool);
}

void unpack(const Weight& w, const Buffers& to, Pool* pool) {
  const Shape s = {w.n, w.k};
  const Sizes sizes = canonical_sizes(w.format, w.n, w.k);
  const auto part = [&](void* buffer, int64_t at, int64_t bytes) {
    if (bytes > 0) copy_bytes(pool, buffer, w.data + at, bytes);
  };
  part(to.tables, tables_at(w.layout, w.format, s), sizes.tables);
  if (sizes.tensor_scale > 0) *to.tensor_scale = w.tensor_scale;
  if (w.layout == Layout::frag64) {
    const FragUnit u = frag_unit(w.format, s);
    for_each(pool, ceil_div(w.n, kFragRows), u.units * u.bytes,
             [&](int64_t begin, int64_t end, int) {
               for (int64_t i = begin; i < end; ++i) unpack_fragments(w, i, to);
             });
    return;
  }
  if (w.layout != Layout::rows) {
    const Panels p = panels_of(w.layout, w.format, s);
    with_coding(w.layout, w.format.kind, [&](auto coding) {
      for_each(pool, ceil_div(w.n, kRows), p.panel_bytes, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          unpack_panel<decltype(coding)::value>(p, w.data + i * p.panel_bytes, i, to);
        }
      });
    });
    return;
  }
  part(to.codes, 0, sizes.codes);
  part(to.scales, rows_scales_at(w.format, s), sizes.scales);
  part(to.zeros, rows_zeros_at(w.format, s), sizes.zeros);
}

// Kinds that the AVX2 and AVX-512 rows of linear read in panels of 16 rows, whatever the compute.
// The others have such rows for the layout `rows` alone, or for some computes, or none.
constexpr KindSet kPanelKinds = bit(Kind::f32) | bit(Kind::f16) | bit(Kind::bf16) |
                                bit(Kind::int8) | bit(Kind::int4) | bit(Kind::int3) |
                                bit(Kind::int2) | bit(Kind::int1) | bit(Kind::ternary);
// Kinds that only the newer rows read so.
constexpr KindSet kBytePanelKinds =
    bit(Kind::fp8_e4m3) | bit(Kind::fp8_e5m2) | bit(Kind::mxfp8_e4m3) | bit(Kind::mxfp8_e5m2);
constexpr ArchSet kBytePanelArchs = kArchAvx512Vbmi | kArchAvx512Bf16;
constexpr KindSet kTablePanelKinds =
    bit(Kind::nf4) | bit(Kind::fp4) | bit(Kind::codebook4) | bit(Kind::mxfp4) | bit(Kind::nvfp4);

// ternary is taken in panel16, which every compute reads well. trits16 has to be asked for: a fifth
// smaller and 5 % less time with int8 compute at M = 1, but 3 % more at M = 8 and 64, and twice the
// instructions to decode with float compute (csrc/linear/NOTES.md).
//
// A CPU without AVX2 runs the reference, which reads any layout, and keeps what needs no padding.
Layout preferred_layout(uint32_t arch, const Format& f, Shape s) {
  if ((arch & kArchSm80) != 0 && layout_serves(Layout::frag64, f, s)) return Layout::frag64;
  const bool vectors =
      ((arch & kArchAvx2) != 0 && has(kPanelKinds, f.kind)) ||
      ((arch & kBytePanelArchs) == kBytePanelArchs && has(kBytePanelKinds, f.kind)) ||
      ((arch & kArchAvx512) != 0 && has(kTablePanelKinds, f.kind) &&
       f.table_type <= TableType::tensor);
  return vectors && layout_serves(Layout::panel16, f, s) ? Layout::panel16 : Layout::rows;
}

const char* layout_name(Layout layout) {
  switch (layout) {
    case Layout::rows: return "rows";
    case Layout::panel16: return "panel16";
    case Layout::trits16: return "trits16";
    case Layout::frag64: return "frag64";
  }
  return "unknown";
}

}  // namespace lowbit
