// What a warp of attention_decode_*_sm90a does with its keys of a tile: s = q k^T, softmax, and
// o += p v, by mma.sync with query rows as its 16 rows.
//
// The cache arrives swizzled (csrc/cuda/swizzle.cuh), so that reads are free of bank conflicts, or
// nearly. Codes of 8 and 4 bits become operands without their scales:
//
//   K    times q in f16, scaled by a power of two a row; the scale meets the score, and for int4
//        the zero times the sum of q is taken off
//   V    bf16 times a power of two a format: int4 and e4m3 bits in the low end of bf16's exponent
//        and mantissa. P times the scale, in bf16, is the weight; the sum of weights divides each
//        by its scale again, so that they add up to one
//
// A masked key has p = 0, but 0 times a NaN or inf of its value is no number. In tiles that not
// every row sees whole, such values are added row by row and then cleared; int8, int4 and e4m3
// codes are finite.
#pragma once

#include "csrc/attention/decode_items_sm90a.cuh"
#include "csrc/cuda/ldmatrix.cuh"
#include "csrc/cuda/mma.cuh"

namespace lowbit {
namespace {

inline constexpr float kLog2 = 1.44269504f, kLn2 = 0.693147181f;
// Of weights of codes, so that products with the smallest bf16 stay in f32's range.
inline constexpr float kLift = 0x1p96f, kDrop = 0x1p-96f;

__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
template <bool kHalf>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
  uint32_t w;
  if constexpr (kHalf) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  }
  return w;
}
template <bool kHalf>
__device__ __forceinline__ float low_of(uint32_t w) {
  if constexpr (kHalf) return half_to_f32(static_cast<uint16_t>(w));
  return __uint_as_float(w << 16);
}
template <bool kHalf>
__device__ __forceinline__ float high_of(uint32_t w) {
  if constexpr (kHalf) return half_to_f32(static_cast<uint16_t>(w >> 16));
  return __uint_as_float(w & 0xffff0000u);
}
__device__ __forceinline__ uint32_t sub_f16(uint32_t a, uint32_t b) {
  uint32_t c;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}
__device__ __forceinline__ uint32_t fma_f16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ uint32_t sub_bf16(uint32_t a, uint32_t b) {
  uint32_t c;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
// Four consecutive codes of 8 bits of a key as f16: the first two, the others.
template <KvFormat kFormat>
__device__ __forceinline__ void key_codes(uint32_t w, uint32_t& first, uint32_t& second) {
  if constexpr (kFormat == KvFormat::fp8_e4m3) {
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.rn.f16x2.e4m3x2 %0, l;\n"
        "cvt.rn.f16x2.e4m3x2 %1, h;\n}"
        : "=r"(first), "=r"(second)
        : "r"(w));
  } else {
    // 1024 + u, u = code + 128, less 1152.
    w ^= 0x80808080u;
    first = sub_f16(__byte_perm(w, 0x64646464u, 0x4140), 0x64806480u);
    second = sub_f16(__byte_perm(w, 0x64646464u, 0x4342), 0x64806480u);
  }
}
// Eight codes of 4 bits of a key, less 8, as f16: of the four low halves the first and the third,
// the others; and the same of the high halves.
__device__ __forceinline__ void key_nibbles(uint32_t w, uint32_t (&to)[4]) {
  constexpr uint32_t kBase = 0x64006400u;  // 1024 + n, and 1024 + 16 n
  const uint32_t y = w >> 8;
  to[0] = sub_f16((w & 0x000f000fu) | kBase, 0x64086408u);
  to[1] = sub_f16((y & 0x000f000fu) | kBase, 0x64086408u);
  to[2] = fma_f16((w & 0x00f000f0u) | kBase, 0x2c002c00u, 0xd480d480u);  // / 16 - 72
  to[3] = fma_f16((y & 0x00f000f0u) | kBase, 0x2c002c00u, 0xd480d480u);
}
// Of two values the bytes 2n and 2n + 1, as pairs in bf16: byte 2n of both, byte 2n + 1 of both.
template <KvFormat kFormat>
__device__ __forceinline__ void value_codes(uint32_t w, uint32_t& even, uint32_t& odd) {
  if constexpr (kFormat == KvFormat::fp8_e4m3) {  // times 2^-120
    even = ((w << 8) & 0x80008000u) | ((w << 4) & 0x07f007f0u);
    odd = (w & 0x80008000u) | ((w >> 4) & 0x07f007f0u);
  } else {
    // 0x4300 and the low seven bits are 128 + b, the sign's bit alone 128 or 256.
    const auto whole = [](uint32_t t) { return sub_bf16(t & 0xff7fff7fu, t & 0xff80ff80u); };
    even = whole(__byte_perm(w, 0x43434343u, 0x4240));
    odd = whole(__byte_perm(w, 0x43434343u, 0x4341));
  }
}

