// linear_int1_lut_i8_avx2: out[1,N] = act(x_scale * (codes of x[1,K]) * deq(w)[N,K]^T + bias) +
// residual; int1 weights, i8 activations, exact integer sums per group, by tables over x.
//
// Shapes    M = 1; one scale a row or a matrix: a group's end costs more than the tables save.
// Layout    w in panel16: a lane of 4 bytes holds columns 32j + 4f + b of its row in bit f of its
//           byte b.
// Bound     memory at 1/8 byte a product; 31 instructions for the 512 weights of 64 bytes, where
//           linear_int1_i8_avx2 takes 64.
// Method    A nibble is the signs of four columns of x: vpshufb reads the sum of those whose bit is
//           set from a table of 16. Such a sum lies in -512 .. 508: with 512 added it is two
//           numbers of 5 bits, each with a table of its own, and eight of them add up in a byte. So
//           two lines of w take byte sums alone before these are widened. The product is twice the
//           sum, less the sum of x. Bytes of a lane are parted first, for a half of a vector reads
//           one table. All panels of a block take a slice of K whose tables stay in L1.
// Source    Wei et al., T-MAC, EuroSys 2025 (tables over bits of weights).
// Measured  EPYC Zen 4, one thread, cold weights: 4096 x 14336 545 to 559 us where
//           linear_int1_i8_avx2 takes 709 to 731, 4096 x 4096 159 to 163 and 172 to 177; see
//           NOTES.md.
#include "csrc/linear/codes.h"
#include "csrc/linear/panel_avx2.h"

namespace lowbit {
namespace {

using namespace avx2;

constexpr int64_t kLine = 32;         // columns of 64 bytes of w
constexpr int64_t kTableBytes = 256;  // of a line: of (columns b, b + 1) x nibble x part, 32 bytes
constexpr int64_t kSliceK = 2048;     // columns whose tables, 16 KiB, stay in L1
constexpr int32_t kLineBias = 512 * 8;  // in the sums of a row over a line

struct Scratch {
  int8_t* codes;         // (columns)
  uint8_t* tables;       // (columns / kLine, kTableBytes)
  int32_t* corrections;  // (segments): what the doubled sums of a segment have to be corrected by
  int32_t* x_sums;       // (segments): of the codes; where zeros are stored
  float* floats;         // (K)
  float* sums;           // (threads, kBlockM, kBlockN)
};

Segments line_segments(const LinearArgs& args) { return segments_of(args.w, 1024); }

size_t carve(const LinearArgs& args, int threads, void* base, Scratch* s) {
  const int64_t columns = round_up(args.w.k, kLine);
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->codes = take<int8_t>(&at, columns);
  s->tables = take<uint8_t>(&at, columns / kLine * kTableBytes);
  s->corrections = take<int32_t>(&at, line_segments(args).count);
  s->x_sums = take<int32_t>(&at, line_segments(args).count);
  s->floats = take<float>(&at, args.w.k);
  s->sums = take<float>(&at, threads * kBlockM * kBlockN);
  return at - reinterpret_cast<uintptr_t>(base);
}

size_t workspace(const LinearArgs& args, int threads) {
  Scratch s;
  return carve(args, threads, nullptr, &s);
}

// The tables of one line: for nibble i the sum of those of x[0], x[4], x[8], x[12] whose bit of i
// is set, and 512.
void build_tables(const int8_t* codes, uint8_t* to) {
  const __m256i i = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 8
  for (int table = 0; table < 8; ++table) {
    const int b = table % 4, nibble = table / 4;
    const int8_t* x = codes + 16 * nibble + b;
    __m256i sum = _mm256_set1_epi16(512);
#pragma GCC unroll 4
    for (int f = 0; f < 4; ++f) {
      const __m256i bit = _mm256_set1_epi16(static_cast<int16_t>(1 << f));
      const __m256i set = _mm256_cmpeq_epi16(_mm256_and_si256(i, bit), bit);
      sum = _mm256_add_epi16(sum, _mm256_and_si256(set, _mm256_set1_epi16(x[4 * f])));
    }
    const __m256i low = _mm256_and_si256(sum, _mm256_set1_epi16(31));
    const __m256i both =
        _mm256_permute4x64_epi64(_mm256_packus_epi16(low, _mm256_srli_epi16(sum, 5)), 0xd8);
    uint8_t* at = to + b / 2 * 128 + nibble * 64 + b % 2 * 16;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(both));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 32), _mm256_extracti128_si256(both, 1));
  }
}

