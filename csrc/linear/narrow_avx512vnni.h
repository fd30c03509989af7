// What the VNNI rows of codes of 3 bits and fewer share: the tile and the walk. A row brings a
// struct Codes with
//
//   kColumns, kBytes    of a chunk: the least number of columns of sixteen rows that fills vectors
//   kVectors            of unsigned codes in a chunk; vector f holds columns 4f .. 4f + 3
//   decode(p, c)        the chunk at p as those vectors
//   kFewRows            rows of x up to which codes are multiplied where they lie
//   kSums               sums that `products` keeps apart for each of these rows
//   products<T>(p, x, acc), total(acc)
//                       masked bytes times x: a code that lies s bits up counts 2^s times too much,
//                       so each s has a sum of its own, and `total` shifts those once a segment
//                       instead of every vector
//   kMiddle, kFactor    value = scale * (kFactor * code - kMiddle) of the symmetric kinds; less
//   than
//                       0: what the kind has as its middle
#pragma once

#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx512.h"
#include "csrc/simd/avx512vnni.h"

namespace lowbit::avx512 {

inline constexpr int64_t kNarrowTileM = 8;  // 8 sums, 8 totals and the codes in 32 registers

// The bytes of v under a mask that is the same in every byte.
static inline __m512i masked(__m512i v, int mask) {
  return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(mask)));
}

template <class Codes, int T>
static void narrow_tile(const CodeTile& a) {
  constexpr bool kFew = T <= Codes::kFewRows;
  // A sum waits 4 cycles for itself, so at one a cycle 4 must be under way.
  constexpr int kSums = kFew ? Codes::kSums : T < 4 ? 2 : 1;
  const Segments& segments = *a.segments;
  const Format& f = *a.format;
  const float middle =
      Codes::kMiddle < 0.0f ? static_cast<float>(kind_row(f.kind).mid) : Codes::kMiddle;
  float* sums = a.sums;
  __m512 total[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    total[t] = a.add ? _mm512_loadu_ps(sums + t * kBlockN) : _mm512_setzero_ps();
  }
  Segment segment = segment_at(segments, a.begin);
  for (int64_t i = a.begin; i < a.end; ++i, next_segment(segments, &segment)) {
    const uint8_t* base = a.w + segment.block;
    const uint8_t* v = base + segment.column / Codes::kColumns * Codes::kBytes;
    const uint8_t* x = a.x + segment.k * T;
    __m512i acc[T][kSums];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
      for (int s = 0; s < kSums; ++s) acc[t][s] = _mm512_setzero_si512();
    }
    for (int64_t k = 0; k < segment.width;
         k += Codes::kColumns, v += Codes::kBytes, x += Codes::kColumns * T) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < Codes::kBytes; i += 64) {
        const char* ahead = reinterpret_cast<const char*>(v) + kPrefetch + i;
        // One row of x reads a panel once, so it need not stay in L2. NOTES.md has what that gains.
        if constexpr (T == 1) {
          _mm_prefetch(ahead, _MM_HINT_NTA);
        } else {
          _mm_prefetch(ahead, _MM_HINT_T0);
        }
      }
      if constexpr (kFew) {
        Codes::template products<T>(v, x, acc);
      } else {
        __m512i c[Codes::kVectors];
        Codes::decode(v, c);
#pragma GCC unroll 8
        for (int j = 0; j < Codes::kVectors; ++j) {
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            __m512i& sum = acc[t][j % kSums];
            sum = add_products(sum, c[j], x + 4 * (j * T + t));
          }
        }
      }
    }
    const __m512 scale = _mm512_mul_ps(load_scales(base + segments.block.scales, f.scale_dtype),
                                       _mm512_set1_ps(Codes::kFactor));
    const __m512 zero = _mm512_mul_ps(load_zeros(base + segments.block.zeros, f.zero_type, middle),
                                      _mm512_set1_ps(1.0f / Codes::kFactor));
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      __m512i whole = acc[t][0];
      if constexpr (kFew) {
        whole = Codes::total(acc[t]);
      } else if constexpr (kSums == 2) {
        whole = _mm512_add_epi32(whole, acc[t][1]);
      }
      const __m512 x_sum = _mm512_cvtepi32_ps(_mm512_set1_epi32(a.x_sums[i * T + t]));
      const __m512 sum = _mm512_fnmadd_ps(zero, x_sum, _mm512_cvtepi32_ps(whole));
      total[t] = _mm512_fmadd_ps(sum, scale, total[t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) _mm512_storeu_ps(sums + t * kBlockN, total[t]);
}

template <class Codes>
static constexpr CodeTileRun kNarrowTiles[kNarrowTileM] = {
    narrow_tile<Codes, 1>, narrow_tile<Codes, 2>, narrow_tile<Codes, 3>, narrow_tile<Codes, 4>,
    narrow_tile<Codes, 5>, narrow_tile<Codes, 6>, narrow_tile<Codes, 7>, narrow_tile<Codes, 8>,
};
template <class Codes>
static constexpr CodeKernel kNarrowKernel = {
    kNarrowTiles<Codes>, nullptr, kNarrowTileM, 0, kSliceBytes, 1, nullptr,
};

template <class Codes>
static size_t workspace_narrow(const LinearArgs& args, int threads) {
  return workspace_codes(args, kNarrowKernel<Codes>, threads);
}

template <class Codes>
static Status run_narrow(const LinearArgs& args, const Ctx& ctx) {
  return run_codes(args, ctx, kNarrowKernel<Codes>, 1);
}

}  // namespace lowbit::avx512
