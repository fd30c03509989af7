// What the AVX2 rows of codes of 4 bits and fewer share. The tile is 16 rows of w by up to 6 rows
// of x: 12 sums in int16, the codes of two vectors, a broadcast of x and a product in 16 registers;
// f32 sums wait in L1.
//
// vpmaddubsw of codes (0 .. c) and x (-128 .. 127) gives sums of two of at most 256 c, so that some
// of them add up in int16 before one vpmaddwd: two instructions for 32 products. Both pairs of
// units are then full, so every other vector instruction costs time: codes that several tiles read
// are unpacked to bytes in L1 first.
//
// A row brings a struct Codes with
//
//   kColumns, kBytes  of a chunk: the least number of columns of sixteen rows that fills vectors
//   kVectors          of unsigned codes in a chunk; vector f holds columns 4f .. 4f + 3
//   kRound            chunks that int16 sums hold
//   codes<f>(p)       vector f of eight rows: of the first ones for the chunk's address, and of the
//                     others for 32 bytes behind it
#pragma once

#include <type_traits>

#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx2.h"

namespace lowbit::avx2 {

inline constexpr int kTileM = 6;

// The bytes of v under a mask that is the same in every byte.
static inline __m256i masked(__m256i v, int mask) {
  return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(mask)));
}

// acc plus sums of two products of u's unsigned and s's signed bytes. As one piece, because of the
// intrinsics GCC 12 keeps several products at a time and has no registers left for the sums.
static inline void add_products(__m256i* acc, __m256i u, __m256i s) {
  __m256i product;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(*acc), "=&x"(product) : "x"(u), "x"(s));
}

// Asks for a line of the panel ahead of its use, as the AVX-512 rows do (NOTES.md): kProducts
// vectors of 64 products wait for it.
template <int kProducts>
static inline void prefetch_line(const uint8_t* p) {
  const char* line = reinterpret_cast<const char*>(p);
  if constexpr (kProducts <= 4) {
    _mm_prefetch(line + 4096, _MM_HINT_NTA);
  } else {
    _mm_prefetch(line + 8192, _MM_HINT_T1);
    _mm_prefetch(line + 1024, _MM_HINT_T0);
  }
}

// Codes as bytes, as `unpack` leaves them.
template <class Codes>
struct Unpacked {
  static constexpr int kColumns = Codes::kColumns, kVectors = Codes::kVectors;
  static constexpr int kBytes = 64 * kVectors, kRound = Codes::kRound;
  static constexpr bool kPrefetched = false;
  template <int f>
  static inline __m256i codes(const uint8_t* p) {
    return load_bytes(p + 64 * f);
  }
};

template <class Codes, int T, int f>
[[gnu::always_inline]] inline void add_vector(const uint8_t* v, const uint8_t* x, bool first,
                                              __m256i (&acc)[T][2]) {
  const __m256i u0 = Codes::template codes<f>(v), u1 = Codes::template codes<f>(v + 32);
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) {
    const __m256i s = broadcast_4(x + 4 * (f * T + t));
    if (first && f == 0) {
      acc[t][0] = _mm256_maddubs_epi16(u0, s);
      acc[t][1] = _mm256_maddubs_epi16(u1, s);
    } else {
      add_products(&acc[t][0], u0, s);
      add_products(&acc[t][1], u1, s);
    }
  }
  if constexpr (f + 1 < Codes::kVectors) add_vector<Codes, T, f + 1>(v, x, first, acc);
}

template <class Codes, int T>
[[gnu::always_inline]] inline void add_chunk(const uint8_t* v, const uint8_t* x, bool first,
                                             __m256i (&acc)[T][2]) {
  if constexpr (Codes::kPrefetched) {
#pragma GCC unroll 4
    for (int i = 0; i < Codes::kBytes; i += 64) prefetch_line<Codes::kVectors * T>(v + i);
  }
  add_vector<Codes, T, 0>(v, x, first, acc);
}

// Scales and zero points of a segment behind its unpacked codes, as f32.
inline constexpr int64_t kUnpackedScales = 128;

