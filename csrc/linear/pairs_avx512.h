// Codes as pairs of bf16, whatever they are stored as: what the rows of bf16 products multiply, and
// what the f32 rows widen.
//
// Codes is how a kind does it: kBytes of a panel are 8 columns of 16 rows; decode() makes of them
// four vectors, in each lane of which stand two columns of a row; kOrder says which columns, in the
// order of the words.
#pragma once

#include "csrc/linear/gemm_f32_avx512.h"

namespace lowbit::avx512 {

// One panel of w.
struct PairPanel {
  const uint8_t* data;
  PanelBlock block;
  Format format;
};

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

// Columns [k0, k1) of a panel as f32 (k1 - k0, 16), with their scales. The weight has no zero
// points.
template <class Codes>
static inline void decode_floats(const PairPanel& w, int64_t k0, int64_t k1, float* to) {
  for (int64_t k = k0; k < k1;) {
    const int64_t g = k / w.block.k, end = (g + 1) * w.block.k, stop = end < k1 ? end : k1;
    const uint8_t* block = w.data + g * w.block.bytes;
    const uint8_t* at = block + (k - g * w.block.k) / 8 * Codes::kBytes;
    const auto zero = Codes::zero(w, block);
    const __m512 scale = load_scales(block + w.block.scales, w.format.scale_dtype);
    for (; k < stop; k += 8, at += Codes::kBytes) {
#pragma GCC unroll 2
      for (int64_t line = 0; line < Codes::kBytes; line += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetch + line, _MM_HINT_T0);
      }
      __m512i v[4];
      Codes::decode(at, zero, v);
      float* row = to + (k - k0) * 16;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(v[i], 16));
        const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(v[i], _mm512_set1_epi32(-0x10000)));
        _mm512_storeu_ps(row + column_of(Codes::kOrder, 2 * i) * 16, _mm512_mul_ps(even, scale));
        _mm512_storeu_ps(row + column_of(Codes::kOrder, 2 * i + 1) * 16, _mm512_mul_ps(odd, scale));
      }
    }
    k = stop;
  }
}

// ---- few rows of x in f32: FMAs on the widened pairs as they are decoded

// Beyond it a slice decoded once into L1 costs less than decoding for each tile.
inline constexpr int64_t kFewRows = 6;

// sums(T, 16) = x(T, K) * the panel. kZeros: the codes' zero points, in f32, are taken off.
template <int T, class Codes, bool kZeros>
[[gnu::noinline]] static void few_tile(const PairPanel& w, const float* x, int64_t x_stride,
                                       int64_t k1, float* sums) {
  // A sum waits 4 cycles for itself, so at one or two a cycle 4 to 8 must be under way.
  constexpr int kSums = T < 3 ? 4 : T < 5 ? 2 : 1;
  __m512 total[T];
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
  for (int64_t k = 0; k < k1;) {
    const int64_t g = k / w.block.k, end = (g + 1) * w.block.k, stop = end < k1 ? end : k1;
    const uint8_t* block = w.data + g * w.block.bytes;
    const uint8_t* at = block;
    const auto tables = Codes::zero(w, block);
    const __m512 zero = load_zeros(block + w.block.zeros, w.format.zero_type, 0.0f);
    __m512 acc[kSums][T];
#pragma GCC unroll 4
    for (int u = 0; u < kSums; ++u) {
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) acc[u][t] = _mm512_setzero_ps();
    }
    for (; k < stop; k += 8, at += Codes::kBytes) {  // blocks are padded to 8 columns, x with zeros
#pragma GCC unroll 2
      for (int64_t line = 0; line < Codes::kBytes; line += 64) {
        prefetch_line<T * 512 / Codes::kBytes>(at + line);
      }
      __m512i v[4];
      Codes::decode(at, tables, v);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        __m512 even = even_of(v[i]), odd = odd_of(v[i]);
        if (kZeros) {
          even = _mm512_sub_ps(even, zero);
          odd = _mm512_sub_ps(odd, zero);
        }
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) {
          const float* xk = x + t * x_stride + k;
          __m512& sum = acc[i % kSums][t];
          sum = _mm512_fmadd_ps(even, _mm512_set1_ps(xk[column_of(Codes::kOrder, 2 * i)]), sum);
          sum = _mm512_fmadd_ps(odd, _mm512_set1_ps(xk[column_of(Codes::kOrder, 2 * i + 1)]), sum);
        }
      }
    }
    k = stop;
    const __m512 scale = load_scales(block + w.block.scales, w.format.scale_dtype);
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      __m512 sum = acc[0][t];
#pragma GCC unroll 4
      for (int u = 1; u < kSums; ++u) sum = _mm512_add_ps(sum, acc[u][t]);
      total[t] = _mm512_fmadd_ps(sum, scale, total[t]);
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < T; ++t) _mm512_storeu_ps(sums + t * kBlockN, total[t]);
}

