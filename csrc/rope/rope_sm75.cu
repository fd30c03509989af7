// rope_sm75: rotary position embedding, eight pairs a thread.
//
// Shapes    all of rope.h.
// Layout    any strides that the contract allows; 16-byte accesses where halves are aligned.
// Bound     memory: x and out once; the tables stay in L2.
// Method    a head is a list of runs: eight pairs each, then the columns that are copied. A thread
//           reads both sides of its pairs before it writes, so out may be x. Where whole heads of
//           one dtype are turned by halves, a thread turns the same pairs of four heads with one
//           reading of the tables. A position out of range is reported, its token left alone.
// Source    the formula in rope.h.
// Measured  NOTES.md.
#include "csrc/cuda/eight.cuh"
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

constexpr unsigned kHeads = 4;

// Lengths in memory count words of 16 bytes of T, those of the tables words of f32.
struct Halves {
  unsigned total, groups, pairs, heads, seq;
  int64_t x, out;    // from one head to the next
  int64_t cos, sin;  // from one position to the next
};

template <DType T>
__global__ void __launch_bounds__(kThreads)
    rope_halves(const __grid_constant__ RopeArgs a, const __grid_constant__ Halves h,
                unsigned long long* check) {
  constexpr int kWord = kPerWord<T>, kTable = kWord / 4;
  wait_for_others();
  const unsigned at = blockIdx.x * kThreads + threadIdx.x;
  if (at >= h.total) return;
  const unsigned run = at % h.pairs, group = at / h.pairs % h.groups;
  const unsigned token = at / h.pairs / h.groups, batch = token / h.seq, index = token % h.seq;
  const int64_t first = int64_t{token} * h.heads + group * kHeads;
  const unsigned left = h.heads - group * kHeads;
  const auto* x = static_cast<const uint4*>(a.x.data) + first * h.x + run;
  uint4 raw[kHeads][2];
#pragma unroll
  for (unsigned i = 0; i < kHeads; ++i) {
    if (i >= left) break;
    raw[i][0] = x[i * h.x];
    raw[i][1] = x[i * h.x + h.pairs];
  }
  const int64_t position = rope_position(a, batch, index);
  if (position < 0 || position >= a.cos.shape[0]) {
    if (check != nullptr && run == 0 && group == 0) {
      report(check, a.positions.rank == 2 ? token : index, static_cast<int32_t>(position));
    }
    return;
  }
  float cos[kWord], sin[kWord];
#pragma unroll
  for (int i = 0; i < kTable; ++i) {
    const int64_t place = int64_t{run} * kTable + i;
    unpack_word<DType::f32>(static_cast<const uint4*>(a.cos.data)[position * h.cos + place],
                            cos + 4 * i);
    unpack_word<DType::f32>(static_cast<const uint4*>(a.sin.data)[position * h.sin + place],
                            sin + 4 * i);
  }
  auto* out = static_cast<uint4*>(a.out.data) + first * h.out + run;
#pragma unroll
  for (unsigned i = 0; i < kHeads; ++i) {
    if (i >= left) break;
    float low[kWord], high[kWord];
    unpack_word<T>(raw[i][0], low);
    unpack_word<T>(raw[i][1], high);
#pragma unroll
    for (int j = 0; j < kWord; ++j) {
      const float x1 = low[j], x2 = high[j];
      low[j] = x1 * cos[j] - x2 * sin[j];
      high[j] = x2 * cos[j] + x1 * sin[j];
    }
    out[i * h.out] = pack_word<T>(low);
    out[i * h.out + h.pairs] = pack_word<T>(high);
  }
}

bool are_halves(const RopeArgs& a, const Rows& x, const Rows& out) {
  const int64_t half = a.cos.shape[1];
  return a.pairing == Pairing::half && a.x.dtype == a.out.dtype && x.length == 2 * half &&
         half % kEight == 0 && x.rank <= 1 && out.rank <= 1 && in_eights(a.x) && in_eights(a.out) &&
         in_eights(a.cos) && in_eights(a.sin) && x.count * (half / 4) <= INT32_MAX;
}

Status run_halves(const RopeArgs& a, const Rows& x, const Rows& out, const Ctx& ctx) {
  Status status = ok();
  with_dtype(a.x.dtype, [&](auto dtype) {
    constexpr int kWord = kPerWord<decltype(dtype)::value>;
    const auto step = [](const Rows& rows) { return rows.rank > 0 ? rows.strides[0] / kWord : 0; };
    Halves h = {};
    h.heads = static_cast<unsigned>(a.x.shape[a.x.rank - 2]);
    h.seq = static_cast<unsigned>(a.x.shape[a.x.rank - 3]);
    h.groups = (h.heads + kHeads - 1) / kHeads;
    h.pairs = static_cast<unsigned>(a.cos.shape[1] / kWord);
    h.total = static_cast<unsigned>(x.count / h.heads) * h.groups * h.pairs;
    h.x = step(x), h.out = step(out);
    h.cos = a.cos.strides[0] / 4, h.sin = a.sin.strides[0] / 4;
    status = launch(ctx, rope_halves<decltype(dtype)::value>,
                    grid_for(h.total, kThreads, INT32_MAX), kThreads, 0, a, h, ctx.check);
  });
  return status;
}

Status run(const RopeArgs& args, const Ctx& ctx) {
  const Rows x = rows_of(args.x), out = rows_of(args.out);
  if (x.count > 0 && are_halves(args, x, out)) return run_halves(args, x, out, ctx);
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
