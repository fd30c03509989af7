// quantize_sm75: quantize_rows and dequantize_rows.
//
// Shapes    all of quantize.h.
// Layout    any strides that the contract allows; 16-byte accesses where rows are aligned.
// Bound     memory: floats and codes once.
// Method    aligned: a run of columns with one scale, be it a row or 128 of its columns, stays in
//           the registers of its threads as it lies in memory (cuda/held.cuh). Maxima are those of
//           two 16-bit floats at a time; codes leave eight (f32: four) at a time. Back, a thread
//           asks for 32 codes before it waits for the first. Else a row is a block's
//           and goes to shared memory as f32 on its way to the maximum (beyond 11776 columns it is
//           read again); 128 columns are a half-warp's. The same bits as on a CPU: maxima have no
//           order, and quotients are those of IEEE division, formed from the reciprocal of the
//           scale by two fused multiply-adds.
// Source    quantize/rows.h; Markstein, Computation of elementary functions on the IBM RISC
//           System/6000 processor, 1990 (the quotient).
// Measured  NOTES.md.
#include "csrc/cuda/codes.cuh"
#include "csrc/cuda/held.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/reduce.cuh"
#include "csrc/cuda/stage.cuh"
#include "csrc/format/format.h"
#include "csrc/quantize/quantize.h"

namespace lowbit {
namespace {

constexpr int kThreads = 256;

// max|x| as bits, which compare as integers: NaN and inf come out on top.
__device__ uint32_t magnitude_of(const float (&v)[kEight]) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const uint32_t magnitude = float_bits(v[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}
__device__ float scale_of(uint32_t magnitude, DType codes) {
  return scale_for(bits_float(magnitude >= 0x7f800000u ? 0x7fc00000u : magnitude), codes);
}

// x / by. With the nearest reciprocal, q is off by an ulp at most, the remainder is exact, and the
// second step rounds as a division does; a remainder of 0 keeps the sign of -0, being taken away. A
// scale is from 1e-12 to 2^121, so nothing leaves the range of f32 but remainders of quotients
// below 2^-60, which give the code 0 or the least scale either way.
__device__ float quotient(float x, float by, float inverse) {
  const float q = __fmul_rn(x, inverse);
  return __fmaf_rn(-inverse, __fmaf_rn(by, q, -x), q);
}

// scale_for(), of the maximum as bits.
template <DType C>
__device__ float scale_of(uint32_t magnitude) {
  constexpr float kLimit = code_limit(C);
  const float scale = fmaxf(quotient(bits_float(magnitude), kLimit, 1.0f / kLimit), 1e-12f);
  return magnitude >= 0x7f800000u ? bits_float(0x7fc00000u) : scale;
}

struct Divider {
  float scale, inverse;

  __device__ explicit Divider(float s) : scale(s), inverse(1.0f / s) {}
  __device__ float operator()(float v) const { return quotient(v, scale, inverse); }
};

__device__ void store_codes(const QuantizeArgs& a, int64_t first, int count, const Divider& divide,
                            const float (&v)[kEight]) {
  const float scale = divide.scale;
  const DType dtype = a.codes.dtype;
  auto* to = static_cast<uint8_t*>(a.codes.data) + first;
  uint8_t codes[kEight] = {};
  const auto encode = [&](auto&& one) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) codes[i] = one(divide(v[i]));
  };
  if (scale != scale) {
    // The codes of a run that has no scale are 0.
  } else if (dtype == DType::i8) {
    // 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits.
    encode([](float q) { return static_cast<uint8_t>(float_bits(q + 0x1.8p23f)); });
  } else if (dtype == DType::e4m3) {
    encode([](float q) { return f32_to_e4m3(q); });
  } else {
    encode([](float q) { return f32_to_e5m2(q); });
  }
  if (count >= kEight && (reinterpret_cast<uintptr_t>(to) & 7) == 0) {
    uint2 words = {0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words.x |= static_cast<uint32_t>(codes[i]) << (8 * i);
      words.y |= static_cast<uint32_t>(codes[i + 4]) << (8 * i);
    }
    *reinterpret_cast<uint2*>(to) = words;
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if (i < count) to[i] = codes[i];
  }
}

__global__ void __launch_bounds__(512)
    quantize_rows(const __grid_constant__ QuantizeArgs a, bool staged) {
  extern __shared__ float4 stage_room[];
  __shared__ uint32_t room[32];
  float* stage = reinterpret_cast<float*>(stage_room);
  const int64_t rows = a.codes.shape[0], length = a.codes.shape[1];
  const int64_t begin = int64_t{threadIdx.x} * kEight, step = int64_t{blockDim.x} * kEight;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t from = row * a.floats.strides[0], to = row * a.codes.strides[0];
    uint32_t largest = 0;
    float v[kEight];
    for (int64_t i = begin; i < length; i += step) {
      load_eight(a.floats.data, a.floats.dtype, from + i, ragged(i, length), v);
      if (staged) stage_eight(stage, i, v);
      const uint32_t part = magnitude_of(v);
      largest = part > largest ? part : largest;
    }
    largest = reduce_block(
        largest, 0u, [](uint32_t x, uint32_t y) { return x > y ? x : y; }, room);
    const float scale = scale_of(largest, a.codes.dtype);
    if (threadIdx.x == 0) static_cast<float*>(a.scale.data)[row * a.scale.strides[0]] = scale;
    for (int64_t i = begin; i < length; i += step) {
      const int count = ragged(i, length);
      if (staged) {
        staged_eight(stage, i, v);
      } else {
        load_eight(a.floats.data, a.floats.dtype, from + i, count, v);
      }
      store_codes(a, to + i, count, Divider(scale), v);
    }
  }
}

