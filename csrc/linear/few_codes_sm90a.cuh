// Codes of weights for few_sm90a.cuh: a step of a warp is 16 rows of w by kStepK columns; where its
// bytes and scales come from, what a lane decodes from them, and in which order x lies beside them.
// The order of columns inside a step is free, as long as both sides agree.
//
// Static members: copy() asks for a step, fill() lays x out, fragments() gives the next 32 columns
// as two products take them, scales() those of a part of the step.
#pragma once

#include "csrc/linear/decode_int4.cuh"
#include "csrc/linear/few_sm90a.cuh"

namespace lowbit {
namespace {

__device__ __forceinline__ uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
template <bool kHalf>
__device__ __forceinline__ uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  if constexpr (kHalf) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  }
  return r;
}
// Two codes of fp8 as f16, exactly.
template <bool kWide>
__device__ __forceinline__ uint32_t fp8_pair(uint32_t two) {
  if constexpr (kWide) return permute(two, 0, 0x1404);
  uint32_t r;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(static_cast<uint16_t>(two)));
  return r;
}
// Two numbers that f16 and bf16 both hold.
__device__ __forceinline__ uint32_t f16_as_bf16(uint32_t pair) {
  const float2 v = unpack_pair(DType::f16, pair);
  return pack_pair(DType::bf16, v.x, v.y);
}

// Codes as they are saved, of kBits: 64 bytes of each row a step, or 128 of eight bits.
template <Kind kKind, FewX kX_, int kParts_>
struct FewRows {
  static constexpr FewX kX = kX_;
  static constexpr int kBits = kind_row(kKind).bits, kParts = kParts_;
  static constexpr int kRow = kBits == 8 ? 128 : 64, kChunks = kRow / 16;
  static constexpr int kStepK = kRow * 8 / kBits, kCodes = 16 * kRow;
  static constexpr int kWords = kParts > 2 ? 4 : kParts;  // of scales, of a row
  static constexpr int kScales = kParts > 0 ? kWords * 64 : 16;
  static constexpr bool kHalf = kX == FewX::f16;
  static constexpr int kBlocks = kStepK / 32;
  static constexpr int kPer = kBits == 8 ? 8 : 32 / kBits;  // a lane's codes in a row

  const uint8_t* const at;
  const int lane;

  __device__ __forceinline__ FewRows(const uint8_t* stage, int l) : at(stage), lane(l) {}

  // Where 16 bytes of a row lie in a stage: eight rows that lanes read together meet in no bank.
  static __device__ __forceinline__ uint32_t place(int row, int chunk) {
    const int spread = (row & 2) | (row >> 2 & 1);
    if (kRow == 64) return row * 64 + ((chunk ^ spread) << 4);
    return row * 128 + ((chunk ^ ((row & 1) << 2 | spread)) << 4);
  }

  // The first group of a step.
  static __device__ __forceinline__ int group_of(const Few& p, int step) {
    return kParts > 1 ? step * kParts : step >> p.group_shift;
  }

  static __device__ __forceinline__ void copy(const Few& p, int strip, int step, uint32_t to,
                                              int lane) {
    const int64_t k_bytes = int64_t{p.k} * kBits / 8;
#pragma unroll
    for (int i = 0; i < kChunks / 2; ++i) {
      const int item = lane + i * 32, row = item / kChunks, chunk = item % kChunks;
      const int n = strip * 16 + row, c = step * kRow + chunk * 16;
      const bool there = n < p.finish.n && c < k_bytes;
      cp_async_16(to + place(row, chunk), p.w + (there ? n * p.w_stride + c : 0), there ? 16 : 0);
    }
    if constexpr (kParts > 0) {
      const int shift = p.scale_dtype == DType::f32 ? 2 : 1;
      const int g = group_of(p, step), count = min(kParts, p.groups - g) << shift;
#pragma unroll
      for (int i = 0; i < (16 * kWords + 31) / 32; ++i) {
        const int item = lane + i * 32, row = item / kWords, word = item % kWords;
        const int n = strip * 16 + row;
        const int64_t from = (int64_t{n >> p.row_shift} * p.groups + g) << shift;
        const int64_t wanted = (from & ~int64_t{3}) + word * 4;
        const bool there = n < p.finish.n && p.scales != nullptr && wanted < from + count;
        if (row < 16) {
          cp_async<4>(to + kCodes + item * 4, p.scales + (there ? wanted : 0), there);
        }
      }
    }
  }

