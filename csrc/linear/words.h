// x between its rows and the tiles that kernels read: words of 4 bytes (four codes, two bf16) of
// several rows in turn, and sums of codes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace lowbit {

// Words [0, words) of `rows` rows, `stride` bytes apart, to `to`: word 0 of each row, then word 1
// of each.
static inline void interleave_words(const uint8_t* from, int64_t stride, int64_t rows,
                                    int64_t words, uint8_t* to) {
  typedef int32_t Words __attribute__((vector_size(16)));
  const auto load = [](const uint8_t* p) {
    Words v;
    std::memcpy(&v, p, sizeof v);
    return v;
  };
  const int64_t step = rows * 4;
  if (rows == 1) {
    std::memcpy(to, from, static_cast<size_t>(words) * 4);
    return;
  }
  int64_t whole = 0;
  if (rows >= 4) {
    whole = words / 4 * 4;
    for (int64_t r = 0; r < rows; r += 4) {
      // The last four may share rows with those before: they write the same words again.
      const int64_t row = r + 4 < rows ? r : rows - 4;
      const uint8_t* p = from + row * stride;
      uint8_t* out = to + row * 4;
      for (int64_t q = 0; q < whole; q += 4, p += 16, out += 4 * step) {
        const Words a = load(p), b = load(p + stride), c = load(p + 2 * stride),
                    d = load(p + 3 * stride);
        const Words ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
        const Words cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
        const Words ef = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Words gh = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        const Words turned[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5),
                                 __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                                 __builtin_shufflevector(ef, gh, 0, 1, 4, 5),
                                 __builtin_shufflevector(ef, gh, 2, 3, 6, 7)};
        for (int i = 0; i < 4; ++i) std::memcpy(out + i * step, &turned[i], sizeof(Words));
      }
    }
  }
  for (int64_t q = whole; q < words; ++q) {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(to + q * step + r * 4, from + r * stride + q * 4, 4);
    }
  }
}

// Sums of four signed bytes in each lane, added to acc.
static inline __m256i add_fours(__m256i acc, __m256i codes) {
  const __m256i twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
  return _mm256_add_epi32(acc, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
}

// For each of `rows` rows, 8 or more, of a tile of words as interleave_words leaves it: the sum of
// the codes of `words` words, times `factor`.
static inline void sum_words(const uint8_t* tile, int64_t rows, int64_t words, int32_t factor,
                             int32_t* sums) {
  for (int64_t r = 0; r < rows; r += 8) {
    const int64_t row = r + 8 < rows ? r : rows - 8;
    __m256i sum = _mm256_setzero_si256();
    for (int64_t q = 0; q < words; ++q) {
      const uint8_t* p = tile + (q * rows + row) * 4;
      sum = add_fours(sum, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + row),
                        _mm256_mullo_epi32(sum, _mm256_set1_epi32(factor)));
  }
}

// The sum of `count` codes.
static inline int32_t sum_codes(const int8_t* codes, int64_t count) {
  __m256i sum = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    sum = add_fours(sum, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i)));
  }
  const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  const __m128i pair = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  int32_t total = _mm_cvtsi128_si32(pair) + _mm_extract_epi32(pair, 1);
  for (; i < count; ++i) total += codes[i];
  return total;
}

}  // namespace lowbit
