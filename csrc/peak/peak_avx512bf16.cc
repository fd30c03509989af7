// peak_bf16_avx512bf16: vdpbf16ps, which multiplies 32 pairs of bf16 and adds them by twos into
// f32.
#include <immintrin.h>

#include "csrc/peak/pass.h"

namespace lowbit {
namespace {

constexpr int kChains = 16;  // one a cycle of 5 to 6 cycles' latency

Status multiply_add_bf16(const PeakArgs& args, const Ctx& ctx) {
  return round_pass(args, ctx, [](int64_t rounds) {
    __m512 acc[kChains] = {};
    const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3fc0);  // 1.5
    const __m512bh b = (__m512bh)_mm512_set1_epi16(0x3080);  // 2^-30
    for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
      for (int i = 0; i < kChains; ++i) {
        acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
        asm volatile("" : "+v"(acc[i]));
      }
    }
  });
}

}  // namespace

extern const PeakKernel peak_bf16_avx512bf16 = {"peak_bf16_avx512bf16",
                                                kArchAvx512Bf16,
                                                {Quantity::bf16, kChains * 32 * 2},
                                                nullptr,
                                                multiply_add_bf16};

}  // namespace lowbit
