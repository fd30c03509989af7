// Format: what the stored numbers of a weight mean. Where their bytes lie is its Layout (layout.h).
//
// A weight is a matrix [N, K]. Its value at (n, k) is
//   float kinds   the stored element
//   signed kinds  scale * code                       int8, fp8, ternary, MX
//   affine kinds  scale * (code - zero)              int4, int3, int2; int1, whose code counts
//   twice table kinds   scale * table[code]                nf4, fp4, codebook4, mxfp4, nvfp4
// with one scale (and zero) per block of group_n rows by group_k columns; the blocks at the ragged
// ends are smaller. nvfp4 has one factor of the whole matrix besides. int1 may be the sum of up to
// eight planes: planes.h.
#pragma once

#include <cstdint>

#include "csrc/base/dtype.h"

namespace lowbit {

// The order is shared with lib/words.ts (`formats`) and compared when the addon loads.
enum class Kind : int32_t {
  f32,
  f16,
  bf16,
  int8,
  int4,
  int3,
  int2,
  int1,
  ternary,
  fp8_e4m3,
  fp8_e5m2,
  nf4,
  fp4,
  codebook4,
  mxfp8_e4m3,
  mxfp8_e5m2,
  mxfp6_e2m3,
  mxfp6_e3m2,
  mxfp4,
  mxint8,
  nvfp4
};

struct KindRow {
  const char* name;
  int32_t bits;  // of one code, as stored in the canonical row-major form
  bool scaled;   // has scales
  bool affine;   // codes are unsigned with a zero point, stored or (symmetric) the constant `mid`
  int32_t mid;   // what a symmetric code is stored above: value = scale * (code - mid)
  int32_t code_min, code_max;  // stored codes that quantize() may produce
  bool table;                  // codes are positions in a table of sixteen numbers
  int32_t block;  // columns that share a scale where the format fixes it; 0: the weight's choice
  DType scale;    // of scales where the format fixes it; none: f32, f16 or bf16
};

// int8 codes are stored signed (two's complement), -127..127. Symmetric int4 codes run -7..7 and
// are stored as 1..15; int3 -3..3 as 1..7; int2 -1..1 as 1..3. Symmetric int1: code 0 is -1, code 1
// is +1.
// Ternary: codes 0, 1, 2 are -1, 0, 1.
static LB_TABLE constexpr KindRow kKinds[] = {
    {"f32", 32, false, false, 0, 0, 0, false, 0, DType::none},
    {"f16", 16, false, false, 0, 0, 0, false, 0, DType::none},
    {"bf16", 16, false, false, 0, 0, 0, false, 0, DType::none},
    {"int8", 8, true, false, 0, -127, 127, false, 0, DType::none},
    {"int4", 4, true, true, 8, 0, 15, false, 0, DType::none},
    {"int3", 3, true, true, 4, 0, 7, false, 0, DType::none},
    {"int2", 2, true, true, 2, 0, 3, false, 0, DType::none},
    {"int1", 1, true, true, 1, 0, 1, false, 0, DType::none},
    {"ternary", 2, true, false, 1, 0, 2, false, 0, DType::none},
    {"fp8_e4m3", 8, true, false, 0, 0, 255, false, 0, DType::none},
    {"fp8_e5m2", 8, true, false, 0, 0, 255, false, 0, DType::none},
    {"nf4", 4, true, false, 0, 0, 15, true, 0, DType::none},
    {"fp4", 4, true, false, 0, 0, 15, true, 0, DType::none},
    {"codebook4", 4, true, false, 0, 0, 15, true, 0, DType::none},
    {"mxfp8_e4m3", 8, true, false, 0, 0, 255, false, 32, DType::e8m0},
    {"mxfp8_e5m2", 8, true, false, 0, 0, 255, false, 32, DType::e8m0},
    {"mxfp6_e2m3", 6, true, false, 0, 0, 63, false, 32, DType::e8m0},
    {"mxfp6_e3m2", 6, true, false, 0, 0, 63, false, 32, DType::e8m0},
    {"mxfp4", 4, true, false, 0, 0, 15, true, 32, DType::e8m0},
    {"mxint8", 8, true, false, 0, -127, 127, false, 32, DType::e8m0},
    {"nvfp4", 4, true, false, 0, 0, 15, true, 16, DType::e4m3},
};
inline constexpr int kKindCount = sizeof kKinds / sizeof kKinds[0];
static constexpr const KindRow& kind_row(Kind k) { return kKinds[static_cast<int>(k)]; }
static constexpr const char* kind_name(Kind k) { return kKinds[static_cast<int>(k)].name; }

using KindSet = uint32_t;
static constexpr KindSet bit(Kind k) { return 1u << static_cast<int>(k); }
static constexpr bool has(KindSet set, Kind k) { return (set >> static_cast<int>(k) & 1u) != 0; }
inline constexpr KindSet kAllKinds = (1u << kKindCount) - 1;

// The kind whose codes lie in panels as those of `kind` do: the width of a code decides.
static constexpr Kind placed_as(Kind kind) {
  switch (kind_row(kind).bits) {
    case 8: return Kind::int8;
    case 4: return Kind::int4;
    default: return kind;
  }
}

// How the zero points of an affine kind are stored. `none`: symmetric, the zero is the kind's
// `mid`.
// The words for it are shared with lib/words.ts (`zeroPoints`).
enum class ZeroType : int32_t { none, u8, f32 };
inline constexpr const char* kZeroNames[] = {"none", "integer", "float"};
inline constexpr int kZeroCount = sizeof kZeroNames / sizeof kZeroNames[0];

// Which tables a weight stores: none where the kind has its own, else one for the matrix, one for
// each row, or one for each scale. The words for it are shared with lib/words.ts (`tables`).
enum class TableType : int32_t { none, tensor, row, group };
inline constexpr const char* kTableNames[] = {"none", "tensor", "row", "group"};
inline constexpr int kTableCount = sizeof kTableNames / sizeof kTableNames[0];

struct Format {
  Kind kind;
  int64_t group_n;    // rows that share a scale: 1, 128 (square blocks), or N (per tensor)
  int64_t group_k;    // columns that share a scale: 32, 64, 128, or K (per channel, per tensor); as
                      // the kind has it for MX (32) and nvfp4 (16)
  DType scale_dtype;  // f32, f16 or bf16; e8m0 for MX, e4m3 for nvfp4; none for float kinds
  ZeroType zero_type;
  TableType table_type;
  int32_t planes = 1;  // that add up to the weight (planes.h); more than one of int1 alone
};

inline constexpr int32_t kMaxPlanes = 8;
// Columns of a weight that has `k` of them in all its planes: what x has.
static constexpr int64_t plane_columns(const Format& f, int64_t k) { return k / f.planes; }

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return b == 0 ? 0 : (a + b - 1) / b; }
static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static constexpr int64_t scale_rows(const Format& f, int64_t n) { return ceil_div(n, f.group_n); }
static constexpr int64_t scale_cols(const Format& f, int64_t k) { return ceil_div(k, f.group_k); }
static constexpr int64_t zero_bytes(ZeroType z) {
  return z == ZeroType::none ? 0 : z == ZeroType::u8 ? 1 : 4;
}