// What the operands of a format leave to the sums of values: their power of two.
template <class F>
__device__ __forceinline__ float value_unit(int pair) {
  switch (F::kFormat) {
    case KvFormat::fp8_e4m3: return 0x1p24f;
    case KvFormat::int8: return kDrop;
    case KvFormat::int4: return pair < F::kDim / 32 ? 0x1p37f : 0x1p33f;
    default: return 1.0f;
  }
}

// Column of q that stands at place `i` of 4 of a lane in step `step`: pairs (0, 1) and (2, 3).
template <class F>
__device__ __forceinline__ constexpr int q_column(int step, int i) {
  if (F::kBits == 16) return step * 16 + i / 2 * 8 + i % 2;  // + 2 (lane % 4)
  if (F::kBits == 8) return step * 16 + i;                   // + 4 (lane % 4)
  const int half = F::kDim / 32;
  const int place = i % 2 * 2 + i / 2;
  return step < half ? step * 16 + place : F::kDim / 2 + (step - half) * 16 + place;
}

// What the two rows of a lane carry from tile to tile, and what they see.
struct Rows {
  int begin[2], end[2];
  float position[2], slope[2];  // slope in units of log2
  float unit[2];                // log2(e) of one unit of a score
  float scale[2];               // of a product, before a transform
  float q_sum[2];
  float max[2], base[2];  // base: max in units of log2
  float weights[2], sums[2], zeros[2];
};

// The rows of q as operands a.
template <class F, bool kTransform>
__device__ __forceinline__ void load_q(const Call& call, const Item& t, const Sequence& s,
                                       Rows& rows, uint32_t (&q)[F::kSteps][4]) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, group = group_of(a);
  const Mask mask = make_mask(a.causal, a.window_left, a.window_right);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r, of = t.row0 + row, token = of / group;
    const int h = t.head * group + of % group;
    const bool there = row < t.rows;
    const int64_t position = token + s.seq_kv - s.seq_q;
    const KeyRange keys = visible_keys(mask, position, s.seq_kv);
    rows.begin[r] = there ? static_cast<int>(keys.begin) : 0;
    rows.end[r] = there ? static_cast<int>(keys.end) : 0;
    rows.position[r] = static_cast<float>(position);
    rows.slope[r] =
        there && present(a.alibi_slopes) ? static_cast<const float*>(a.alibi_slopes.data)[h] : 0.0f;
    rows.max[r] = -INFINITY;
    rows.base[r] = rows.weights[r] = rows.sums[r] = rows.zeros[r] = rows.q_sum[r] = 0.0f;
    const uint16_t* from = static_cast<const uint16_t*>(a.q.data) + s.q +
                           token * token_stride(a.q) + h * head_stride(a.q) +
                           lane % 4 * (F::kBits == 16 ? 2 : 4);
#pragma unroll
    for (int step = 0; step < F::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t w = 0;
        if (there) {
          w = from[q_column<F>(step, 2 * i)] |
              static_cast<uint32_t>(from[q_column<F>(step, 2 * i + 1)]) << 16;
        }
        q[step][2 * i + r] = w;
      }
    }
    float scale = 1.0f;
    if constexpr (F::kCodes) {
      // The largest finite number of the row comes to 2^14: f16 then holds what f32 sums see.
      float most = 0.0f;
      const auto take = [&](float x) {
        if (fabsf(x) < INFINITY) most = fmaxf(most, fabsf(x));
      };
#pragma unroll
      for (int step = 0; step < F::kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          take(low_of<false>(q[step][2 * i + r]));
          take(high_of<false>(q[step][2 * i + r]));
        }
      }
      const int exponent = static_cast<int>(__float_as_uint(quad_max(most)) >> 23);
      const int up = clamped(127 + 14 - exponent, -126, 126);
      const float lift = __uint_as_float(static_cast<uint32_t>(127 + up) << 23);
      scale = __uint_as_float(static_cast<uint32_t>(127 - up) << 23);
