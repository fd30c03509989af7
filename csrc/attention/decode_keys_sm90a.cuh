// What a warp of attention_decode_*_sm90a does with its keys of a tile: s = k q^T, softmax, and
// o^T += v^T p^T, by mma.sync with keys, then elements of values, as its 16 rows and eight query
// rows as its columns: what few rows leave empty of a product is then small. Scores stand key by
// key across lanes; movmatrix turns weights into operands.
//
// The cache arrives swizzled (csrc/cuda/swizzle.cuh), so that reads are free of bank conflicts, or
// nearly. Codes of 8 and 4 bits become operands without their scales:
//
//   K    f16, times q in f16, scaled by a power of two a row; e4m3 by conversion, others as they
//        are in the low bits of f16, where a number n is n times 2^-24. The scale meets the score;
//        for int4 the zero times the sum of q is taken off, for int8 (codes + 128) 128 times
//   V    bf16 times a power of two a format: bits in the low end of bf16's exponent and mantissa.
//        P times the scale, in bf16, is the weight; the sum of weights divides each by its scale
//        again, so that they add up to one
//
// Sums of codes without a sign are far larger than what is left once their middle is taken off, and
// tensor cores cut off what an addition leaves behind. So a tile's products begin at zero and
// are added to the sums by rounding additions.
//
// A masked key has p = 0, but 0 times a NaN or inf of its value is no number. In tiles that not
// every row sees whole, such values are added row by row and then cleared; codes are finite, and a
// scale that is none makes the rows that see it NaN.
#pragma once

#include "csrc/attention/decode_items_sm90a.cuh"
#include "csrc/cuda/functions.cuh"
#include "csrc/cuda/ldmatrix.cuh"
#include "csrc/cuda/mma.cuh"
#include "csrc/cuda/movmatrix.cuh"
#include "csrc/cuda/pairs.cuh"

