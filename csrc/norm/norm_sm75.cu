// norm_sm75: rms and layer norm, one block a row.
//
// Shapes    all of norm.h.
// Layout    any strides that the contract allows; 16-byte accesses where rows are aligned.
// Bound     memory: x, residual, residual_out and out once each.
// Method    rows of one dtype up to 16384 columns stay in registers, eight neighbours a run. Runs
//           are summed in f32 and their sums in double; a sum out of the range where that is exact
//           enough is formed once more, all in double. Other rows go to shared memory as f32 on
//           their way (beyond 11776 columns they are read again) and are summed in double. The
//           quotient is f32, or double where the factor leaves that range.
// Source    the formulas in norm.h.
// Measured  NOTES.md.
#include "csrc/cuda/held.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/reduce.cuh"
#include "csrc/cuda/stage.cuh"
#include "csrc/norm/norm.h"

namespace lowbit {
namespace {

struct RowsOfAll {
  Rows x, residual, residual_out, out;
};

// Offsets of one row.
struct At {
  int64_t x, residual, residual_out, out;
};

// Eight elements of x + residual; the first time, residual_out is written and read back rounded.
__device__ void make_u(const NormArgs& a, const At& at, int64_t i, int count, bool first,
                       float (&u)[kEight]) {
  if (!first && present(a.residual_out)) {
    load_eight(a.residual_out.data, a.residual_out.dtype, at.residual_out + i, count, u);
    return;
  }
  load_eight(a.x.data, a.x.dtype, at.x + i, count, u);
  if (!present(a.residual)) return;
  float more[kEight];
  load_eight(a.residual.data, a.residual.dtype, at.residual + i, count, more);
#pragma unroll
  for (int j = 0; j < kEight; ++j) u[j] += more[j];
  if (!present(a.residual_out)) return;
  const DType dtype = a.residual_out.dtype;
  store_eight(a.residual_out.data, dtype, at.residual_out + i, count, u);
#pragma unroll
  for (int j = 0; j < kEight; ++j) {
    if (dtype == DType::bf16) u[j] = bf16_to_f32(f32_to_bf16(u[j]));
    if (dtype == DType::f16) u[j] = half_to_f32(f32_to_half(u[j]));
  }
}

__global__ void __launch_bounds__(512)
    norm(const __grid_constant__ NormArgs a, const __grid_constant__ RowsOfAll rows, bool staged) {
  extern __shared__ float4 stage_room[];
  __shared__ double room[32];
  float* stage = reinterpret_cast<float*>(stage_room);
  const int64_t length = rows.x.length, step = int64_t{blockDim.x} * kEight;
  const int64_t begin = int64_t{threadIdx.x} * kEight;
  const bool layer = a.kind == NormKind::layer;
  for (int64_t row = blockIdx.x; row < rows.x.count; row += gridDim.x) {
    const At at = {row_offset(rows.x, row), row_offset(rows.residual, row),
                   row_offset(rows.residual_out, row), row_offset(rows.out, row)};
    double sum = 0;
    float u[kEight];
    for (int64_t i = begin; i < length; i += step) {
      make_u(a, at, i, ragged(i, length), true, u);
      if (staged) stage_eight(stage, i, u);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const double v = u[j];  // 0 beyond the row
        sum += layer ? v : v * v;
      }
    }
    sum = sum_block(sum, room);
    double mean = 0;
    if (layer) {
      mean = sum / static_cast<double>(length);
      sum = 0;
      for (int64_t i = begin; i < length; i += step) {
        const int count = ragged(i, length);
        if (staged) {
          staged_eight(stage, i, u);
        } else {
          make_u(a, at, i, count, false, u);
        }
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
          const double d = u[j] - mean;
          if (j < count) sum += d * d;
        }
      }
      sum = sum_block(sum, room);
    }
    const double factor = 1 / sqrt(sum / static_cast<double>(length) + a.eps);
    // NaN and inf take the f32 way: they come out the same.
    const bool wide = (factor > 1e30 && factor < INFINITY) || (factor < 1e-30 && factor > 0);
    const auto head = static_cast<float>(mean), rest = static_cast<float>(mean - head);
    const auto scale = static_cast<float>(factor);
    for (int64_t i = begin; i < length; i += step) {
      const int count = ragged(i, length);
      if (staged) {
        staged_eight(stage, i, u);
      } else {
        make_u(a, at, i, count, false, u);
      }
      float weight[kEight], bias[kEight];
      if (present(a.weight)) load_eight(a.weight.data, a.weight.dtype, i, count, weight);
      if (present(a.bias)) load_eight(a.bias.data, a.bias.dtype, i, count, bias);
#pragma unroll
      for (int j = 0; j < kEight; ++j) {
        const float w = present(a.weight) ? weight[j] : 1.0f;
        const float b = present(a.bias) ? bias[j] : 0.0f;
        if (wide) {
          u[j] = static_cast<float>((u[j] - mean) * factor * w + b);
        } else if (layer) {
          u[j] = ((u[j] - head) - rest) * scale * w + b;
        } else {
          u[j] = u[j] * scale * w;
        }
      }
      store_eight(a.out.data, a.out.dtype, at.out + i, count, u);
    }
  }
}

