// quantize_sm75: quantize_rows and dequantize_rows.
//
// Shapes    all of quantize.h.
// Layout    any strides that the contract allows; 16-byte accesses where rows are aligned.
// Bound     memory: floats and codes once.
// Method    a row with one scale is a block's: aligned rows up to 16384 columns stay in registers,
//           others go to shared memory as f32 on their way to the maximum (beyond 11776 columns
//           they are read again). A run of 128 columns is a half-warp's, which keeps it in
//           registers. Codes leave eight at a time. The same bits as on a CPU: maxima have no
//           order, and quotients are those of IEEE division, formed from the reciprocal of the
//           scale by two fused multiply-adds.
// Source    quantize/rows.h; Markstein, Computation of elementary functions on the IBM RISC
//           System/6000 processor, 1990 (the quotient).
// Measured  NOTES.md.
#include "csrc/cuda/eight.cuh"
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

// v / scale. With the nearest reciprocal, q is off by an ulp at most, the remainder is exact, and
// the second step rounds as a division does. Where the scale is extreme the remainder may leave the
// range of f32; quotients that are tiny give the code 0 either way.
struct Divider {
  float scale, inverse;
  bool plain;

  __device__ explicit Divider(float s) : scale(s), inverse(1.0f / s) {
    plain = !(s > 0x1p-60f && s < 0x1p60f);
  }
  __device__ float operator()(float v) const {
    if (plain) return v / scale;
    const float q = v * inverse;
    // The sum would lose the sign of -0.
    return copysignf(__fmaf_rn(__fmaf_rn(-scale, q, v), inverse, q), v);
  }
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

template <DType T, int kRuns>
__global__ void __launch_bounds__(kHeldThreads<kRuns>, kHeldBlocks<T, kRuns>)
    quantize_held(const __grid_constant__ QuantizeArgs a, int eights) {
  __shared__ uint32_t room[32];
  wait_for_others();
  const int64_t row = blockIdx.x;
  const void* from = element(a.floats.data, T, row * a.floats.strides[0]);
  Eight<T> raw[kRuns];
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    const int at = threadIdx.x + r * blockDim.x;
    raw[r] = {};
    if (at < eights) raw[r] = fetch<T>(from, at);
  }
  float v[kRuns][kEight];
  uint32_t largest = 0;
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    unpack<T>(raw[r], v[r]);
    const uint32_t part = magnitude_of(v[r]);
    largest = part > largest ? part : largest;
  }
  largest = reduce_block(
      largest, 0u, [](uint32_t x, uint32_t y) { return x > y ? x : y; }, room);
  const Divider divide(scale_of(largest, a.codes.dtype));
  if (threadIdx.x == 0) {
    static_cast<float*>(a.scale.data)[row * a.scale.strides[0]] = divide.scale;
  }
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    const int at = threadIdx.x + r * blockDim.x;
    if (at < eights) {
      store_codes(a, row * a.codes.strides[0] + at * kEight, kEight, divide, v[r]);
    }
  }
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

Status run(const QuantizeArgs& args, const Ctx& ctx) {
  const int64_t rows = args.codes.shape[0], length = args.codes.shape[1];
  const int64_t most = int64_t{ctx.multiprocessors} * 64;
  const auto stream = static_cast<cudaStream_t>(ctx.stream);
  if (args.inverse) {
    if (length == 0) return ok();
    const int64_t runs = rows * ((length + kEight - 1) / kEight);
    dequantize<<<grid_for(runs, kThreads, most), kThreads, 0, stream>>>(args);
  } else if (args.scale.rank == 2) {
    const int64_t runs = rows * args.scale.shape[1];
    if (runs == 0) return ok();
    quantize_blocks<<<grid_for(runs, kThreads / kLanes, most), kThreads, 0, stream>>>(args);
  } else if (const Held shape = held(length); shape.threads > 0 && in_eights(args.floats)) {
    Status status = ok();
    if (rows == 0) return status;
    with_dtype(args.floats.dtype, [&](auto dtype) {
      with_runs(shape.runs, [&](auto runs) {
        status = launch(ctx, quantize_held<decltype(dtype)::value, decltype(runs)::value>,
                        static_cast<unsigned>(rows), shape.threads, 0, args,
                        static_cast<int>(length / kEight));
      });
    });
    return status;
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