namespace lowbit {
namespace {

inline constexpr float kLog2 = 1.44269504f, kLn2 = 0.693147181f;
// Of weights of codes, so that products with the smallest bf16 stay in f32's range.
inline constexpr float kLift = 0x1p96f, kDrop = 0x1p-96f;
inline constexpr float kTiny = 0x1p-24f;  // 1 in the low bits of f16

// Of numbers that are normal, where reciprocal() asks whether they are.
__device__ __forceinline__ float inverse_of(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}
// Over the lanes that hold the same columns.
__device__ __forceinline__ float column_max(float x) {
  for (int step = 4; step < 32; step *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
__device__ __forceinline__ float column_sum(float x) {
  for (int step = 4; step < 32; step *= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// ---- codes -------------------------------------------------------------------------------------

// Four consecutive codes of a key as pairs of f16: which two stand together says q_place().
template <KvFormat kFormat>
__device__ __forceinline__ void key_codes(uint32_t w, uint32_t& first, uint32_t& second) {
  if constexpr (kFormat == KvFormat::fp8_e4m3) {
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.rn.f16x2.e4m3x2 %0, l;\n"
        "cvt.rn.f16x2.e4m3x2 %1, h;\n}"
        : "=r"(first), "=r"(second)
        : "r"(w));
  } else {
    first = (w ^ 0x80808080u) & 0x00ff00ffu;
    second = (w >> 8 & 0x00ff00ffu) ^ 0x00800080u;
  }
}
// Of two values the bytes 2n and 2n + 1, as pairs in bf16: byte 2n of both, byte 2n + 1 of both.
template <KvFormat kFormat>
__device__ __forceinline__ void value_codes(uint32_t w, uint32_t& even, uint32_t& odd) {
  if constexpr (kFormat == KvFormat::fp8_e4m3) {  // times 2^-120
    even = ((w << 8) & 0x80008000u) | ((w << 4) & 0x07f007f0u);
    odd = (w & 0x80008000u) | ((w >> 4) & 0x07f007f0u);
  } else {  // plus 128, times 2^-133
    even = (w ^ 0x80808080u) & 0x00ff00ffu;
    odd = (w >> 8 & 0x00ff00ffu) ^ 0x00800080u;
  }
}
// What the operands of a format leave to the sums of values: their power of two, for sums of
// elements 16 m to 16 m + 15.
template <class F>
__device__ __forceinline__ constexpr float value_unit(int m) {
  switch (F::kFormat) {
    case KvFormat::fp8_e4m3: return 0x1p24f;
    case KvFormat::int8: return 0x1p37f;
    case KvFormat::int4: return m < F::kDim / 32 ? 0x1p37f : 0x1p33f;
    default: return 1.0f;
  }
}
// Which of 16 elements of q stands at place i of a product's step, so that it meets its own.
template <class F>
__device__ __forceinline__ constexpr int q_place(int i) {
  const int half = i / 8, pair = i % 8 / 2, which = i % 2;
  if (F::kBits == 16) return i;
  if (F::kFormat == KvFormat::fp8_e4m3) return 4 * pair + 2 * half + which;
  return 4 * pair + 2 * which + half;
}

// ---- rows of q ---------------------------------------------------------------------------------

// By a warp: the rows of q of an item as operands in shared memory, and what is known of each.
template <class F>
__device__ __forceinline__ void prepare_rows(const Call& call, const Item& t, uint8_t* queries,
                                             Row* rows) {
  const AttentionArgs& a = call.args;
  const int64_t start = (is_batched(a) ? t.sequence : t.of.token) * a.q.strides[0];
  constexpr int kParts = F::kDim / 64;  // of 16 elements, of a lane
  for (int row = threadIdx.x % 32 / 4; row < F::kRows; row += 8) {
    const int part0 = threadIdx.x % 4, of = t.row0 + row, token = of / call.group;
    const int h = t.head * call.group + of - token * call.group;
    const bool there = row < t.rows;
    const uint16_t* from = static_cast<const uint16_t*>(a.q.data) + start +
                           token * token_stride(a.q) + h * head_stride(a.q) + 16 * part0;
    uint32_t w[kParts][8] = {};
    if (there && is_aligned(from)) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        const auto* p = reinterpret_cast<const uint4*>(from + 64 * i);
        const uint4 x = p[0], y = p[1];
        w[i][0] = x.x, w[i][1] = x.y, w[i][2] = x.z, w[i][3] = x.w;
        w[i][4] = y.x, w[i][5] = y.y, w[i][6] = y.z, w[i][7] = y.w;
      }
    } else if (there) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const uint16_t* p = from + 64 * i + 2 * j;
          w[i][j] = p[0] | static_cast<uint32_t>(p[1]) << 16;
        }
      }
    }
    float scale = 1.0f, sum = 0.0f;
    if constexpr (F::kCodes) {
      // The largest finite number of the row comes to 2^14: f16 then holds what f32 sums see.
      float most = 0.0f;
      const auto take = [&](float x) {
        if (fabsf(x) < INFINITY) most = fmaxf(most, fabsf(x));
      };
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          take(low_of<false>(w[i][j]));
          take(high_of<false>(w[i][j]));
        }
      }
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const int exponent = static_cast<int>(__float_as_uint(most) >> 23);
      const int up = clamped(127 + 14 - exponent, -126, 126);
      scale = __uint_as_float(static_cast<uint32_t>(127 - up) << 23);
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        // The high bits of int4's bytes are 16 times their number.
        const float down = F::kZeros && part0 + 4 * i >= F::kDim / 32 ? 16.0f : 1.0f;
        const float lift = __uint_as_float(static_cast<uint32_t>(127 + up) << 23) / down;
        float own = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          w[i][j] = pair_of<true>(low_of<false>(w[i][j]) * lift, high_of<false>(w[i][j]) * lift);
          own += low_of<true>(w[i][j]) + high_of<true>(w[i][j]);
        }
        sum += own * down;
      }
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
    }
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      uint32_t to[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int low = q_place<F>(2 * j), high = q_place<F>(2 * j + 1);
        to[j] = __byte_perm(w[i][low / 2], w[i][high / 2],
                            (low % 2 == 0 ? 0x0010 : 0x0032) | (high % 2 == 0 ? 0x5400 : 0x7600));
      }
      auto* p = reinterpret_cast<uint4*>(queries + row * F::kQueryStride + 32 * part0 + 128 * i);
      p[0] = {to[0], to[1], to[2], to[3]};
      p[1] = {to[4], to[5], to[6], to[7]};
    }
    if (part0 != 0) continue;
    const int position = token + t.of.seq_kv - t.of.seq_q;
    const Keys keys = seen_keys(call, position, t.of.seq_kv);
    Row r;
    r.begin = there ? keys.begin : 0;
    r.end = there ? keys.end : 0;
    r.token = token;
    r.head = h;
    r.position = static_cast<float>(position);
    r.slope =
        there && present(a.alibi_slopes) ? static_cast<const float*>(a.alibi_slopes.data)[h] : 0.0f;
    r.scale = call.scale * scale;
    r.unit = call.transform ? kLog2 : r.scale * kLog2;
    r.shift = F::kShifted ? -128.0f * kTiny * sum : kTiny * sum;
    rows[row] = r;
  }
}

