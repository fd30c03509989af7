// x made ready for the kernels: rows of f32 values, or of i8 codes, and one factor for each row
// that the epilogue multiplies in.
#pragma once

#include "csrc/linear/linear.h"
#include "csrc/quantize/rows.h"

namespace lowbit {

// The next `count` elements of a block of scratch, 64-byte aligned. Beginning at 0 it measures.
template <class T>
static inline T* take(uintptr_t* at, int64_t count) {
  T* p = reinterpret_cast<T*>(*at);
  *at += static_cast<uintptr_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
  return p;
}

// Can a float kernel read x where it lies?
static inline bool is_plain_f32(const LinearArgs& args) {
  return args.x.dtype == DType::f32 && args.compute == Compute::floating &&
         args.w.format.planes == 1;
}

// A row of x, once more for each further plane of w.
template <class T>
static inline void repeat_for_planes(const LinearArgs& args, T* row) {
  const int64_t columns = args.x.shape[1];
  for (int64_t at = columns; at < args.w.k; at += columns) {
    std::memcpy(row + at, row, static_cast<size_t>(columns) * sizeof(T));
  }
}

// The scale of row m of an x of codes with one scale a row.
static inline float code_scale(const LinearArgs& args, int64_t m) {
  return static_cast<const float*>(args.x_scale.data)[m * args.x_scale.strides[0]];
}

static inline float stage_one_plane(const LinearArgs& args, int64_t m, float* to) {
  const int64_t k = args.x.shape[1];
  load_floats(args.x.data, args.x.dtype, m * args.x.strides[0], k, to);
  if (!is_code_dtype(args.x.dtype)) {
    if (args.compute == Compute::floating) return 1.0f;
    return round_span(to, k, args.compute == Compute::int8 ? DType::i8 : DType::e4m3);
  }
  if (args.x_scale.rank == 1) return code_scale(args, m);
  const float* scale = static_cast<const float*>(args.x_scale.data) + m * args.x_scale.strides[0];
  for (int64_t k0 = 0; k0 < k; k0 += kScaleBlock) {
    const int64_t end = k0 + kScaleBlock < k ? k0 + kScaleBlock : k;
    const float s = scale[k0 / kScaleBlock];
    for (int64_t i = k0; i < end; ++i) to[i] *= s;
  }
  return 1.0f;
}

// Row m of x into to[0..w.k) as f32, exactly: the values, or the codes that `compute` or x's dtype
// makes of them, for every plane of w. Returns the factor of the row.
static inline float stage_floats(const LinearArgs& args, int64_t m, float* to) {
  const float factor = stage_one_plane(args, m, to);
  repeat_for_planes(args, to);
  return factor;
}

// Row m of x into to[0..w.k) as i8 codes, for every plane of w. `floats` holds K values of scratch.
// Returns the scale of the row.
static inline float stage_codes(const LinearArgs& args, int64_t m, float* floats, int8_t* to) {
  const int64_t k = args.x.shape[1];
  float scale;
  if (args.x.dtype == DType::i8) {
    std::memcpy(to, static_cast<const int8_t*>(args.x.data) + m * args.x.strides[0],
                static_cast<size_t>(k));
    scale = code_scale(args, m);
  } else {
    load_floats(args.x.data, args.x.dtype, m * args.x.strides[0], k, floats);
    scale = quantize_span(floats, k, DType::i8, to);
  }
  repeat_for_planes(args, to);
  return scale;
}

}  // namespace lowbit
