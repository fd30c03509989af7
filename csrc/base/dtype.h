// DType: the element types of tensors, their table, and the conversions between the floating ones.
// Bits of weights that are narrower than a byte are formats, not dtypes: see csrc/format.
#pragma once

#include <cstdint>
#include <cstring>

// Tables that kernels of both kinds index at run time. nvcc compiles constexpr functions for the
// device too, but such an index into a table without this word to a trap, and says nothing.
#ifdef __CUDACC__
#define LB_TABLE __device__
#else
#define LB_TABLE
#endif

namespace lowbit {

// The order is shared with lib/words.ts (`dtypes`) and compared when the addon loads.
enum class DType : int32_t { f32, f16, bf16, i32, i8, u8, e4m3, e5m2, e8m0, none };

struct DTypeRow {
  const char* name;
  int32_t bytes;
  bool floating;
};

static LB_TABLE constexpr DTypeRow kDTypes[] =
    {
        {"f32", 4, true},   {"f16", 2, true}, {"bf16", 2, true}, {"i32", 4, false},
        {"i8", 1, false},   {"u8", 1, false}, {"e4m3", 1, true}, {"e5m2", 1, true},
        {"e8m0", 1, false},  // not computed with: no op rounds to it
};
static constexpr int kDTypeCount = sizeof kDTypes / sizeof kDTypes[0];

static constexpr int64_t dtype_bytes(DType d) { return kDTypes[static_cast<int>(d)].bytes; }
static constexpr const char* dtype_name(DType d) {
  return d == DType::none ? "none" : kDTypes[static_cast<int>(d)].name;
}
// A set of dtypes as bits, for the specs of kernel rows.
using DTypeSet = uint32_t;
static constexpr DTypeSet bit(DType d) { return 1u << static_cast<int>(d); }
static constexpr bool has(DTypeSet set, DType d) {
  return d != DType::none && (set >> static_cast<int>(d) & 1u) != 0;
}
inline constexpr DTypeSet kFloats = 1u << 0 | 1u << 1 | 1u << 2;  // f32, f16, bf16

static constexpr uint32_t float_bits(float f) { return __builtin_bit_cast(uint32_t, f); }
static constexpr float bits_float(uint32_t u) { return __builtin_bit_cast(float, u); }

static constexpr float bf16_to_f32(uint16_t h) {
  return bits_float(static_cast<uint32_t>(h) << 16);
}

// Round to nearest even; a NaN stays a NaN (its quiet bit is set, so that truncation can't make it
// inf).
static constexpr uint16_t f32_to_bf16(float f) {
  const uint32_t u = float_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

// The conversions from here on compute both sides of a choice and select, without branches, so that
// loops over them become vectors.
static constexpr float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  // Shift into place with the f16 exponent bias, then let one multiplication by 2^112 rebias it:
  // exact for normal and subnormal numbers alike. Inf and NaN get the full exponent.
  const uint32_t scaled = float_bits(bits_float(magnitude << 13) * 0x1p112f);
  return bits_float(sign | scaled | (magnitude >= 0x7c00u ? 0x7f800000u : 0u));
}

// Round to nearest even, overflow to inf, gradual underflow.
static constexpr uint16_t f32_to_f16(float f) {
  const uint32_t u = float_bits(f);
  const uint32_t sign = u >> 16 & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Below 2^-14: the sum with 0.5 rounds at the unit of 2^-24.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t r = magnitude < 0x38800000u ? subnormal : normal;
  r = magnitude >= 0x477ff000u ? 0x7c00u : r;  // 65520 and above
  r = magnitude > 0x7f800000u ? (0x7e00u | (magnitude >> 13 & 0x3ffu)) : r;
  return static_cast<uint16_t>(sign | r);
}

// OCP FP8 (OFP8 Formats Specification 1.0): round to nearest even, saturating, NaN kept.
// e4m3: bias 7, largest 448, no inf, NaN 0x7f. e5m2: bias 15, largest 57344, inf 0x7c, NaN above.
static constexpr float e4m3_to_f32(uint8_t b) {
  const uint32_t sign = static_cast<uint32_t>(b & 0x80u) << 24;
  const uint32_t magnitude = b & 0x7fu;
  if (magnitude == 0x7fu) return bits_float(sign | 0x7fc00000u);
  return bits_float(sign | float_bits(bits_float(magnitude << 20) * 0x1p120f));
}
static constexpr float e5m2_to_f32(uint8_t b) { return f16_to_f32(static_cast<uint16_t>(b << 8)); }

static constexpr uint8_t f32_to_e4m3(float f) {
  const uint32_t u = float_bits(f);
  const uint32_t sign = u >> 24 & 0x80u;
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x3c000000u + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  // Below 2^-6: unit 2^-9, which the sum with 2^14 rounds at.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0x1p14f) - 0x46800000u;
  uint32_t r = magnitude < 0x3c800000u ? subnormal : normal;
  r = magnitude >= 0x43e00000u ? 0x7eu : r;  // 448 and above
  r = magnitude > 0x7f800000u ? 0x7fu : r;
  return static_cast<uint8_t>(sign | r);
}

static constexpr uint8_t f32_to_e5m2(float f) {
  const uint32_t u = float_bits(f);
  const uint32_t sign = u >> 24 & 0x80u;
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffffu + (magnitude >> 21 & 1u)) >> 21;
  // Below 2^-14: unit 2^-16, which the sum with 2^7 rounds at.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0x1p7f) - 0x43000000u;
  uint32_t r = magnitude < 0x38800000u ? subnormal : normal;
  r = magnitude >= 0x47600000u ? 0x7bu : r;  // 57344 and above
  r = magnitude > 0x7f800000u ? 0x7fu : r;
  return static_cast<uint8_t>(sign | r);
}

