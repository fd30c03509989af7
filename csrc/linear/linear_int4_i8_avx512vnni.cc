// linear_int4_i8_avx512vnni: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int4 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns; zeros none, u8 or f32.
// Layout    w in panel16: a lane of 4 bytes holds columns 8j .. 8j + 3 of its row in the low bits
//           and 8j + 4 .. 8j + 7 in the high ones; x in tiles of T rows (codes.h).
// Bound     M = 1: memory at 1/2 byte a product. Large M: vpdpbusd, 64 products each, and the
//           products that scale the sums, which take the same unit: in groups of 32, 8 and 1 of
//           them (2 with zero points), so 89 % (80 %) of vpdpbusd alone.
// Method    vpdpbusd multiplies codes (0 .. 15) with a broadcast of 4 bytes of x. Sums of symmetric
//           weights begin at -8 times the sum of x, exactly; zero points take one product a group.
//           Tile of 16 rows of w by 8 rows of x (12 where panels are odd): int32 sums, f32 sums,
//           the codes and two constants in 32 registers. From 9 rows on two panels by 12 rows of x:
//           24 int32 sums, each broadcast of x used twice; the f32 sums wait in L1.
// Measured  2-core AMD EPYC (Zen 4), 4096 x 14336 in groups of 32, one thread, cold weights: M = 1
//           76 to 86 % of the read bandwidth of the same run, M = 4 326 GOP/s; Zen 5: M = 64 and
//           512 780 GOP/s (75 % of vpdpbusd); see NOTES.md.
#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx512.h"
#include "csrc/simd/avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

template <int T, bool kZeros>
void tile(const CodeTile& a) {
  // A sum waits 4 cycles for itself, so at one product a cycle 4 must be under way.
  constexpr int kSums = T < 4 ? 2 : 1;
  const Segments& segments = *a.segments;
  const __m512i low = _mm512_set1_epi8(15);
  float* sums = a.sums;
  __m512 total[T];
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) {
    total[t] = a.add ? _mm512_loadu_ps(sums + t * kBlockN) : _mm512_setzero_ps();
  }
  Segment segment = segment_at(segments, a.begin);
  for (int64_t i = a.begin; i < a.end; ++i, next_segment(segments, &segment)) {
    const uint8_t* base = a.w + segment.block;
    const uint8_t* v = base + segment.column * 8;
    const uint8_t* x = a.x + segment.k * T;
    const int32_t* x_sums = a.x_sums + i * T;
    __m512i acc[kSums][T];
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      acc[0][t] = kZeros ? _mm512_setzero_si512() : begin_sum(x_sums + t);
      if constexpr (kSums == 2) acc[1][t] = _mm512_setzero_si512();
    }
    for (int64_t k = 0; k < segment.width; k += 8, v += 64, x += 8 * T) {
      prefetch_line<2 * T>(v);
      const __m512i codes = load_bytes(v);
      const __m512i l = _mm512_and_si512(codes, low);
      const __m512i h = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
        const uint8_t *four = x + 4 * t, *next = x + 4 * (T + t);
        if constexpr (kSums == 2) {
          acc[0][t] = add_products(acc[0][t], l, four);
          acc[1][t] = add_products(acc[1][t], h, next);
        } else {
          acc[0][t] = add_products(acc[0][t], l, four, h, next);
        }
      }
    }
    prefetch_line<2 * T>(base + segments.block.scales);
    const __m512 scale = load_scales(base + segments.block.scales, a.format->scale_dtype);
    const __m512 zero =
        kZeros ? load_zeros(base + segments.block.zeros, a.format->zero_type, 8.0f) : scale;
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      if constexpr (kSums == 2) acc[0][t] = _mm512_add_epi32(acc[0][t], acc[1][t]);
      __m512 sum = _mm512_cvtepi32_ps(acc[0][t]);
      if constexpr (kZeros) {
        sum = _mm512_fnmadd_ps(zero, _mm512_cvtepi32_ps(_mm512_set1_epi32(x_sums[t])), sum);
      }
      total[t] = _mm512_fmadd_ps(sum, scale, total[t]);
    }
  }
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) _mm512_storeu_ps(sums + t * kBlockN, total[t]);
}

