// The tiles of the AVX-512 rows in the float GEMM of gemm_f32.h.
//
// Tile      16 rows of w by 12 rows of x: 12 sums and a vector of w; x is broadcast by the FMA
//           itself. 12 divides kBlockM.
// Bound     12 FMA for 13 loads: the two load ports, closely followed by the two FMA pipes, while
//           the slice stays in L1.
#pragma once

#include "csrc/linear/gemm_f32.h"
#include "csrc/linear/panel_avx512.h"

namespace lowbit::avx512 {

inline constexpr int64_t kTileM = 12;

// sums(T, 16) (+)= x(T, kc) * w(kc, 16); x_stride and sums_stride in floats. Not inlined: every
// kernel gets the same code, with its sums in registers.
template <int T>
[[gnu::noinline]] static void tile_f32(const float* w, const float* x, int64_t x_stride, int64_t kc,
                                       float* sums, int64_t sums_stride, bool add) {
  // A sum waits 4 cycles for itself, so at two a cycle 8 must be under way: few rows of x take
  // several columns at a time.
  constexpr int kSums = T == 1 ? 8 : T < 4 ? 4 : T < 8 ? 2 : 1;
  __m512 acc[kSums][T];
#pragma GCC unroll 8
  for (int u = 0; u < kSums; ++u) {
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) acc[u][t] = _mm512_setzero_ps();
  }
  int64_t k = 0;
  for (; k + kSums <= kc; k += kSums) {
#pragma GCC unroll 8
    for (int u = 0; u < kSums; ++u) {
      const __m512 v = _mm512_loadu_ps(w + (k + u) * 16);
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
        acc[u][t] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[t * x_stride + k + u]), acc[u][t]);
      }
    }
  }
  for (; k < kc; ++k) {
    const __m512 v = _mm512_loadu_ps(w + k * 16);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      acc[0][t] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[t * x_stride + k]), acc[0][t]);
    }
  }
  // Slices add up apart from each other, which keeps the rounding error below that of one long sum.
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) {
    __m512 sum = acc[0][t];
#pragma GCC unroll 8
    for (int u = 1; u < kSums; ++u) sum = _mm512_add_ps(sum, acc[u][t]);
    if (add) sum = _mm512_add_ps(sum, _mm512_loadu_ps(sums + t * sums_stride));
    _mm512_storeu_ps(sums + t * sums_stride, sum);
  }
}

static inline void tiles_f32(const float* w, const float* x, int64_t x_stride, int64_t rows,
                             int64_t kc, float* sums, int64_t sums_stride, bool add) {
  for_tiles(rows, kTileM, [&](int64_t m, int64_t count) {
    const float* xm = x + m * x_stride;
    float* to = sums + m * sums_stride;
    switch (count) {
      case 1: tile_f32<1>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 2: tile_f32<2>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 3: tile_f32<3>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 4: tile_f32<4>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 5: tile_f32<5>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 6: tile_f32<6>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 7: tile_f32<7>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 8: tile_f32<8>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 9: tile_f32<9>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 10: tile_f32<10>(w, xm, x_stride, kc, to, sums_stride, add); break;
      case 11: tile_f32<11>(w, xm, x_stride, kc, to, sums_stride, add); break;
      default: tile_f32<12>(w, xm, x_stride, kc, to, sums_stride, add); break;
    }
  });
}

template <class Decode, class Prepare, class Vector>
static inline Status run_f32(const LinearArgs& args, const Ctx& ctx, const Decode& decode,
                             const Prepare& prepare, const Vector& vector) {
  return run_slices(args, ctx, kTileM, tiles_f32, decode, prepare, vector);
}

template <class Decode, class Vector>
static inline Status run_f32(const LinearArgs& args, const Ctx& ctx, const Decode& decode,
                             const Vector& vector) {
  return run_f32(
      args, ctx, decode, [](float*) { return true; }, vector);
}

}  // namespace lowbit::avx512
