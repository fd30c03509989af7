// linear_int4_f32_avx512, linear_table_f32_avx512: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) +
// residual; int4 weights, or 4-bit positions in a table of 16 numbers; f32 products.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns; zeros none, u8 or f32;
//           one table for the matrix.
// Layout    w in panel16: a lane of 4 bytes holds columns 8j .. 8j + 3 of its row in the low bits
//           and 8j + 4 .. 8j + 7 in the high ones.
// Bound     M = 1: the pipe that shifts and permutes, 11 (tables of f32: 15) instructions for 64
//           bytes where memory takes 7 to 10 cycles; from M = 2 the FMA pipes.
// Method    int4, mxfp4 and nvfp4 become pairs of bf16, which a shift and a mask widen
//           (pairs_avx512.h). Other tables: vpermps takes the lowest 4 bits of each lane for the
//           index into 16 floats. Six rows of x meet the numbers in registers; sums of number * x
//           per group, then the scale.
#include "csrc/linear/pairs_avx512.h"

namespace lowbit {
namespace {

using namespace avx512;

template <int C>
__m512 number_of(__m512i v, __m512 table) {
  constexpr int kShift = C % 4 * 8 + C / 4 * 4;
  return _mm512_permutexvar_ps(kShift == 0 ? v : _mm512_srli_epi32(v, kShift), table);
}

struct TableNumbers {
  static constexpr int kParts = 1;
  static constexpr int64_t kBytes = 64;
  static constexpr uint32_t kOrder = 0x76543210;
  static __m512 zero(const PairPanel& w, const uint8_t*) { return _mm512_loadu_ps(w.table); }
  static void widen(const uint8_t* at, __m512 table, Part<0>, __m512 (&v)[8]) {
    const __m512i codes = load_bytes(at);
    v[0] = number_of<0>(codes, table);
    v[1] = number_of<1>(codes, table);
    v[2] = number_of<2>(codes, table);
    v[3] = number_of<3>(codes, table);
    v[4] = number_of<4>(codes, table);
    v[5] = number_of<5>(codes, table);
    v[6] = number_of<6>(codes, table);
    v[7] = number_of<7>(codes, table);
  }
};

Status run(const LinearArgs& args, const Ctx& ctx) {
  const Format& f = args.w.format;
  if (f.kind == Kind::nf4 || f.kind == Kind::fp4 || f.kind == Kind::codebook4) {
    return run_float_tiles<TableNumbers, false>(args, ctx);
  }
  return f.zero_type == ZeroType::none ? run_float_tiles<Widened<Nibbles>, false>(args, ctx)
                                       : run_float_tiles<Widened<Nibbles>, true>(args, ctx);
}

constexpr KindSet kTableKinds =
    bit(Kind::nf4) | bit(Kind::fp4) | bit(Kind::codebook4) | bit(Kind::mxfp4) | bit(Kind::nvfp4);
constexpr LinearSpec table_spec() {
  LinearSpec spec = float_spec(kTableKinds, Layout::panel16, true);
  spec.many_tables = false;
  return spec;
}

}  // namespace

extern const LinearKernel linear_int4_f32_avx512;
const LinearKernel linear_int4_f32_avx512 = {
    "linear_int4_f32_avx512", kArchAvx512, float_spec(bit(Kind::int4), Layout::panel16, false),
    workspace_tiles,          run,
};

extern const LinearKernel linear_table_f32_avx512;
const LinearKernel linear_table_f32_avx512 = {
    "linear_table_f32_avx512", kArchAvx512, table_spec(), workspace_tiles, run,
};

}  // namespace lowbit
