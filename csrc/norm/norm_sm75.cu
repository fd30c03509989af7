// norm_sm75: rms and layer norm, one block a row.
//
// Shapes    all of norm.h.
// Layout    any strides that the contract allows; 16-byte accesses where rows are aligned.
// Bound     memory: x, residual, residual_out and out once each.
// Method    u goes to shared memory as f32 on its way (rows beyond 11776 columns are read again).
//           Sums are double: an addition an element costs nothing beside its bytes, and no square
//           leaves the range. The quotient is f32, or double where the factor leaves that range.
// Source    the formulas in norm.h.
// Measured  NOTES.md.
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/reduce.cuh"
#include "csrc/cuda/stage.cuh"
#include "csrc/norm/norm.h"

namespace lowbit {
namespace {

struct RowsOfAll {
  Rows x, residual, residual_out, out;
};

// Offsets of one row.
struct At {
  int64_t x, residual, residual_out, out;
};

// Eight elements of x + residual; the first time, residual_out is written and read back rounded.
__device__ void make_u(const NormArgs& a, const At& at, int64_t i, int count, bool first,
                       float (&u)[kEight]) {
  if (!first && present(a.residual_out)) {
    load_eight(a.residual_out.data, a.residual_out.dtype, at.residual_out + i, count, u);
    return;
  }
  load_eight(a.x.data, a.x.dtype, at.x + i, count, u);
  if (!present(a.residual)) return;
  float more[kEight];
  load_eight(a.residual.data, a.residual.dtype, at.residual + i, count, more);
#pragma unroll
  for (int j = 0; j < kEight; ++j) u[j] += more[j];
  if (!present(a.residual_out)) return;
  const DType dtype = a.residual_out.dtype;
  store_eight(a.residual_out.data, dtype, at.residual_out + i, count, u);
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    if (dtype == DType::bf16) u[j] = bf16_to_f32(f32_to_bf16(u[j]));
    if (dtype == DType::f16) u[j] = half_to_f32(f32_to_half(u[j]));
  }
}

__global__ void __launch_bounds__(512)
    norm(const __grid_constant__ NormArgs a, const __grid_constant__ RowsOfAll rows, bool staged) {
  extern __shared__ float4 stage_room[];
  __shared__ double room[32];
  float* stage = reinterpret_cast<float*>(stage_room);
  const int64_t length = rows.x.length, step = int64_t{blockDim.x} * kEight;
  const int64_t begin = int64_t{threadIdx.x} * kEight;
  const bool layer = a.kind == NormKind::layer;
  for (int64_t row = blockIdx.x; row < rows.x.count; row += gridDim.x) {
    const At at = {row_offset(rows.x, row), row_offset(rows.residual, row),
                   row_offset(rows.residual_out, row), row_offset(rows.out, row)};
    double sum = 0;
    float u[kEight];
    for (int64_t i = begin; i < length; i += step) {
      make_u(a, at, i, ragged(i, length), true, u);
      if (staged) stage_eight(stage, i, u);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const double v = u[j];  // 0 beyond the row
        sum += layer ? v : v * v;
      }
    }
    sum = sum_block(sum, room);
    double mean = 0;
    if (layer) {
      mean = sum / static_cast<double>(length);
      sum = 0;
      for (int64_t i = begin; i < length; i += step) {
        const int count = ragged(i, length);
        if (staged) {
          staged_eight(stage, i, u);
        } else {
          make_u(a, at, i, count, false, u);
        }
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
          const double d = u[j] - mean;
          if (j < count) sum += d * d;
        }
      }
      sum = sum_block(sum, room);
    }
    const double factor = 1 / sqrt(sum / static_cast<double>(length) + a.eps);
    // NaN and inf take the f32 way: they come out the same.
    const bool wide = (factor > 1e30 && factor < INFINITY) || (factor < 1e-30 && factor > 0);
    const auto head = static_cast<float>(mean), rest = static_cast<float>(mean - head);
    const auto scale = static_cast<float>(factor);
    for (int64_t i = begin; i < length; i += step) {
      const int count = ragged(i, length);
      if (staged) {
        staged_eight(stage, i, u);
      } else {
        make_u(a, at, i, count, false, u);
      }
      float weight[kEight], bias[kEight];
      if (present(a.weight)) load_eight(a.weight.data, a.weight.dtype, i, count, weight);
      if (present(a.bias)) load_eight(a.bias.data, a.bias.dtype, i, count, bias);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const float w = present(a.weight) ? weight[j] : 1.0f;
        const float b = present(a.bias) ? bias[j] : 0.0f;
        if (wide) {
          u[j] = static_cast<float>((u[j] - mean) * factor * w + b);
        } else if (layer) {
          u[j] = ((u[j] - head) - rest) * scale * w + b;
        } else {
          u[j] = u[j] * scale * w;
        }
      }
      store_eight(a.out.data, a.out.dtype, at.out + i, count, u);
    }
  }
}

Status run(const NormArgs& args, const Ctx& ctx) {
  const RowsOfAll rows = {rows_of(args.x), rows_of(present(args.residual) ? args.residual : args.x),
                          rows_of(present(args.residual_out) ? args.residual_out : args.x),
                          rows_of(args.out)};
  const int64_t length = rows.x.length;
  const bool staged = length <= kStagedMax;
  const unsigned blocks = grid_for(rows.x.count, 1, int64_t{1} << 20);
  norm<<<blocks, threads_for(length), staged_bytes(length),
         static_cast<cudaStream_t>(ctx.stream)>>>(args, rows, staged);
  return launched();
}

}  // namespace

extern const NormKernel norm_sm75;
const NormKernel norm_sm75 = {"norm_sm75", kArchSm75, {kFloats}, nullptr, run};

}  // namespace lowbit
