// What the rows of int4 weights on Hopper share: which tile serves a call.
#pragma once

#include "csrc/linear/dense_sm90a.cuh"
#include "csrc/linear/few_int4_sm80.cuh"
#include "csrc/linear/one_unit_sm90a.cuh"
#include "csrc/linear/stream_int4_sm90a.cuh"
#include "csrc/linear/tile_int4_sm90a.cuh"
#include "csrc/linear/units_sm90a.cuh"

namespace lowbit {
namespace {

template <class Mma>
static cudaError_t launch_tokens(const Matrix& x, const uint8_t* w, const Int4Shape& shape,
                                 const Finish& f, int processors, cudaStream_t stream) {
  if (shape.groups > 1) {  // sums of 32 columns
    if (f.m <= 16) return launch_int4<StreamInt4<Mma, 16, 32>>(x, w, shape, f, processors, stream);
    return launch_int4<StreamInt4<Mma, 32, 32>>(x, w, shape, f, processors, stream);
  }
  if (f.m <= 16) return launch_int4<StreamInt4<Mma, 16, 128>>(x, w, shape, f, processors, stream);
  if (f.m <= 32) return launch_int4<StreamInt4<Mma, 32, 128>>(x, w, shape, f, processors, stream);
  if (f.m <= 64) return launch_int4<StreamInt4<Mma, 64, 128>>(x, w, shape, f, processors, stream);
  return launch_int4<StreamInt4<Mma, 128, 128>>(x, w, shape, f, processors, stream);
}

template <class Mma, int kGroup>
static cudaError_t launch_planned(const Matrix& x, const uint8_t* w, const TileShape& shape,
                                  const Finish& f, int processors, cudaStream_t stream) {
  const TilePlan plan = tile_plan(f.m, shape.panels, shape.units, processors);
  const auto with = [&](auto tokens) {
    return launch_int4_tile<TileInt4<Mma, decltype(tokens)::value, kGroup>>(
        x, w, shape, f, plan.split, processors, stream);
  };
  switch (plan.tokens) {
    case 64: return with(std::integral_constant<int, 64>{});
    case 128: return with(std::integral_constant<int, 128>{});
    default: return with(std::integral_constant<int, 256>{});
  }
}

template <class Mma>
static cudaError_t launch_int4_tiles(const Matrix& x, const uint8_t* w, const TileShape& shape,
                                     const Finish& f, int64_t groups, int processors,
                                     cudaStream_t stream) {
  switch (groups) {
    case 0: return launch_planned<Mma, 0>(x, w, shape, f, processors, stream);
    case 1: return launch_planned<Mma, 128>(x, w, shape, f, processors, stream);
    case 2: return launch_planned<Mma, 64>(x, w, shape, f, processors, stream);
    default: return launch_planned<Mma, 32>(x, w, shape, f, processors, stream);
  }
}

// With units of few panels the blocks' start and end take longer than what they gain between.
template <class Mma>
static Status run_int4(const LinearArgs& args, const Ctx& ctx) {
  const Weight& w = args.w;
  const FragUnit unit = frag_unit(w.format, {w.n, w.k});
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  const int64_t m = args.x.shape[0];
  if constexpr (std::is_same_v<Mma, MmaS8>) {
    if (Status status = ok(); run_few_unit<8>(args, x, ctx, &status)) return status;
    if (m <= kUnitTokens && w.k <= kUnitColumns) {
      return run_unit_call<UnitX::s8, kUnitTokens>(args, x, ctx);
    }
  } else {
    constexpr bool kHalf = std::is_same_v<Mma, MmaF16>;
    constexpr UnitX kX = kHalf ? UnitX::f16 : UnitX::bf16;
    if (Status status = ok(); m == 1 && run_one_unit<kHalf>(args, x, ctx, &status)) return status;
    if (m <= 8 && ceil_div(w.n, kFragRows) > 2 * ctx.multiprocessors && w.k <= kUnitColumns) {
      return run_unit_call<kX, 8>(args, x, ctx);
    }
    if (better_few(m, w.n, ctx.multiprocessors)) return run_few_int4<kHalf>(args, ctx);
  }
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const Finish f = finish_of(args, unit.groups > 0 ? nullptr : w.data + unit.end);
  if constexpr (!std::is_same_v<Mma, MmaS8>) {
    // Few rows stream w past; where from the tiles are better was measured (NOTES.md).
    const bool few = m <= (unit.groups == 0 || unit.groups == 2 ? 32 : 64);
    if (!few && w.k > 0) {
      const TileShape shape = {static_cast<int32_t>(unit.units), static_cast<int32_t>(unit.bytes),
                               static_cast<int32_t>(ceil_div(w.n, kFragRows)),
                               w.format.scale_dtype};
      return launched(
          launch_int4_tiles<Mma>(x, w.data, shape, f, unit.groups, ctx.multiprocessors, stream));
    }
  }
  const Int4Shape shape = {static_cast<int32_t>(unit.units), static_cast<int32_t>(unit.bytes),
                           static_cast<int32_t>(ceil_div(w.n, kFragRows)),
                           static_cast<int32_t>(unit.groups), w.format.scale_dtype};
  return launched(launch_tokens<Mma>(x, w.data, shape, f, ctx.multiprocessors, stream));
}

static constexpr LinearSpec int4_spec(DType x) {
  return {bit(Kind::int4), bit(Layout::frag64), bit(x), bit(Compute::floating), false, 0, 1, 1, 1};
}

}  // namespace
}  // namespace lowbit
