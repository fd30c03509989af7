// linear_f16_f32_avx512: out[M,N] = act(x[M,K] * w[N,K]^T + bias) + residual; f16 weights, f32
// products.
//
// Shapes    any.
// Layout    w in panel16: a lane of 4 bytes holds columns 2j (low half) and 2j + 1 (high half) of
//           its row.
// Bound     memory for M < about 6: 2 bytes of w a product; from there the FMA pipes.
// Method    two conversions widen 8 rows by 2 columns each; two permutations part the columns
// again.
//           M = 1: the panel read once front to back. Else slices of f32 for the tiles of
//           gemm_f32_avx512.h.
#include "csrc/linear/gemm_f32_avx512.h"

namespace lowbit {
namespace {

using namespace avx512;

// 16 rows by 2 columns of halves to a vector of 16 rows for each column.
void widen_pair(__m512i pair, __m512* even, __m512* odd) {
  const __m512 a = _mm512_cvtph_ps(_mm512_castsi512_si256(pair));
  const __m512 b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(pair, 1));
  const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  *even = _mm512_permutex2var_ps(a, evens, b);
  *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), b);
}

// Columns k and k + 1 of a panel, from its vector at v.
void add_pair(const uint8_t* v, const float* x, __m512 (&acc)[2]) {
  _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
  __m512 even, odd;
  widen_pair(load_bytes(v), &even, &odd);
  acc[0] = _mm512_fmadd_ps(even, _mm512_set1_ps(x[0]), acc[0]);
  acc[1] = _mm512_fmadd_ps(odd, _mm512_set1_ps(x[1]), acc[1]);
}

void vector_f16(const uint8_t* w, const float* x, int64_t k, float* sums) {
  __m512 acc[4][2];
  for (int i = 0; i < 4; ++i) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
  int64_t j = 0;
  for (; j + 8 <= k; j += 8) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) add_pair(w + j * 32 + i * 64, x + j + 2 * i, acc[i]);
  }
  for (; j < k; j += 2) add_pair(w + j * 32, x + j, acc[0]);
  __m512 pair[4];
  for (int i = 0; i < 4; ++i) pair[i] = _mm512_add_ps(acc[i][0], acc[i][1]);
  _mm512_storeu_ps(sums,
                   _mm512_add_ps(_mm512_add_ps(pair[0], pair[1]), _mm512_add_ps(pair[2], pair[3])));
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const PanelBlock block = panel_block(args.w.format, {args.w.n, args.w.k});
  const auto panel = [&](int64_t p) { return args.w.data + p * block.bytes; };
  const auto decode = [&](int64_t p, int64_t k0, int64_t kc, float* to) {
    const uint8_t* w = panel(p) + k0 * 32;
    for (int64_t j = 0; j < kc; j += 2) {
      _mm_prefetch(reinterpret_cast<const char*>(w + j * 32) + kPrefetch, _MM_HINT_T0);
      __m512 even, odd;
      widen_pair(load_bytes(w + j * 32), &even, &odd);
      _mm512_storeu_ps(to + j * 16, even);
      _mm512_storeu_ps(to + j * 16 + 16, odd);
    }
    return to;
  };
  return run_f32(args, ctx, decode, [&](int64_t p, const float* x, float* sums) {
    vector_f16(panel(p), x, args.w.k, sums);
  });
}

}  // namespace

extern const LinearKernel linear_f16_f32_avx512;
const LinearKernel linear_f16_f32_avx512 = {
    "linear_f16_f32_avx512", kArchAvx512, float_spec(bit(Kind::f16), Layout::panel16, true),
    workspace_f32,           run,
};

}  // namespace lowbit
