// linear_ternary_lut_i8_avx512vbmi: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T +
// bias) + residual; ternary weights of five trits a byte, i8 activations, exact integer sums per
// group.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns.
// Layout    w in trits16: byte b of a lane of 4 holds columns 20j + 4d + b of its row as the size
//           and the sign of a number of five trits; x as rows of bytes.
// Bound     M = 1: memory at 1/5 byte a product. Large M: vpdpbusd, 64 products each.
// Method    Two tables of 128 bytes stay in registers. vpermi2b ignores the sign bit of its index:
//           the size looks up four codes (trit + 1) as fields of two bits and the fifth code; where
//           the sign is set, both are taken from the codes of zero twice. So 5 instructions unpack
//           320 weights, and the rest is linear_int2_i8_avx512vnni with a fifth field.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights, M = 1, 8, 64: 204, 365, 362 GOP/s;
// see
//           NOTES.md.
#include "csrc/linear/narrow_avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

// What vpermi2b finds for the size of a number of five trits; sizes above 121 do not occur.
struct Tables {
  alignas(64) uint8_t four[128];  // codes of trits 0 .. 3
  alignas(64) uint8_t fifth[128];
};
constexpr Tables make_tables() {
  Tables t = {};
  for (int size = 0; size <= 121; ++size) {
    int v = size + 121, fields = 0;
    for (int d = 0; d < 4; ++d, v /= 3) fields |= v % 3 << (2 * d);
    t.four[size] = static_cast<uint8_t>(fields);
    t.fifth[size] = static_cast<uint8_t>(v);
  }
  return t;
}
constexpr Tables kTables = make_tables();

struct Trits {
  static constexpr int kColumns = 20, kBytes = 64, kVectors = 5;
  static constexpr int kFewRows = 3, kSums = 5;  // 15 sums
  static constexpr float kMiddle = 1.0f, kFactor = 1.0f;

  static inline void unpack(const uint8_t* p, __m512i* four, __m512i* fifth) {
    const __m512i v = load_bytes(p);
    const __mmask64 negative = _mm512_movepi8_mask(v);
    const __m512i a =
        _mm512_permutex2var_epi8(load_bytes(kTables.four), v, load_bytes(kTables.four + 64));
    const __m512i b =
        _mm512_permutex2var_epi8(load_bytes(kTables.fifth), v, load_bytes(kTables.fifth + 64));
    *four = _mm512_mask_sub_epi8(a, negative, _mm512_set1_epi8(static_cast<char>(0xaa)), a);
    *fifth = _mm512_mask_sub_epi8(b, negative, _mm512_set1_epi8(2), b);
  }

  static inline void decode(const uint8_t* p, __m512i (&c)[5]) {
    __m512i v;
    unpack(p, &v, &c[4]);
    c[0] = masked(v, 3);
    c[1] = masked(_mm512_srli_epi16(v, 2), 3);
    c[2] = masked(_mm512_srli_epi16(v, 4), 3);
    c[3] = masked(_mm512_srli_epi16(v, 6), 3);
  }

  template <int T>
  static inline void products(const uint8_t* p, const uint8_t* x, __m512i (&acc)[T][5]) {
    __m512i v, fifth;
    unpack(p, &v, &fifth);
#pragma GCC unroll 5
    for (int f = 0; f < 5; ++f) {
      const __m512i c = f < 4 ? masked(v, 3 << (2 * f)) : fifth;
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        acc[t][f] = add_products(acc[t][f], c, x + 4 * (f * T + t));
      }
    }
  }

  static inline __m512i total(const __m512i (&acc)[5]) {
    __m512i sum = _mm512_add_epi32(_mm512_srai_epi32(acc[3], 2), acc[2]);
    sum = _mm512_add_epi32(_mm512_srai_epi32(sum, 2), acc[1]);
    sum = _mm512_add_epi32(_mm512_srai_epi32(sum, 2), acc[0]);
    return _mm512_add_epi32(sum, acc[4]);
  }
};

}  // namespace

extern const LinearKernel linear_ternary_lut_i8_avx512vbmi;
const LinearKernel linear_ternary_lut_i8_avx512vbmi = {
    "linear_ternary_lut_i8_avx512vbmi",
    kArchAvx512Vbmi,
    code_spec(bit(Kind::ternary), Layout::trits16),
    workspace_narrow<Trits>,
    run_narrow<Trits>,
};

}  // namespace lowbit
