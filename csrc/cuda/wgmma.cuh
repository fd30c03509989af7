// wgmma (sm_90a): four warps together multiply a tile of 64 rows by N columns and 32 bytes of K,
// d[64, N] = or += a[64, K] * b[N, K]^T, with b in shared memory and a in shared memory (ss) or in
// registers (rs); both with K innermost, in the tiles of swizzle.cuh.
//
//   accumulators   thread t, warp w = t / 32 % 4, lane l: d[4j], d[4j + 1] are row 16w + l / 4,
//                  columns 8j + 2 (l % 4) and the next; d[4j + 2], d[4j + 3] the same, 8 rows
//                  below. They are raw bits: f32, or s32 of the integer types.
//   a (rs)         a[0] is row 16w + l / 4, K bytes 4 (l % 4) to + 3; a[1] the row 8 below; a[2]
//   and
//                  a[3] the same two rows 16 bytes further along K.
//
// The sequence: wgmma_fence() after the last write of a register operand; the products;
// wgmma_commit(); wgmma_wait<pending>(). Accumulators are valid after the wait only, and only
// pin() keeps the compiler from reading them earlier. Fragments made in registers are pinned
// before the fence too: the compiler sinks their computation behind it otherwise, and then makes
// every product wait (C7519, C7520 of ptxas; treat any C75xx as an error).
#pragma once

#include "csrc/cuda/mbarrier.cuh"

namespace lowbit {
namespace {

// What follows "m64nN" in the instruction, and its trailing immediates: signs of a and b, and for
// 16-bit types whether an operand is transposed.
struct MmaBf16 {
  static constexpr char form[] = "k16.f32.bf16.bf16", ss[] = ", 1, 1, 0, 0", rs[] = ", 1, 1, 0";
};
struct MmaF16 {
  static constexpr char form[] = "k16.f32.f16.f16", ss[] = ", 1, 1, 0, 0", rs[] = ", 1, 1, 0";
};
// The same with b turned: K rows of N, wgmma_rows().
struct MmaBf16Rows {
  static constexpr char form[] = "k16.f32.bf16.bf16", ss[] = ", 1, 1, 0, 1", rs[] = ", 1, 1, 1";
};
struct MmaF16Rows {
  static constexpr char form[] = "k16.f32.f16.f16", ss[] = ", 1, 1, 0, 1", rs[] = ", 1, 1, 1";
};
struct MmaE4m3 {
  static constexpr char form[] = "k32.f32.e4m3.e4m3", ss[] = ", 1, 1", rs[] = ", 1, 1";
};
struct MmaE4m3E5m2 {
  static constexpr char form[] = "k32.f32.e4m3.e5m2", ss[] = ", 1, 1", rs[] = ", 1, 1";
};
struct MmaE5m2E4m3 {
  static constexpr char form[] = "k32.f32.e5m2.e4m3", ss[] = ", 1, 1", rs[] = ", 1, 1";
};
struct MmaE5m2 {
  static constexpr char form[] = "k32.f32.e5m2.e5m2", ss[] = ", 1, 1", rs[] = ", 1, 1";
};
struct MmaS8 {
  static constexpr char form[] = "k32.s32.s8.s8", ss[] = "", rs[] = "";
};
struct MmaU8S8 {
  static constexpr char form[] = "k32.s32.u8.s8", ss[] = "", rs[] = "";
};

// Start address / 16 in bits 0..13, leading offset (unused in this layout) 1 in 16..29, distance of
// 8 rows / 16 = 64 in 32..45, swizzle of 128 bytes in 62..63.
__device__ __forceinline__ uint64_t wgmma_tile(const void* tile) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16 |
         (smem_address(tile) & 0x3FFFF) >> 4;
}
// Of 16-bit values that have N innermost: boxes of 64 of N by any multiple of 8 of K, box_bytes
// apart, each a tile of rows of 128 bytes. The leading offset is the distance of boxes. 16 of K
// further: 2048 >> 4 more.
__device__ __forceinline__ uint64_t wgmma_rows(const void* tile, uint32_t box_bytes) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{box_bytes >> 4} << 16 |
         (smem_address(tile) & 0x3FFFF) >> 4;
}
inline constexpr uint64_t kRowsStep = 2048 >> 4;
// Added to a descriptor: 32 bytes of K further; 64 rows further.
inline constexpr uint64_t kTileStep = 2, kTileSlab = 64 * 128 >> 4;

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

