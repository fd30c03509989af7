// f32, f16, bf16: weights kept as floats, little endian, without scales.
//
//   f32    s  8 exponent bits  23 mantissa bits   bias 127
//   f16    s  5 exponent bits  10 mantissa bits   bias  15   largest 65504, least 2^-24
//   bf16   s  8 exponent bits   7 mantissa bits   bias 127   the upper half of an f32
//
//   value       the element
//   rounding    to nearest even, subnormals kept (the conversions of base/dtype.h)
//   special     quantize() refuses NaN, inf and numbers that would round to inf: a weight that the
//               format can't hold is better found here than in the output of a model. Codes that
//               hold NaN or inf (in other people's files) are kept and decode to them.
#pragma once

#include "csrc/format/group.h"

namespace lowbit {

static inline DType float_dtype(Kind kind) {
  return kind == Kind::f16 ? DType::f16 : kind == Kind::bf16 ? DType::bf16 : DType::f32;
}

// The least magnitude that rounds to inf: half a unit above the largest number.
static inline float float_overflow(DType dtype) {
  return dtype == DType::f16    ? 65520.0f
         : dtype == DType::bf16 ? 0x1.ffp127f
                                : bits_float(0x7f800000u);
}

}  // namespace lowbit
