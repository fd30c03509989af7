// Format: what the stored numbers of a weight mean. Where their bytes lie is its Layout (layout.h).
//
// A weight is a matrix [N, K]. Its value at (n, k) is
//   float kinds   the stored element
//   signed kinds  scale * code                       int8, fp8, ternary, int1
//   affine kinds  scale * (code - zero)              int4, int3, int2
// with one scale (and zero) per block of group_n rows by group_k columns; the blocks at the ragged
// ends are smaller.
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
  fp8_e5m2
};

struct KindRow {
  const char* name;
  int32_t bits;  // of one code, as stored in the canonical row-major form
  bool scaled;   // has scales
  bool affine;   // codes are unsigned with a zero point, stored or (symmetric) the constant `mid`
  int32_t mid;   // what a symmetric code is stored above: value = scale * (code - mid)
  int32_t code_min, code_max;  // stored codes that quantize() may produce
};

// int8 codes are stored signed (two's complement), -127..127. Symmetric int4 codes run -7..7 and
// are stored as 1..15; int3 -3..3 as 1..7; int2 -1..1 as 1..3. int1: code 0 is -1, code 1 is +1.
// Ternary: codes 0, 1, 2 are -1, 0, 1.
static LB_TABLE constexpr KindRow kKinds[] = {
    {"f32", 32, false, false, 0, 0, 0},      {"f16", 16, false, false, 0, 0, 0},
    {"bf16", 16, false, false, 0, 0, 0},     {"int8", 8, true, false, 0, -127, 127},
    {"int4", 4, true, true, 8, 0, 15},       {"int3", 3, true, true, 4, 0, 7},
    {"int2", 2, true, true, 2, 0, 3},        {"int1", 1, true, false, 0, 0, 1},
    {"ternary", 2, true, false, 1, 0, 2},    {"fp8_e4m3", 8, true, false, 0, 0, 255},
    {"fp8_e5m2", 8, true, false, 0, 0, 255},
};
inline constexpr int kKindCount = sizeof kKinds / sizeof kKinds[0];
static constexpr const KindRow& kind_row(Kind k) { return kKinds[static_cast<int>(k)]; }
static constexpr const char* kind_name(Kind k) { return kKinds[static_cast<int>(k)].name; }

using KindSet = uint32_t;
static constexpr KindSet bit(Kind k) { return 1u << static_cast<int>(k); }
static constexpr bool has(KindSet set, Kind k) { return (set >> static_cast<int>(k) & 1u) != 0; }
inline constexpr KindSet kAllKinds = (1u << kKindCount) - 1;

// How the zero points of an affine kind are stored. `none`: symmetric, the zero is the kind's
// `mid`.
// The words for it are shared with lib/words.ts (`zeroPoints`).
enum class ZeroType : int32_t { none, u8, f32 };
inline constexpr const char* kZeroNames[] = {"none", "integer", "float"};
inline constexpr int kZeroCount = sizeof kZeroNames / sizeof kZeroNames[0];

struct Format {
  Kind kind;
  int64_t group_n;    // rows that share a scale: 1, 128 (square blocks), or N (per tensor)
  int64_t group_k;    // columns that share a scale: 32, 64, 128, or K (per channel, per tensor)
  DType scale_dtype;  // f32, f16 or bf16; none for float kinds
  ZeroType zero_type;
};

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return b == 0 ? 0 : (a + b - 1) / b; }
static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static constexpr int64_t scale_rows(const Format& f, int64_t n) { return ceil_div(n, f.group_n); }
static constexpr int64_t scale_cols(const Format& f, int64_t k) { return ceil_div(k, f.group_k); }
static constexpr int64_t zero_bytes(ZeroType z) {
  return z == ZeroType::none ? 0 : z == ZeroType::u8 ? 1 : 4;
}

// The value of one stored code before scale and zero: what `scale * (decode - zero)` starts from.
static constexpr float decode_code(Kind kind, uint32_t code) {
  switch (kind) {
    case Kind::f32: return bits_float(code);
    case Kind::f16: return f16_to_f32(static_cast<uint16_t>(code));
    case Kind::bf16: return bf16_to_f32(static_cast<uint16_t>(code));
    case Kind::int8: return static_cast<float>(static_cast<int8_t>(code));
    case Kind::int4:
    case Kind::int3:
    case Kind::int2: return static_cast<float>(code);
    case Kind::int1: return code ? 1.0f : -1.0f;
    case Kind::ternary: return static_cast<float>(static_cast<int32_t>(code) - 1);
    case Kind::fp8_e4m3: return e4m3_to_f32(static_cast<uint8_t>(code));
    case Kind::fp8_e5m2: return e5m2_to_f32(static_cast<uint8_t>(code));
  }
  return 0.0f;
}

}  // namespace lowbit
