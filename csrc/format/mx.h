// mxfp8_e4m3, mxfp8_e5m2, mxfp6_e2m3, mxfp6_e3m2, mxfp4, mxint8: OCP Microscaling, elements of 8, 6
// or 4 bits with one power of two per 32 columns of a row.
//
//   scale       e8m0: a byte, 2^(byte - 127); 0xff is NaN
//   element     mxfp8_e4m3   s e e e e m m m    bias  7   largest 448     emax  8   NaN 0x7f, 0xff
//               mxfp8_e5m2   s e e e e e m m    bias 15   largest 57344   emax 15   inf 0x7c, NaN
//               mxfp6_e2m3     s e e m m m      bias  1   largest 7.5     emax  2
//               mxfp6_e3m2     s e e e m m      bias  3   largest 28      emax  4
//               mxfp4            s e e m        bias  1   largest 6       emax  2
//               mxint8       two's complement / 64        largest 127/64  emax  0
//
//   mxfp6       byte 0   k1 k1 k0 k0 k0 k0 k0 k0       code k starts at bit 6k of its row, least
//               byte 1   k2 k2 k2 k2 k1 k1 k1 k1       significant bit first
//               byte 2   k3 k3 k3 k3 k3 k3 k2 k2
//   mxfp4       byte 0   k1 k1 k1 k1 k0 k0 k0 k0       as int4
//
//   A row begins at a whole byte; the bits behind its last code are zero.
//
//   value       2^(scale - 127) * element; in a group whose scale is 0xff NaN
//   scale rule  2^(floor(log2(max|w|)) - emax), not below 2^-127 (a group of zeros has 2^-127). The
//               largest of a group is then 2^emax .. 2^(emax + 1) scales: what lies above the
//               largest element becomes the largest. There is no search for another scale.
//   rounding    w / scale, which is exact, to nearest even, subnormals kept, saturating; mxint8 to
//               -127 .. 127
//   groups      32 columns; at the ragged end of a row fewer
//   special     quantize() refuses NaN and inf, so it makes neither 0xff nor elements of NaN and
//               inf, nor the mxint8 code -128, which is -2. In other people's files all of these
//               are kept and mean what the standard says.
//   source      OCP Microscaling Formats (MX) Specification 1.0, sections 5 and 6.3
#pragma once

#include "csrc/format/group.h"

namespace lowbit {

// Round to nearest even with E exponent bits, M mantissa bits and no special values, saturating;
// 2^(emax) * (2 - 2^-M) is the largest. Both sides of each choice are computed, as in base/dtype.h.
template <int E, int M, int kBias>
static constexpr uint8_t f32_to_minifloat(float f) {
  const uint32_t u = float_bits(f);
  const uint32_t sign = u >> 31 << (E + M);
  const uint32_t magnitude = u & 0x7fffffffu;
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << 23;
  const uint32_t normal =
      (magnitude - kRebias + (1u << (22 - M)) - 1u + (magnitude >> (23 - M) & 1u)) >> (23 - M);
  // Below 2^(1 - bias): the unit is 2^(1 - bias - M), which the sum with 2^23 of them rounds at.
  constexpr uint32_t kMagic = static_cast<uint32_t>(127 + 24 - kBias - M) << 23;
  const uint32_t subnormal = float_bits(bits_float(magnitude) + bits_float(kMagic)) - kMagic;
  constexpr uint32_t kTop = (1u << (E + M)) - 1u;
  uint32_t r = magnitude < kRebias + (1u << 23) ? subnormal : normal;
  r = r > kTop ? kTop : r;
  return static_cast<uint8_t>(sign | r);
}
static constexpr uint8_t f32_to_e2m3(float f) { return f32_to_minifloat<2, 3, 1>(f); }
static constexpr uint8_t f32_to_e3m2(float f) { return f32_to_minifloat<3, 2, 3>(f); }
static constexpr uint8_t f32_to_e2m1(float f) { return f32_to_minifloat<2, 1, 1>(f); }

// Exponent of the largest power of two that is an element.
static constexpr int mx_emax(Kind kind) {
  switch (kind) {
    case Kind::mxfp8_e4m3: return 8;
    case Kind::mxfp8_e5m2: return 15;
    case Kind::mxfp6_e3m2: return 4;
    case Kind::mxint8: return 0;
    default: return 2;  // mxfp6_e2m3, mxfp4
  }
}
static constexpr bool is_mx(Kind kind) { return kind_row(kind).scale == DType::e8m0; }

static inline float mx_group(Kind kind, const Range& r) {
  // A maximum that is zero or subnormal has the byte 0, which stays 0.
  const int byte = f32_to_e8m0(max_abs(r)) - mx_emax(kind);
  return e8m0_to_f32(static_cast<uint8_t>(byte > 0 ? byte : 0));
}

static inline void mx_encode(Kind kind, float scale, const float* w, int count, uint8_t* codes) {
  // A power of two, as is the scale: products are the quotients.
  const float inverse = 1.0f / scale;
  switch (kind) {
    case Kind::mxfp8_e4m3:
      for (int i = 0; i < count; ++i) codes[i] = f32_to_e4m3(w[i] * inverse);
      break;
    case Kind::mxfp8_e5m2:
      for (int i = 0; i < count; ++i) codes[i] = f32_to_e5m2(w[i] * inverse);
      break;
    case Kind::mxfp6_e2m3:
      for (int i = 0; i < count; ++i) codes[i] = f32_to_e2m3(w[i] * inverse);
      break;
    case Kind::mxfp6_e3m2:
      for (int i = 0; i < count; ++i) codes[i] = f32_to_e3m2(w[i] * inverse);
      break;
    case Kind::mxint8:
      for (int i = 0; i < count; ++i) {
        const int32_t code = nearest(w[i] * inverse * 64.0f);
        codes[i] = static_cast<uint8_t>(code < -127 ? -127 : code > 127 ? 127 : code);
      }
      break;
    default:
      for (int i = 0; i < count; ++i) codes[i] = f32_to_e2m1(w[i] * inverse);
  }
}

}  // namespace lowbit
