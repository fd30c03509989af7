// linear_f32_avx512: out[M,N] = act(x[M,K] * w[N,K]^T + bias) + residual; f32 weights, f32
// products.
//
// Shapes    any.
// Layout    w in panel16: vector k holds column k of 16 rows.
// Bound     memory for M < about 12: 4 bytes of w a product; from there the FMA pipes.
// Method    M = 1: eight sums, the panel read once front to back. Else the tiles of
//           gemm_f32_avx512.h straight from the panel.
#include "csrc/linear/gemm_f32_avx512.h"

namespace lowbit {
namespace {

using namespace avx512;

void vector_f32(const float* w, const float* x, int64_t k, float* sums) {
  __m512 acc[8];
  for (__m512& a : acc) a = _mm512_setzero_ps();
  int64_t j = 0;
  for (; j + 8 <= k; j += 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const float* v = w + (j + i) * 16;
      _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
      acc[i] = _mm512_fmadd_ps(_mm512_loadu_ps(v), _mm512_set1_ps(x[j + i]), acc[i]);
    }
  }
  for (; j < k; ++j) {
    acc[0] = _mm512_fmadd_ps(_mm512_loadu_ps(w + j * 16), _mm512_set1_ps(x[j]), acc[0]);
  }
  const __m512 a = _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3]));
  const __m512 b = _mm512_add_ps(_mm512_add_ps(acc[4], acc[5]), _mm512_add_ps(acc[6], acc[7]));
  _mm512_storeu_ps(sums, _mm512_add_ps(a, b));
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

extern const LinearKernel linear_f32_avx512;
const LinearKernel linear_f32_avx512 = {
    "linear_f32_avx512", kArchAvx512, float_spec(bit(Kind::f32), Layout::panel16, true),
    workspace_f32,       run,
};

}  // namespace lowbit
