// peak_*_avx512: the peaks of 512-bit vectors; peak_avx2.cc says what they are. The copy of 256
// bits is as good. Some CPUs run 512 bits at half the rate of 256 and gain nothing, others double.
#include <immintrin.h>

#include "csrc/peak/pass.h"

namespace lowbit {
namespace {

inline __attribute__((always_inline)) void hide(__m512i& v) { asm volatile("" : "+v"(v)); }
inline __attribute__((always_inline)) void hide(__m512& v) { asm volatile("" : "+v"(v)); }

Status read(const PeakArgs& args, const Ctx& ctx) {
  return read_pass(args, ctx, [](const uint8_t* data, int64_t bytes) {
    __m512i sum[8] = {};
    for (int64_t b = 0; b < bytes; b += 512) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        sum[i] = _mm512_xor_si512(sum[i], _mm512_load_si512(data + b + 64 * i));
    }
    for (__m512i& s : sum) hide(s);
  });
}

// 32 registers allow more chains than any of these CPUs needs.
constexpr int kChains = 16;

Status multiply_add_f32(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    __m512 acc[kChains] = {}, a = _mm512_set1_ps(1.5f), b = _mm512_set1_ps(1e-9f);
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
      for (int i = 0; i < kChains; ++i) {
        acc[i] = _mm512_fmadd_ps(a, b, acc[i]);
        hide(acc[i]);
      }
    }
  });
}

constexpr int kSums = 8;

Status multiply_add_int8(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    __m512i acc[kSums] = {}, a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
    const __m512i ones = _mm512_set1_epi16(1);
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kSums; ++i) {
        hide(a);
        const __m512i pairs = _mm512_maddubs_epi16(a, b);
        acc[i] = _mm512_add_epi32(acc[i], _mm512_madd_epi16(pairs, ones));
        hide(acc[i]);
      }
    }
  });
}

Status multiply_add_int4(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    __m512i acc[kSums] = {}, a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kSums; ++i) {
        hide(a);
        acc[i] = _mm512_add_epi16(acc[i], _mm512_maddubs_epi16(a, b));
        hide(acc[i]);
      }
    }
  });
}

}  // namespace

extern const PeakKernel peak_read_avx512 = {
    "peak_read_avx512", kArchAvx512, {Quantity::read, 0}, nullptr, read};
extern const PeakKernel peak_f32_avx512 = {
    "peak_f32_avx512", kArchAvx512, {Quantity::f32, kChains * 16 * 2}, nullptr, multiply_add_f32};
extern const PeakKernel peak_int8_avx512 = {
    "peak_int8_avx512", kArchAvx512, {Quantity::int8, kSums * 64 * 2}, nullptr, multiply_add_int8};
extern const PeakKernel peak_int4_avx512 = {
    "peak_int4_avx512", kArchAvx512, {Quantity::int4, kSums * 64 * 2}, nullptr, multiply_add_int4};

}  // namespace lowbit
