// linear_f16_f32_avx2: out[M,N] = act(x[M,K] * w[N,K]^T + bias) + residual; f16 weights, f32
// products.
//
// Shapes    any.
// Layout    w in panel16: a lane of 4 bytes holds columns 2j (low half) and 2j + 1 (high half) of
// its
//           row.
// Bound     memory for M < about 6: 2 bytes of w a product; from there the FMA pipes.
// Method    F16C widens 8 halves = 4 rows by 2 columns; two shuffles part the columns again. M = 1:
//           the panel read once front to back. Else slices of f32 for the tiles of gemm_f32_avx2.h.
#include "csrc/linear/gemm_f32_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

constexpr int64_t kPrefetch = 2048;  // as in linear_f32_avx2

// 8 rows by 2 columns of halves to a vector of 8 rows for each column.
void widen_pair(__m256i pair, __m256* even, __m256* odd) {
  // Rows 0 1 4 5 in the lower half, 2 3 6 7 in the upper, so that the shuffles below, which work
  // within 128 bits, put the rows in order.
  const __m256i ordered = _mm256_permute4x64_epi64(pair, 0xd8);
  const __m256 a = _mm256_cvtph_ps(_mm256_castsi256_si128(ordered));
  const __m256 b = _mm256_cvtph_ps(_mm256_extracti128_si256(ordered, 1));
  *even = _mm256_shuffle_ps(a, b, 0x88);
  *odd = _mm256_shuffle_ps(a, b, 0xdd);
}

// Columns k and k + 1 of a panel, from its vector at v.
void add_pair(const uint8_t* v, const float* x, __m256 (&acc)[2][2]) {
  _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
  const __m256 x0 = _mm256_broadcast_ss(x), x1 = _mm256_broadcast_ss(x + 1);
  for (int h = 0; h < 2; ++h) {
    __m256 even, odd;
    widen_pair(load_bytes(v + 32 * h), &even, &odd);
    acc[0][h] = _mm256_fmadd_ps(even, x0, acc[0][h]);
    acc[1][h] = _mm256_fmadd_ps(odd, x1, acc[1][h]);
  }
}

void vector_f16(const uint8_t* w, const float* x, int64_t k, float* sums) {
  __m256 acc[2][2][2];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) acc[i][j][0] = acc[i][j][1] = _mm256_setzero_ps();
  }
  int64_t j = 0;
  for (; j + 4 <= k; j += 4) {
    add_pair(w + j * 32, x + j, acc[0]);
    add_pair(w + j * 32 + 64, x + j + 2, acc[1]);
  }
  for (; j < k; j += 2) add_pair(w + j * 32, x + j, acc[0]);
  for (int h = 0; h < 2; ++h) {
    _mm256_storeu_ps(sums + 8 * h, _mm256_add_ps(_mm256_add_ps(acc[0][0][h], acc[0][1][h]),
                                                 _mm256_add_ps(acc[1][0][h], acc[1][1][h])));
  }
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const PanelBlock block = panel_block(args.w.format, {args.w.n, args.w.k});
  const auto panel = [&](int64_t p) { return args.w.data + p * block.bytes; };
  const auto decode = [&](int64_t p, int64_t k0, int64_t kc, float* to) {
    const uint8_t* w = panel(p) + k0 * 32;
    for (int64_t j = 0; j < kc; j += 2) {
      _mm_prefetch(reinterpret_cast<const char*>(w + j * 32) + kPrefetch, _MM_HINT_T0);
      for (int h = 0; h < 2; ++h) {
        __m256 even, odd;
        widen_pair(load_bytes(w + j * 32 + 32 * h), &even, &odd);
        _mm256_storeu_ps(to + j * 16 + 8 * h, even);
        _mm256_storeu_ps(to + j * 16 + 16 + 8 * h, odd);
      }
    }
    return to;
  };
  return run_f32(args, ctx, decode, [&](int64_t p, const float* x, float* sums) {
    vector_f16(panel(p), x, args.w.k, sums);
  });
}

}  // namespace

extern const LinearKernel linear_f16_f32_avx2;
const LinearKernel linear_f16_f32_avx2 = {
    "linear_f16_f32_avx2", kArchAvx2, float_spec(bit(Kind::f16), Layout::panel16, true),
    workspace_f32,         run,
};

}  // namespace lowbit
