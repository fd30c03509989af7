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

constexpr int64_t kPrefetch = 2048;  // as in linear_f32_avx2

__m256i even(__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
__m256i odd(__m256i v) { return _mm256_srai_epi16(v, 8); }

// 4 columns of 16 rows of w times T rows of x.
template <int T>
[[gnu::always_inline]] inline void add_vector(const uint8_t* v, const uint8_t* x,
                                              __m256i (&acc)[T][2]) {
  const __m256i v0 = load_bytes(v), v1 = load_bytes(v + 32);
  const __m256i e0 = even(v0), e1 = even(v1), o0 = odd(v0), o1 = odd(v1);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const __m256i xe = broadcast_4(x + 8 * t), xo = broadcast_4(x + 8 * t + 4);
    acc[t][0] = _mm256_add_epi32(acc[t][0], _mm256_madd_epi16(e0, xe));
    acc[t][1] = _mm256_add_epi32(acc[t][1], _mm256_madd_epi16(e1, xe));
    acc[t][0] = _mm256_add_epi32(acc[t][0], _mm256_madd_epi16(o0, xo));
    acc[t][1] = _mm256_add_epi32(acc[t][1], _mm256_madd_epi16(o1, xo));
  }
}

template <int T>
void tile(const CodeTile& a) {
  const Segments& segments = *a.segments;
  const Format& f = *a.format;
  if (!a.add) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      _mm256_storeu_ps(a.sums + t * kBlockN, _mm256_setzero_ps());
      _mm256_storeu_ps(a.sums + t * kBlockN + 8, _mm256_setzero_ps());
    }
  }
  for (int64_t i = a.begin; i < a.end; ++i) {
    const Segment segment = segment_at(segments, i);
    const uint8_t* base = a.w + segment.block;
    const uint8_t* v = base + segment.column * 16;
    const uint8_t* x = a.x + segment.k * 2 * T;
    __m256i acc[T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < segment.width; k += 4) {
      _mm_prefetch(reinterpret_cast<const char*>(v + k * 16) + kPrefetch, _MM_HINT_T0);
      add_vector<T>(v + k * 16, x + k * 2 * T, acc);
    }
    const __m256 s0 = load_scales(base + segments.block.scales, f.scale_dtype, 0);
    const __m256 s1 = load_scales(base + segments.block.scales, f.scale_dtype, 1);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      float* to = a.sums + t * kBlockN;
      const __m256 d0 = _mm256_cvtepi32_ps(acc[t][0]), d1 = _mm256_cvtepi32_ps(acc[t][1]);
      _mm256_storeu_ps(to, _mm256_fmadd_ps(d0, s0, _mm256_loadu_ps(to)));
      _mm256_storeu_ps(to + 8, _mm256_fmadd_ps(d1, s1, _mm256_loadu_ps(to + 8)));
    }
  }
}

constexpr CodeTileRun kTiles[] = {tile<1>, tile<2>, tile<3>, tile<4>};
void arrange(const uint8_t* four, uint8_t* to) {
  const int8_t* codes = reinterpret_cast<const int8_t*>(four);
  const int16_t words[4] = {codes[0], codes[2], codes[1], codes[3]};
  std::memcpy(to, words, 8);
}

constexpr CodeKernel kKernel = {kTiles, nullptr, 4, 0, kSliceBytes, 2, arrange};

size_t workspace(const LinearArgs& args, int threads) {
  return workspace_codes(args, kKernel, threads);
}

Status run(const LinearArgs& args, const Ctx& ctx) { return run_codes(args, ctx, kKernel, 1); }

}  // namespace

extern const LinearKernel linear_int8_i8_avx2;
const LinearKernel linear_int8_i8_avx2 = {
    "linear_int8_i8_avx2", kArchAvx2, code_spec(bit(Kind::int8)), workspace, run,
};

}  // namespace lowbit
