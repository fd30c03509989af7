// mbarrier: a counter in shared memory that completes a phase once the expected arrivals and the
// bytes announced to it have come. A ring has two a stage: `full`, completed by copies, and
// `empty`, completed by the readers.
//
// wait(bar, parity) returns once the phase of that parity is complete. A fresh barrier is in phase
// 0, so waiting for parity 1 returns at once: that makes the first round of `empty` waits free.
#pragma once

#include <cstdint>

#include "csrc/cuda/smem.cuh"

namespace lowbit {
namespace {

__device__ __forceinline__ void barrier_init(uint64_t* bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(bar)), "r"(arrivals)
               : "memory");
}

// After the inits of one thread, before the block's barrier: the copy engine and the other blocks
// of the cluster see them too.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(bar)) : "memory");
}

// One arrival that also announces how many bytes copies will deliver in this phase.
__device__ __forceinline__ void barrier_expect(uint64_t* bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(bar)),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t* bar, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(smem_address(bar)), "r"(parity)
        : "memory");
  } while (done == 0);
}

// A place in a ring of kStages: slot and parity, counted instead of divided.
template <int kStages>
struct Ring {
  uint32_t slot = 0, parity = 0;
};
template <int kStages>
__device__ __forceinline__ void advance(Ring<kStages>& ring) {
  if (++ring.slot == kStages) {
    ring.slot = 0;
    ring.parity ^= 1;
  }
}

}  // namespace
}  // namespace lowbit