// Sums of bytes as words: of all bytes, where a word's upper byte counts 256 times and what leaves
// the word is lost, and of upper bytes.
struct Words {
  __m256i all = _mm256_setzero_si256(), upper = _mm256_setzero_si256();

  [[gnu::always_inline]] void add(__m256i bytes) {
    all = _mm256_add_epi16(all, bytes);
    upper = _mm256_add_epi16(upper, _mm256_srli_epi16(bytes, 8));
  }
};

// Both halves of words together, as eight numbers.
[[gnu::always_inline]] inline __m256i folded(__m256i words) {
  return _mm256_cvtepu16_epi32(
      _mm_add_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

// Adds the table entries of a line to byte sums of low and high parts. In both, half h of the
// vector is (columns b = h and b = 2 + h of) rows 0..3, 8..11, 4..7, 12..15.
[[gnu::always_inline]] inline void add_line(const uint8_t* line, const uint8_t* tables,
                                            __m256i* low, __m256i* high) {
  const __m256i by_column = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i v0 = _mm256_shuffle_epi8(load_bytes(line), by_column);
  const __m256i v1 = _mm256_shuffle_epi8(load_bytes(line + 32), by_column);
  const __m256i pairs[2] = {_mm256_permute4x64_epi64(_mm256_unpacklo_epi32(v0, v1), 0xd8),
                            _mm256_permute4x64_epi64(_mm256_unpackhi_epi32(v0, v1), 0xd8)};
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p) {
    const __m256i i = _mm256_and_si256(pairs[p], nibble);
    const __m256i j = _mm256_and_si256(_mm256_srli_epi16(pairs[p], 4), nibble);
    const uint8_t* t = tables + 128 * p;
    *low = _mm256_add_epi8(*low, _mm256_shuffle_epi8(load_bytes(t), i));
    *high = _mm256_add_epi8(*high, _mm256_shuffle_epi8(load_bytes(t + 32), i));
    *low = _mm256_add_epi8(*low, _mm256_shuffle_epi8(load_bytes(t + 64), j));
    *high = _mm256_add_epi8(*high, _mm256_shuffle_epi8(load_bytes(t + 96), j));
  }
}

void ask(const uint8_t* line) {
  const char* p = reinterpret_cast<const char*>(line);
  _mm_prefetch(p + 8192, _MM_HINT_T1);
  _mm_prefetch(p + 1024, _MM_HINT_T0);
}

// sums(16) += x * segments [begin, end) of a panel.
template <bool kZeros>
[[gnu::noinline]] void look_up(const Weight& w, const Segments& segments, int64_t begin,
                               int64_t end, const uint8_t* panel, const Scratch& s, float* sums) {
  __m256 total[2] = {_mm256_loadu_ps(sums), _mm256_loadu_ps(sums + 8)};
  Segment segment = segment_at(segments, begin);
  for (int64_t i = begin; i < end; ++i, next_segment(segments, &segment)) {
    const uint8_t* base = panel + segment.block;
    const uint8_t* line = base + segment.column / kLine * 64;
    const uint8_t* tables = s.tables + segment.k / kLine * kTableBytes;
    Words lows, highs;
    for (int64_t left = ceil_div(segment.width, kLine); left > 0; left -= 2) {
      __m256i low = _mm256_setzero_si256(), high = low;
      ask(line);
      add_line(line, tables, &low, &high);
      if (left > 1) {
        ask(line + 64);
        add_line(line + 64, tables + kTableBytes, &low, &high);
      }
      lows.add(low);
      highs.add(high);
      line += 128;
      tables += 2 * kTableBytes;
    }
    const __m256i even = _mm256_add_epi32(
        _mm256_slli_epi32(folded(_mm256_sub_epi16(highs.all, _mm256_slli_epi16(highs.upper, 8))),
                          5),
        folded(_mm256_sub_epi16(lows.all, _mm256_slli_epi16(lows.upper, 8))));
    const __m256i odd =
        _mm256_add_epi32(_mm256_slli_epi32(folded(highs.upper), 5), folded(lows.upper));
    const __m256i correction = broadcast_4(s.corrections + i);
    const __m256i rows[2] = {_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd)};
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(rows[h], rows[h]), correction);
      const __m256 scale = load_scales(base + segments.block.scales, w.format.scale_dtype, h);
      __m256 whole = _mm256_cvtepi32_ps(sum);
      if constexpr (kZeros) {
        const __m256 zero = load_zeros(base + segments.block.zeros, w.format.zero_type, 1.0f, h);
        const __m256 x_sum = _mm256_cvtepi32_ps(broadcast_4(s.x_sums + i));
        whole = _mm256_fnmadd_ps(zero, x_sum, whole);
      }
      total[h] = _mm256_fmadd_ps(whole, scale, total[h]);
    }
  }
  _mm256_storeu_ps(sums, total[0]);
  _mm256_storeu_ps(sums + 8, total[1]);
}

