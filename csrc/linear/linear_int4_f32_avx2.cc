// linear_int4_f32_avx2: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; int4 weights, f32
// products.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns; zeros none, u8 or f32.
// Layout    w in panel16: a lane of 4 bytes holds columns 8j .. 8j + 3 of its row in the low bits
// and
//           8j + 4 .. 8j + 7 in the high ones.
// Bound     M = 1: memory at 1/2 byte a product, closely followed by decoding (3.6 instructions for
// 8
//           products); from M = 2 the FMA pipes.
// Method    M = 1: bytes of code - zero (exact), a shuffle puts each at the top of its lane, a
//           conversion makes (code - zero) * 2^24, sums per group, then scale * 2^-24. Else scaled
//           slices of f32 for the tiles of gemm_f32_avx2.h.
#include "csrc/linear/gemm_f32_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

constexpr int64_t kPrefetch = 2048;  // as in linear_f32_avx2
// Zero points that bytes hold: code - zero stays within -120 .. 123.
constexpr float kZeroMin = -108.0f, kZeroMax = 120.0f;
// The shuffled codes count 2^24 times too much, which x makes up for beforehand: an exact scaling,
// and what it pushes below the smallest float is nothing beside the largest of x. Where all of x is
// below this bound the sums are scaled instead.
constexpr float kSmallX = 0x1p-60f;

__m256i nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
__m256i high(__m256i v) { return nibbles(_mm256_srli_epi16(v, 4)); }

// Byte B of each lane to its top, zeros below.
template <int B>
__m256 top(__m256i v) {
  if (B == 3) return _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(-0x1000000)));
  const __m256i pick =
      _mm256_set_epi32((12 + B) << 24 | 0x808080, (8 + B) << 24 | 0x808080,
                       (4 + B) << 24 | 0x808080, B << 24 | 0x808080, (12 + B) << 24 | 0x808080,
                       (8 + B) << 24 | 0x808080, (4 + B) << 24 | 0x808080, B << 24 | 0x808080);
  return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v, pick));
}

template <int B>
void add_byte(__m256i v0, __m256i v1, const float* x, __m256 (&acc)[2]) {
  const __m256 b = _mm256_broadcast_ss(x + B);
  acc[0] = _mm256_fmadd_ps(top<B>(v0), b, acc[0]);
  acc[1] = _mm256_fmadd_ps(top<B>(v1), b, acc[1]);
}

// The zero points of a block's rows: what bytes hold of them in each byte of a row's lane, and the
// rest.
struct Zeros {
  __m256i whole[2];
  __m256 rest[2];
};

Zeros split_zeros(const uint8_t* at, ZeroType type) {
  Zeros zeros;
  for (int h = 0; h < 2; ++h) {
    const __m256 z = load_zeros(at, type, 8.0f, h);
    const __m256i whole = _mm256_cvtps_epi32(
        _mm256_min_ps(_mm256_max_ps(z, _mm256_set1_ps(kZeroMin)), _mm256_set1_ps(kZeroMax)));
    zeros.rest[h] = _mm256_sub_ps(z, _mm256_cvtepi32_ps(whole));
    zeros.whole[h] =
        _mm256_shuffle_epi8(whole, _mm256_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0,
                                                    0x0c0c0c0c, 0x08080808, 0x04040404, 0));
  }
  return zeros;
}

void vector_int4(const Weight& w, const PanelBlock& block, int64_t p, const float* x,
                 const float* x_sums, float shrink, float* sums) {
  const ZeroType zero_type = w.format.zero_type;
  const DType scale_dtype = w.format.scale_dtype;
  const uint8_t* base = w.data + p * block.groups * block.bytes;
  Zeros zeros = split_zeros(base, ZeroType::none);
  __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t g = 0; g < block.groups; ++g, base += block.bytes) {
    const int64_t k0 = g * block.k, kc = w.k - k0 < block.k ? w.k - k0 : block.k;
    if (zero_type != ZeroType::none) zeros = split_zeros(base + block.zeros, zero_type);
    __m256 a[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    __m256 b[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    const float* xg = x + k0;
    for (int64_t k = 0; k < kc; k += 8) {
      const uint8_t* v = base + k * 8;
      _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
      const __m256i v0 = load_bytes(v), v1 = load_bytes(v + 32);
      const __m256i l0 = _mm256_sub_epi8(nibbles(v0), zeros.whole[0]);
      const __m256i l1 = _mm256_sub_epi8(nibbles(v1), zeros.whole[1]);
      add_byte<0>(l0, l1, xg + k, a);
      add_byte<1>(l0, l1, xg + k, b);
      add_byte<2>(l0, l1, xg + k, a);
      add_byte<3>(l0, l1, xg + k, b);
      const __m256i h0 = _mm256_sub_epi8(high(v0), zeros.whole[0]);
      const __m256i h1 = _mm256_sub_epi8(high(v1), zeros.whole[1]);
      add_byte<0>(h0, h1, xg + k + 4, a);
      add_byte<1>(h0, h1, xg + k + 4, b);
      add_byte<2>(h0, h1, xg + k + 4, a);
      add_byte<3>(h0, h1, xg + k + 4, b);
    }
    __m256 s0 = _mm256_add_ps(a[0], b[0]), s1 = _mm256_add_ps(a[1], b[1]);
    if (zero_type == ZeroType::f32) {
      const __m256 x_sum = _mm256_broadcast_ss(x_sums + g);
      s0 = _mm256_fnmadd_ps(zeros.rest[0], x_sum, s0);
      s1 = _mm256_fnmadd_ps(zeros.rest[1], x_sum, s1);
    }
    total[0] = _mm256_fmadd_ps(s0, load_scales(base + block.scales, scale_dtype, 0), total[0]);
    total[1] = _mm256_fmadd_ps(s1, load_scales(base + block.scales, scale_dtype, 1), total[1]);
  }
  _mm256_storeu_ps(sums, _mm256_mul_ps(total[0], _mm256_set1_ps(shrink)));
  _mm256_storeu_ps(sums + 8, _mm256_mul_ps(total[1], _mm256_set1_ps(shrink)));
}

// scale * (code - zero) of byte B, 8 rows.
template <int B>
__m256 value(__m256i v, __m256 zero, __m256 scale) {
  const __m256i pick = _mm256_set_epi32(0x80808000 | (12 + B), 0x80808000 | (8 + B),
                                        0x80808000 | (4 + B), 0x80808000 | B, 0x80808000 | (12 + B),
                                        0x80808000 | (8 + B), 0x80808000 | (4 + B), 0x80808000 | B);
  const __m256 code = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v, pick));
  return _mm256_mul_ps(_mm256_sub_ps(code, zero), scale);
}

