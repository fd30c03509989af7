// Codes of 3 bits and fewer as pairs of bf16 (pairs_avx512.h), for rows that never round x.
//
// A lane's 4 bytes hold four neighbouring columns in each field, so bytes 0 and 2 are the low bytes
// of its two words, and bytes 1 and 3 come down by 8 bits: columns (0, 2), (1, 3), and the same of
// the next field.
#pragma once

#include "csrc/linear/pairs_avx512.h"

namespace lowbit::avx512 {

inline constexpr uint32_t kNarrowOrder = 0x75643120;

// Entry i of a table of `size` numbers from `first` on, over and over: bits above a code's do not
// count.
static constexpr PairTable repeated_table(int size, int first) {
  PairTable t = {};
  for (int i = 0; i < 32; ++i) {
    t.words[i] = static_cast<uint16_t>(float_bits(static_cast<float>(first + i % size)) >> 16);
  }
  return t;
}
alignas(64) static constexpr PairTable kTernaryNumbers = repeated_table(4, -1);
alignas(64) static constexpr PairTable kInt2Numbers = repeated_table(4, -2);
alignas(64) static constexpr PairTable kInt3Numbers = repeated_table(8, -4);
alignas(64) static constexpr PairTable kPlainPairs = repeated_table(4, 0);

// Codes of bytes 0 and 2 of each lane, then of bytes 1 and 3.
static inline void look_up(__m512i bytes, __m512i table, __m512i* even, __m512i* odd) {
  *even = _mm512_permutexvar_epi16(bytes, table);
  *odd = _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 8), table);
}

struct Bits {
  static constexpr int kParts = 4;
  static constexpr int64_t kBytes = 64;
  static constexpr uint32_t kOrder = kNarrowOrder;
  struct Zero {};
  static Zero zero(const PairPanel&, const uint8_t*) { return {}; }

  // 1 with the sign that a word's top bit says: set is plus.
  static __m512i one(__m512i v) {
    constexpr int kOrNotAnd = 0xae;  // c | ~a & b
    return _mm512_ternarylogic_epi32(v, _mm512_set1_epi16(-0x8000), _mm512_set1_epi16(0x3f80),
                                     kOrNotAnd);
  }
  template <int P>
  static void decode(const uint8_t* at, const Zero&, Part<P>, __m512i (&v)[4]) {
    const __m512i codes = load_bytes(at);
    v[0] = one(_mm512_slli_epi16(codes, 15 - 2 * P));
    v[1] = one(_mm512_slli_epi16(codes, 7 - 2 * P));
    v[2] = one(_mm512_slli_epi16(codes, 14 - 2 * P));
    v[3] = one(_mm512_slli_epi16(codes, 6 - 2 * P));
  }
};

// int2 and ternary: code - 2, code - 1, or the plain code where zero points are stored.
struct Crumbs {
  static constexpr int kParts = 2;
  static constexpr int64_t kBytes = 64;
  static constexpr uint32_t kOrder = kNarrowOrder;
  using Zero = __m512i;  // the table
  static Zero zero(const PairPanel& w, const uint8_t*) {
    return load_bytes(w.format.kind == Kind::ternary         ? kTernaryNumbers.words
                      : w.format.zero_type == ZeroType::none ? kInt2Numbers.words
                                                             : kPlainPairs.words);
  }
  template <int P>
  static void decode(const uint8_t* at, const Zero& table, Part<P>, __m512i (&v)[4]) {
    const __m512i codes = load_bytes(at);
    v[0] = _mm512_permutexvar_epi16(P == 0 ? codes : _mm512_srli_epi16(codes, 4 * P), table);
    v[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4 * P + 8), table);
    v[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4 * P + 2), table);
    v[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4 * P + 10), table);
  }
};

// int2 less its stored zero points.
struct CrumbDifferences {
  static constexpr int kParts = 2;
  static constexpr int64_t kBytes = 64;
  static constexpr uint32_t kOrder = kNarrowOrder;
  using Zero = Differences;
  static Zero zero(const PairPanel& w, const uint8_t* block) { return differences(w, block); }
  template <int P>
  static void decode(const uint8_t* at, const Zero& zero, Part<P>, __m512i (&v)[4]) {
    const __m512i codes = load_bytes(at), three = _mm512_set1_epi8(3);
    const __m512i a = P == 0 ? codes : _mm512_srli_epi16(codes, 4 * P);
    const __m512i b = _mm512_srli_epi16(codes, 4 * P + 2);
    look_up(_mm512_sub_epi8(_mm512_and_si512(a, three), zero.bytes), zero.table, &v[0], &v[1]);
    look_up(_mm512_sub_epi8(_mm512_and_si512(b, three), zero.bytes), zero.table, &v[2], &v[3]);
  }
};

// Codes of columns 16h + 4f .. 16h + 4f + 3 of 32 as bytes: two lower bits of one vector, and the
// bit 2f + h of a third brought to bit 2.
template <int H, int F>
static inline __m512i int3_codes(const uint8_t* at) {
  constexpr int kUp = 2 - 2 * F - H, kChoose = 0xca;  // a ? b : c
  __m512i low = load_bytes(at + 64 * H), high = load_bytes(at + 128);
  if constexpr (F > 0) low = _mm512_srli_epi16(low, 2 * F);
  if constexpr (kUp > 0) high = _mm512_slli_epi16(high, kUp);
  if constexpr (kUp < 0) high = _mm512_srli_epi16(high, -kUp);
  const __m512i code = _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), low, high, kChoose);
  return _mm512_and_si512(code, _mm512_set1_epi8(7));
}

// int3: code - 4, or the plain code where zero points are stored; kZeros: less these.
template <bool kZeros>
struct Int3Codes {
  static constexpr int kParts = 4;
  static constexpr int64_t kBytes = 192;
  static constexpr uint32_t kOrder = kNarrowOrder;
  using Zero = Differences;
  static Zero zero(const PairPanel& w, const uint8_t* block) {
    if constexpr (kZeros) return differences(w, block);
    const bool plain = w.format.zero_type != ZeroType::none;
    return {load_bytes(plain ? kPlainCodes.words : kInt3Numbers.words), _mm512_setzero_si512()};
  }
  template <int P>
  static void decode(const uint8_t* at, const Zero& zero, Part<P>, __m512i (&v)[4]) {
    __m512i a = int3_codes<P / 2, P % 2 * 2>(at), b = int3_codes<P / 2, P % 2 * 2 + 1>(at);
    if constexpr (kZeros) {
      a = _mm512_sub_epi8(a, zero.bytes);
      b = _mm512_sub_epi8(b, zero.bytes);
    }
    look_up(a, zero.table, &v[0], &v[1]);
    look_up(b, zero.table, &v[2], &v[3]);
  }
};

inline constexpr KindSet kNarrowKinds =
    bit(Kind::int3) | bit(Kind::int2) | bit(Kind::int1) | bit(Kind::ternary);

}  // namespace lowbit::avx512
