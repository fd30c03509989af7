// AMX: the eight tile registers, named by number, as single instructions. A tile is up to 16 rows
// of 64 bytes.
//
// GCC 12's own intrinsics do not say that they read and write memory, so the compiler may move the
// stores that make a tile's bytes behind the load that takes them; these do say so.
#pragma once

#include <cstdint>

namespace lowbit::amx {

// What ldtilecfg reads: rows and bytes a row of each tile.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// All eight tiles full: 16 rows of 64 bytes.
static inline void configure_tiles() {
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  asm volatile("ldtilecfg %0" ::"m"(config));
}
static inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int kTile>
static inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// Sixteen rows of 64 bytes, `stride` bytes from each other.
template <int kTile>
static inline void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
static inline void store_tile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}

// The products: row m of tile A holds 64 bytes of x, row j of tile B four bytes (or two bf16) of
// each of 16 columns; C[m][n] += sum over j of A[m][j] . B[j][n], in int32 or f32.
struct SignedBytes {  // s8 by s8
  template <int kC, int kA, int kB>
  static inline void multiply() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};
struct UnsignedBytes {  // s8 by u8
  template <int kC, int kA, int kB>
  static inline void multiply() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};
struct Bf16Pairs {
  template <int kC, int kA, int kB>
  static inline void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};

}  // namespace lowbit::amx
