// norm_sm75: rms and layer norm, one block a row.
//
// Shapes    all of norm.h.
// Layout    any strides that the contract allows; 16-byte accesses where rows are aligned.
// Bound     memory: x, residual, residual_out and out once each.
// Method    rows of one dtype up to 16384 columns stay in registers, eight neighbours a run. Runs
//           are summed in f32 and their sums in double; a sum out of the range where that is exact
//           enough is formed once more, all in double. Other rows go to shared memory as f32 on
//           their way (beyond 11776 columns they are read again) and are summed in double. The
//           quotient is f32, or double where the factor leaves that range.
// Source    the formulas in norm.h.
// Measured  NOTES.md.
#include "csrc/cuda/eight.cuh"
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

// Of one row, in runs of eight.
struct Steps {
  int64_t x, residual, residual_out, out;
};

// Squares beyond these bounds lose digits or leave the range of f32.
__device__ bool is_exact(double sum) { return sum > 1e-25 && sum < 1e37; }

template <int kRuns, class F>
__device__ double sum_of(const float (&u)[kRuns][kEight], double* room, const F& f) {
  double sum = 0;
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    auto part = f(u[r][0]);
#pragma unroll
    for (int i = 1; i < kEight; ++i) part += f(u[r][i]);
    sum += part;
  }
  return sum_block(sum, room);
}

template <DType T, int kRuns, bool kLayer>
__global__ void __launch_bounds__(kHeldThreads<kRuns>, kHeldBlocks<T, kRuns>)
    norm_held(const __grid_constant__ NormArgs a, Steps steps, int eights, double share) {
  __shared__ double room[32];
  wait_for_others();
  const int64_t row = blockIdx.x;
  float u[kRuns][kEight];
  Eight<T> x[kRuns], more[kRuns];
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    const int at = threadIdx.x + r * blockDim.x;
    x[r] = more[r] = {};
    if (at >= eights) continue;
    x[r] = fetch<T>(a.x.data, row * steps.x + at);
    if (present(a.residual)) more[r] = fetch<T>(a.residual.data, row * steps.residual + at);
  }
  // Asked for early where there is room for it: else its way adds to that of the sum.
  constexpr bool kEarly = kRuns <= 2;
  const auto load_weight = [&](int r, float(&to)[kEight]) {
    const int at = threadIdx.x + r * blockDim.x;
#pragma unroll
    for (int i = 0; i < kEight; ++i) to[i] = 1.0f;
    if (present(a.weight) && at < eights) {
      load_eight(a.weight.data, a.weight.dtype, at * kEight, kEight, to);
    }
  };
  float weights[kEarly ? kRuns : 1][kEight];
  if constexpr (kEarly) {
#pragma unroll
    for (int r = 0; r < kRuns; ++r) load_weight(r, weights[r]);
  }
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    unpack<T>(x[r], u[r]);
    if (!present(a.residual)) continue;
    float v[kEight];
    unpack<T>(more[r], v);
#pragma unroll
    for (int i = 0; i < kEight; ++i) u[r][i] += v[i];
    if (!present(a.residual_out)) continue;
    const int at = threadIdx.x + r * blockDim.x;
    x[r] = pack<T>(u[r]);
    unpack<T>(x[r], u[r]);
    if (at < eights) put<T>(a.residual_out.data, row * steps.residual_out + at, x[r]);
  }

  double sum, mean = 0;
  float head = 0, rest = 0;
  if (kLayer) {
    sum = sum_of(u, room, [](float v) { return v; });
    if (!(fabs(sum) < 1e37)) sum = sum_of(u, room, [](float v) { return double{v}; });
    mean = sum * share;
    head = static_cast<float>(mean), rest = static_cast<float>(mean - head);
    // Places beyond the row hold 0 and have no part in the sum.
    const auto inside = [&](auto&& f) {
      double part = 0;
#pragma unroll
      for (int r = 0; r < kRuns; ++r) {
        if (threadIdx.x + r * blockDim.x < eights) part += f(u[r]);
      }
      return sum_block(part, room);
    };
    sum = inside([&](const float(&v)[kEight]) {
      float part = 0;
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        const float d = (v[i] - head) - rest;
        part += d * d;
      }
      return part;
    });
    if (!is_exact(sum)) {
      sum = inside([&](const float(&v)[kEight]) {
        double part = 0;
        for (int i = 0; i < kEight; ++i) part += (v[i] - mean) * (v[i] - mean);
        return part;
      });
    }
  } else {
    sum = sum_of(u, room, [](float v) { return v * v; });
    if (!is_exact(sum)) sum = sum_of(u, room, [](float v) { return double{v} * v; });
  }
  const double square = sum * share + a.eps;
  float scale = 1.0f / sqrtf(static_cast<float>(square));
  double factor = 0;
  bool wide = false;
  if (!(square > 1e-36 && square < 1e36)) {
    factor = 1 / sqrt(square);
    // NaN and inf take the f32 way: they come out the same.
    wide = (factor > 1e30 && factor < INFINITY) || (factor < 1e-30 && factor > 0);
    scale = static_cast<float>(factor);
  }
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    const int at = threadIdx.x + r * blockDim.x;
    if (at >= eights) continue;
    float(&weight)[kEight] = weights[kEarly ? r : 0];
    if constexpr (!kEarly) load_weight(r, weight);
    float bias[kEight] = {};
    if (kLayer && present(a.bias)) {
      load_eight(a.bias.data, a.bias.dtype, at * kEight, kEight, bias);
    }
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      if (wide) {
        u[r][i] = static_cast<float>((u[r][i] - mean) * factor * weight[i] + bias[i]);
      } else if (kLayer) {
        u[r][i] = ((u[r][i] - head) - rest) * scale * weight[i] + bias[i];
      } else {
        u[r][i] = u[r][i] * scale * weight[i];
      }
    }
    put<T>(a.out.data, row * steps.out + at, pack<T>(u[r]));
  }
}

// One dtype, aligned runs of eight, rows at equal distances.
bool can_hold(const NormArgs& a) {
  for (const Tensor* t : {&a.x, &a.residual, &a.residual_out, &a.out}) {
    if (!present(*t)) continue;
    if (t->dtype != a.x.dtype || !in_eights(*t) || rows_of(*t).rank > 1) return false;
  }
  return true;
}

Status run_held(const NormArgs& a, const Held& shape, const Ctx& ctx) {
  const auto step = [](const Tensor& t) {
    return present(t) && rows_of(t).rank > 0 ? rows_of(t).strides[0] / kEight : 0;
  };
  const Steps steps = {step(a.x), step(a.residual), step(a.residual_out), step(a.out)};
  const Rows rows = rows_of(a.x);
  const auto eights = static_cast<int>(rows.length / kEight);
  Status status = ok();
  with_dtype(a.x.dtype, [&](auto dtype) {
    with_runs(shape.runs, [&](auto runs) {
      constexpr DType kType = decltype(dtype)::value;
      constexpr int kRuns = decltype(runs)::value;
      auto* kernel = a.kind == NormKind::layer ? norm_held<kType, kRuns, true>
                                               : norm_held<kType, kRuns, false>;
      status = launch(ctx, kernel, static_cast<unsigned>(rows.count), shape.threads, 0, a, steps,
                      eights, 1 / static_cast<double>(rows.length));
    });
  });
  return status;
}

Status run(const NormArgs& args, const Ctx& ctx) {
  const Held shape = held(rows_of(args.x).length);
  if (shape.threads > 0 && rows_of(args.x).count <= INT32_MAX && can_hold(args)) {
    return run_held(args, shape, ctx);
  }
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