// What a warp needs of a segment's rows: operands b, and of its columns 2 (lane % 4) and the next
// of each eight rows.
template <class F>
struct Queries {
  // 16 rows of codes leave no registers for operands: those come again for each tile.
  static constexpr bool kKeeps = !F::kCodes || F::kGroups == 1;
  uint32_t from;  // where the lane reads operands
  uint32_t b[kKeeps ? F::kSteps : 1][F::kGroups][2];
  float unit[F::kGroups][2], shift[F::kGroups][2];
};
template <class F>
__device__ __forceinline__ void load_queries(const uint8_t* queries, const Row* rows,
                                             Queries<F>& q) {
  const int lane = threadIdx.x % 32;
  q.from = smem_address(queries) + lane % 8 * F::kQueryStride + lane / 8 * 16;
#pragma unroll
  for (int g = 0; g < F::kGroups; ++g) {
    if constexpr (Queries<F>::kKeeps) {
#pragma unroll
      for (int i = 0; i < F::kSteps; i += 2) {
        ldmatrix(q.from + 8 * g * F::kQueryStride + 32 * i, q.b[i][g][0], q.b[i][g][1],
                 q.b[i + 1][g][0], q.b[i + 1][g][1]);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const Row& r = rows[8 * g + 2 * (lane % 4) + e];
      q.unit[g][e] = r.unit;
      q.shift[g][e] = r.shift;
    }
  }
}

// What a warp carries from tile to tile. o: of elements 16 m + lane / 4 and eight behind (codes:
// 16 m + 2 (lane / 4) and the next) its two columns each; the others: of its columns, the sums of
// its own keys.
template <class F>
struct Sums {
  float o[F::kSteps][F::kGroups][4] = {};
  float max[F::kGroups][2], base[F::kGroups][2];  // base: max in units of log2
  float weights[F::kGroups][2] = {}, sums[F::kGroups][2] = {}, zeros[F::kGroups][2] = {};
  __device__ __forceinline__ Sums() {
#pragma unroll
    for (int i = 0; i < 2 * F::kGroups; ++i) {
      max[i / 2][i % 2] = -INFINITY;
      base[i / 2][i % 2] = 0.0f;
    }
  }
};

// ---- places ------------------------------------------------------------------------------------

// Which of 16 keys is row r + 8 half of a product. Keys with scales: two that follow each other in
// one lane; rows of 128 bytes in the order that leaves no two of them in the same banks.
template <class F>
__device__ __forceinline__ int key_place(int r, int half) {
  if (!F::kCodes) return r + 8 * half;
  return 2 * r + (F::kRowBytes == 128 ? half ^ (r >> 2) : half);
}
__device__ __forceinline__ uint32_t in_swizzle(uint32_t at) { return at ^ (at >> 3 & 0x70u); }
// Where a key of a stage has its K; its V stands all keys of a box behind.
template <class F>
__device__ __forceinline__ uint32_t key_at(const Call& call, int key) {
  const int in = key & ((1 << call.box_shift) - 1);
  return (key >> call.box_shift) * call.box_bytes + in * F::kRowBytes;
}
template <class F>
__device__ __forceinline__ uint32_t values_behind(const Call& call) {
  return F::kRowBytes << call.box_shift;
}
// Where a lane finds what it reads of a stage, of each 16 keys of its warp: its rows of K and of V
// for ldmatrix, chunk 0 or 1, and the first scales of two keys.
template <class F>
struct Places {
  uint32_t k[F::kKeys / 16], v[F::kKeys / 16], scales[F::kCodes ? F::kKeys / 16 : 1];
  __device__ __forceinline__ Places(const Call& call, int part) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < F::kKeys / 16; ++m) {
      const int key = part + 16 * m;
      k[m] =
          in_swizzle(key_at<F>(call, key + key_place<F>(lane % 8, lane / 8 % 2)) + lane / 16 * 16);
      v[m] = in_swizzle(key_at<F>(call, key + key_place<F>(lane % 8, lane / 16)) +
                        values_behind<F>(call) + lane / 8 % 2 * 16);
      if constexpr (F::kCodes) {
        const int mine = key + 2 * (lane / 4), in = mine & ((1 << call.box_shift) - 1);
        scales[m] = (mine >> call.box_shift) * call.box_bytes + 2 * values_behind<F>(call) + 2 * in;
      }
    }
  }
};
// Chunk c, even, of a row whose first is at `row` in a stage.
__device__ __forceinline__ uint32_t chunk_at(uint32_t row, int c) {
  return row ^ in_swizzle(static_cast<uint32_t>(c) * 16);
}
// f16 number `array` of a lane's two keys, of those at `at` in a stage.
template <class F>
__device__ __forceinline__ float2 scales_at(const Call& call, const uint8_t* stage, uint32_t at,
                                            int array) {
  at += static_cast<uint32_t>(array) * 2 << call.box_shift;
  at ^= at >> 3 & call.swizzled_scales;
  const uint32_t w = *reinterpret_cast<const uint32_t*>(stage + at);
  const float2 x = {low_of<true>(w), high_of<true>(w)};
  if (F::kRowBytes == 128 && threadIdx.x % 32 >= 16) return {x.y, x.x};
  return x;
}

