// elementwise_sm75: the functions of elementwise.h, eight neighbouring elements a thread.
//
// Shapes    all of elementwise.h.
// Layout    any strides that the contract allows; 16-byte accesses where all rows are aligned.
// Bound     memory: a, b and out once.
// Method    contiguous tensors of one dtype: a thread asks for four runs of eight of each input
// (two
//           where an element has 4 bytes) before it waits for the first. Else the views as few long
//           rows (base/rows.h), cut into runs of eight, and a grid that strides over the runs. f32
//           arithmetic whatever the dtypes.
// Source    the formulas in elementwise.h.
// Measured  NOTES.md.
#include "csrc/cuda/eight.cuh"
#include "csrc/cuda/functions.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/elementwise/elementwise.h"

namespace lowbit {
namespace {

constexpr int kThreads = 256;

template <DType T = DType::f32>
__device__ __forceinline__ float apply(Function f, float a, float b) {
  switch (f) {
    case Function::add: return a + b;
    case Function::mul: return a * b;
    case Function::silu_mul: return silu(a) * b;
    case Function::gelu_mul: return (T == DType::f32 ? gelu(a) : gelu_of_half(a)) * b;
    case Function::gelu_tanh_mul: return gelu_tanh(a) * b;
  }
  return 0.0f;
}

__global__ void __launch_bounds__(kThreads)
    elementwise(const __grid_constant__ ElementwiseArgs args, const __grid_constant__ Walk walk) {
  const int64_t runs = (walk.length + kEight - 1) / kEight, total = walk.count * runs;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < total; at += stride) {
    const int64_t row = walk.count == 1 ? 0 : at / runs, first = (at - row * runs) * kEight;
    const int count = walk.length - first < kEight ? static_cast<int>(walk.length - first) : kEight;
    float a[kEight], b[kEight];
    load_eight(args.a.data, args.a.dtype, walk_offset(walk, 0, row) + first, count, a);
    load_eight(args.b.data, args.b.dtype, walk_offset(walk, 1, row) + first, count, b);
#pragma unroll
    for (int i = 0; i < kEight; ++i) a[i] = apply(args.function, a[i], b[i]);
    store_eight(args.out.data, args.out.dtype, walk_offset(walk, 2, row) + first, count, a);
  }
}

constexpr int kWords = 4;

// `count` words of 16 bytes.
template <DType T, Function F>
__global__ void __launch_bounds__(kThreads)
    flat(const void* a, const void* b, void* out, int64_t count) {
  wait_for_others();
  const int64_t first = int64_t{blockIdx.x} * (kThreads * kWords) + threadIdx.x;
  uint4 left[kWords], right[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    if (first + w * kThreads >= count) break;
    left[w] = static_cast<const uint4*>(a)[first + w * kThreads];
    right[w] = static_cast<const uint4*>(b)[first + w * kThreads];
  }
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    if (first + w * kThreads >= count) break;
    float x[kPerWord<T>], y[kPerWord<T>];
    unpack_word<T>(left[w], x);
    unpack_word<T>(right[w], y);
#pragma unroll
    for (int i = 0; i < kPerWord<T>; ++i) x[i] = apply<T>(F, x[i], y[i]);
    static_cast<uint4*>(out)[first + w * kThreads] = pack_word<T>(x);
  }
}

template <DType T>
Status run_flat(const ElementwiseArgs& a, int64_t count, const Ctx& ctx) {
  const unsigned blocks = grid_for(count, kThreads * kWords, INT32_MAX);
  const auto go = [&](auto* kernel) {
    return launch(ctx, kernel, blocks, kThreads, 0, a.a.data, a.b.data, a.out.data, count);
  };
  switch (a.function) {
    case Function::add: return go(flat<T, Function::add>);
    case Function::mul: return go(flat<T, Function::mul>);
    case Function::silu_mul: return go(flat<T, Function::silu_mul>);
    case Function::gelu_mul: return go(flat<T, Function::gelu_mul>);
    case Function::gelu_tanh_mul: return go(flat<T, Function::gelu_tanh_mul>);
  }
  return ok();
}

bool is_flat(const ElementwiseArgs& a, const Walk& walk) {
  const bool one_dtype = a.a.dtype == a.b.dtype && a.a.dtype == a.out.dtype;
  return one_dtype && walk.count == 1 && walk.length % kEight == 0 && walk.length > 0 &&
         is_aligned(a.a.data) && is_aligned(a.b.data) && is_aligned(a.out.data) &&
         walk.step[0] == 1 && walk.step[1] == 1 && walk.step[2] == 1;
}

Status run(const ElementwiseArgs& args, const Ctx& ctx) {
  const Walk walk = elementwise_walk(args);
  if (is_flat(args, walk)) {
    Status status = ok();
    with_dtype(args.a.dtype, [&](auto dtype) {
      status = run_flat<decltype(dtype)::value>(
          args, walk.length / kPerWord<decltype(dtype)::value>, ctx);
    });
    return status;
  }
  const int64_t runs = walk.count * ((walk.length + kEight - 1) / kEight);
  const unsigned blocks = grid_for(runs, kThreads, int64_t{ctx.multiprocessors} * 64);
  elementwise<<<blocks, kThreads, 0, static_cast<cudaStream_t>(ctx.stream)>>>(args, walk);
  return launched();
}

}  // namespace

extern const ElementwiseKernel elementwise_sm75;
const ElementwiseKernel elementwise_sm75 = {"elementwise_sm75", kArchSm75, {kFloats}, nullptr, run};

}  // namespace lowbit
