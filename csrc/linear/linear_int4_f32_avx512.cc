// linear_int4_f32_avx512, linear_table_f32_avx512: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) +
// residual; int4 weights, or 4-bit positions in a table of 16 numbers; f32 products.
//
// Shapes    any; scales per channel or per group of a multiple of 8 columns; zeros none, u8 or f32;
//           one table for the matrix.
// Layout    w in panel16: a lane of 4 bytes holds columns 8j .. 8j + 3 of its row in the low bits
//           and 8j + 4 .. 8j + 7 in the high ones.
// Bound     M = 1: memory at 1/2 byte a product, closely followed by decoding (a shift and a
//           permutation for 16 products, with stored zeros a difference more); from M = 2 the FMA
//           pipes.
// Method    vpermps takes the lowest 4 bits of each lane for the index into a table of 16 floats:
//           code - 8 where no zeros are stored, else the code; or the weight's own table. M = 1:
//           sums of (code - zero) * x per group, then the scale. Else scaled slices of f32 for the
//           tiles of gemm_f32_avx512.h.
#include "csrc/linear/pairs_avx512.h"

namespace lowbit {
namespace {

using namespace avx512;

// The values of the 16 codes; with stored zeros those are subtracted after the look-up.
__m512 table_of(const Weight& w) {
  if (kind_row(w.format.kind).table) {
    return _mm512_loadu_ps(w.data + table_at(Layout::panel16, w.format, {w.n, w.k}, 0, 0));
  }
  const __m512 codes = _mm512_set_ps(15.0f, 14.0f, 13.0f, 12.0f, 11.0f, 10.0f, 9.0f, 8.0f, 7.0f,
                                     6.0f, 5.0f, 4.0f, 3.0f, 2.0f, 1.0f, 0.0f);
  return w.format.zero_type == ZeroType::none ? _mm512_sub_ps(codes, _mm512_set1_ps(8.0f)) : codes;
}

__m512 scale_of(const Weight& w, const PanelBlock& block, const uint8_t* base) {
  const __m512 scale = load_scales(base + block.scales, w.format.scale_dtype);
  return _mm512_mul_ps(scale, _mm512_set1_ps(w.tensor_scale));
}

// Column C of 8 of every row: bits 8C .. of its lane for the first four, 8(C - 4) + 4 .. for the
// others.
template <int C>
__m512 number_of(__m512i v, __m512 table) {
  constexpr int kShift = C % 4 * 8 + C / 4 * 4;
  return _mm512_permutexvar_ps(kShift == 0 ? v : _mm512_srli_epi32(v, kShift), table);
}

template <int C>
void add_column(__m512i v, __m512 table, const float* x, __m512 (&acc)[8]) {
  acc[C] = _mm512_fmadd_ps(number_of<C>(v, table), _mm512_set1_ps(x[C]), acc[C]);
}

// One x, and a table whose numbers bf16 can't hold.
void vector_table(const Weight& w, const PanelBlock& block, int64_t p, const float* x,
                  float* sums) {
  const __m512 table = table_of(w);
  __m512 total = _mm512_setzero_ps();
  const uint8_t* base = w.data + p * block.groups * block.bytes;
  for (int64_t g = 0; g < block.groups; ++g, base += block.bytes) {
    const int64_t k0 = g * block.k, kc = w.k - k0 < block.k ? w.k - k0 : block.k;
    __m512 acc[8];
    for (__m512& a : acc) a = _mm512_setzero_ps();
    for (int64_t k = 0; k < kc; k += 8) {
      const uint8_t* at = base + k * 8;
      const float* xk = x + k0 + k;
      _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetch, _MM_HINT_T0);
      const __m512i v = load_bytes(at);
      add_column<0>(v, table, xk, acc);
      add_column<1>(v, table, xk, acc);
      add_column<2>(v, table, xk, acc);
      add_column<3>(v, table, xk, acc);
      add_column<4>(v, table, xk, acc);
      add_column<5>(v, table, xk, acc);
      add_column<6>(v, table, xk, acc);
      add_column<7>(v, table, xk, acc);
    }
    const __m512 a = _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3]));
    const __m512 b = _mm512_add_ps(_mm512_add_ps(acc[4], acc[5]), _mm512_add_ps(acc[6], acc[7]));
    const __m512 scale = scale_of(w, block, base);
    total = _mm512_fmadd_ps(_mm512_add_ps(a, b), scale, total);
  }
  _mm512_storeu_ps(sums, total);
}

template <int C>
void store_column(__m512i v, __m512 table, __m512 zero, __m512 scale, float* to) {
  _mm512_storeu_ps(to + C * 16, _mm512_mul_ps(_mm512_sub_ps(number_of<C>(v, table), zero), scale));
}

void decode_int4(const Weight& w, const PanelBlock& block, int64_t p, int64_t k0, int64_t kc,
                 float* to) {
  const __m512 table = table_of(w);
  for (int64_t k = k0; k < k0 + kc;) {
    const int64_t g = k / block.k, end = (g + 1) * block.k;
    const int64_t stop = end < k0 + kc ? end : k0 + kc;
    const uint8_t* base = w.data + (p * block.groups + g) * block.bytes;
    const __m512 scale = scale_of(w, block, base);
    const __m512 zero = load_zeros(base + block.zeros, w.format.zero_type, 0.0f);
    const uint8_t* at = base + (k - g * block.k) * 8;
    for (; k < stop; k += 8, at += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(at) + kPrefetch, _MM_HINT_T0);
      const __m512i v = load_bytes(at);
      float* row = to + (k - k0) * 16;
      store_column<0>(v, table, zero, scale, row);
      store_column<1>(v, table, zero, scale, row);
      store_column<2>(v, table, zero, scale, row);
      store_column<3>(v, table, zero, scale, row);
      store_column<4>(v, table, zero, scale, row);
      store_column<5>(v, table, zero, scale, row);
      store_column<6>(v, table, zero, scale, row);
      store_column<7>(v, table, zero, scale, row);
    }
    k = stop;
  }
}

size_t workspace(const LinearArgs& args, int threads) {
  const size_t few = workspace_few(args, threads), slices = workspace_f32(args, threads);
  return few > slices ? few : slices;
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const Kind kind = args.w.format.kind;
  const bool exact = kind == Kind::int4 || kind == Kind::mxfp4 || kind == Kind::nvfp4;
  if (exact && few_rows(args)) {
    return args.w.format.zero_type == ZeroType::none ? run_few<Nibbles, false>(args, ctx)
                                                     : run_few<Nibbles, true>(args, ctx);
  }
  const PanelBlock block = panel_block(args.w.format, {args.w.n, args.w.k});
  const auto decode = [&](int64_t p, int64_t k0, int64_t kc, float* to) {
    decode_int4(args.w, block, p, k0, kc, to);
    return to;
  };
  return run_f32(args, ctx, decode, [&](int64_t p, const float* x, float* sums) {
    vector_table(args.w, block, p, x, sums);
  });
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
    "linear_int4_f32_avx512",
    kArchAvx512,
    float_spec(bit(Kind::int4), Layout::panel16, false),
    workspace,
    run,
};

extern const LinearKernel linear_table_f32_avx512;
const LinearKernel linear_table_f32_avx512 = {
    "linear_table_f32_avx512", kArchAvx512, table_spec(), workspace, run,
};

}  // namespace lowbit
