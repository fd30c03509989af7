// What the run() of every CUDA row shares: blocks of work to grids, launches that may begin early,
// launch errors to Status.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <type_traits>

#include "csrc/base/kernel.h"

namespace lowbit {

static inline Status launched(cudaError_t code) {
  if (code == cudaSuccess) return ok();
  cudaGetLastError();  // or the next launch reports it
  return error(Code::cuda, "launch: %s", cudaGetErrorString(code));
}
// Of the launch before it.
static inline Status launched() { return launched(cudaGetLastError()); }

// Launches a kernel whose first statement is wait_for_others(): where the GPU knows how (9.0 on),
// its blocks take their places while the kernel before it ends.
template <class... Params, class... Args>
static inline Status launch(const Ctx& ctx, void (*kernel)(Params...), dim3 blocks, dim3 threads,
                            size_t shared, Args... args) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(ctx.stream);
  config.attrs = &early;
  config.numAttrs = ctx.early ? 1 : 0;
  return launched(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// Before a kernel touches memory: lets the next one take its places, then waits until all that was
// launched before has ended and its writes are seen.
static inline __device__ void wait_for_others() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

// Calls f with 0 to kCount - 1 as compile-time constants: indices of arrays in registers.
template <int kCount, class F, int kAt = 0>
static __device__ __forceinline__ void unrolled(const F& f) {
  if constexpr (kAt < kCount) {
    f(std::integral_constant<int, kAt>{});
    unrolled<kCount, F, kAt + 1>(f);
  }
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
