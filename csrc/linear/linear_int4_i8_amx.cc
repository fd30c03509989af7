// linear_int4_i8_amx: out[M,N] = act(x_scale * (codes of x[M,K]) * deq(w)[N,K]^T + bias) +
// residual; int4 weights, i8 activations, int32 sums in tiles.
//
// Shapes    M of 16 and more, any N, K; scales per channel or per group of a multiple of 64 columns
//           (groups of 32 would leave half of each tile empty); zeros none, u8 or f32.
// Layout    w in panel16; x in tiles (gemm_amx.h).
// Bound     as linear_int8_i8_amx, and for groups their scaling.
// Method    codes of a slice become unsigned bytes in L1 once for all rows of x in the block: a
//           vector of 64 bytes is two of int8's, its low and its high nibbles.
#include "csrc/linear/codes_amx.h"

namespace lowbit {
namespace {

using namespace amx;

// Signed: code - 8 as signed bytes: a weight without stored zero points.
template <bool kSigned>
const uint8_t* unpack(const uint8_t* codes, int64_t bytes, int64_t begin, int64_t steps,
                      uint8_t* to, bool) {
  constexpr int64_t kPacked = kTileBytes / 2;
  const __m512i low = _mm512_set1_epi8(15), middle = _mm512_set1_epi8(8);
  const int64_t from = begin * kPacked;
  const int64_t end = from + steps * kPacked < bytes ? from + steps * kPacked : bytes;
  int64_t i = from;
  for (; i < end; i += 64, to += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + i) + avx512::kPrefetch, _MM_HINT_T0);
    const __m512i v = avx512::load_bytes(codes + i);
    __m512i l = _mm512_and_si512(v, low);
    __m512i h = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
    if (kSigned) {
      l = _mm512_sub_epi8(l, middle);
      h = _mm512_sub_epi8(h, middle);
    }
    _mm512_storeu_si512(to, l);
    _mm512_storeu_si512(to + 64, h);
  }
  for (; i < from + steps * kPacked; i += 64, to += 128) {
    _mm512_storeu_si512(to, _mm512_setzero_si512());
    _mm512_storeu_si512(to + 64, _mm512_setzero_si512());
  }
  return to - steps * kTileBytes;
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  if (args.w.format.zero_type == ZeroType::none) {
    return run_tiles<SignedBytes>(args, ctx, false, 0, unpack<true>);
  }
  return run_tiles<UnsignedBytes>(args, ctx, false, 8, unpack<false>);
}

}  // namespace

extern const LinearKernel linear_int4_i8_amx;
const LinearKernel linear_int4_i8_amx = {
    "linear_int4_i8_amx", kArchAmx, tile_spec(bit(Kind::int4)), workspace_tiles, run,
};

}  // namespace lowbit
