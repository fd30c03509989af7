// linear_int1_lut_i8_avx512vbmi: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias)
// + residual; int1 weights, i8 activations, exact integer sums per group, by tables.
//
// Shapes    M = 1, groups of 32 or 64 columns: elsewhere linear_int1_i8_avx512vnni is as fast or
//           faster.
// Layout    w in panel16: the low four bits of byte b of a lane are columns 32j + b, + 4, + 8, + 12
//           of its row, the high four those 16 further. x as tables, 256 bytes for 32 columns.
// Bound     M = 1: memory at 1/8 byte a product.
// Method    Four bits of w say which of four codes of x are added: one of 16 sums. 64 bytes hold
//           those of the four bytes of a lane, so vpermb looks up 64 sums at once, its index being
//           four bits of w and, above them, the number of the byte. A sum has 10 bits: two tables,
//           for its low byte and for what is above it, keep it exact. vpdpbusd with ones adds the
//           four sums of a lane. 11 instructions for 512 products, into two sums: a group ends
//           after a shift and an addition, where one sum for each bit needs 14.
//           The tables of a row of x are made once, 8 bytes a column, and taken in slices that stay
//           in L1 for the panels of a block.
// Source    Wei et al., T-MAC, 2024 (one table for four weights of one bit).
// Measured  NOTES.md.
#include "csrc/linear/narrow_avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

constexpr int64_t kColumns = 32;
constexpr int64_t kWidth = 8;            // bytes of tables for a column
constexpr int64_t kSliceColumns = 1024;  // 8 KiB of tables
constexpr int64_t kAhead = 1024;         // of the four panels' streams

// The sums of four codes under each of 16 masks, for the four bytes of a lane and both halves of
// them.
void make_tables(const uint8_t* codes, int64_t columns, uint8_t* to) {
  const __m512i masks =
      _mm512_setr_epi32(0x00000000, 0x00000001, 0x00000100, 0x00000101, 0x00010000, 0x00010001,
                        0x00010100, 0x00010101, 0x01000000, 0x01000001, 0x01000100, 0x01000101,
                        0x01010000, 0x01010001, 0x01010100, 0x01010101);
  // Columns b, b + 4, b + 8 and b + 12 of 16 side by side.
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int64_t k = 0; k < columns; k += kColumns / 2, to += 2 * 64) {
    const __m128i x =
        _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + k)), order);
    alignas(16) uint8_t fours[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(fours), x);
    for (int b = 0; b < 4; ++b) {
      const __m512i sums = add_products(_mm512_setzero_si512(), masks, fours + 4 * b);
      _mm_store_si128(reinterpret_cast<__m128i*>(to) + b, _mm512_cvtepi32_epi8(sums));
      _mm_store_si128(reinterpret_cast<__m128i*>(to + 64) + b,
                      _mm512_cvtepi32_epi8(_mm512_srai_epi32(sums, 8)));
    }
  }
}

// (v & 15) | place, one instruction.
inline __m512i index_of(__m512i v, __m512i place) {
  constexpr int kAndOr = 0xea;  // (a & b) | c
  return _mm512_ternarylogic_epi32(v, _mm512_set1_epi8(15), place, kAndOr);
}

