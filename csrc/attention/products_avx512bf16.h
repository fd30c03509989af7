// Products of a decode step: up to four query rows with the keys and the values of a tile, which
// are read where they lie. How the codes of a format become operands is a form, below; scales and
// zeros meet scores and weights, as codes_avx512bf16.h has it.
//
//   bf16, fp8_e4m3   pairs of bf16, exactly what the codes are
//   int4             pairs of bf16, 16 + code, two instructions for 32 of them
//   int8             whole numbers with sums of 32 bits: queries of 16 bits to 2^-16 of the largest
//                    of a row, weights to 2^-16 of the largest of a tile, where bf16 keeps 2^-9;
//                    bf16 from bytes would take five instructions
//
//   scores   bf16, fp8: dimensions in lanes; sixteen sums (4 rows x 4 keys, 2 x 8 or 1 x 16) are
//            added up across lanes together. int8, int4: keys in lanes; sixteen rows of 32 bytes
//            are transposed as dwords, so that nothing is added up across lanes
//   values   the dwords (int4, int8: words of two codes) of two keys interleaved in registers;
//            what comes out of order is put in order once a tile
//
// Zen 4 has one vdpbf16ps, vpdpbusd or vpdpwssd a cycle on two of its four pipes, and one shuffle a
// cycle on one of these two and a third: sums across lanes are two shuffles and an addition, not
// two blends, a shuffle and an addition, because of the pipes.
#pragma once

#include <type_traits>

#include "csrc/attention/codes_avx512bf16.h"

namespace lowbit {
namespace {

// The rows of keys or of values of a tile; what fills up the last sixteen repeats the last one.
using Rows = const uint8_t* const*;

// What comes next, in pieces: asked for line by line between products, so that it is on its way to
// L2 meanwhile. Where sixteen or eight lines were asked for at once, some came too late or never.
struct Ahead {
  static constexpr int kMost = 160;  // two for each key of a tile, and more than pages of 8 make
  struct Piece {
    const uint8_t *at, *end;
  };
  Piece pieces[kMost];
  int count, taken;
  Piece here;
};
inline void start(Ahead& a) {
  a.count = a.taken = 0;
  a.here = {};
}
inline void add(Ahead& a, const uint8_t* at, int64_t bytes) {
  if (a.count < Ahead::kMost && bytes > 0) a.pieces[a.count++] = {at, at + bytes};
}
template <int kLines>
[[gnu::always_inline]] inline void ask(Ahead& a) {
#pragma GCC unroll 4
  for (int i = 0; i < kLines; ++i) {
    if (a.here.at >= a.here.end) {
      if (a.taken == a.count) return;
      a.here = a.pieces[a.taken++];
    }
    __builtin_prefetch(a.here.at, 0, 2);  // into L2
    a.here.at += 64;
  }
}

// The same walk with its place in registers, for as long as the object lives.
struct Walk {
  Ahead& ahead;
  const uint8_t *at, *end;
  explicit Walk(Ahead& a) : ahead(a), at(a.here.at), end(a.here.end) {}
  ~Walk() { ahead.here = {at, end}; }
};
template <int kLines>
[[gnu::always_inline]] inline void ask(Walk& w) {
#pragma GCC unroll 4
  for (int i = 0; i < kLines; ++i) {
    if (__builtin_expect(w.at >= w.end, 0)) {
      if (w.ahead.taken == w.ahead.count) return;
      w.at = w.ahead.pieces[w.ahead.taken].at;
      w.end = w.ahead.pieces[w.ahead.taken++].end;
    }
    __builtin_prefetch(w.at, 0, 2);  // into L2
    w.at += 64;
  }
}

// Queries as the scores take them, rows r0 to r0 + 3.
struct Queries {
  const Bf16* rows;        // [row][stride]
  const uint32_t* packed;  // [row][stride / 2]: what pack_bytes() and pack_nibbles() make of them
  int64_t stride;
  const int32_t* bias;  // [row], of int8
};

inline __m512i set_pair(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }

// Lane i: the sum over the lanes of x[i].
[[gnu::always_inline]] inline __m512 add_across(__m512 (&x)[16]) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    x[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]),
                         _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(x[2 * i]), b = _mm512_castps_pd(x[2 * i + 1]);
    x[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  // Now quarter k of x[i] has partial sums of 4 * i to 4 * i + 3.
  const auto fold = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return fold(fold(x[0], x[1]), fold(x[2], x[3]));
}

// Dword c of the 32 bytes at `at` of each of sixteen rows.
template <bool kWhole>
[[gnu::always_inline]] inline void transpose_rows(const uint8_t* const* row, int64_t at,
                                                  __mmask32 there, __m512i (&x)[8]) {
  const auto load = [=](int i) {
    return kWhole ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[i] + at))
                  : _mm256_maskz_loadu_epi8(there, row[i] + at);
  };
  __m512i y[8];
