// linear_any_f32_avx2: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; any kind, f32
// products.
//
// Shapes    any; any group shape, ragged ends.
// Layout    w in rows: codes of a row end to end.
// Bound     M = 1: decoding, 4 to 8 instructions for 8 products; from M of about 8 the FMA pipes.
// Method    eight codes at a time become a vector of eight columns of one row: a broadcast word, a
//           shift by lane and a mask for 4 bits and fewer, a widening for 8 and 16; table codes
//           then take their numbers by two permutations, codes of 6 bits one by one. M = 1:
//           products with x, sums per group, then the scale; a sum over lanes at the end of the
//           row. Else blocks of 8 rows by 8 columns are scaled and transposed into slices of f32
//           panels for the tiles of gemm_f32_avx2.h. Columns behind the last eighth, and all of a
//           weight whose groups are no multiple of 8, are decoded one by one.
#include "csrc/linear/gemm_f32_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

// How eight neighbouring codes are read; compile time, so that loops over them hold no branches.
enum class Coding { narrow, table, six, int8, e4m3, e5m2, floats };

struct Source {
  Weight w;
  int64_t row_bytes;
  int bits;
  DType dtype;     // of floats
  __m256i shifts;  // of narrow codes: the lowest bit of each of eight
  __m256i mask;
  bool scaled;
  float factor;     // of all scales
  float middle;     // the zero point of symmetric codes
  int64_t group_k;  // at most K
  int64_t groups;   // in a row
  const uint8_t *scales, *zeros;
  int64_t scale_bytes, zero_bytes;
  bool grouped;   // scales belong to whole eighths of columns
  float six[64];  // the values of codes of 6 bits
};

Source source_of(const Weight& w) {
  Source s = {};
  s.w = w;
  const Shape shape = {w.n, w.k};
  s.bits = kind_row(w.format.kind).bits;
  s.row_bytes = code_row_bytes(w.format.kind, w.k);
  s.dtype = w.format.kind == Kind::f32   ? DType::f32
            : w.format.kind == Kind::f16 ? DType::f16
                                         : DType::bf16;
  s.shifts =
      _mm256_mullo_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set1_epi32(s.bits));
  s.mask = _mm256_set1_epi32((1 << (s.bits & 7)) - 1);
  s.scaled = kind_row(w.format.kind).scaled;
  s.factor = w.tensor_scale * (w.format.kind == Kind::mxint8 ? 0x1p-6f : 1.0f);
  s.middle = static_cast<float>(kind_row(w.format.kind).mid);
  s.group_k = s.scaled && w.format.group_k < w.k ? w.format.group_k : w.k;
  if (s.scaled) {
    s.groups = scale_cols(w.format, w.k);
    s.scales = w.data + rows_scales_at(w.format, shape);
    s.zeros = w.data + rows_zeros_at(w.format, shape);
    s.scale_bytes = dtype_bytes(w.format.scale_dtype);
    s.zero_bytes = zero_bytes(w.format.zero_type);
  }
  s.grouped = s.group_k == w.k || s.group_k % 8 == 0;
  for (uint32_t code = 0; code < 64 && s.bits == 6; ++code) {
    s.six[code] = decode_code(w.format.kind, code);
  }
  return s;
}

// Codes k .. k + 7 of the row at `row` as numbers; k is a multiple of 8. Narrow codes are read as a
// word, up to three bytes past the row: the scales that follow all codes keep that inside.
// `table`: the sixteen numbers of table codes.
template <Coding C>
[[gnu::always_inline]] inline __m256 eight(const Source& s, const uint8_t* row, int64_t k,
                                           const float* table) {
  if constexpr (C == Coding::narrow || C == Coding::table) {
    const __m256i word = broadcast_4(row + k / 8 * s.bits);
    const __m256i shifted = _mm256_srlv_epi32(word, s.shifts);
    if constexpr (C == Coding::narrow) {
      return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, s.mask));
    }
    // The permutations look at three bits of each lane; the fourth, as a sign, chooses.
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), shifted);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), shifted);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(shifted, 28)));
  } else if constexpr (C == Coding::six) {
    uint64_t word = 0;
    std::memcpy(&word, row + k / 8 * 6, 6);
    float values[8];
    for (int i = 0; i < 8; ++i) values[i] = s.six[word >> 6 * i & 63];
    return _mm256_loadu_ps(values);
  } else if constexpr (C == Coding::floats) {
    return load_8(row + k * (s.dtype == DType::f32 ? 4 : 2), s.dtype);
  } else {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + k));
    if constexpr (C == Coding::int8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    if constexpr (C == Coding::e4m3) return e4m3_8(bytes);
    return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 8));
  }
}

