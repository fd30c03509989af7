// ldmatrix (sm_75 and newer): four matrices of 8 rows by 16 bytes from shared memory. Lanes 8i to
// 8i + 7 name the rows of matrix i; of each, lane l receives bytes 4 (l % 4) to + 3 of row l / 4.
#pragma once

#include <cstdint>

namespace lowbit {
namespace {

__device__ __forceinline__ void ldmatrix(uint32_t row, uint32_t& m0, uint32_t& m1, uint32_t& m2,
                                         uint32_t& m3) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m0), "=r"(m1), "=r"(m2), "=r"(m3)
               : "r"(row)
               : "memory");
}

// The same with each matrix transposed: of it, lane l receives the 16-bit elements l / 4 of rows
// 2 (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_across(uint32_t row, uint32_t& m0, uint32_t& m1,
                                                uint32_t& m2, uint32_t& m3) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m0), "=r"(m1), "=r"(m2), "=r"(m3)
               : "r"(row)
               : "memory");
}

}  // namespace
}  // namespace lowbit
