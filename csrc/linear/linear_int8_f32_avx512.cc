// linear_int8_f32_avx512: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; int8 weights,
// f32 products.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 4j .. 4j + 3 of its row.
// Bound     memory for M < about 3: a byte of w a product; from there the FMA pipes.
// Method    two shifts take a byte of each lane with its sign, a conversion makes f32. M = 1: sums
//           of code * x per group, then the scale. Else scaled slices of f32 for the tiles of
//           gemm_f32_avx512.h.
#include "csrc/linear/gemm_f32_avx512.h"

namespace lowbit {
namespace {

using namespace avx512;

template <int B>
__m512 byte_of(__m512i v) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(B == 3 ? v : _mm512_slli_epi32(v, 24 - 8 * B), 24));
}

template <int B>
__m512 add_byte(__m512i v, const float* x, __m512 acc) {
  return _mm512_fmadd_ps(byte_of<B>(v), _mm512_set1_ps(x[B]), acc);
}

void vector_int8(const Weight& w, const PanelBlock& block, int64_t p, const float* x, float* sums) {
  __m512 total = _mm512_setzero_ps();
  const uint8_t* base = w.data + p * block.groups * block.bytes;
  for (int64_t g = 0; g < block.groups; ++g, base += block.bytes) {
    const int64_t k0 = g * block.k, kc = w.k - k0 < block.k ? w.k - k0 : block.k;
    __m512 acc[8];
    for (__m512& a : acc) a = _mm512_setzero_ps();
    for (int64_t k = 0; k < kc; k += 8) {  // blocks are padded to a multiple of 8
      const uint8_t* v = base + k * 16;
      const float* xk = x + k0 + k;
      _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch + 64, _MM_HINT_T0);
      const __m512i v0 = load_bytes(v), v1 = load_bytes(v + 64);
      acc[0] = add_byte<0>(v0, xk, acc[0]);
      acc[1] = add_byte<1>(v0, xk, acc[1]);
      acc[2] = add_byte<2>(v0, xk, acc[2]);
      acc[3] = add_byte<3>(v0, xk, acc[3]);
      acc[4] = add_byte<0>(v1, xk + 4, acc[4]);
      acc[5] = add_byte<1>(v1, xk + 4, acc[5]);
      acc[6] = add_byte<2>(v1, xk + 4, acc[6]);
      acc[7] = add_byte<3>(v1, xk + 4, acc[7]);
    }
    const __m512 a = _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3]));
    const __m512 b = _mm512_add_ps(_mm512_add_ps(acc[4], acc[5]), _mm512_add_ps(acc[6], acc[7]));
    const __m512 scale = load_scales(base + block.scales, w.format.scale_dtype);
    total = _mm512_fmadd_ps(_mm512_add_ps(a, b), scale, total);
  }
  _mm512_storeu_ps(sums, total);
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

extern const LinearKernel linear_int8_f32_avx512;
const LinearKernel linear_int8_f32_avx512 = {
    "linear_int8_f32_avx512",
    kArchAvx512,
    float_spec(bit(Kind::int8), Layout::panel16, false),
    workspace_f32,
    run,
};

}  // namespace lowbit