// A word's elements to codes. The codes of a run that has no scale are 0.
template <DType T, DType C>
__device__ void encode_word(const Divider& divide, const uint4& word,
                            uint32_t (&to)[kPerWord<T> / 4]) {
  float v[kPerWord<T>];
  unpack_word<T>(word, v);
#pragma unroll
  for (int i = 0; i < kPerWord<T>; ++i) v[i] = divide(v[i]);
#pragma unroll
  for (int i = 0; i < kPerWord<T> / 4; ++i) {
    const float* q = v + 4 * i;
    if constexpr (C == DType::i8) {
      // 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits.
      const auto whole = [](float x) { return float_bits(x + 0x1.8p23f); };
      to[i] = low_bytes(whole(q[0]), whole(q[1]), whole(q[2]), whole(q[3]));
    } else {
      to[i] = fp8_four<C>(q[0], q[1], q[2], q[3]);
    }
    if (divide.scale != divide.scale) to[i] = 0;
  }
}

// Runs of columns that have one scale each: `runs` to a row, each of `words` words but the last,
// which ends with the row. Lengths of rows in words.
struct Runs {
  int64_t count;
  unsigned runs;
  int words, row_words;
  int64_t from, to, scale;  // from one row to the next; of codes in units of kPerWord
};

template <DType T, DType C, int kWords>
__global__ void __launch_bounds__(kHeldMost, 2)
    quantize_held(const __grid_constant__ QuantizeArgs a, const __grid_constant__ Runs h) {
  __shared__ uint32_t room[16];
  wait_for_others();
  const auto run = static_cast<unsigned>(held_row());
  const unsigned row = h.runs == 1 ? run : run / h.runs, part = run - row * h.runs;
  const int first = static_cast<int>(part) * h.words;
  const int words = run >= h.count ? 0 : min(h.words, h.row_words - first);
  const auto each = [&](const auto& f) { each_held<kWords>(words, f); };
  uint4 x[kWords] = {};
  const int64_t from = row * h.from + first, to = row * h.to + first;
  each([&](int w, int at) { x[w] = word_at(a.floats.data, from + at); });
  uint32_t two = 0;
#pragma unroll
  for (const uint4& v : x) {
    for (const uint32_t u : {v.x, v.y, v.z, v.w}) {
      two = larger_of<T>(two, u & (T == DType::f32 ? 0x7fffffffu : 0x7fff7fffu));
    }
  }
  float v[kPerWord<T>];
  unpack_word<T>({two, 0, 0, 0}, v);
  const uint32_t largest = reduce_held(
      umax(float_bits(v[0]), float_bits(v[1])), 0u,
      [](uint32_t p, uint32_t q) { return umax(p, q); }, room);
  const Divider divide(scale_of<C>(largest));
  if (threadIdx.x == 0 && words > 0) {
    static_cast<float*>(a.scale.data)[row * h.scale + part] = divide.scale;
  }
  each([&](int w, int at) {
    uint32_t codes[kPerWord<T> / 4];
    encode_word<T, C>(divide, x[w], codes);
    if constexpr (T == DType::f32) {
      static_cast<uint32_t*>(a.codes.data)[to + at] = codes[0];
    } else {
      static_cast<uint2*>(a.codes.data)[to + at] = {codes[0], codes[1]};
    }
  });
}

