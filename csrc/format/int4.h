// int4, int3, int2: unsigned codes of B = 4, 3, 2 bits with one scale per group and a zero point
// that is stored (u8 or f32) or, for symmetric weights, the constant mid = 2^(B-1).
//
//   int4   byte 0   k1 k1 k1 k1 k0 k0 k0 k0          code k starts at bit k * B of its row,
//                                                    least significant bit first
//   int3   byte 0   k2 k2 k1 k1 k1 k0 k0 k0
//          byte 1   k5 k4 k4 k4 k3 k3 k3 k2          a code may cross into the next byte
//          byte 2   k7 k7 k7 k6 k6 k6 k5 k5
//
//   int2   byte 0   k3 k3 k2 k2 k1 k1 k0 k0
//
//   A row begins at a whole byte; the bits behind its last code are zero.
//
//   value       scale * (code - zero)
//   asymmetric  lo = min(w, 0), hi = max(w, 0), scale = (hi - lo) / (2^B - 1)
//     zero u8   zero = round(-lo / scale), code = clamp(round(w / scale) + zero, 0, 2^B - 1)
//     zero f32  zero = -lo / scale unrounded; code = clamp(round((w - lo) / scale), 0, 2^B - 1)
//   symmetric   scale = max|w| / (mid - 1), code = clamp(round(w / scale), 1 - mid, mid - 1) + mid.
//               The code 0 (value -mid * scale) is legal and read as such, but never produced.
//   scale       at least 1e-12, rounded to its dtype before zeros and codes are made
//   rounding    to nearest even
//   zeros       u8: 0 .. 2^B (files of GPTQ hold 2^B); f32: finite
//   groups      32, 64 or 128 columns, a row (channel), or the matrix (tensor)
//   special     a group of zeros: code = zero. quantize() refuses NaN and inf.
//   source      Jacob et al., Quantization and Training of Neural Networks for Efficient
//               Integer-Arithmetic-Only Inference, CVPR 2018, section 2.1
#pragma once

#include "csrc/format/group.h"

namespace lowbit {

static inline Uniform affine_group(Kind kind, ZeroType zero_type, const Range& r, float shrink,
                                   DType scale_dtype) {
  const int32_t mid = kind_row(kind).mid, top = 2 * mid - 1;
  if (zero_type == ZeroType::none) {
    const float limit = static_cast<float>(mid - 1);
    const float scale = round_scale(max_abs(r) * shrink / limit, scale_dtype);
    return {scale, static_cast<float>(mid), 0.0f, -limit, limit, mid, 0, top};
  }
  const float least = r.count > 0 ? range_lo(r) * shrink : 0.0f;
  const float most = r.count > 0 ? range_hi(r) * shrink : 0.0f;
  const float lo = least < 0.0f ? least : 0.0f, hi = most > 0.0f ? most : 0.0f;
  const float levels = static_cast<float>(top);
  float scale = (hi - lo) / levels;
  // hi - lo is infinite only where values of both signs come near the largest float.
  if (!(scale <= 0x1.fffffep127f)) scale = hi / levels - lo / levels;
  scale = round_scale(scale, scale_dtype);
  const float zero = (0.0f - lo) / scale;  // +0 for lo = 0
  if (zero_type == ZeroType::f32) return {scale, zero, lo, 0.0f, levels, 0, 0, top};
  const int32_t z = nearest(zero < levels ? zero : levels);
  return {scale, static_cast<float>(z), 0.0f, -levels, levels, z, 0, top};
}

}  // namespace lowbit