template <class Mma, int N>
struct Wgmma;

// The PTX names every register, and C++ has no way to write such a list but to spell it.
#define LB_D4  "%0,%1,%2,%3"
#define LB_D8  LB_D4 ",%4,%5,%6,%7"
#define LB_D16 LB_D8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define LB_D32 LB_D16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LB_D48 LB_D32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define LB_D56 LB_D48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define LB_D64 LB_D48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define LB_D40 LB_D32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define LB_D88                                                       \
  LB_D64                                                             \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
  ",%80,%81,%82,%83,%84,%85,%86,%87"
#define LB_D96                                                       \
  LB_D64                                                             \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
  ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define LB_D128                                                                  \
  LB_D96                                                                         \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
  ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define LB_R4(i)   "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define LB_R8(i)   LB_R4(i), LB_R4(i + 4)
#define LB_R16(i)  LB_R8(i), LB_R8(i + 8)
#define LB_R32(i)  LB_R16(i), LB_R16(i + 16)
#define LB_R40(i)  LB_R32(i), LB_R8(i + 32)
#define LB_R48(i)  LB_R32(i), LB_R16(i + 32)
#define LB_R56(i)  LB_R48(i), LB_R8(i + 48)
#define LB_R64(i)  LB_R32(i), LB_R32(i + 32)
#define LB_R88(i)  LB_R64(i), LB_R16(i + 64), LB_R8(i + 80)
#define LB_R96(i)  LB_R64(i), LB_R32(i + 64)
#define LB_R128(i) LB_R64(i), LB_R64(i + 64)

// R accumulators a thread; i0.. are the numbers of the operands after them. `add` 0: d is replaced.
#define LB_WGMMA(N, R, i0, i1, i2, i3, i4, i5, i6, i7)                                             \
  template <class Mma>                                                                             \
  struct Wgmma<Mma, N> {                                                                           \
    static __device__ __forceinline__ void ss(uint32_t (&d)[R], uint64_t a, uint64_t b, int add) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2                                        \
                   ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "%" #i3 " {" LB_D##R               \
                   "}, %" #i0 ", %" #i1 ", p%" #i4 ";\n}\n"                                        \
                   : LB_R##R(0)                                                                    \
                   : "l"(a), "l"(b), "r"(add), "C"(Mma::form), "C"(Mma::ss));                      \
    }                                                                                              \
    static __device__ __forceinline__ void rs(uint32_t (&d)[R], const uint32_t (&a)[4],            \
                                              uint64_t b, int add) {                               \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5                                        \
                   ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "%" #i6 " {" LB_D##R               \
                   "}, {%" #i0 ",%" #i1 ",%" #i2 ",%" #i3 "}, %" #i4 ", p%" #i7 ";\n}\n"           \
                   : LB_R##R(0)                                                                    \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "C"(Mma::form), \
                     "C"(Mma::rs));                                                                \
    }                                                                                              \
  };

LB_WGMMA(8, 4, 4, 5, 6, 7, 8, 9, 10, 11)
LB_WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14, 15)
LB_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22, 23)
LB_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38, 39)
LB_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46, 47)
LB_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54, 55)
LB_WGMMA(112, 56, 56, 57, 58, 59, 60, 61, 62, 63)
LB_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70, 71)
LB_WGMMA(176, 88, 88, 89, 90, 91, 92, 93, 94, 95)
LB_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102, 103)
LB_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134, 135)

#undef LB_WGMMA
#undef LB_R128
#undef LB_R96
#undef LB_R88
#undef LB_R64
#undef LB_R56
#undef LB_R48
#undef LB_R40
#undef LB_R32
#undef LB_R16
#undef LB_R8
#undef LB_R4
#undef LB_D128
#undef LB_D96
#undef LB_D88
#undef LB_D64
#undef LB_D56
#undef LB_D48
#undef LB_D40
#undef LB_D32
#undef LB_D16
#undef LB_D8
#undef LB_D4

}  // namespace
}  // namespace lowbit
