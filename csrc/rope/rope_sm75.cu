// rope_sm75: rotary position embedding, eight pairs a thread.
//
// Shapes    all of rope.h.
// Layout    any strides that the contract allows; 16-byte accesses where halves are aligned.
// Bound     memory: x and out once; the tables stay in L2.
// Method    a head is a list of runs: eight pairs each, then the columns that are copied. A thread
//           reads both sides of its pairs before it writes, so out may be x. A position out of
//           range is reported, its token left alone.
// Source    the formula in rope.h.
// Measured  NOTES.md.
#include "csrc/cuda/elements.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/rope/rope.h"

namespace lowbit {
namespace {

constexpr int kThreads = 256;

struct Runs {
  int64_t pairs, all;  // of one head
};

__device__ int part(int64_t first, int64_t end) {
  return end - first < kEight ? static_cast<int>(end - first) : kEight;
}

__device__ void turn(const RopeArgs& a, int64_t position, int64_t x, int64_t out, int64_t first) {
  const int64_t half = a.cos.shape[1];
  const int count = part(first, half);
  const auto* cos = static_cast<const float*>(a.cos.data) + position * a.cos.strides[0] + first;
  const auto* sin = static_cast<const float*>(a.sin.data) + position * a.sin.strides[0] + first;
  float low[kEight], high[kEight];
  if (a.pairing == Pairing::half) {
    load_eight(a.x.data, a.x.dtype, x + first, count, low);
    load_eight(a.x.data, a.x.dtype, x + half + first, count, high);
  } else {
    float wide[2][kEight];
    load_eight(a.x.data, a.x.dtype, x + 2 * first, 2 * count, wide[0]);
    load_eight(a.x.data, a.x.dtype, x + 2 * first + kEight, 2 * count - kEight, wide[1]);
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      low[i] = wide[i / 4][i % 4 * 2];
      high[i] = wide[i / 4][i % 4 * 2 + 1];
    }
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const float c = i < count ? cos[i] : 0.0f, s = i < count ? sin[i] : 0.0f;
    const float x1 = low[i], x2 = high[i];
    low[i] = x1 * c - x2 * s;
    high[i] = x2 * c + x1 * s;
  }
  if (a.pairing == Pairing::half) {
    store_eight(a.out.data, a.out.dtype, out + first, count, low);
    store_eight(a.out.data, a.out.dtype, out + half + first, count, high);
  } else {
    float wide[2][kEight];
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      wide[i / 4][i % 4 * 2] = low[i];
      wide[i / 4][i % 4 * 2 + 1] = high[i];
    }
    store_eight(a.out.data, a.out.dtype, out + 2 * first, 2 * count, wide[0]);
    store_eight(a.out.data, a.out.dtype, out + 2 * first + kEight, 2 * count - kEight, wide[1]);
  }
}

__global__ void __launch_bounds__(kThreads)
    rope(const __grid_constant__ RopeArgs a, const __grid_constant__ Rows x,
         const __grid_constant__ Rows out, Runs runs, unsigned long long* check) {
  const int64_t heads = a.x.shape[a.x.rank - 2], seq = a.x.shape[a.x.rank - 3];
  const int64_t head_dim = a.x.shape[a.x.rank - 1], half = a.cos.shape[1];
  const int64_t total = x.count * runs.all, stride = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < total; at += stride) {
    const int64_t row = at / runs.all, run = at - row * runs.all;
    const int64_t token = row / heads, batch = token / seq, index = token - batch * seq;
    const int64_t position = rope_position(a, batch, index);
    if (position < 0 || position >= a.cos.shape[0]) {
      if (check != nullptr && run == 0) {
        report(check, a.positions.rank == 2 ? token : index, static_cast<int32_t>(position));
      }
      continue;
    }
    const int64_t from = row_offset(x, row), to = row_offset(out, row);
    if (run < runs.pairs) {
      turn(a, position, from, to, run * kEight);
    } else {
      const int64_t first = 2 * half + (run - runs.pairs) * kEight;
      const int count = part(first, head_dim);
      float v[kEight];
      load_eight(a.x.data, a.x.dtype, from + first, count, v);
      store_eight(a.out.data, a.out.dtype, to + first, count, v);
    }
  }
}

Status run(const RopeArgs& args, const Ctx& ctx) {
  const Rows x = rows_of(args.x), out = rows_of(args.out);
  const int64_t half = args.cos.shape[1], rest = x.length - 2 * half;
  Runs runs = {(half + kEight - 1) / kEight, 0};
  runs.all = runs.pairs + (rest + kEight - 1) / kEight;
  const unsigned blocks = grid_for(x.count * runs.all, kThreads, int64_t{ctx.multiprocessors} * 64);
  rope<<<blocks, kThreads, 0, static_cast<cudaStream_t>(ctx.stream)>>>(args, x, out, runs,
                                                                       ctx.check);
  return launched();
}

}  // namespace

extern const RopeKernel rope_sm75;
const RopeKernel rope_sm75 = {"rope_sm75", kArchSm75, {kFloats}, nullptr, run};

}  // namespace lowbit
