// Few rows of x against int4 weights in frag64, by mma.sync: w goes from device memory straight
// into the registers of the warp that multiplies it.
//
// A block serves kRows rows of w and kTokens rows of x; its warps share K, each with a slice of
// whole units of 128. A lane's 16 bytes of frag64 are its fragments of four steps of 16, so a warp
// reads 512 bytes in a row and nothing is exchanged before the end. Each warp keeps kAhead units in
// flight; what hides the latency of memory is that and the other warps, not a ring in shared memory
// with its barriers, whose start and end cost a small matrix more than its bytes do. Products of a
// group of K are added in the tensor core, their sum enters the total times its scale; at the end
// the warps' parts are added in their order. How K is cut depends on K alone.
#pragma once

#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/mma.cuh"
#include "csrc/format/layout.h"
#include "csrc/linear/decode_int4.cuh"
#include "csrc/linear/finish.cuh"
#include "csrc/linear/x_rows_sm80.cuh"

namespace lowbit {
namespace {

struct FewInt4 {
  const uint16_t* x;  // rows begin at multiples of 4 bytes
  int64_t x_stride;
  const uint8_t* w;
  int64_t panel_bytes;  // of 64 rows of w
  int32_t k, units;     // along K
  int32_t unit_bytes;
  DType scale_dtype;  // of the scales in a unit
  Finish finish;
};

template <bool kHalf_, int kRows_, int kTokens_, int kWarps_, int kGroups_>
struct FewShape {
  static constexpr bool kHalf = kHalf_;
  static constexpr int kRows = kRows_, kTokens = kTokens_, kWarps = kWarps_;
  static constexpr int kGroups = kGroups_;  // of K in a unit; 0: none inside
  static constexpr int kStrips = kRows / 16, kColumns = kTokens / 8;
  static constexpr int kAhead = kStrips >= 2 ? 2 : 4;  // units in flight
  static constexpr int kStride = kRows + 4;            // of a part; keeps its writes off one bank
  static constexpr int kShared = kWarps * kTokens * kStride * 4;
};

template <class S>
__global__ void __launch_bounds__(S::kWarps * 32)
    few_int4_kernel(const __grid_constant__ FewInt4 p) {
  extern __shared__ __align__(16) float parts[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane / 4, q = lane % 4;
  const int row = blockIdx.x * S::kRows, first = blockIdx.y * S::kTokens;
  const int begin = p.units * warp / S::kWarps, end = p.units * (warp + 1) / S::kWarps;
  constexpr int kScales = S::kGroups > 0 ? S::kGroups : 1;

  uint4 codes[S::kAhead][S::kStrips][2];
  uint32_t scales[S::kAhead][S::kStrips][kScales][2];  // bits: nothing waits for them here
  const uint8_t* const panel = p.w + row / 64 * p.panel_bytes;
  const int strip = row % 64 / 16;
  const auto fetch = [&](int unit, auto slot) {
    constexpr int kSlot = decltype(slot)::value;
    const uint8_t* const at = panel + int64_t{unit} * p.unit_bytes;
#pragma unroll
    for (int s = 0; s < S::kStrips; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        codes[kSlot][s][half] = __ldcs(
            reinterpret_cast<const uint4*>(at + half * 2048 + (strip + s) * 512 + lane * 16));
      }
#pragma unroll
      for (int g = 0; g < S::kGroups; ++g) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int index = g * 64 + (strip + s) * 16 + quad + i * 8;
          scales[kSlot][s][g][i] = p.scale_dtype == DType::f32
                                       ? reinterpret_cast<const uint32_t*>(at + kFragCodes)[index]
                                       : reinterpret_cast<const uint16_t*>(at + kFragCodes)[index];
        }
      }
    }
  };

