// The tile in shared memory that the copy engine writes and wgmma reads: rows of 128 bytes (64 f16
// or 128 eight-bit values of K), base aligned to 1024 bytes. Chunks of 16 bytes of row r are
// XORed with r % 8, so that eight rows at one K lie in eight different groups of banks:
//
//   byte k of row r   at r * 128 + ((k / 16) ^ (r % 8)) * 16 + k % 16
#pragma once

#include <cstdint>

namespace lowbit {
namespace {

inline constexpr int kSwizzleAlign = 1024, kSwizzleRow = 128;

__host__ __device__ __forceinline__ uint32_t swizzled(uint32_t r, uint32_t k) {
  return r * 128 + ((((k >> 4) ^ (r & 7)) << 4) | (k & 15));
}

// Dynamic shared memory starts at a multiple of 16 only: one tile's alignment is asked for on top.
__device__ __forceinline__ uint8_t* align_tile(uint8_t* p) {
  const uint32_t a = static_cast<uint32_t>(__cvta_generic_to_shared(p));
  return p + ((kSwizzleAlign - (a & (kSwizzleAlign - 1))) & (kSwizzleAlign - 1));
}

}  // namespace
}  // namespace lowbit