#pragma GCC unroll 2
  for (int g = 0; g < 2; ++g) {
    __m512i a[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      a[i] = _mm512_inserti64x4(_mm512_castsi256_si512(load(8 * g + i)), load(8 * g + 4 + i), 1);
    }
    const __m512i b0 = _mm512_unpacklo_epi32(a[0], a[1]), b1 = _mm512_unpackhi_epi32(a[0], a[1]);
    const __m512i b2 = _mm512_unpacklo_epi32(a[2], a[3]), b3 = _mm512_unpackhi_epi32(a[2], a[3]);
    // Quarter k: dword j (odd k: 4 + j) of rows 8g + 2k (odd k: 8g + 2k - 2) and the three after.
    y[4 * g] = _mm512_unpacklo_epi64(b0, b2);
    y[4 * g + 1] = _mm512_unpackhi_epi64(b0, b2);
    y[4 * g + 2] = _mm512_unpacklo_epi64(b1, b3);
    y[4 * g + 3] = _mm512_unpackhi_epi64(b1, b3);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    x[j] = _mm512_shuffle_i32x4(y[j], y[4 + j], 0x88);
    x[4 + j] = _mm512_shuffle_i32x4(y[j], y[4 + j], 0xdd);
  }
}

// Four vectors of 64 dimensions of which e[0] and e[1] have, in turns, those of which 16 * k to 16
// * k + 7 lie in quarter k, and e[2] and e[3] the others: in order.
[[gnu::always_inline]] inline void order_turns(__m512 (&e)[4]) {
  const __m512 a = _mm512_unpacklo_ps(e[0], e[1]), b = _mm512_unpackhi_ps(e[0], e[1]);
  const __m512 c = _mm512_unpacklo_ps(e[2], e[3]), d = _mm512_unpackhi_ps(e[2], e[3]);
  const __m512 t0 = _mm512_shuffle_f32x4(a, b, 0x44), t1 = _mm512_shuffle_f32x4(c, d, 0x44);
  const __m512 t2 = _mm512_shuffle_f32x4(a, b, 0xee), t3 = _mm512_shuffle_f32x4(c, d, 0xee);
  e[0] = _mm512_shuffle_f32x4(t0, t1, 0x88);
  e[1] = _mm512_shuffle_f32x4(t0, t1, 0xdd);
  e[2] = _mm512_shuffle_f32x4(t2, t3, 0x88);
  e[3] = _mm512_shuffle_f32x4(t2, t3, 0xdd);
}

// A form: codes that are kBounded give no infinite score; kBytes of a dimension; words() are 32
// dimensions as bf16; pairs() are 64 dimensions of two keys, pair by pair, in the order that
// order() undoes.
struct Bf16Form {
  static constexpr bool kInteger = false, kScaled = false, kBounded = false;
  static constexpr int kBytes = 2;
  template <bool kWhole>
  static inline __m512i words(__mmask32 there, const uint8_t* at) {
    return kWhole ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi16(there, at);
  }
};
struct E4m3Form {
  static constexpr bool kInteger = false, kScaled = true, kBounded = false;
  static constexpr int kBytes = 1;
  template <bool kWhole>
  static inline __m512i words(__mmask32 there, const uint8_t* at) {
    return bf16_of_e4m3(_mm256_maskz_loadu_epi8(there, at));
  }
};
struct Int8Form {
  static constexpr bool kInteger = true, kScaled = true, kBounded = true;
  static constexpr int kBytes = 1;
};
struct Int4Form {
  static constexpr bool kInteger = false, kScaled = true, kBounded = true;
};
constexpr float kInt4Offset = 16.0f;

