// peak_int8_avx512vnni: vpdpbusd, which multiplies 64 pairs of bytes and adds them by fours into 32
// bits. It bounds 4-bit codes as well: they are bytes before it.
#include <immintrin.h>

#include "csrc/peak/pass.h"

namespace lowbit {
namespace {

constexpr int kChains = 16;  // one or two a cycle of 4 to 5 cycles' latency

Status multiply_add_int8(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    __m512i acc[kChains] = {};
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
      for (int i = 0; i < kChains; ++i) {
        acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
        asm volatile("" : "+v"(acc[i]));
      }
    }
  });
}

}  // namespace

extern const PeakKernel peak_int8_avx512vnni = {"peak_int8_avx512vnni",
                                                kArchAvx512Vnni,
                                                {Quantity::int8, kChains * 64 * 2},
                                                nullptr,
                                                multiply_add_int8};

}  // namespace lowbit
