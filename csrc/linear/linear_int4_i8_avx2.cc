// linear_int4_i8_avx2: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int4 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns; zeros none, u8 or f32.
// Layout    w in panel16: a lane of 4 bytes holds columns 8j .. 8j + 3 of its row in the low bits
// and
//           8j + 4 .. 8j + 7 in the high ones; x as rows of bytes.
// Bound     M = 1: memory at 1/2 byte a product. Large M: vpmaddubsw, 64 products a cycle with two
//           multipliers of 32 bytes.
// Method    vpmaddubsw of codes (0 .. 15) and x (-128 .. 127) gives sums of two of at most 3840, so
//           eight of them add up in int16 before one vpmaddwd: two instructions for 32 products.
//           Tile of 16 rows of w by 4 rows of x: 8 int16 sums, 4 vectors of codes and 2 broadcasts
//           in 16 registers; the f32 sums stay in L1.
#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

constexpr int64_t kPrefetch = 2048;  // as in linear_f32_avx2
constexpr int64_t kChunkK = 32;      // columns that int16 sums hold: 8 * 3840 < 2^15

__m256i nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }

// 8 columns of 16 rows of w times T rows of x, added to int16 sums.
template <int T>
[[gnu::always_inline]] inline void add_vector(const uint8_t* v, const uint8_t* x,
                                              __m256i (&acc)[T][2]) {
  _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
  const __m256i v0 = load_bytes(v), v1 = load_bytes(v + 32);
  const __m256i l0 = nibbles(v0), l1 = nibbles(v1);
  const __m256i h0 = nibbles(_mm256_srli_epi16(v0, 4)), h1 = nibbles(_mm256_srli_epi16(v1, 4));
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const __m256i xl = broadcast_4(x + 4 * t), xh = broadcast_4(x + 4 * (T + t));
    acc[t][0] = _mm256_add_epi16(acc[t][0], _mm256_maddubs_epi16(l0, xl));
    acc[t][1] = _mm256_add_epi16(acc[t][1], _mm256_maddubs_epi16(l1, xl));
    acc[t][0] = _mm256_add_epi16(acc[t][0], _mm256_maddubs_epi16(h0, xh));
    acc[t][1] = _mm256_add_epi16(acc[t][1], _mm256_maddubs_epi16(h1, xh));
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
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = a.begin; i < a.end; ++i) {
    const Segment segment = segment_at(segments, i);
    const uint8_t* base = a.w + segment.block;
    const uint8_t* v = base + segment.column * 8;
    const uint8_t* x = a.x + segment.k * T;
    __m256i total[T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) total[t][0] = total[t][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < segment.width; k += kChunkK) {
      __m256i acc[T][2];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
      const int64_t left = segment.width - k;
      if (left >= kChunkK) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          add_vector<T>(v + (k + 8 * j) * 8, x + (k + 8 * j) * T, acc);
        }
      } else {
        for (int64_t j = 0; j < left; j += 8) {
          add_vector<T>(v + (k + j) * 8, x + (k + j) * T, acc);
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        total[t][0] = _mm256_add_epi32(total[t][0], _mm256_madd_epi16(acc[t][0], ones));
        total[t][1] = _mm256_add_epi32(total[t][1], _mm256_madd_epi16(acc[t][1], ones));
      }
    }
    const __m256 s0 = load_scales(base + segments.block.scales, f.scale_dtype, 0);
    const __m256 s1 = load_scales(base + segments.block.scales, f.scale_dtype, 1);
    const __m256 z0 = load_zeros(base + segments.block.zeros, f.zero_type, 8.0f, 0);
    const __m256 z1 = load_zeros(base + segments.block.zeros, f.zero_type, 8.0f, 1);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      float* to = a.sums + t * kBlockN;
      const __m256 x_sum = _mm256_cvtepi32_ps(_mm256_set1_epi32(a.x_sums[i * T + t]));
      const __m256 d0 = _mm256_fnmadd_ps(z0, x_sum, _mm256_cvtepi32_ps(total[t][0]));
      const __m256 d1 = _mm256_fnmadd_ps(z1, x_sum, _mm256_cvtepi32_ps(total[t][1]));
      _mm256_storeu_ps(to, _mm256_fmadd_ps(d0, s0, _mm256_loadu_ps(to)));
      _mm256_storeu_ps(to + 8, _mm256_fmadd_ps(d1, s1, _mm256_loadu_ps(to + 8)));
    }
  }
}

constexpr CodeTileRun kTiles[] = {tile<1>, tile<2>, tile<3>, tile<4>};
constexpr CodeKernel kKernel = {kTiles, nullptr, 4, 0, kSliceBytes, 1, nullptr};

size_t workspace(const LinearArgs& args, int threads) {
  return workspace_codes(args, kKernel, threads);
}

Status run(const LinearArgs& args, const Ctx& ctx) { return run_codes(args, ctx, kKernel, 1); }

}  // namespace

extern const LinearKernel linear_int4_i8_avx2;
const LinearKernel linear_int4_i8_avx2 = {
    "linear_int4_i8_avx2", kArchAvx2, code_spec(bit(Kind::int4)), workspace, run,
};

}  // namespace lowbit