template <int kPanels, bool kPlain>
void lut_panels(const CodeTile& a, int64_t first) {
  const Segments& segments = *a.segments;
  const Format& f = *a.format;
  const int64_t panel_bytes = segments.block.groups * segments.block.bytes;
  const uint8_t* const panel = a.w + first * panel_bytes;
  float* const sums = a.sums + first * kPanel;
  const __m512i place = _mm512_set1_epi32(0x30201000), ones = _mm512_set1_epi8(1);
  __m512 total[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
    total[p] = a.add ? _mm512_loadu_ps(sums + p * kPanel) : _mm512_setzero_ps();
  }
  Segment segment = segment_at(segments, a.begin);
  for (int64_t i = a.begin; i < a.end; ++i, next_segment(segments, &segment)) {
    const uint8_t* const base = panel + segment.block;
    const uint8_t* v = base + segment.column / kColumns * 64;
    const uint8_t* x = a.x + segment.k * kWidth;
    __m512i low[kPanels], high[kPanels], low1[kPanels], high1[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
      low[p] = high[p] = low1[p] = high1[p] = _mm512_setzero_si512();
    for (int64_t k = 0; k < segment.width; k += kColumns, v += 64, x += kColumns * kWidth) {
      const __m512i tables[4] = {load_bytes(x), load_bytes(x + 64), load_bytes(x + 128),
                                 load_bytes(x + 192)};
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const uint8_t* const line = v + p * panel_bytes;
        _mm_prefetch(reinterpret_cast<const char*>(line) + kAhead, _MM_HINT_T0);
        __m512i codes = load_bytes(line);
        asm("" : "+v"(codes));  // loaded once, not once for each half
        const __m512i i0 = index_of(codes, place);
        const __m512i i1 = index_of(_mm512_srli_epi16(codes, 4), place);
        low[p] = add_products(low[p], _mm512_permutexvar_epi8(i0, tables[0]), ones);
        high[p] = add_products(high[p], ones, _mm512_permutexvar_epi8(i0, tables[1]));
        low1[p] = add_products(low1[p], _mm512_permutexvar_epi8(i1, tables[2]), ones);
        high1[p] = add_products(high1[p], ones, _mm512_permutexvar_epi8(i1, tables[3]));
      }
    }
    const __m512 x_sum = _mm512_cvtepi32_ps(_mm512_set1_epi32(a.x_sums[i]));
    const __m512 half_sum = _mm512_mul_ps(x_sum, _mm512_set1_ps(0.5f));
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const uint8_t* const at = base + p * panel_bytes;
      const __m512 whole = _mm512_cvtepi32_ps(
          _mm512_add_epi32(_mm512_add_epi32(low[p], low1[p]),
                           _mm512_slli_epi32(_mm512_add_epi32(high[p], high1[p]), 8)));
      __m512 scale, sum;
      if constexpr (kPlain) {
        scale = load_16(at + segments.block.scales, DType::f16);
        sum = _mm512_sub_ps(whole, half_sum);
      } else {
        scale = load_scales(at + segments.block.scales, f.scale_dtype);
        const __m512 zero = load_zeros(at + segments.block.zeros, f.zero_type, 0.5f);
        sum = _mm512_fnmadd_ps(zero, x_sum, whole);
      }
      total[p] = _mm512_fmadd_ps(_mm512_add_ps(sum, sum), scale, total[p]);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) _mm512_storeu_ps(sums + p * kPanel, total[p]);
}

template <bool kPlain>
void lut_block(const CodeTile& a) {
  int64_t p = 0;
  for (; p + 4 <= a.panels; p += 4) lut_panels<4, kPlain>(a, p);
  for (; p < a.panels; ++p) lut_panels<1, kPlain>(a, p);
}
void lut_tile(const CodeTile& a) {
  const bool plain = a.format->scale_dtype == DType::f16 && a.format->zero_type == ZeroType::none;
  plain ? lut_block<true>(a) : lut_block<false>(a);
}

constexpr CodeTileRun kTiles[1] = {lut_tile};
constexpr CodeKernel make_kernel() {
  CodeKernel kernel = {};
  kernel.tiles = kTiles;
  kernel.height = 1;
  kernel.width = kWidth;
  kernel.arrange_columns = make_tables;
  kernel.slice_columns = kSliceColumns;
  return kernel;
}
constexpr CodeKernel kKernel = make_kernel();

size_t workspace(const LinearArgs& args, int threads) {
  return workspace_codes(args, kKernel, threads);
}
Status run(const LinearArgs& args, const Ctx& ctx) { return run_codes(args, ctx, kKernel, 1); }

constexpr LinearSpec make_spec() {
  LinearSpec spec = code_spec(bit(Kind::int1));
  spec.m_max = 1;
  spec.group_max = 64;
  return spec;
}

}  // namespace

extern const LinearKernel linear_int1_lut_i8_avx512vbmi;
const LinearKernel linear_int1_lut_i8_avx512vbmi = {
    "linear_int1_lut_i8_avx512vbmi", kArchAvx512Vbmi, make_spec(), workspace, run,
};

}  // namespace lowbit
