// softmax_sm75: softmax, argmax and cross entropy, one block a row.
//
// Shapes    all of softmax.h.
// Layout    any strides that the contract allows; 16-byte accesses where rows are aligned.
// Bound     memory: x once, and out once for softmax.
// Method    a row goes to shared memory as f32 on its way to its maximum, then its exponentials are
//           summed (rows beyond 11776 classes are read again). Sums are f32 within a thread and
//           double across the block. A target out of range is reported, its row left alone.
// Source    the formulas in softmax.h.
// Measured  NOTES.md.
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/reduce.cuh"
#include "csrc/cuda/stage.cuh"
#include "csrc/softmax/softmax.h"

namespace lowbit {
namespace {

struct Best {
  float value;
  int32_t index;
};
// NaN before numbers, larger before smaller, first before later.
__device__ Best better(Best a, Best b) {
  const bool nan_a = a.value != a.value, nan_b = b.value != b.value;
  if (nan_a != nan_b) return nan_a ? a : b;
  if (!nan_a && a.value != b.value) return a.value > b.value ? a : b;
  return a.index < b.index ? a : b;
}

struct Row {
  const SoftmaxArgs& a;
  float* stage;  // null: read again
  int64_t x, length;
  float scale;

  __device__ void load(int64_t i, int count, float (&v)[kEight]) const {
    load_eight(a.x.data, a.x.dtype, x + i, count, v);
#pragma unroll
    for (int j = 0; j < kEight; ++j) v[j] = j < count ? v[j] * scale : -INFINITY;
  }
  __device__ void again(int64_t i, int count, float (&v)[kEight]) const {
    if (stage != nullptr) {
      staged_eight(stage, i, v);
    } else {
      load(i, count, v);
    }
  }
};

__device__ float largest(const Row& r, float* room) {
  float max = -INFINITY, v[kEight];
  for (int64_t i = threadIdx.x * kEight; i < r.length; i += blockDim.x * kEight) {
    r.load(i, ragged(i, r.length), v);
    if (r.stage != nullptr) stage_eight(r.stage, i, v);
#pragma unroll
    for (int j = 0; j < kEight; ++j) max = v[j] > max ? v[j] : max;
  }
  return max_block(max, room);
}

// With `keep`, the exponentials take the place of the staged elements.
__device__ double sum_of_exp(const Row& r, float shift, bool keep, double* room) {
  float v[kEight];
  double sum = 0;
  for (int64_t i = threadIdx.x * kEight; i < r.length; i += blockDim.x * kEight) {
    r.again(i, ragged(i, r.length), v);
    float part = 0.0f;
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      v[j] = i + j < r.length ? expf(v[j] - shift) : 0.0f;
      part += v[j];
    }
    sum += part;
    if (keep && r.stage != nullptr) stage_eight(r.stage, i, v);
  }
  return sum_block(sum, room);
}

__global__ void __launch_bounds__(512)
    softmax(const __grid_constant__ SoftmaxArgs a, const __grid_constant__ Rows x,
            const __grid_constant__ Rows out, bool staged) {
  extern __shared__ float4 stage_room[];
  __shared__ double room[32];
  __shared__ float room_of_max[32];
  for (int64_t row = blockIdx.x; row < x.count; row += gridDim.x) {
    const Row r = {a, staged ? reinterpret_cast<float*>(stage_room) : nullptr, row_offset(x, row),
                   x.length, a.scale};
    const float max = largest(r, room_of_max), shift = max == -INFINITY ? 0.0f : max;
    const auto sum = static_cast<float>(sum_of_exp(r, shift, true, room));
    const int64_t to = row_offset(out, row);
    float v[kEight];
    for (int64_t i = threadIdx.x * kEight; i < r.length; i += blockDim.x * kEight) {
      const int count = ragged(i, r.length);
      r.again(i, count, v);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const float e = staged ? v[j] : expf(v[j] - shift);
        v[j] = sum == 0.0f ? 0.0f : e / sum;
      }
      store_eight(a.out.data, a.out.dtype, to + i, count, v);
    }
  }
}

__global__ void __launch_bounds__(512)
    argmax(const __grid_constant__ SoftmaxArgs a, const __grid_constant__ Rows x,
           const __grid_constant__ Rows out) {
  __shared__ Best room[32];
  for (int64_t row = blockIdx.x; row < x.count; row += gridDim.x) {
    const int64_t from = row_offset(x, row);
    Best best = {-INFINITY, INT32_MAX};
    float v[kEight];
    for (int64_t i = threadIdx.x * kEight; i < x.length; i += blockDim.x * kEight) {
      const int count = ragged(i, x.length);
      load_eight(a.x.data, a.x.dtype, from + i, count, v);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        if (j < count) best = better(best, {v[j], static_cast<int32_t>(i) + j});
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      best = better(
          best, {__shfl_xor_sync(~0u, best.value, step), __shfl_xor_sync(~0u, best.index, step)});
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 1; i < static_cast<int>(blockDim.x) / 32; ++i) best = better(best, room[i]);
      static_cast<int32_t*>(a.out.data)[row_offset(out, row)] = best.index;
    }
  }
}

__global__ void __launch_bounds__(512)
    cross_entropy(const __grid_constant__ SoftmaxArgs a, const __grid_constant__ Rows x,
                  const __grid_constant__ Rows out, const __grid_constant__ Rows targets,
                  bool staged, unsigned long long* check) {
  extern __shared__ float4 stage_room[];
  __shared__ double room[32];
  __shared__ float room_of_max[32];
  for (int64_t row = blockIdx.x; row < x.count; row += gridDim.x) {
    const int32_t target = static_cast<const int32_t*>(a.targets.data)[row_offset(targets, row)];
    if (target < 0 || target >= x.length) {
      if (threadIdx.x == 0) report(check, row, target);
      continue;
    }
    const Row r = {a, staged ? reinterpret_cast<float*>(stage_room) : nullptr, row_offset(x, row),
                   x.length, 1.0f};
    const float max = largest(r, room_of_max);
    const double sum = sum_of_exp(r, max, false, room);
    if (threadIdx.x != 0) continue;
    const double score = load_f32(a.x.data, a.x.dtype, r.x + target);
    static_cast<float*>(a.out.data)[row_offset(out, row)] =
        static_cast<float>(log(sum) + (max - score));
  }
}

Status run(const SoftmaxArgs& args, const Ctx& ctx) {
  const bool rows_out = args.function == RowFunction::softmax;
  const Rows x = rows_of(args.x), out = rows_out ? rows_of(args.out) : elements_of(args.out);
  const bool staged = x.length <= kStagedMax;
  const unsigned blocks = grid_for(x.count, 1, int64_t{1} << 20), threads = threads_for(x.length);
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const size_t room = staged_bytes(x.length);
  switch (args.function) {
    case RowFunction::softmax:
      softmax<<<blocks, threads, room, stream>>>(args, x, out, staged);
      break;
    case RowFunction::argmax: argmax<<<blocks, threads, 0, stream>>>(args, x, out); break;
    case RowFunction::cross_entropy:
      cross_entropy<<<blocks, threads, room, stream>>>(args, x, out, elements_of(args.targets),
                                                       staged, ctx.check);
      break;
  }
  return launched();
}

}  // namespace

extern const SoftmaxKernel softmax_sm75;
const SoftmaxKernel softmax_sm75 = {"softmax_sm75", kArchSm75, {kFloats}, nullptr, run};

}  // namespace lowbit
