// linear_int8_i8_avx512vnni: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int8 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 4j .. 4j + 3 of its row; x as rows of
//           bytes.
// Bound     M = 1: memory at a byte a product. Large M: vpdpbusd, 64 products each.
// Method    vpdpbusd takes one side unsigned: w xor 0x80 is w + 128, and sums begin at -128 times
//           the sum of x, which makes up for it exactly. Tile of 16 rows of w by 8 rows of x: 16
//           int32 sums for two vectors of w and 8 f32 sums in 32 registers.
#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx512.h"
#include "csrc/simd/avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

constexpr int64_t kTileM = 8;  // as in linear_int4_i8_avx512vnni

// 4 columns of 16 rows of w times T rows of x.
template <int T>
[[gnu::always_inline]] inline void add_vector(const uint8_t* v, const uint8_t* x, int64_t x_stride,
                                              __m512i (&acc)[T]) {
  _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
  const __m512i u = _mm512_xor_si512(load_bytes(v), _mm512_set1_epi8(-128));
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    acc[t] = add_products(acc[t], u, x + t * x_stride);
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
    const uint8_t* v = base + segment.column * 16;
    const uint8_t* xk = x + segment.k;
    // vpdpbusd waits 5 cycles for itself; at two a cycle 10 sums must be under way.
    __m512i even[T], odd[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      even[t] = _mm512_set1_epi32(-128 * x_sums[t * segments.count + i]);
      odd[t] = _mm512_setzero_si512();
    }
    for (int64_t k = 0; k < segment.width; k += 8) {  // blocks are padded to a multiple of 8
      add_vector<T>(v + k * 16, xk + k, x_stride, even);
      add_vector<T>(v + k * 16 + 64, xk + k + 4, x_stride, odd);
    }
    const __m512 scale = load_scales(base + segments.block.scales, f.scale_dtype);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m512i sum = _mm512_add_epi32(even[t], odd[t]);
      total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total[t]);
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

extern const LinearKernel linear_int8_i8_avx512vnni;
const LinearKernel linear_int8_i8_avx512vnni = {
    "linear_int8_i8_avx512vnni", kArchAvx512Vnni, code_spec(bit(Kind::int8)), workspace, run,
};

}  // namespace lowbit
