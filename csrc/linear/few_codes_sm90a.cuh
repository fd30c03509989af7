// Codes of weights for few_sm90a.cuh: a step of a warp is 16 rows of w by kStepK columns; where its
// bytes and scales come from, what a lane decodes from them, and in which order x lies beside them.
// The order of columns inside a step is free, as long as both sides agree.
//
// Static members of each: copy() asks for a step, fill() lays x out, fragments() gives the next 32
// columns (64 of bytes) as two products take them, scales() those of a part of the step.
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

// Elements k and k + 1 of a row of x in 16 bits; zeros beyond the last one. k is even.
template <FewFrom kFrom>
__device__ __forceinline__ uint32_t x_pair(const Few& p, int token, int k) {
  constexpr bool kSame = kFrom == FewFrom::same;
  using Element = std::conditional_t<kSame, uint16_t, uint8_t>;
  const Element* const at = static_cast<const Element*>(p.x) + token * p.x_stride + k;
  uint32_t two = 0;
  if (k + 1 < p.k) {
    two = kSame ? *reinterpret_cast<const uint32_t*>(at) : *reinterpret_cast<const uint16_t*>(at);
  } else if (k < p.k) {
    two = at[0];
  }
  return kSame ? two : fp8_pair<kFrom == FewFrom::e5m2>(two);
}

// Elements k, k + 8, k + 1, k + 9 of a row of bytes.
__device__ __forceinline__ uint32_t x_bytes(const Few& p, int token, int k) {
  const uint8_t* const row = static_cast<const uint8_t*>(p.x) + token * p.x_stride + k;
  uint32_t two[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (k + h * 8 + 1 < p.k) {
      two[h] = *reinterpret_cast<const uint16_t*>(row + h * 8);
    } else if (k + h * 8 < p.k) {
      two[h] = row[h * 8];
    }
  }
  return permute(two[0], two[1], 0x5140);
}

inline constexpr int kFillRows = 4;  // of x that a thread asks for at a time

// int4 in frag64.
template <FewX kX_, int kParts_, FewFrom kFrom = FewFrom::same>
struct FewFrag {
  static constexpr FewX kX = kX_;
  static constexpr int kParts = kParts_, kStepK = 128, kCodes = 1024;
  static constexpr int kScales = (kParts > 0 ? kParts : 1) * 64;
  static constexpr bool kHalf = kX == FewX::f16, kBytes = kX == FewX::s8;
  static constexpr int kBlocks = kBytes ? 2 : 4;
  // What sums of the upper and lower rows are multiplied by.
  static constexpr float kUpper = kBytes ? 1.0f / 16 : 1.0f;
  static constexpr float kLower = kBytes ? 1.0f / 16 : kLowerRows<kHalf>;

  const uint8_t* const at;
  const int lane;
  uint4 words[2];

  __device__ __forceinline__ FewFrag(const uint8_t* stage, int l) : at(stage), lane(l) {
    words[0] = *reinterpret_cast<const uint4*>(stage + l * 16);
    words[1] = *reinterpret_cast<const uint4*>(stage + 512 + l * 16);
  }

  static __device__ __forceinline__ void copy(const Few& p, int strip, int step, uint32_t to,
                                              int lane) {
    const uint8_t* const unit = p.w + strip / 4 * p.w_stride + int64_t{step} * p.step_bytes;
    const uint8_t* const from = unit + strip % 4 * 512 + lane * 16;
    cp_async_16(to + lane * 16, from, 16);
    cp_async_16(to + 512 + lane * 16, from + 2048, 16);
    if constexpr (kParts > 0) {
      if (p.groups == 0) return;
      // 16 scales are so many times 16 bytes: 2, or 4.
      const int shift = p.scale_dtype == DType::f32 ? 2 : 1, size = 1 << shift;
      const int part = lane >> shift, piece = (lane & (size - 1)) * 16;
      if (part < kParts) {
        cp_async_16(to + kCodes + part * 64 + piece,
                    unit + kFragCodes + (part * 64 + strip % 4 * 16) * size + piece, 16);
      }
    }
  }