  float total[S::kStrips][S::kColumns][4] = {};
  float part[S::kStrips][S::kColumns][4] = {};
  // A lane's rows of x, from its own first element of K. Beyond the last one it reads that again:
  // nobody looks at those columns.
  const uint16_t* rows[S::kColumns];
#pragma unroll
  for (int c = 0; c < S::kColumns; ++c) {
    const int token = min(first + c * 8 + quad, p.finish.m - 1);
    rows[c] = p.x + token * p.x_stride + q * 2;
  }
  uint32_t x[2][S::kColumns][4][2];  // by halves of a unit
  const auto fetch_x = [&](int unit, auto half) {
    constexpr int kHalf = decltype(half)::value;
    const int from = unit * 128 + kHalf * 64;
    if (from + 64 <= p.k) {
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          x[kHalf][c][i / 2][i % 2] =
              *reinterpret_cast<const uint32_t*>(rows[c] + from + i / 2 * 16 + i % 2 * 8);
        }
      }
    } else {  // zeros beyond K, where the codes are none
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int k = from + i / 2 * 16 + i % 2 * 8;
          uint32_t pair = k + q * 2 < p.k ? rows[c][k] : 0;
          if (k + q * 2 + 1 < p.k) pair |= uint32_t{rows[c][k + 1]} << 16;
          x[kHalf][c][i / 2][i % 2] = pair;
        }
      }
    }
  };
  const auto multiply = [&](auto half, auto slot) {
    constexpr int kSlot = decltype(slot)::value, kHalf = decltype(half)::value;
#pragma unroll
    for (int s = 0; s < S::kStrips; ++s) {
      uint32_t a[4][4];
      decode<S::kHalf>(codes[kSlot][s][kHalf], a);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < S::kColumns; ++c) {
          auto& d = S::kGroups > 0 ? part[s][c] : total[s][c];
          mma_16bit<S::kHalf>(d, a[j], x[kHalf][c][j][0], x[kHalf][c][j][1]);
        }
        if constexpr (S::kGroups > 0) {
          constexpr int kSteps = 8 / kScales;  // of 16 of K in a group
          const int done = kHalf * 4 + j + 1;
          if (done % kSteps != 0) continue;
          float scale[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            scale[i] = float_of(p.scale_dtype, scales[kSlot][s][done / kSteps - 1][i]);
          }
#pragma unroll
          for (int c = 0; c < S::kColumns; ++c) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              total[s][c][i] = fmaf(part[s][c][i], scale[i / 2], total[s][c][i]);
              part[s][c][i] = 0.0f;
            }
          }
        }
      }
    }
  };

  constexpr std::integral_constant<int, 0> kFirst{};
  constexpr std::integral_constant<int, 1> kSecond{};
  // Weights are nobody's output: they are asked for before the kernels ahead have ended.
  unrolled<S::kAhead>([&](auto slot) {
    if (begin + decltype(slot)::value < end) fetch(begin + decltype(slot)::value, slot);
  });
  wait_for_others();
  if (begin < end) fetch_x(begin, kFirst);
  for (int unit = begin; unit < end; unit += S::kAhead) {
    unrolled<S::kAhead>([&](auto slot) {
      const int mine = unit + decltype(slot)::value;
      if (mine >= end) return;
      fetch_x(mine, kSecond);
      multiply(kFirst, slot);
      if (mine + 1 < end) fetch_x(mine + 1, kFirst);
      multiply(kSecond, slot);
      if (mine + S::kAhead < end) fetch(mine + S::kAhead, slot);
    });
  }

  // The warps' parts, [warp][token][row], then eight rows of w for one of x a thread.
  float* const own = parts + warp * S::kTokens * S::kStride;
#pragma unroll
  for (int s = 0; s < S::kStrips; ++s) {
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float lower = i / 2 == 1 ? kLowerRows<S::kHalf> : 1.0f;
        own[(c * 8 + q * 2 + i % 2) * S::kStride + s * 16 + quad + i / 2 * 8] =
            total[s][c][i] * lower;
      }
    }
  }
  __syncthreads();
  const Finish& f = p.finish;
  for (int i = threadIdx.x; i < S::kTokens * (S::kRows / 8); i += S::kWarps * 32) {
    const int token = i / (S::kRows / 8), c = i % (S::kRows / 8) * 8;
    if (first + token >= f.m || row + c >= f.n) continue;
    float v[8] = {};
#pragma unroll
    for (int r = 0; r < S::kWarps; ++r) {
      const float* const from = parts + (r * S::kTokens + token) * S::kStride + c;
      const float4 low = *reinterpret_cast<const float4*>(from);
      const float4 high = *reinterpret_cast<const float4*>(from + 4);
      v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
      v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
    }
    scale_row(f, first + token, row + c, v);
    finish_row(f, first + token, row + c, v);
  }
}

