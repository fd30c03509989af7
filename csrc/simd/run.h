// Runs: consecutive elements of a tensor as f32. f32 elements are used where they lie; others pass
// through a short buffer in L1.
#pragma once

#include "csrc/base/rows.h"
#include "csrc/simd/convert.h"

namespace lowbit {

// Floats of a buffer on the stack: 2 KiB, so that the three or four that an op needs stay in an L1
// of 32 KiB beside what they are filled from.
inline constexpr int64_t kRun = 512;

static inline const float* run_floats(const Tensor& t, int64_t first, int64_t count,
                                      float* buffer) {
  if (t.dtype == DType::f32) return static_cast<const float*>(t.data) + first;
  load_floats(t.data, t.dtype, first, count, buffer);
  return buffer;
}

// Where the results of a run go, and, once they are there, their way into the tensor.
static inline float* run_room(const Tensor& t, int64_t first, float* buffer) {
  return t.dtype == DType::f32 ? static_cast<float*>(t.data) + first : buffer;
}
static inline void run_keep(const Tensor& t, int64_t first, int64_t count, const float* room) {
  if (t.dtype != DType::f32) store_floats(t.data, t.dtype, first, count, room);
}

// to[to_first + i] = from[from_first + i], bits if the dtypes are equal, else rounded.
static inline void run_convert(const Tensor& to, int64_t to_first, const Tensor& from,
                               int64_t from_first, int64_t count) {
  if (to.dtype == from.dtype) {
    std::memmove(element(to.data, to.dtype, to_first), element(from.data, from.dtype, from_first),
                 static_cast<size_t>(count * dtype_bytes(to.dtype)));
  } else if (to.dtype == DType::f32) {
    load_floats(from.data, from.dtype, from_first, count, static_cast<float*>(to.data) + to_first);
  } else if (from.dtype == DType::f32) {
    store_floats(to.data, to.dtype, to_first, count,
                 static_cast<const float*>(from.data) + from_first);
  } else {
    float buffer[kRun];
    for (int64_t i = 0; i < count; i += kRun) {
      const int64_t width = count - i < kRun ? count - i : kRun;
      load_floats(from.data, from.dtype, from_first + i, width, buffer);
      store_floats(to.data, to.dtype, to_first + i, width, buffer);
    }
  }
}

}  // namespace lowbit
