// linear_int2_i8_avx512vnni: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int2 and ternary weights (codes of 2 bits), i8 activations, exact integer sums per
// group.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns; zeros none, u8 or
//           f32.
// Layout    w in panel16: a lane of 4 bytes holds columns 16j + 4f + b of its row in bits 2f of
// byte
//           b; x as rows of bytes.
// Bound     M = 1: memory at 1/4 byte a product. Large M: vpdpbusd, 64 products each.
// Method    M up to 4: a mask takes one field of each byte where it lies, vpdpbusd multiplies it
//           with a broadcast of 4 bytes of x: two instructions for 64 products. Fields add up apart
//           and are shifted once a segment. Larger M: 3 shifts and 4 masks serve 8 rows of x.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights, M = 1, 8, 64: ternary 194, 376, 371
// GOP/s;
//           int2 in groups of 32 146, 297, 295; see NOTES.md.
#include "csrc/linear/narrow_avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

struct Int2 {
  static constexpr int kColumns = 16, kBytes = 64, kVectors = 4;
  static constexpr int kFewRows = 4, kSums = 4;  // 16 sums, 4 totals
  static constexpr float kMiddle = -1.0f, kFactor = 1.0f;

  static inline void decode(const uint8_t* p, __m512i (&c)[4]) {
    const __m512i v = load_bytes(p);
    c[0] = masked(v, 3);
    c[1] = masked(_mm512_srli_epi16(v, 2), 3);
    c[2] = masked(_mm512_srli_epi16(v, 4), 3);
    c[3] = masked(_mm512_srli_epi16(v, 6), 3);
  }

  template <int T>
  static inline void products(const uint8_t* p, const uint8_t* x, __m512i (&acc)[T][4]) {
    const __m512i v = load_bytes(p);
#pragma GCC unroll 4
    for (int f = 0; f < 4; ++f) {
      const __m512i c = masked(v, 3 << (2 * f));
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        acc[t][f] = add_products(acc[t][f], c, x + 4 * (f * T + t));
      }
    }
  }

  static inline __m512i total(const __m512i (&acc)[4]) {
    __m512i sum = _mm512_add_epi32(_mm512_srai_epi32(acc[3], 2), acc[2]);
    sum = _mm512_add_epi32(_mm512_srai_epi32(sum, 2), acc[1]);
    return _mm512_add_epi32(_mm512_srai_epi32(sum, 2), acc[0]);
  }
};

}  // namespace

extern const LinearKernel linear_int2_i8_avx512vnni;
const LinearKernel linear_int2_i8_avx512vnni = {
    "linear_int2_i8_avx512vnni", kArchAvx512Vnni,  code_spec(bit(Kind::int2) | bit(Kind::ternary)),
    workspace_narrow<Int2>,      run_narrow<Int2>,
};

}  // namespace lowbit
