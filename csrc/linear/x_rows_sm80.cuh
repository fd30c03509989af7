// x as the rows of the tensor cores read it: where it lies, or a copy in scratch.
#pragma once

#include "csrc/cuda/launch.cuh"
#include "csrc/format/layout.h"
#include "csrc/linear/linear.h"

namespace lowbit {
namespace {

struct Matrix {
  const void* data;
  int64_t rows, columns, row_bytes;
};

// Rows of x as tensor cores' kernels read them begin at multiples of 16 bytes and do not overlap;
// any other x is copied into scratch first, and one that meets several planes of w as often.
static inline bool reads_x_where_it_lies(const LinearArgs& args) {
  if (args.w.format.planes > 1) return false;
  const int64_t size = dtype_bytes(args.x.dtype), stride = args.x.strides[0];
  if (reinterpret_cast<uintptr_t>(args.x.data) % 16 != 0) return false;
  return args.x.shape[0] == 1 || (stride * size % 16 == 0 && stride >= args.w.k);
}

static inline int64_t x_pitch(const LinearArgs& args) {
  return round_up(args.w.k * dtype_bytes(args.x.dtype), 16);
}

static size_t x_workspace(const LinearArgs& args, int) {
  return reads_x_where_it_lies(args) ? 0 : static_cast<size_t>(args.x.shape[0] * x_pitch(args));
}

template <class Element>
__global__ void __launch_bounds__(256)
    copy_rows(const Element* from, int64_t stride, int64_t columns, Element* to, int64_t pitch,
              int64_t k) {
  from += blockIdx.x * stride;
  to += blockIdx.x * pitch;
  for (int64_t plane = 0; plane < k; plane += columns) {
    for (int64_t i = threadIdx.x; i < columns; i += 256) to[plane + i] = from[i];
  }
}

// x where it lies, or its copy.
static Status x_matrix(const LinearArgs& args, const Ctx& ctx, Matrix* x) {
  const int64_t m = args.x.shape[0], k = args.w.k, size = dtype_bytes(args.x.dtype);
  *x = {args.x.data, m, k, m == 1 ? x_pitch(args) : args.x.strides[0] * size};
  if (reads_x_where_it_lies(args) || k == 0) return ok();
  x->data = ctx.scratch;
  x->row_bytes = x_pitch(args);
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const auto blocks = static_cast<unsigned>(m);
  if (size == 2) {
    copy_rows<<<blocks, 256, 0, stream>>>(static_cast<const uint16_t*>(args.x.data),
                                          args.x.strides[0], args.x.shape[1],
                                          static_cast<uint16_t*>(ctx.scratch), x->row_bytes / 2, k);
  } else {
    copy_rows<<<blocks, 256, 0, stream>>>(static_cast<const uint8_t*>(args.x.data),
                                          args.x.strides[0], args.x.shape[1],
                                          static_cast<uint8_t*>(ctx.scratch), x->row_bytes, k);
  }
  return launched();
}

}  // namespace
}  // namespace lowbit
