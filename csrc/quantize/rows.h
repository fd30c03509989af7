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

static inline bool is_code_dtype(DType d) {
  return d == DType::i8 || d == DType::e4m3 || d == DType::e5m2;
}

// Columns that share a scale when the scales of a row are per block.
inline constexpr int64_t kScaleBlock = 128;

static inline float code_limit(DType codes) {
  return codes == DType::i8 ? 127.0f : codes == DType::e4m3 ? 448.0f : 57344.0f;
}

// max|x|, or NaN where there is a NaN or an inf.
static inline float run_largest(const float* x, int64_t count) {
  // Magnitudes compare as integers, so NaN and inf come out on top and the loop has no order.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = float_bits(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return bits_float(largest >= 0x7f800000u ? 0x7fc00000u : largest);
}

// NaN stays NaN.
static inline float scale_for(float largest, DType codes) {
  const float scale = largest / code_limit(codes);
  return scale < 1e-12f ? 1e-12f : scale;
}

// The code bits of x / scale as f32, by selects where f32_to_e4m3 and f32_to_e5m2 have branches;
// |x / scale| is finite.
static inline uint32_t fp8_bits(uint32_t u, bool e4m3) {
  const uint32_t magnitude = u & 0x7fffffffu;
  const int drop = e4m3 ? 20 : 21;
  const uint32_t top = e4m3 ? 0x7eu : 0x7bu;
  const uint32_t base = e4m3 ? 0x3c000000u : 0x38000000u;
  // Below the smallest normal number the sum with `unit` rounds at the unit of the subnormal ones.
  const float unit = e4m3 ? 0x1p14f : 0x1p7f;
  const uint32_t small = float_bits(bits_float(magnitude) + unit) - float_bits(unit);
  const uint32_t rounded =
      (magnitude - base + ((1u << (drop - 1)) - 1u) + (magnitude >> drop & 1u)) >> drop;
  const uint32_t normal = rounded > top ? top : rounded;
  // A mask and not a select: compilers sink the sum above into a branch, which they then can't turn
  // into vector code.
  const uint32_t is_small =
      0u - static_cast<uint32_t>(magnitude < (e4m3 ? 0x3c800000u : 0x38800000u));
  return (u >> 24 & 0x80u) | (small & is_small) | (normal & ~is_small);
}

static inline void codes_of(const float* x, int64_t count, float scale, DType dtype, uint8_t* out) {
  if (scale != scale) {
    std::memset(out, 0, static_cast<size_t>(count));
  } else if (dtype == DType::i8) {
    for (int64_t i = 0; i < count; ++i) {
      // Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits;
      // |x / scale| is at most 127 and an ulp.
      out[i] = static_cast<uint8_t>(float_bits(x[i] / scale + 0x1.8p23f));
    }
  } else if (dtype == DType::e4m3) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<uint8_t>(fp8_bits(float_bits(x[i] / scale), true));
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<uint8_t>(fp8_bits(float_bits(x[i] / scale), false));
    }
  }
}

static inline float quantize_run(const float* x, int64_t count, DType dtype, void* codes) {
  const float scale = scale_for(run_largest(x, count), dtype);
  codes_of(x, count, scale, dtype, static_cast<uint8_t*>(codes));
  return scale;
}

// x[i] becomes the float value of its code: what a float kernel multiplies when x is to be
// quantised on the way.
static inline float round_run(float* x, int64_t count, DType dtype) {
  const float scale = scale_for(run_largest(x, count), dtype);
  if (scale != scale) {
    for (int64_t i = 0; i < count; ++i) x[i] = 0.0f;
  } else if (dtype == DType::i8) {
    for (int64_t i = 0; i < count; ++i) x[i] = (x[i] / scale + 0x1.8p23f) - 0x1.8p23f;
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t b = fp8_bits(float_bits(x[i] / scale), dtype == DType::e4m3);
      // Finite codes only, so that no select for NaN is needed.
      const float magnitude = dtype == DType::e4m3 ? bits_float((b & 0x7fu) << 20) * 0x1p120f
                                                   : bits_float((b & 0x7fu) << 21) * 0x1p112f;
      x[i] = bits_float(float_bits(magnitude) | (b & 0x80u) << 24);
    }
  }
  return scale;
}

}  // namespace lowbit
