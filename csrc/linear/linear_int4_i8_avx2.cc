// linear_int4_i8_avx2: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int4 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns; zeros none, u8 or f32.
// Layout    w in panel16: a lane of 4 bytes holds columns 8j .. 8j + 3 of its row in the low bits
//           and 8j + 4 .. 8j + 7 in the high ones; x in tiles of T rows (codes.h).
// Bound     M = 1: memory at 1/2 byte a product. Large M: vpmaddubsw and vpaddw, one each for 32
//           products.
// Method    codes_avx2.h; codes of 0 .. 15 let 8 products add up in int16, which is a group of 32.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights, M = 1 72 % of the read
//           bandwidth of the same run, M = 4 183, 64 227, 512 234 GOP/s in groups of 32; see
//           NOTES.md.
#include "csrc/linear/codes_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

struct Int4 {
  static constexpr int kColumns = 8, kBytes = 64, kVectors = 2;
  static constexpr int kRound = 4;  // 8 * 2 * 15 * 128 < 2^15
  static constexpr bool kPrefetched = true;
  static int32_t middle(Kind) { return 8; }

  template <int f>
  static inline __m256i codes(const uint8_t* p) {
    return masked(_mm256_srli_epi16(load_bytes(p), 4 * f), 15);
  }
};

}  // namespace

extern const LinearKernel linear_int4_i8_avx2;
const LinearKernel linear_int4_i8_avx2 = {
    "linear_int4_i8_avx2", kArchAvx2,      code_spec(bit(Kind::int4)),
    workspace_code<Int4>,  run_code<Int4>,
};

}  // namespace lowbit
