// Canonical weights to packed ones and back, and float weights to canonical ones and back.
#pragma once

#include "csrc/base/tensor.h"
#include "csrc/format/layout.h"
#include "csrc/format/weight.h"

namespace lowbit {

// What quantize() produces; see lib/quantize.ts for the words. Group sizes of 0 stand for "the
// whole dimension". clip_search chooses each group's range by least squared error over a fixed grid
// of shrink factors instead of taking the full range.
struct Scheme {
  Format format;
  bool clip_search;
};

// Is the format well formed for [n, k]? Fills group sizes of 0 with n and k.
Status check_format(Format* format, int64_t n, int64_t k);
// Do the buffers of a weight of this format have these sizes?
Status check_sizes(const Format& format, int64_t n, int64_t k, const Sizes& got);
// Are the tables finite?
Status check_tables(const Format& format, int64_t n, int64_t k, const float* tables);
// And are the numbers of a canonical weight legal: codes that the kind has, zero bits behind each
// row, finite scales, zeros and tables? The first that is not is named by its position. (The e8m0
// scale 0xff is a code of the MX formats like any other: its group is NaN.)
Status check_canonical(const Canonical& c, const Sizes& got);

// In all of these k counts the columns of all planes, and values are those of one.
//
// Rounds to nearest even into the caller's buffers (canonical_sizes); tables are read. values: [n,
// k] row-major f32, f16 or bf16. NaN or inf in `values` is an ERR_ARGUMENT that names the position.
Status quantize(const void* values, DType dtype, int64_t n, int64_t k, const Scheme& scheme,
                const Buffers& to, Pool* pool);
// out: [n, k] row-major f32, f16 or bf16.
Status dequantize(const Canonical& c, void* out, DType dtype, Pool* pool);

// data: layout_bytes() bytes; padding is written as zero.
void pack(const Canonical& c, Layout layout, uint8_t* data, Pool* pool);
// The inverse, into canonical buffers.
void unpack(const Weight& w, const Buffers& to, Pool* pool);

}  // namespace lowbit