// The tables of the kinds that have one of their own: codebook.h and mx.h say where they come from.
static LB_TABLE constexpr float kNf4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
static LB_TABLE constexpr float kFp4[16] = {
    0.0f,  0.0625f / 12,  8.0f / 12,  1.0f,  4.0f / 12,  6.0f / 12,  2.0f / 12,  3.0f / 12,
    -0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12,
};
static LB_TABLE constexpr float kE2m1[16] = {
    0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f,
};
static constexpr const float* kind_table(Kind kind) {
  return kind == Kind::nf4 ? kNf4 : kind == Kind::fp4 ? kFp4 : kE2m1;
}

// The six-bit floats of MX: s e e m m m and s e e e m m. As in e4m3_to_f32, moving the bits into
// place and one multiplication by a power of two are exact, subnormals included.
static constexpr float e2m3_to_f32(uint32_t code) {
  const uint32_t sign = (code & 0x20u) << 26, magnitude = (code & 0x1fu) << 20;
  return bits_float(sign | float_bits(bits_float(magnitude) * 0x1p126f));
}
static constexpr float e3m2_to_f32(uint32_t code) {
  const uint32_t sign = (code & 0x20u) << 26, magnitude = (code & 0x1fu) << 21;
  return bits_float(sign | float_bits(bits_float(magnitude) * 0x1p124f));
}

// The value of one stored code before scale and zero: what `scale * (decode - zero)` starts from.
// codebook4 has its tables in the weight and is not decoded here.
static constexpr float decode_code(Kind kind, uint32_t code) {
  switch (kind) {
    case Kind::f32: return bits_float(code);
    case Kind::f16: return f16_to_f32(static_cast<uint16_t>(code));
    case Kind::bf16: return bf16_to_f32(static_cast<uint16_t>(code));
    case Kind::int8: return static_cast<float>(static_cast<int8_t>(code));
    case Kind::int4:
    case Kind::int3:
    case Kind::int2: return static_cast<float>(code);
    case Kind::int1: return code ? 2.0f : 0.0f;
    case Kind::ternary: return static_cast<float>(static_cast<int32_t>(code) - 1);
    case Kind::fp8_e4m3:
    case Kind::mxfp8_e4m3: return e4m3_to_f32(static_cast<uint8_t>(code));
    case Kind::fp8_e5m2:
    case Kind::mxfp8_e5m2: return e5m2_to_f32(static_cast<uint8_t>(code));
    case Kind::nf4:
    case Kind::fp4:
    case Kind::mxfp4:
    case Kind::nvfp4: return kind_table(kind)[code];
    case Kind::codebook4: break;
    case Kind::mxfp6_e2m3: return e2m3_to_f32(code);
    case Kind::mxfp6_e3m2: return e3m2_to_f32(code);
    case Kind::mxint8: return static_cast<float>(static_cast<int8_t>(code)) * 0x1p-6f;
  }
  return 0.0f;
}

}  // namespace lowbit
