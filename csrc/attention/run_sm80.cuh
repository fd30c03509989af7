// How attention_*_sm80 choose among the forms of attention_sm80.cuh and few_sm80.cuh.
#pragma once

#include "csrc/attention/few_sm80.cuh"

namespace lowbit {
namespace {

template <bool kHalf, int kDim>
static Status run_dim(const AttentionArgs& args, const Plan& plan, const Ctx& ctx) {
  const bool codes = is_paged(args) && !is_float(args.kv.format);
  if constexpr (kHalf) {
    const auto few = [&](auto form) {
      using F = decltype(form);
      int stages = 0;
      LB_TRY(stages_of<F>(&stages));
      return stages > 0 ? run_few<F>(args, plan, stages, ctx)
                        : run_form<Form<true, kDim, 1, 1, 4, 64, true>>(args, plan, ctx);
    };
    if (codes && takes_few(args, plan)) {
      switch (args.kv.format) {
        case KvFormat::fp8_e4m3: return few(Few<KvFormat::fp8_e4m3, kDim>());
        case KvFormat::int8: return few(Few<KvFormat::int8, kDim>());
        default: return few(Few<KvFormat::int4, kDim>());
      }
    }
  }
  if (plan.few) {
    return codes ? run_form<Form<kHalf, kDim, 1, 1, 4, 64, true>>(args, plan, ctx)
                 : run_form<Form<kHalf, kDim, 1, 1, 4, 64, false>>(args, plan, ctx);
  }
  // Codes, and more elements, leave registers for 16 rows a warp.
  constexpr int kTiles = kDim > 128 ? 1 : 2;
  if (codes) return run_many<kHalf, kDim, 1, true, false>(args, plan, ctx);
  return has_options(args) ? run_many<kHalf, kDim, kTiles, false, false>(args, plan, ctx)
                           : run_many<kHalf, kDim, kTiles, false, true>(args, plan, ctx);
}

template <bool kHalf>
static Status run_tiles(const AttentionArgs& args, const Ctx& ctx) {
  const Plan plan = plan_of(args);
  switch (plan.dim) {
    case 64: return run_dim<kHalf, 64>(args, plan, ctx);
    case 96: return run_dim<kHalf, 96>(args, plan, ctx);
    case 128: return run_dim<kHalf, 128>(args, plan, ctx);
    case 192: return run_dim<kHalf, 192>(args, plan, ctx);
    default: return run_dim<kHalf, 256>(args, plan, ctx);
  }
}

}  // namespace
}  // namespace lowbit
