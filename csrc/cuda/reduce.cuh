// Reductions. Every thread gets the result; over a block, whose size is a multiple of 32, the order
// of operations is fixed by its size.
#pragma once

#include <cuda_runtime.h>

namespace lowbit {

// `room` is shared memory for 32 values. `op` is associative; `none` is its neutral element.
template <class T, class Op>
static inline __device__ T reduce_block(T value, T none, const Op& op, T* room) {
  for (int step = 16; step > 0; step /= 2) value = op(value, __shfl_xor_sync(~0u, value, step));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  __syncthreads();  // `room` may still be read from the reduction before
  if (lane == 0) room[warp] = value;
  __syncthreads();
  int width = 1;  // of the warps' values, as a power of two
  while (width < warps) width *= 2;
  const int place = lane & (width - 1);
  value = place < warps ? room[place] : none;
  for (int step = width / 2; step > 0; step /= 2)
    value = op(value, __shfl_xor_sync(~0u, value, step));
  return value;
}

static inline __device__ double sum_block(double value, double* room) {
  return reduce_block(
      value, 0.0, [](double a, double b) { return a + b; }, room);
}
// The larger of two; a NaN is no maximum.
static inline __device__ float max_block(float value, float* room) {
  return reduce_block(
      value, -INFINITY, [](float a, float b) { return a > b ? a : b; }, room);
}

// Over the four lanes that hold one row of a product of the tensor cores.
static inline __device__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
static inline __device__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

}  // namespace lowbit
