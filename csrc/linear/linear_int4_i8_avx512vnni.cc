// linear_int4_i8_avx512vnni: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int4 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns; zeros none, u8 or f32.
// Layout    w in panel16: a lane of 4 bytes holds columns 8j .. 8j + 3 of its row in the low bits
//           and 8j + 4 .. 8j + 7 in the high ones; x as rows of bytes.
// Bound     M = 1: memory at 1/2 byte a product. Large M: vpdpbusd, 64 products each.
// Method    vpdpbusd multiplies codes (0 .. 15) with a broadcast of 4 bytes of x. High codes stay
//           where they are, as multiples of 16, and add up apart: one shift of the sum in place of
//           one for each vector. Tile of 16 rows of w by 8 rows of x: 16 int32 sums, 8 f32 sums and
//           2 vectors of codes in 32 registers.
#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx512.h"
#include "csrc/simd/avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

constexpr int64_t kTileM = 8;  // 12 would need 36 sums

// 8 columns of 16 rows of w times T rows of x; acc[t][1] counts 16 times too much.
template <int T>
[[gnu::always_inline]] inline void add_vector(const uint8_t* v, const uint8_t* x, int64_t x_stride,
                                              __m512i (&acc)[T][2]) {
  _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
  const __m512i low = _mm512_set1_epi8(15), codes = load_bytes(v);
  const __m512i l = _mm512_and_si512(codes, low), h = _mm512_andnot_si512(low, codes);
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    acc[t][0] = add_products(acc[t][0], l, x + t * x_stride);
    acc[t][1] = add_products(acc[t][1], h, x + t * x_stride + 4);
  }
}

// sums(T, 16) (+)= segments [begin, end) of the panel at w times x(T, K).
template <int T>
[[gnu::noinline]] void tile(const uint8_t* w, const Format& f, const Segments& segments,
                            int64_t begin, int64_t end, const uint8_t* x, int64_t x_stride,
                            const int32_t* x_sums, float* sums, bool add) {
  __m512 total[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    total[t] = add ? _mm512_loadu_ps(sums + t * kBlockN) : _mm512_setzero_ps();
  }
  Segment segment = segment_at(segments, begin);
  for (int64_t i = begin; i < end; ++i, next_segment(segments, &segment)) {
    const uint8_t* base = w + segment.block;
    const uint8_t* v = base + segment.column * 8;
    const uint8_t* xk = x + segment.k;
    __m512i acc[T][2];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm512_setzero_si512();
    for (int64_t k = 0; k < segment.width; k += 8) {
      add_vector<T>(v + k * 8, xk + k, x_stride, acc);
    }
    const __m512 scale = load_scales(base + segments.block.scales, f.scale_dtype);
    const __m512 zero = load_zeros(base + segments.block.zeros, f.zero_type, 8.0f);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m512i high = _mm512_srai_epi32(acc[t][1], 4);
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(acc[t][0], high));
      const __m512 x_sum = _mm512_cvtepi32_ps(_mm512_set1_epi32(x_sums[t * segments.count + i]));
      total[t] = _mm512_fmadd_ps(_mm512_fnmadd_ps(zero, x_sum, sum), scale, total[t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) _mm512_storeu_ps(sums + t * kBlockN, total[t]);
}

size_t workspace(const LinearArgs& args, int threads) { return workspace_codes(args, threads, 1); }

Status run(const LinearArgs& args, const Ctx& ctx) {
  const Segments segments = segments_of(args.w);
  const Format& f = args.w.format;
  CodeScratch s;
  carve_codes(args, pool_threads(ctx.pool), 1, ctx.scratch, &s);
  const auto arrange = [](const int8_t* codes, int64_t padded, uint8_t* to) {
    std::memcpy(to, codes, static_cast<size_t>(padded));
  };
  return run_codes(
      args, ctx, segments, s, kTileM, arrange,
      [&](int64_t p, int64_t begin, int64_t end, int64_t m0, int64_t rows, float* sums, bool add) {
        const uint8_t* w = args.w.data + p * segments.block.groups * segments.block.bytes;
        for_tiles(rows, kTileM, [&](int64_t m, int64_t count) {
          const uint8_t* x = s.x + (m0 + m) * s.x_stride;
          const int32_t* x_sums = s.x_sums + (m0 + m) * segments.count;
          float* to = sums + m * kBlockN;
          const auto go = [&](auto* kernel) {
            kernel(w, f, segments, begin, end, x, s.x_stride, x_sums, to, add);
          };
          switch (count) {
            case 1: go(tile<1>); break;
            case 2: go(tile<2>); break;
            case 3: go(tile<3>); break;
            case 4: go(tile<4>); break;
            case 5: go(tile<5>); break;
            case 6: go(tile<6>); break;
            case 7: go(tile<7>); break;
            default: go(tile<8>); break;
          }
        });
      });
}

}  // namespace

extern const LinearKernel linear_int4_i8_avx512vnni;
const LinearKernel linear_int4_i8_avx512vnni = {
    "linear_int4_i8_avx512vnni", kArchAvx512Vnni, code_spec(bit(Kind::int4)), workspace, run,
};

}  // namespace lowbit