// Rows of floats in words, and codes that may be stored as many at a time.
bool can_hold(const QuantizeArgs& a) {
  return in_eights(a.floats) && (reinterpret_cast<uintptr_t>(a.codes.data) & 7) == 0 &&
         (a.codes.shape[0] == 1 || a.codes.strides[0] % kEight == 0);
}

Status run_held(const QuantizeArgs& a, const Ctx& ctx, bool* fits) {
  const int64_t rows = a.codes.shape[0], length = a.codes.shape[1];
  const int64_t per_word = 16 / dtype_bytes(a.floats.dtype);
  const bool by_block = a.scale.rank == 2;
  Runs h = {};
  h.runs = by_block ? static_cast<unsigned>(a.scale.shape[1]) : 1;
  h.count = rows * h.runs;
  h.row_words = static_cast<int>(length / per_word);
  h.words = by_block ? static_cast<int>(kScaleBlock / per_word) : h.row_words;
  h.from = a.floats.strides[0] / per_word, h.to = a.codes.strides[0] / per_word;
  h.scale = a.scale.strides[0];
  const Held shape = held(h.count, h.words);
  *fits = shape.words > 0 && h.count <= INT32_MAX;
  Status status = ok();
  if (!*fits) return status;
  with_dtype(a.floats.dtype, [&](auto from) {
    with_codes(a.codes.dtype, [&](auto to) {
      with_held(shape, [&](auto words) {
        status = launch(
            ctx, quantize_held<decltype(from)::value, decltype(to)::value, decltype(words)::value>,
            shape.blocks, shape.block, 0, a, h);
      });
    });
  });
  return status;
}

constexpr int kLanes = kScaleBlock / kEight;  // threads of a run: 16

__global__ void __launch_bounds__(kThreads)
    quantize_blocks(const __grid_constant__ QuantizeArgs a) {
  const int64_t rows = a.codes.shape[0], length = a.codes.shape[1], runs = a.scale.shape[1];
  const int lane = threadIdx.x % kLanes;
  const int64_t stride = int64_t{gridDim.x} * (kThreads / kLanes);
  // All lanes of a warp go round equally often, for they shuffle.
  const int64_t total = (rows * runs + 1) / 2 * 2;
  for (int64_t at = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes; at < total;
       at += stride) {
    const bool there = at < rows * runs;
    const int64_t row = there ? at / runs : 0, run = there ? at - row * runs : 0;
    const int64_t first = run * kScaleBlock + lane * kEight;
    const int count = there && first < length ? ragged(first, length) : 0;
    float v[kEight];
    load_eight(a.floats.data, a.floats.dtype, row * a.floats.strides[0] + first, count, v);
    uint32_t largest = magnitude_of(v);
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const uint32_t other = __shfl_xor_sync(~0u, largest, step);
      largest = other > largest ? other : largest;
    }
    const float scale = scale_of(largest, a.codes.dtype);
    if (there && lane == 0) {
      static_cast<float*>(a.scale.data)[row * a.scale.strides[0] + run] = scale;
    }
    store_codes(a, row * a.codes.strides[0] + first, count, Divider(scale), v);
  }
}

__global__ void __launch_bounds__(kThreads) dequantize(const __grid_constant__ QuantizeArgs a) {
  const int64_t rows = a.codes.shape[0], length = a.codes.shape[1];
  const int64_t runs = (length + kEight - 1) / kEight, total = rows * runs;
  const bool by_block = a.scale.rank == 2;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < total; at += stride) {
    const int64_t row = at / runs, first = (at - row * runs) * kEight;
    const int count = ragged(first, length);
    const float scale = static_cast<const float*>(
        a.scale.data)[row * a.scale.strides[0] + (by_block ? first / kScaleBlock : 0)];
    const auto* from = static_cast<const uint8_t*>(a.codes.data) + row * a.codes.strides[0] + first;
    uint8_t codes[kEight];
    if (count >= kEight && (reinterpret_cast<uintptr_t>(from) & 7) == 0) {
      const uint2 words = *reinterpret_cast<const uint2*>(from);
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        codes[i] = static_cast<uint8_t>((i < 4 ? words.x : words.y) >> (8 * (i % 4)));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kEight; ++i) codes[i] = i < count ? from[i] : 0;
    }
    float v[kEight];