// Lengths in words of 16 bytes.
struct Words {
  int64_t rows;
  int words;                               // of a row
  int64_t x, residual, residual_out, out;  // from one row to the next
  double share;                            // 1 / columns
};

// What brings rows into the range of f32 whose squares leave it.
constexpr float kDown = 0x1p-80f, kUp = 0x1p100f;

// Elements of weight or bias that stand at a word of x; f32 where `kPlain`.
template <bool kPlain, int kCount>
__device__ void load_part(const Tensor& t, int at, float (&to)[kCount]) {
  if (kPlain || t.dtype == DType::f32) {
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      unpack_word<DType::f32>(word_at(t.data, at * (kCount / 4) + i), to + 4 * i);
    }
    return;
  }
  uint4 word = {};
  if constexpr (kCount == 8) {
    word = word_at(t.data, at);
  } else {
    const uint2 two = static_cast<const uint2*>(t.data)[at];
    word.x = two.x, word.y = two.y;
  }
  float v[kEight];
  if (t.dtype == DType::bf16) {
    unpack_word<DType::bf16>(word, v);
  } else {
    unpack_word<DType::f16>(word, v);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = v[i];
}

// Of a row's elements u: the sum of u^2, and with layer that of u, in double, for their difference
// is taken.
template <bool kLayer>
struct Sums {
  float squares;
};
template <>
struct Sums<true> {
  double whole, squares;
};
__device__ Sums<false> operator+(const Sums<false>& p, const Sums<false>& q) {
  return {p.squares + q.squares};
}
__device__ Sums<true> operator+(const Sums<true>& p, const Sums<true>& q) {
  return {p.whole + q.whole, p.squares + q.squares};
}
__device__ Sums<false> from_lane(const Sums<false>& s, unsigned step) {
  return {__shfl_xor_sync(~0u, s.squares, step)};
}
__device__ Sums<true> from_lane(const Sums<true>& s, unsigned step) {
  return {__shfl_xor_sync(~0u, s.whole, step), __shfl_xor_sync(~0u, s.squares, step)};
}

template <DType T, int kWords, bool kLayer, bool kSum>
__global__ void __launch_bounds__(kHeldMost, kWords == 8 ? 1 : 2)
    norm_held(const __grid_constant__ NormArgs a, const __grid_constant__ Words h) {
  constexpr int kCount = kPerWord<T>;
  __shared__ Sums<kLayer> room[2][16];
  wait_for_others();
  const int64_t row = held_row();
  const int words = row < h.rows ? h.words : 0;
  const auto each = [&](const auto& f) { each_held<kWords>(words, f); };
  uint4 x[kWords] = {}, more[kSum ? kWords : 1] = {};
  each([&](int w, int at) {
    x[w] = word_at(a.x.data, row * h.x + at);
    if constexpr (kSum) more[w] = word_at(a.residual.data, row * h.residual + at);
  });
  float range = 1.0f;  // what brings the row into the range of f32
  bool adds = kSum;
  const auto elements_at = [&](int w, float(&u)[kCount]) {
    unpack_word<T>(x[w], u);
    if constexpr (kSum) {
      if (adds) {
        float v[kCount];
        unpack_word<T>(more[w], v);
#pragma unroll
        for (int i = 0; i < kCount; ++i) u[i] += v[i];
      }
    }
    if (range == 1.0f) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) u[i] *= range;
  };
  float u[kCount];
  if (kSum && present(a.residual_out)) {
    each([&](int w, int at) {
      elements_at(w, u);
      x[w] = pack_word<T>(u);
      word_at(a.residual_out.data, row * h.residual_out + at) = x[w];
    });
    adds = false;
  }

  float head = 0.0f, rest = 0.0f, factor = 0.0f;  // the mean in two parts
  // Once more for rows that were out of range; those of a warp go together, for they shuffle.
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    Sums<kLayer> sum = {};
    forget(x), forget(more);
    if constexpr (kLayer) {
      // About what is near the mean, lest digits be lost where the mean is large.
      float count = 0.0f, middle = 0.0f, off = 0.0f, squares = 0.0f;
      each([&](int w, int) {
        elements_at(w, u);
        if (w == 0) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) middle += u[i];
          middle *= 1.0f / kCount;
        }
        count += kCount;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float d = u[i] - middle;
          off += d;
          squares = __fmaf_rn(d, d, squares);
        }
      });
      const double m = middle, whole = m * count + off;
      sum = {whole, squares + m * (whole + off)};
    } else {
      each([&](int w, int) {
        elements_at(w, u);
#pragma unroll
        for (int i = 0; i < kCount; ++i) sum.squares = __fmaf_rn(u[i], u[i], sum.squares);
      });
    }
    sum = reduce_held(
        sum, Sums<kLayer>{}, [](const auto& p, const auto& q) { return p + q; }, room[turn]);
    double square = sum.squares;
    if constexpr (kLayer) {
      const double mean = sum.whole * h.share;
      square -= sum.whole * mean;
      square = square < 0.0 ? 0.0 : square;  // NaN stays
      head = static_cast<float>(mean), rest = static_cast<float>(mean - head);
    }
    const double by = range, under = square * h.share + a.eps * (by * by);
    factor = 1.0f / sqrtf(static_cast<float>(under));
    const bool high = !(square < 1e37), good = !high && !(under < 1e-27);
    if (turn == 0 && !good) range = high ? kDown : kUp;
    if (__all_sync(~0u, good)) break;
  }

  forget(x), forget(more);
  const auto finish = [&](auto plain) {
    constexpr bool kPlain = decltype(plain)::value;
    each([&](int w, int at) {
      float weight[kCount], bias[kCount] = {};
#pragma unroll
      for (int i = 0; i < kCount; ++i) weight[i] = 1.0f;
      if (kPlain || present(a.weight)) load_part<kPlain>(a.weight, at, weight);
      if (kLayer && (kPlain || present(a.bias))) load_part<kPlain>(a.bias, at, bias);
      elements_at(w, u);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (kLayer) u[i] -= head;
        // 16 bits have no digits that it would change.
        if (kLayer && T == DType::f32) u[i] -= rest;
        u[i] *= factor;
        u[i] = kLayer ? __fmaf_rn(u[i], weight[i], bias[i]) : u[i] * weight[i];
      }
      word_at(a.out.data, row * h.out + at) = pack_word<T>(u);
    });
  };
  if (a.weight.dtype == DType::f32 && (!kLayer || a.bias.dtype == DType::f32)) {
    finish(std::true_type{});
  } else {
    finish(std::false_type{});
  }
}