#pragma unroll
      for (int step = 0; step < F::kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t& w = q[step][2 * i + r];
          w = pair_of<true>(low_of<false>(w) * lift, high_of<false>(w) * lift);
          if constexpr (F::kZeros) rows.q_sum[r] += low_of<true>(w) + high_of<true>(w);
        }
      }
      if constexpr (F::kZeros) rows.q_sum[r] = quad_sum(rows.q_sum[r]);
    }
    rows.scale[r] = call.scale * scale;
    rows.unit[r] = kTransform ? kLog2 : rows.scale[r] * kLog2;
  }
}

// A place of ldmatrix in a swizzled tile: `lane` is where the lane's row begins and `at` what is
// added to it, no bit of which `lane` has. Both are relative to a multiple of 1024.
__device__ __forceinline__ uint32_t lane_place(uint32_t lane) { return lane ^ (lane >> 3 & 0x70u); }
__device__ __forceinline__ uint32_t place_at(uint32_t base, uint32_t at) {
  return (base ^ ((at & 0x3ffu) ^ (at >> 3 & 0x70u))) + (at & ~0x3ffu);
}

// f16 number `array` of keys `key` and the next one, `key` even, of those in a stage.
template <class F>
__device__ __forceinline__ float2 scales_at(const uint8_t* scales, int box, int array, int key) {
  const int in = key & (box - 1);
  const uint32_t w = *reinterpret_cast<const uint32_t*>(scales + (key - in) * 2 * F::kScales +
                                                        array * 2 * box + 2 * in);
  return {low_of<true>(w), high_of<true>(w)};
}

// Values of a warp's 16 keys that aren't finite: each is added to the rows that see it and cleared.
template <class F>
__device__ __forceinline__ void clear_values(const Rows& rows, const Tile& tile, int key,
                                             const uint32_t (&p)[4], uint8_t* values,
                                             float (&o)[F::kColumns][4]) {
  constexpr uint32_t kMost = F::kHalf ? 0x7c00u : 0x7f80u;  // the exponent of NaN and inf
  const int lane = threadIdx.x % 32;
  unsigned bad = 0;
  for (int at = lane * 16; at < 16 * F::kRowBytes; at += 512) {
    const uint4 v = *reinterpret_cast<const uint4*>(values + lane_place(at));
    bool any = false;
    for (const uint32_t w : {v.x, v.y, v.z, v.w}) {
      any = any || (w & kMost) == kMost || (w >> 16 & kMost) == kMost;
    }
    if (any) bad |= 1u << at / F::kRowBytes;
  }
  bad = __reduce_or_sync(~0u, bad);
  if (bad == 0) return;
  for (int t = 0; t < 16; ++t) {
    if ((bad >> t & 1) == 0) continue;
    float weight[2];
    bool sees[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t pair = __shfl_sync(~0u, t < 8 ? p[r] : p[2 + r], (lane & ~3) | (t % 8 / 2));
      weight[r] = t % 2 == 0 ? low_of<F::kHalf>(pair) : high_of<F::kHalf>(pair);
      const int j = key + t;
      sees[r] = j >= rows.begin[r] && j < rows.end[r] && j >= tile.lo && j < tile.hi;
    }
#pragma unroll
    for (int n = 0; n < F::kColumns; ++n) {
      const uint32_t w = *reinterpret_cast<const uint32_t*>(
          values + lane_place(t * F::kRowBytes + 16 * n + 4 * (lane % 4)));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (!sees[r]) continue;
        o[n][2 * r] += weight[r] * low_of<F::kHalf>(w);
        o[n][2 * r + 1] += weight[r] * high_of<F::kHalf>(w);
      }
    }
    __syncwarp();
    for (int at = lane * 16; at < F::kRowBytes; at += 512) {
      *reinterpret_cast<uint4*>(values + lane_place(t * F::kRowBytes + at)) = {};
    }
    __syncwarp();
  }
  async_fence();  // the copy engine writes here next
}

