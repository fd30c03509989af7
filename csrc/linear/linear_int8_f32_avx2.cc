// linear_int8_f32_avx2: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; int8 weights, f32
// products.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 4j .. 4j + 3 of its row.
// Bound     memory for M < about 3: a byte of w a product; from there the FMA pipes.
// Method    two shifts take a byte of each lane with its sign, a conversion makes f32. M = 1: sums
// of
//           code * x per group, then the scale. Else scaled slices of f32 for the tiles of
//           gemm_f32_avx2.h.
#include "csrc/linear/gemm_f32_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

constexpr int64_t kPrefetch = 2048;  // as in linear_f32_avx2

template <int B>
__m256 byte_of(__m256i v) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(B == 3 ? v : _mm256_slli_epi32(v, 24 - 8 * B), 24));
}

template <int B>
void add_byte(__m256i v0, __m256i v1, const float* x, __m256 (&acc)[2]) {
  const __m256 b = _mm256_broadcast_ss(x + B);
  acc[0] = _mm256_fmadd_ps(byte_of<B>(v0), b, acc[0]);
  acc[1] = _mm256_fmadd_ps(byte_of<B>(v1), b, acc[1]);
}

void vector_int8(const Weight& w, const PanelBlock& block, int64_t p, const float* x, float* sums) {
  __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  const uint8_t* base = w.data + p * block.groups * block.bytes;
  for (int64_t g = 0; g < block.groups; ++g, base += block.bytes) {
    const int64_t k0 = g * block.k, kc = w.k - k0 < block.k ? w.k - k0 : block.k;
    __m256 acc[4][2];
    for (int i = 0; i < 4; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < kc; k += 4) {
      const uint8_t* v = base + k * 16;
      _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
      const __m256i v0 = load_bytes(v), v1 = load_bytes(v + 32);
      add_byte<0>(v0, v1, x + k0 + k, acc[0]);
      add_byte<1>(v0, v1, x + k0 + k, acc[1]);
      add_byte<2>(v0, v1, x + k0 + k, acc[2]);
      add_byte<3>(v0, v1, x + k0 + k, acc[3]);
    }
    for (int h = 0; h < 2; ++h) {
      const __m256 sum =
          _mm256_add_ps(_mm256_add_ps(acc[0][h], acc[1][h]), _mm256_add_ps(acc[2][h], acc[3][h]));
      total[h] =
          _mm256_fmadd_ps(sum, load_scales(base + block.scales, w.format.scale_dtype, h), total[h]);
    }
  }
  _mm256_storeu_ps(sums, total[0]);
  _mm256_storeu_ps(sums + 8, total[1]);
}

void decode_int8(const Weight& w, const PanelBlock& block, int64_t p, int64_t k0, int64_t kc,
                 float* to) {
  for (int64_t k = k0; k < k0 + kc;) {
    const int64_t g = k / block.k, end = (g + 1) * block.k;
    const int64_t stop = end < k0 + kc ? end : k0 + kc;
    const uint8_t* base = w.data + (p * block.groups + g) * block.bytes;
    const __m256 s0 = load_scales(base + block.scales, w.format.scale_dtype, 0);
    const __m256 s1 = load_scales(base + block.scales, w.format.scale_dtype, 1);
    const uint8_t* v = base + (k - g * block.k) * 16;
    for (; k < stop; k += 4, v += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
      const __m256i v0 = load_bytes(v), v1 = load_bytes(v + 32);
      float* row = to + (k - k0) * 16;
      _mm256_storeu_ps(row, _mm256_mul_ps(byte_of<0>(v0), s0));
      _mm256_storeu_ps(row + 8, _mm256_mul_ps(byte_of<0>(v1), s1));
      _mm256_storeu_ps(row + 16, _mm256_mul_ps(byte_of<1>(v0), s0));
      _mm256_storeu_ps(row + 24, _mm256_mul_ps(byte_of<1>(v1), s1));
      _mm256_storeu_ps(row + 32, _mm256_mul_ps(byte_of<2>(v0), s0));
      _mm256_storeu_ps(row + 40, _mm256_mul_ps(byte_of<2>(v1), s1));
      _mm256_storeu_ps(row + 48, _mm256_mul_ps(byte_of<3>(v0), s0));
      _mm256_storeu_ps(row + 56, _mm256_mul_ps(byte_of<3>(v1), s1));
    }
    k = stop;
  }
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const PanelBlock block = panel_block(args.w.format, {args.w.n, args.w.k});
  const auto decode = [&](int64_t p, int64_t k0, int64_t kc, float* to) {
    decode_int8(args.w, block, p, k0, kc, to);
    return to;
  };
  return run_f32(args, ctx, decode, [&](int64_t p, const float* x, float* sums) {
    vector_int8(args.w, block, p, x, sums);
  });
}

}  // namespace

extern const LinearKernel linear_int8_f32_avx2;
const LinearKernel linear_int8_f32_avx2 = {
    "linear_int8_f32_avx2", kArchAvx2, float_spec(bit(Kind::int8), Layout::panel16, false),
    workspace_f32,          run,
};

}  // namespace lowbit
