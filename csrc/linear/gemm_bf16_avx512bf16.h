// The GEMM of rows whose weights are exact in bf16: vdpbf16ps multiplies pairs of bf16 exactly and
// adds them up in f32, at twice the rate of an FMA.
//
// x stands in scratch in tiles of T rows of bf16, as many as the kernel multiplies at a time: the
// first pair of columns of each row, then the second of each; columns in the order in which a
// kernel's codes fall out of their vectors. Up to kInlineRows rows of x meet the codes as they are
// decoded, in registers: M = 1 reads w at the speed of memory and the rows after it cost their
// products alone. More rows are tiles of as many, which take a slice of K one after the other;
// decoding it again for each costs less than storing it once.
//
// A group's products are summed apart and meet their scale in f32. Integer zero points from 0 to 16
// are taken off the codes, which stay exact; what is left of larger ones goes with the sum of x.
// The instruction takes denormals as zeros.
#pragma once

#include "csrc/linear/pairs_avx512.h"
#include "csrc/linear/words.h"

namespace lowbit::avx512 {

// Rows of x a tile of codes: four vectors of codes and the decoder's constants beside 2 * 8 sums.
inline constexpr int64_t kInlineRows = 8;
inline constexpr int64_t kPairSlice = 512;  // columns: 96 rows of x by so many are 96 KiB of L2
// Words of x, of two columns, that a task of staging moves: some microseconds of work.
inline constexpr int64_t kWordTask = 8192;

// acc plus, in each lane, the products of w's two bf16 and the two at p. GCC 12 makes of the
// intrinsic a broadcast, the product and copies of the sum; hence the instruction itself.
static inline __m512 add_pairs(__m512 acc, __m512i w, const uint8_t* p) {
  struct Pair {
    uint8_t bytes[4];
  };
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*reinterpret_cast<const Pair*>(p)));
  return acc;
}

// The same with two bf16 in each lane of a register.
static inline __m512 add_pairs(__m512 acc, __m512i w, __m512i x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
}

// A group's scale, and what its zero points leave for the sum of x.
struct PairScale {
  __m512 scale, rest;
  __mmask16 resting;  // rows where rest is not 0: elsewhere an inf in x must not meet it
};
static inline PairScale pair_scale(const PairPanel& w, const uint8_t* block) {
  PairScale s;
  s.scale = kind_row(w.format.kind).scaled
                ? load_scales(block + w.block.scales, w.format.scale_dtype)
                : _mm512_set1_ps(1.0f);
  s.resting = 0;
  s.rest = _mm512_setzero_ps();
  if (w.format.zero_type == ZeroType::u8) {
    const __m512 zero = load_zeros(block + w.block.zeros, ZeroType::u8, 0.0f);
    // Bits are -1 and 1, which takes off 1.
    s.rest = w.format.kind == Kind::int1
                 ? _mm512_sub_ps(zero, _mm512_set1_ps(1.0f))
                 : _mm512_max_ps(_mm512_sub_ps(zero, _mm512_set1_ps(16.0f)), _mm512_setzero_ps());
    s.resting = _mm512_cmp_ps_mask(s.rest, _mm512_setzero_ps(), _CMP_NEQ_OQ);
  }
  return s;
}

struct PairX {
  const uint8_t* data;  // the tile
  const float* sums;    // (rows, groups) of x; null where no zero point can leave a rest
  int64_t sums_stride;
};

// sums(T, 16) (+)= x(T, k1 - k0) * columns [k0, k1) of the panel, k0 a multiple of 32. Not inlined,
// so that every tile has its sums in registers.
template <int T, class Codes>
[[gnu::noinline]] static void pair_tile(const PairPanel& w, int64_t k0, int64_t k1, const PairX& x,
                                        float* sums, bool add) {
  // The instruction waits 5 cycles and more for its own sum, and two may begin in a cycle, so 12
  // sums are wanted; 16 of two for each row, 8 totals and what decodes still fit 32 registers.
  constexpr int kSums = T < 3 ? 4 : 2;
  constexpr int64_t kColumns = 8 * Codes::kParts, kWords = 4 * T;
  __m512 total[T];
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) {
    total[t] = add ? _mm512_loadu_ps(sums + t * kBlockN) : _mm512_setzero_ps();
  }
  int64_t g =
      k0 / w.block.k;  // once: a division in each group would be the chain that all wait for
  for (int64_t k = k0; k < k1; ++g) {
    const int64_t end = (g + 1) * w.block.k, stop = end < k1 ? end : k1;
    const bool begins = k == g * w.block.k;
    const uint8_t* block = w.data + g * w.block.bytes;
    const uint8_t* at = block + (k - g * w.block.k) / kColumns * Codes::kBytes;
    const auto zero = Codes::zero(w, block);
    __m512 acc[kSums][T];
#pragma GCC unroll 4
    for (int u = 0; u < kSums; ++u) {
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) acc[u][t] = _mm512_setzero_ps();
    }
    const uint8_t* xk = x.data + k / 2 * kWords;
    const auto step = [&] __attribute__((always_inline)) {
      for_parts<Codes::kParts>([&](auto part) __attribute__((always_inline)) {
        __m512i v[4];
        Codes::decode(at, zero, part, v);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 12
          for (int t = 0; t < T; ++t) {
            const uint8_t* pair = xk + (4 * part.kPart + i) * kWords + 4 * t;
            acc[i % kSums][t] = add_pairs(acc[i % kSums][t], v[i], pair);
          }
        }
      });
    };
    for (; k + kColumns <= stop; k += kColumns, at += Codes::kBytes, xk += kColumns / 2 * kWords) {
#pragma GCC unroll 4
      for (int64_t line = 0; line < Codes::kBytes; line += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetch + line, _MM_HINT_T0);
      }
      step();
    }
    if (k < stop) {  // a block ends where K does, and codes are padded to whole lines
      step();
      k = stop;
    }
    const PairScale scale = pair_scale(w, block);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      __m512 sum = acc[0][t];
