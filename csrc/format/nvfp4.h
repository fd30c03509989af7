// nvfp4: e2m1 elements with an e4m3 scale per 16 columns of a row and one f32 for the matrix.
//
//   byte 0         k1 k1 k1 k1 k0 k0 k0 k0    as int4; an element is s e e m, as in mxfp4: 0, .5,
//   1,
//                                             1.5, 2, 3, 4, 6 and their negatives
//
//   value          tensor_scale * (scale * element); the product in brackets is exact in f32
//   tensor_scale   max|w| of the matrix / (448 * 6), at least 1e-12, f32
//   scale          e4m3: max|w| of the group / 6 / tensor_scale, to nearest even, 2^-9 .. 448.
//   Never
//                  zero, so that a small group keeps what 2^-9 can hold.
//   rounding       w / (scale * tensor_scale) to nearest even, saturating; the product is f32
//   groups         16 columns; at the ragged end of a row fewer
//   special        a group of zeros: scale 2^-9, codes 0 with the sign of w. quantize() refuses NaN
//                  and inf. Scales of NaN and a tensor_scale that is not finite are refused too.
//   source         NVIDIA, Introducing NVFP4 for Efficient and Accurate Low-Precision Inference,
//                  2025; Pretraining Large Language Models with NVFP4, 2025, appendix
#pragma once

#include "csrc/format/mx.h"

namespace lowbit {

static inline float nvfp4_tensor_scale(const Range& whole) {
  return round_scale(max_abs(whole) / (448.0f * 6.0f), DType::f32);
}

static inline float nvfp4_group(float tensor_scale, const Range& r, float shrink) {
  const float scale = max_abs(r) * shrink / 6.0f / tensor_scale;
  return scale > 0x1p-9f ? e4m3_to_f32(f32_to_e4m3(scale)) : 0x1p-9f;
}

static inline void nvfp4_encode(float scale, const float* w, int count, uint8_t* codes) {
  for (int i = 0; i < count; ++i) codes[i] = f32_to_e2m1(w[i] / scale);
}

}  // namespace lowbit