// Where a row's scales and zero points begin; those of its groups follow each other.
struct RowScales {
  const uint8_t *scales, *zeros;
};

RowScales scales_of(const Source& s, int64_t n) {
  const int64_t group_n = s.w.format.group_n;
  const int64_t first = (group_n == 1 ? n : n / group_n) * s.groups;
  return {s.scales + first * s.scale_bytes, s.zeros + first * s.zero_bytes};
}

// value = (code - zero) * scale, for every kind.
struct Affine {
  float scale, zero;
};

Affine affine_of(const Source& s, const RowScales& row, int64_t group) {
  const Format& f = s.w.format;
  if (!s.scaled) return {1.0f, 0.0f};
  const float scale = load_f32(row.scales, f.scale_dtype, group) * s.factor;
  float zero = s.middle;
  if (f.zero_type != ZeroType::none) {
    zero = load_f32(row.zeros, f.zero_type == ZeroType::u8 ? DType::u8 : DType::f32, group);
  }
  // A bit counts twice.
  return f.kind == Kind::int1 ? Affine{scale * 2.0f, zero * 0.5f} : Affine{scale, zero};
}

// The sixteen numbers of table codes in a group of row n; null for other kinds.
template <Coding C>
const float* table_of(const Source& s, int64_t n, int64_t group) {
  if constexpr (C != Coding::table) return nullptr;
  const Shape shape = {s.w.n, s.w.k};
  return reinterpret_cast<const float*>(s.w.data +
                                        table_at(Layout::rows, s.w.format, shape, n, group));
}

template <Coding C>
float dot(const Source& s, int64_t n, const float* x) {
  const uint8_t* row = s.w.data + n * s.row_bytes;
  const int64_t whole = s.grouped ? s.w.k / 8 * 8 : 0;
  const RowScales scales = scales_of(s, n);
  __m256 total = _mm256_setzero_ps();
  for (int64_t k = 0, group = 0; k < whole; ++group) {
    const Affine affine = affine_of(s, scales, group);
    const float* table = table_of<C>(s, n, group);
    const int64_t end = k + s.group_k < whole ? k + s.group_k : whole;
    const __m256 z = _mm256_set1_ps(affine.zero);
    __m256 acc[4];
    for (__m256& a : acc) a = _mm256_setzero_ps();
    for (; k + 32 <= end; k += 32) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256 v = _mm256_sub_ps(eight<C>(s, row, k + 8 * i, table), z);
        acc[i] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + k + 8 * i), acc[i]);
      }
    }
    for (; k < end; k += 8) {
      const __m256 v = _mm256_sub_ps(eight<C>(s, row, k, table), z);
      acc[0] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + k), acc[0]);
    }
    const __m256 sum = _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
    total = _mm256_fmadd_ps(sum, _mm256_set1_ps(affine.scale), total);
  }
  for (int64_t k = whole; k < s.w.k; k += 8) {
    float values[8] = {};
    for (int64_t i = 0; i < 8 && k + i < s.w.k; ++i) values[i] = weight_value(s.w, n, k + i);
    total = _mm256_fmadd_ps(_mm256_loadu_ps(values), _mm256_loadu_ps(x + k), total);
  }
  return sum_of(total);
}

