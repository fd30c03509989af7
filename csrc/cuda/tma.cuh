// The copy engine: boxes of a matrix through a tensor map, and runs of bytes without one.
//
// Loads complete in bytes on an mbarrier. Stores read shared memory that threads wrote with
// ordinary instructions: each writer executes async_fence(), then a barrier, then one thread
// stores, commits, and waits before the memory is written again.
#pragma once

#include <cuda.h>  // CUtensorMap; the driver itself is not linked

#include "csrc/cuda/mbarrier.cuh"

namespace lowbit {
namespace {

// L2 policies of loads: weights are read once, activations by every block.
__device__ __forceinline__ uint64_t evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t evict_last() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// The first load through a map waits for the map itself: this asks for it ahead.
__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The box of the map at column x, row y. What lies outside the matrix arrives as zeros and counts
// as delivered.
__device__ __forceinline__ void tma_load(void* to, const CUtensorMap* map, int x, int y,
                                         uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(smem_address(to)),
      "l"(map), "r"(x), "r"(y), "r"(smem_address(bar))
      : "memory");
}
__device__ __forceinline__ void tma_load(void* to, const CUtensorMap* map, int x, int y,
                                         uint64_t* bar, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(smem_address(to)),
      "l"(map), "r"(x), "r"(y), "r"(smem_address(bar)), "l"(policy)
      : "memory");
}
// The same into every block of the cluster that `mask` names: at the same offset of its shared
// memory, completing on its own barrier at the same offset.
__device__ __forceinline__ void tma_load_multicast(void* to, const CUtensorMap* map, int x, int y,
                                                   uint64_t* bar, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
      "cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(smem_address(to)),
      "l"(map), "r"(x), "r"(y), "r"(smem_address(bar)), "h"(mask)
      : "memory");
}
// Clipped to the matrix.
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const void* from, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
      "r"(x), "r"(y), "r"(smem_address(from))
      : "memory");
}
// `bytes` is a multiple of 16, both addresses are.
__device__ __forceinline__ void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* bar,
                                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], %2, [%3], %4;" ::"r"(smem_address(to)),
      "l"(from), "r"(bytes), "r"(smem_address(bar)), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void async_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Stores have read their shared memory; store_wait_all: and have written.
__device__ __forceinline__ void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void store_wait_all() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

}  // namespace
}  // namespace lowbit
