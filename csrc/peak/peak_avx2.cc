// peak_*_avx2: the peaks of 256-bit vectors.
//
// Method    read: eight streams of one pointer, with and without software prefetch, for which of
//           the two is faster differs by machine and by number of threads.
//           copy: loads and streaming stores, so that the target is not read first.
//           f32, int8, int4: independent chains of the instructions that the kernels live on, all
//           operands in registers.
// Measured  see NOTES.md.
#include <immintrin.h>

#include "csrc/peak/pass.h"

namespace lowbit {
namespace {

// Makes the compiler take a value for unknown: loops whose result nobody needs would be dropped,
// and products of constants computed once. It costs no instruction.
inline __attribute__((always_inline)) void hide(__m256i& v) { asm volatile("" : "+x"(v)); }
inline __attribute__((always_inline)) void hide(__m256& v) { asm volatile("" : "+x"(v)); }

// The prefetch runs two pages ahead, further than the hardware's, which stop at a page's end.
constexpr int64_t kAhead = 8192;

template <bool kPrefetch>
void read_chunk(const uint8_t* data, int64_t bytes) {
  __m256i sum[8] = {};
  for (int64_t b = 0; b < bytes; b += 256) {
    if (kPrefetch) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(data + b + kAhead + 64 * i), _MM_HINT_T0);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m256i* at = reinterpret_cast<const __m256i*>(data + b + 32 * i);
      sum[i] = _mm256_xor_si256(sum[i], _mm256_load_si256(at));
    }
  }
  for (__m256i& s : sum) hide(s);
}

Status read(const PeakArgs& args, const Ctx& ctx) {
  return read_pass(args, ctx, read_chunk<false>);
}
Status read_prefetch(const PeakArgs& args, const Ctx& ctx) {
  return read_pass(args, ctx, read_chunk<true>);
}

Status copy(const PeakArgs& args, const Ctx& ctx) {
  return copy_pass(args, ctx, [](uint8_t* to, const uint8_t* from, int64_t bytes) {
    for (int64_t b = 0; b < bytes; b += 128) {
      __m256i v[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        v[i] = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + b + 32 * i));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + b + 32 * i), v[i]);
    }
    _mm_sfence();
  });
}

// Two multiply-adds a cycle of 4 cycles' latency need 8 chains; 12 leave room, and 16 registers
// hold no more with the operands.
constexpr int kChains = 12;

Status multiply_add_f32(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    __m256 acc[kChains] = {}, a = _mm256_set1_ps(1.5f), b = _mm256_set1_ps(1e-9f);
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) {
        acc[i] = _mm256_fmadd_ps(a, b, acc[i]);
        hide(acc[i]);
      }
    }
  });
}

// vpmaddubsw, vpmaddwd with ones, vpaddd: the chains are only as long as the last add.
constexpr int kSums = 8;

Status multiply_add_int8(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    __m256i acc[kSums] = {}, a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kSums; ++i) {
        hide(a);
        const __m256i pairs = _mm256_maddubs_epi16(a, b);
        acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs, ones));
        hide(acc[i]);
      }
    }
  });
}

// vpmaddubsw, vpaddw.
Status multiply_add_int4(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    __m256i acc[kSums] = {}, a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5);
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kSums; ++i) {
        hide(a);
        acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(a, b));
        hide(acc[i]);
      }
    }
  });
}

}  // namespace

extern const PeakKernel peak_read_avx2 = {
    "peak_read_avx2", kArchAvx2, {Quantity::read, 0}, nullptr, read};
extern const PeakKernel peak_read_prefetch_avx2 = {
    "peak_read_prefetch_avx2", kArchAvx2, {Quantity::read, 0}, nullptr, read_prefetch};
extern const PeakKernel peak_copy_avx2 = {
    "peak_copy_avx2", kArchAvx2, {Quantity::copy, 0}, nullptr, copy};
extern const PeakKernel peak_f32_avx2 = {
    "peak_f32_avx2", kArchAvx2, {Quantity::f32, kChains * 8 * 2}, nullptr, multiply_add_f32};
extern const PeakKernel peak_int8_avx2 = {
    "peak_int8_avx2", kArchAvx2, {Quantity::int8, kSums * 32 * 2}, nullptr, multiply_add_int8};
extern const PeakKernel peak_int4_avx2 = {
    "peak_int4_avx2", kArchAvx2, {Quantity::int4, kSums * 32 * 2}, nullptr, multiply_add_int4};

}  // namespace lowbit
