// What linear_codes_f16_sm90a and linear_codes_bf16_sm90a share: which calls have few rows of x.
#pragma once

#include "csrc/linear/codes_sm80.cuh"
#include "csrc/linear/few_codes_sm90a.cuh"
#include "csrc/linear/one_row_sm90a.cuh"

namespace lowbit {
namespace {

static inline bool is_few(const LinearArgs& args) {
  const Format& f = args.w.format;
  if (args.x.shape[0] > 16 || f.zero_type != ZeroType::none) return false;
  switch (f.kind) {
    case Kind::int8:
    case Kind::fp8_e4m3:
    case Kind::fp8_e5m2:
    case Kind::int4: return few_takes(f, args.w.k, 128);
    case Kind::int2:
    case Kind::ternary: return few_takes(f, args.w.k, 256);
    case Kind::int1: return few_takes(f, args.w.k, 512);
    default: return false;
  }
}

static size_t codes_workspace(const LinearArgs& args, int threads) {
  const size_t tiles = tile_workspace(args, threads), few = x_workspace(args, threads);
  return tiles > few ? tiles : few;
}

template <bool kHalf>
static Status run_codes_sm90a(const LinearArgs& args, const Ctx& ctx) {
  if (!is_few(args)) return run_codes_sm80<kHalf>(args, ctx);
  constexpr FewX kX = kHalf ? FewX::f16 : FewX::bf16;
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  if (args.x.shape[0] == 1) {  // where one_row_sm90a.cuh takes it
    Status status = ok();
    bool done = false;
    switch (args.w.format.kind) {
      case Kind::int8: done = run_one<Kind::int8, kHalf>(args, x, ctx, &status); break;
      case Kind::int4: done = run_one<Kind::int4, kHalf>(args, x, ctx, &status); break;
      case Kind::int2: done = run_one<Kind::int2, kHalf>(args, x, ctx, &status); break;
      case Kind::ternary: done = run_one<Kind::ternary, kHalf>(args, x, ctx, &status); break;
      default: break;
    }
    if (done) return status;
  }
  switch (args.w.format.kind) {
    case Kind::int8: return run_few_codes<Kind::int8, kX>(args, x, ctx);
    case Kind::fp8_e4m3: return run_few_codes<Kind::fp8_e4m3, kX>(args, x, ctx);
    case Kind::fp8_e5m2: return run_few_codes<Kind::fp8_e5m2, kX>(args, x, ctx);
    case Kind::int4: return run_few_codes<Kind::int4, kX>(args, x, ctx);
    case Kind::int2: return run_few_codes<Kind::int2, kX>(args, x, ctx);
    case Kind::ternary: return run_few_codes<Kind::ternary, kX>(args, x, ctx);
    default: return run_few_codes<Kind::int1, kX>(args, x, ctx);
  }
}

}  // namespace
}  // namespace lowbit