  // A lane's run of kPer columns, in as many times 16 bytes as it takes. `asked` is called once,
  // when all of x has been asked for.
  template <class F>
  static __device__ __forceinline__ void fill(const Few& p, int from, int to, uint8_t* sX,
                                              const F& asked) {
    constexpr int kRuns = kPer / 8, kTogether = kRuns > 4 ? 1 : 8 / kRuns;
    const uint32_t m = p.finish.m;
    const int items = (to - from) / kPer * m;
#pragma unroll 1
    for (int first = 0; first < items; first += kFewThreads * kTogether) {
      uint32_t v[kTogether][kRuns * 4] = {};
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        const uint32_t i = first + t * kFewThreads + threadIdx.x;
        const uint32_t row = i / 4, span = row / m, token = row - span * m;
        const int k = from + (span * 4 + i % 4) * kPer;
#pragma unroll
        for (int r = 0; r < kRuns; ++r) {
          if (static_cast<int>(i) < items && k + r * 8 < p.k)
            eight(p, token, k + r * 8, v[t] + r * 4);
        }
      }
      if (first + kFewThreads * kTogether >= items) asked();
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        const uint32_t i = first + t * kFewThreads + threadIdx.x;
        if (static_cast<int>(i) >= items) break;
        const uint32_t row = i / 4, span = row / m, token = row - span * m;
#pragma unroll
        for (int r = 0; r < kRuns; ++r) {
          // Codes of a word come out in pairs half a word apart.
          uint32_t pairs[4];
#pragma unroll
          for (int h = 0; h < 4; ++h) {
            const int j = r * 4 + h;
            pairs[h] = v[t][j];
            if constexpr (kBits < 8) {
              pairs[h] =
                  permute(v[t][j / 2], v[t][j / 2 + kRuns * 2], j % 2 == 0 ? 0x5410 : 0x7632);
            }
          }
          *reinterpret_cast<uint4*>(sX + ((span * kRuns + r) * m + token) * 64 + i % 4 * 16) = {
              pairs[0], pairs[1], pairs[2], pairs[3]};
        }
      }
    }
  }

  // Eight elements of a row of x.
  static __device__ __forceinline__ void eight(const Few& p, int token, int k, uint32_t* v) {
    *reinterpret_cast<uint4*>(v) =
        *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.x) + token * p.x_stride + k);
  }

  // Pairs 4 kRun to 4 kRun + 3 of a word: codes of columns i and i + kPer / 2.
  template <int kRun>
  static __device__ __forceinline__ void decode_word(uint32_t w, uint32_t (&f)[4]) {
    constexpr float kZero = kKind == Kind::ternary ? 1.0f : static_cast<float>(kind_row(kKind).mid);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = kRun * 4 + j;
      if constexpr (kBits == 1) {
        f[j] = ((w << (15 - i)) & 0x80008000u) ^ (kHalf ? 0xBC00BC00u : 0xBF80BF80u);
      } else {
        // So many codes, one above the other, fit into the fraction of 1024 or 128.
        constexpr int kFit = kBits == 4 ? (kHalf ? 2 : 1) : (kHalf ? 4 : 3);
        const int up = i % kFit * kBits;
        const uint32_t mask = ((1u << kBits) - 1) << up;
        const uint32_t one = kHalf ? 0x64006400u : 0x43004300u;
        const uint32_t v = ((w >> (i - i % kFit) * kBits) & (mask * 0x10001u)) | one;
        const float factor = 1.0f / static_cast<float>(1 << up);
        const float less = -((kHalf ? 1024.0f : 128.0f) * factor + kZero);
        const uint32_t times = kHalf ? f32_to_half(factor) : f32_to_bf16(factor);
        const uint32_t minus = kHalf ? f32_to_half(less) : f32_to_bf16(less);
        f[j] = fma_pair<kHalf>(v, times * 0x10001u, minus * 0x10001u);
      }
    }
  }
  // Four codes of eight bits.
  static __device__ __forceinline__ void decode_bytes(uint32_t w, uint32_t& low, uint32_t& high) {
    if constexpr (kKind == Kind::int8) {
      const uint32_t u = w ^ 0x80808080u;
      if constexpr (kHalf) {
        low = subtract_f16(permute(u, 0x64646464u, 0x4140), 0x64806480u);
        high = subtract_f16(permute(u, 0x64646464u, 0x4342), 0x64806480u);
      } else {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          v[i] = __uint_as_float(permute(u, 0x4B000000u, 0x7540 + i)) - 8388736.0f;
        }
        low = pack_pair(DType::bf16, v[0], v[1]);
        high = pack_pair(DType::bf16, v[2], v[3]);
      }
    } else {
      constexpr bool kWide = kKind == Kind::fp8_e5m2;
      low = fp8_pair<kWide>(w & 0xFFFF);
      high = fp8_pair<kWide>(w >> 16);
      if constexpr (!kHalf) low = f16_as_bf16(low), high = f16_as_bf16(high);
    }
  }

  template <int kBlock>
  __device__ __forceinline__ void fragments(uint32_t (&a)[2][4]) const {
    const int quad = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // the upper and the lower row
      const int row = quad + i * 8;
      if constexpr (kBits == 8) {
        const uint2 w =
            *reinterpret_cast<const uint2*>(at + place(row, kBlock * 2 + q / 2) + q % 2 * 8);
        decode_bytes(w.x, a[0][i], a[0][2 + i]);
        decode_bytes(w.y, a[1][i], a[1][2 + i]);
      } else {
        constexpr int kRuns = kPer / 8;
        const uint32_t w =
            *reinterpret_cast<const uint32_t*>(at + place(row, kBlock / kRuns) + q * 4);
        uint32_t f[4];
        decode_word<kBlock % kRuns>(w, f);
        a[0][i] = f[0], a[0][2 + i] = f[1], a[1][i] = f[2], a[1][2 + i] = f[3];
      }
    }
  }
  __device__ __forceinline__ void scales(const Few& p, int strip, int step, int part,
                                         float (&s)[2]) const {
    const int g = group_of(p, step);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane / 4 + i * 8;
      const uint8_t* const own = at + kCodes + row * kWords * 4;
      if (p.scales == nullptr) {
        s[i] = 1.0f;
      } else if (p.scale_dtype == DType::f32) {
        s[i] = reinterpret_cast<const float*>(own)[part];
      } else {
        const int odd = (((strip * 16 + row) >> p.row_shift) * p.groups + g) & 1;
        s[i] = load_float(own, p.scale_dtype, odd + part);
      }
    }
  }
};

