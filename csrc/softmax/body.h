// The loops of softmax, argmax and cross_entropy, compiled once under the flags of each row's file.
//
// Method    softmax: the row's maximum; exp, kept as f32 in out or in scratch, and its sum; then a
//           pass that scales. argmax: the maximum of 512 elements at a time; the index is looked
//           for in the first run that holds the row's maximum. Sums are f32 over 2048 elements and
//           double above.
#pragma once

#include <cmath>
#include <type_traits>

#include "csrc/base/threads.h"
#include "csrc/simd/math.h"
#include "csrc/simd/reduce.h"
#include "csrc/simd/run.h"
#include "csrc/softmax/softmax.h"

namespace lowbit {

// The largest of scale * x, -inf where there is none but NaN.
template <class T>
static inline float largest_score(const T* x, int64_t length, float scale) {
  bool nan;
  if (scale == 1.0f) return max_run(x, length, &nan);
  float scaled[kRun], max = -INFINITY;
  for (int64_t i = 0; i < length; i += kRun) {
    const int64_t width = length - i < kRun ? length - i : kRun;
    map_run(x + i, scaled, width, [=](Lanes l) { return l * scale; });
    const float found = max_run(scaled, width, &nan);
    max = found > max ? found : max;
  }
  return max;
}

// e[j] = exp(scale * x[j] - shift), never above 1 but for rounding, and their sum; e may be x.
template <class T>
static inline double exp_run(const T* x, int64_t length, float scale, float shift, float* e) {
  const auto exp = [=](Lanes v) {
    return exp_of_sum(at_least(v * scale - shift, -104.0f), Lanes{});
  };
  double sum = 0;
  int64_t i = 0;
  while (length - i >= 2 * kLanes) {
    const int64_t end =
        i + (length - i < kSumBlock ? (length - i) / (2 * kLanes) * (2 * kLanes) : kSumBlock);
    Lanes a = {}, b = {};
    for (; i < end; i += 2 * kLanes) {
      const Lanes e0 = exp(load_lanes(x + i)), e1 = exp(load_lanes(x + i + kLanes));
      store_lanes(e + i, e0);
      store_lanes(e + i + kLanes, e1);
      a += e0;
      b += e1;
    }
    sum += add_lanes(a, b, Lanes{}, Lanes{});
  }
  for (; i < length; i += kLanes) {
    const int64_t n = length - i < kLanes ? length - i : kLanes;
    const Lanes v = exp(load_part(x + i, n));
    store_part(e + i, v, n);
    for (int64_t l = 0; l < n; ++l) sum += static_cast<double>(v[l]);
  }
  return sum;
}

// `room` has as many floats as x; it is out where that is f32.
template <class T>
static inline void softmax_row(const SoftmaxArgs& a, const T* x, int64_t out, int64_t length,
                               float* room) {
  const float max = largest_score(x, length, a.scale);
  // Where every term is exp(-inf) = 0, or NaN, any shift will do but -inf itself.
  const double sum = exp_run(x, length, a.scale, max == -INFINITY ? 0.0f : max, room);
  // A score of +inf: its own term would be inf - inf, but the product above may not have been
  // rounded to inf before the difference was taken.
  const float factor = max == INFINITY ? NAN : sum == 0 ? 0.0f : static_cast<float>(1 / sum);
  with_float_type(a.out.dtype, [&](auto* type) {
    using O = std::remove_pointer_t<decltype(type)>;
    map_run(room, static_cast<O*>(a.out.data) + out, length, [=](Lanes l) { return l * factor; });
  });
}

template <class T>
static inline int32_t argmax_row(const T* x, int64_t length) {
  float best = -INFINITY;
  int64_t at = 0;  // of the run that holds the first of the largest
  bool nan = false;
  for (int64_t i = 0; i < length && !nan; i += kRun) {
    const int64_t width = length - i < kRun ? length - i : kRun;
    const float found = max_run(x + i, width, &nan);
    if (found > best || nan) {
      best = found;
      at = i;
    }
  }
  for (int64_t i = at; i < length; i += kLanes) {
    const int64_t n = length - i < kLanes ? length - i : kLanes;
    const Lanes v = n < kLanes ? load_part(x + i, n) : load_lanes(x + i);
    for (int64_t l = 0; l < n; ++l) {
      if (nan ? v[l] != v[l] : v[l] == best) return static_cast<int32_t>(i + l);
    }
  }
  return 0;
}

template <class T>
static inline float cross_entropy_row(const T* x, int64_t length, float target) {
  const float max = largest_score(x, length, 1.0f);
  float e[kRun];
  double sum = 0;
  for (int64_t i = 0; i < length; i += kRun) {
    sum += exp_run(x + i, length - i < kRun ? length - i : kRun, 1.0f, max, e);
  }
  return static_cast<float>(std::log(sum) + (static_cast<double>(max) - target));
}

// A row of floats for each thread, in lines of its own, where softmax does not write f32.
static inline int64_t softmax_room(const SoftmaxArgs& a) {
  const bool kept = a.function == RowFunction::softmax && a.out.dtype != DType::f32;
  return kept ? (a.x.shape[a.x.rank - 1] + 15) / 16 * 16 : 0;
}
static inline size_t softmax_workspace_body(const SoftmaxArgs& a, int threads) {
  return static_cast<size_t>(softmax_room(a) * threads) * sizeof(float);
}

static inline Status softmax_body(const SoftmaxArgs& a, const Ctx& ctx) {
  const Rows x = rows_of(a.x);
  const Rows out = a.function == RowFunction::softmax ? rows_of(a.out) : elements_of(a.out);
  const Rows targets = elements_of(present(a.targets) ? a.targets : a.out);
  float* scratch = static_cast<float*>(ctx.scratch);
  const int64_t room = softmax_room(a);
  // 8192 exponentials are about 5 us.
  parallel_for(
      ctx.pool, x.count, row_grain(x.length, 8192), [&](int64_t begin, int64_t end, int thread) {
        with_float_type(a.x.dtype, [&](auto* type) {
          using T = std::remove_pointer_t<decltype(type)>;
          for (int64_t i = begin; i < end; ++i) {
            const int64_t first = row_offset(x, i), to = row_offset(out, i);
            const T* from = static_cast<const T*>(a.x.data) + first;
            if (a.function == RowFunction::softmax) {
              float* e = a.out.dtype == DType::f32 ? static_cast<float*>(a.out.data) + to
                                                   : scratch + room * thread;
              softmax_row(a, from, to, x.length, e);
            } else if (a.function == RowFunction::argmax) {
              static_cast<int32_t*>(a.out.data)[to] = argmax_row(from, x.length);
            } else {
              const int32_t target =
                  static_cast<const int32_t*>(a.targets.data)[row_offset(targets, i)];
              static_cast<float*>(a.out.data)[to] =
                  cross_entropy_row(from, x.length, load_f32(a.x.data, a.x.dtype, first + target));
            }
          }
        });
      });
  return ok();
}

}  // namespace lowbit
