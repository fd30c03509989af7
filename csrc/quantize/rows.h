// One run of activations to codes with one scale: what quantize_rows does to each row or block, and
// what linear does to x on the way when its caller allows that.
//
//   scale = max(max|x| / limit, 1e-12)     code = x / scale, rounded to nearest even; in f32
//   i8    limit 127                        e4m3 448, e5m2 57344, saturating
//
// A run that holds NaN or inf has no scale that could serve it: its scale is NaN and its codes are
// 0, so that all of it reads as NaN. An empty run has the scale 1e-12.
#pragma once

#include "csrc/base/dtype.h"
#include "csrc/simd/convert.h"

namespace lowbit {

inline constexpr DTypeSet kCodeDTypes = bit(DType::i8) | bit(DType::e4m3) | bit(DType::e5m2);
static constexpr bool is_code_dtype(DType d) {
  return d == DType::i8 || d == DType::e4m3 || d == DType::e5m2;
}

// Columns that share a scale when the scales of a row are per block.
inline constexpr int64_t kScaleBlock = 128;

static constexpr float code_limit(DType codes) {
  return codes == DType::i8 ? 127.0f : codes == DType::e4m3 ? 448.0f : 57344.0f;
}

// max|x|, or NaN where there is a NaN or an inf.
static constexpr float largest_of(const float* x, int64_t count) {
  // Magnitudes compare as integers, so NaN and inf come out on top and the loop has no order.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = float_bits(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return bits_float(largest >= 0x7f800000u ? 0x7fc00000u : largest);
}

// NaN stays NaN.
static constexpr float scale_for(float largest, DType codes) {
  const float scale = largest / code_limit(codes);
  return scale < 1e-12f ? 1e-12f : scale;
}

static constexpr void codes_of(const float* x, int64_t count, float scale, DType dtype,
                               uint8_t* out) {
  if (scale != scale) {
    for (int64_t i = 0; i < count; ++i) out[i] = 0;
  } else if (dtype == DType::i8) {
    for (int64_t i = 0; i < count; ++i) {
      // Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits;
      // |x / scale| is at most 127 and an ulp.
      out[i] = static_cast<uint8_t>(float_bits(x[i] / scale + 0x1.8p23f));
    }
  } else if (dtype == DType::e4m3) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = f32_to_e4m3(x[i] / scale);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = f32_to_e5m2(x[i] / scale);
    }
  }
}

static constexpr float quantize_span(const float* x, int64_t count, DType dtype, void* codes) {
  const float scale = scale_for(largest_of(x, count), dtype);
  codes_of(x, count, scale, dtype, static_cast<uint8_t*>(codes));
  return scale;
}

// x[i] becomes the float value of its code: what a float kernel multiplies when x is to be
// quantised on the way.
static constexpr float round_span(float* x, int64_t count, DType dtype) {
  const float scale = scale_for(largest_of(x, count), dtype);
  if (scale != scale) {
    for (int64_t i = 0; i < count; ++i) x[i] = 0.0f;
  } else if (dtype == DType::i8) {
    for (int64_t i = 0; i < count; ++i) x[i] = (x[i] / scale + 0x1.8p23f) - 0x1.8p23f;
  } else if (dtype == DType::e4m3) {
    for (int64_t i = 0; i < count; ++i) x[i] = e4m3_to_f32(f32_to_e4m3(x[i] / scale));
  } else {
    for (int64_t i = 0; i < count; ++i) x[i] = e5m2_to_f32(f32_to_e5m2(x[i] / scale));
  }
  return scale;
}

}  // namespace lowbit
