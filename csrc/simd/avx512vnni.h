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

// The same with the signed bytes in a register.
static inline __m512i add_products(__m512i acc, __m512i u, __m512i s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
  return acc;
}

// Two of the first kind, one after the other: where a loop changes a sum in two instructions, GCC
// 12 takes another register for it half way, and copies.
static inline __m512i add_products(__m512i acc, __m512i u0, const uint8_t* p0, __m512i u1,
                                   const uint8_t* p1) {
  struct Four {
    uint8_t bytes[4];
  };
  asm("vpdpbusd %2%{1to16%}, %1, %0\n\tvpdpbusd %4%{1to16%}, %3, %0"
      : "+&v"(acc)
      : "v"(u0), "m"(*reinterpret_cast<const Four*>(p0)), "v"(u1),
        "m"(*reinterpret_cast<const Four*>(p1)));
  return acc;
}

// The same for two sums that meet the same signed bytes: a0 plus u0 by p0 plus v0 by p1, and a1
// likewise. Each four bytes are brought to a register once.
static inline void add_products(__m512i* a0, __m512i* a1, __m512i u0, __m512i u1, const uint8_t* p0,
                                __m512i v0, __m512i v1, const uint8_t* p1) {
  struct Four {
    uint8_t bytes[4];
  };
  __m512i s;
  asm("vpbroadcastd %7, %2\n\tvpdpbusd %2, %3, %0\n\tvpdpbusd %2, %4, %1\n\t"
      "vpbroadcastd %8, %2\n\tvpdpbusd %2, %5, %0\n\tvpdpbusd %2, %6, %1"
      : "+&v"(*a0), "+&v"(*a1), "=&v"(s)
      : "v"(u0), "v"(u1), "v"(v0), "v"(v1), "m"(*reinterpret_cast<const Four*>(p0)),
        "m"(*reinterpret_cast<const Four*>(p1)));
}

// What a sum begins with: *p in all lanes. Of a value that it knows to be a broadcast GCC 12 keeps
// a second copy across the loop that follows, and has no registers left for tiles of 12 rows.
static inline __m512i begin_sum(const int32_t* p) {
  __m512i sum;
  asm("vpbroadcastd %1, %0" : "=v"(sum) : "m"(*p));
  return sum;
}

}  // namespace lowbit::avx512