// A warp's keys of a tile, from `key` on.
template <class F, bool kTransform>
__device__ __forceinline__ void take_keys(const Call& call, const Item& t, const Tile& tile,
                                          int key, int box, uint8_t* stage,
                                          const uint32_t (&q)[F::kSteps][4], Rows& rows,
                                          float (&o)[F::kColumns][4]) {
  constexpr int kKeys = F::kKeys, kRowBytes = F::kRowBytes, kChunks = kRowBytes / 16;
  const int lane = threadIdx.x % 32, part = key - tile.key0;
  const uint8_t* scales = stage + 2 * F::kPart;

  float s[kKeys / 8][4] = {};
  {
    const uint32_t base = smem_address(stage) + part * kRowBytes +
                          lane_place((lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * 16);
#pragma unroll
    for (int n = 0; n < kKeys / 8; n += 2) {
#pragma unroll
      for (int c = 0; c < kChunks; c += 2) {
        uint32_t w[4];  // keys n and chunks c and c + 1; the same of keys n + 1
        ldmatrix(place_at(base, n * 8 * kRowBytes + c * 16), w[0], w[1], w[2], w[3]);
        if constexpr (F::kBits == 16) {
          mma_16bit<F::kHalf>(s[n], q[c / 2], w[0], w[1]);
          mma_16bit<F::kHalf>(s[n + 1], q[c / 2], w[2], w[3]);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float(&to)[4] = s[n + i / 2];
            if constexpr (F::kBits == 8) {
              uint32_t b0, b1;
              key_codes<F::kFormat>(w[i], b0, b1);
              mma_16bit<true>(to, q[c + i % 2], b0, b1);
            } else {
              uint32_t b[4];
              key_nibbles(w[i], b);
              mma_16bit<true>(to, q[c + i % 2], b[0], b[1]);
              mma_16bit<true>(to, q[kChunks + c + i % 2], b[2], b[3]);
            }
          }
        }
      }
    }
  }

  const int column = key + 2 * (lane % 4);
  if constexpr (F::kCodes) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      const int at = part + 8 * n + 2 * (lane % 4);
      const float2 scale = scales_at<F>(scales, box, 0, at);
      float2 zero = {};
      if constexpr (F::kZeros) zero = scales_at<F>(scales, box, 1, at);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (F::kZeros) {
          s[n][2 * r] -= (zero.x - 8.0f) * rows.q_sum[r];
          s[n][2 * r + 1] -= (zero.y - 8.0f) * rows.q_sum[r];
        }
        s[n][2 * r] *= scale.x;
        s[n][2 * r + 1] *= scale.y;
      }
    }
  }
  if constexpr (kTransform) {
    const AttentionArgs& a = call.args;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x = s[n][i] * rows.scale[i / 2];
        if (a.softcap > 0) x = a.softcap * tanhf(x / a.softcap);
        const auto j = static_cast<float>(column + 8 * n + i % 2);
        s[n][i] = x + rows.slope[i / 2] * (j - rows.position[i / 2]);
      }
    }
  }
  const int low = tile.lo > t.low ? tile.lo : t.low, high = tile.hi < t.high ? tile.hi : t.high;
  const bool ragged = key < low || key + kKeys > high;
  uint64_t seen[2] = {~uint64_t{0}, ~uint64_t{0}};  // a bit for each key of a lane
  if (ragged) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int begin = (rows.begin[r] > tile.lo ? rows.begin[r] : tile.lo) - column;
      const int end = (rows.end[r] < tile.hi ? rows.end[r] : tile.hi) - column;
      seen[r] = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int j = 8 * n + i;
          const bool sees = j >= begin && j < end;
          if (sees) seen[r] |= uint64_t{1} << (2 * n + i);
          if (!sees) s[n][2 * r + i] = -INFINITY;
        }
      }
    }
  }

  bool moved = false;
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = rows.max[r];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    }
    most = quad_max(most);
    const float base = most == -INFINITY ? 0.0f : most * rows.unit[r];
    factor[r] = rows.max[r] == -INFINITY ? 0.0f : exp2_of(rows.base[r] - base);
    moved = moved || most != rows.max[r];
    rows.max[r] = most;
    rows.base[r] = base;
  }
  if (__any_sync(~0u, moved)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows.weights[r] *= factor[r];
      rows.sums[r] *= factor[r];
      rows.zeros[r] *= factor[r];
#pragma unroll
      for (int n = 0; n < F::kColumns; ++n) {
        o[n][2 * r] *= factor[r];
        o[n][2 * r + 1] *= factor[r];
      }
    }
  }

  uint32_t p[kKeys / 16][4];
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
    float2 scale = {1.0f, 1.0f}, inverse = {1.0f, 1.0f}, zero = {};
    if constexpr (F::kCodes) {
      const int at = part + 8 * n + 2 * (lane % 4);
      scale = scales_at<F>(scales, box, F::kZeros ? 2 : 1, at);
      scale = {scale.x * kLift, scale.y * kLift};
      inverse = {reciprocal(scale.x), reciprocal(scale.y)};
      if constexpr (F::kZeros) zero = scales_at<F>(scales, box, 3, at);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float x = exp2_of(fmaf(s[n][2 * r], rows.unit[r], -rows.base[r]));
      const float y = exp2_of(fmaf(s[n][2 * r + 1], rows.unit[r], -rows.base[r]));
      rows.sums[r] += x + y;
      if constexpr (!F::kCodes) {
        const uint32_t w = pair_of<F::kHalf>(x, y);
        p[n / 2][n % 2 * 2 + r] = w;
        rows.weights[r] += low_of<F::kHalf>(w) + high_of<F::kHalf>(w);
      } else {
        // What stands beside keys that a row doesn't see may be NaN.
        const bool first = !ragged || (seen[r] >> (2 * n) & 1) != 0;
        const bool second = !ragged || (seen[r] >> (2 * n + 1) & 1) != 0;
        const uint32_t w = pair_of<false>(first ? x * scale.x : 0.0f, second ? y * scale.y : 0.0f);
        p[n / 2][n % 2 * 2 + r] = w;
        const float u = low_of<false>(w), v = high_of<false>(w);
        rows.weights[r] += (first ? u * inverse.x : 0.0f) + (second ? v * inverse.y : 0.0f);
        if constexpr (F::kZeros) {
          rows.zeros[r] += (first ? u * zero.x : 0.0f) + (second ? v * zero.y : 0.0f);
        }
      }
    }
  }

  uint8_t* values = stage + F::kPart + part * kRowBytes;
  const uint32_t base =
      smem_address(values) + lane_place((lane / 8 % 2 * 8 + lane % 8) * kRowBytes + lane / 16 * 16);
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    if constexpr (!F::kCodes) {
      if (ragged) {
        clear_values<F>(rows, tile, key + 16 * k, p[k], values + k * 16 * kRowBytes, o);
      }
    }
