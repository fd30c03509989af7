// linear_fp8_sm90a: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; fp8 weights, x as fp8
// codes, e4m3 or e5m2 each; scales of rows, of the matrix, or of blocks of 128.
//
// Shapes    K a multiple of 16; any M and N. x of floats is quantised on the way (linear_run).
// Layout    rows: w as it is saved, with a scale a row, one for all, or one for 128 rows by 128
//           columns; x with a scale a row or one for 128 columns.
// Bound     M up to about 150: memory, 1 byte a weight. Beyond: 4096 products a cycle and
//           multiprocessor.
// Method    promote_sm90a.cuh; with e5m2 stream_sm90a.cuh for M <= 64. The tensor cores keep 14
// bits
//           of a sum of fp8 products, so every 128 of K it moves to f32 registers, times the scales
//           of blocks.
// Source    NVIDIA, PTX ISA: wgmma; DeepSeek-AI, DeepSeek-V3, 2024, section 3.3 (promotion).
// Measured  NOTES.md.
#include "csrc/linear/dense_sm90a.cuh"
#include "csrc/linear/promote_few_sm90a.cuh"
#include "csrc/linear/promote_sm90a.cuh"
#include "csrc/quantize/rows.h"

namespace lowbit {
namespace {

struct Call {
  Matrix x, w;
  Finish finish;
  Blocks blocks;
  bool promoted;
  int processors;
  cudaStream_t stream;
};

template <class Mma, int kTokens>
static cudaError_t few(const Call& c) {
  return launch_tiles<Stream<Mma, kTokens, true>>(c.x, c.w, c.finish, c.processors, c.stream,
                                                  c.blocks);
}
template <class P>
static cudaError_t many(const Call& c, int split = 1) {
  return launch_promote<P>(c.x, c.w, c.finish, c.processors, c.stream, c.blocks, split);
}

// Up to 64 rows of x: tiles as wide as whole rounds of them suit, each with what it costs besides.
template <class Mma, bool kScaled>
static cudaError_t few_rows(const Call& c) {
  const auto cost = [&](int cols) {
    return ceil_div(ceil_div(c.finish.n, cols), c.processors) * (cols + 8);
  };
  int best = 112;
  for (const int cols : {64, 32}) {
    if (cost(cols) < cost(best)) best = cols;
  }
  const auto launch = [&](auto width) {
    using P = PromoteFew<Mma, decltype(width)::value, kScaled>;
    return launch_promote_few<P>(c.x, c.w, c.finish, c.processors, c.stream, c.blocks);
  };
  switch (best) {
    case 32: return launch(std::integral_constant<int, 32>{});
    case 64: return launch(std::integral_constant<int, 64>{});
    default: return launch(std::integral_constant<int, 112>{});
  }
}

// Tiles of 128 rows of x by 64 to 256 rows of w, and two blocks for a tile where those are few.
// Costs are times measured on an H200 (NOTES.md), in units of a hundredth of 64 columns' time for a
// stage.
template <class Mma, bool kScaled>
static cudaError_t tiles(const Call& c) {
  using Cut = Promote<Mma, 1, 64, 2, true, kScaled>;
  using Narrow = Promote<Mma, 1, 64, 2, false, kScaled>;
  using Middle = Promote<Mma, 1, 128, 2, false, kScaled>;
  // Scales leave no registers for a second part of 192 columns.
  using Wide = std::conditional_t<kScaled, Promote<Mma, 1, 192, 1, false, true>,
                                  Promote<Mma, 2, 96, 2, false, false>>;
  const int64_t stages = ceil_div(c.x.columns, 128);
  const auto cost = [&](int cols, int64_t each) {
    const int64_t count = ceil_div(c.finish.m, 128) * ceil_div(c.finish.n, cols);
    return ceil_div(count, c.processors) * each * stages;
  };
  const int64_t narrow = cost(64, 100), middle = cost(128, 129);
  const int64_t pairs = ceil_div(c.finish.m, 128) * ceil_div(c.finish.n, 64) * 2;
  const bool cut = pairs <= c.processors && 50 * stages + 1100 < narrow;
  if (c.finish.m <= 64 && stages <= 256 && (!cut || stages <= 64)) {
    return few_rows<Mma, kScaled>(c);
  }
  if (cut) return many<Cut>(c, 2);
  if constexpr (!kScaled) {
    const int64_t wide = cost(192, 175), widest = cost(256, 236);
    if (!c.promoted && wide <= widest && wide < middle && wide < narrow) {
      return many<Promote<Mma, 1, 192, 0, false, false>>(c);
    }
    if (!c.promoted && widest <= wide && widest < middle && widest < narrow) {
      return many<Promote<Mma, 1, 256, 0, false, false>>(c);
    }
  }
  const int64_t wide = cost(192, kScaled ? 174 : 187);
  if constexpr (kScaled) {
    const int64_t widest = cost(256, 236);
    if (widest < narrow && widest < middle && widest < wide) {
      return many<Promote<Mma, 2, 128, 1, false, true>>(c);
    }
  }
  if (narrow <= middle && narrow <= wide) return many<Narrow>(c);
  return middle <= wide ? many<Middle>(c) : many<Wide>(c);
}

// XW multiplies x by w, WX w by x: what streams w past has it on the left. kTiles: tiles of every
// width for every M, which e4m3 on both sides has.
template <class XW, class WX, bool kTiles>
static cudaError_t launch_fp8(const Call& c) {
  if constexpr (!kTiles) {
    return c.finish.m <= 64 ? few<WX, 64>(c) : many<Promote<XW, 1, 128, 2, false, true>>(c);
  } else {
    const bool scaled = c.blocks.x != nullptr || c.blocks.w != nullptr;
    return scaled ? tiles<XW, true>(c) : tiles<XW, false>(c);
  }
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  const Weight& w = args.w;
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  const uint8_t* scales = w.data + scale_at(w.layout, w.format, {w.n, w.k}, 0, 0);
  Call c = {x,
            {w.data, w.n, w.k, code_row_bytes(w.format.kind, w.k)},
            finish_of(args, scales),
            {},
            args.compute != Compute::fp8_unpromoted,
            ctx.multiprocessors,
            static_cast<cudaStream_t>(ctx.stream)};
  c.blocks.k_blocks = static_cast<int32_t>(ceil_div(w.k, kScaleBlock));
  if (w.format.group_k == kScaleBlock && w.format.group_n == kScaleBlock) {
    c.blocks.w = scales;
    c.blocks.w_dtype = w.format.scale_dtype;
    c.finish.w_scale = nullptr;
  }
  if (args.x_scale.rank == 2) {
    c.blocks.x = c.finish.x_scale;
    c.blocks.x_stride = args.x_scale.strides[0];
    c.finish.x_scale = nullptr;
  }
  const bool x_wide = args.x.dtype == DType::e5m2, w_wide = w.format.kind == Kind::fp8_e5m2;
  if (x_wide && w_wide) return launched(launch_fp8<MmaE5m2, MmaE5m2, false>(c));
  if (x_wide) return launched(launch_fp8<MmaE5m2E4m3, MmaE4m3E5m2, false>(c));
  if (w_wide) return launched(launch_fp8<MmaE4m3E5m2, MmaE5m2E4m3, false>(c));
  return launched(launch_fp8<MmaE4m3, MmaE4m3, true>(c));
}

}  // namespace

extern const LinearKernel linear_fp8_sm90a;
const LinearKernel linear_fp8_sm90a = {
    "linear_fp8_sm90a",
    kArchSm90a,
    {.kinds = bit(Kind::fp8_e4m3) | bit(Kind::fp8_e5m2),
     .layouts = bit(Layout::rows),
     .x = kFloats | bit(DType::e4m3) | bit(DType::e5m2),
     .computes = bit(Compute::fp8) | bit(Compute::fp8_unpromoted),
     .zeros = false,
     .m_max = 0,
     .n_multiple = 1,
     .k_multiple = 16,
     .group_multiple = 1,
     .one_scale = true,
     .codes_only = true,
     .block_scales = true,
     .fp8_sums = true},
    x_workspace,
    run,
};

}  // namespace lowbit
