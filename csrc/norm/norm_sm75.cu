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
#include "csrc/cuda/functions.cuh"
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

// Elements of weight or bias that stand at a word of x.
template <int kCount>
__device__ void load_part(const Tensor& t, int at, float (&to)[kCount]) {
  if (t.dtype == DType::f32) {
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

template <DType T, int kWords, int kRows, bool kLayer, bool kSum>
__global__ void __launch_bounds__(kHeldThreads<kWords>,
                                  kSum&& kWords == 8 ? 1 : kHeldBlocks<kWords>)
    norm_held(const __grid_constant__ NormArgs a, const __grid_constant__ Words h) {
  constexpr int kCount = kPerWord<T>;
  __shared__ Sums<kLayer> room[2][16];
  wait_for_others();
  const auto each = [&](auto&& f) { each_held<kWords, kRows>(h.rows, h.words, f); };
  uint4 x[kRows][kWords] = {}, more[kSum ? kRows : 1][kSum ? kWords : 1] = {};
  each([&](int r, int w, int64_t row, int at) {
    x[r][w] = word_at(a.x.data, row * h.x + at);
    if constexpr (kSum) more[r][w] = word_at(a.residual.data, row * h.residual + at);
  });
  bool adds = kSum;
  const auto elements_at = [&](int r, int w, float(&u)[kCount]) {
    unpack_word<T>(x[r][w], u);
    if constexpr (kSum) {
      if (!adds) return;
      float v[kCount];
      unpack_word<T>(more[r][w], v);
#pragma unroll
      for (int i = 0; i < kCount; ++i) u[i] += v[i];
    }
  };
  if (kSum && present(a.residual_out)) {
    each([&](int r, int w, int64_t row, int at) {
      float u[kCount];
      elements_at(r, w, u);
      x[r][w] = pack_word<T>(u);
      word_at(a.residual_out.data, row * h.residual_out + at) = x[r][w];
    });
    adds = false;
  }

  // Of each row: what its elements are brought into range by, and the mean of what comes out, in
  // two parts.
  float range[kRows] = {}, head[kRows] = {}, rest[kRows] = {}, factor[kRows];
  const auto within = [&](int r, float u) {
    return kLayer ? __fmaf_rn(u, range[r], -head[r]) - rest[r] : u * range[r];
  };
#pragma unroll
  for (int r = 0; r < kRows; ++r) range[r] = 1.0f;
    // Once more for rows that were out of range; those of a warp go together, for they shuffle.
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    Sums<kLayer> sum[kRows] = {};
    forget(x), forget(more);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = held_row<kRows>(r);
      if constexpr (kLayer) head[r] = 0.0f, rest[r] = 0.0f;
      float count = 0.0f, part = 0.0f;
      const auto go_over = [&](const auto& f) {
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          if (row >= h.rows || static_cast<int>(threadIdx.x + w * blockDim.x) >= h.words) break;
          float u[kCount];
          elements_at(r, w, u);
          f(u);
        }
      };
      if constexpr (kLayer) {
        // About the mean of what this thread has, lest digits be lost where the mean is large.
        go_over([&](const float(&u)[kCount]) {
          count += kCount;
#pragma unroll
          for (int i = 0; i < kCount; ++i) part = __fmaf_rn(u[i], range[r], part);
        });
        const float middle = count > 0.0f ? part * reciprocal(count) : 0.0f;
        float off = 0.0f, squares = 0.0f;
        go_over([&](const float(&u)[kCount]) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            const float d = __fmaf_rn(u[i], range[r], -middle);
            off += d;
            squares = __fmaf_rn(d, d, squares);
          }
        });
        const double m = middle, whole = m * count + off;
        sum[r] = {whole, squares + m * (whole + off)};
      } else {
        go_over([&](const float(&u)[kCount]) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) part = __fmaf_rn(within(r, u[i]), within(r, u[i]), part);
        });
        sum[r] = {part};
      }
    }
    reduce_held(
        sum, Sums<kLayer>{}, [](const auto& p, const auto& q) { return p + q; }, room[turn]);
    bool good = true;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      double square = sum[r].squares;
      if constexpr (kLayer) {
        const double mean = sum[r].whole * h.share;
        square = square > sum[r].whole * mean ? square - sum[r].whole * mean : 0.0;
        head[r] = static_cast<float>(mean), rest[r] = static_cast<float>(mean - head[r]);
      }
      const double by = range[r], under = square * h.share + a.eps * (by * by);
      factor[r] = 1.0f / sqrtf(static_cast<float>(under));
      const bool high = !(square < 1e37), low = under < 1e-27;
      if (turn == 0 && (high || low)) range[r] = high ? kDown : kUp, good = false;
    }
    if (__all_sync(~0u, good)) break;
  }
  forget(x), forget(more);
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const int at = static_cast<int>(threadIdx.x + w * blockDim.x);
    if (at >= h.words) break;
    float weight[kCount], bias[kCount] = {};
#pragma unroll
    for (int i = 0; i < kCount; ++i) weight[i] = 1.0f;
    if (present(a.weight)) load_part(a.weight, at, weight);
    if (kLayer && present(a.bias)) load_part(a.bias, at, bias);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = held_row<kRows>(r);
      if (row >= h.rows) break;
      float u[kCount];
      elements_at(r, w, u);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        u[i] = within(r, u[i]) * factor[r] * weight[i];
        if (kLayer) u[i] += bias[i];
      }
      word_at(a.out.data, row * h.out + at) = pack_word<T>(u);
    }
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
    with_held(shape, [&](auto words, auto held_rows) {
      constexpr DType kType = decltype(dtype)::value;
      constexpr int kWords = decltype(words)::value, kRows = decltype(held_rows)::value;
      const auto go = [&](auto* kernel) {
        status = launch(ctx, kernel, shape.blocks, shape.block, 0, a, h);
      };
      const bool layer = a.kind == NormKind::layer, sums = present(a.residual);
      if (layer && sums) go(norm_held<kType, kWords, kRows, true, true>);
      if (layer && !sums) go(norm_held<kType, kWords, kRows, true, false>);
      if (!layer && sums) go(norm_held<kType, kWords, kRows, false, true>);
      if (!layer && !sums) go(norm_held<kType, kWords, kRows, false, false>);
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
