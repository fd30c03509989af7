// copy_sm75: out = x between any strides and dtypes.
//
// Shapes    all of copy.h.
// Layout    any strides; 16 bytes a thread where the rows of both are aligned and of one dtype.
// Bound     memory: x and out once.
// Method    contiguous tensors of one dtype move as 16-byte words, four of a thread under way at a
//           time. Rows of neighbours move as bytes, or eight at a time by way of f32; where the
//           innermost dimension has gaps, element by element, in the order of out's memory as far
//           as that is the order of the shape.
// Source    copy.h.
// Measured  NOTES.md.
#include "csrc/copy/copy.h"
#include "csrc/cuda/elements.cuh"
#include "csrc/cuda/launch.cuh"

namespace lowbit {
namespace {

constexpr int kThreads = 256;

constexpr int kWords = 4;

__global__ void __launch_bounds__(kThreads)
    copy_words(const uint4* from, uint4* to, int64_t count) {
  wait_for_others();
  const int64_t first = int64_t{blockIdx.x} * (kThreads * kWords) + threadIdx.x;
  uint4 words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if (first + i * kThreads < count) words[i] = from[first + i * kThreads];
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if (first + i * kThreads < count) to[first + i * kThreads] = words[i];
  }
}

// Neighbours of one dtype: 16 bytes a thread, ragged and askew ends byte by byte.
__global__ void __launch_bounds__(kThreads)
    copy_bytes(const __grid_constant__ CopyArgs args, const __grid_constant__ Walk walk) {
  const int64_t size = dtype_bytes(args.x.dtype), length = walk.length * size;
  const int64_t runs = (length + 15) / 16, total = walk.count * runs;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < total; at += stride) {
    const int64_t row = walk.count == 1 ? 0 : at / runs, first = (at - row * runs) * 16;
    const auto* from =
        static_cast<const uint8_t*>(args.x.data) + walk_offset(walk, 0, row) * size + first;
    auto* to = static_cast<uint8_t*>(args.out.data) + walk_offset(walk, 1, row) * size + first;
    if (length - first >= 16 && is_aligned(from) && is_aligned(to)) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      const int64_t count = length - first < 16 ? length - first : 16;
      for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    copy_floats(const __grid_constant__ CopyArgs args, const __grid_constant__ Walk walk) {
  const int64_t runs = (walk.length + kEight - 1) / kEight, total = walk.count * runs;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < total; at += stride) {
    const int64_t row = walk.count == 1 ? 0 : at / runs, first = (at - row * runs) * kEight;
    const int count = walk.length - first < kEight ? static_cast<int>(walk.length - first) : kEight;
    float v[kEight];
    load_eight(args.x.data, args.x.dtype, walk_offset(walk, 0, row) + first, count, v);
    store_eight(args.out.data, args.out.dtype, walk_offset(walk, 1, row) + first, count, v);
  }
}

__global__ void __launch_bounds__(kThreads)
    copy_elements(const __grid_constant__ CopyArgs args, const __grid_constant__ Walk walk) {
  const int64_t total = walk.count * walk.length, stride = int64_t{gridDim.x} * kThreads;
  const DType dtype = args.x.dtype;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < total; at += stride) {
    const int64_t row = at / walk.length, i = at - row * walk.length;
    const int64_t from = walk_offset(walk, 0, row) + i * walk.step[0];
    const int64_t to = walk_offset(walk, 1, row) + i * walk.step[1];
    if (dtype != args.out.dtype) {
      store_f32(args.out.data, args.out.dtype, to, load_f32(args.x.data, dtype, from));
    } else if (dtype_bytes(dtype) == 4) {
      static_cast<uint32_t*>(args.out.data)[to] = static_cast<const uint32_t*>(args.x.data)[from];
    } else if (dtype_bytes(dtype) == 2) {
      static_cast<uint16_t*>(args.out.data)[to] = static_cast<const uint16_t*>(args.x.data)[from];
    } else {
      static_cast<uint8_t*>(args.out.data)[to] = static_cast<const uint8_t*>(args.x.data)[from];
    }
  }
}

Status run(const CopyArgs& args, const Ctx& ctx) {
  const Tensor* views[] = {&args.x, &args.out};
  const Walk walk = walk_of(views, 2);
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const int64_t most = int64_t{ctx.multiprocessors} * 64;
  const int64_t bytes = walk.length * dtype_bytes(args.x.dtype);
  if (walk.count == 1 && walk.step[0] == 1 && walk.step[1] == 1 && bytes % 16 == 0 && bytes > 0 &&
      args.x.dtype == args.out.dtype && is_aligned(args.x.data) && is_aligned(args.out.data)) {
    return launch(ctx, copy_words, grid_for(bytes / 16, kThreads * kWords, INT32_MAX), kThreads, 0,
                  static_cast<const uint4*>(args.x.data), static_cast<uint4*>(args.out.data),
                  bytes / 16);
  }
  const bool neighbours = walk.length == 1 || (walk.step[0] == 1 && walk.step[1] == 1);
  if (!neighbours || walk.length == 1) {
    copy_elements<<<grid_for(walk.count * walk.length, kThreads, most), kThreads, 0, stream>>>(
        args, walk);
  } else if (args.x.dtype == args.out.dtype) {
    const int64_t runs = walk.count * ((walk.length * dtype_bytes(args.x.dtype) + 15) / 16);
    copy_bytes<<<grid_for(runs, kThreads, most), kThreads, 0, stream>>>(args, walk);
  } else {
    const int64_t runs = walk.count * ((walk.length + kEight - 1) / kEight);
    copy_floats<<<grid_for(runs, kThreads, most), kThreads, 0, stream>>>(args, walk);
  }
  return launched();
}

}  // namespace

extern const CopyKernel copy_sm75;
const CopyKernel copy_sm75 = {
    "copy_sm75", kArchSm75, {kFloats | bit(DType::e4m3) | bit(DType::e5m2)}, nullptr, run};

}  // namespace lowbit
