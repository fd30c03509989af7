// stmatrix: a warp stores four 8 x 8 matrices of 16-bit values held in the layout of accumulators
// (thread l: row l / 4, columns 2 (l % 4) and the next). Lane l gives the address of the 16 bytes
// of row l % 8 of matrix l / 8.
#pragma once

#include "csrc/cuda/mbarrier.cuh"

namespace lowbit {
namespace {

__device__ __forceinline__ void stmatrix(void* p, const uint32_t (&w)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address(p)),
      "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
      : "memory");
}

}  // namespace
}  // namespace lowbit
