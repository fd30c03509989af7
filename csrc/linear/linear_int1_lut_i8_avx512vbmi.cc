// linear_int1_lut_i8_avx512vbmi: out[1,N] = act(x_scale * (codes of x[1,K]) * deq(w)[N,K]^T + bias)
// + residual; int1 weights, i8 activations, exact integer sums per group, by tables over x.
//
// Shapes    M = 1; scales per matrix, channel or group of a multiple of 32 columns.
// Layout    w in panel16: a lane of 4 bytes holds columns 32j + 4f + b of its row in bit f of byte
//           b.
// Bound     memory at 1/8 byte a product, and 11 instructions for the 512 weights of 64 bytes,
//           where linear_int1_i8_avx512vnni takes 16 and many more at the end of a group.
// Method    A nibble of byte b is the signs of four columns of x: a table of 16 sums. Four of them,
//           b = 0 .. 3, fill a vector that vpermb reads with nibble + 16 * b as index. A sum has 10
//           bits, so its low byte and twice its high byte have tables of their own; vpdpbusd with 1
//           and with 128 adds the four bytes of a lane, exactly. Four panels go side by side, so
//           that a line of tables is read once for 64 rows of w.
// Measured  EPYC Zen 4, one thread, 4096 x 14336, cold weights: groups of 64 407 us and channel 332
//           us, where linear_int1_i8_avx512vnni takes 662 to 695 and 401; Zen 5 310 and 250 us; see
//           NOTES.md.
// Source    Wei et al., T-MAC, EuroSys 2025 (tables over bits of weights).
#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx512.h"
#include "csrc/simd/avx512vnni.h"

namespace lowbit {
namespace {

using namespace avx512;

constexpr int64_t kLine = 32;  // columns of 64 bytes of w
constexpr int64_t kTableBytes =
    256;  // of a line: low and twice high bytes, for low and high nibbles
// Columns summed as integers: 127 * 2^16 is below 2^24, which f32 holds exactly.
constexpr int64_t kSumK = 1 << 16;

struct Scratch {
  int8_t* codes;    // (columns)
  uint8_t* tables;  // (columns / kLine, kTableBytes)
  int32_t* x_sums;  // (runs): of the codes that are summed as integers; where zeros are stored
  float* floats;    // (K)
  float* sums;      // (threads, kBlockM, kBlockN)
};

size_t carve(const LinearArgs& args, int threads, void* base, Scratch* s) {
  const int64_t columns = round_up(args.w.k, kLine);
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->codes = take<int8_t>(&at, columns);
  s->tables = take<uint8_t>(&at, columns / kLine * kTableBytes);
  s->x_sums = take<int32_t>(&at, columns / kLine);
  s->floats = take<float>(&at, args.w.k);
  s->sums = take<float>(&at, threads * kBlockM * kBlockN);
  return at - reinterpret_cast<uintptr_t>(base);
}

size_t workspace(const LinearArgs& args, int threads) {
  Scratch s;
  return carve(args, threads, nullptr, &s);
}

// Words 0 .. 15: the sums of x[first + 4f] with the signs of bits f of 0 .. 15; 16 .. 31: the same
// of the next column. x: 32 words.
__m512i sixteen_sums(__m512i x, int first) {
  constexpr __mmask32 kMinus[4] = {0x55555555, 0x33333333, 0x0f0f0f0f, 0x00ff00ff};  // bit f clear
  const __m512i zero = _mm512_setzero_si512();
  const __m512i second = _mm512_inserti64x4(zero, _mm256_set1_epi16(1), 1);
  __m512i sum = zero;
#pragma GCC unroll 4
  for (int f = 0; f < 4; ++f) {
    const __m512i column =
        _mm512_add_epi16(second, _mm512_set1_epi16(static_cast<int16_t>(first + 4 * f)));
    const __m512i v = _mm512_permutexvar_epi16(column, x);
    sum = _mm512_add_epi16(sum, _mm512_mask_sub_epi16(v, kMinus[f], zero, v));
  }
  return sum;
}

void build_tables(const int8_t* codes, uint8_t* to) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m512i x = _mm512_cvtepi8_epi16(bytes);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // columns 0 and 1, 2 and 3 of four; low nibbles, then high ones
    const __m512i sums = sixteen_sums(x, i / 2 * 16 + i % 2 * 2);
    uint8_t* table = to + i / 2 * 128 + i % 2 * 32;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(table), _mm512_cvtepi16_epi8(sums));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(table + 64),
                        _mm512_cvtepi16_epi8(_mm512_slli_epi16(_mm512_srai_epi16(sums, 8), 1)));
  }
}

// A line of a panel's stream, to L2 and then to L1: requests to L1 alone, or further ahead of their
// use, are pushed out by the tables, which stream through it too.
void ask(const uint8_t* line) {
  const char* p = reinterpret_cast<const char*>(line);
  _mm_prefetch(p + 2048, _MM_HINT_T1);
  _mm_prefetch(p + 512, _MM_HINT_T0);
}