void decode_half(__m256i v, __m256 zero, __m256 scale, float* to) {
  _mm256_storeu_ps(to, value<0>(v, zero, scale));
  _mm256_storeu_ps(to + 16, value<1>(v, zero, scale));
  _mm256_storeu_ps(to + 32, value<2>(v, zero, scale));
  _mm256_storeu_ps(to + 48, value<3>(v, zero, scale));
}

void decode_int4(const Weight& w, const PanelBlock& block, int64_t p, int64_t k0, int64_t kc,
                 float* to) {
  for (int64_t k = k0; k < k0 + kc;) {
    const int64_t g = k / block.k, end = (g + 1) * block.k;
    const int64_t stop = end < k0 + kc ? end : k0 + kc;
    const uint8_t* base = w.data + (p * block.groups + g) * block.bytes;
    const __m256 s0 = load_scales(base + block.scales, w.format.scale_dtype, 0);
    const __m256 s1 = load_scales(base + block.scales, w.format.scale_dtype, 1);
    const __m256 z0 = load_zeros(base + block.zeros, w.format.zero_type, 8.0f, 0);
    const __m256 z1 = load_zeros(base + block.zeros, w.format.zero_type, 8.0f, 1);
    const uint8_t* v = base + (k - g * block.k) * 8;
    for (; k < stop; k += 8, v += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
      const __m256i v0 = load_bytes(v), v1 = load_bytes(v + 32);
      float* row = to + (k - k0) * 16;
      decode_half(nibbles(v0), z0, s0, row);
      decode_half(nibbles(v1), z1, s1, row + 8);
      decode_half(high(v0), z0, s0, row + 64);
      decode_half(high(v1), z1, s1, row + 72);
    }
    k = stop;
  }
}

size_t workspace(const LinearArgs& args, int threads) {
  const int64_t groups = panel_block(args.w.format, {args.w.n, args.w.k}).groups;
  return workspace_f32(args, threads) + static_cast<size_t>(round_up(groups * 4, 64));
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const PanelBlock block = panel_block(args.w.format, {args.w.n, args.w.k});
  const auto decode = [&](int64_t p, int64_t k0, int64_t kc, float* to) {
    decode_int4(args.w, block, p, k0, kc, to);
    return to;
  };
  FloatScratch s;
  const size_t used = carve_f32(args, pool_threads(ctx.pool), ctx.scratch, &s);
  float* x_sums = reinterpret_cast<float*>(static_cast<uint8_t*>(ctx.scratch) + used);
  float shrink = 1.0f;
  const auto prepare = [&](float* x) {
    const int64_t k = args.w.k;
    const float largest = largest_of(x, k);
    // An inf would meet the whole and the rest of a zero point apart and make NaN of their
    // difference.
    if (largest != largest && args.w.format.zero_type == ZeroType::f32) return false;
    if (largest < kSmallX) {
      shrink = 0x1p-24f;
    } else {
      for (int64_t i = 0; i < k; ++i) x[i] *= 0x1p-24f;
    }
    if (args.w.format.zero_type != ZeroType::f32) return true;
    for (int64_t g = 0; g < block.groups; ++g) {  // the rests count once, not 2^24 times
      const int64_t end = (g + 1) * block.k < k ? (g + 1) * block.k : k;
      float sum = 0.0f;
      for (int64_t i = g * block.k; i < end; ++i) sum += x[i];
      x_sums[g] = sum * 0x1p24f;
    }
    return true;
  };
  return run_f32(args, ctx, decode, prepare, [&](int64_t p, const float* x, float* sums) {
    vector_int4(args.w, block, p, x, x_sums, shrink, sums);
  });
}

}  // namespace

extern const LinearKernel linear_int4_f32_avx2;
const LinearKernel linear_int4_f32_avx2 = {
    "linear_int4_f32_avx2",
    kArchAvx2,
    float_spec(bit(Kind::int4), Layout::panel16, false),
    workspace,
    run,
};

}  // namespace lowbit
