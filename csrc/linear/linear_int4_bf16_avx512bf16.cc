// linear_int4_bf16_avx512bf16: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; int4
// (mxfp4, nvfp4) weights, x in bf16, exact products, f32 sums.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns; zeros none or u8; x in
//           bf16, or rounded to fp8 on the way.
// Layout    w in panel16: a lane of 4 bytes holds columns 8j .. 8j + 3 of its row in the low bits
//           and 8j + 4 .. 8j + 7 in the high ones.
// Bound     M = 1: memory, 1/2 byte of w a product, against 7 instructions of decoding and 4
//           products for 64 bytes: 11 cycles of one pipe where memory takes 7 to 10. From M = 2
//           vdpbf16ps.
// Method    three shifts bring each code of a word down, and vpermw looks up code - 8 in a table of
//           bf16. With stored zeros the bytes become code - zero first, -16 .. 15, and a table of
//           32 entries serves them.
#include "csrc/linear/gemm_bf16_avx512bf16.h"

namespace lowbit {
namespace {

using namespace avx512;

struct NibbleDifferences {
  static constexpr int kParts = 1;
  static constexpr int64_t kBytes = 64;
  static constexpr uint32_t kOrder = 0x75316420;
  using Zero = Differences;
  static Zero zero(const PairPanel& w, const uint8_t* block) { return differences(w, block); }
  static void decode(const uint8_t* at, const Zero& zero, Part<0>, __m512i (&v)[4]) {
    const __m512i codes = load_bytes(at), low = _mm512_set1_epi8(15);
    const __m512i l = _mm512_sub_epi8(_mm512_and_si512(codes, low), zero.bytes);
    const __m512i h =
        _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(codes, 4), low), zero.bytes);
    v[0] = _mm512_permutexvar_epi16(l, zero.table);
    v[1] = _mm512_permutexvar_epi16(h, zero.table);
    v[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(l, 8), zero.table);
    v[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(h, 8), zero.table);
  }
};

Status run(const LinearArgs& args, const Ctx& ctx) {
  return args.w.format.zero_type == ZeroType::none ? run_pairs<Nibbles>(args, ctx)
                                                   : run_pairs<NibbleDifferences>(args, ctx);
}

}  // namespace

extern const LinearKernel linear_int4_bf16_avx512bf16;
const LinearKernel linear_int4_bf16_avx512bf16 = {
    "linear_int4_bf16_avx512bf16",
    kArchAvx512Bf16,
    pair_spec(bit(Kind::int4) | bit(Kind::mxfp4) | bit(Kind::nvfp4)),
    workspace_pairs,
    run,
};

}  // namespace lowbit