// sums(P, 16) = x * P panels that follow each other.
template <int P, bool kZeros>
[[gnu::noinline]] void look_up(const Weight& w, const PanelBlock& block, const uint8_t* panels,
                               const Scratch& s, float* sums) {
  const uint8_t* tables = s.tables;
  const int32_t* x_sums = s.x_sums;
  constexpr int kAndOr = 0xea;  // a & b | c
  const __m512i nibble = _mm512_set1_epi8(15), place = _mm512_set1_epi32(0x30201000);
  const __m512i ones = _mm512_set1_epi8(1), half = _mm512_set1_epi8(-128);  // 128 without a sign
  const int64_t stride = block.groups * block.bytes;
  __m512 total[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) total[p] = _mm512_setzero_ps();
  for (int64_t g = 0; g < block.groups; ++g, panels += block.bytes) {
    const int64_t left = w.k - g * block.k, width = left < block.k ? left : block.k;
    const uint8_t* at = panels;
    for (int64_t k = 0; k < width;) {
      const int64_t stop = k + kSumK < width ? k + kSumK : width;
      __m512i sum[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) sum[p] = _mm512_setzero_si512();
      for (; k < stop; k += kLine, at += 64, tables += kTableBytes) {
        const __m512i t0 = load_bytes(tables), t1 = load_bytes(tables + 64);
        const __m512i t2 = load_bytes(tables + 128), t3 = load_bytes(tables + 192);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const uint8_t* line = at + p * stride;
          ask(line);
          const __m512i bits = load_bytes(line);
          const __m512i i = _mm512_ternarylogic_epi32(bits, nibble, place, kAndOr);
          const __m512i j =
              _mm512_ternarylogic_epi32(_mm512_srli_epi16(bits, 4), nibble, place, kAndOr);
          sum[p] = add_products(sum[p], _mm512_permutexvar_epi8(i, t0), ones);
          sum[p] = add_products(sum[p], half, _mm512_permutexvar_epi8(i, t1));
          sum[p] = add_products(sum[p], _mm512_permutexvar_epi8(j, t2), ones);
          sum[p] = add_products(sum[p], half, _mm512_permutexvar_epi8(j, t3));
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const uint8_t* scales = panels + p * stride + block.scales;
        ask(scales);  // short groups: a line that the steps of their codes leave out
        const __m512 scale = load_scales(scales, w.format.scale_dtype);
        __m512 whole = _mm512_cvtepi32_ps(sum[p]);
        if constexpr (kZeros) {  // signs take off 1
          const __m512 zero =
              load_zeros(panels + p * stride + block.zeros, w.format.zero_type, 1.0f);
          whole = _mm512_fnmadd_ps(_mm512_sub_ps(zero, _mm512_set1_ps(1.0f)),
                                   _mm512_set1_ps(static_cast<float>(*x_sums)), whole);
        }
        total[p] = _mm512_fmadd_ps(whole, scale, total[p]);
      }
      if constexpr (kZeros) ++x_sums;
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) _mm512_storeu_ps(sums + p * kPanel, total[p]);
}

// Sums of x over what look_up() sums as integers.
void sum_runs(const Scratch& s, const PanelBlock& block, int64_t columns) {
  int32_t* to = s.x_sums;
  for (int64_t g = 0; g < block.groups; ++g) {
    const int64_t end = (g + 1) * block.k < columns ? (g + 1) * block.k : columns;
    for (int64_t k = g * block.k; k < end; k += kSumK) {
      *to++ = sum_codes(s.codes + k, end - k < kSumK ? end - k : kSumK);
    }
  }
}

template <bool kZeros>
Status run(const LinearArgs& args, const Ctx& ctx) {
  const int64_t k = args.w.k, columns = round_up(k, kLine);
  const PanelBlock block = panel_block(args.w.format, {args.w.n, k});
  Scratch s;
  carve(args, pool_threads(ctx.pool), ctx.scratch, &s);
  const float scale = stage_codes(args, 0, s.floats, s.codes);
  std::memset(s.codes + k, 0, static_cast<size_t>(columns - k));
  for (int64_t i = 0; i < columns; i += kLine) {
    build_tables(s.codes + i, s.tables + i / kLine * kTableBytes);
  }
  if constexpr (kZeros) sum_runs(s, block, k);
  for_blocks(args, ctx.pool, 0, 1, 1, &scale, s.sums,
             [&](int, int64_t n0, int64_t panels, int64_t, int64_t, float* sums) {
               const int64_t stride = block.groups * block.bytes;
               const uint8_t* first = args.w.data + n0 / kPanel * stride;
               if (panels == 4) return look_up<4, kZeros>(args.w, block, first, s, sums);
               for (int64_t p = 0; p < panels; ++p) {
                 look_up<1, kZeros>(args.w, block, first + p * stride, s, sums + p * kPanel);
               }
             });
  return ok();
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  return args.w.format.zero_type == ZeroType::none ? run<false>(args, ctx) : run<true>(args, ctx);
}

constexpr LinearSpec spec() {
  LinearSpec s = code_spec(bit(Kind::int1));
  s.m_max = 1;
  return s;
}

}  // namespace

extern const LinearKernel linear_int1_lut_i8_avx512vbmi;
const LinearKernel linear_int1_lut_i8_avx512vbmi = {
    "linear_int1_lut_i8_avx512vbmi", kArchAvx512Vbmi, spec(), workspace, run,
};

}  // namespace lowbit
