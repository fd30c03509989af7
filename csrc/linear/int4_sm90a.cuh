// What the rows of int4 weights on Hopper share: which tile serves a call.
#pragma once

#include "csrc/linear/dense_sm90a.cuh"
#include "csrc/linear/few_int4_sm80.cuh"
#include "csrc/linear/stream_int4_sm90a.cuh"

namespace lowbit {
namespace {

template <class Mma>
static cudaError_t launch_tokens(const Matrix& x, const uint8_t* w, const Int4Shape& shape,
                                 const Finish& f, int processors, cudaStream_t stream) {
  if (shape.groups > 1) {  // sums of 32 columns
    return f.m <= 16 ? launch_int4<StreamInt4<Mma, 16, 32>>(x, w, shape, f, processors, stream)
                     : launch_int4<StreamInt4<Mma, 64, 32>>(x, w, shape, f, processors, stream);
  }
  if (f.m <= 16) return launch_int4<StreamInt4<Mma, 16, 128>>(x, w, shape, f, processors, stream);
  if (f.m <= 32) return launch_int4<StreamInt4<Mma, 32, 128>>(x, w, shape, f, processors, stream);
  if (f.m <= 64) return launch_int4<StreamInt4<Mma, 64, 128>>(x, w, shape, f, processors, stream);
  return launch_int4<StreamInt4<Mma, 128, 128>>(x, w, shape, f, processors, stream);
}

template <class Mma>
static Status run_int4(const LinearArgs& args, const Ctx& ctx) {
  const Weight& w = args.w;
  const FragUnit unit = frag_unit(w.format, {w.n, w.k});
  if (better_few(args.x.shape[0], w.n, ctx.multiprocessors)) {
    return run_few_int4<std::is_same_v<Mma, MmaF16>>(args, ctx);
  }
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  const Int4Shape shape = {static_cast<int32_t>(unit.units), static_cast<int32_t>(unit.bytes),
                           static_cast<int32_t>(ceil_div(w.n, kFragRows)),
                           static_cast<int32_t>(unit.groups), w.format.scale_dtype};
  const Finish f = finish_of(args, unit.groups > 0 ? nullptr : w.data + unit.end);
  return launched(launch_tokens<Mma>(x, w.data, shape, f, ctx.multiprocessors,
                                     static_cast<cudaStream_t>(ctx.stream)));
}

static constexpr LinearSpec int4_spec(DType x) {
  return {bit(Kind::int4), bit(Layout::frag64), bit(x), bit(Compute::floating), false, 0, 1, 1, 1};
}

}  // namespace
}  // namespace lowbit