// Values of 16 keys of a stage that aren't finite: each is added to the rows that see it and
// cleared. `p` are weights key by key, as the scores stand.
template <class F>
__device__ __forceinline__ void clear_values(const Call& call, const Row* rows, const Tile& tile,
                                             int first, const uint32_t (&p)[2][F::kGroups],
                                             uint8_t* stage, Sums<F>& t) {
  constexpr uint32_t kMost = F::kHalf ? 0x7c00u : 0x7f80u;  // the exponent of NaN and inf
  const int lane = threadIdx.x % 32;
  const auto place = [&](int i, int byte) {
    return in_swizzle(key_at<F>(call, first + i) + values_behind<F>(call) + byte);
  };
  unsigned bad = 0;
  for (int at = lane * 16; at < 16 * F::kRowBytes; at += 512) {
    const int i = at / F::kRowBytes;
    const uint4 v = *reinterpret_cast<const uint4*>(stage + place(i, at % F::kRowBytes));
    bool any = false;
    for (const uint32_t w : {v.x, v.y, v.z, v.w}) {
      any = any || (w & kMost) == kMost || (w >> 16 & kMost) == kMost;
    }
    if (any) bad |= 1u << i;
  }
  bad = __reduce_or_sync(~0u, bad);
  for (; bad != 0; bad &= bad - 1) {
    const int i = __ffs(static_cast<int>(bad)) - 1, j = tile.key0 + first + i;
#pragma unroll
    for (int g = 0; g < F::kGroups; ++g) {
      const uint32_t w = __shfl_sync(~0u, i < 8 ? p[0][g] : p[1][g], i % 8 * 4 + lane % 4);
      const float weight[2] = {low_of<F::kHalf>(w), high_of<F::kHalf>(w)};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Row& r = rows[8 * g + 2 * (lane % 4) + e];
        if (j < r.begin || j >= r.end || j < tile.lo || j >= tile.hi) continue;
#pragma unroll
        for (int m = 0; m < F::kSteps; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint32_t v = *reinterpret_cast<const uint16_t*>(
                stage + place(i, 2 * (16 * m + 8 * half + lane / 4)));
            t.o[m][g][2 * half + e] += weight[e] * low_of<F::kHalf>(v);
          }
        }
      }
    }
    __syncwarp();
    for (int at = lane * 16; at < F::kRowBytes; at += 512) {
      *reinterpret_cast<uint4*>(stage + place(i, at)) = {};
    }
    __syncwarp();
  }
  async_fence();  // the copy engine writes here next
}

// ---- a warp's keys -----------------------------------------------------------------------------