// 16 + code of the codes `kPart` of each word's four: the code as upper bits of a mantissa.
template <int kPart>
[[gnu::always_inline]] inline __m512i nibbles(__m512i words) {
  const __m512i at = kPart == 0   ? _mm512_slli_epi16(words, 3)
                     : kPart == 1 ? _mm512_srli_epi16(words, 1)
                     : kPart == 2 ? _mm512_srli_epi16(words, 5)
                                  : _mm512_srli_epi16(words, 9);
  return _mm512_ternarylogic_epi32(at, _mm512_set1_epi16(0x78), _mm512_set1_epi16(0x4180),
                                   0xea);  // a & b | c
}

// s[r][j] = q[r] . k[j] for kRows rows and `count` keys: dimensions in lanes.
template <class Form, int kRows, bool kWhole>
void score_words(const Queries& q, Rows k, Ahead& next, int count, int64_t head_dim, float* s) {
  constexpr int kKeys = 16 / kRows;
  for (int n = 0; n < count; n += kKeys) {
    __m512 acc[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) acc[i] = _mm512_setzero_ps();
    for (int64_t d = 0; d < head_dim; d += 32) {
      const __mmask32 there = first_words(head_dim - d);
      __m512i a[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) a[r] = _mm512_loadu_si512(q.rows + r * q.stride + d);
      const int64_t at = d * Form::kBytes;
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) {
        if (Form::kBytes == 2 || j % 2 == 0) ask<1>(next);
        const __m512i x = Form::template words<kWhole>(there, k[n + j] + at);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) acc[r * kKeys + j] = dot(acc[r * kKeys + j], a[r], x);
      }
    }
    const __m512 sums = add_across(acc);
    if constexpr (kRows == 1) {
      _mm512_storeu_ps(s + n, sums);
    } else if constexpr (kRows == 2) {
      _mm256_storeu_ps(s + n, _mm512_castps512_ps256(sums));
      _mm256_storeu_ps(s + kTile + n, _mm512_extractf32x8_ps(sums, 1));
    } else {
      _mm_storeu_ps(s + n, _mm512_castps512_ps128(sums));
      _mm_storeu_ps(s + kTile + n, _mm512_extractf32x4_ps(sums, 1));
      _mm_storeu_ps(s + 2 * kTile + n, _mm512_extractf32x4_ps(sums, 2));
      _mm_storeu_ps(s + 3 * kTile + n, _mm512_extractf32x4_ps(sums, 3));
    }
  }
}

// A query for int8: whole numbers of 16 bits as 256 * upper + lower bytes, both with a sign: of
// each sixteen dimensions the upper bytes, then the lower. Returns what one unit is worth; *bias is
// 128 times their sum, by which sums with 128 + code are too large.
constexpr float kWholeMost = 127 * 256 + 127;  // the largest whose upper byte is no 128
inline float pack_bytes(const Bf16* q, int64_t n, int64_t padded, uint32_t* out, int32_t* bias) {
  const auto part = [=](int64_t d) {
    const auto there = static_cast<__mmask16>(d < n ? first_words(n - d) : 0);
    const __m256i x = _mm256_maskz_loadu_epi16(there, q + d);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  };
  __m512 most = _mm512_setzero_ps();
  for (int64_t d = 0; d < n; d += 16) most = _mm512_max_ps(_mm512_abs_ps(part(d)), most);
  // No sum of products with int8 leaves 32 bits.
  const float largest = V::reduce_max(most), range = n <= 512 ? kWholeMost : kWholeMost / 2;
  const __m512 by = _mm512_set1_ps(largest > 0 ? range / largest : 0.0f);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t d = 0; d < padded; d += 16, out += 8) {
    const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(part(d), by));
    sum = _mm512_add_epi32(sum, x);
    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 4), _mm512_cvtepi32_epi8(x));
  }
  *bias = static_cast<int32_t>(128u * static_cast<uint32_t>(_mm512_reduce_add_epi32(sum)));
  return largest / range;
}