// The part of FewW that rows of codes fill: which steps, scales and groups.
static inline Few few_rows(const LinearArgs& args, const Matrix& x, int step_k) {
  const Weight& w = args.w;
  const Format& f = w.format;
  const bool grouped = f.group_k < w.k;
  const uint8_t* const scales = w.data + scale_at(w.layout, f, {w.n, w.k}, 0, 0);
  Few p = {};
  p.x = x.data;
  p.x_stride = x.row_bytes / 2;
  p.w = w.data;
  p.w_stride = code_row_bytes(f.kind, w.k);
  p.k = static_cast<int32_t>(w.k);
  p.steps = static_cast<int32_t>(ceil_div(w.k, step_k));
  p.strips = static_cast<int32_t>(ceil_div(w.n, 16));
  p.groups = static_cast<int32_t>(scale_cols(f, w.k));
  while (step_k << p.group_shift < f.group_k && p.group_shift < 20) ++p.group_shift;
  while (1 << p.row_shift < f.group_n && p.row_shift < 20) ++p.row_shift;
  p.scale_dtype = f.scale_dtype;
  p.scales = grouped ? scales : nullptr;
  p.finish = finish_of(args, grouped ? nullptr : scales);
  return p;
}

// Codes of kKind in rows, with scales of groups or not, for x in 16 bits.
template <Kind kKind, FewX kX>
static Status run_few_codes(const LinearArgs& args, const Matrix& x, const Ctx& ctx) {
  constexpr int kStepK = FewRows<kKind, kX, 0>::kStepK;
  const Few p = few_rows(args, x, kStepK);
  const int64_t group = args.w.format.group_k;
  if (group >= args.w.k) return run_few<FewRows<kKind, kX, 0>>(p, ctx);
  if (group >= kStepK) return run_few<FewRows<kKind, kX, 1>>(p, ctx);
  if (group == kStepK / 2) return run_few<FewRows<kKind, kX, 2>>(p, ctx);
  return run_few<FewRows<kKind, kX, 4>>(p, ctx);
}
// Whether it takes the groups of a weight: powers of two from a quarter of a
// step on.
static inline bool few_takes(const Format& f, int64_t k, int step_k) {
  if (f.group_k >= k) return true;
  if (f.group_n != 1) return false;
  return (f.group_k & (f.group_k - 1)) == 0 && f.group_k * 4 >= step_k;
}

}  // namespace
}  // namespace lowbit