// Eight rows of eight columns to eight columns of eight rows.
[[gnu::always_inline]] inline void store_transposed(const __m256 (&v)[8], float* to) {
  const __m256 a0 = _mm256_unpacklo_ps(v[0], v[1]), a1 = _mm256_unpackhi_ps(v[0], v[1]);
  const __m256 a2 = _mm256_unpacklo_ps(v[2], v[3]), a3 = _mm256_unpackhi_ps(v[2], v[3]);
  const __m256 a4 = _mm256_unpacklo_ps(v[4], v[5]), a5 = _mm256_unpackhi_ps(v[4], v[5]);
  const __m256 a6 = _mm256_unpacklo_ps(v[6], v[7]), a7 = _mm256_unpackhi_ps(v[6], v[7]);
  const __m256 b[8] = {_mm256_shuffle_ps(a0, a2, 0x44), _mm256_shuffle_ps(a0, a2, 0xee),
                       _mm256_shuffle_ps(a1, a3, 0x44), _mm256_shuffle_ps(a1, a3, 0xee),
                       _mm256_shuffle_ps(a4, a6, 0x44), _mm256_shuffle_ps(a4, a6, 0xee),
                       _mm256_shuffle_ps(a5, a7, 0x44), _mm256_shuffle_ps(a5, a7, 0xee)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * 16, _mm256_permute2f128_ps(b[i], b[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * 16, _mm256_permute2f128_ps(b[i], b[i + 4], 0x31));
  }
}

// Columns [k, end) of the eight rows from `row` on, all there and all of one group: (end - k, 8) of
// a panel. Not inlined, so that the compiler keeps row addresses and constants in registers.
template <Coding C>
[[gnu::noinline]] void decode_run(const Source& source, const uint8_t* row, int64_t k, int64_t end,
                                  const Affine* affine, const float* const* tables, float* to) {
  const Source s = source;
  const int64_t step = s.row_bytes;
  const uint8_t* rows[8] = {row,
                            row + step,
                            row + 2 * step,
                            row + 3 * step,
                            row + 4 * step,
                            row + 5 * step,
                            row + 6 * step,
                            row + 7 * step};
  for (; k < end; k += 8, to += 8 * kPanel) {
    __m256 v[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m256 code = eight<C>(s, rows[i], k, tables[i]);
      v[i] = _mm256_mul_ps(_mm256_sub_ps(code, _mm256_broadcast_ss(&affine[i].zero)),
                           _mm256_broadcast_ss(&affine[i].scale));
    }
    store_transposed(v, to);
  }
}

// The same for the edges: rows behind N and columns behind K give zeros.
[[gnu::noinline]] void decode_edge(const Source& s, int64_t n, int64_t k, float* to) {
  __m256 v[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    float values[8] = {};
    for (int64_t j = 0; n + i < s.w.n && j < 8 && k + j < s.w.k; ++j) {
      values[j] = weight_value(s.w, n + i, k + j);
    }
    v[i] = _mm256_loadu_ps(values);
  }
  store_transposed(v, to);
}

// Columns [k0, k0 + kc) of 16 rows from n0 on as (kc rounded up to 8, 16).
template <Coding C>
void decode(const Source& s, int64_t n0, int64_t k0, int64_t kc, float* to) {
  for (int64_t half = 0; half < kPanel; half += 8) {
    const int64_t n = n0 + half;
    const bool all_there = n + 8 <= s.w.n;
    RowScales scales[8];
    for (int64_t i = 0; i < 8; ++i) scales[i] = scales_of(s, n + i);
    Affine affine[8];
    const float* tables[8];
    for (int64_t k = k0; k < k0 + kc;) {
      const int64_t group = k / s.group_k, group_end = (group + 1) * s.group_k;
      int64_t end = s.w.k / 8 * 8 < k0 + kc ? s.w.k / 8 * 8 : k0 + kc;
      end = group_end < end ? group_end : end;
      if (!all_there || !s.grouped || k >= end) {
        decode_edge(s, n, k, to + (k - k0) * kPanel + half);
        k += 8;
        continue;
      }
      for (int64_t i = 0; i < 8; ++i) {
        affine[i] = affine_of(s, scales[i], group);
        tables[i] = table_of<C>(s, n + i, group);
      }
      decode_run<C>(s, s.w.data + n * s.row_bytes, k, end, affine, tables,
                    to + (k - k0) * kPanel + half);
      k = end;
    }
  }
}

template <Coding C>
Status run_coding(const LinearArgs& args, const Ctx& ctx) {
  const Source s = source_of(args.w);
  return run_f32(
      args, ctx,
      [&](int64_t p, int64_t k0, int64_t kc, float* to) {
        decode<C>(s, p * kPanel, k0, kc, to);
        return to;
      },
      [&](int64_t p, const float* x, float* sums) {
        for (int64_t r = 0; r < kPanel && p * kPanel + r < s.w.n; ++r) {
          sums[r] = dot<C>(s, p * kPanel + r, x);
        }
      });
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  switch (args.w.format.kind) {
    case Kind::f32:
    case Kind::f16:
    case Kind::bf16: return run_coding<Coding::floats>(args, ctx);
    case Kind::mxint8:
    case Kind::int8: return run_coding<Coding::int8>(args, ctx);
    case Kind::mxfp8_e4m3:
    case Kind::fp8_e4m3: return run_coding<Coding::e4m3>(args, ctx);
    case Kind::mxfp8_e5m2:
    case Kind::fp8_e5m2: return run_coding<Coding::e5m2>(args, ctx);
    case Kind::nf4:
    case Kind::fp4:
    case Kind::codebook4:
    case Kind::mxfp4:
    case Kind::nvfp4: return run_coding<Coding::table>(args, ctx);
    case Kind::mxfp6_e2m3:
    case Kind::mxfp6_e3m2: return run_coding<Coding::six>(args, ctx);
    default: return run_coding<Coding::narrow>(args, ctx);
  }
}

}  // namespace

extern const LinearKernel linear_any_f32_avx2;
const LinearKernel linear_any_f32_avx2 = {
    "linear_any_f32_avx2", kArchAvx2, float_spec(kAllKinds, Layout::rows, true), workspace_f32, run,
};

}  // namespace lowbit
