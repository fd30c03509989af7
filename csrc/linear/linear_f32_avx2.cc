// linear_f32_avx2: out[M,N] = act(x[M,K] * w[N,K]^T + bias) + residual; f32 weights, f32 products.
//
// Shapes    any.
// Layout    w in panel16: vector k holds column k of 16 rows.
// Bound     memory for M < about 12: 4 bytes of w a product; from there the FMA pipes.
// Method    M = 1: eight sums, the panel read once front to back. Else the tiles of gemm_f32_avx2.h
//           straight from the panel.
#include "csrc/linear/gemm_f32_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

// Ahead of the loads by 2 KiB: about the product of one core's bandwidth and the memory's latency.
constexpr int64_t kPrefetch = 2048;

void vector_f32(const float* w, const float* x, int64_t k, float* sums) {
  __m256 acc[4][2];
  for (int i = 0; i < 4; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
  int64_t j = 0;
  for (; j + 4 <= k; j += 4) {
    for (int i = 0; i < 4; ++i) {
      const float* v = w + (j + i) * 16;
      _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
      const __m256 b = _mm256_broadcast_ss(x + j + i);
      acc[i][0] = _mm256_fmadd_ps(_mm256_loadu_ps(v), b, acc[i][0]);
      acc[i][1] = _mm256_fmadd_ps(_mm256_loadu_ps(v + 8), b, acc[i][1]);
    }
  }
  for (; j < k; ++j) {
    const __m256 b = _mm256_broadcast_ss(x + j);
    acc[0][0] = _mm256_fmadd_ps(_mm256_loadu_ps(w + j * 16), b, acc[0][0]);
    acc[0][1] = _mm256_fmadd_ps(_mm256_loadu_ps(w + j * 16 + 8), b, acc[0][1]);
  }
  for (int h = 0; h < 2; ++h) {
    _mm256_storeu_ps(sums + 8 * h, _mm256_add_ps(_mm256_add_ps(acc[0][h], acc[1][h]),
                                                 _mm256_add_ps(acc[2][h], acc[3][h])));
  }
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const PanelBlock block = panel_block(args.w.format, {args.w.n, args.w.k});
  const auto panel = [&](int64_t p) {
    return reinterpret_cast<const float*>(args.w.data + p * block.bytes);
  };
  return run_f32(
      args, ctx, [&](int64_t p, int64_t k0, int64_t, float*) { return panel(p) + k0 * 16; },
      [&](int64_t p, const float* x, float* sums) { vector_f32(panel(p), x, args.w.k, sums); });
}

}  // namespace

extern const LinearKernel linear_f32_avx2;
const LinearKernel linear_f32_avx2 = {
    "linear_f32_avx2", kArchAvx2, float_spec(bit(Kind::f32), Layout::panel16, true),
    workspace_f32,     run,
};

}  // namespace lowbit
