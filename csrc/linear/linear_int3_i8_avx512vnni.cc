// linear_int3_i8_avx512vnni: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int3 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns; zeros none, u8 or
//           f32.
// Layout    w in panel16: for 32 columns two vectors of the lower two bits of each code and one of
//           its high bits; x as rows of bytes.
// Bound     M = 1: memory at 3/8 byte a product. Large M: vpdpbusd, 64 products each.
// Method    M up to 2: lower and high bits are multiplied where they lie, each with a product of
// its
//           own; 32 masks and products for 512 weights take less time than 192 bytes from memory.
//           Larger M: both are shifted and joined to codes, five instructions for 64 codes that
//           serve 8 rows of x.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights, M = 1, 8, 64: groups of 64, 115,
// 326, 328
//           GOP/s; see NOTES.md.
#include "csrc/linear/narrow_avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

struct Int3 {
  static constexpr int kColumns = 32, kBytes = 192, kVectors = 8;
  static constexpr int kFewRows = 2,
                       kSums = 8;  // 16 sums: lower bits in 0 .. 3, high ones in 4 .. 7
  static constexpr float kMiddle = -1.0f, kFactor = 1.0f;

  // The bits of a that the mask has, else those of b.
  static inline __m512i choose(__m512i mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi64(mask, a, b, 0xca);
  }

  static inline void decode(const uint8_t* p, __m512i (&c)[8]) {
    const __m512i three = _mm512_set1_epi8(3), high = load_bytes(p + 128);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512i low = load_bytes(p + 64 * h);
      // Bit 2f + h comes to stand at bit 2f + 2, so that one count shifts both.
      const __m512i up = _mm512_slli_epi16(high, 2 - h);
      c[4 * h] = masked(choose(three, low, up), 7);
#pragma GCC unroll 3
      for (int f = 1; f < 4; ++f) {
        const __m512i l = _mm512_srli_epi16(low, 2 * f);
        const __m512i u = _mm512_srli_epi16(high, 2 * f + h - 2);
        c[4 * h + f] = masked(choose(three, l, u), 7);
      }
    }
  }

  template <int T>
  static inline void products(const uint8_t* p, const uint8_t* x, __m512i (&acc)[T][8]) {
    __m512i high = load_bytes(p + 128);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512i low = load_bytes(p + 64 * h);
#pragma GCC unroll 4
      for (int f = 0; f < 4; ++f) {
        const __m512i l = masked(low, 3 << (2 * f)), u = masked(high, 1 << (2 * f));
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const uint8_t* xk = x + 4 * ((4 * h + f) * T + t);
          acc[t][f] = add_products(acc[t][f], l, xk);
          acc[t][4 + f] = add_products(acc[t][4 + f], u, xk);
        }
      }
      high = _mm512_srli_epi16(high, 1);
    }
  }

  static inline __m512i fold(__m512i a0, __m512i a1, __m512i a2, __m512i a3) {
    __m512i sum = _mm512_add_epi32(_mm512_srai_epi32(a3, 2), a2);
    sum = _mm512_add_epi32(_mm512_srai_epi32(sum, 2), a1);
    return _mm512_add_epi32(_mm512_srai_epi32(sum, 2), a0);
  }

  static inline __m512i total(const __m512i (&acc)[8]) {
    const __m512i low = fold(acc[0], acc[1], acc[2], acc[3]);
    const __m512i high = fold(acc[4], acc[5], acc[6], acc[7]);
    return _mm512_add_epi32(low, _mm512_slli_epi32(high, 2));
  }
};

}  // namespace

extern const LinearKernel linear_int3_i8_avx512vnni;
const LinearKernel linear_int3_i8_avx512vnni = {
    "linear_int3_i8_avx512vnni", kArchAvx512Vnni,  code_spec(bit(Kind::int3)),
    workspace_narrow<Int3>,      run_narrow<Int3>,
};

}  // namespace lowbit
