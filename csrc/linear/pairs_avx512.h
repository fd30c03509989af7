// Codes as pairs of bf16, whatever they are stored as: what the rows of bf16 products multiply, and
// what the f32 rows widen.
//
// Codes is how a kind does it: kBytes of a panel are 8 columns of 16 rows, or kParts times as many;
// decode(at, zero, Part<p>, v) makes of 8 columns four vectors, in each lane of which stand two
// columns of a row; kOrder says which columns, in the order of the words.
#pragma once

#include "csrc/linear/panel_avx512.h"
#include "csrc/linear/panels.h"

namespace lowbit::avx512 {

// One panel of w.
struct PairPanel {
  const uint8_t* data;
  PanelBlock block;
  Format format;
  const float* table;  // of kinds with tables: 16 numbers; else null
};

// Which 8 columns of a line of codes.
template <int P>
struct Part {
  static constexpr int kPart = P;
};
// f(Part<p>) for each of 1, 2 or 4 parts.
template <int kParts, class F>
[[gnu::always_inline]] static inline void for_parts(const F& f) {
  f(Part<0>());
  if constexpr (kParts > 1) f(Part<1>());
  if constexpr (kParts > 2) {
    f(Part<2>());
    f(Part<3>());
  }
}

// Column of word i of 8 in an order of one hexadecimal digit each, lowest first.
static constexpr int column_of(uint32_t order, int i) {
  return static_cast<int>(order >> (4 * i) & 15);
}
// The same for the 32 words of a vector.
static inline __m512i pair_order(uint32_t order) {
  int16_t words[32];
  for (int i = 0; i < 32; ++i) words[i] = static_cast<int16_t>(i / 8 * 8 + column_of(order, i % 8));
  return load_bytes(words);
}

// The two bf16 of each lane as f32.
static inline __m512 even_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
static inline __m512 odd_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)));
}

// ---- x in f32: FMAs on the widened pairs as they are decoded
//
// With six rows of x a line of codes is 48 FMAs and 15 to 20 instructions for other pipes, so
// decoding it again for the next six costs nothing that a slice decoded once would save, and no
// store.

// The pairs of Codes as eight vectors of f32.
template <class Codes>
struct Widened {
  static constexpr int kParts = Codes::kParts;
  static constexpr int64_t kBytes = Codes::kBytes;
  static constexpr uint32_t kOrder = Codes::kOrder;
  static auto zero(const PairPanel& w, const uint8_t* block) { return Codes::zero(w, block); }
  template <class Zero, class Part>
  static void widen(const uint8_t* at, const Zero& zero, Part part, __m512 (&v)[8]) {
    __m512i pairs[4];
    Codes::decode(at, zero, part, pairs);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = even_of(pairs[i]);
      v[2 * i + 1] = odd_of(pairs[i]);
    }
  }
};

// Six sums in four copies at most: 24 of 32 registers.
inline constexpr int64_t kTileRows = 6;

