// Tensor: a view of memory that somebody else owns. Plain data, copied freely; every op's arguments
// hold these.
#pragma once

#include <cstdint>

#include "csrc/base/dtype.h"

namespace lowbit {

inline constexpr int kMaxRank = 5;

enum class DeviceKind : int32_t { cpu, cuda };

// Which device owns the memory. `id` tells apart two handles opened on the same hardware: an op
// takes tensors of one handle only, because each handle has a queue of its own.
struct DeviceTag {
  DeviceKind kind;
  int32_t id;
};
static constexpr bool same_device(DeviceTag a, DeviceTag b) {
  return a.kind == b.kind && a.id == b.id;
}

struct Tensor {
  void* data;                 // first element of the view; null where numel is 0
  int64_t shape[kMaxRank];    // sizes, each >= 0
  int64_t strides[kMaxRank];  // in elements, each >= 0
  int32_t rank;               // 0 to kMaxRank
  DType dtype;                // none: the optional argument was left out
  DeviceTag device;
};

static constexpr bool present(const Tensor& t) { return t.dtype != DType::none; }

static constexpr Tensor absent_tensor() {
  Tensor t = {};
  t.dtype = DType::none;
  return t;
}

static constexpr int64_t numel(const Tensor& t) {
  int64_t n = 1;
  for (int i = 0; i < t.rank; ++i) n *= t.shape[i];
  return n;
}

// Row-major without gaps; dimensions of size 1 may have any stride.
static constexpr bool is_contiguous(const Tensor& t) {
  int64_t expected = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides[i] != expected) return numel(t) == 0;
    expected *= t.shape[i];
  }
  return true;
}

// The last dimension has no gaps: what most kernels ask of their inputs.
static constexpr bool rows_contiguous(const Tensor& t) {
  return t.rank == 0 || t.shape[t.rank - 1] <= 1 || t.strides[t.rank - 1] == 1 || numel(t) == 0;
}

static constexpr bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] != b.shape[i]) return false;
  }
  return true;
}

// Bytes from the first to one past the last element that the view reaches.
static constexpr int64_t span_bytes(const Tensor& t) {
  if (numel(t) == 0) return 0;
  int64_t last = 0;
  for (int i = 0; i < t.rank; ++i) last += (t.shape[i] - 1) * t.strides[i];
  return (last + 1) * dtype_bytes(t.dtype);
}

// Whether two views may touch the same byte (by their spans: interleaved views count as
// overlapping).
static constexpr bool overlaps(const Tensor& a, const Tensor& b) {
  const uint8_t* pa = static_cast<const uint8_t*>(a.data);
  const uint8_t* pb = static_cast<const uint8_t*>(b.data);
  const int64_t na = span_bytes(a), nb = span_bytes(b);
  return pa != nullptr && pb != nullptr && na > 0 && nb > 0 && pa < pb + nb && pb < pa + na;
}

// "[7, 4096]", for messages.
struct ShapeText {
  char text[112];
};
ShapeText shape_text(const Tensor& t);

// A contiguous tensor over `data`.
Tensor make_tensor(void* data, DType dtype, DeviceTag device, const int64_t* shape, int rank);

}  // namespace lowbit