// A warp's keys of a tile, from `key` on.
template <class F>
__device__ __forceinline__ void take_keys(const Call& call, const Item& item, const Tile& tile,
                                          int key, uint8_t* stage, const Places<F>& places,
                                          const Row* rows, const Queries<F>& q, Sums<F>& t) {
  constexpr int kM = F::kKeys / 16, kG = F::kGroups, kChunks = F::kRowBytes / 16;
  const int lane = threadIdx.x % 32;
  const uint32_t from = smem_address(stage);

  // s[m][g]: of keys 16 m + key_place(lane / 4, half), columns 2 half and 2 half + 1.
  float s[kM][kG][4];
#pragma unroll
  for (int i = 0; i < kM * kG * 4; ++i) {
    s[i / 4 / kG][i / 4 % kG][i % 4] = F::kShifted ? q.shift[i / 4 % kG][i % 2] : 0.0f;
  }
  {
#pragma unroll
    for (int c = 0; c < kChunks; c += 2) {
      // Of codes: steps c and c + 1, and those of the high four bits.
      constexpr int kHigh = F::kBits == 4 ? F::kSteps / 2 : 0;
      uint32_t b[4][kG][2];
      if constexpr (F::kCodes) {
#pragma unroll
        for (int i = 0; i < (F::kBits == 4 ? 4 : 2); i += 2) {
          const int step = c + i / 2 * kHigh;
#pragma unroll
          for (int g = 0; g < kG; ++g) {
            if constexpr (Queries<F>::kKeeps) {
#pragma unroll
              for (int j = 0; j < 4; ++j) b[i + j / 2][g][j % 2] = q.b[step + j / 2][g][j % 2];
            } else {
              ldmatrix(q.from + 8 * g * F::kQueryStride + 32 * step, b[i][g][0], b[i][g][1],
                       b[i + 1][g][0], b[i + 1][g][1]);
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        uint32_t w[4];  // chunk c of keys of half 0 and 1; the same of chunk c + 1
        ldmatrix(from + chunk_at(places.k[m], c), w[0], w[1], w[2], w[3]);
        if constexpr (F::kBits == 16) {
#pragma unroll
          for (int g = 0; g < kG; ++g) {
            mma_16bit<F::kHalf>(s[m][g], w, q.b[c / 2][g][0], q.b[c / 2][g][1]);
          }
        } else {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint32_t w0 = w[2 * i], w1 = w[2 * i + 1];
            uint32_t x[4];
            if constexpr (F::kBits == 8) {
              key_codes<F::kFormat>(w0, x[0], x[2]);
              key_codes<F::kFormat>(w1, x[1], x[3]);
#pragma unroll
              for (int g = 0; g < kG; ++g) {
                mma_16bit<true>(s[m][g], x, b[i][g][0], b[i][g][1]);
              }
            } else {
              constexpr uint32_t kLow4 = 0x000f000fu, kHigh4 = 0x00f000f0u;
              const uint32_t y0 = w0 >> 8, y1 = w1 >> 8;
              const uint32_t low[4] = {w0 & kLow4, w1 & kLow4, y0 & kLow4, y1 & kLow4};
              const uint32_t high[4] = {w0 & kHigh4, w1 & kHigh4, y0 & kHigh4, y1 & kHigh4};
#pragma unroll
              for (int g = 0; g < kG; ++g) {
                mma_16bit<true>(s[m][g], low, b[i][g][0], b[i][g][1]);
                mma_16bit<true>(s[m][g], high, b[2 + i][g][0], b[2 + i][g][1]);
              }
            }
          }
        }
      }
    }
  }

  if constexpr (F::kCodes) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const float2 pair = scales_at<F>(call, stage, places.scales[m], 0);
      const float unit = F::kBits == 4 || F::kShifted ? 0x1p24f : 1.0f;
      const float scale[2] = {pair.x * unit, pair.y * unit};
      float2 zero = {};
      if constexpr (F::kZeros) zero = scales_at<F>(call, stage, places.scales[m], 1);
#pragma unroll
      for (int i = 0; i < 4 * kG; ++i) {
        float& x = s[m][i / 4][i % 4];
        const int half = i % 4 / 2;
        if constexpr (F::kZeros) x = fmaf(half == 0 ? -zero.x : -zero.y, q.shift[i / 4][i % 2], x);
        x *= scale[half];
      }
    }
  }
  if (call.transform) {
    const AttentionArgs& a = call.args;
#pragma unroll
    for (int i = 0; i < kM * kG * 4; ++i) {
      const int m = i / 4 / kG, g = i / 4 % kG, half = i % 4 / 2;
      const Row& r = rows[8 * g + 2 * (lane % 4) + i % 2];
      float x = s[m][g][i % 4] * r.scale;
      if (a.softcap > 0) x = a.softcap * tanhf(x / a.softcap);
      const auto j = static_cast<float>(key + 16 * m + key_place<F>(lane / 4, half));
      s[m][g][i % 4] = x + r.slope * (j - r.position);
    }
  }
  const int low = tile.lo > item.low ? tile.lo : item.low;
  const int high = tile.hi < item.high ? tile.hi : item.high;
  const bool ragged = key < low || key + F::kKeys > high;
  uint32_t seen = ~0u;  // a bit for each score of a lane, as they are counted above
  if (ragged) {
    seen = 0;
#pragma unroll
    for (int i = 0; i < kM * kG * 4; ++i) {
      const int m = i / 4 / kG, g = i / 4 % kG, half = i % 4 / 2, e = i % 2;
      const int j = key + 16 * m + key_place<F>(lane / 4, half);
      const Row& r = rows[8 * g + 2 * (lane % 4) + e];
      const bool sees = j >= r.begin && j < r.end && j >= tile.lo && j < tile.hi;
      if (sees) {
        seen |= 1u << i;
      } else {
        s[m][g][i % 4] = -INFINITY;
      }
    }
  }

  float factor[kG][2];
  bool moved = false;
  float most[kG][2];
#pragma unroll
  for (int i = 0; i < 2 * kG; ++i) {
    const int g = i / 2, e = i % 2;
    most[g][e] = fmaxf(s[0][g][e], s[0][g][2 + e]);
#pragma unroll
    for (int m = 1; m < kM; ++m) most[g][e] = fmaxf(most[g][e], fmaxf(s[m][g][e], s[m][g][2 + e]));
    moved = moved || most[g][e] > t.max[g][e];
    factor[g][e] = 1.0f;
  }
  if (__any_sync(~0u, moved)) {
#pragma unroll
    for (int i = 0; i < 2 * kG; ++i) {
      const int g = i / 2, e = i % 2;
      const float next = fmaxf(t.max[g][e], column_max(most[g][e]));
      const float base = next == -INFINITY ? 0.0f : next * q.unit[g][e];
      factor[g][e] = t.max[g][e] == -INFINITY ? 0.0f : power_of_two(t.base[g][e] - base);
      t.max[g][e] = next;
      t.base[g][e] = base;
      t.weights[g][e] *= factor[g][e];
      t.sums[g][e] *= factor[g][e];
      if constexpr (F::kZeros || F::kShifted) t.zeros[g][e] *= factor[g][e];
      if constexpr (!F::kCodes) {
#pragma unroll
        for (int m = 0; m < F::kSteps; ++m) {
          t.o[m][g][e] *= factor[g][e];
          t.o[m][g][2 + e] *= factor[g][e];
        }
      }
    }
  }

  uint32_t p[kM][2][kG];  // weights of a key and two columns
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    float scale[2] = {1.0f, 1.0f}, inverse[2] = {1.0f, 1.0f}, zero[2] = {};
    if constexpr (F::kCodes) {
      const float2 x = scales_at<F>(call, stage, places.scales[m], F::kZeros ? 2 : 1);
      scale[0] = x.x * kLift;
      scale[1] = x.y * kLift;
      inverse[0] = inverse_of(scale[0]);
      inverse[1] = inverse_of(scale[1]);
      if constexpr (F::kZeros) {
        const float2 z = scales_at<F>(call, stage, places.scales[m], 3);
        zero[0] = z.x;
        zero[1] = z.y;
      }
      if (ragged) {
        // What stands beside keys that a row doesn't see may be anything.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float number = scale[half] + zero[half];
          if (fabsf(number) < INFINITY && scale[half] != 0.0f) continue;
          scale[half] = inverse[half] = zero[half] = 0.0f;
#pragma unroll
          for (int i = 0; i < 2 * kG; ++i) {
            const int bit = (m * kG + i / 2) * 4 + 2 * half + i % 2;
            if ((seen >> bit & 1) != 0) t.weights[i / 2][i % 2] = NAN;
          }
        }
      }
    }