template <class Codes, bool kUnpacked, int T, bool kZeros>
static void code_tile(const CodeTile& a) {
  using From = std::conditional_t<kUnpacked, Unpacked<Codes>, Codes>;
  const Segments& segments = *a.segments;
  const DType scale_dtype = a.format->scale_dtype;
  const ZeroType zero_type = a.format->zero_type;
  const __m256i ones = _mm256_set1_epi16(1);
  float* sums = a.sums;
  if (!a.add) {
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      _mm256_storeu_ps(sums + t * kBlockN, _mm256_setzero_ps());
      _mm256_storeu_ps(sums + t * kBlockN + 8, _mm256_setzero_ps());
    }
  }
  // Sums of earlier rounds. The compiler must not take them for registers, which it has not.
  alignas(32) int32_t rounds[T * 16];
  int32_t* earlier = rounds;
  asm("" : "+r"(earlier));
  const uint8_t *w = a.w, *v = a.unpacked;
  const int32_t* x_sums = a.x_sums + a.begin * T;
  Segment segment = segment_at(segments, a.begin);
  const uint8_t* x = a.x + segment.k * T;
  for (int64_t left = a.end - a.begin; left > 0;
       --left, x_sums += T, next_segment(segments, &segment)) {
    const uint8_t* base = w + segment.block;
    if constexpr (!kUnpacked) v = base + segment.column / From::kColumns * From::kBytes;
    __m256i acc[T][2];
    int64_t chunks = ceil_div(segment.width, From::kColumns);
    for (bool first = true;; first = false) {
      const int64_t round = chunks < From::kRound ? chunks : From::kRound;
      // Of four chunks the first may as well begin the sums; around longer loops GCC 12 copies
      // them.
      constexpr bool kBegin = From::kRound <= 4;
      if constexpr (kBegin) {
        add_chunk<From, T>(v, x, true, acc);
        v += From::kBytes;
        x += From::kColumns * T;
      } else {
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
      }
      for (int64_t j = kBegin; j < round; ++j, v += From::kBytes, x += From::kColumns * T) {
        add_chunk<From, T>(v, x, false, acc);
      }
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) acc[t][h] = _mm256_madd_epi16(acc[t][h], ones);
      }
      chunks -= round;
      if (first && chunks == 0) break;
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          __m256i* at = reinterpret_cast<__m256i*>(earlier + t * 16 + h * 8);
          if (!first) acc[t][h] = _mm256_add_epi32(acc[t][h], *at);
          *at = acc[t][h];
        }
      }
      if (chunks == 0) break;
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256 scale, zero;
      if constexpr (kUnpacked) {
        scale = load_8(v + h * 32, DType::f32);
        zero = load_8(v + 64 + h * 32, DType::f32);
      } else {
        scale = load_scales(base + segments.block.scales, scale_dtype, h);
        zero = kZeros ? load_zeros(base + segments.block.zeros, zero_type, 0.0f, h) : scale;
      }
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        const __m256i x_sum = broadcast_4(x_sums + t);
        __m256 sum;
        if constexpr (kZeros) {
          sum = _mm256_fnmadd_ps(zero, _mm256_cvtepi32_ps(x_sum), _mm256_cvtepi32_ps(acc[t][h]));
        } else {
          sum = _mm256_cvtepi32_ps(_mm256_add_epi32(acc[t][h], x_sum));
        }
        float* to = sums + t * kBlockN + h * 8;
        _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(to)));
      }
    }
    if constexpr (kUnpacked) v += kUnpackedScales;
  }
}

template <class Codes, int f>
[[gnu::always_inline]] inline void unpack_vector(const uint8_t* v, uint8_t* to) {
  __m256i* at = reinterpret_cast<__m256i*>(to + 64 * f);
  _mm256_storeu_si256(at, Codes::template codes<f>(v));
  _mm256_storeu_si256(at + 1, Codes::template codes<f>(v + 32));
  if constexpr (f + 1 < Codes::kVectors) unpack_vector<Codes, f + 1>(v, to);
}

// The codes of segments [begin, end) as bytes.
template <class Codes>
static void unpack_codes(const CodeTile& a, uint8_t* to) {
  Segment segment = segment_at(*a.segments, a.begin);
  for (int64_t i = a.begin; i < a.end; ++i, next_segment(*a.segments, &segment)) {
    const uint8_t* v = a.w + segment.block + segment.column / Codes::kColumns * Codes::kBytes;
    for (int64_t k = 0; k < segment.width; k += Codes::kColumns, v += Codes::kBytes) {
#pragma GCC unroll 4
      for (int j = 0; j < Codes::kBytes; j += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(v + j) + 4096, _MM_HINT_T0);
      }
      unpack_vector<Codes, 0>(v, to);
      to += 64 * Codes::kVectors;
    }
    const uint8_t* base = a.w + segment.block;
    for (int h = 0; h < 2; ++h) {
      float* at = reinterpret_cast<float*>(to) + h * 8;
      _mm256_storeu_ps(at, load_scales(base + a.segments->block.scales, a.format->scale_dtype, h));
      _mm256_storeu_ps(at + 16,
                       load_zeros(base + a.segments->block.zeros, a.format->zero_type, 0.0f, h));
    }
    to += kUnpackedScales;
  }
}

template <class Codes, bool kUnpacked, bool kZeros>
static constexpr CodeTileRun kCodeTiles[kTileM] = {
    code_tile<Codes, kUnpacked, 1, kZeros>, code_tile<Codes, kUnpacked, 2, kZeros>,
    code_tile<Codes, kUnpacked, 3, kZeros>, code_tile<Codes, kUnpacked, 4, kZeros>,
    code_tile<Codes, kUnpacked, 5, kZeros>, code_tile<Codes, kUnpacked, 6, kZeros>,
};

template <class Codes>
static CodeKernel code_kernel(const LinearArgs& args) {
  const bool zeros = args.w.format.zero_type != ZeroType::none;
  CodeKernel kernel = {};
  kernel.tiles = zeros ? kCodeTiles<Codes, false, true> : kCodeTiles<Codes, false, false>;
  kernel.height = kTileM;
  kernel.slice_bytes = kSliceBytes;
  kernel.width = 1;
  kernel.unpacked = zeros ? kCodeTiles<Codes, true, true> : kCodeTiles<Codes, true, false>;
  kernel.unpack = unpack_codes<Codes>;
  kernel.unpack_from = 9;
  kernel.unpacked_width = 1;
  kernel.unpacked_scales = kUnpackedScales;
  kernel.segment_k = 1024;
  return kernel;
}

template <class Codes>
static size_t workspace_code(const LinearArgs& args, int threads) {
  return workspace_codes(args, code_kernel<Codes>(args), threads);
}

template <class Codes>
static Status run_code(const LinearArgs& args, const Ctx& ctx) {
  const Format& f = args.w.format;
  return run_codes(args, ctx, code_kernel<Codes>(args),
                   f.zero_type != ZeroType::none ? 1 : -Codes::middle(f.kind));
}

}  // namespace lowbit::avx2
