// linear_int8_f32_avx512: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; int8 weights,
// f32 products.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 4j .. 4j + 3 of its row.
// Bound     memory for M < about 3: a byte of w a product; from there the FMA pipes.
// Method    64 bytes are widened as they lie, four rows by four columns at a time, and meet up to
// six
//           rows of x; sums of code * x per group, then the scale. A line is 8 instructions and 4
//           FMA for each row of x.
#include "csrc/linear/pairs_avx512.h"

namespace lowbit {
namespace {

using namespace avx512;

// Sums over the four lanes of each 128 bits: lane r of the result is row r of acc[r / 4], in which
// a row has four lanes.
__m512 fold_rows(const __m512 (&acc)[4]) {
  const __m512 a =
      _mm512_add_ps(_mm512_unpacklo_ps(acc[0], acc[1]), _mm512_unpackhi_ps(acc[0], acc[1]));
  const __m512 b =
      _mm512_add_ps(_mm512_unpacklo_ps(acc[2], acc[3]), _mm512_unpackhi_ps(acc[2], acc[3]));
  const __m512d al = _mm512_castps_pd(a), bl = _mm512_castps_pd(b);
  // In each 128 bits now: (acc 0, acc 1, acc 0, acc 1) and (acc 2, acc 3, acc 2, acc 3) of one of
  // four rows.
  const __m512 sum = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(al, bl)),
                                   _mm512_castpd_ps(_mm512_unpackhi_pd(al, bl)));
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  return _mm512_permutexvar_ps(order, sum);
}

// sums(T, 16) = x(T, K) * the panel. Sixteen bytes are four rows by four columns: widened as they
// lie, they meet four columns of x four times over, and the four lanes of a row add up at the end
// of its group.
template <int T>
[[gnu::noinline]] void byte_tile(const PairPanel& w, const float* x, int64_t x_stride, int64_t k1,
                                 float* sums) {
  __m512 total[T];
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
  const uint8_t* block = w.data;
  for (int64_t k = 0; k < k1; block += w.block.bytes) {
    const int64_t stop = k + w.block.k < k1 ? k + w.block.k : k1;
    const uint8_t* at = block;
    __m512 acc[T][4];
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) acc[t][q] = _mm512_setzero_ps();
    }
    for (; k < stop; k += 4, at += 64) {  // blocks are padded to 8 columns, x with zeros
      _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetch, _MM_HINT_T0);
      __m512 v[4];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + q * 16));
        v[q] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
      }
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(x + t * x_stride + k));
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) acc[t][q] = _mm512_fmadd_ps(v[q], four, acc[t][q]);
      }
    }
    k = stop;
    const __m512 scale = load_scales(block + w.block.scales, w.format.scale_dtype);
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) total[t] = _mm512_fmadd_ps(fold_rows(acc[t]), scale, total[t]);
  }
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) _mm512_storeu_ps(sums + t * kBlockN, total[t]);
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const int64_t k = args.w.k;
  return run_tiles(
      args, ctx,
      [k](const PairPanel& w, const float* x, int64_t x_stride, int64_t rows, float* sums) {
        switch (rows) {
          case 1: return byte_tile<1>(w, x, x_stride, k, sums);
          case 2: return byte_tile<2>(w, x, x_stride, k, sums);
          case 3: return byte_tile<3>(w, x, x_stride, k, sums);
          case 4: return byte_tile<4>(w, x, x_stride, k, sums);
          case 5: return byte_tile<5>(w, x, x_stride, k, sums);
          default: return byte_tile<6>(w, x, x_stride, k, sums);
        }
      });
}

}  // namespace

extern const LinearKernel linear_int8_f32_avx512;
const LinearKernel linear_int8_f32_avx512 = {
    "linear_int8_f32_avx512", kArchAvx512, float_spec(bit(Kind::int8), Layout::panel16, false),
    workspace_tiles,          run,
};

}  // namespace lowbit