template <bool kZeros>
Status run(const LinearArgs& args, const Ctx& ctx) {
  const int64_t k = args.w.k, columns = round_up(k, kLine);
  const Segments segments = line_segments(args);
  Scratch s;
  carve(args, pool_threads(ctx.pool), ctx.scratch, &s);
  const float scale = stage_codes(args, 0, s.floats, s.codes);
  std::memset(s.codes + k, 0, static_cast<size_t>(columns - k));
  parallel_for(ctx.pool, columns / kLine, kStageTask / 8 / kLine,
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t i = begin; i < end; ++i) {
                   build_tables(s.codes + i * kLine, s.tables + i * kTableBytes);
                 }
               });
  for (int64_t i = 0; i < segments.count; ++i) {
    const Segment segment = segment_at(segments, i);
    s.x_sums[i] = sum_codes(s.codes + segment.k, segment.width);
    s.corrections[i] = (kZeros ? 0 : -s.x_sums[i]) -
                       2 * kLineBias * static_cast<int32_t>(ceil_div(segment.width, kLine));
  }
  // Without columns there are no segments to step over.
  const int64_t step = segments.size < 1 || segments.size > kSliceK ? 1 : kSliceK / segments.size;
  for_blocks(args, ctx.pool, 0, 1, 1, &scale, s.sums,
             [&](int, int64_t n0, int64_t panels, int64_t, int64_t, float* sums) {
               const int64_t stride = segments.block.groups * segments.block.bytes;
               const uint8_t* first = args.w.data + n0 / kPanel * stride;
               for (int64_t i = 0; i < panels * kPanel; ++i) sums[i] = 0.0f;
               for (int64_t begin = 0; begin < segments.count; begin += step) {
                 const int64_t end = begin + step < segments.count ? begin + step : segments.count;
                 for (int64_t p = 0; p < panels; ++p) {
                   look_up<kZeros>(args.w, segments, begin, end, first + p * stride, s,
                                   sums + p * kPanel);
                 }
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
  s.one_scale = true;
  return s;
}

}  // namespace

extern const LinearKernel linear_int1_lut_i8_avx2;
const LinearKernel linear_int1_lut_i8_avx2 = {
    "linear_int1_lut_i8_avx2", kArchAvx2, spec(), workspace, run,
};

}  // namespace lowbit
