#include "csrc/base/convert.h"

#include <cstring>

namespace lowbit {

bool convertible(DType to, DType from) {
  if (to == from) return true;
  return kDTypes[static_cast<int>(to)].floating && kDTypes[static_cast<int>(from)].floating;
}

bool convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count) {
  if (!convertible(to_dtype, from_dtype)) return false;
  if (count <= 0) return true;
  if (to_dtype == from_dtype) {
    std::memcpy(to, from, static_cast<size_t>(count * dtype_bytes(to_dtype)));
    return true;
  }
  // The two pairs that whole models pass through get loops of their own, which compilers vectorise.
  if (to_dtype == DType::bf16 && from_dtype == DType::f32) {
    for (int64_t i = 0; i < count; ++i) {
      static_cast<uint16_t*>(to)[i] = f32_to_bf16(static_cast<const float*>(from)[i]);
    }
    return true;
  }
  if (to_dtype == DType::f32 && from_dtype == DType::bf16) {
    for (int64_t i = 0; i < count; ++i) {
      static_cast<float*>(to)[i] = bf16_to_f32(static_cast<const uint16_t*>(from)[i]);
    }
    return true;
  }
  for (int64_t i = 0; i < count; ++i) store_f32(to, to_dtype, i, load_f32(from, from_dtype, i));
  return true;
}

// Calls row(offset, length) for each innermost run of a view, in row-major order; length counts
// elements.
template <class Row>
static void each_row(const Tensor& t, const Row& row) {
  if (numel(t) == 0) return;
  if (t.rank == 0) {
    row(0, 1);
    return;
  }
  int64_t index[kMaxRank] = {};
  const int last = t.rank - 1;
  for (;;) {
    int64_t offset = 0;
    for (int i = 0; i < last; ++i) offset += index[i] * t.strides[i];
    row(offset, t.shape[last]);
    int d = last - 1;
    while (d >= 0 && ++index[d] == t.shape[d]) index[d--] = 0;
    if (d < 0) return;
  }
}

void gather(void* to, DType to_dtype, const Tensor& from) {
  if (is_contiguous(from)) {
    convert(to, to_dtype, from.data, from.dtype, numel(from));
    return;
  }
  const int64_t bytes = dtype_bytes(from.dtype), to_bytes = dtype_bytes(to_dtype);
  const int64_t stride = from.rank > 0 ? from.strides[from.rank - 1] : 1;
  uint8_t* cursor = static_cast<uint8_t*>(to);
  each_row(from, [&](int64_t offset, int64_t length) {
    const uint8_t* row = static_cast<const uint8_t*>(from.data) + offset * bytes;
    if (stride == 1) {
      convert(cursor, to_dtype, row, from.dtype, length);
    } else {
      for (int64_t i = 0; i < length; ++i) {
        convert(cursor + i * to_bytes, to_dtype, row + i * stride * bytes, from.dtype, 1);
      }
    }
    cursor += length * to_bytes;
  });
}

void scatter(const Tensor& to, const void* from, DType from_dtype) {
  if (is_contiguous(to)) {
    convert(to.data, to.dtype, from, from_dtype, numel(to));
    return;
  }
  const int64_t bytes = dtype_bytes(to.dtype), from_bytes = dtype_bytes(from_dtype);
  const int64_t stride = to.rank > 0 ? to.strides[to.rank - 1] : 1;
  const uint8_t* cursor = static_cast<const uint8_t*>(from);
  each_row(to, [&](int64_t offset, int64_t length) {
    uint8_t* row = static_cast<uint8_t*>(to.data) + offset * bytes;
    if (stride == 1) {
      convert(row, to.dtype, cursor, from_dtype, length);
    } else {
      for (int64_t i = 0; i < length; ++i) {
        convert(row + i * stride * bytes, to.dtype, cursor + i * from_bytes, from_dtype, 1);
      }
    }
    cursor += length * from_bytes;
  });
}

}  // namespace lowbit