#pragma unroll
    for (int i = 0; i < kEight; ++i) v[i] = load_f32(&codes[i], a.codes.dtype, 0) * scale;
    store_eight(a.floats.data, a.floats.dtype, row * a.floats.strides[0] + first, count, v);
  }
}

// What becomes a word of 16 bytes at a time; rows have `words` of them. Lengths in words.
struct Back {
  unsigned total, words;
  int64_t from, to, scale;  // from one row to the next
};

template <DType T, DType C>
__global__ void __launch_bounds__(kThreads)
    dequantize_words(const __grid_constant__ QuantizeArgs a, const __grid_constant__ Back b) {
  constexpr int kCount = kPerWord<T>, kTimes = 32 / kCount;
  wait_for_others();
  const unsigned first = blockIdx.x * (kThreads * kTimes) + threadIdx.x;
  uint32_t codes[kTimes][kCount / 4];
  float scale[kTimes];
  int64_t to[kTimes];
#pragma unroll
  for (int i = 0; i < kTimes; ++i) {
    const unsigned at = first + i * kThreads;
    if (at >= b.total) break;
    const unsigned row = at / b.words, column = at - row * b.words;
    if constexpr (kCount == 4) {
      codes[i][0] = static_cast<const uint32_t*>(a.codes.data)[row * b.from + column];
    } else {
      const uint2 two = static_cast<const uint2*>(a.codes.data)[row * b.from + column];
      codes[i][0] = two.x, codes[i][1] = two.y;
    }
    scale[i] = static_cast<const float*>(
        a.scale.data)[row * b.scale + (a.scale.rank == 2 ? column / (kScaleBlock / kCount) : 0)];
    to[i] = row * b.to + column;
  }
#pragma unroll
  for (int i = 0; i < kTimes; ++i) {
    if (first + i * kThreads >= b.total) break;
    float v[kCount];
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) numbers_of<C>(codes[i][j], v + 4 * j);
#pragma unroll
    for (int j = 0; j < kCount; ++j) v[j] *= scale[i];
    word_at(a.floats.data, to[i]) = pack_word<T>(v);
  }
}

Status run_back(const QuantizeArgs& a, const Ctx& ctx) {
  const int64_t per_word = 16 / dtype_bytes(a.floats.dtype);
  Back b = {};
  b.words = static_cast<unsigned>(a.codes.shape[1] / per_word);
  b.total = static_cast<unsigned>(a.codes.shape[0] * b.words);
  b.from = a.codes.strides[0] / per_word, b.to = a.floats.strides[0] / per_word;
  b.scale = a.scale.strides[0];
  // 32 numbers a thread.
  const unsigned blocks = grid_for(b.total * per_word, kThreads * 32, INT32_MAX);
  Status status = ok();
  with_dtype(a.floats.dtype, [&](auto to) {
    with_codes(a.codes.dtype, [&](auto from) {
      status = launch(ctx, dequantize_words<decltype(to)::value, decltype(from)::value>, blocks,
                      kThreads, 0, a, b);
    });
  });
  return status;
}

Status run(const QuantizeArgs& args, const Ctx& ctx) {
  const int64_t rows = args.codes.shape[0], length = args.codes.shape[1];
  const int64_t most = int64_t{ctx.multiprocessors} * 64;
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  const bool aligned = can_hold(args) && rows > 0;
  if (args.inverse) {
    if (length == 0) return ok();
    const int64_t runs = rows * ((length + kEight - 1) / kEight);
    if (aligned && runs <= INT32_MAX / 4) return run_back(args, ctx);
    dequantize<<<grid_for(runs, kThreads, most), kThreads, 0, stream>>>(args);
    return launched();
  }
  if (aligned) {
    bool fits = false;
    const Status status = run_held(args, ctx, &fits);
    if (fits) return status;
  }
  if (args.scale.rank == 2) {
    const int64_t runs = rows * args.scale.shape[1];
    if (runs == 0) return ok();
    quantize_blocks<<<grid_for(runs, kThreads / kLanes, most), kThreads, 0, stream>>>(args);
  } else {
    quantize_rows<<<grid_for(rows, 1, int64_t{1} << 20), threads_for(length), staged_bytes(length),
                    stream>>>(args, length <= kStagedMax);
  }
  return launched();
}

}  // namespace

extern const QuantizeKernel quantize_sm75;
const QuantizeKernel quantize_sm75 = {
    "quantize_sm75", kArchSm75, {kFloats, kCodeDTypes}, nullptr, run};

}  // namespace lowbit
