// Sums and maxima of runs of f32, in an order that depends on nothing but the length: lanes, four
// vectors of them side by side.
#pragma once

#include <cmath>

#include "csrc/simd/lanes.h"

namespace lowbit {

// The sum of the lanes of all four, in double.
static inline double add_lanes(Lanes a, Lanes b, Lanes c, Lanes d) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) {
    sum += (static_cast<double>(a[i]) + static_cast<double>(b[i])) +
           (static_cast<double>(c[i]) + static_cast<double>(d[i]));
  }
  return sum;
}

// A lane adds up at most 64 elements in f32 before its sum goes into a double: its error stays
// below 64 half ulps, and what the double costs is spread over 2048 elements.
inline constexpr int64_t kSumBlock = 2048;

// The sum of term(x[i]), a function of Lanes.
template <class T, class Term>
static inline double sum_run(const T* x, int64_t count, const Term& term) {
  constexpr int64_t kStep = 4 * kLanes;
  double sum = 0;
  int64_t i = 0;
  while (count - i >= kStep) {
    const int64_t end = i + (count - i < kSumBlock ? (count - i) / kStep * kStep : kSumBlock);
    Lanes a = {}, b = {}, c = {}, d = {};
    for (; i < end; i += kStep) {
      a += term(load_lanes(x + i));
      b += term(load_lanes(x + i + kLanes));
      c += term(load_lanes(x + i + 2 * kLanes));
      d += term(load_lanes(x + i + 3 * kLanes));
    }
    sum += add_lanes(a, b, c, d);
  }
  for (; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    const Lanes v = term(n < kLanes ? load_part(x + i, n) : load_lanes(x + i));
    for (int64_t l = 0; l < n; ++l) sum += static_cast<double>(v[l]);
  }
  return sum;
}

static inline float largest_lane(Lanes v, int64_t n, float max) {
  for (int64_t l = 0; l < n; ++l) max = v[l] > max ? v[l] : max;
  return max;
}

// The largest of x that is no NaN, -inf where there is none; *nan tells whether there is a NaN.
template <class T>
static inline float max_run(const T* x, int64_t count, bool* nan) {
  constexpr int64_t kStep = 4 * kLanes;
  float max = -INFINITY;
  int64_t i = 0;
  bool found = false;
  if (count >= kStep) {
    Lanes a = Lanes{} - INFINITY, b = a, c = a, d = a;
    IntLanes bad = {};
    for (; i + kStep <= count; i += kStep) {
      const Lanes v0 = load_lanes(x + i), v1 = load_lanes(x + i + kLanes);
      const Lanes v2 = load_lanes(x + i + 2 * kLanes), v3 = load_lanes(x + i + 3 * kLanes);
      a = v0 > a ? v0 : a;
      b = v1 > b ? v1 : b;
      c = v2 > c ? v2 : c;
      d = v3 > d ? v3 : d;
      bad |= ((v0 != v0) | (v1 != v1)) | ((v2 != v2) | (v3 != v3));
    }
    a = b > a ? b : a;
    c = d > c ? d : c;
    a = c > a ? c : a;
    max = largest_lane(a, kLanes, max);
    for (int l = 0; l < kLanes; ++l) found |= bad[l] != 0;
  }
  for (; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    const Lanes v = n < kLanes ? load_part(x + i, n) : load_lanes(x + i);
    max = largest_lane(v, n, max);
    for (int64_t l = 0; l < n; ++l) found |= v[l] != v[l];
  }
  *nan = found;
  return max;
}

}  // namespace lowbit
