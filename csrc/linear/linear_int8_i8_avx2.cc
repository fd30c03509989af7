// linear_int8_i8_avx2: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int8 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 4j .. 4j + 3 of its row. x as int16 in
//           tiles of T rows (codes.h), four columns in the order 0 2 1 3.
// Bound     M = 1: memory at a byte a product. Large M: vpmaddwd and vpaddd, one each for 16
//           products.
// Method    shifts part w's bytes into even and odd columns of int16, vpmaddwd multiplies them with
//           the same columns of x. Exact for every code, -128 included, where vpmaddubsw would
//           saturate; two products and two sums for 32 columns, as many as vpmaddubsw, vpmaddwd,
//           sum and a change of sign take. Tile of 16 rows of w by 6 rows of x: 12 int32 sums, two
//           vectors of w, a broadcast and a product in 16 registers; the f32 sums stay in L1. Where
//           several tiles read a panel, its int16 columns are laid out in L1 first.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights, M = 1 80 % of the read
//           bandwidth of the same run, M = 4 141, 64 155 GOP/s with a scale a row; see
//           NOTES.md.
#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

constexpr int kTileM = 6;
constexpr int64_t kPrefetch = 4096;
constexpr int64_t kSliceK = 256;  // columns that are unpacked at a time: 8 KiB

__m256i even(__m256i v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
__m256i odd(__m256i v) { return _mm256_srai_epi16(v, 8); }

// As one piece, for the reason that codes_avx2.h gives.
void add_products(__m256i* acc, __m256i w, __m256i x) {
  __m256i product;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(*acc), "=&x"(product) : "x"(w), "x"(x));
}

// Two columns of 16 rows of w times T rows of x.
template <int T>
[[gnu::always_inline]] inline void add_pair(__m256i w0, __m256i w1, const uint8_t* x,
                                            __m256i (&acc)[T][2]) {
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) {
    const __m256i s = broadcast_4(x + 8 * t);
    add_products(&acc[t][0], w0, s);
    add_products(&acc[t][1], w1, s);
  }
}

template <bool kUnpacked, int T>
void tile(const CodeTile& a) {
  const Segments& segments = *a.segments;
  const DType scale_dtype = a.format->scale_dtype;
  float* sums = a.sums;
  if (!a.add) {
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      _mm256_storeu_ps(sums + t * kBlockN, _mm256_setzero_ps());
      _mm256_storeu_ps(sums + t * kBlockN + 8, _mm256_setzero_ps());
    }
  }
  const uint8_t *w = a.w, *v = a.unpacked;
  Segment segment = segment_at(segments, a.begin);
  const uint8_t* x = a.x + segment.k * 2 * T;
  for (int64_t left = a.end - a.begin; left > 0; --left, next_segment(segments, &segment)) {
    const uint8_t* base = w + segment.block;
    if constexpr (!kUnpacked) v = base + segment.column * 16;
    __m256i acc[T][2];
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < segment.width; k += 4, x += 8 * T) {
      if constexpr (kUnpacked) {
        add_pair<T>(load_bytes(v), load_bytes(v + 32), x, acc);
        add_pair<T>(load_bytes(v + 64), load_bytes(v + 96), x + 4, acc);
        v += 128;
      } else {
        _mm_prefetch(reinterpret_cast<const char*>(v) + kPrefetch, _MM_HINT_T0);
        add_pair<T>(even(load_bytes(v)), even(load_bytes(v + 32)), x, acc);
        add_pair<T>(odd(load_bytes(v)), odd(load_bytes(v + 32)), x + 4, acc);
        v += 64;
      }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256 scale = load_scales(base + segments.block.scales, scale_dtype, h);
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        float* to = sums + t * kBlockN + h * 8;
        const __m256 sum = _mm256_cvtepi32_ps(acc[t][h]);
        _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(to)));
      }
    }
  }
}

// For 4 columns: the even ones of 16 rows, then the odd ones, as the tiles take them.
void unpack(const CodeTile& a, uint8_t* to) {
  Segment segment = segment_at(*a.segments, a.begin);
  for (int64_t i = a.begin; i < a.end; ++i, next_segment(*a.segments, &segment)) {
    const uint8_t* v = a.w + segment.block + segment.column * 16;
    for (int64_t k = 0; k < segment.width; k += 4, v += 64, to += 128) {
      // The next slice of this panel, which comes after those of the block's other panels.
      _mm_prefetch(reinterpret_cast<const char*>(v) + kSliceK * 16, _MM_HINT_T1);
      const __m256i v0 = load_bytes(v), v1 = load_bytes(v + 32);
      __m256i* at = reinterpret_cast<__m256i*>(to);
      _mm256_storeu_si256(at, even(v0));
      _mm256_storeu_si256(at + 1, even(v1));
      _mm256_storeu_si256(at + 2, odd(v0));
      _mm256_storeu_si256(at + 3, odd(v1));
    }
  }
}

template <bool kUnpacked>
constexpr CodeTileRun kTiles[kTileM] = {
    tile<kUnpacked, 1>, tile<kUnpacked, 2>, tile<kUnpacked, 3>,
    tile<kUnpacked, 4>, tile<kUnpacked, 5>, tile<kUnpacked, 6>,
};

void arrange(const uint8_t* four, uint8_t* to) {
  const int8_t* codes = reinterpret_cast<const int8_t*>(four);
  const int16_t words[4] = {codes[0], codes[2], codes[1], codes[3]};
  std::memcpy(to, words, 8);
}

CodeKernel kernel() {
  CodeKernel k = {kTiles<false>, nullptr, kTileM, 0, kSliceBytes / 2, 2, arrange};
  k.segment_k = kSliceK;
  k.unpacked = kTiles<true>;
  k.unpack = unpack;
  k.unpack_from = 25;
  k.unpacked_width = 2;
  return k;
}

size_t workspace(const LinearArgs& args, int threads) {
  return workspace_codes(args, kernel(), threads);
}

Status run(const LinearArgs& args, const Ctx& ctx) { return run_codes(args, ctx, kernel(), 1); }

}  // namespace

extern const LinearKernel linear_int8_i8_avx2;
const LinearKernel linear_int8_i8_avx2 = {
    "linear_int8_i8_avx2", kArchAvx2, code_spec(bit(Kind::int8)), workspace, run,
};

}  // namespace lowbit
