// cp.async (sm_80 and newer): device memory to shared memory without registers in between.
//
// A thread's copies since its last commit are a group; cp_async_wait<n>() returns when all but its
// n latest groups have landed. Other threads see them after a barrier.
#pragma once

#include <cstdint>

#include "csrc/cuda/smem.cuh"

namespace lowbit {
namespace {

// Sixteen bytes that pass by L1, of which the first `bytes` are read and the others become zeros.
__device__ __forceinline__ void cp_async_16(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
// 4, 8 or 16 bytes, or as many zeros.
template <int kBytes>
__device__ __forceinline__ void cp_async(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
               "r"(there ? kBytes : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace
}  // namespace lowbit
