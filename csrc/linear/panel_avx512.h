// Scales and zero points of a block of panel16 as vectors of sixteen rows.
#pragma once

#include "csrc/format/format.h"
#include "csrc/simd/avx512.h"

namespace lowbit::avx512 {

// Ahead of the loads by 4 KiB, so that a panel's stream from memory never waits; more would reach
// past the end of many panels for nothing.
inline constexpr int64_t kPrefetch = 4096;

// A line of a panel's stream, asked for ahead of a tile that takes kProducts instructions for it.
// With few of them memory is all that a tile waits for: lines go to L1, and past L2, for they are
// read once. With more, each line takes longer than memory needs for it, and requests from L1 hold
// up the loads of x meanwhile: lines go to L2, well ahead, and to L1 shortly before their use.
// (NOTES.md has the distances that were tried.)
template <int kProducts>
static inline void prefetch_line(const uint8_t* p) {
  const char* line = reinterpret_cast<const char*>(p);
  if constexpr (kProducts <= 4) {
    _mm_prefetch(line + kPrefetch, _MM_HINT_NTA);
  } else {
    _mm_prefetch(line + 8192, _MM_HINT_T1);
    _mm_prefetch(line + 1024, _MM_HINT_T0);
  }
}

// A line of a tile of x, for a kernel that takes kProducts products for it. What few panels read
// comes from L3 each time, and the hardware alone asks for it too late.
template <int kProducts>
static inline void prefetch_x(const uint8_t* p) {
  if constexpr (kProducts > 12) {
    _mm_prefetch(reinterpret_cast<const char*>(p) + 2048, _MM_HINT_T1);
  }
}

static inline __m512 load_scales(const uint8_t* scales, DType dtype) {
  if (dtype_bytes(dtype) == 1) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
    return dtype == DType::e8m0 ? e8m0_16(bytes) : e4m3_16(bytes);
  }
  return load_16(scales, dtype);
}

// `middle` is the zero point of the symmetric kind.
static inline __m512 load_zeros(const uint8_t* zeros, ZeroType type, float middle) {
  if (type == ZeroType::f32) return load_16(zeros, DType::f32);
  if (type == ZeroType::none) return _mm512_set1_ps(middle);
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}

}  // namespace lowbit::avx512