#pragma unroll
    for (int g = 0; g < kG; ++g) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float x = power_of_two(fmaf(s[m][g][2 * half], q.unit[g][0], -t.base[g][0]));
        const float y = power_of_two(fmaf(s[m][g][2 * half + 1], q.unit[g][1], -t.base[g][1]));
        t.sums[g][0] += x;
        t.sums[g][1] += y;
        if constexpr (!F::kCodes) {
          const uint32_t w = pair_of<F::kHalf>(x, y);
          p[m][half][g] = w;
          t.weights[g][0] += low_of<F::kHalf>(w);
          t.weights[g][1] += high_of<F::kHalf>(w);
        } else {
          const uint32_t w = pair_of<false>(x * scale[half], y * scale[half]);
          p[m][half][g] = w;
          const float u = low_of<false>(w), v = high_of<false>(w);
          t.weights[g][0] = fmaf(u, inverse[half], t.weights[g][0]);
          t.weights[g][1] = fmaf(v, inverse[half], t.weights[g][1]);
          if constexpr (F::kZeros) {
            t.zeros[g][0] = fmaf(u, zero[half], t.zeros[g][0]);
            t.zeros[g][1] = fmaf(v, zero[half], t.zeros[g][1]);
          } else if constexpr (F::kShifted) {
            t.zeros[g][0] += u;
            t.zeros[g][1] += v;
          }
        }
      }
    }
  }

  if constexpr (!F::kCodes) {
    if (ragged) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        clear_values<F>(call, rows, tile, key - tile.key0 + 16 * m, p[m], stage, t);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kM * 2 * kG; ++i) {
    uint32_t& w = p[i / 2 / kG][i / kG % 2][i % kG];
    w = transposed(w);
  }
