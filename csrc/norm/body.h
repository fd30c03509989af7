// The loops of norm, compiled once under the flags of each row's file.
//
// Method    the sum with the residual, the row's sums, then one pass that writes. Tensors of one
//           dtype are read where they lie; of different ones, u is made in scratch as f32 first.
//           Weight and bias become f32 once for each chunk of rows. Sums are f32 over 2048 elements
//           and double above (simd/reduce.h). A row whose squares leave the range of f32 is done
//           again in double.
#pragma once

#include <cmath>
#include <type_traits>

#include "csrc/base/threads.h"
#include "csrc/norm/norm.h"
#include "csrc/simd/reduce.h"
#include "csrc/simd/run.h"

namespace lowbit {

struct NormRow {
  const float *weight, *bias;  // bias is null with rms
  int64_t length, out;         // out: offset of the row
};

// Below and above these the squares of what matters in the row lose digits or overflow in f32.
inline constexpr double kSquaresMin = 0x1p-100, kSquaresMax = 0x1p126;

static inline void norm_in_double(const NormArgs& a, const NormRow& r, const void* u, DType dtype) {
  const double n = static_cast<double>(r.length);
  double mean = 0, squares = 0;
  if (a.kind == NormKind::layer) {
    for (int64_t i = 0; i < r.length; ++i) mean += load_f32(u, dtype, i);
    mean /= n;
  }
  for (int64_t i = 0; i < r.length; ++i) {
    const double d = load_f32(u, dtype, i) - mean;
    squares += d * d;
  }
  const double scale = 1 / std::sqrt(squares / n + a.eps);
  for (int64_t i = 0; i < r.length; ++i) {
    const double y =
        (load_f32(u, dtype, i) - mean) * scale * r.weight[i] + (r.bias ? r.bias[i] : 0.0f);
    store_f32(a.out.data, a.out.dtype, r.out + i, static_cast<float>(y));
  }
}

// False: the squares are beyond f32, or the row holds NaN, inf or nothing but zeros.
template <class U, class O>
static inline bool norm_rms(const NormArgs& a, const NormRow& r, const U* u, O* out) {
  const double squares = sum_run(u, r.length, [](Lanes v) { return v * v; });
  if (!(squares > kSquaresMin && squares < kSquaresMax)) return false;
  const float scale =
      static_cast<float>(1 / std::sqrt(squares / static_cast<double>(r.length) + a.eps));
  map_run(u, r.weight, out, r.length, [=](Lanes v, Lanes w) { return v * scale * w; });
  return true;
}

template <class U, class O>
static inline bool norm_layer(const NormArgs& a, const NormRow& r, const U* u, O* out) {
  const double n = static_cast<double>(r.length);
  const double mean = sum_run(u, r.length, [](Lanes v) { return v; }) / n;
  // In two parts, so that rows far from zero keep their digits.
  const float head = static_cast<float>(mean), rest = static_cast<float>(mean - head);
  const double squares = sum_run(u, r.length, [=](Lanes v) {
    const Lanes d = (v - head) - rest;
    return d * d;
  });
  if (!(squares > kSquaresMin && squares < kSquaresMax)) return false;
  const float scale = static_cast<float>(1 / std::sqrt(squares / n + a.eps));
  int64_t i = 0;
  for (; i + kLanes <= r.length; i += kLanes) {
    const Lanes y = ((load_lanes(u + i) - head) - rest) * scale;
    store_lanes(out + i, y * load_lanes(r.weight + i) + load_lanes(r.bias + i));
  }
  if (const int64_t left = r.length - i; left > 0) {
    const Lanes y = ((load_part(u + i, left) - head) - rest) * scale;
    store_part(out + i, y * load_part(r.weight + i, left) + load_part(r.bias + i, left), left);
  }
  return true;
}

template <class U, class O>
static inline void norm_row(const NormArgs& a, const NormRow& r, const U* u, DType dtype, O* out) {
  const bool done = a.kind == NormKind::rms ? norm_rms(a, r, u, out) : norm_layer(a, r, u, out);
  if (!done) norm_in_double(a, r, u, dtype);
}

// u in f32 for tensors of different dtypes: x itself, or made in `room`. The sum goes out through
// residual_out on the way.
static inline const float* norm_sum(const NormArgs& a, int64_t x, int64_t residual,
                                    int64_t residual_out, int64_t length, float* room) {
  if (!present(a.residual)) return run_floats(a.x, x, length, room);
  float buffer[kRun];
  load_floats(a.x.data, a.x.dtype, x, length, room);
  for (int64_t i = 0; i < length; i += kRun) {
    const int64_t width = length - i < kRun ? length - i : kRun;
    const float* more = run_floats(a.residual, residual + i, width, buffer);
    float* u = room + i;
    map_run(u, more, u, width, [](Lanes v, Lanes w) { return v + w; });
    if (present(a.residual_out)) {
      store_floats(a.residual_out.data, a.residual_out.dtype, residual_out + i, width, u);
      if (a.residual_out.dtype != DType::f32) {
        load_floats(a.residual_out.data, a.residual_out.dtype, residual_out + i, width, u);
      }
    }
  }
  return room;
}

// Offsets of a row's first elements.
struct NormOffsets {
  int64_t x, residual, residual_out;
};

// A row whose x, residual, residual_out and out have one dtype: nothing but their own memory.
template <class T>
static inline void norm_uniform(const NormArgs& a, const NormRow& r, const NormOffsets& at,
                                float* room, T* out) {
  const T* u = static_cast<const T*>(a.x.data) + at.x;
  if (present(a.residual)) {
    const T* more = static_cast<const T*>(a.residual.data) + at.residual;
    const auto add = [](Lanes v, Lanes w) { return v + w; };
    if (!present(a.residual_out)) {
      map_run(u, more, room, r.length, add);
      return norm_row(a, r, room, DType::f32, out);
    }
    T* sum = static_cast<T*>(a.residual_out.data) + at.residual_out;
    map_run(u, more, sum, r.length, add);
    u = sum;
  }
  norm_row(a, r, u, a.out.dtype, out);
}

static inline bool norm_is_uniform(const NormArgs& a) {
  const DType dtype = a.out.dtype;
  return a.x.dtype == dtype && (!present(a.residual) || a.residual.dtype == dtype) &&
         (!present(a.residual_out) || a.residual_out.dtype == dtype);
}

// `t` in f32, or `absent` throughout.
static inline const float* norm_vector(const Tensor& t, int64_t length, float absent, float* room) {
  if (present(t)) return run_floats(t, 0, length, room);
  for (int64_t i = 0; i < length; ++i) room[i] = absent;
  return room;
}

// Rows of u, weight and bias of one thread, each a multiple of 64 bytes.
static inline int64_t norm_room(const NormArgs& a) {
  return (a.x.shape[a.x.rank - 1] + 15) / 16 * 16;
}
static inline size_t norm_workspace_body(const NormArgs& a, int threads) {
  return static_cast<size_t>(3 * norm_room(a) * threads) * sizeof(float);
}

static inline Status norm_body(const NormArgs& a, const Ctx& ctx) {
  const Rows x = rows_of(a.x), out = rows_of(a.out);
  const Rows residual = rows_of(present(a.residual) ? a.residual : a.x);
  const Rows residual_out = rows_of(present(a.residual_out) ? a.residual_out : a.x);
  float* scratch = static_cast<float*>(ctx.scratch);
  const int64_t room = norm_room(a);
  const bool uniform = norm_is_uniform(a);
  // 16384 elements are about 4 us: a decode step's row stays on one thread.
  parallel_for(
      ctx.pool, x.count, row_grain(x.length, 16384), [&](int64_t begin, int64_t end, int thread) {
        float* at = scratch + 3 * room * thread;
        NormRow r = {};
        r.length = x.length;
        r.weight = norm_vector(a.weight, x.length, 1, at + room);
        if (a.kind == NormKind::layer) {
          r.bias = norm_vector(a.bias, x.length, 0, at + 2 * room);
        }
        for (int64_t i = begin; i < end; ++i) {
          const NormOffsets from = {row_offset(x, i), row_offset(residual, i),
                                    row_offset(residual_out, i)};
          r.out = row_offset(out, i);
          with_float_type(a.out.dtype, [&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            T* to = static_cast<T*>(a.out.data) + r.out;
            if (uniform) return norm_uniform(a, r, from, at, to);
            const float* u = norm_sum(a, from.x, from.residual, from.residual_out, x.length, at);
            norm_row(a, r, u, DType::f32, to);
          });
        }
      });
  return ok();
}

}  // namespace lowbit
