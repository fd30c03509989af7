// int8: signed codes with one scale per group; symmetric.
//
//   byte        k = 0    1    2   ...          one code a byte, two's complement
//               [ s8 ][ s8 ][ s8 ]
//
//   value       scale * code
//   codes       -127 .. 127. The byte 0x80 (-128) is no code: kernels rely on |code| <= 127.
//   scale       max|w| / 127, at least 1e-12, rounded to the scale's dtype before the codes are
//   made rounding    code = round(w / scale), to nearest even, clamped groups      32, 64 or 128
//   columns, a row (channel), the matrix (tensor), or 128 x 128 blocks special     a group of
//   zeros: codes 0. quantize() refuses NaN and inf.
#pragma once

#include "csrc/format/group.h"

namespace lowbit {

static inline Uniform int8_group(const Range& r, float shrink, DType scale_dtype) {
  const float scale = round_scale(max_abs(r) * shrink / 127.0f, scale_dtype);
  return {scale, 0.0f, 0.0f, -127.0f, 127.0f, 0, -127, 127};
}

// The first byte of `codes` that is no code; count if all are.
static inline int64_t int8_invalid(const uint8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (codes[i] == 0x80) return i;
  }
  return count;
}

}  // namespace lowbit
