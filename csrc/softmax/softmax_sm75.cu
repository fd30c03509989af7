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
#include "csrc/cuda/functions.cuh"
#include "csrc/cuda/held.cuh"
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

// Of a row whose largest score is `max`: e^(scale x - max), by expf where out has its digits. 16
// bits do with a product that is not rounded, for a difference of scores has the digits that their
// magnitude leaves it, and with an exponential that is scaled up, so that none that bf16 has is
// lost below the range of the instruction.
constexpr float kRaised = 32.0f;

template <DType T>
__device__ float exponential(float x, float scale, float max) {
  if constexpr (T == DType::f32) return expf(x * scale - max);
  return power_of_two(__fmaf_rn(__fmaf_rn(x, scale, -max), 1.44269504f, kRaised));
}

// Lengths in words of 16 bytes.
struct Words {
  int64_t rows;
  int words;       // of a row
  int64_t x, out;  // from one row to the next
};

template <DType T, int kWords>
__global__ void __launch_bounds__(kHeldMost, 2)
    softmax_held(const void* from, void* to, const __grid_constant__ Words h, float scale) {
  constexpr int kCount = kPerWord<T>;
  __shared__ float rooms[2][16];
  wait_for_others();
  const int64_t row = held_row();
  const int words = row < h.rows ? h.words : 0;
  const auto each = [&](const auto& f) { each_held<kWords>(words, f); };
  uint4 x[kWords] = {};
  each([&](int w, int at) { x[w] = word_at(from, row * h.x + at); });
  float max = -INFINITY, sum = 0.0f, v[kCount];
  each([&](int w, int) {
    unpack_word<T>(x[w], v);
#pragma unroll
    for (int i = 0; i < kCount; ++i) max = fmaxf(max, v[i] * scale);
  });
  max = reduce_held(
      max, -INFINITY, [](float a, float b) { return fmaxf(a, b); }, rooms[0]);
  // The first leaves zeros, the other NaN.
  if (max == -INFINITY) max = 0.0f;
  if (max == INFINITY) max = NAN;
  forget(x);
  each([&](int w, int) {
    unpack_word<T>(x[w], v);
    float part = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) part += exponential<T>(v[i], scale, max);
    sum += part;
  });
  sum = reduce_held(
      sum, 0.0f, [](float a, float b) { return a + b; }, rooms[1]);
  const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
  forget(x);
  each([&](int w, int at) {
    unpack_word<T>(x[w], v);
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = exponential<T>(v[i], scale, max) * factor;
    word_at(to, row * h.out + at) = pack_word<T>(v);
  });
}

// A thread's words of a row, so many at a time; threads of a row at most.
constexpr int kAsked = 4;
constexpr unsigned kArgmaxMost = 1024;

template <DType T>
__device__ uint32_t larger_in(const uint4& word) {
  return larger_of<T>(larger_of<T>(word.x, word.y), larger_of<T>(word.z, word.w));
}
template <DType T>
__device__ int32_t largest_key(uint32_t two) {
  if constexpr (T == DType::f32) return key_of(__uint_as_float(two));
  float v[kEight];
  unpack_word<T>({two, 0, 0, 0}, v);
  return max(key_of(v[0]), key_of(v[1]));
}

// Over a warp, or over the `lanes` of it that share a row.
template <class Op>
__device__ int32_t reduce_lanes(int32_t value, unsigned lanes, const Op& op) {
  for (unsigned step = min(lanes, 32u) / 2; step > 0; step /= 2) {
    value = op(value, __shfl_xor_sync(~0u, value, step));
  }
  return value;
}
__device__ int32_t largest_across(int32_t key, unsigned lanes) {
#if __CUDA_ARCH__ >= 800
  if (lanes >= 32) return __reduce_max_sync(~0u, key);
#endif
  return reduce_lanes(key, lanes, [](int32_t a, int32_t b) { return max(a, b); });
}
__device__ int32_t least_across(int32_t index, unsigned lanes) {
#if __CUDA_ARCH__ >= 800
  if (lanes >= 32) return __reduce_min_sync(~0u, index);
#endif
  return reduce_lanes(index, lanes, [](int32_t a, int32_t b) { return min(a, b); });
}

