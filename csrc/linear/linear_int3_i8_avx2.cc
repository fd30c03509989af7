// linear_int3_i8_avx2: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int3 weights, i8 activations, exact integer sums per group.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns; zeros none, u8 or
//           f32.
// Layout    w in panel16: for 32 columns two vectors of the lower two bits of each code and one of
//           its high bits; x in tiles of T rows (codes.h).
// Bound     M = 1: memory at 3/8 byte a product. Large M: vpmaddubsw and vpaddw, one each for 32
//           products.
// Method    codes_avx2.h; lower and high bits are shifted, masked and joined; codes of 0 .. 7 let
// 16
//           products add up in int16.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights, M = 1, 8, 64: 96, 167,
//           210 GOP/s in groups of 64; see
//           NOTES.md.
#include "csrc/linear/codes_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

struct Int3 {
  static constexpr int kColumns = 32, kBytes = 192, kVectors = 8;
  static constexpr int kRound = 2;  // 16 * 2 * 7 * 128 < 2^15
  static constexpr bool kPrefetched = true;
  static int32_t middle(Kind) { return 4; }

  template <int f>
  static inline __m256i codes(const uint8_t* p) {
    constexpr int half = f / 4, field = f % 4;
    constexpr int up = 2 * field + half - 2;  // from where the high bit is to bit 2
    const __m256i high = load_bytes(p + 128);
    const __m256i low = masked(_mm256_srli_epi16(load_bytes(p + 64 * half), 2 * field), 3);
    return _mm256_or_si256(
        low, masked(up < 0 ? _mm256_slli_epi16(high, -up) : _mm256_srli_epi16(high, up), 4));
  }
};

}  // namespace

extern const LinearKernel linear_int3_i8_avx2;
const LinearKernel linear_int3_i8_avx2 = {
    "linear_int3_i8_avx2", kArchAvx2,      code_spec(bit(Kind::int3)),
    workspace_code<Int3>,  run_code<Int3>,
};

}  // namespace lowbit
