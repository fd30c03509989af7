// linear_int1_i8_avx2: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int1 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 32j + 4f + b of its row in bit f of byte
// b;
//           x in tiles of T rows (codes.h).
// Bound     M = 1: memory at 1/8 byte a product, behind it two instructions that part bits and two
//           that multiply. Large M: vpmaddubsw and vpaddw, one each for 32 products.
// Method    codes_avx2.h; a bit is a code of 0 or 2, less 1, and 56 products add up in int16.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights, M = 1, 8, 64: 159, 261,
//           288 GOP/s; see
//           NOTES.md.
#include "csrc/linear/codes_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

struct Int1 {
  static constexpr int kColumns = 32, kBytes = 64, kVectors = 8;
  static constexpr int kRound = 7;  // 56 * 2 * 2 * 128 < 2^15
  static constexpr bool kPrefetched = true;
  static int32_t middle(Kind) { return 1; }

  template <int f>
  static inline __m256i codes(const uint8_t* p) {
    const __m256i v = load_bytes(p);
    if constexpr (f == 0) return masked(_mm256_add_epi8(v, v), 2);
    return masked(_mm256_srli_epi16(v, f == 0 ? 0 : f - 1), 2);
  }
};

}  // namespace

extern const LinearKernel linear_int1_i8_avx2;
const LinearKernel linear_int1_i8_avx2 = {
    "linear_int1_i8_avx2", kArchAvx2,      code_spec(bit(Kind::int1)),
    workspace_code<Int1>,  run_code<Int1>,
};

}  // namespace lowbit
