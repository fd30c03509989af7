// movmatrix (sm_75 and newer): transposes 8 x 8 numbers of 16 bits that a warp holds. Lane l gives
// numbers 2 (l % 4) and the next of row l / 4 and receives those of the transposed matrix.
#pragma once

#include <cstdint>

namespace lowbit {
namespace {

__device__ __forceinline__ uint32_t transposed(uint32_t w) {
  uint32_t t;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(w));
  return t;
}

}  // namespace
}  // namespace lowbit
