// The loops of rope, compiled once under the flags of each row's file.
//
// Method    head by head; the table's row of a token is found once for all of its heads. One pass
//           from memory to memory where x and out have one dtype; else through buffers of f32.
#pragma once

#include <type_traits>

#include "csrc/base/threads.h"
#include "csrc/rope/rope.h"
#include "csrc/simd/lanes.h"
#include "csrc/simd/run.h"

namespace lowbit {

// out1 and out2 may be x1 and x2.
template <class T>
static inline void turn_halves(const T* x1, const T* x2, const float* cos, const float* sin,
                               T* out1, T* out2, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes a = load_lanes(x1 + i), b = load_lanes(x2 + i);
    const Lanes c = load_lanes(cos + i), s = load_lanes(sin + i);
    store_lanes(out1 + i, a * c - b * s);
    store_lanes(out2 + i, b * c + a * s);
  }
  if (const int64_t n = count - i; n > 0) {
    const Lanes a = load_part(x1 + i, n), b = load_part(x2 + i, n);
    const Lanes c = load_part(cos + i, n), s = load_part(sin + i, n);
    store_part(out1 + i, a * c - b * s, n);
    store_part(out2 + i, b * c + a * s, n);
  }
}

// (l >> shift) + first for lane l.
static inline IntLanes lane_indices(int shift, int first) {
  IntLanes v = {};
  for (int l = 0; l < kLanes; ++l) v[l] = (l >> shift) + first;
  return v;
}

// kLanes / 2 pairs in v; c and s hold each pair's cosine and sine twice.
static inline Lanes turn_lanes(Lanes v, Lanes c, Lanes s) {
  const IntLanes index = lane_indices(0, 0);
  const Lanes other = __builtin_shuffle(v, index ^ 1);
  const BitLanes minus = reinterpret_cast<BitLanes>((index & 1) - 1) & 0x80000000u;  // even lanes
  return v * c + other * bits_float(float_bits(s) ^ minus);
}

// `count` pairs; out may be x.
template <class T>
static inline void turn_pairs(const T* x, const float* cos, const float* sin, T* out,
                              int64_t count) {
  const IntLanes low = lane_indices(1, 0), high = lane_indices(1, kLanes / 2);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    const Lanes c = n < kLanes ? load_part(cos + i, n) : load_lanes(cos + i);
    const Lanes s = n < kLanes ? load_part(sin + i, n) : load_lanes(sin + i);
    for (int64_t h = 0; h < 2; ++h) {
      const int64_t at = 2 * i + h * kLanes, left = 2 * count - at;
      if (left <= 0) break;
      const Lanes c2 = __builtin_shuffle(c, h == 0 ? low : high);
      const Lanes s2 = __builtin_shuffle(s, h == 0 ? low : high);
      if (left >= kLanes) {
        store_lanes(out + at, turn_lanes(load_lanes(x + at), c2, s2));
      } else {
        store_part(out + at, turn_lanes(load_part(x + at, left), c2, s2), left);
      }
    }
  }
}

// The turned columns of one head, 2 * half of them, from x to out; out may be x.
template <class T>
static inline void turn_head(Pairing pairing, const T* x, const float* cos, const float* sin,
                             T* out, int64_t half) {
  if (pairing == Pairing::half) {
    turn_halves(x, x + half, cos, sin, out, out + half, half);
  } else {
    turn_pairs(x, cos, sin, out, half);
  }
}

// The same between different dtypes: x and out are offsets.
static inline void turn_mixed(const RopeArgs& a, int64_t x, int64_t out, const float* cos,
                              const float* sin) {
  const int64_t half = a.cos.shape[1];
  float from[kRun], to[kRun];
  constexpr int64_t kPairs = kRun / 2;
  for (int64_t i = 0; i < half; i += kPairs) {
    const int64_t width = half - i < kPairs ? half - i : kPairs;
    if (a.pairing == Pairing::half) {
      load_floats(a.x.data, a.x.dtype, x + i, width, from);
      load_floats(a.x.data, a.x.dtype, x + half + i, width, from + width);
      turn_head(a.pairing, from, cos + i, sin + i, to, width);
      store_floats(a.out.data, a.out.dtype, out + i, width, to);
      store_floats(a.out.data, a.out.dtype, out + half + i, width, to + width);
    } else {
      load_floats(a.x.data, a.x.dtype, x + 2 * i, 2 * width, from);
      turn_head(a.pairing, from, cos + i, sin + i, to, width);
      store_floats(a.out.data, a.out.dtype, out + 2 * i, 2 * width, to);
    }
  }
}

// One head: x and out are the offsets of its first columns.
static inline void rope_head(const RopeArgs& a, int64_t x, int64_t out, const float* cos,
                             const float* sin) {
  const int64_t half = a.cos.shape[1], head_dim = a.x.shape[a.x.rank - 1];
  if (a.x.dtype == a.out.dtype) {
    with_float_type(a.x.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      turn_head(a.pairing, static_cast<const T*>(a.x.data) + x, cos, sin,
                static_cast<T*>(a.out.data) + out, half);
    });
  } else {
    turn_mixed(a, x, out, cos, sin);
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
