// The loops of rope, compiled once under the flags of each row's file.
//
// Method    head by head; the table's row of a token is found once for all of its heads. f32 is
//           turned where it lies, other dtypes pass through buffers.
#pragma once

#include "csrc/base/threads.h"
#include "csrc/rope/rope.h"
#include "csrc/simd/run.h"

namespace lowbit {

// out1 and out2 may be x1 and x2.
static inline void turn_halves(const float* x1, const float* x2, const float* cos, const float* sin,
                               float* out1, float* out2, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float a = x1[i], b = x2[i];
    out1[i] = a * cos[i] - b * sin[i];
    out2[i] = b * cos[i] + a * sin[i];
  }
}

static inline void turn_pairs(const float* x, const float* cos, const float* sin, float* out,
                              int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    out[2 * i] = a * cos[i] - b * sin[i];
    out[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

// One head: x and out are the offsets of its first columns.
static inline void rope_head(const RopeArgs& a, int64_t x, int64_t out, const float* cos,
                             const float* sin) {
  const int64_t half = a.cos.shape[1], head_dim = a.x.shape[a.x.rank - 1];
  float in1[kRun], in2[kRun], out1[kRun], out2[kRun];
  if (a.pairing == Pairing::half) {
    for (int64_t i = 0; i < half; i += kRun) {
      const int64_t width = half - i < kRun ? half - i : kRun;
      const float* x1 = run_floats(a.x, x + i, width, in1);
      const float* x2 = run_floats(a.x, x + half + i, width, in2);
      float* to1 = run_room(a.out, out + i, out1);
      float* to2 = run_room(a.out, out + half + i, out2);
      turn_halves(x1, x2, cos + i, sin + i, to1, to2, width);
      run_keep(a.out, out + i, width, to1);
      run_keep(a.out, out + half + i, width, to2);
    }
  } else {
    for (int64_t i = 0; i < 2 * half; i += kRun) {
      const int64_t width = 2 * half - i < kRun ? 2 * half - i : kRun;
      const float* from = run_floats(a.x, x + i, width, in1);
      float* to = run_room(a.out, out + i, out1);
      turn_pairs(from, cos + i / 2, sin + i / 2, to, width / 2);
      run_keep(a.out, out + i, width, to);
    }
  }
  if (2 * half < head_dim) {
    run_convert(a.out, out + 2 * half, a.x, x + 2 * half, head_dim - 2 * half);
  }
}

static inline Status rope_body(const RopeArgs& a, const Ctx& ctx) {
  const int rank = a.x.rank;
  const int64_t heads = a.x.shape[rank - 2], seq = a.x.shape[rank - 3];
  const int64_t tokens = rank == 4 ? a.x.shape[0] * seq : seq;
  // 16384 elements are 2 to 4 us: a decode step's token stays on one thread.
  const int64_t grain = row_grain(a.x.shape[rank - 1], 16384);
  parallel_for(ctx.pool, tokens * heads, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end;) {
      const int64_t token = i / heads, batch = token / seq, index = token % seq;
      const int64_t position = rope_position(a, batch, index);
      const float* cos = static_cast<const float*>(a.cos.data) + position * a.cos.strides[0];
      const float* sin = static_cast<const float*>(a.sin.data) + position * a.sin.strides[0];
      const int64_t outer_x = rank == 4 ? batch * a.x.strides[0] : 0;
      const int64_t outer_out = rank == 4 ? batch * a.out.strides[0] : 0;
      const int64_t x = outer_x + index * a.x.strides[rank - 3];
      const int64_t out = outer_out + index * a.out.strides[rank - 3];
      const int64_t first = i - token * heads;
      const int64_t last = (token + 1) * heads < end ? heads : end - token * heads;
      for (int64_t h = first; h < last; ++h) {
        rope_head(a, x + h * a.x.strides[rank - 2], out + h * a.out.strides[rank - 2], cos, sin);
      }
      i += last - first;
    }
  });
  return ok();
}

}  // namespace lowbit
