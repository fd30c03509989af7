// linear_int8_i8_avx2: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int8 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 4j .. 4j + 3 of its row. x as int16, four
//           columns in the order 0 2 1 3.
// Bound     M = 1: memory at a byte a product. Large M: vpmaddwd, 32 products a cycle with two
//           multipliers of 16 int16.
// Method    shifts part w's bytes into even and odd columns of int16, vpmaddwd multiplies them with
//           the same columns of x. Exact for every code, -128 included, where vpmaddubsw would
//           saturate; two products and two sums for 32 columns, as many as vpmaddubsw, vpmaddwd,
//           sum and a change of sign take. Tile of 16 rows of w by 4 rows of x: 8 int32 sums, 4
//           vectors of w and 2 broadcasts in 16 registers; the f32 sums stay in L1.
#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

constexpr int64_t kTileM = 4;
constexpr int64_t kPrefetch = 2048;  // as in linear_f32_avx2

__m256i even(__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
__m256i odd(__m256i v) { return _mm256_srai_epi16(v, 8); }

// 4 columns of 16 rows of w times T rows of x.
template <int T>
[[gnu::always_inline]] inline void add_vector(const uint8_t* v, const uint8_t* x, int64_t x_stride,
                                              __m256i (&acc)[T][2]) {
  const __m256i v0 = load_bytes(v), v1 = load_bytes(v + 32);
  const __m256i e0 = even(v0), e1 = even(v1), o0 = odd(v0), o1 = odd(v1);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const __m256i xe = broadcast_4(x + t * x_stride), xo = broadcast_4(x + t * x_stride + 4);
    acc[t][0] = _mm256_add_epi32(acc[t][0], _mm256_madd_epi16(e0, xe));
    acc[t][1] = _mm256_add_epi32(acc[t][1], _mm256_madd_epi16(e1, xe));
    acc[t][0] = _mm256_add_epi32(acc[t][0], _mm256_madd_epi16(o0, xo));
    acc[t][1] = _mm256_add_epi32(acc[t][1], _mm256_madd_epi16(o1, xo));
  }
}

// sums(T, 16) (+)= segments [begin, end) of the panel at w times x(T, K).
template <int T>
[[gnu::noinline]] void tile(const uint8_t* w, const Format& f, const Segments& segments,
                            int64_t begin, int64_t end, const uint8_t* x, int64_t x_stride,
                            float* sums, bool add) {
  if (!add) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      _mm256_storeu_ps(sums + t * kBlockN, _mm256_setzero_ps());
      _mm256_storeu_ps(sums + t * kBlockN + 8, _mm256_setzero_ps());
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    const Segment segment = segment_at(segments, i);
    const uint8_t* base = w + segment.block;
    const uint8_t* v = base + segment.column * 16;
    const uint8_t* xk = x + segment.k * 2;
    __m256i acc[T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < segment.width; k += 4) {
      _mm_prefetch(reinterpret_cast<const char*>(v + k * 16) + kPrefetch, _MM_HINT_T0);
      add_vector<T>(v + k * 16, xk + k * 2, x_stride, acc);
    }
    const __m256 s0 = load_scales(base + segments.block.scales, f.scale_dtype, 0);
    const __m256 s1 = load_scales(base + segments.block.scales, f.scale_dtype, 1);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      float* to = sums + t * kBlockN;
      const __m256 d0 = _mm256_cvtepi32_ps(acc[t][0]), d1 = _mm256_cvtepi32_ps(acc[t][1]);
      _mm256_storeu_ps(to, _mm256_fmadd_ps(d0, s0, _mm256_loadu_ps(to)));
      _mm256_storeu_ps(to + 8, _mm256_fmadd_ps(d1, s1, _mm256_loadu_ps(to + 8)));
    }
  }
}

size_t workspace(const LinearArgs& args, int threads) { return workspace_codes(args, threads, 2); }

Status run(const LinearArgs& args, const Ctx& ctx) {
  const Segments segments = segments_of(args.w);
  const Format& f = args.w.format;
  CodeScratch s;
  carve_codes(args, pool_threads(ctx.pool), 2, ctx.scratch, &s);
  const auto arrange = [](const int8_t* codes, int64_t padded, uint8_t* to) {
    int16_t* words = reinterpret_cast<int16_t*>(to);
    for (int64_t k = 0; k < padded; k += 4) {
      words[k] = codes[k];
      words[k + 1] = codes[k + 2];
      words[k + 2] = codes[k + 1];
      words[k + 3] = codes[k + 3];
    }
  };
  return run_codes(
      args, ctx, segments, s, kTileM, arrange,
      [&](int64_t p, int64_t begin, int64_t end, int64_t m0, int64_t rows, float* sums, bool add) {
        const uint8_t* w = args.w.data + p * segments.block.groups * segments.block.bytes;
        for_tiles(rows, kTileM, [&](int64_t m, int64_t count) {
          const uint8_t* x = s.x + (m0 + m) * s.x_stride;
          float* to = sums + m * kBlockN;
          const auto go = [&](auto* kernel) {
            kernel(w, f, segments, begin, end, x, s.x_stride, to, add);
          };
          switch (count) {
            case 1: go(tile<1>); break;
            case 2: go(tile<2>); break;
            case 3: go(tile<3>); break;
            default: go(tile<4>); break;
          }
        });
      });
}

}  // namespace

extern const LinearKernel linear_int8_i8_avx2;
const LinearKernel linear_int8_i8_avx2 = {
    "linear_int8_i8_avx2", kArchAvx2, code_spec(bit(Kind::int8)), workspace, run,
};

}  // namespace lowbit
