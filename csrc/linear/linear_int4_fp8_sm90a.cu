// linear_int4_fp8_sm90a: out[M,N] = act(sx[m] * (qx[M,K] * deq(w)[N,K]^T) + bias) + residual;
// symmetric int4 weights, x as fp8 codes, e4m3 or e5m2, with a scale a row or one for 128 columns.
//
// Shapes    any.
// Layout    frag64: groups of 32, 64 or 128, or one scale a row, or one for all.
// Bound     memory: half a byte a weight and its share of the scale.
// Method    x as f16, which holds every code of fp8: sums are those of f16 and not of the tensor
//           cores for fp8, which keep 14 bits. M <= 16: units_sm90a.cuh, which widens x on its way
//           to shared memory. Beyond: x widened into scratch, then linear_int4_f16_sm90a; where x
//           has scales of blocks, units of 16 rows of x at a time.
// Source    NVIDIA, PTX ISA: mma, cvt.
// Measured  NOTES.md.
#include "csrc/linear/units_sm90a.cuh"

namespace lowbit {
namespace {

inline constexpr int kWideThreads = 256;

// Row blockIdx.y of x, eight columns a thread; `whole`: rows begin at multiples of eight bytes.
template <bool kE5m2>
__global__ void __launch_bounds__(kWideThreads)
    widen_rows(const uint8_t* x, int64_t stride, int32_t k, bool whole, uint4* to, int32_t runs) {
  wait_for_others();
  const int run = blockIdx.x * kWideThreads + threadIdx.x;
  if (run >= runs) return;
  const uint8_t* const from = x + blockIdx.y * stride + run * 8;
  uint32_t codes[2] = {};
  if (whole && run * 8 + 8 <= k) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    codes[0] = two.x, codes[1] = two.y;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (run * 8 + i < k) codes[i / 4] |= uint32_t{from[i]} << i % 4 * 8;
    }
  }
  to[int64_t{blockIdx.y} * runs + run] = {
      fp8_as_f16<kE5m2>(codes[0] & 0xFFFF), fp8_as_f16<kE5m2>(codes[0] >> 16),
      fp8_as_f16<kE5m2>(codes[1] & 0xFFFF), fp8_as_f16<kE5m2>(codes[1] >> 16)};
}

bool goes_wide(const LinearArgs& args) {
  const int64_t m = args.x.shape[0];
  return m > kUnitTokens && m < 1 << 16 && args.w.k > 0 && args.x_scale.rank < 2;
}

size_t workspace(const LinearArgs& args, int threads) {
  const size_t wide = static_cast<size_t>(args.x.shape[0] * ceil_div(args.w.k, 8) * 16);
  const size_t copy = x_workspace(args, threads);
  return goes_wide(args) && wide > copy ? wide : copy;
}

}  // namespace

extern const LinearKernel linear_int4_f16_sm90a;

namespace {

Status run_wide(LinearArgs args, const Ctx& ctx) {
  const int64_t m = args.x.shape[0], k = args.w.k, runs = ceil_div(k, 8);
  const int64_t stride = m == 1 ? k : args.x.strides[0];
  const auto* const x = static_cast<const uint8_t*>(args.x.data);
  const bool whole = (reinterpret_cast<uintptr_t>(x) | static_cast<uint64_t>(stride)) % 8 == 0;
  auto* const kernel = args.x.dtype == DType::e5m2 ? widen_rows<true> : widen_rows<false>;
  const dim3 blocks(static_cast<unsigned>(ceil_div(runs, kWideThreads)), static_cast<unsigned>(m));
  LB_TRY(launch(ctx, kernel, blocks, kWideThreads, 0, x, stride, static_cast<int32_t>(k), whole,
                static_cast<uint4*>(ctx.scratch), static_cast<int32_t>(runs)));
  args.x.data = ctx.scratch;
  args.x.dtype = DType::f16;
  args.x.strides[0] = runs * 8;
  args.compute = Compute::floating;
  return linear_int4_f16_sm90a.run(args, ctx);
}

Status run(const LinearArgs& args, const Ctx& ctx) {
  if (goes_wide(args)) return run_wide(args, ctx);
  Matrix x;
  LB_TRY(x_matrix(args, ctx, &x));
  if (args.x.dtype == DType::e5m2) {
    return run_unit_call<UnitX::f16, kUnitTokens, UnitFrom::e5m2>(args, x, ctx);
  }
  return run_unit_call<UnitX::f16, kUnitTokens, UnitFrom::e4m3>(args, x, ctx);
}

}  // namespace

extern const LinearKernel linear_int4_fp8_sm90a;
const LinearKernel linear_int4_fp8_sm90a = {
    "linear_int4_fp8_sm90a",
    kArchSm90a,
    {.kinds = bit(Kind::int4),
     .layouts = bit(Layout::frag64),
     .x = kFloats | bit(DType::e4m3) | bit(DType::e5m2),
     .computes = bit(Compute::fp8),
     .zeros = false,
     .m_max = 0,
     .n_multiple = 1,
     .k_multiple = 1,
     .group_multiple = 1,
     .codes_only = true},
    workspace,
    run,
};

}  // namespace lowbit
