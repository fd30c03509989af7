// vpdpbusd as one instruction.
#pragma once

#include "csrc/simd/avx512.h"

namespace lowbit::avx512 {

// acc plus, in each lane of 4 bytes, the products of u's unsigned bytes and the four signed bytes
// at p. GCC 12 makes of the intrinsic a broadcast, the product and, in a loop over many sums, two
// copies of the sum; hence the instruction itself.
static inline __m512i add_products(__m512i acc, __m512i u, const uint8_t* p) {
  struct Four {
    uint8_t bytes[4];
  };
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(u), "m"(*reinterpret_cast<const Four*>(p)));
  return acc;
}

}  // namespace lowbit::avx512
