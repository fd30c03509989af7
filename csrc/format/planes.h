// Planes: an int1 weight that is the sum of P = 2 .. 8 planes, each of signs with its own scales.
//
//   row n     [ K bits of plane 0 ][ K bits of plane 1 ] ...       bits as in ternary.h
//   scales    of row n (or of the matrix): those of plane 0, then those of plane 1, ...; zeros too
//
//   value       sum over p of scale[p] * (2 * code[p] - zero[p]); the zero is 1 where none is
//   stored groups      32, 64 or 128 columns, a row (channel), or the matrix (tensor), of each
//   plane alone limits      K is a multiple of 32, and of the group: planes begin at whole vectors
//   quantise    greedy signs of what is left: r = w; for each plane scale = mean|r| of the group,
//   as
//               ternary.h rounds it, code = r < 0 ? 0 : 1, r = r -+ scale, all in f32
//   search      from these scales: each weight takes the nearest of the 2^P sums (halfway: the
//   lower
//               one), then the scales become those of least squares for these codes; ten rounds at
//               most, as long as the squared error falls
//   special     quantize() refuses NaN and inf
//   source      greedy: Guo et al., Network Sketching, CVPR 2017; two planes: Zheng et al.,
//               BinaryDM, 2024. Search: Xu et al., Alternating Multi-bit Quantization, ICLR 2018
//
// Everywhere below the binding such a weight is one of P K columns, which x meets P times: so
// layouts and kernels of int1 serve it as they are.
#pragma once

#include "csrc/format/ternary.h"

namespace lowbit {

inline constexpr int kPlaneLevels = 1 << kMaxPlanes;
inline constexpr int kPlaneRounds = 10;

// What a pass over the values of a group finds.
struct PlaneSums {
  double abs;                  // of what the planes so far leave
  double error;                // squared, with the nearest sums
  double sum[kPlaneLevels];    // of the values that take this code (bit p: plane p)
  double count[kPlaneLevels];  // of them
};

static inline void join(PlaneSums* to, const PlaneSums& from, int codes) {
  to->abs += from.abs;
  to->error += from.error;
  for (int c = 0; c < codes; ++c) {
    to->sum[c] += from.sum[c];
    to->count[c] += from.count[c];
  }
}

// Takes the greedy signs of `planes` planes off r; bit p of codes[i] is that of plane p.
static inline void take_planes(const float* scales, int planes, int count, float* r,
                               uint8_t* codes) {
  for (int i = 0; i < count; ++i) codes[i] = 0;
  for (int p = 0; p < planes; ++p) {
    const float scale = scales[p];
    for (int i = 0; i < count; ++i) {
      const bool minus = r[i] < 0.0f;
      r[i] -= minus ? -scale : scale;
      codes[i] = static_cast<uint8_t>(codes[i] | (minus ? 0 : 1) << p);
    }
  }
}

// The sums that planes make, in order, and the middles between them.
struct PlaneLevels {
  int count;
  double level[kPlaneLevels], middle[kPlaneLevels];
  uint8_t code[kPlaneLevels];
};

// Each plane doubles the sums, those without it in front of those with it where both are equal.
static inline PlaneLevels plane_levels(const float* scales, int planes) {
  PlaneLevels l;
  l.count = 1;
  l.level[0] = 0.0;
  l.code[0] = 0;
  double half[kPlaneLevels / 2];
  uint8_t code[kPlaneLevels / 2];
  for (int p = 0; p < planes; ++p, l.count *= 2) {
    const double scale = static_cast<double>(scales[p]);
    for (int i = 0; i < l.count; ++i) {
      half[i] = l.level[i];
      code[i] = l.code[i];
    }
    for (int i = 0, minus = 0, plus = 0; i < 2 * l.count; ++i) {
      if (plus == l.count || (minus < l.count && half[minus] - scale <= half[plus] + scale)) {
        l.level[i] = half[minus] - scale;
        l.code[i] = code[minus++];
      } else {
        l.level[i] = half[plus] + scale;
        l.code[i] = static_cast<uint8_t>(code[plus++] | 1 << p);
      }
    }
  }
  for (int i = 0; i + 1 < l.count; ++i) l.middle[i] = (l.level[i] + l.level[i + 1]) / 2;
  return l;
}

// The place of the nearest level among them.
static inline int nearest_level(const PlaneLevels& l, double w) {
  int first = 0;
  for (int half = l.count / 2; half > 0; half /= 2) {
    if (l.middle[first + half - 1] < w) first += half;
  }
  return first;
}

// The scales of least squares for the codes that `sums` counted; false where these leave them
// open.
static inline bool least_squares(const PlaneSums& sums, int planes, double* scales) {
  double a[kMaxPlanes][kMaxPlanes] = {}, b[kMaxPlanes] = {}, total = 0.0;
  for (int c = 0; c < 1 << planes; ++c) {
    total += sums.count[c];
    for (int p = 0; p < planes; ++p) {
      const bool plus = (c >> p & 1) != 0;
      b[p] += plus ? sums.sum[c] : -sums.sum[c];
      for (int q = p; q < planes; ++q) {
        a[p][q] += plus == ((c >> q & 1) != 0) ? sums.count[c] : -sums.count[c];
      }
    }
  }
  for (int p = 0; p < planes; ++p) {
    for (int q = 0; q < p; ++q) a[p][q] = a[q][p];
  }
  for (int p = 0; p < planes; ++p) {
    if (!(a[p][p] > 1e-6 * total)) return false;
    for (int q = p + 1; q < planes; ++q) {
      const double factor = a[q][p] / a[p][p];
      for (int i = p; i < planes; ++i) a[q][i] -= factor * a[p][i];
      b[q] -= factor * b[p];
    }
  }
  for (int p = planes - 1; p >= 0; --p) {
    double left = b[p];
    for (int q = p + 1; q < planes; ++q) left -= a[p][q] * scales[q];
    scales[p] = left / a[p][p];
  }
  return true;
}

// The scales of a group of `count` values. pass(scales, done, sums): over all of its values; with
// done < planes `abs` of what that many greedy planes leave, else all that the nearest sums give.
template <class Pass>
static inline void plane_scales(int planes, DType dtype, double count, bool search,
                                const Pass& pass, float* scales) {
  PlaneSums sums;
  for (int p = 0; p < planes; ++p) {
    pass(scales, p, &sums);
    scales[p] = round_scale(static_cast<float>(count > 0.0 ? sums.abs / count : 0.0), dtype);
  }
  if (!search) return;
  pass(scales, planes, &sums);
  for (int round = 0; round < kPlaneRounds; ++round) {
    double exact[kMaxPlanes];
    if (!least_squares(sums, planes, exact)) return;
    float next[kMaxPlanes];
    for (int p = 0; p < planes; ++p) {
      // A plane of the other signs with a scale above zero makes the same sums.
      next[p] = round_scale(static_cast<float>(exact[p] < 0.0 ? -exact[p] : exact[p]), dtype);
    }
    const double before = sums.error;
    pass(next, planes, &sums);
    if (!(sums.error < before)) return;
    for (int p = 0; p < planes; ++p) scales[p] = next[p];
  }
}

}  // namespace lowbit