// A query for int4: of each eight dimensions four dwords, the pairs whose codes the four parts of
// nibbles() have.
inline void pack_nibbles(const Bf16* q, int64_t n, uint32_t* out) {
  alignas(64) static constexpr uint16_t kPairs[32] = {0,  2,  16, 18, 1,  3,  17, 19, 4,  6, 20,
                                                      22, 5,  7,  21, 23, 8,  10, 24, 26, 9, 11,
                                                      25, 27, 12, 14, 28, 30, 13, 15, 29, 31};
  const auto part = [](const Bf16* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  };
  for (int64_t d = 0; d < n / 2; d += 16, out += 16) {
    const __m512i both =
        _mm512_inserti64x4(_mm512_castsi256_si512(part(q + d)), part(q + n / 2 + d), 1);
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_load_si512(kPairs), both));
  }
}

// The same scores in units of what queries are multiplied with: keys in lanes.
template <int kRows, bool kWhole>
[[gnu::noinline]] void score_bytes(const Queries& q, Rows k, Ahead& ahead, int count,
                                   int64_t head_dim, float* s) {
  Walk next(ahead);
  constexpr int kWays = 4 / kRows;  // eight sums hide the latency
  const __m512i flip = _mm512_set1_epi8(-128);
  for (int n = 0; n < count; n += 16) {
    __m512i upper[kRows][kWays], lower[kRows][kWays];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      upper[i / kWays][i % kWays] = lower[i / kWays][i % kWays] = _mm512_setzero_si512();
    }
    for (int64_t at = 0; at < head_dim; at += 32) {
      __m512i x[8];
      transpose_rows<kWhole>(k + n, at, first_words(head_dim - at), x);
      ask<1>(next);  // of scales
#pragma GCC unroll 8
      for (int c = 0; c < 8; ++c) {
        ask<1>(next);
        x[c] = _mm512_xor_si512(x[c], flip);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const uint32_t* a = q.packed + r * (q.stride / 2) + at / 2 + c / 4 * 8 + c % 4;
          upper[r][c % kWays] = _mm512_dpbusd_epi32(upper[r][c % kWays], x[c], set_pair(a[0]));
          lower[r][c % kWays] = _mm512_dpbusd_epi32(lower[r][c % kWays], x[c], set_pair(a[4]));
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 1; i < kWays; ++i) {
        upper[r][0] = _mm512_add_epi32(upper[r][0], upper[r][i]);
        lower[r][0] = _mm512_add_epi32(lower[r][0], lower[r][i]);
      }
      const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(upper[r][0], 8), lower[r][0]);
      _mm512_storeu_ps(s + r * kTile + n,
                       _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(q.bias[r]))));
    }
  }
}

// sum plus the products of a's and b's pairs in each lane. Of the intrinsic in loops over sixteen
// sums g++ 12 makes copies of them.
[[gnu::always_inline]] inline __m512 add_dot(__m512 sum, __m512i a, __m512i b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

// Part kPart of the codes of dword c of kGroups times sixteen keys.
template <int kPart, int kRows, int kGroups, int kWays>
[[gnu::always_inline]] inline void score_part(const __m512i (&x)[kGroups], const uint32_t* q,
                                              int64_t stride, int way,
                                              __m512 (&acc)[kRows][kGroups][kWays]) {
  __m512i codes[kGroups];
#pragma GCC unroll 2
  for (int g = 0; g < kGroups; ++g) codes[g] = nibbles<kPart>(x[g]);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m512i pair = set_pair(q[r * stride + kPart]);
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      __m512& sum = acc[r][g][way % kWays];
      sum = add_dot(sum, codes[g], pair);
    }
  }
}

// The scores of kGroups times sixteen keys: each broadcast of a query's pair meets all of them.
template <int kRows, int kGroups>
[[gnu::always_inline]] inline void score_nibble_group(const Queries& q, Rows k, Walk& next,
                                                      int64_t head_dim, float* s) {
  // Sixteen sums: two products a cycle may begin, each of which waits 6 cycles for its sum.
  constexpr int kWays = 16 / (kRows * kGroups);
  const int64_t stride = q.stride / 2;
  __m512 acc[kRows][kGroups][kWays];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kGroups * kWays; ++i) acc[r][i / kWays][i % kWays] = _mm512_setzero_ps();
  }
  for (int64_t at = 0; at < head_dim / 2; at += 32) {
    // In memory, for sums and codes take the registers.
    alignas(64) __m512i transposed[kGroups][8];
    __m512i(*rows)[8] = transposed;
    asm("" : "+r"(rows));
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      __m512i x[8];
      transpose_rows<true>(k + 16 * g, at, 0, x);
      ask<1>(next);  // of scales
#pragma GCC unroll 8
      for (int c = 0; c < 8; ++c) rows[g][c] = x[c];
    }
    asm("" : "+r"(rows) : : "memory");
    const uint32_t* pairs = q.packed + at;
