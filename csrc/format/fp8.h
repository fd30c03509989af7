// fp8_e4m3, fp8_e5m2: OCP 8-bit floats, one code a byte, with one scale per group.
//
//   e4m3   s e e e e m m m    bias  7   largest   448 = 0x7e   least 2^-9    no inf; NaN 0x7f, 0xff
//   e5m2   s e e e e e m m    bias 15   largest 57344 = 0x7b   least 2^-16   inf 0x7c, NaN above
//
//   value       scale * float(code)
//   scale       max|w| / 448 or max|w| / 57344, at least 1e-12, rounded to the scale's dtype before
//               the codes are made
//   rounding    w / scale to nearest even, subnormals kept; beyond the largest comes the largest
//   groups      32, 64 or 128 columns, a row (channel), the matrix (tensor), or 128 x 128 blocks
//   special     a group of zeros: codes 0, with the sign of w. quantize() refuses NaN and inf, so
//   it
//               produces neither; codes that hold them (in other people's files) are kept and
//               decode to NaN and inf.
//   source      Micikevicius et al., FP8 Formats for Deep Learning, 2022; OCP OFP8 1.0
#pragma once

#include "csrc/format/group.h"

namespace lowbit {

static inline float fp8_group(Kind kind, const Range& r, float shrink, DType scale_dtype) {
  const float largest = kind == Kind::fp8_e4m3 ? 448.0f : 57344.0f;
  return round_scale(max_abs(r) * shrink / largest, scale_dtype);
}

static inline void fp8_encode(Kind kind, float scale, const float* w, int count, uint8_t* codes) {
  if (kind == Kind::fp8_e4m3) {
    for (int i = 0; i < count; ++i) codes[i] = f32_to_e4m3(w[i] / scale);
  } else {
    for (int i = 0; i < count; ++i) codes[i] = f32_to_e5m2(w[i] / scale);
  }
}

}  // namespace lowbit
