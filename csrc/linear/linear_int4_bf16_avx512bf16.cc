// linear_int4_bf16_avx512bf16, linear_int4_f32_avx512bf16: out[M,N] = act(x[M,K] * deq(w)[N,K]^T +
// bias) + residual; int4 weights, x in bf16, exact products, f32 sums.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns; zeros none or u8; x in
//           bf16, or rounded to fp8 on the way. The f32 row: M of 1 and 2, any x, in three parts
//           of bf16.
// Layout    w in panel16: a lane of 4 bytes holds columns 8j .. 8j + 3 of its row in the low bits
//           and 8j + 4 .. 8j + 7 in the high ones.
// Bound     M = 1: memory, 1/2 byte of w a product, against 7 instructions of decoding and 4
//           products for 64 bytes: 11 cycles of one pipe where memory takes 7 to 10. From M = 2
//           vdpbf16ps.
// Method    a word of 16 bits holds columns 2h, 4 + 2h, 2h + 1 and 5 + 2h of 8; shifted by 0, 4, 8
//           and 12 its low bits look up code - 8 in a table of bf16 (vpermw). With stored zeros the
//           bytes become code - zero first, -16 .. 15, and a table of 32 entries serves them.
#include "csrc/linear/gemm_bf16_avx512bf16.h"

namespace lowbit {
namespace {

using namespace avx512;

__m512i words_of(const int16_t (&words)[32]) { return load_bytes(words); }

// The bf16 of i - (i < half ? 0 : below) for words 0 .. 31.
__m512i bf16_table(int first, int half, int below) {
  int16_t words[32];
  for (int i = 0; i < 32; ++i) {
    const float v = static_cast<float>(first + (i < half ? i : i - below));
    words[i] = static_cast<int16_t>(float_bits(v) >> 16);
  }
  return words_of(words);
}

// The elements of mxfp4 and nvfp4 are exact in bf16; the tables of nf4 and its like are not.
struct Words {
  uint16_t words[32];
};
constexpr Words e2m1_table() {
  Words t = {};
  for (uint32_t i = 0; i < 32; ++i) {
    t.words[i] = static_cast<uint16_t>(float_bits(kind_table(Kind::mxfp4)[i % 16]) >> 16);
  }
  return t;
}
alignas(64) constexpr Words kE2m1 = e2m1_table();

struct Symmetric {
  static constexpr bool kDecoded = false;
  static constexpr int64_t kBytes = 64;
  using Zero = __m512i;  // the table: 16 entries twice, since vpermw looks at 5 bits
  static Zero zero(const PairPanel& w, const uint8_t*) {
    return w.format.kind == Kind::int4 ? bf16_table(-8, 16, 16) : load_bytes(kE2m1.words);
  }
  static void decode(const uint8_t* at, const Zero& table, __m512i (&v)[4]) {
    const __m512i codes = load_bytes(at);
    // Word h of a lane of the first: columns (0, 2); then (4, 6), (1, 3), (5, 7). The fifth bit is
    // the lowest of the next code, and both halves of the table are the same.
    v[0] = _mm512_permutexvar_epi16(codes, table);
    v[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table);
    v[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), table);
    v[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), table);
  }
};

struct Zeros {
  static constexpr bool kDecoded = false;
  static constexpr int64_t kBytes = 64;
  struct Zero {
    __m512i table;  // entry d mod 32 is d, from -16 to 15
    __m512i bytes;  // min(zero, 16) of each row, four times in its lane
  };
  static Zero zero(const PairPanel& w, const uint8_t* block) {
    const __m128i zeros =
        _mm_min_epu8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + w.block.zeros)),
                     _mm_set1_epi8(16));
    const __m512i lanes = _mm512_cvtepu8_epi32(zeros);
    const __m512i four = _mm512_set1_epi32(0x01010101);
    return {bf16_table(0, 16, 32), _mm512_mullo_epi32(lanes, four)};
  }
  static void decode(const uint8_t* at, const Zero& zero, __m512i (&v)[4]) {
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

constexpr int8_t kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
constexpr KindSet kPairKinds = bit(Kind::int4) | bit(Kind::mxfp4) | bit(Kind::nvfp4);

Status run(const LinearArgs& args, const Ctx& ctx) {
  const __m512i order = pair_order(kOrder);
  return args.w.format.zero_type == ZeroType::none ? run_pairs<Symmetric>(args, ctx, order)
                                                   : run_pairs<Zeros>(args, ctx, order);
}

Status run_floats(const LinearArgs& args, const Ctx& ctx) {
  const __m512i order = pair_order(kOrder);
  return args.w.format.zero_type == ZeroType::none ? run_split<Symmetric>(args, ctx, order)
                                                   : run_split<Zeros>(args, ctx, order);
}

constexpr LinearSpec floats_spec() {
  LinearSpec spec = float_spec(kPairKinds, Layout::panel16, false);
  spec.m_max = kSplitRows;
  spec.float_zeros = false;
  return spec;
}

}  // namespace

extern const LinearKernel linear_int4_bf16_avx512bf16;
const LinearKernel linear_int4_bf16_avx512bf16 = {
    "linear_int4_bf16_avx512bf16", kArchAvx512Bf16, pair_spec(kPairKinds), workspace_pairs, run,
};

extern const LinearKernel linear_int4_f32_avx512bf16;
const LinearKernel linear_int4_f32_avx512bf16 = {
    "linear_int4_f32_avx512bf16", kArchAvx512Bf16, floats_spec(), workspace_split, run_floats,
};

}  // namespace lowbit