#pragma GCC unroll 4
      for (int u = 1; u < kSums; ++u) sum = _mm512_add_ps(sum, acc[u][t]);
      if (begins && scale.resting != 0) {  // the sum of x is that of the whole group
        const __m512 x_sum = _mm512_set1_ps(x.sums[t * x.sums_stride + g]);
        sum = _mm512_mask3_fnmadd_ps(scale.rest, x_sum, sum, scale.resting);
      }
      total[t] = _mm512_fmadd_ps(sum, scale.scale, total[t]);
    }
  }
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) _mm512_storeu_ps(sums + t * kBlockN, total[t]);
}

template <class Codes>
static inline void pair_tiles(const PairPanel& w, int64_t k0, int64_t k1, const PairX& x,
                              int64_t rows, float* sums, bool add) {
  switch (rows) {
    case 1: return pair_tile<1, Codes>(w, k0, k1, x, sums, add);
    case 2: return pair_tile<2, Codes>(w, k0, k1, x, sums, add);
    case 3: return pair_tile<3, Codes>(w, k0, k1, x, sums, add);
    case 4: return pair_tile<4, Codes>(w, k0, k1, x, sums, add);
    case 5: return pair_tile<5, Codes>(w, k0, k1, x, sums, add);
    case 6: return pair_tile<6, Codes>(w, k0, k1, x, sums, add);
    case 7: return pair_tile<7, Codes>(w, k0, k1, x, sums, add);
    default: return pair_tile<8, Codes>(w, k0, k1, x, sums, add);
  }
}

struct PairScratch {
  uint8_t* rows;  // (stage, columns): rows of pairs that x has not
  uint8_t* x;     // the same in tiles
  float* x_sums;  // (stage, groups)
  float* scale;   // (stage)
  float* sums;    // (threads, rows and columns of a block)
  float* floats;  // (threads, columns)
  int64_t columns;
  int64_t groups;
};

// A row of x is pairs as they are wanted, but for their order.
static inline bool reads_pairs(const LinearArgs& args) {
  return args.x.dtype == DType::bf16 && args.compute == Compute::floating &&
         args.w.format.planes == 1 && args.w.k % 32 == 0;
}

static inline size_t carve_pairs(const LinearArgs& args, int threads, BlockSize size, void* base,
                                 PairScratch* s) {
  const int64_t rows = stage_rows(args.x.shape[0]);
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->columns = round_up(args.w.k, 32);
  s->groups = args.w.format.zero_type == ZeroType::u8 ? scale_cols(args.w.format, args.w.k) : 0;
  s->rows = take<uint8_t>(&at, rows * s->columns * 2);
  s->x = take<uint8_t>(&at, rows * s->columns * 2);
  s->x_sums = take<float>(&at, rows * s->groups);
  s->scale = take<float>(&at, rows);
  s->sums = take<float>(&at, threads * size.m * size.n);
  s->floats = take<float>(&at, threads * s->columns);
  return at - reinterpret_cast<uintptr_t>(base);
}

static inline size_t workspace_pairs(const LinearArgs& args, int threads) {
  PairScratch s;
  return carve_pairs(args, threads, {}, nullptr, &s);
}

// The f32 values of a row of x, each of which is a bf16, in the order of `order`: word j of 32 is
// column order[j].
static inline void put_pairs(const float* from, int64_t k, __m512i order, uint8_t* to) {
  for (int64_t i = 0; i < k; i += 32) {
    const __m512i low = _mm512_srli_epi32(load_bytes(from + i), 16);
    const __m512i high = _mm512_srli_epi32(load_bytes(from + i + 16), 16);
    const __m512i words = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(low)),
                                             _mm512_cvtepi32_epi16(high), 1);
    _mm512_storeu_si512(to + i * 2, _mm512_permutexvar_epi16(order, words));
  }
}

