// The loops of kv's vector rows, compiled once under the flags of each row's file.
//
// Method    append: a row of one token and head comes to L1 as f32, is turned there, its range is
//           found and it is encoded; head by head, so that a token's tables are found once. read
//           decodes as attention does. Copies are memcpy's.
#pragma once

#include <cmath>

#include "csrc/attention/decode.h"
#include "csrc/base/rows.h"
#include "csrc/kv/encode.h"
#include "csrc/kv/move.h"
#include "csrc/simd/codes.h"
#include "csrc/simd/convert.h"

namespace lowbit {

// Rows of f32 with room for whole lanes at their end, which are zero: in the range of every row.
inline constexpr int64_t kRowRoom = kKvHeadDimMost + kLanes;

// (l >> shift) + first for lane l.
static inline IntLanes lane_number(int shift, int first) {
  IntLanes v = {};
  for (int l = 0; l < kLanes; ++l) v[l] = (l >> shift) + first;
  return v;
}

static inline void turn_halves(float* x, const float* cos, const float* sin, int64_t half) {
  const auto turn = [&](Lanes x1, Lanes x2, Lanes c, Lanes s, Lanes& first, Lanes& second) {
    first = fused_subtract(x1, c, x2 * s);
    second = fused_add(x2, c, x1 * s);
  };
  Lanes first, second;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    turn(load_lanes(x + i), load_lanes(x + half + i), load_lanes(cos + i), load_lanes(sin + i),
         first, second);
    store_lanes(x + i, first);
    store_lanes(x + half + i, second);
  }
  if (const int64_t n = half - i; n > 0) {
    turn(load_part(x + i, n), load_part(x + half + i, n), load_part(cos + i, n),
         load_part(sin + i, n), first, second);
    store_part(x + i, first, n);
    store_part(x + half + i, second, n);
  }
}

// Pairs of neighbours: other lanes of a vector are partners, sines of even lanes count negative.
static inline void turn_neighbours(float* x, const float* cos, const float* sin, int64_t half) {
  const IntLanes number = lane_number(0, 0);
  const BitLanes minus = reinterpret_cast<BitLanes>((number & 1) - 1) & 0x80000000u;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = half - i < kLanes ? half - i : kLanes;
    const Lanes c = n < kLanes ? load_part(cos + i, n) : load_lanes(cos + i);
    const Lanes s = n < kLanes ? load_part(sin + i, n) : load_lanes(sin + i);
    for (int64_t h = 0; h < 2; ++h) {
      const int64_t at = 2 * i + h * kLanes, left = 2 * half - at;
      if (left <= 0) break;
      const IntLanes pair = lane_number(1, h == 0 ? 0 : kLanes / 2);
      const Lanes c2 = __builtin_shuffle(c, pair), s2 = __builtin_shuffle(s, pair);
      const Lanes v = left < kLanes ? load_part(x + at, left) : load_lanes(x + at);
      const Lanes other = __builtin_shuffle(v, number ^ 1);
      const Lanes turned = fused_add(v, c2, bits_float(float_bits(other * s2) ^ minus));
      if (left < kLanes) {
        store_part(x + at, turned, left);
      } else {
        store_lanes(x + at, turned);
      }
    }
  }
}

static inline void turn_key(const KvArgs& a, int64_t position, float* x) {
  const int64_t half = a.cos.shape[1];
  const auto* cos = static_cast<const float*>(a.cos.data) + position * a.cos.strides[0];
  const auto* sin = static_cast<const float*>(a.sin.data) + position * a.sin.strides[0];
  if (a.pairing == Pairing::half) {
    turn_halves(x, cos, sin, half);
  } else {
    turn_neighbours(x, cos, sin, half);
  }
}

// The scale of a row; false: it has none, for something in it is not finite.
static inline bool scale_row(KvFormat format, const float* x, int64_t dim, KvScale* scale) {
  Lanes low = {}, high = {}, none = {};
  for (int64_t d = 0; d < dim; d += kLanes) {
    const Lanes v = load_lanes(x + d);
    low = v < low ? v : low;
    high = v > high ? v : high;
    none += v * 0.0f;  // NaN once something is not finite
  }
  high = none == none ? high : Lanes{} + INFINITY;
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const IntLanes other = lane_number(0, 0) ^ step;
    const Lanes l = __builtin_shuffle(low, other), h = __builtin_shuffle(high, other);
    low = l < low ? l : low;
    high = h > high ? h : high;
  }
  const bool finite = high[0] < INFINITY;
  *scale = kv_scale_of(format, low[0], high[0], finite);
  return finite;
}

