// linear_narrow_f32_avx2: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; int3, int2,
// int1 and ternary weights in panels, f32 products.
//
// Shapes    any; scales per matrix, channel or group of a multiple of 32 columns; zeros none, u8 or
//           f32.
// Layout    w in panel16 or trits16; x as rows of f32.
// Bound     few rows of x: decoding, 6 instructions for 8 weights (trits16: 13). From M of about 8
//           the FMA pipes.
// Method    a lane of a vector is one row of w, so a column of 8 rows is a shift and a mask of one
//           vector. Slices of K are decoded to f32 panels for the tiles of gemm_f32_avx2.h, with
//           one row of x too.
// Measured  not yet.
#include "csrc/linear/gemm_f32_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

// Bits [shift, shift + bits) of each lane.
inline __m256i field(const uint8_t* p, int64_t shift, int mask) {
  const __m128i count = _mm_cvtsi64_si128(shift);
  return _mm256_and_si256(_mm256_srl_epi32(load_bytes(p), count), _mm256_set1_epi32(mask));
}

// How the codes of a column are read: what `code` does for 8 rows whose lanes begin at `block`, for
// column i of the block.
struct Int2 {
  static inline __m256i code(const uint8_t* block, int64_t i) {
    return field(block + i / 16 * 64, i % 4 * 8 + i % 16 / 4 * 2, 3);
  }
};
struct Int1 {
  static inline __m256i code(const uint8_t* block, int64_t i) {
    return field(block + i / 32 * 64, i % 4 * 8 + i % 32 / 4, 1);
  }
};
struct Int3 {
  static inline __m256i code(const uint8_t* block, int64_t i) {
    const uint8_t* p = block + i / 32 * 192;
    const int64_t half = i % 32 / 16, shift = i % 4 * 8 + i % 16 / 4 * 2;
    const __m256i low = field(p + half * 64, shift, 3), high = field(p + 128, shift + half, 1);
    return _mm256_or_si256(low, _mm256_slli_epi32(high, 2));
  }
};
struct Trits {
  // 2^16 / 3^d, rounded up: the high half of a product with it is the quotient, for up to 242.
  static constexpr int kThirds[5] = {0, 21846, 7282, 2428, 810};

  static inline __m256i code(const uint8_t* block, int64_t i) {
    const int64_t d = i % 20 / 4;
    const __m256i byte = field(block + i / 20 * 64, i % 4 * 8, 255);
    const __m256i size = _mm256_and_si256(byte, _mm256_set1_epi32(127));
    const __m256i sign = _mm256_cmpgt_epi32(byte, _mm256_set1_epi32(127));
    // 121 + size or 121 - size: each trit + 1 as a digit of base 3.
    const __m256i signed_size = _mm256_sub_epi32(_mm256_xor_si256(size, sign), sign);
    __m256i v = _mm256_add_epi32(signed_size, _mm256_set1_epi32(121));
    if (d > 0) v = _mm256_mulhi_epu16(v, _mm256_set1_epi32(kThirds[d]));
    const __m256i third = _mm256_mulhi_epu16(v, _mm256_set1_epi32(kThirds[1]));
    return _mm256_sub_epi32(v, _mm256_add_epi32(third, _mm256_add_epi32(third, third)));
  }
};

// Columns [k0, k0 + kc) of a panel as (kc, 16) of f32. value = scale * (factor * code - zero),
// where `middle` is the zero of the symmetric kind.
template <class Codes>
void decode(const uint8_t* panel, const PanelBlock& block, const Format& f, float middle,
            float factor, int64_t k0, int64_t kc, float* to) {
  for (int64_t k = k0; k < k0 + kc;) {
    const int64_t group = k / block.k;
    const uint8_t* base = panel + group * block.bytes;
    const int64_t left = (group + 1) * block.k - k, rest = k0 + kc - k;
    const int64_t count = left < rest ? left : rest;
    for (int half = 0; half < 2; ++half) {
      const __m256 scale = _mm256_mul_ps(load_scales(base + block.scales, f.scale_dtype, half),
                                         _mm256_set1_ps(factor));
      const __m256 zero = _mm256_mul_ps(load_zeros(base + block.zeros, f.zero_type, middle, half),
                                        _mm256_set1_ps(1.0f / factor));
      float* out = to + (k - k0) * kPanel + half * 8;
      for (int64_t i = 0; i < count; ++i) {
        const __m256i code = Codes::code(base + half * 32, k - group * block.k + i);
        const __m256 value = _mm256_sub_ps(_mm256_cvtepi32_ps(code), zero);
        _mm256_storeu_ps(out + i * kPanel, _mm256_mul_ps(value, scale));
      }
    }
    k += count;
  }
}

template <class Codes>
Status run_kind(const LinearArgs& args, const Ctx& ctx, float middle, float factor) {
  const PanelBlock block = panel_block(args.w.layout, args.w.format, {args.w.n, args.w.k});
  return run_f32(
      args, ctx,
      [&](int64_t p, int64_t k0, int64_t kc, float* to) {
        const uint8_t* panel = args.w.data + p * block.groups * block.bytes;
        decode<Codes>(panel, block, args.w.format, middle, factor, k0, kc, to);
        return to;
      },
      [](float*) { return false; }, [](int64_t, const float*, float*) {});
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const Kind kind = args.w.format.kind;
  const float middle = static_cast<float>(kind_row(kind).mid);
  if (args.w.layout == Layout::trits16) return run_kind<Trits>(args, ctx, 1.0f, 1.0f);
  if (kind == Kind::int3) return run_kind<Int3>(args, ctx, middle, 1.0f);
  if (kind == Kind::int1) return run_kind<Int1>(args, ctx, middle, 2.0f);
  return run_kind<Int2>(args, ctx, middle, 1.0f);
}

constexpr LinearSpec spec() {
  constexpr KindSet kKinds =
      bit(Kind::int3) | bit(Kind::int2) | bit(Kind::int1) | bit(Kind::ternary);
  LinearSpec s = float_spec(kKinds, Layout::panel16, true);
  s.layouts |= bit(Layout::trits16);
  return s;
}

}  // namespace

extern const LinearKernel linear_narrow_f32_avx2;
const LinearKernel linear_narrow_f32_avx2 = {
    "linear_narrow_f32_avx2", kArchAvx2, spec(), workspace_f32, run,
};

}  // namespace lowbit
