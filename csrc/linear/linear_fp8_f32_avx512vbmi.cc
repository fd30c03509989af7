// linear_fp8_bf16_avx512vbmi, linear_fp8_f32_avx512vbmi: out[M,N] = act(x[M,K] * deq(w)[N,K]^T +
// bias) + residual; fp8 weights, exact products, f32 sums.
//
// Shapes    any; e4m3 or e5m2 codes, scales per channel or per group of a multiple of 8 columns.
// The
//           bf16 row: x in bf16, or rounded to fp8 on the way. The f32 row: any x.
// Layout    w in panel16: a lane of 4 bytes holds columns 4j .. 4j + 3 of its row.
// Bound     M = 1: memory, 1 byte of w a product, against 7 instructions of decoding and 2 products
//           (for x in f32 4 FMA of 4 more to widen) for 64 bytes. Then vdpbf16ps, or for x in f32
//           FMA.
// Method    every fp8 number is a bf16: its low and its high byte come from tables of 128 entries
//           (vpermi2b), the sign goes on top. x in f32: FMAs on the widened pairs.
#include "csrc/linear/gemm_bf16_avx512bf16.h"

namespace lowbit {
namespace {

using namespace avx512;

struct ByteTables {
  uint8_t low[128], high[128];
};
constexpr ByteTables tables_of(Kind kind) {
  ByteTables t = {};
  for (uint32_t i = 0; i < 128; ++i) {
    const uint32_t bits = float_bits(decode_code(kind, i)) >> 16;
    t.low[i] = static_cast<uint8_t>(bits);
    t.high[i] = static_cast<uint8_t>(bits >> 8);
  }
  return t;
}
alignas(64) constexpr ByteTables kE4m3 = tables_of(Kind::fp8_e4m3);
alignas(64) constexpr ByteTables kE5m2 = tables_of(Kind::fp8_e5m2);

struct Fp8 {
  static constexpr int kParts = 1;
  static constexpr int64_t kBytes = 128;
  static constexpr uint32_t kOrder = 0x75643120;
  struct Zero {
    __m512i low[2], high[2];
  };
  static Zero zero(const PairPanel& w, const uint8_t*) {
    const Kind kind = w.format.kind;
    const ByteTables& t = kind == Kind::fp8_e4m3 || kind == Kind::mxfp8_e4m3 ? kE4m3 : kE5m2;
    return {{load_bytes(t.low), load_bytes(t.low + 64)},
            {load_bytes(t.high), load_bytes(t.high + 64)}};
  }
  // Of 4 columns: word h of a lane of v[0] is column 2h, of v[1] column 2h + 1.
  static void four(__m512i codes, const Zero& t, __m512i* v) {
    constexpr int kOrAnd = 0xf8;  // a | b & c
    // vpermi2b overwrites its indices. GCC loads them anew for each use, three lines' worth of the
    // load ports where a copy of the register is free.
    asm("" : "+v"(codes));
    const __m512i low = _mm512_permutex2var_epi8(t.low[0], codes, t.low[1]);
    __m512i high = _mm512_permutex2var_epi8(t.high[0], codes, t.high[1]);
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(-128), kOrAnd);
    v[0] = _mm512_ternarylogic_epi32(_mm512_slli_epi16(high, 8), low, _mm512_set1_epi16(0x00ff),
                                     kOrAnd);
    v[1] =
        _mm512_ternarylogic_epi32(_mm512_srli_epi16(low, 8), high, _mm512_set1_epi16(-256), kOrAnd);
  }
  static void decode(const uint8_t* at, const Zero& t, Part<0>, __m512i (&v)[4]) {
    four(load_bytes(at), t, v);
    four(load_bytes(at + 64), t, v + 2);
  }
};
constexpr KindSet kFp8Kinds =
    bit(Kind::fp8_e4m3) | bit(Kind::fp8_e5m2) | bit(Kind::mxfp8_e4m3) | bit(Kind::mxfp8_e5m2);

Status run_bf16(const LinearArgs& args, const Ctx& ctx) { return run_pairs<Fp8>(args, ctx); }

Status run_floats(const LinearArgs& args, const Ctx& ctx) {
  return run_float_tiles<Widened<Fp8>, false>(args, ctx);
}

}  // namespace

extern const LinearKernel linear_fp8_bf16_avx512vbmi;
const LinearKernel linear_fp8_bf16_avx512vbmi = {
    "linear_fp8_bf16_avx512vbmi",
    kArchAvx512Vbmi | kArchAvx512Bf16,
    pair_spec(kFp8Kinds),
    workspace_pairs,
    run_bf16,
};

extern const LinearKernel linear_fp8_f32_avx512vbmi;
const LinearKernel linear_fp8_f32_avx512vbmi = {
    "linear_fp8_f32_avx512vbmi",
    kArchAvx512Vbmi | kArchAvx512Bf16,
    float_spec(kFp8Kinds, Layout::panel16, true),
    workspace_tiles,
    run_floats,
};

}  // namespace lowbit