template <class S>
static Status launch_few(const FewInt4& p, const Ctx& ctx) {
  static std::atomic<uint64_t> asked = 0;
  if (S::kShared > 48 * 1024) {
    LB_TRY(launched(allow_shared(few_int4_kernel<S>, S::kShared, asked)));
  }
  const Finish& f = p.finish;
  const dim3 grid(static_cast<unsigned>(ceil_div(f.n, S::kRows)),
                  static_cast<unsigned>(ceil_div(f.m, S::kTokens)));
  return launch(ctx, few_int4_kernel<S>, grid, S::kWarps * 32, S::kShared, p);
}

// Rows of w and warps of a block, by what was measured: few blocks want more warps to share K, many
// want fewer, which end sooner; the more rows of x, the more rows of w shall share them.
template <bool kHalf, int kTokens, int kGroups>
static Status launch_rows(const FewInt4& p, const Ctx& ctx) {
  const int64_t strips = ceil_div(p.finish.n, 32), places = ctx.multiprocessors;
  if constexpr (kTokens > 8) {
    if (strips > places) return launch_few<FewShape<kHalf, 64, kTokens, 8, kGroups>>(p, ctx);
  } else {
    if (strips >= 4 * places) return launch_few<FewShape<kHalf, 32, kTokens, 4, kGroups>>(p, ctx);
    if (strips > places) return launch_few<FewShape<kHalf, 32, kTokens, 8, kGroups>>(p, ctx);
  }
  return launch_few<FewShape<kHalf, 32, kTokens, 16, kGroups>>(p, ctx);
}

template <bool kHalf, int kGroups>
static Status launch_few_tokens(const FewInt4& p, const Ctx& ctx) {
  if (p.finish.m <= 8) return launch_rows<kHalf, 8, kGroups>(p, ctx);
  return launch_rows<kHalf, 16, kGroups>(p, ctx);
}

// Whether this is faster than tiles of 16 and more rows of x by wgmma.
static inline bool better_few(int64_t m, int64_t n, int multiprocessors) {
  return m <= 8 || (m <= 16 && ceil_div(n, 64) <= multiprocessors);
}

template <bool kHalf>
static Status run_few_int4(const LinearArgs& args, const Ctx& ctx) {
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  const Weight& w = args.w;
  const FragUnit unit = frag_unit(w.format, {w.n, w.k});
  FewInt4 p = {};
  p.x = static_cast<const uint16_t*>(x.data);
  p.x_stride = x.row_bytes / 2;
  p.w = w.data;
  p.panel_bytes = unit.units * unit.bytes;
  p.k = static_cast<int32_t>(w.k);
  p.units = static_cast<int32_t>(unit.units);
  p.unit_bytes = static_cast<int32_t>(unit.bytes);
  p.scale_dtype = w.format.scale_dtype;
  p.finish = finish_of(args, unit.groups > 0 ? nullptr : w.data + unit.end);
  switch (unit.groups) {
    case 0: return launch_few_tokens<kHalf, 0>(p, ctx);
    case 1: return launch_few_tokens<kHalf, 1>(p, ctx);
    case 2: return launch_few_tokens<kHalf, 2>(p, ctx);
    default: return launch_few_tokens<kHalf, 4>(p, ctx);
  }
}

static constexpr LinearSpec few_int4_spec(DType x) {
  return {bit(Kind::int4), bit(Layout::frag64), bit(x), bit(Compute::floating), false, 0, 1, 1, 1};
}

}  // namespace
}  // namespace lowbit