#pragma GCC unroll 2
    for (int c = 0; c < 8; ++c, pairs += 4) {
      ask<kGroups>(next);
      __m512i x[kGroups];
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) x[g] = rows[g][c];
      score_part<0>(x, pairs, stride, 0, acc);
      score_part<1>(x, pairs, stride, 1, acc);
      score_part<2>(x, pairs, stride, 2, acc);
      score_part<3>(x, pairs, stride, 3, acc);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      __m512 sum = acc[r][g][0];
#pragma GCC unroll 16
      for (int i = 1; i < kWays; ++i) sum = _mm512_add_ps(sum, acc[r][g][i]);
      _mm512_storeu_ps(s + r * kTile + 16 * g, sum);
    }
  }
}

template <int kRows>
[[gnu::noinline]] void score_nibbles(const Queries& q, Rows k, Ahead& ahead, int count,
                                     int64_t head_dim, float* s) {
  Walk next(ahead);
  int n = 0;
  for (; n + 16 < count; n += 32) score_nibble_group<kRows, 2>(q, k + n, next, head_dim, s + n);
  if (n < count) score_nibble_group<kRows, 1>(q, k + n, next, head_dim, s + n);
}

// Pairs of two keys, of 64 dimensions from kBytes * 64 bytes on, of which the first `left` are
// there.
template <class Form, bool kWhole>
[[gnu::always_inline]] inline void pairs_of(const uint8_t* a, const uint8_t* b, int64_t left,
                                            __m512i (&x)[4]) {
  if constexpr (Form::kInteger) {
    const __mmask64 there = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
    const __m512i u = kWhole ? _mm512_loadu_si512(a) : _mm512_maskz_loadu_epi8(there, a);
    const __m512i v = kWhole ? _mm512_loadu_si512(b) : _mm512_maskz_loadu_epi8(there, b);
    const __m512i low = _mm512_unpacklo_epi16(u, v), high = _mm512_unpackhi_epi16(u, v);
    x[0] = _mm512_srai_epi16(_mm512_slli_epi16(low, 8), 8);
    x[1] = _mm512_srai_epi16(low, 8);
    x[2] = _mm512_srai_epi16(_mm512_slli_epi16(high, 8), 8);
    x[3] = _mm512_srai_epi16(high, 8);
  } else {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __mmask32 there = left > 32 * i ? first_words(left - 32 * i) : 0;
      const __m512i u = Form::template words<kWhole>(there, a + 32 * Form::kBytes * i);
      const __m512i v = Form::template words<kWhole>(there, b + 32 * Form::kBytes * i);
      x[2 * i] = _mm512_unpacklo_epi16(u, v);
      x[2 * i + 1] = _mm512_unpackhi_epi16(u, v);
    }
  }
}
// The sums over such pairs, in order.
template <class Form>
[[gnu::always_inline]] inline void order_pairs(__m512 (&e)[4]) {
  if constexpr (Form::kInteger) {
    order_turns(e);
  } else {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
      const __m512 x = e[i];
      e[i] = _mm512_permutex2var_ps(x, first, e[i + 1]);
      e[i + 1] = _mm512_permutex2var_ps(x, second, e[i + 1]);
    }
  }
}

template <class Form>
[[gnu::always_inline]] inline __m512 add_products(__m512 sum, __m512i a, __m512i b) {
  if constexpr (Form::kInteger) {
    return _mm512_castsi512_ps(_mm512_dpwssd_epi32(_mm512_castps_si512(sum), a, b));
  } else {
    return dot(sum, a, b);
  }
}

