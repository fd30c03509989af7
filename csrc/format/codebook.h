// nf4, fp4, codebook4: codes of four bits are positions in a table of sixteen numbers, with one
// scale per group.
//
//   byte 0   k1 k1 k1 k1 k0 k0 k0 k0      as int4; the bits behind a row's last code are zero
//
//   value       scale * table[code]
//   nf4         the quantiles of a normal distribution, scaled to -1 .. 1, with an exact 0 = code 7
//   fp4         code s e e m, the table of bitsandbytes: 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4 and,
//               from code 8 on, their negatives (code 8 is -0). It is e2m1 / 6 in another order,
//               but its subnormal is 1/192 instead of 1/12. Files of bitsandbytes hold these codes.
//               For e2m1 itself take mxfp4 or nvfp4, or codebook4 with its sixteen numbers.
//   codebook4   the caller's f32 numbers, in any order, equal ones allowed; stored with the weight:
//               one table for the matrix, one a row, or one for each scale. Finite.
//   scale       max|w| / max|table|, at least 1e-12, rounded to its dtype before codes are made
//   rounding    the table's number nearest to w / scale (an f32); halfway between two: the lower
//               one. Of equal numbers (0 and -0 too) the one with the lowest code.
//   groups      32, 64 or 128 columns, a row (channel), or the matrix (tensor)
//   special     a group of zeros: the number nearest to 0. quantize() refuses NaN and inf.
//   source      nf4: Dettmers et al., QLoRA, NeurIPS 2023, appendix E
//               fp4: Dettmers et al., bitsandbytes; sign, two exponent bits, one mantissa bit
#pragma once

#include "csrc/format/group.h"

namespace lowbit {

// A table made ready for rounding. t has as many numbers of the sorted table below it as there are
// i with t > below[i]; exact, because below[i] is the largest f32 that is not above the midpoint.
struct Codebook {
  float below[15];
  uint8_t code[16];  // of the i-th number in order
  float largest;     // magnitude
  const float* table;
};

static inline Codebook codebook_of(const float* table) {
  Codebook b = {};
  b.table = table;
  for (int i = 0; i < 16; ++i) {
    const float magnitude = table[i] < 0.0f ? -table[i] : table[i];
    b.largest = magnitude > b.largest ? magnitude : b.largest;
    int at = i;
    for (; at > 0 && table[b.code[at - 1]] > table[i]; --at) b.code[at] = b.code[at - 1];
    b.code[at] = static_cast<uint8_t>(i);
  }
  for (int i = 0; i < 15; ++i) {
    const float low = table[b.code[i]], high = table[b.code[i + 1]];
    const double middle = (static_cast<double>(low) + static_cast<double>(high)) / 2;
    const float nearest = static_cast<float>(middle);
    const bool above = static_cast<double>(nearest) > middle;
    b.below[i] = above ? bits_float(static_cast<uint32_t>(
                             ordered(ordered(static_cast<int32_t>(float_bits(nearest))) - 1)))
                       : nearest;
  }
  for (int i = 1; i < 16; ++i) {
    if (table[b.code[i]] == table[b.code[i - 1]]) b.code[i] = b.code[i - 1];
  }
  return b;
}

static inline Uniform codebook_group(const Codebook& book, const Range& r, float shrink,
                                     DType scale_dtype) {
  Uniform u = {};
  u.scale =
      round_scale(book.largest > 0.0f ? max_abs(r) * shrink / book.largest : 0.0f, scale_dtype);
  u.book = &book;
  return u;
}

// count <= kChunk.
static inline void codebook_encode(const Codebook& book, float scale, const float* w, int count,
                                   uint8_t* codes) {
  float t[kChunk];
  int32_t rank[kChunk];
  for (int i = 0; i < count; ++i) {
    t[i] = w[i] / scale;
    rank[i] = 0;
  }
  for (int j = 0; j < 15; ++j) {
    const float below = book.below[j];
    for (int i = 0; i < count; ++i) rank[i] += t[i] > below ? 1 : 0;
  }
  for (int i = 0; i < count; ++i) codes[i] = book.code[rank[i]];
}

}  // namespace lowbit