static inline Lanes between(Lanes v, float least, float most) {
  return at_most(at_least(v, least), most);
}
static inline IntLanes codes_int8(Lanes v, const KvScale& s) {
  return to_whole(between(v * s.inverse, -127.0f, 127.0f));
}
static inline IntLanes codes_int4(Lanes v, const KvScale& s) {
  const Lanes inverse = Lanes{} + s.inverse, zero = Lanes{} + s.zero_point;
  return to_whole(between(fused_add(v, inverse, zero), 0.0f, 15.0f));
}

// `count` bytes of lanes that are made by f(d).
template <class F>
static inline void store_codes(uint8_t* out, int64_t count, const F& f) {
  int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes) store_u8(out + d, f(d));
  if (d == count) return;
  uint8_t rest[kLanes];
  store_u8(rest, f(d));
  std::memcpy(out + d, rest, static_cast<size_t>(count - d));
}

static inline void encode_row(const float* x, int64_t dim, const KvRow& row) {
  if (is_float(row.format)) return store_floats(row.codes, kv_dtype(row.format), 0, dim, x);
  KvScale s;
  const bool finite = scale_row(row.format, x, dim, &s);
  std::memcpy(row.scale, &s.scale, 2);
  if (row.format == KvFormat::int4) std::memcpy(row.zero, &s.zero, 2);
  if (!finite) {
    std::memset(row.codes, 0, static_cast<size_t>(kv_row_bytes(row.format, dim)));
  } else if (row.format == KvFormat::int8) {
    store_codes(row.codes, dim, [&](int64_t d) { return codes_int8(load_lanes(x + d), s); });
  } else if (row.format == KvFormat::int4) {
    const float* upper = x + dim / 2;
    store_codes(row.codes, dim / 2, [&](int64_t d) {
      return codes_int4(load_lanes(x + d), s) | codes_int4(load_lanes(upper + d), s) << 4;
    });
  } else {
    for (int64_t d = 0; d < dim; ++d) row.codes[d] = kv_fp8(x[d], s);
  }
}

static inline void append_row(const KvArgs& a, int64_t token, int64_t head, int64_t slot,
                              bool of_values, float* x) {
  const Tensor& t = of_values ? a.v : a.k;
  const int64_t dim = t.shape[2], from = token * t.strides[0] + head * t.strides[1];
  const KvRow row = kv_row_at(a.cache, slot, head, of_values);
  const bool turned = !of_values && present(a.cos);
  if (!turned && is_float(row.format) && t.dtype == kv_dtype(row.format)) {
    std::memcpy(row.codes, element(t.data, t.dtype, from),
                static_cast<size_t>(kv_row_bytes(row.format, dim)));
    return;
  }
  load_floats(t.data, t.dtype, from, dim, x);
  store_lanes(x + dim, Lanes{});
  if (turned) turn_key(a, slot_of(a.positions, token), x);
  encode_row(x, dim, row);
}

static inline Status append_body(const KvArgs& args, const Ctx& ctx) {
  const KvArgs* a = &args;
  const int64_t heads = args.cache.kv_heads, tokens = args.slots.shape[0];
  // 16384 numbers are some microseconds: a decode step's few tokens stay on one thread.
  const int64_t grain = row_grain(args.cache.head_dim + args.cache.head_dim_v, 16384);
  parallel_for(ctx.pool, tokens * heads, grain, [=](int64_t begin, int64_t end, int) {
    alignas(64) float x[kRowRoom];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / heads, head = i % heads, slot = slot_of(a->slots, token);
      if (slot < 0) continue;
      append_row(*a, token, head, slot, false, x);
      append_row(*a, token, head, slot, true, x);
    }
  });
  return ok();
}

static inline void read_row(const KvArgs& a, int64_t token, int64_t head, int64_t slot,
                            bool of_values) {
  const Tensor& t = of_values ? a.v : a.k;
  const KvRow row = kv_row_at(a.cache, slot, head, of_values);
  float* out = static_cast<float*>(t.data) + token * t.strides[0] + head * t.strides[1];
  kv_decode({row.format, row.codes, row.scale, row.zero, 1}, t.shape[2], out, 0);
}

static inline Status read_body(const KvArgs& args, const Ctx& ctx) {
  const KvArgs* a = &args;
  const int64_t heads = args.cache.kv_heads, tokens = args.slots.shape[0];
  const int64_t grain = row_grain(args.cache.head_dim + args.cache.head_dim_v, 16384);
  parallel_for(ctx.pool, tokens * heads, grain, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / heads, head = i % heads, slot = slot_of(a->slots, token);
      read_row(*a, token, head, slot, false);
      read_row(*a, token, head, slot, true);
    }
  });
  return ok();
}

static inline Status kv_body(const KvArgs& args, const Ctx& ctx) {
  switch (args.op) {
    case KvOp::append: return append_body(args, ctx);
    case KvOp::read: return read_body(args, ctx);
    case KvOp::copy_pages: return kv_copy_pages(args, ctx);
    default: return kv_save_restore(args, ctx);
  }
}

}  // namespace lowbit