#pragma unroll
    for (int c = 0; c < kChunks; c += 2) {
      uint32_t w[4];  // chunk c of values 0 to 7 and 8 to 15; the same of chunk c + 1
      ldmatrix_across(place_at(base, k * 16 * kRowBytes + c * 16), w[0], w[1], w[2], w[3]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t w0 = w[2 * i], w1 = w[2 * i + 1];
        if constexpr (F::kBits == 16) {
          mma_16bit<F::kHalf>(o[c + i], p[k], w0, w1);
        } else if constexpr (F::kBits == 8) {
          uint32_t even0, odd0, even1, odd1;
          value_codes<F::kFormat>(w0, even0, odd0);
          value_codes<F::kFormat>(w1, even1, odd1);
          mma_16bit<false>(o[2 * (c + i)], p[k], even0, even1);
          mma_16bit<false>(o[2 * (c + i) + 1], p[k], odd0, odd1);
        } else {
          // Four bits in bf16's low end: n times 2^-133, and 16 n.
          constexpr int kHigh = F::kColumns / 2;
          constexpr uint32_t kLow4 = 0x000f000fu, kHigh4 = 0x00f000f0u;
          const uint32_t y0 = w0 >> 8, y1 = w1 >> 8;
          mma_16bit<false>(o[2 * (c + i)], p[k], w0 & kLow4, w1 & kLow4);
          mma_16bit<false>(o[2 * (c + i) + 1], p[k], y0 & kLow4, y1 & kLow4);
          mma_16bit<false>(o[kHigh + 2 * (c + i)], p[k], w0 & kHigh4, w1 & kHigh4);
          mma_16bit<false>(o[kHigh + 2 * (c + i) + 1], p[k], y0 & kHigh4, y1 & kHigh4);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
