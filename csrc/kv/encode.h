// encode: the scale, the zero and the codes of one token's head; see csrc/attention/cache.h. For
// host and device: all rows make the same bits.
#pragma once

#include "csrc/attention/cache.h"

namespace lowbit {

// As f16 bits, and as the f32 numbers that codes are made with.
struct KvScale {
  uint16_t scale, zero;
  float inverse, zero_point;
};

// low <= 0 <= high: the range of the row. `finite`: whether every number of it is.
static constexpr KvScale kv_scale_of(KvFormat format, float low, float high, bool finite) {
  if (!finite) return {0x7e00, 0, 0.0f, 0.0f};
  const float largest = -low > high ? -low : high;
  const float wanted = format == KvFormat::int4   ? (high - low) / 15.0f
                       : format == KvFormat::int8 ? largest / 127.0f
                                                  : largest / 448.0f;
  KvScale s = {};
  s.scale = f32_to_f16(wanted < 65504.0f ? wanted : 65504.0f);
  if (s.scale == 0) s.scale = 1;
  const float scale = f16_to_f32(s.scale);
  s.inverse = 1.0f / scale;
  if (format == KvFormat::int4) {
    const float zero = -low / scale;
    s.zero = f32_to_f16(zero < 15.0f ? zero : 15.0f);
    s.zero_point = f16_to_f32(s.zero);
  }
  return s;
}

// Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits. Between product
// and sum stands a clamp, so no compiler makes one operation of the two.
static constexpr int32_t kv_whole(float x, float least, float most) {
  x = x < least ? least : x > most ? most : x;
  return static_cast<int32_t>(float_bits(x + 0x1.8p23f) - float_bits(0x1.8p23f));
}
static constexpr uint8_t kv_int8(float x, const KvScale& s) {
  return static_cast<uint8_t>(kv_whole(x * s.inverse, -127.0f, 127.0f));
}
static constexpr uint8_t kv_fp8(float x, const KvScale& s) { return f32_to_e4m3(x * s.inverse); }
static inline uint8_t kv_int4(float x, const KvScale& s) {
  return static_cast<uint8_t>(kv_whole(__builtin_fmaf(x, s.inverse, s.zero_point), 0.0f, 15.0f));
}

}  // namespace lowbit
