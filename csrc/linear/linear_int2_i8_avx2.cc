// linear_int2_i8_avx2: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int2 and ternary weights (codes of 2 bits), i8 activations, exact integer sums per
// group.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns; zeros none, u8 or
//           f32.
// Layout    w in panel16: a lane of 4 bytes holds columns 16j + 4f + b of its row in bits 2f of
// byte
//           b; x in tiles of T rows (codes.h).
// Bound     M = 1: memory at 1/4 byte a product. Large M: vpmaddubsw and vpaddw, one each for 32
//           products.
// Method    codes_avx2.h; codes of 0 .. 3 let 40 products add up in int16.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights, M = 1, 8, 64: ternary 139,
//           240, 301 GOP/s; int2 in groups of 32 104, 182, 221; see
//           NOTES.md.
#include "csrc/linear/codes_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

struct Int2 {
  static constexpr int kColumns = 16, kBytes = 64, kVectors = 4;
  static constexpr int kRound = 10;  // 40 * 2 * 3 * 128 < 2^15
  static constexpr bool kPrefetched = true;
  static int32_t middle(Kind kind) { return kind_row(kind).mid; }

  template <int f>
  static inline __m256i codes(const uint8_t* p) {
    return masked(_mm256_srli_epi16(load_bytes(p), 2 * f), 3);
  }
};

}  // namespace

extern const LinearKernel linear_int2_i8_avx2;
const LinearKernel linear_int2_i8_avx2 = {
    "linear_int2_i8_avx2", kArchAvx2,      code_spec(bit(Kind::int2) | bit(Kind::ternary)),
    workspace_code<Int2>,  run_code<Int2>,
};

}  // namespace lowbit
