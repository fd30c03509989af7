// The tiles of the AVX2 rows in the float GEMM of gemm_f32.h.
//
// Tile      16 rows of w by 6 rows of x: 12 sums, 2 vectors of w and a broadcast x in 16 registers.
// Bound     12 FMA for 8 loads: the two FMA pipes are the limit while the slice stays in L1.
#pragma once

#include "csrc/linear/gemm_f32.h"
#include "csrc/linear/panel_avx2.h"

namespace lowbit::avx2 {

inline constexpr int64_t kTileM = 6;

// sums(T, 16) (+)= x(T, kc) * w(kc, 16); x_stride and sums_stride in floats. Not inlined: every
// kernel gets the same code, with its sums in registers.
template <int T>
[[gnu::noinline]] static void tile_f32(const float* w, const float* x, int64_t x_stride, int64_t kc,
                                       float* sums, int64_t sums_stride, bool add) {
  // A sum waits 4 cycles for itself, so at two a cycle 8 must be under way: few rows of x take two
  // columns at a time.
  constexpr int kSums = T < 4 ? 2 : 1;
  __m256 acc[kSums][T][2];
#pragma GCC unroll 2
  for (int u = 0; u < kSums; ++u) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[u][t][0] = acc[u][t][1] = _mm256_setzero_ps();
  }
  int64_t k = 0;
  for (; k + kSums <= kc; k += kSums) {
#pragma GCC unroll 2
    for (int u = 0; u < kSums; ++u) {
      const float* v = w + (k + u) * 16;
      const __m256 w0 = _mm256_loadu_ps(v), w1 = _mm256_loadu_ps(v + 8);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256 b = _mm256_broadcast_ss(x + t * x_stride + k + u);
        acc[u][t][0] = _mm256_fmadd_ps(b, w0, acc[u][t][0]);
        acc[u][t][1] = _mm256_fmadd_ps(b, w1, acc[u][t][1]);
      }
    }
  }
  for (; k < kc; ++k) {
    const __m256 w0 = _mm256_loadu_ps(w + k * 16), w1 = _mm256_loadu_ps(w + k * 16 + 8);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m256 b = _mm256_broadcast_ss(x + t * x_stride + k);
      acc[0][t][0] = _mm256_fmadd_ps(b, w0, acc[0][t][0]);
      acc[0][t][1] = _mm256_fmadd_ps(b, w1, acc[0][t][1]);
    }
  }
  // Slices add up apart from each other, which keeps the rounding error below that of one long sum.
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    float* to = sums + t * sums_stride;
    __m256 s0 = acc[0][t][0], s1 = acc[0][t][1];
    if constexpr (kSums == 2) {
      s0 = _mm256_add_ps(s0, acc[1][t][0]);
      s1 = _mm256_add_ps(s1, acc[1][t][1]);
    }
    if (add) {
      s0 = _mm256_add_ps(s0, _mm256_loadu_ps(to));
      s1 = _mm256_add_ps(s1, _mm256_loadu_ps(to + 8));
    }
    _mm256_storeu_ps(to, s0);
    _mm256_storeu_ps(to + 8, s1);
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
      default: tile_f32<6>(w, xm, x_stride, kc, to, sums_stride, add); break;
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

}  // namespace lowbit::avx2