#pragma unroll
  for (int c = 0; c < kChunks; c += 2) {
    constexpr int kParts = 16 / F::kBits;  // of 16 elements, of two chunks
    float own[kParts][kG][4] = {};
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      uint32_t w[4];  // chunks c and c + 1 of values of half 0, the same of half 1
      ldmatrix_across(from + chunk_at(places.v[m], c), w[0], w[1], w[2], w[3]);
      const auto add = [&](float(&to)[kG][4], const uint32_t(&x)[4]) {
#pragma unroll
        for (int g = 0; g < kG; ++g) {
          if constexpr (F::kCodes) {
            mma_16bit<false>(to[g], x, p[m][0][g], p[m][1][g]);
          } else {
            mma_16bit<F::kHalf>(to[g], x, p[m][0][g], p[m][1][g]);
          }
        }
      };
      if constexpr (F::kBits == 16) {
        add(t.o[c / 2], w);
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t x[4];
          if constexpr (F::kBits == 8) {
            value_codes<F::kFormat>(w[i], x[0], x[1]);
            value_codes<F::kFormat>(w[2 + i], x[2], x[3]);
            add(own[i], x);
          } else {
            // Four bits in bf16's low end: n times 2^-133, and 16 n.
            constexpr uint32_t kLow4 = 0x000f000fu, kHigh4 = 0x00f000f0u;
            const uint32_t y0 = w[i] >> 8, y1 = w[2 + i] >> 8;
            const uint32_t low4[4] = {w[i] & kLow4, y0 & kLow4, w[2 + i] & kLow4, y1 & kLow4};
            const uint32_t high4[4] = {w[i] & kHigh4, y0 & kHigh4, w[2 + i] & kHigh4, y1 & kHigh4};
            add(own[2 * i], low4);
            add(own[2 * i + 1], high4);
          }
        }
      }
    }
    if constexpr (F::kCodes) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        const int m = F::kBits == 8 ? c + i : c + i / 2 + i % 2 * (F::kSteps / 2);
#pragma unroll
        for (int j = 0; j < 4 * kG; ++j) {
          float& x = t.o[m][j / 4][j % 4];
          x = fmaf(x, factor[j / 4][j % 2], own[i][j / 4][j % 4]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