// OCP E8M0: 2^(code - 127), the scales of MX formats; 0xff is NaN. No sign, no zero.
static constexpr float e8m0_to_f32(uint8_t b) {
  if (b == 0) return 0x1p-127f;  // a subnormal f32
  return bits_float(b == 0xff ? 0x7fc00000u : static_cast<uint32_t>(b) << 23);
}
// The power of two at or below |f|, within the range of E8M0.
static constexpr uint8_t f32_to_e8m0(float f) {
  return static_cast<uint8_t>((float_bits(f) & 0x7fffffffu) >> 23);
}

// One element of any floating dtype, as the references read and write it.
static constexpr float load_f32(const void* base, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::f32: return static_cast<const float*>(base)[index];
    case DType::f16: return f16_to_f32(static_cast<const uint16_t*>(base)[index]);
    case DType::bf16: return bf16_to_f32(static_cast<const uint16_t*>(base)[index]);
    case DType::e4m3: return e4m3_to_f32(static_cast<const uint8_t*>(base)[index]);
    case DType::e5m2: return e5m2_to_f32(static_cast<const uint8_t*>(base)[index]);
    case DType::e8m0: return e8m0_to_f32(static_cast<const uint8_t*>(base)[index]);
    case DType::i32: return static_cast<float>(static_cast<const int32_t*>(base)[index]);
    case DType::i8: return static_cast<float>(static_cast<const int8_t*>(base)[index]);
    case DType::u8: return static_cast<float>(static_cast<const uint8_t*>(base)[index]);
    case DType::none: break;
  }
  return 0.0f;
}
static constexpr void store_f32(void* base, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::f32: static_cast<float*>(base)[index] = value; return;
    case DType::f16: static_cast<uint16_t*>(base)[index] = f32_to_f16(value); return;
    case DType::bf16: static_cast<uint16_t*>(base)[index] = f32_to_bf16(value); return;
    case DType::e4m3: static_cast<uint8_t*>(base)[index] = f32_to_e4m3(value); return;
    case DType::e5m2: static_cast<uint8_t*>(base)[index] = f32_to_e5m2(value); return;
    case DType::e8m0: static_cast<uint8_t*>(base)[index] = f32_to_e8m0(value); return;
    default: return;
  }
}

}  // namespace lowbit
