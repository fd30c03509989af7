// linear_simt_sm75: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; any kind, layout,
// dtype and compute: the GPU's reference and fallback.
//
// Shapes    any.
// Layout    all, read code by code through layout.h.
// Bound     arithmetic of the decoding: a code costs some 50 instructions and serves 64 rows of x.
// Method    64 x 64 of out a block, 4 x 4 a thread, 16 of K at a time through shared memory as f32:
//           x (or its codes; where x is quantised on the way, a kernel before this one finds the
//           scale of each row), and w decoded. Each 16 of K have sums of their own, so that long
//           rows keep their digits.
// Source    NVIDIA, CUDA C++ Programming Guide, shared memory.
// Measured  NOTES.md.
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/reduce.cuh"
#include "csrc/format/layout.h"
#include "csrc/linear/epilogue_sm75.cuh"
#include "csrc/quantize/rows.h"

namespace lowbit {
namespace {

constexpr int kBlock = 64;   // rows of x and of w a thread block serves
constexpr int kBlockK = 16;  // columns at a time
constexpr int kThreads = 256;
constexpr int kPer = 4;  // rows of x, and of w, that a thread serves
constexpr int kPad = 4;  // keeps the transposing stores off one bank

// Codes that x becomes on the way; none where it stays what it is.
__host__ __device__ DType rounded_to(const LinearArgs& args) {
  if (is_code_dtype(args.x.dtype) || args.compute == Compute::floating) return DType::none;
  return args.compute == Compute::int8 ? DType::i8 : DType::e4m3;
}

__global__ void __launch_bounds__(kThreads)
    scales_of_rows(const __grid_constant__ LinearArgs args, float* scales) {
  __shared__ uint32_t room[32];
  for (int64_t m = blockIdx.x; m < args.x.shape[0]; m += gridDim.x) {
    uint32_t largest = 0;
    for (int64_t k = threadIdx.x; k < args.x.shape[1]; k += kThreads) {
      const float v = load_f32(args.x.data, args.x.dtype, m * args.x.strides[0] + k);
      const uint32_t magnitude = float_bits(v) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    largest = reduce_block(
        largest, 0u, [](uint32_t a, uint32_t b) { return a > b ? a : b; }, room);
    if (threadIdx.x == 0) {
      scales[m] =
          scale_for(bits_float(largest >= 0x7f800000u ? 0x7fc00000u : largest), rounded_to(args));
    }
  }
}

// Element (m, k) of x as the product takes it; planes of w meet the same columns.
__device__ float x_value(const LinearArgs& args, const float* scales, DType rounded, int64_t m,
                         int64_t k) {
  while (k >= args.x.shape[1]) k -= args.x.shape[1];
  const float v = load_f32(args.x.data, args.x.dtype, m * args.x.strides[0] + k);
  if (rounded != DType::none) {
    const float scale = scales[m];
    if (scale != scale) return 0.0f;
    return rounded == DType::i8 ? (v / scale + 0x1.8p23f) - 0x1.8p23f
                                : e4m3_to_f32(f32_to_e4m3(v / scale));
  }
  if (args.x_scale.rank != 2 || !present(args.x_scale)) return v;
  const auto* scale = static_cast<const float*>(args.x_scale.data) + m * args.x_scale.strides[0];
  return v * scale[k / kScaleBlock];
}

// The factor of row m that the sums lack.
__device__ float row_scale(const LinearArgs& args, const float* scales, DType rounded, int64_t m) {
  if (rounded != DType::none) return scales[m];
  if (!present(args.x_scale) || args.x_scale.rank == 2) return 1.0f;
  return static_cast<const float*>(args.x_scale.data)[m * args.x_scale.strides[0]];
}

__global__ void __launch_bounds__(kThreads)
    multiply(const __grid_constant__ LinearArgs args, const float* scales) {
  __shared__ __align__(16) float sX[kBlockK][kBlock + kPad];  // (kBlockK, kBlock)
  __shared__ __align__(16) float sW[kBlockK][kBlock + kPad];  // (kBlockK, kBlock)
  const int64_t m_all = args.x.shape[0], n_all = args.w.n, k_all = args.w.k;
  const int64_t m0 = int64_t{blockIdx.y} * kBlock, n0 = int64_t{blockIdx.x} * kBlock;
  const DType rounded = rounded_to(args);
  const int ty = threadIdx.x / 16 * kPer, tx = threadIdx.x % 16 * kPer;
  const int load_k = threadIdx.x % kBlockK, load_row = threadIdx.x / kBlockK;
  float sums[kPer][kPer] = {};
  for (int64_t k0 = 0; k0 < k_all; k0 += kBlockK) {
    const int64_t k = k0 + load_k;
#pragma unroll
    for (int i = 0; i < kBlock; i += kThreads / kBlockK) {
      const int64_t m = m0 + load_row + i, n = n0 + load_row + i;
      sX[load_k][load_row + i] =
          m < m_all && k < k_all ? x_value(args, scales, rounded, m, k) : 0.0f;
      sW[load_k][load_row + i] = n < n_all && k < k_all ? weight_value(args.w, n, k) : 0.0f;
    }
    __syncthreads();
    float part[kPer][kPer] = {};
#pragma unroll
    for (int j = 0; j < kBlockK; ++j) {
      const float4 x = *reinterpret_cast<const float4*>(&sX[j][ty]);
      const float4 w = *reinterpret_cast<const float4*>(&sW[j][tx]);
      const float xs[kPer] = {x.x, x.y, x.z, x.w}, ws[kPer] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int a = 0; a < kPer; ++a) {
#pragma unroll
        for (int b = 0; b < kPer; ++b) part[a][b] += xs[a] * ws[b];
      }
    }
#pragma unroll
    for (int a = 0; a < kPer; ++a) {
#pragma unroll
      for (int b = 0; b < kPer; ++b) sums[a][b] += part[a][b];
    }
    __syncthreads();
  }
#pragma unroll
  for (int a = 0; a < kPer; ++a) {
    const int64_t m = m0 + ty + a;
    if (m >= m_all) continue;
    const float factor = row_scale(args, scales, rounded, m);
#pragma unroll
    for (int b = 0; b < kPer; b += 2) {
      const int64_t n = n0 + tx + b;
      const float first = sums[a][b] * factor, second = sums[a][b + 1] * factor;
      if (is_gated(args.activation)) {
        if (n + 1 < n_all) epilogue_gated(args, m, n, first, second);
        continue;
      }
      if (n < n_all) epilogue(args, m, n, first);
      if (n + 1 < n_all) epilogue(args, m, n + 1, second);
    }
  }
}

size_t workspace(const LinearArgs& args, int) {
  const bool scales = rounded_to(args) != DType::none;
  return scales ? static_cast<size_t>(args.x.shape[0]) * sizeof(float) : 0;
}

// Rows of x of one launch: what the second dimension of a grid holds.
constexpr int64_t kMost = int64_t{65535} * kBlock;

Status run(const LinearArgs& args, const Ctx& ctx) {
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const int64_t m = args.x.shape[0];
  auto* scales = static_cast<float*>(ctx.scratch);
  if (m > kMost)
    return error(Code::unsupported, "more than %lld rows", static_cast<long long>(kMost));
  if (rounded_to(args) != DType::none) {
    scales_of_rows<<<grid_for(m, 1, int64_t{1} << 20), kThreads, 0, stream>>>(args, scales);
    LB_TRY(launched());
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(args.w.n, kBlock)),
                  static_cast<unsigned>(ceil_div(m, kBlock)));
  multiply<<<grid, kThreads, 0, stream>>>(args, scales);
  return launched();
}

constexpr LinearSpec spec() {
  LinearSpec s = {kAllKinds,
                  (1u << kLayoutCount) - 1,
                  kFloats | kCodeDTypes,
                  bit(Compute::floating) | bit(Compute::int8) | bit(Compute::fp8),
                  true,
                  0,
                  1,
                  1,
                  1};
  s.planes = true;
  return s;
}

}  // namespace

extern const LinearKernel linear_simt_sm75;
const LinearKernel linear_simt_sm75 = {"linear_simt_sm75", kArchSm75, spec(), workspace, run};

}  // namespace lowbit