// sums(T, 16) = x(T, K) * the panel. kZeros: the codes' zero points, in f32, are taken off.
template <int T, class Numbers, bool kZeros>
[[gnu::noinline]] static void float_tile(const PairPanel& w, const float* x, int64_t x_stride,
                                         int64_t k1, float* sums) {
  // A sum waits 4 cycles for itself, so at one or two a cycle 4 to 8 must be under way.
  constexpr int kSums = T == 1 ? 8 : T == 2 ? 4 : T < 5 ? 2 : 1;
  __m512 total[T];
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
  const uint8_t* block = w.data;
  for (int64_t k = 0; k < k1; block += w.block.bytes) {
    const int64_t stop = k + w.block.k < k1 ? k + w.block.k : k1;
    const uint8_t* at = block;
    const auto tables = Numbers::zero(w, block);
    // Bits are -1 and 1, which takes off 1.
    const __m512 zero = _mm512_sub_ps(load_zeros(block + w.block.zeros, w.format.zero_type, 0.0f),
                                      _mm512_set1_ps(w.format.kind == Kind::int1 ? 1.0f : 0.0f));
    __m512 acc[kSums][T];
#pragma GCC unroll 8
    for (int u = 0; u < kSums; ++u) {
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) acc[u][t] = _mm512_setzero_ps();
    }
    // Blocks are padded to whole lines, x with zeros.
    for (; k < stop; k += 8 * Numbers::kParts, at += Numbers::kBytes) {
#pragma GCC unroll 3
      for (int64_t line = 0; line < Numbers::kBytes; line += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetch + line, _MM_HINT_T0);
      }
      for_parts<Numbers::kParts>([&](auto part) __attribute__((always_inline)) {
        __m512 v[8];
        Numbers::widen(at, tables, part, v);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const __m512 number = kZeros ? _mm512_sub_ps(v[i], zero) : v[i];
#pragma GCC unroll 6
          for (int t = 0; t < T; ++t) {
            const int column = 8 * part.kPart + column_of(Numbers::kOrder, i);
            const float* at_x = x + t * x_stride + k + column;
            __m512& sum = acc[i % kSums][t];
            sum = _mm512_fmadd_ps(number, _mm512_set1_ps(*at_x), sum);
          }
        }
      });
    }
    k = stop;
    const __m512 scale = load_scales(block + w.block.scales, w.format.scale_dtype);
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      __m512 sum = acc[0][t];
#pragma GCC unroll 8
      for (int u = 1; u < kSums; ++u) sum = _mm512_add_ps(sum, acc[u][t]);
      total[t] = _mm512_fmadd_ps(sum, scale, total[t]);
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) _mm512_storeu_ps(sums + t * kBlockN, total[t]);
}

struct TileScratch {
  float* x;      // (stage, x_stride)
  float* scale;  // (stage)
  float* sums;   // (threads, kBlockM, kBlockN)
  int64_t x_stride;
};

static inline size_t carve_tiles(const LinearArgs& args, int threads, void* base, TileScratch* s) {
  const int64_t rows = stage_rows(args.x.shape[0]), k = round_up(args.w.k, 32);
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->x_stride = (k / 16 | 1) * 16;  // an odd number of lines, so that rows do not share sets of L1
  s->x = take<float>(&at, rows * s->x_stride);
  s->scale = take<float>(&at, rows);
  s->sums = take<float>(&at, threads * kBlockM * kBlockN);
  return at - reinterpret_cast<uintptr_t>(base);
}

static inline size_t workspace_tiles(const LinearArgs& args, int threads) {
  TileScratch s;
  return carve_tiles(args, threads, nullptr, &s);
}

// tile(w, x, x_stride, rows, sums): sums(rows, 16) = x(rows, K) * the panel, for up to kTileRows
// rows; x is padded with zeros to 32 columns.
template <class Tile>
static inline Status run_tiles(const LinearArgs& args, const Ctx& ctx, const Tile& tile) {
  const int64_t m_all = args.x.shape[0], k = args.w.k, stage = stage_rows(m_all);
  const PanelBlock block = panel_block(args.w.format, {args.w.n, k});
  const float* table = nullptr;
  if (kind_row(args.w.format.kind).table) {
    table = reinterpret_cast<const float*>(
        args.w.data + table_at(Layout::panel16, args.w.format, {args.w.n, k}, 0, 0));
  }
  TileScratch s;
  carve_tiles(args, pool_threads(ctx.pool), ctx.scratch, &s);
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    parallel_for(ctx.pool, rows, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t m = begin; m < end; ++m) {
        float* x = s.x + m * s.x_stride;
        s.scale[m] = stage_floats(args, first + m, x) * args.w.tensor_scale;
        for (int64_t i = k; i < round_up(k, 32); ++i) x[i] = 0.0f;
      }
    });
    for_blocks(args, ctx.pool, first, rows, kTileRows, s.scale, s.sums,
               [&](int, int64_t n0, int64_t panels, int64_t m0, int64_t height, float* sums) {
                 for (int64_t p = 0; p < panels; ++p) {
                   const PairPanel w = {
                       args.w.data + (n0 / kPanel + p) * block.groups * block.bytes, block,
                       args.w.format, table};
                   for_tiles(height, kTileRows, [&](int64_t m, int64_t count) {
                     tile(w, s.x + (m0 + m) * s.x_stride, s.x_stride, count,
                          sums + m * kBlockN + p * kPanel);
                   });
                 }
               });
  }
  return ok();
}