// Two panels by T rows of x: each broadcast of x serves both. The f32 sums wait in L1.
template <int T, bool kZeros>
void pair_tile(const CodeTile& a) {
  const Segments& segments = *a.segments;
  const int64_t panel = segments.block.groups * segments.block.bytes;
  const __m512i low = _mm512_set1_epi8(15);
  if (!a.add) {
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      _mm512_storeu_ps(a.sums + t * kBlockN, _mm512_setzero_ps());
      _mm512_storeu_ps(a.sums + t * kBlockN + kPanel, _mm512_setzero_ps());
    }
  }
  Segment segment = segment_at(segments, a.begin);
  for (int64_t i = a.begin; i < a.end; ++i, next_segment(segments, &segment)) {
    const uint8_t* base = a.w + segment.block;
    const uint8_t* v = base + segment.column * 8;
    const uint8_t* x = a.x + segment.k * T;
    const int32_t* x_sums = a.x_sums + i * T;
    __m512i acc[T][2];
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      if constexpr (kZeros) {
        acc[t][0] = acc[t][1] = _mm512_setzero_si512();
      } else {
        acc[t][0] = begin_sum(x_sums + t);
        acc[t][1] = begin_sum(x_sums + t);
      }
    }
    for (int64_t k = 0; k < segment.width; k += 8, v += 64, x += 8 * T) {
      prefetch_line<2 * T>(v);
      prefetch_line<2 * T>(v + panel);
      prefetch_x<2 * T>(x);
      const __m512i c0 = load_bytes(v), c1 = load_bytes(v + panel);
      const __m512i l0 = _mm512_and_si512(c0, low), l1 = _mm512_and_si512(c1, low);
      const __m512i h0 = _mm512_and_si512(_mm512_srli_epi16(c0, 4), low);
      const __m512i h1 = _mm512_and_si512(_mm512_srli_epi16(c1, 4), low);
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
        add_products(&acc[t][0], &acc[t][1], l0, l1, x + 4 * t, h0, h1, x + 4 * (T + t));
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      const uint8_t* block = base + r * panel;
      prefetch_line<2 * T>(block + segments.block.scales);
      const __m512 scale = load_scales(block + segments.block.scales, a.format->scale_dtype);
      const __m512 zero =
          kZeros ? load_zeros(block + segments.block.zeros, a.format->zero_type, 8.0f) : scale;
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
        __m512 sum = _mm512_cvtepi32_ps(acc[t][r]);
        if constexpr (kZeros) {
          sum = _mm512_fnmadd_ps(zero, _mm512_cvtepi32_ps(_mm512_set1_epi32(x_sums[t])), sum);
        }
        float* to = a.sums + t * kBlockN + r * kPanel;
        _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(to)));
      }
    }
  }
}

constexpr CodeTileRun kSymmetric[] = {
    tile<1, false>, tile<2, false>,  tile<3, false>,  tile<4, false>,
    tile<5, false>, tile<6, false>,  tile<7, false>,  tile<8, false>,
    tile<9, false>, tile<10, false>, tile<11, false>, tile<12, false>,
};
constexpr CodeTileRun kZeroed[] = {
    tile<1, true>, tile<2, true>, tile<3, true>, tile<4, true>,  tile<5, true>,  tile<6, true>,
    tile<7, true>, tile<8, true>, tile<9, true>, tile<10, true>, tile<11, true>, tile<12, true>,
};
constexpr CodeTileRun kSymmetricPairs[] = {
    pair_tile<1, false>, pair_tile<2, false>,  pair_tile<3, false>,  pair_tile<4, false>,
    pair_tile<5, false>, pair_tile<6, false>,  pair_tile<7, false>,  pair_tile<8, false>,
    pair_tile<9, false>, pair_tile<10, false>, pair_tile<11, false>, pair_tile<12, false>,
};
constexpr CodeTileRun kZeroedPairs[] = {
    pair_tile<1, true>, pair_tile<2, true>,  pair_tile<3, true>,  pair_tile<4, true>,
    pair_tile<5, true>, pair_tile<6, true>,  pair_tile<7, true>,  pair_tile<8, true>,
    pair_tile<9, true>, pair_tile<10, true>, pair_tile<11, true>, pair_tile<12, true>,
};

CodeKernel kernel_for(const LinearArgs& args) {
  const bool zeros = args.w.format.zero_type != ZeroType::none;
  return {
      zeros ? kZeroed : kSymmetric, zeros ? kZeroedPairs : kSymmetricPairs, 12, 9, 0, 1, nullptr};
}

size_t workspace(const LinearArgs& args, int threads) {
  return workspace_codes(args, kernel_for(args), threads);
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const bool zeros = args.w.format.zero_type != ZeroType::none;
  return run_codes(args, ctx, kernel_for(args), zeros ? 1 : -8);
}

}  // namespace

extern const LinearKernel linear_int4_i8_avx512vnni;
const LinearKernel linear_int4_i8_avx512vnni = {
    "linear_int4_i8_avx512vnni", kArchAvx512Vnni, code_spec(bit(Kind::int4)), workspace, run,
};

}  // namespace lowbit