// The words that had the largest key are kept: where in them it is can wait for the end.
template <DType T>
__global__ void __launch_bounds__(kArgmaxMost)
    argmax_words(const void* x, const __grid_constant__ Words h, int32_t* out,
                 const __grid_constant__ Rows places) {
  __shared__ Best room[32];
  wait_for_others();
  const unsigned lanes = blockDim.x;
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool here = row < h.rows;
  Best best = {INT32_MIN, INT32_MAX};
  uint4 kept[kAsked] = {};
  for (int first = threadIdx.x; here && first < h.words; first += kAsked * lanes) {
    uint4 word[kAsked];
#pragma unroll
    for (int i = 0; i < kAsked; ++i) {
      // The last word once more changes nothing: an earlier place of the same key wins.
      const int at = min(static_cast<int>(first + i * lanes), h.words - 1);
      word[i] = word_at(x, row * h.x + at);
    }
    uint32_t two = larger_in<T>(word[0]);
#pragma unroll
    for (int i = 1; i < kAsked; ++i) two = larger_of<T>(two, larger_in<T>(word[i]));
    const int32_t key = largest_key<T>(two);
    if (key <= best.key) continue;
    best = {key, first};
#pragma unroll
    for (int i = 0; i < kAsked; ++i) kept[i] = word[i];
  }
  // Of the lanes with the largest key of the row, the first place.
  Best found = {largest_across(best.key, lanes), INT32_MAX};
  if (best.key == found.key && here) {
    int which = kAsked - 1;
    uint4 word = kept[which];
#pragma unroll
    for (int i = kAsked - 2; i >= 0; --i) {
      if (largest_key<T>(larger_in<T>(kept[i])) == found.key) which = i, word = kept[i];
    }
    float v[kPerWord<T>];
    unpack_word<T>(word, v);
    int place = 0;
#pragma unroll
    for (int j = kPerWord<T> - 1; j >= 0; --j) {
      if (key_of(v[j]) == found.key) place = j;
    }
    const int at = min(static_cast<int>(best.index + which * lanes), h.words - 1);
    found.index = at * kPerWord<T> + place;
  }
  found.index = least_across(found.index, lanes);
  if (lanes > 32) {
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = found;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned i = 1; i < lanes / 32; ++i) found = better(found, room[i]);
  }
  if (threadIdx.x == 0 && here) out[row_offset(places, row)] = found.index;
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

// Short rows share a warp, others have one, or as many as make 1024 threads on every
// multiprocessor.
Status run_argmax(const SoftmaxArgs& a, const Words& h, const Rows& out, const Ctx& ctx) {
  const int64_t enough = int64_t{ctx.multiprocessors} * 992;  // some less: rows are a power of two
  unsigned lanes = 1;
  while (lanes < kArgmaxMost && int64_t{lanes} * kAsked < h.words &&
         (lanes < 32 || h.rows * lanes < enough)) {
    lanes *= 2;
  }
  const dim3 block(lanes, lanes > 32 ? 1 : 128 / lanes);
  const auto blocks = static_cast<unsigned>((h.rows + block.y - 1) / block.y);
  Status status = ok();
  with_dtype(a.x.dtype, [&](auto dtype) {
    status = launch(ctx, argmax_words<decltype(dtype)::value>, blocks, block, 0, a.x.data, h,
                    static_cast<int32_t*>(a.out.data), out);
  });
  return status;
}

Status run(const SoftmaxArgs& args, const Ctx& ctx) {
  const bool rows_out = args.function == RowFunction::softmax;
  const Rows x = rows_of(args.x), out = rows_out ? rows_of(args.out) : elements_of(args.out);
  const bool staged = x.length <= kStagedMax;
  const unsigned blocks = grid_for(x.count, 1, int64_t{1} << 20), threads = threads_for(x.length);
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const size_t room = staged_bytes(x.length);
  const bool even = x.rank <= 1 && x.count > 0 && in_eights(args.x);
  const int64_t per_word = 16 / dtype_bytes(args.x.dtype);
  const auto step = [&](const Rows& rows) {
    return rows.rank > 0 ? rows.strides[0] / per_word : 0;
  };
  const Words h = {x.count, static_cast<int>(x.length / per_word), step(x), step(out)};
  // Blocks of 256 threads wait less for each other than those of 512.
  if (const Held shape = held(x.count, x.length / per_word, 1024);
      rows_out && even && shape.words > 0 && out.rank <= 1 && args.x.dtype == args.out.dtype &&
      in_eights(args.out)) {
    Status status = ok();
    with_dtype(args.x.dtype, [&](auto dtype) {
      with_held(shape, [&](auto words) {
        status = launch(ctx, softmax_held<decltype(dtype)::value, decltype(words)::value>,
                        shape.blocks, shape.block, 0, args.x.data, args.out.data, h, args.scale);
      });
    });
    return status;
  }
  if (args.function == RowFunction::argmax && even && x.length > 0 && x.length <= INT32_MAX) {
    return run_argmax(args, h, out, ctx);
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