// What a row's o becomes with the products of a tile.
struct Take {
  const float* shrink;
  Entry entry;
};
template <class Form>
[[gnu::always_inline]] inline __m512 take_products(const Take& t, int r, __m512 before,
                                                   __m512 products) {
  const __m512 by = _mm512_set1_ps(t.shrink[r]);
  if constexpr (Form::kInteger) {
    products = _mm512_cvtepi32_ps(_mm512_castps_si512(products));
    return _mm512_fmadd_ps(products, _mm512_set1_ps(t.entry.unit[r]), _mm512_mul_ps(before, by));
  }
  if constexpr (Form::kScaled) {
    products = _mm512_sub_ps(products, _mm512_set1_ps(t.entry.subtract[r]));
  }
  return _mm512_fmadd_ps(before, by, products);
}

// o[r] takes in p[r][j] * v[j] for `count` keys, for kRows rows and the 64 dimensions from d on.
template <class Form, int kRows, bool kWhole, class Next>
[[gnu::always_inline]] inline void value_pairs(const uint32_t* p, const Take& take, Rows v,
                                               Next& next, int64_t d, int64_t left, int count,
                                               float* o, int64_t o_stride) {
  __m512 acc[kRows][4];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) acc[r][i] = _mm512_setzero_ps();
  }
  const int64_t at = d * Form::kBytes;
  for (int j = 0; j < count; j += 2) {
    ask<2 * Form::kBytes>(next);
    __m512i x[4];
    pairs_of<Form, kWhole>(v[j] + at, v[j + 1] + at, left, x);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512i w = set_pair(p[r * (kTile / 2) + j / 2]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) acc[r][i] = add_products<Form>(acc[r][i], w, x[i]);
    }
  }
  const int vectors = left > 32 ? 4 : 2;  // o has room for whole pairs of vectors
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    order_pairs<Form>(acc[r]);
    float* to = o + r * o_stride + d;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (!kWhole && i >= vectors) break;
      const __m512 before = _mm512_loadu_ps(to + 16 * i);
      _mm512_storeu_ps(to + 16 * i, take_products<Form>(take, r, before, acc[r][i]));
    }
  }
}
template <class Form, int kRows>
void value_rows(const uint32_t* p, const Take& take, Rows v, Ahead& ahead, int count,
                int64_t head_dim_v, float* o, int64_t o_stride) {
  // Of bf16, in registers it was slower (NOTES.md).
  std::conditional_t<Form::kInteger, Walk, Ahead&> next(ahead);
  int64_t d = 0;
  for (; d + 64 <= head_dim_v; d += 64) {
    value_pairs<Form, kRows, true>(p, take, v, next, d, 64, count, o, o_stride);
  }
  if (d < head_dim_v) {
    value_pairs<Form, kRows, false>(p, take, v, next, d, head_dim_v - d, count, o, o_stride);
  }
}

// The same for int4 and the 64 bytes of a key at `at`: of each sixteen the lower eight or the upper
// eight, or all of 32 bytes.
enum class Part { lower, upper, half };

