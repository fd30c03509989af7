// What the run() of every CUDA row shares: blocks of work to grids, launch errors to Status.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "csrc/base/kernel.h"

namespace lowbit {

// What cudaGetLastError() says of the launch before it.
static inline Status launched() {
  const cudaError_t code = cudaGetLastError();
  if (code == cudaSuccess) return ok();
  return error(Code::cuda, "launch: %s", cudaGetErrorString(code));
}

// Blocks for `work` items of which each block takes `each`, by a loop where there are more than
// `most` blocks: the grids of rows that stride over their work.
static inline unsigned grid_for(int64_t work, int64_t each, int64_t most) {
  const int64_t blocks = (work + each - 1) / each;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

// Lets a kernel have `bytes` of dynamic shared memory, asked for once on each device.
template <class Kernel>
static cudaError_t allow_shared(Kernel* kernel, int bytes, std::atomic<uint64_t>& asked) {
  int device = 0;
  cudaError_t code = cudaGetDevice(&device);
  const uint64_t mine = uint64_t{1} << (device & 63);
  if (code != cudaSuccess || (asked.load(std::memory_order_relaxed) & mine) != 0) return code;
  code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (code == cudaSuccess) asked.fetch_or(mine, std::memory_order_relaxed);
  return code;
}

// Reports the value at `index` as out of range; the smallest index wins.
static inline __device__ void report(unsigned long long* check, int64_t index, int32_t value) {
  atomicMin(check, static_cast<unsigned long long>(index) << 32 |
                       static_cast<unsigned long long>(static_cast<uint32_t>(value)));
}

}  // namespace lowbit
