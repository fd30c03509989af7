// linear_int8_i8_avx512vnni: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int8 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 4j .. 4j + 3 of its row; x in tiles of T
//           rows (codes.h).
// Bound     M = 1: memory at a byte a product. Large M: vpdpbusd, 64 products each, and in groups
//           of 32 one product in nine that scales the sums.
// Method    vpdpbusd takes one side unsigned: w xor 0x80 is w + 128, and sums begin at -128 times
//           the sum of x, which makes up for it exactly. Few rows of x: one panel at a time, one
//           stream from memory. More: two panels by 12 rows of x, 24 int32 sums in registers, each
//           broadcast of x used twice; the f32 sums wait in L1.
// Measured  2-core AMD EPYC (Zen 4), 4096 x 14336, a scale a row, one thread, cold weights: M = 1
//           84 to 95 % of the read bandwidth of the same run, M = 8 404, 64 430, 512 409 GOP/s
//           (87 % of vpdpbusd); see NOTES.md.
#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx512.h"
#include "csrc/simd/avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

// R panels by T rows of x.
template <int R, int T>
void tile(const CodeTile& a) {
  // A sum waits 4 cycles for itself, so at one product a cycle 4 must be under way.
  constexpr int kSums = R * T < 4 ? 2 : 1;  // and so many vectors of a panel in a round
  constexpr int64_t kStep = 4 * kSums;
  const Segments& segments = *a.segments;
  const int64_t panel = segments.block.groups * segments.block.bytes;
  const __m512i flip = _mm512_set1_epi8(-128);
  Segment segment = segment_at(segments, a.begin);
  for (int64_t i = a.begin; i < a.end; ++i, next_segment(segments, &segment)) {
    const uint8_t* base = a.w + segment.block;
    const uint8_t* v = base + segment.column * 16;
    const uint8_t* x = a.x + segment.k * T;
    const int32_t* x_sums = a.x_sums + i * T;
    __m512i acc[kSums][T][R];
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        acc[0][t][r] = begin_sum(x_sums + t);
        if constexpr (kSums == 2) acc[1][t][r] = _mm512_setzero_si512();
      }
    }
    for (int64_t k = 0; k < segment.width; k += kStep, v += 16 * kStep, x += kStep * T) {
      prefetch_x<R * T>(x);
#pragma GCC unroll 2
      for (int j = 0; j < kSums; ++j) {  // blocks are padded to a multiple of 8 columns
        __m512i u[R];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          prefetch_line<T>(v + 64 * j + r * panel);
          u[r] = _mm512_xor_si512(load_bytes(v + 64 * j + r * panel), flip);
        }
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t) {
          __m512i(&sum)[R] = acc[j][t];
          const uint8_t* four = x + 4 * (j * T + t);
          if constexpr (R == 1) {
            sum[0] = add_products(sum[0], u[0], four);
          } else {
            const __m512i s = broadcast_4(four);
#pragma GCC unroll 2
            for (int r = 0; r < R; ++r) sum[r] = add_products(sum[r], u[r], s);
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const uint8_t* at = base + segments.block.scales + r * panel;
      prefetch_line<T>(at);
      const __m512 scale = load_scales(at, a.format->scale_dtype);
      const bool add = a.add || i > a.begin;
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
        if constexpr (kSums == 2) acc[0][t][r] = _mm512_add_epi32(acc[0][t][r], acc[1][t][r]);
        float* to = a.sums + t * kBlockN + r * kPanel;
        const __m512 before = add ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
        _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[0][t][r]), scale, before));
      }
    }
  }
}

constexpr CodeTileRun kTiles[] = {
    tile<1, 1>, tile<1, 2>, tile<1, 3>, tile<1, 4>,  tile<1, 5>,  tile<1, 6>,
    tile<1, 7>, tile<1, 8>, tile<1, 9>, tile<1, 10>, tile<1, 11>, tile<1, 12>,
};
constexpr CodeTileRun kPairs[] = {
    tile<2, 1>, tile<2, 2>, tile<2, 3>, tile<2, 4>,  tile<2, 5>,  tile<2, 6>,
    tile<2, 7>, tile<2, 8>, tile<2, 9>, tile<2, 10>, tile<2, 11>, tile<2, 12>,
};

// Columns of a segment: 96 rows of x of so many stay in L2, and the end of a segment, as long as 10
// steps of 4 columns, is hardly seen. An int32 sum would hold 2^17 columns.
constexpr int64_t kColumns = 5120;
constexpr CodeKernel kKernel = {kTiles, kPairs, 12, 7, 0, 1, nullptr, kColumns};

size_t workspace(const LinearArgs& args, int threads) {
  return workspace_codes(args, kKernel, threads);
}

Status run(const LinearArgs& args, const Ctx& ctx) { return run_codes(args, ctx, kKernel, -128); }

}  // namespace

extern const LinearKernel linear_int8_i8_avx512vnni;
const LinearKernel linear_int8_i8_avx512vnni = {
    "linear_int8_i8_avx512vnni", kArchAvx512Vnni, code_spec(bit(Kind::int8)), workspace, run,
};

}  // namespace lowbit
