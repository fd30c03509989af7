// elementwise_sm75: the functions of elementwise.h, eight neighbouring elements a thread.
//
// Shapes    all of elementwise.h.
// Layout    any strides that the contract allows; 16-byte accesses where all rows are aligned.
// Bound     memory: a, b and out once.
// Method    the views as few long rows (base/rows.h), cut into runs of eight; a grid that strides
//           over the runs. f32 arithmetic whatever the dtypes.
// Source    the formulas in elementwise.h.
// Measured  NOTES.md.
#include "csrc/cuda/elements.cuh"
#include "csrc/cuda/functions.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/elementwise/elementwise.h"

namespace lowbit {
namespace {

constexpr int kThreads = 256;

__device__ float apply(Function f, float a, float b) {
  switch (f) {
    case Function::add: return a + b;
    case Function::silu_mul: return silu(a) * b;
    case Function::gelu_mul: return gelu(a) * b;
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

Status run(const ElementwiseArgs& args, const Ctx& ctx) {
  const Walk walk = elementwise_walk(args);
  const int64_t runs = walk.count * ((walk.length + kEight - 1) / kEight);
  const unsigned blocks = grid_for(runs, kThreads, int64_t{ctx.multiprocessors} * 64);
  elementwise<<<blocks, kThreads, 0, static_cast<cudaStream_t>(ctx.stream)>>>(args, walk);
  return launched();
}

}  // namespace

extern const ElementwiseKernel elementwise_sm75;
const ElementwiseKernel elementwise_sm75 = {"elementwise_sm75", kArchSm75, {kFloats}, nullptr, run};

}  // namespace lowbit
