// linear_int8_f32_avx512: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; int8 weights,
// f32 products.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 4j .. 4j + 3 of its row.
// Bound     memory for M < about 3: a byte of w a product; from there the FMA pipes.
// Method    few rows of x: 64 bytes are widened as they lie, four rows by four columns at a time,
//           12 instructions with their FMAs; sums of code * x per group, then the scale. More rows:
//           scaled slices of f32 for the tiles of gemm_f32_avx512.h, where two shifts take a byte
//           of each lane with its sign.
#include "csrc/linear/pairs_avx512.h"

namespace lowbit {
namespace {

using namespace avx512;

template <int B>
__m512 byte_of(__m512i v) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(B == 3 ? v : _mm512_slli_epi32(v, 24 - 8 * B), 24));
}

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
[[gnu::noinline]] void few_bytes(const PairPanel& w, const float* x, int64_t x_stride, int64_t k1,
                                 float* sums) {
  __m512 total[T];
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
  for (int64_t k = 0; k < k1;) {
    const int64_t g = k / w.block.k, end = (g + 1) * w.block.k, stop = end < k1 ? end : k1;
    const uint8_t* block = w.data + g * w.block.bytes;
    const uint8_t* at = block;
    __m512 acc[T][4];
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) acc[t][q] = _mm512_setzero_ps();
    }
    for (; k < stop; k += 4, at += 64) {  // blocks are padded to 8 columns, x with zeros
      prefetch_line<T * 4>(at);
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

void decode_int8(const Weight& w, const PanelBlock& block, int64_t p, int64_t k0, int64_t kc,
                 float* to) {
  for (int64_t k = k0; k < k0 + kc;) {
    const int64_t g = k / block.k, end = (g + 1) * block.k;
    const int64_t stop = end < k0 + kc ? end : k0 + kc;
    const uint8_t* base = w.data + (p * block.groups + g) * block.bytes;
    const __m512 scale = load_scales(base + block.scales, w.format.scale_dtype);
    const uint8_t* v = base + (k - g * block.k) * 16;
    for (; k < stop; k += 4, v += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
      const __m512i bytes = load_bytes(v);
      float* row = to + (k - k0) * 16;
      _mm512_storeu_ps(row, _mm512_mul_ps(byte_of<0>(bytes), scale));
      _mm512_storeu_ps(row + 16, _mm512_mul_ps(byte_of<1>(bytes), scale));
      _mm512_storeu_ps(row + 32, _mm512_mul_ps(byte_of<2>(bytes), scale));
      _mm512_storeu_ps(row + 48, _mm512_mul_ps(byte_of<3>(bytes), scale));
    }
    k = stop;
  }
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const int64_t k = args.w.k;
  if (few_rows(args)) {
    return run_few_tiles(
        args, ctx,
        [k](const PairPanel& w, const float* x, int64_t x_stride, int64_t rows, float* sums) {
          switch (rows) {
            case 1: return few_bytes<1>(w, x, x_stride, k, sums);
            case 2: return few_bytes<2>(w, x, x_stride, k, sums);
            case 3: return few_bytes<3>(w, x, x_stride, k, sums);
            case 4: return few_bytes<4>(w, x, x_stride, k, sums);
            case 5: return few_bytes<5>(w, x, x_stride, k, sums);
            default: return few_bytes<6>(w, x, x_stride, k, sums);
          }
        });
  }
  const PanelBlock block = panel_block(args.w.format, {args.w.n, k});
  const auto decode = [&](int64_t p, int64_t k0, int64_t kc, float* to) {
    decode_int8(args.w, block, p, k0, kc, to);
    return to;
  };
  return run_f32(
      args, ctx, decode, [](float*) { return false; }, [](int64_t, const float*, float*) {});
}

}  // namespace

extern const LinearKernel linear_int8_f32_avx512;
const LinearKernel linear_int8_f32_avx512 = {
    "linear_int8_f32_avx512",
    kArchAvx512,
    float_spec(bit(Kind::int8), Layout::panel16, false),
    workspace_few,
    run,
};

}  // namespace lowbit
