// ternary and int1: weights of three and of two values, one scale per group.
//
//   ternary   byte 0   k3 k3 k2 k2 k1 k1 k0 k0      codes 0, 1, 2 are -1, 0, 1; 3 is no code
//   int1      byte 0   k7 k6 k5 k4 k3 k2 k1 k0      code 0 is -1, code 1 is +1
//
//   A row begins at a whole byte; the bits behind its last code are zero.
//
//   value       scale * (code - 1) and scale * (2 * code - zero), where symmetric int1 has the zero
//   1 scale       mean|w| of the group, summed in double and rounded once to f32; at least 1e-12,
//   then
//               rounded to the scale's dtype before the codes are made
//   rounding    ternary: round(w / scale) to nearest even, clamped to -1 .. 1
//               int1: w < 0 gives -1, all else (-0 too) gives +1
//   zeros       of int1, never made by quantize(): 0 for codes of 0 and 2, as DB-LLM's planes have
//               them; u8: 0 .. 2; f32: finite
//   groups      32, 64 or 128 columns, a row (channel), or the matrix (tensor); planes.h: several
//               int1 weights added up
//   special     a group of zeros is 0 in ternary and +1e-12 (the least scale) in int1, which has no
//               zero. quantize() refuses NaN and inf.
//   source      ternary: Ma et al., The Era of 1-bit LLMs, 2024 (absmean)
//               int1: Rastegari et al., XNOR-Net, ECCV 2016
#pragma once

#include "csrc/format/group.h"

namespace lowbit {

static inline float mean_scale(const Range& r, float shrink, DType scale_dtype) {
  const double mean = r.count > 0 ? r.sum_abs / static_cast<double>(r.count) : 0.0;
  return round_scale(static_cast<float>(mean) * shrink, scale_dtype);
}

static inline Uniform ternary_group(const Range& r, float shrink, DType scale_dtype) {
  return {mean_scale(r, shrink, scale_dtype), 1.0f, 0.0f, -1.0f, 1.0f, 1, 0, 2};
}

static inline void int1_encode(const float* w, int count, uint8_t* codes) {
  for (int i = 0; i < count; ++i) codes[i] = w[i] < 0.0f ? 0 : 1;
}

// The first of `count` bytes that holds the ternary code 3; count if none does. Bits behind a row's
// last code are zero.
static inline int64_t ternary_invalid(const uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if ((bytes[i] & bytes[i] >> 1 & 0x55) != 0) return i;
  }
  return count;
}

}  // namespace lowbit
