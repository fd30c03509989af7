// The loops of norm, compiled once under the flags of each row's file.
//
// Method    u of one row in f32, in scratch unless x is it already; its sums; then one pass that
//           writes. Weight and bias become f32 once for each chunk of rows. Sums are f32 over 2048
//           elements and double above (simd/reduce.h). A row whose squares leave the range of f32
//           is done again in double.
#pragma once

#include <cmath>

#include "csrc/base/threads.h"
#include "csrc/norm/norm.h"
#include "csrc/simd/reduce.h"
#include "csrc/simd/run.h"

namespace lowbit {

struct NormRow {
  const float *u, *weight, *bias;  // bias is null with rms
  int64_t length, out;             // out: offset of the row
};

// Below and above these the squares of what matters in the row lose digits or overflow in f32.
inline constexpr double kSquaresMin = 0x1p-100, kSquaresMax = 0x1p126;

static inline void norm_in_double(const NormArgs& a, const NormRow& r, double mean) {
  double squares = 0;
  for (int64_t i = 0; i < r.length; ++i) squares += (r.u[i] - mean) * (r.u[i] - mean);
  const double scale = 1 / std::sqrt(squares / static_cast<double>(r.length) + a.eps);
  for (int64_t i = 0; i < r.length; ++i) {
    const double y = (r.u[i] - mean) * scale * r.weight[i] + (r.bias ? r.bias[i] : 0.0f);
    store_f32(a.out.data, a.out.dtype, r.out + i, static_cast<float>(y));
  }
}

static inline void norm_write_rms(const NormArgs& a, const NormRow& r, float scale) {
  float buffer[kRun];
  for (int64_t i = 0; i < r.length; i += kRun) {
    const int64_t width = r.length - i < kRun ? r.length - i : kRun;
    float* out = run_room(a.out, r.out + i, buffer);
    const float *u = r.u + i, *weight = r.weight + i;
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) out[j] = u[j] * scale * weight[j];
    run_keep(a.out, r.out + i, width, out);
  }
}

// The mean comes in two parts, so that rows far from zero keep their digits.
static inline void norm_write_layer(const NormArgs& a, const NormRow& r, float mean, float rest,
                                    float scale) {
  float buffer[kRun];
  for (int64_t i = 0; i < r.length; i += kRun) {
    const int64_t width = r.length - i < kRun ? r.length - i : kRun;
    float* out = run_room(a.out, r.out + i, buffer);
    const float *u = r.u + i, *weight = r.weight + i, *bias = r.bias + i;
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) {
      out[j] = ((u[j] - mean) - rest) * scale * weight[j] + bias[j];
    }
    run_keep(a.out, r.out + i, width, out);
  }
}

static inline void norm_row(const NormArgs& a, const NormRow& r) {
  const double n = static_cast<double>(r.length);
  const bool layer = a.kind == NormKind::layer;
  const double mean = layer ? sum_run(r.u, r.length, [](auto v) { return v; }) / n : 0;
  const float head = static_cast<float>(mean), rest = static_cast<float>(mean - head);
  const double squares = layer ? sum_run(r.u, r.length,
                                         [=](auto v) {
                                           const auto d = (v - head) - rest;
                                           return d * d;
                                         })
                               : sum_run(r.u, r.length, [](auto v) { return v * v; });
  // Also taken by rows of NaN, inf and zeros, and by those whose sum overflowed.
  if (!(squares > kSquaresMin && squares < kSquaresMax)) {
    double exact = 0;
    for (int64_t i = 0; i < r.length && layer; ++i) exact += static_cast<double>(r.u[i]);
    return norm_in_double(a, r, exact / n);
  }
  const float scale = static_cast<float>(1 / std::sqrt(squares / n + a.eps));
  if (layer) {
    norm_write_layer(a, r, head, rest, scale);
  } else {
    norm_write_rms(a, r, scale);
  }
}

// u in f32: x itself, or made in `room`. The sum goes out through residual_out on the way.
static inline const float* norm_sum(const NormArgs& a, int64_t x, int64_t residual,
                                    int64_t residual_out, int64_t length, float* room) {
  if (!present(a.residual)) return run_floats(a.x, x, length, room);
  float buffer[kRun];
  load_floats(a.x.data, a.x.dtype, x, length, room);
  for (int64_t i = 0; i < length; i += kRun) {
    const int64_t width = length - i < kRun ? length - i : kRun;
    const float* more = run_floats(a.residual, residual + i, width, buffer);
    float* u = room + i;
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) u[j] += more[j];
    if (present(a.residual_out)) {
      store_floats(a.residual_out.data, a.residual_out.dtype, residual_out + i, width, u);
      if (a.residual_out.dtype != DType::f32) {
        load_floats(a.residual_out.data, a.residual_out.dtype, residual_out + i, width, u);
      }
    }
  }
  return room;
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
  // 16384 elements are about 4 us: a decode step's row stays on one thread.
  parallel_for(ctx.pool, x.count, row_grain(x.length, 16384),
               [&](int64_t begin, int64_t end, int thread) {
                 float* at = scratch + 3 * room * thread;
                 NormRow r = {};
                 r.length = x.length;
                 r.weight = norm_vector(a.weight, x.length, 1, at + room);
                 if (a.kind == NormKind::layer) {
                   r.bias = norm_vector(a.bias, x.length, 0, at + 2 * room);
                 }
                 for (int64_t i = begin; i < end; ++i) {
                   r.u = norm_sum(a, row_offset(x, i), row_offset(residual, i),
                                  row_offset(residual_out, i), x.length, at);
                   r.out = row_offset(out, i);
                   norm_row(a, r);
                 }
               });
  return ok();
}

}  // namespace lowbit