  static __device__ __forceinline__ void fill(const Few& p, int from, int to, uint8_t* sX) {
    const int m = p.finish.m, columns = kBytes ? 64 : 32, items = (to - from) / columns * 4;
    for (int i = threadIdx.x; i < items; i += kFewThreads) {
      const int q = i % 4, k = from + i / 4 * columns + q * 2;
      uint8_t* const own = sX + i / 4 * m * 64 + q * 16;
      for (int first = 0; first < m; first += kFillRows) {
        uint32_t v[kFillRows][4];
#pragma unroll
        for (int t = 0; t < kFillRows; ++t) {
          const int token = min(first + t, m - 1);  // what is asked for in vain is in L1
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if constexpr (kBytes) {
              v[t][j] = x_bytes(p, token, k + j * 16);
            } else {
              v[t][j] = x_pair<kFrom>(p, token, k + j * 8);
            }
          }
        }
#pragma unroll
        for (int t = 0; t < kFillRows; ++t) {
          if (first + t >= m) break;
          *reinterpret_cast<uint4*>(own + (first + t) * 64) = {v[t][0], v[t][1], v[t][2], v[t][3]};
        }
      }
    }
  }

  template <int kBlock>
  __device__ __forceinline__ void fragments(uint32_t (&a)[2][4]) const {
    const uint4& half = words[kBlock * 2 / kBlocks];
    if constexpr (kBytes) {
      // Codes less 8 as the high bits of bytes: 16 times their value.
      const uint32_t w[4] = {half.x, half.y, half.z, half.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        a[j / 2][j % 2 * 2] = ((w[j] << 4) & 0xF0F0F0F0u) ^ 0x80808080u;
        a[j / 2][j % 2 * 2 + 1] = (w[j] & 0xF0F0F0F0u) ^ 0x80808080u;
      }
    } else {
      const uint32_t upper = minus_of<kHalf>(8, false), lower = minus_of<kHalf>(8, true);
      decode_step<kHalf>(kBlock % 2 == 0 ? half.x : half.z, upper, lower, a[0]);
      decode_step<kHalf>(kBlock % 2 == 0 ? half.y : half.w, upper, lower, a[1]);
    }
  }
  __device__ __forceinline__ void scales(const Few& p, int, int, int part, float (&s)[2]) const {
    s[0] = kUpper, s[1] = kLower;
    if (p.groups == 0) return;
    const uint8_t* const from = at + kCodes + part * 64;
    s[0] = load_float(from, p.scale_dtype, lane / 4) * kUpper;
    s[1] = load_float(from, p.scale_dtype, lane / 4 + 8) * kLower;
  }
};

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
  static constexpr float kUpper = 1.0f, kLower = 1.0f;
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

  // A lane's run of kPer columns, in as many times 16 bytes as it takes.
  static __device__ __forceinline__ void fill(const Few& p, int from, int to, uint8_t* sX) {
    constexpr int kRuns = kPer / 8, kTogether = kRuns > kFillRows ? 1 : kFillRows / kRuns;
    const int m = p.finish.m, columns = kPer * 4, items = (to - from) / columns * 4;
    for (int i = threadIdx.x; i < items; i += kFewThreads) {
      const int q = i % 4, span = i / 4, k = from + span * columns + q * kPer;
      for (int first = 0; first < m; first += kTogether) {
        uint32_t v[kTogether][kRuns * 4] = {};
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
          const int token = min(first + t, m - 1);  // what is asked for in vain is in L1
#pragma unroll
          for (int r = 0; r < kRuns; ++r) {
            if (k + r * 8 < p.k) eight(p, token, k + r * 8, v[t] + r * 4);
          }
        }
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
          if (first + t >= m) break;
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
            *reinterpret_cast<uint4*>(sX + ((span * kRuns + r) * m + first + t) * 64 + q * 16) = {
                pairs[0], pairs[1], pairs[2], pairs[3]};
          }
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
  p.x_stride = x.row_bytes / dtype_bytes(args.x.dtype);
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

// Scales of 128 columns of x, where it has them, move out of the finish.
static inline bool take_x_blocks(const LinearArgs& args, Few* p) {
  if (args.x_scale.rank != 2) return false;
  p->x_blocks = p->finish.x_scale;
  p->x_blocks_stride = args.x_scale.strides[0];
  p->finish.x_scale = nullptr;
  return true;
}

// int4 in frag64.
static inline Few few_frag(const LinearArgs& args, const Matrix& x) {
  const Weight& w = args.w;
  const FragUnit unit = frag_unit(w.format, {w.n, w.k});
  Few p = {};
  p.x = x.data;
  p.x_stride = x.row_bytes / dtype_bytes(args.x.dtype);
  p.w = w.data;
  p.w_stride = unit.units * unit.bytes;
  p.k = static_cast<int32_t>(w.k);
  p.steps = static_cast<int32_t>(unit.units);
  p.strips = static_cast<int32_t>(ceil_div(w.n, 16));
  p.step_bytes = static_cast<int32_t>(unit.bytes);
  p.groups = static_cast<int32_t>(unit.groups);
  p.scale_dtype = w.format.scale_dtype;
  p.finish = finish_of(args, unit.groups > 0 ? nullptr : w.data + unit.end);
  return p;
}

template <FewX kX, FewFrom kFrom = FewFrom::same>
static Status run_few_frag(const LinearArgs& args, const Matrix& x, const Ctx& ctx) {
  Few p = few_frag(args, x);
  const int size = static_cast<int>(dtype_bytes(args.x.dtype));
  if constexpr (kFrom != FewFrom::same) {
    if (take_x_blocks(args, &p)) {
      switch (p.groups) {
        case 2: return run_few<FewFrag<kX, 2, kFrom>, true>(p, size, ctx);
        case 4: return run_few<FewFrag<kX, 4, kFrom>, true>(p, size, ctx);
        default: return run_few<FewFrag<kX, 1, kFrom>, true>(p, size, ctx);
      }
    }
  }
  switch (p.groups) {
    case 0: return run_few<FewFrag<kX, 0, kFrom>>(p, size, ctx);
    case 1: return run_few<FewFrag<kX, 1, kFrom>>(p, size, ctx);
    case 2: return run_few<FewFrag<kX, 2, kFrom>>(p, size, ctx);
    default: return run_few<FewFrag<kX, 4, kFrom>>(p, size, ctx);
  }
}

// Codes of kKind in rows, with scales of groups or not, for x in 16 bits.
template <Kind kKind, FewX kX>
static Status run_few_codes(const LinearArgs& args, const Matrix& x, const Ctx& ctx) {
  constexpr int kStepK = FewRows<kKind, kX, 0>::kStepK;
  const Few p = few_rows(args, x, kStepK);
  const int64_t group = args.w.format.group_k;
  if (group >= args.w.k) return run_few<FewRows<kKind, kX, 0>>(p, 2, ctx);
  if (group >= kStepK) return run_few<FewRows<kKind, kX, 1>>(p, 2, ctx);
  if (group == kStepK / 2) return run_few<FewRows<kKind, kX, 2>>(p, 2, ctx);
  return run_few<FewRows<kKind, kX, 4>>(p, 2, ctx);
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
