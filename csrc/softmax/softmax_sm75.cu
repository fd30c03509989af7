// softmax_sm75: softmax, argmax and cross entropy, one block a row.
//
// Shapes    all of softmax.h.
// Layout    any strides that the contract allows; 16-byte accesses where rows are aligned.
// Bound     memory: x once, and out once for softmax.
// Method    softmax of one dtype up to 16384 classes keeps its row in registers. Else a row goes to
//           shared memory as f32 on its way to its maximum, then its exponentials are summed (rows
//           beyond 11776 classes are read again). Sums are f32 within a run of eight and double
//           beyond it. argmax compares keys whose order as integers is that of the numbers. A
//           target out of range is reported, its row left alone.
// Source    the formulas in softmax.h.
// Measured  NOTES.md.
#include "csrc/cuda/eight.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/reduce.cuh"
#include "csrc/cuda/stage.cuh"
#include "csrc/softmax/softmax.h"

namespace lowbit {
namespace {

struct Best {
  int32_t key;
  int32_t index;
};
// Integers in the order of the numbers, NaN above them: an addition makes -0 zero, and every NaN
// the one with all bits but the sign.
__device__ int32_t key_of(float v) {
  const int32_t bits = __float_as_int(__fadd_rn(v, 0.0f));
  return bits ^ (bits >> 31 & 0x7fffffff);
}
// Larger before smaller, first before later.
__device__ Best better(Best a, Best b) {
  return a.key > b.key || (a.key == b.key && a.index < b.index) ? a : b;
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

template <DType T, int kRuns>
__global__ void __launch_bounds__(kHeldThreads<kRuns>, kHeldBlocks<T, kRuns>)
    softmax_held(const void* x, void* out, int64_t x_step, int64_t out_step, int eights,
                 float scale) {
  __shared__ double room[32];
  __shared__ float room_of_max[32];
  wait_for_others();
  const int64_t row = blockIdx.x;
  Eight<T> raw[kRuns];
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    const int at = threadIdx.x + r * blockDim.x;
    raw[r] = {};
    if (at < eights) raw[r] = fetch<T>(x, row * x_step + at);
  }
  float v[kRuns][kEight], max = -INFINITY;
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    unpack<T>(raw[r], v[r]);
    const bool inside = threadIdx.x + r * blockDim.x < eights;
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      v[r][i] = inside ? v[r][i] * scale : -INFINITY;
      max = v[r][i] > max ? v[r][i] : max;
    }
  }
  max = max_block(max, room_of_max);
  const float shift = max == -INFINITY ? 0.0f : max;
  double parts = 0;
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    float part = 0.0f;
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      v[r][i] = expf(v[r][i] - shift);
      part += v[r][i];
    }
    parts += part;
  }
  const auto sum = static_cast<float>(sum_block(parts, room));
  const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    const int at = threadIdx.x + r * blockDim.x;
    if (at >= eights) continue;
#pragma unroll
    for (int i = 0; i < kEight; ++i) v[r][i] *= factor;
    put<T>(out, row * out_step + at, pack<T>(v[r]));
  }
}

// Four runs of a thread are under way at a time.
template <DType T>
__global__ void __launch_bounds__(128)
    argmax_eights(const void* x, int64_t step, int64_t eights, int32_t* out,
                  const __grid_constant__ Rows places) {
  constexpr int kRuns = 4;
  __shared__ Best room[4];
  wait_for_others();
  const int64_t row = blockIdx.x;
  Best best = {INT32_MIN, INT32_MAX};
  for (int64_t first = threadIdx.x; first < eights; first += kRuns * blockDim.x) {
    Eight<T> raw[kRuns];
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const int64_t at = first + r * blockDim.x;
      if (at < eights) raw[r] = fetch<T>(x, row * step + at);
    }
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const int64_t at = first + r * blockDim.x;
      if (at >= eights) break;
      float v[kEight];
      unpack<T>(raw[r], v);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const int32_t key = key_of(v[j]);
        if (key > best.key) best = {key, static_cast<int32_t>(at) * kEight + j};
      }
    }
  }
  for (int step = 16; step > 0; step /= 2) {
    best = better(best,
                  {__shfl_xor_sync(~0u, best.key, step), __shfl_xor_sync(~0u, best.index, step)});
  }
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned i = 1; i < blockDim.x / 32; ++i) best = better(best, room[i]);
  out[row_offset(places, row)] = best.index;
}

__global__ void __launch_bounds__(512)
    argmax(const __grid_constant__ SoftmaxArgs a, const __grid_constant__ Rows x,
           const __grid_constant__ Rows out) {
  __shared__ Best room[32];
  for (int64_t row = blockIdx.x; row < x.count; row += gridDim.x) {
    const int64_t from = row_offset(x, row);
    Best best = {INT32_MIN, INT32_MAX};
    float v[kEight];
    for (int64_t i = threadIdx.x * kEight; i < x.length; i += blockDim.x * kEight) {
      const int count = ragged(i, x.length);
      load_eight(a.x.data, a.x.dtype, from + i, count, v);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const int32_t key = key_of(v[j]);
        if (key > best.key && j < count) best = {key, static_cast<int32_t>(i) + j};
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      best = better(best,
                    {__shfl_xor_sync(~0u, best.key, step), __shfl_xor_sync(~0u, best.index, step)});
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
  const Held shape = held(x.length);
  if (rows_out && shape.threads > 0 && x.rank <= 1 && out.rank <= 1 && x.count <= INT32_MAX &&
      args.x.dtype == args.out.dtype && in_eights(args.x) && in_eights(args.out)) {
    const auto step = [](const Rows& rows) { return rows.rank > 0 ? rows.strides[0] / kEight : 0; };
    Status status = ok();
    with_dtype(args.x.dtype, [&](auto dtype) {
      with_runs(shape.runs, [&](auto runs) {
        status =
            launch(ctx, softmax_held<decltype(dtype)::value, decltype(runs)::value>,
                   static_cast<unsigned>(x.count), shape.threads, 0, args.x.data, args.out.data,
                   step(x), step(out), static_cast<int>(x.length / kEight), args.scale);
      });
    });
    return status;
  }
  if (args.function == RowFunction::argmax && x.rank <= 1 && x.count <= INT32_MAX &&
      in_eights(args.x)) {
    Status status = ok();
    with_dtype(args.x.dtype, [&](auto dtype) {
      status = launch(ctx, argmax_eights<decltype(dtype)::value>, static_cast<unsigned>(x.count),
                      threads < 128 ? threads : 128, 0, args.x.data,
                      x.rank > 0 ? x.strides[0] / kEight : 0, x.length / kEight,
                      static_cast<int32_t*>(args.out.data), out);
    });
    return status;
  }
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
