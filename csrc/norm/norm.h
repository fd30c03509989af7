// norm: every row of x scaled to unit size, after an addition where a residual is given.
//
//   u = x + residual          (u = x where residual is absent)
//   rms     out = u / sqrt(mean(u^2) + eps) * weight               Zhang and Sennrich, 2019
//   layer   out = (u - mean(u)) / sqrt(mean((u - mean(u))^2) + eps) * weight + bias
//                                                                  Ba, Kiros and Hinton, 2016
//
//   x             [..., D]; f32, f16 or bf16
//   weight, bias  [D]; or absent (1 and 0). bias with layer only
//   residual      the shape of x; or absent
//   residual_out  with residual only: the shape of x, receives u; or absent. With it, out is the
//   norm of what
//                 residual_out holds after rounding, the same as an addition and a norm in turn
//   out           the shape of x
//
// Every tensor may be f32, f16 or bf16 apart from the others, with a contiguous last dimension and
// any other strides. out and residual_out may each be x or residual itself (the same view, elements
// as wide), and share no memory otherwise, nor with each other. Without rows or columns there is
// nothing to do. A NaN makes its row NaN. An inf makes its row NaN with layer; with rms the inf
// itself becomes NaN and the rest 0. A row of zeros with eps = 0 is 0 / 0.
#pragma once

#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"

namespace lowbit {

enum class NormKind : int32_t { rms, layer };

struct NormArgs {
  Tensor x, weight, bias, residual, out, residual_out;
  double eps;  // >= 0
  NormKind kind;
};
static constexpr const char* norm_op(NormKind kind) {
  return kind == NormKind::rms ? "rmsNorm" : "layerNorm";
}

struct NormSpec {
  DTypeSet dtypes;  // of every tensor
};

using NormKernel = Kernel<NormArgs, NormSpec>;
struct NormTable {
  const NormKernel* const* rows;
  int count;
};
NormTable norm_table();

Status norm_infer(const NormArgs& args, Tensor* out);
Status norm_check(const NormArgs& args);
Status norm_select(const NormArgs& args, const Choice& choice, const NormKernel** row);
size_t norm_workspace(const NormArgs& args, const NormKernel& row, int threads);
Status norm_run(const NormArgs& args, const NormKernel& row, const Ctx& ctx);

}  // namespace lowbit
