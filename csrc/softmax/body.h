// The loops of softmax, argmax and cross_entropy, compiled once under the flags of each row's file.
//
// Method    softmax: the row's maximum; exp and its sum; then one pass that scales what f32 output
//           kept, or takes exp again for narrower output, so that each result is rounded once.
//           argmax: the maximum of 512 elements at a time; the index is looked for in the first run
//           that holds the row's maximum. Sums are f32 over 2048 elements and double above.
#pragma once

#include <cmath>

#include "csrc/base/threads.h"
#include "csrc/simd/math.h"
#include "csrc/simd/reduce.h"
#include "csrc/simd/run.h"
#include "csrc/softmax/softmax.h"

namespace lowbit {

struct ScoreRow {
  int64_t x, out, length;  // offsets of the row's first elements
};

// The largest of scale * x, -inf where there is none but NaN.
static inline float largest_score(const Tensor& x, const ScoreRow& r, float scale) {
  float buffer[kRun], scaled[kRun], max = -INFINITY;
  for (int64_t i = 0; i < r.length; i += kRun) {
    const int64_t width = r.length - i < kRun ? r.length - i : kRun;
    const float* v = run_floats(x, r.x + i, width, buffer);
    if (scale != 1.0f) {
      map_run(v, scaled, width, [=](Lanes l) { return l * scale; });
      v = scaled;
    }
    bool nan;
    const float found = max_run(v, width, &nan);
    max = found > max ? found : max;
  }
  return max;
}

// e[j] = exp(scale * x[j] - shift) * factor; e may be x.
static inline void exp_run(const float* x, int64_t count, float scale, float shift, float factor,
                           float* e) {
  map_run(x, e, count, [=](Lanes l) { return exp_of(l * scale - shift) * factor; });
}

static inline void softmax_row(const SoftmaxArgs& a, const ScoreRow& r) {
  const bool kept = a.out.dtype == DType::f32;
  const float max = largest_score(a.x, r, a.scale);
  // Where every term is exp(-inf) = 0, or NaN, any shift will do but -inf itself.
  const float shift = max == -INFINITY ? 0.0f : max;
  float buffer[kRun], room[kRun];
  double sum = 0;
  for (int64_t i = 0; i < r.length; i += kRun) {
    const int64_t width = r.length - i < kRun ? r.length - i : kRun;
    const float* x = run_floats(a.x, r.x + i, width, buffer);
    float* e = run_room(a.out, r.out + i, room);
    exp_run(x, width, a.scale, shift, 1.0f, e);
    sum += sum_run(e, width, [](auto v) { return v; });
  }
  // A score of +inf: its own term would be inf - inf, but the product below may not have been
  // rounded to inf before the difference was taken.
  const float factor = max == INFINITY ? NAN : sum == 0 ? 0.0f : static_cast<float>(1 / sum);
  for (int64_t i = 0; i < r.length; i += kRun) {
    const int64_t width = r.length - i < kRun ? r.length - i : kRun;
    float* e = run_room(a.out, r.out + i, room);
    if (kept) {
      map_run(e, e, width, [=](Lanes l) { return l * factor; });
    } else {
      const float* x = run_floats(a.x, r.x + i, width, buffer);
      exp_run(x, width, a.scale, shift, factor, e);
      run_keep(a.out, r.out + i, width, e);
    }
  }
}

static inline int32_t argmax_row(const SoftmaxArgs& a, const ScoreRow& r) {
  float buffer[kRun], best = -INFINITY;
  int64_t at = 0;  // of the run that holds the first of the largest
  bool nan = false;
  for (int64_t i = 0; i < r.length && !nan; i += kRun) {
    const int64_t width = r.length - i < kRun ? r.length - i : kRun;
    const float found = max_run(run_floats(a.x, r.x + i, width, buffer), width, &nan);
    if (found > best || nan) {
      best = found;
      at = i;
    }
  }
  const int64_t width = r.length - at < kRun ? r.length - at : kRun;
  const float* x = run_floats(a.x, r.x + at, width, buffer);
  int64_t j = 0;
  while (nan ? x[j] == x[j] : x[j] != best) ++j;
  return static_cast<int32_t>(at + j);
}

static inline float cross_entropy_row(const SoftmaxArgs& a, const ScoreRow& r, int64_t target) {
  const float max = largest_score(a.x, r, 1.0f);
  float buffer[kRun], e[kRun];
  double sum = 0;
  for (int64_t i = 0; i < r.length; i += kRun) {
    const int64_t width = r.length - i < kRun ? r.length - i : kRun;
    exp_run(run_floats(a.x, r.x + i, width, buffer), width, 1.0f, max, 1.0f, e);
    sum += sum_run(e, width, [](auto v) { return v; });
  }
  const double x = load_f32(a.x.data, a.x.dtype, r.x + target);
  return static_cast<float>(std::log(sum) + (static_cast<double>(max) - x));
}

static inline Status softmax_body(const SoftmaxArgs& a, const Ctx& ctx) {
  const Rows x = rows_of(a.x);
  const Rows out = a.function == RowFunction::softmax ? rows_of(a.out) : elements_of(a.out);
  const Rows targets = elements_of(present(a.targets) ? a.targets : a.out);
  // 8192 exponentials are about 5 us.
  parallel_for(ctx.pool, x.count, row_grain(x.length, 8192), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const ScoreRow r = {row_offset(x, i), row_offset(out, i), x.length};
      if (a.function == RowFunction::softmax) {
        softmax_row(a, r);
      } else if (a.function == RowFunction::argmax) {
        static_cast<int32_t*>(a.out.data)[r.out] = argmax_row(a, r);
      } else {
        const int64_t at = row_offset(targets, i);
        static_cast<float*>(a.out.data)[r.out] =
            cross_entropy_row(a, r, static_cast<const int32_t*>(a.targets.data)[at]);
      }
    }
  });
  return ok();
}

}  // namespace lowbit