static inline bool few_rows(const LinearArgs& args) { return args.x.shape[0] <= kFewRows; }

struct FewScratch {
  float* x;      // (rows, x_stride)
  float* scale;  // (rows)
  float* sums;   // (threads, kBlockM, kBlockN)
  int64_t x_stride;
};

static inline size_t carve_few(const LinearArgs& args, int threads, void* base, FewScratch* s) {
  const int64_t rows = args.x.shape[0];
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->x_stride = round_up(args.w.k, 8);
  s->x = take<float>(&at, rows * s->x_stride);
  s->scale = take<float>(&at, rows);
  s->sums = take<float>(&at, threads * kBlockM * kBlockN);
  return at - reinterpret_cast<uintptr_t>(base);
}

static inline size_t workspace_few(const LinearArgs& args, int threads) {
  FewScratch s;
  return few_rows(args) ? carve_few(args, threads, nullptr, &s) : workspace_f32(args, threads);
}

// tiles(w, x, x_stride, rows, sums): sums(rows, 16) = x(rows, K) * the panel; x padded with zeros
// to 8 columns.
template <class Tiles>
static inline Status run_few_tiles(const LinearArgs& args, const Ctx& ctx, const Tiles& tiles) {
  const int64_t rows = args.x.shape[0], k = args.w.k;
  const PanelBlock block = panel_block(args.w.format, {args.w.n, k});
  FewScratch s;
  carve_few(args, pool_threads(ctx.pool), ctx.scratch, &s);
  for (int64_t m = 0; m < rows; ++m) {
    float* x = s.x + m * s.x_stride;
    s.scale[m] = stage_floats(args, m, x) * args.w.tensor_scale;
    for (int64_t i = k; i < s.x_stride; ++i) x[i] = 0.0f;
  }
  for_blocks(args, ctx.pool, 0, rows, kFewRows, s.scale, s.sums,
             [&](int, int64_t n0, int64_t panels, int64_t m0, int64_t height, float* sums) {
               for (int64_t p = 0; p < panels; ++p) {
                 const PairPanel w = {args.w.data + (n0 / kPanel + p) * block.groups * block.bytes,
                                      block, args.w.format};
                 tiles(w, s.x + m0 * s.x_stride, s.x_stride, height, sums + p * kPanel);
               }
             });
  return ok();
}

template <class Codes, bool kZeros>
static inline Status run_few(const LinearArgs& args, const Ctx& ctx) {
  const int64_t k = args.w.k;
  return run_few_tiles(
      args, ctx,
      [k](const PairPanel& w, const float* x, int64_t x_stride, int64_t rows, float* sums) {
        switch (rows) {
          case 1: return few_tile<1, Codes, kZeros>(w, x, x_stride, k, sums);
          case 2: return few_tile<2, Codes, kZeros>(w, x, x_stride, k, sums);
          case 3: return few_tile<3, Codes, kZeros>(w, x, x_stride, k, sums);
          case 4: return few_tile<4, Codes, kZeros>(w, x, x_stride, k, sums);
          case 5: return few_tile<5, Codes, kZeros>(w, x, x_stride, k, sums);
          default: return few_tile<6, Codes, kZeros>(w, x, x_stride, k, sums);
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

// Positions in a table of numbers that bf16 holds exactly: int4 (code - 8, or the plain code where
// zero points are stored) and the elements of mxfp4 and nvfp4. The tables of nf4 and its like are
// not so.
struct Nibbles {
  static constexpr bool kDecoded = false;
  static constexpr int64_t kBytes = 64;
  // A word of 16 bits holds columns 2h, 4 + 2h, 2h + 1, 5 + 2h of 8, lowest bits first.
  static constexpr uint32_t kOrder = 0x75316420;
  using Zero = __m512i;  // the table
  static Zero zero(const PairPanel& w, const uint8_t*) {
    return load_bytes(w.format.kind != Kind::int4            ? kE2m1Codes.words
                      : w.format.zero_type == ZeroType::none ? kSymmetricCodes.words
                                                             : kPlainCodes.words);
  }
  static void decode(const uint8_t* at, const Zero& table, __m512i (&v)[4]) {
    const __m512i codes = load_bytes(at);
    v[0] = _mm512_permutexvar_epi16(codes, table);
    v[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table);
    v[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), table);
    v[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), table);
  }
};

}  // namespace lowbit::avx512