template <class Numbers, bool kZeros>
static inline Status run_float_tiles(const LinearArgs& args, const Ctx& ctx) {
  const int64_t k = args.w.k;
  return run_tiles(
      args, ctx,
      [k](const PairPanel& w, const float* x, int64_t x_stride, int64_t rows, float* sums) {
        switch (rows) {
          case 1: return float_tile<1, Numbers, kZeros>(w, x, x_stride, k, sums);
          case 2: return float_tile<2, Numbers, kZeros>(w, x, x_stride, k, sums);
          case 3: return float_tile<3, Numbers, kZeros>(w, x, x_stride, k, sums);
          case 4: return float_tile<4, Numbers, kZeros>(w, x, x_stride, k, sums);
          case 5: return float_tile<5, Numbers, kZeros>(w, x, x_stride, k, sums);
          default: return float_tile<6, Numbers, kZeros>(w, x, x_stride, k, sums);
        }
      });
}

// ---- 4-bit codes

struct PairTable {
  uint16_t words[32];  // bf16; vpermw looks at 5 bits, of which a nibble has 4: 16 entries twice
};
static constexpr PairTable code_table(int first) {
  PairTable t = {};
  for (int i = 0; i < 32; ++i) {
    t.words[i] = static_cast<uint16_t>(float_bits(static_cast<float>(first + i % 16)) >> 16);
  }
  return t;
}
static constexpr PairTable e2m1_table() {
  PairTable t = {};
  for (uint32_t i = 0; i < 32; ++i) {
    t.words[i] = static_cast<uint16_t>(float_bits(kind_table(Kind::mxfp4)[i % 16]) >> 16);
  }
  return t;
}
alignas(64) static constexpr PairTable kPlainCodes = code_table(0);
alignas(64) static constexpr PairTable kSymmetricCodes = code_table(-8);
alignas(64) static constexpr PairTable kE2m1Codes = e2m1_table();

// Codes less integer zero points: bytes of min(zero, 16), four times in each row's lane, to take
// off bytes of codes, and the table whose entry d mod 32 is d, from -16 to 15, for what is left.
struct Differences {
  __m512i table, bytes;
};
static constexpr PairTable difference_table() {
  PairTable t = {};
  for (int i = 0; i < 32; ++i) {
    t.words[i] = static_cast<uint16_t>(float_bits(static_cast<float>(i < 16 ? i : i - 32)) >> 16);
  }
  return t;
}
alignas(64) static constexpr PairTable kDifferences = difference_table();
static inline Differences differences(const PairPanel& w, const uint8_t* block) {
  const __m128i zeros = _mm_min_epu8(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + w.block.zeros)), _mm_set1_epi8(16));
  return {load_bytes(kDifferences.words),
          _mm512_mullo_epi32(_mm512_cvtepu8_epi32(zeros), _mm512_set1_epi32(0x01010101))};
}

// Positions in a table of numbers that bf16 holds exactly: int4 (code - 8, or the plain code where
// zero points are stored) and the elements of mxfp4 and nvfp4. The tables of nf4 and its like are
// not so.
struct Nibbles {
  static constexpr int kParts = 1;
  static constexpr int64_t kBytes = 64;
  // A word of 16 bits holds columns 2h, 4 + 2h, 2h + 1, 5 + 2h of 8, lowest bits first.
  static constexpr uint32_t kOrder = 0x75316420;
  using Zero = __m512i;  // the table
  static Zero zero(const PairPanel& w, const uint8_t*) {
    return load_bytes(w.format.kind != Kind::int4            ? kE2m1Codes.words
                      : w.format.zero_type == ZeroType::none ? kSymmetricCodes.words
                                                             : kPlainCodes.words);
  }
  static void decode(const uint8_t* at, const Zero& table, Part<0>, __m512i (&v)[4]) {
    const __m512i codes = load_bytes(at);
    v[0] = _mm512_permutexvar_epi16(codes, table);
    v[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table);
    v[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), table);
    v[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), table);
  }
};

}  // namespace lowbit::avx512