// Sums of the groups of a row of x.
static inline void sum_groups(const float* x, const LinearArgs& args, int64_t groups, float* sums) {
  const int64_t k = args.w.k, size = args.w.format.group_k;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t end = (g + 1) * size < k ? (g + 1) * size : k;
    float sum = 0.0f;
    for (int64_t i = g * size; i < end; ++i) sum += x[i];
    sums[g] = sum;
  }
}

// Stages `rows` rows of x from `first` on, in tiles of `height` rows; the last one may have fewer.
// `digits`: the order of 8 columns.
static inline void stage_pairs(const LinearArgs& args, const Ctx& ctx, const PairScratch& s,
                               uint32_t digits, int64_t first, int64_t rows, int64_t height) {
  const int64_t k = args.w.k, stride = s.columns * 2;
  const __m512i order = pair_order(digits);
  const uint8_t* from = s.rows;
  int64_t from_stride = stride;
  if (reads_pairs(args) && s.groups == 0 && digits == 0x76543210) {
    from_stride = args.x.strides[0] * 2;
    from = static_cast<const uint8_t*>(args.x.data) + first * from_stride;
    for (int64_t m = 0; m < rows; ++m) s.scale[m] = args.w.tensor_scale;
  } else {
    parallel_for(ctx.pool, rows, 1, [&](int64_t begin, int64_t end, int thread) {
      float* floats = s.floats + thread * s.columns;
      for (int64_t i = k; i < s.columns; ++i) floats[i] = 0.0f;
      for (int64_t m = begin; m < end; ++m) {
        s.scale[m] = stage_floats(args, first + m, floats) * args.w.tensor_scale;
        put_pairs(floats, s.columns, order, s.rows + m * stride);
        sum_groups(floats, args, s.groups, s.x_sums + m * s.groups);
      }
    });
  }
  // By tiles, whose rows share cache lines, and by columns, for there may be one tile only.
  const int64_t words = s.columns / 2, step = ceil_div(kWordTask, height);
  const int64_t steps = ceil_div(words, step);
  parallel_for(ctx.pool, ceil_div(rows, height) * steps, 1, [&](int64_t i0, int64_t i1, int) {
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t m = i / steps * height, q = i % steps * step;
      const int64_t count = rows - m < height ? rows - m : height;
      interleave_words(from + m * from_stride + q * 4, from_stride, count,
                       words - q < step ? words - q : step, s.x + m * stride + q * 4 * count);
    }
  });
}

// Codes: how the kind's codes become pairs.
template <class Codes>
static inline Status run_pairs(const LinearArgs& args, const Ctx& ctx) {
  const int64_t m_all = args.x.shape[0], k = args.w.k, stage = stage_rows(m_all);
  const PanelBlock block = panel_block(args.w.format, {args.w.n, k});
  PairScratch s;
  carve_pairs(args, pool_threads(ctx.pool), {}, ctx.scratch, &s);
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    const int64_t tile = tile_height(rows, kInlineRows);
    if (k > 0) stage_pairs(args, ctx, s, Codes::kOrder, first, rows, tile);
    for_blocks(args, ctx.pool, first, rows, tile, s.scale, s.sums,
               [&](int, int64_t n0, int64_t panels, int64_t m0, int64_t height, float* sums) {
                 if (k == 0) {
                   for (int64_t i = 0; i < height * kBlockN; ++i) sums[i] = 0.0f;
                   return;
                 }
                 const int64_t slice = height > tile ? kPairSlice : k;
                 for (int64_t k0 = 0; k0 < k; k0 += slice) {
                   const int64_t k1 = k0 + slice < k ? k0 + slice : k;
                   for (int64_t p = 0; p < panels; ++p) {
                     const PairPanel w = {
                         args.w.data + (n0 / kPanel + p) * block.groups * block.bytes, block,
                         args.w.format, nullptr};
                     for (int64_t m = 0; m < height; m += tile) {
                       const PairX x = {s.x + (m0 + m) * s.columns * 2,
                                        s.x_sums + (m0 + m) * s.groups, s.groups};
                       pair_tiles<Codes>(w, k0, k1, x, height - m < tile ? height - m : tile,
                                         sums + m * kBlockN + p * kPanel, k0 > 0);
                     }
                   }
                 }
               });
  }
  return ok();
}

static constexpr LinearSpec pair_spec(KindSet kinds) {
  LinearSpec spec = {kinds,
                     bit(Layout::panel16),
                     bit(DType::bf16),
                     bit(Compute::floating) | bit(Compute::fp8),
                     true,
                     0,
                     1,
                     1,
                     1};
  spec.float_zeros = false;
  spec.planes = true;
  return spec;
}

}  // namespace lowbit::avx512