template <int kRows, Part kPart>
[[gnu::always_inline]] inline void value_nibbles(const uint32_t* p, const Take& take, Rows v,
                                                 Walk& next, int64_t at, int64_t apart, int count,
                                                 float* o, int64_t o_stride) {
  __m512 acc[kRows][4];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) acc[r][i] = _mm512_setzero_ps();
  }
  const auto words_of = [&](int j) {
    if constexpr (kPart == Part::half) {
      const auto load = [&](int i) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v[i] + at));
      };
      const __m256i a = load(j), b = load(j + 1);
      return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_unpacklo_epi16(a, b)),
                                _mm256_unpackhi_epi16(a, b), 1);
    } else {
      const __m512i a = _mm512_loadu_si512(v[j] + at), b = _mm512_loadu_si512(v[j + 1] + at);
      return kPart == Part::upper ? _mm512_unpackhi_epi16(a, b) : _mm512_unpacklo_epi16(a, b);
    }
  };
  for (int j = 0; j < count; j += 2) {
    ask<1>(next);
    const __m512i words = words_of(j);
    const __m512i x[4] = {nibbles<0>(words), nibbles<1>(words), nibbles<2>(words),
                          nibbles<3>(words)};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512i w = set_pair(p[r * (kTile / 2) + j / 2]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) acc[r][i] = dot(acc[r][i], w, x[i]);
    }
  }
  // Quarters of a have the first four of eight dimensions, those of b the others. The eight of the
  // bytes 16 * k on stand in quarter k; of half: of 8 * k on in the quarters 0, 2, 1 and 3.
  alignas(64) static constexpr int32_t kPlain[32] = {0,  1,  2,  3,  16, 17, 18, 19, 4,  5,  6,
                                                     7,  20, 21, 22, 23, 8,  9,  10, 11, 24, 25,
                                                     26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
  alignas(64) static constexpr int32_t kHalves[32] = {0,  1,  2,  3,  16, 17, 18, 19, 8,  9,  10,
                                                      11, 24, 25, 26, 27, 4,  5,  6,  7,  20, 21,
                                                      22, 23, 12, 13, 14, 15, 28, 29, 30, 31};
  const int32_t* order = kPart == Part::half ? kHalves : kPlain;
  const __m512i first = _mm512_load_si512(order), second = _mm512_load_si512(order + 16);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part) {
      const __m512 a = _mm512_unpacklo_ps(acc[r][part], acc[r][part + 2]);
      const __m512 b = _mm512_unpackhi_ps(acc[r][part], acc[r][part + 2]);
      float* to = o + r * o_stride + at + part * apart + (kPart == Part::upper ? 8 : 0);
      // Two times eight dimensions, one after the other or with eight between them.
      constexpr int kNext = kPart == Part::half ? 8 : 16;
      const auto store = [&](__m512 x, float* here) {
        const __m512 before = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(here)),
                                                 _mm256_loadu_ps(here + kNext), 1);
        const __m512 after = take_products<Int4Form>(take, r, before, x);
        _mm256_storeu_ps(here, _mm512_castps512_ps256(after));
        _mm256_storeu_ps(here + kNext, _mm512_extractf32x8_ps(after, 1));
      };
      store(_mm512_permutex2var_ps(a, first, b), to);
      store(_mm512_permutex2var_ps(a, second, b), to + 2 * kNext);
    }
  }
}
template <int kRows>
void value_nibble_rows(const uint32_t* p, const Take& take, Rows v, Ahead& ahead, int count,
                       int64_t head_dim_v, float* o, int64_t o_stride) {
  Walk next(ahead);
  const int64_t bytes = head_dim_v / 2;
  int64_t at = 0;
  for (; at + 64 <= bytes; at += 64) {
    value_nibbles<kRows, Part::lower>(p, take, v, next, at, bytes, count, o, o_stride);
    value_nibbles<kRows, Part::upper>(p, take, v, next, at, bytes, count, o, o_stride);
  }
  if (at < bytes) {
    value_nibbles<kRows, Part::half>(p, take, v, next, at, bytes, count, o, o_stride);
  }
}

// Scores and values of one form.
template <class Form, int kRows>
[[gnu::always_inline]] inline void score_keys(const Queries& q, Rows k, Ahead& next, int count,
                                              int64_t head_dim, float* s) {
  const bool whole = head_dim % 32 == 0;
  if constexpr (std::is_same_v<Form, Int4Form>) {
    score_nibbles<kRows>(q, k, next, count, head_dim, s);
  } else if constexpr (Form::kInteger) {
    whole ? score_bytes<kRows, true>(q, k, next, count, head_dim, s)
          : score_bytes<kRows, false>(q, k, next, count, head_dim, s);
  } else {
    whole ? score_words<Form, kRows, true>(q, k, next, count, head_dim, s)
          : score_words<Form, kRows, false>(q, k, next, count, head_dim, s);
  }
}
template <class Form, int kRows>
[[gnu::always_inline]] inline void add_values(const uint32_t* p, const Take& take, Rows v,
                                              Ahead& next, int count, int64_t head_dim_v, float* o,
                                              int64_t o_stride) {
  if constexpr (std::is_same_v<Form, Int4Form>) {
    value_nibble_rows<kRows>(p, take, v, next, count, head_dim_v, o, o_stride);
  } else {
    value_rows<Form, kRows>(p, take, v, next, count, head_dim_v, o, o_stride);
  }
}

}  // namespace
}  // namespace lowbit
