// linear_int1_i8_avx512vnni: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int1 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 32j + 4f + b of its row in bit f of byte
//           b; x as rows of bytes.
// Bound     M = 1: memory at 1/8 byte a product, vpdpbusd close behind it. Large M: vpdpbusd, 64
//           products each.
// Method    The sum of +-x is twice the sum of x over the set bits, less the sum of x. M up to 2: a
//           mask takes one bit of each byte where it lies, as 0 or 2^f, vpdpbusd multiplies it with
//           a broadcast of 4 bytes of x: two instructions for 64 products. The bits add up apart
//           and are shifted once a segment; short groups fold the high four bits of a byte onto the
//           low four first, which makes four sums of eight. Larger M: 7 shifts and 8 masks serve 8
//           rows of x.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights, M = 1, 8, 64: 312, 407, 400 GOP/s;
// see
//           NOTES.md.
#include "csrc/linear/narrow_avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

// kSums_: 8, or 4 where segments are short.
template <int kSums_>
struct Int1 {
  static constexpr int kColumns = 32, kBytes = 64, kVectors = 8;
  static constexpr int kFewRows = 2, kSums = kSums_;
  static constexpr float kMiddle = 1.0f, kFactor = 2.0f;

  static inline void decode(const uint8_t* p, __m512i (&c)[8]) {
    const __m512i v = load_bytes(p);
#pragma GCC unroll 8
    for (int f = 0; f < 8; ++f) c[f] = masked(_mm512_srli_epi16(v, f), 1);
  }

  template <int T>
  static inline void products(const uint8_t* p, const uint8_t* x, __m512i (&acc)[T][kSums]) {
    __m512i v = load_bytes(p);
    asm("" : "+v"(v));  // loaded once, not once for each half
    const __m512i halves[2] = {v, _mm512_srli_epi16(v, 4)};
#pragma GCC unroll 8
    for (int f = 0; f < 8; ++f) {
      const __m512i c = kSums == 8 ? masked(v, 1 << f) : masked(halves[f / 4], 1 << f % 4);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        acc[t][f % kSums] = add_products(acc[t][f % kSums], c, x + 4 * (f * T + t));
      }
    }
  }

  static inline __m512i total(const __m512i (&acc)[kSums]) {
    __m512i sum = acc[kSums - 1];
#pragma GCC unroll 8
    for (int f = kSums - 2; f >= 0; --f) sum = _mm512_add_epi32(_mm512_srai_epi32(sum, 1), acc[f]);
    return sum;
  }
};

Status run(const LinearArgs& args, const Ctx& ctx) {
  constexpr int64_t kShort = 128;
  return args.w.format.group_k <= kShort ? run_narrow<Int1<4>>(args, ctx)
                                         : run_narrow<Int1<8>>(args, ctx);
}

}  // namespace

extern const LinearKernel linear_int1_i8_avx512vnni;
const LinearKernel linear_int1_i8_avx512vnni = {
    "linear_int1_i8_avx512vnni",
    kArchAvx512Vnni,
    code_spec(bit(Kind::int1)),
    workspace_narrow<Int1<8>>,
    run,
};

}  // namespace lowbit