// One dtype, aligned rows at equal distances.
bool can_hold(const NormArgs& a) {
  for (const Tensor* t : {&a.x, &a.residual, &a.residual_out, &a.out}) {
    if (!present(*t)) continue;
    if (t->dtype != a.x.dtype || !in_eights(*t) || rows_of(*t).rank > 1) return false;
  }
  return (!present(a.weight) || is_aligned(a.weight.data)) &&
         (!present(a.bias) || is_aligned(a.bias.data));
}

Status run_held(const NormArgs& a, const Held& shape, const Ctx& ctx) {
  const int64_t per_word = 16 / dtype_bytes(a.x.dtype);
  const auto step = [&](const Tensor& t) {
    return present(t) && rows_of(t).rank > 0 ? rows_of(t).strides[0] / per_word : 0;
  };
  const Rows rows = rows_of(a.x);
  const Words h = {rows.count,
                   static_cast<int>(rows.length / per_word),
                   step(a.x),
                   step(a.residual),
                   step(a.residual_out),
                   step(a.out),
                   1 / static_cast<double>(rows.length)};
  Status status = ok();
  with_dtype(a.x.dtype, [&](auto dtype) {
    with_held(shape, [&](auto words) {
      constexpr DType kType = decltype(dtype)::value;
      constexpr int kWords = decltype(words)::value;
      const auto go = [&](auto* kernel) {
        status = launch(ctx, kernel, shape.blocks, shape.block, 0, a, h);
      };
      const bool layer = a.kind == NormKind::layer, sums = present(a.residual);
      if (layer && sums) go(norm_held<kType, kWords, true, true>);
      if (layer && !sums) go(norm_held<kType, kWords, true, false>);
      if (!layer && sums) go(norm_held<kType, kWords, false, true>);
      if (!layer && !sums) go(norm_held<kType, kWords, false, false>);
    });
  });
  return status;
}

Status run(const NormArgs& args, const Ctx& ctx) {
  const Rows all = rows_of(args.x);
  if (const Held shape = held(all.count, all.length * dtype_bytes(args.x.dtype) / 16);
      shape.words > 0 && can_hold(args)) {
    return run_held(args, shape, ctx);
  }
  const RowsOfAll rows = {rows_of(args.x), rows_of(present(args.residual) ? args.residual : args.x),
                          rows_of(present(args.residual_out) ? args.residual_out : args.x),
                          rows_of(args.out)};
  const int64_t length = rows.x.length;
  const bool staged = length <= kStagedMax;
  const unsigned blocks = grid_for(rows.x.count, 1, int64_t{1} << 20);
  norm<<<blocks, threads_for(length), staged_bytes(length),
         static_cast<cudaStream_t>(ctx.stream)>>>(args, rows, staged);
  return launched();
}

}  // namespace

extern const NormKernel norm_sm75;
const NormKernel norm_sm75 = {"norm_sm75", kArchSm75, {kFloats}, nullptr, run};

}  // namespace lowbit
