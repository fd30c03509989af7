// What warps of attention_sm80.cuh do with a tile: queries as operands, s = q k^T, masks and
// options, online softmax, o += p v.
#pragma once

#include <cmath>

#include "csrc/attention/tiles_sm80.cuh"
#include "csrc/cuda/functions.cuh"
#include "csrc/cuda/ldmatrix.cuh"
#include "csrc/cuda/mma.cuh"
#include "csrc/cuda/reduce.cuh"

namespace lowbit {
namespace {

inline constexpr float kLog2 = 1.44269504f, kLn2 = 0.693147181f;

// What is in shared memory beside the dynamic part.
template <class F>
struct Beside {
  Item item;
  bool any;
  Row rows[F::kRows];
  Pages pages;
  Numbers<F> numbers;                                      // of codes
  float4 sums[F::kWarpsN > 1 ? F::kWarpsN* F::kRows : 1];  // base, weights, sums of each warp
  unsigned long long bad;                                  // values of a tile, a bit each
};

// What a warp carries from tile to tile, of its rows 16 i + lane / 4 and eight behind. ones: sums
// of rounded weights, as a product with a column of ones leaves them in elements 0 and 2; of codes
// they are in weights, each lane's own.
template <class F>
struct Sums {
  float o[F::kTiles][F::kParts][4] = {};
  float max[F::kTiles][2];
  float ones[F::kTiles][4] = {}, sums[F::kTiles][2] = {};
  float weights[F::kTiles][2] = {}, zeros[F::kTiles][2] = {};
  float most = 0.0f, lift = 1.0f;  // of the scales of values until now; f16 alone
  __device__ __forceinline__ Sums() {
#pragma unroll
    for (int i = 0; i < 2 * F::kTiles; ++i) max[i / 2][i % 2] = -INFINITY;
  }
};
// The maximum in units of log2; 0 where there is none. Rounded before anything is taken off it, or
// a maximum that stays would not leave sums as they are.
__device__ __forceinline__ float base_of(float max, float unit) {
  return max == -INFINITY ? 0.0f : __fmul_rn(max, unit);
}

// ---- queries -----------------------------------------------------------------------------------

template <class F>
__device__ __forceinline__ void prepare_rows(const Call& call, const Item& t, Row* rows) {
  const AttentionArgs& a = call.args;
  const Mask mask = make_mask(a.causal, a.window_left, a.window_right);
  for (int i = threadIdx.x; i < F::kRows; i += F::kThreads) {
    Row r = {};
    if (i < t.rows) {
      r.token = (t.row0 + i) / call.group;
      r.head = t.head * call.group + t.row0 + i - r.token * call.group;
      const int64_t position = r.token + t.s.seq_kv - t.s.seq_q;
      const KeyRange keys = visible_keys(mask, position, t.s.seq_kv);
      r.begin = static_cast<int>(keys.begin);
      r.end = static_cast<int>(keys.end);
      r.position = static_cast<float>(position);
      if (present(a.alibi_slopes)) r.slope = static_cast<const float*>(a.alibi_slopes.data)[r.head];
      if (present(a.bias)) r.bias = bias_row(a, t.s, r.token, r.head);
    }
    r.scale = call.scale;
    rows[i] = r;
  }
}

__device__ __forceinline__ const uint16_t* query_at(const AttentionArgs& a, const Item& t,
                                                    const Row& r) {
  return static_cast<const uint16_t*>(a.q.data) + t.s.q + r.token * token_stride(a.q) +
         r.head * head_stride(a.q);
}

// Queries in bf16 as f16, by a power of two a row: their largest finite number comes to 2^14.
template <class F>
__device__ __forceinline__ void take_narrow(const Call& call, const Item& t, uint8_t* to,
                                            Row* rows) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, dim = static_cast<int>(head_dim_of(a));
  for (int i = threadIdx.x / 32; i < F::kRows; i += F::kWarps) {
    const uint16_t* from = i < t.rows ? query_at(a, t, rows[i]) : nullptr;
    float x[F::kDim / 32], most = 0.0f;
#pragma unroll
    for (int k = 0; k < F::kDim / 32; ++k) {
      const int d = 32 * k + lane;
      x[k] = from != nullptr && d < dim ? bf16_to_f32(from[d]) : 0.0f;
      if (fabsf(x[k]) < INFINITY) most = fmaxf(most, fabsf(x[k]));
    }
    for (int step = 16; step > 0; step /= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    }
    int up = 127 + 14 - static_cast<int>(__float_as_uint(most) >> 23);
    up = up < -126 ? -126 : up > 126 ? 126 : up;
    const float lift = __uint_as_float(static_cast<uint32_t>(127 + up) << 23);
#pragma unroll
    for (int k = 0; k < F::kDim / 32; ++k) {
      *reinterpret_cast<uint16_t*>(to + i * F::kStride + 2 * (32 * k + lane)) =
          f32_to_half(x[k] * lift);
    }
    if (lane == 0) {
      rows[i].scale = call.scale * __uint_as_float(static_cast<uint32_t>(127 - up) << 23);
    }
  }
}

// ---- products ----------------------------------------------------------------------------------

// 16 rows of a tile of operands as the side of a product that has 16 rows: lane's address.
template <class F>
__device__ __forceinline__ uint32_t rows_from(const uint8_t* tile, int row) {
  const int lane = threadIdx.x % 32;
  return smem_address(tile) + (row + lane % 16) * F::kStride + lane / 16 * 16;
}
// The same as the side of eight.
template <class F>
__device__ __forceinline__ uint32_t columns_from(const uint8_t* tile, int row) {
  const int lane = threadIdx.x % 32;
  return smem_address(tile) + (row + lane / 16 * 8 + lane % 8) * F::kStride + lane / 8 % 2 * 16;
}

// s = q k^T of a warp's rows and keys.
template <class F>
__device__ __forceinline__ void multiply_keys(uint32_t q, uint32_t k,
                                              float (&s)[F::kTiles][F::kColumns][4]) {
#pragma unroll
  for (int i = 0; i < F::kTiles * F::kColumns * 4; ++i) {
    s[i / 4 / F::kColumns][i / 4 % F::kColumns][i % 4] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < F::kSteps; ++step) {
    uint32_t a[F::kTiles][4];
#pragma unroll
    for (int i = 0; i < F::kTiles; ++i) {
      ldmatrix(q + 16 * i * F::kStride + 32 * step, a[i][0], a[i][1], a[i][2], a[i][3]);
    }
#pragma unroll
    for (int c = 0; c < F::kColumns; c += 2) {
      uint32_t b[4];
      ldmatrix(k + 8 * c * F::kStride + 32 * step, b[0], b[1], b[2], b[3]);
#pragma unroll
      for (int i = 0; i < F::kTiles; ++i) {
        mma_16bit<F::kHalf>(s[i][c], a[i], b[0], b[1]);
        mma_16bit<F::kHalf>(s[i][c + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// o += p v, and the sums of p.
template <class F>
__device__ __forceinline__ void multiply_values(
    uint32_t v, const uint32_t (&p)[F::kTiles][F::kColumns / 2][4],
    const uint32_t (&rest)[F::kTiles][F::kColumns / 2][4], Sums<F>& t) {
  constexpr uint32_t kOnes = F::kHalf ? 0x3c003c00u : 0x3f803f80u;
#pragma unroll
  for (int c = 0; c < F::kColumns / 2; ++c) {
    if constexpr (!F::kCodes) {
#pragma unroll
      for (int i = 0; i < F::kTiles; ++i) mma_16bit<F::kHalf>(t.ones[i], p[i][c], kOnes, kOnes);
    }
#pragma unroll
    for (int d = 0; d < F::kParts; d += 2) {
      uint32_t b[4];
      ldmatrix_across(v + 16 * c * F::kStride + 16 * d, b[0], b[1], b[2], b[3]);
#pragma unroll
      for (int i = 0; i < F::kTiles; ++i) {
        mma_16bit<F::kHalf>(t.o[i][d], p[i][c], b[0], b[1]);
        mma_16bit<F::kHalf>(t.o[i][d + 1], p[i][c], b[2], b[3]);
        if constexpr (F::kTwo) {
          mma_16bit<F::kHalf>(t.o[i][d], rest[i][c], b[0], b[1]);
          mma_16bit<F::kHalf>(t.o[i][d + 1], rest[i][c], b[2], b[3]);
        }
      }
    }
  }
}

// Sums of the numbers of each row of q.
template <class F>
__device__ __forceinline__ void sum_queries(uint32_t q, float (&sums)[F::kTiles][2]) {
#pragma unroll
  for (int i = 0; i < F::kTiles; ++i) {
    sums[i][0] = sums[i][1] = 0.0f;
#pragma unroll 4
    for (int step = 0; step < F::kSteps; ++step) {
      uint32_t a[4];
      ldmatrix(q + 16 * i * F::kStride + 32 * step, a[0], a[1], a[2], a[3]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums[i][k % 2] += low_of<F::kHalf>(a[k]) + high_of<F::kHalf>(a[k]);
      }
    }
    sums[i][0] = quad_sum(sums[i][0]);
    sums[i][1] = quad_sum(sums[i][1]);
  }
}

// ---- a tile ------------------------------------------------------------------------------------

// Whether one of eight numbers is NaN or inf.
template <bool kHalf>
__device__ __forceinline__ bool has_bad(const uint8_t* from) {
  constexpr uint32_t kMost = kHalf ? 0x7c00u : 0x7f80u;  // their exponent
  const uint4 x = *reinterpret_cast<const uint4*>(from);
  const auto bad = [](uint32_t w) { return (w & kMost) == kMost || (w >> 16 & kMost) == kMost; };
  return bad(x.x) || bad(x.y) || bad(x.z) || bad(x.w);
}

// What add_bad() works on, in local memory: registers are not spared for what hardly ever happens.
template <class F>
struct Apart {
  float o[F::kTiles][F::kParts][4];
  uint32_t p[F::kTiles][F::kColumns / 2][4];
};

// Adds values that aren't finite to the rows that see them. v: the warp's first; bad: a bit for
// each.
template <class F>
__device__ __noinline__ void add_bad(const Tile tile, const Row* rows, int own, const uint8_t* v,
                                     uint64_t bad, Apart<F>& t) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (; bad != 0; bad &= bad - 1) {
    const int r = __ffsll(static_cast<long long>(bad)) - 1, j = tile.key0 + own + r;
#pragma unroll 1
    for (int i = 0; i < F::kTiles * 2; ++i) {
      const int half = i % 2;
      const uint32_t w =
          __shfl_sync(~0u, t.p[i / 2][r / 16][r / 8 % 2 * 2 + half], lane / 4 * 4 + r % 8 / 2);
      const float weight = r % 2 == 0 ? low_of<F::kHalf>(w) : high_of<F::kHalf>(w);
      const Row& row = rows[16 * (i / 2) + 8 * half + lane / 4];
      if (j >= row.begin && j < row.end && j >= tile.lo && j < tile.hi) {
#pragma unroll 1
        for (int d = 0; d < F::kParts; ++d) {
          const uint32_t x =
              *reinterpret_cast<const uint32_t*>(v + r * F::kStride + 16 * d + lane % 4 * 4);
          t.o[i / 2][d][2 * half] += weight * low_of<F::kHalf>(x);
          t.o[i / 2][d][2 * half + 1] += weight * high_of<F::kHalf>(x);
        }
      }
      __syncwarp();
    }
  }
}

template <class F>
__device__ __forceinline__ void add_apart(const Tile& tile, const Row* rows, int own,
                                          const uint8_t* v, uint64_t bad,
                                          const uint32_t (&p)[F::kTiles][F::kColumns / 2][4],
                                          Sums<F>& t) {
  Apart<F> apart;
#pragma unroll
  for (int i = 0; i < F::kTiles * F::kParts * 4; ++i) {
    apart.o[i / 4 / F::kParts][i / 4 % F::kParts][i % 4] =
        t.o[i / 4 / F::kParts][i / 4 % F::kParts][i % 4];
  }
#pragma unroll
  for (int i = 0; i < F::kTiles * F::kColumns * 2; ++i) {
    apart.p[i / 2 / F::kColumns][i / 4 % (F::kColumns / 2)][i % 4] =
        p[i / 2 / F::kColumns][i / 4 % (F::kColumns / 2)][i % 4];
  }
  add_bad<F>(tile, rows, own, v, bad, apart);
#pragma unroll
  for (int i = 0; i < F::kTiles * F::kParts * 4; ++i) {
    t.o[i / 4 / F::kParts][i / 4 % F::kParts][i % 4] =
        apart.o[i / 4 / F::kParts][i / 4 % F::kParts][i % 4];
  }
}

// Values of a tile that aren't finite: each is added to the rows that see it and cleared.
template <class F>
__device__ __forceinline__ void clear_values(const Tile& tile, const Row* rows, int own,
                                             const uint32_t (&p)[F::kTiles][F::kColumns / 2][4],
                                             uint8_t* v, unsigned long long* bad, Sums<F>& t) {
  constexpr int kChunks = F::kDim / 8;
  bool any = false;
#pragma unroll 1
  for (int i = threadIdx.x; i < F::kKeys * kChunks; i += F::kThreads) {
    any = any || has_bad<F::kHalf>(v + i / kChunks * F::kStride + i % kChunks * 16);
  }
  if (__syncthreads_or(any) == 0) return;
  if (threadIdx.x == 0) *bad = 0;
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < F::kKeys * kChunks; i += F::kThreads) {
    const int r = i / kChunks;
    if (has_bad<F::kHalf>(v + r * F::kStride + i % kChunks * 16)) atomicOr(bad, 1ull << r);
  }
  __syncthreads();
  const uint64_t all = *bad;
  constexpr uint64_t kMine = F::kOwn == 64 ? ~0ull : (1ull << F::kOwn % 64) - 1;
  add_apart<F>(tile, rows, own, v + own * F::kStride, all >> own & kMine, p, t);
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < F::kKeys * kChunks; i += F::kThreads) {
    const int r = i / kChunks;
    if ((all >> r & 1) != 0) {
      *reinterpret_cast<uint4*>(v + r * F::kStride + i % kChunks * 16) = {};
    }
  }
  __syncthreads();
}

// Scores of a tile as they are with every option, masks included.
template <class F>
__device__ __forceinline__ void take_options(const Call& call, const Row* rows, int key,
                                             float (&s)[F::kTiles][F::kColumns][4]) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < F::kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Row& row = rows[16 * i + 8 * half + lane / 4];
#pragma unroll
      for (int c = 0; c < F::kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = key + 8 * c + lane % 4 * 2 + e;
          float x = s[i][c][2 * half + e] * row.scale;
          if (a.softcap > 0) x = a.softcap * tanhf(x / a.softcap);
          if (row.slope != 0.0f) x += row.slope * (static_cast<float>(j) - row.position);
          if (row.bias != nullptr && j >= row.begin && j < row.end) x += row.bias[j];
          s[i][c][2 * half + e] = x;
        }
      }
    }
  }
}

// The keys of a tile that row `r` sees.
struct Seen {
  int begin, end;
  __device__ __forceinline__ Seen(const Row& r, const Tile& tile)
      : begin(r.begin > tile.lo ? r.begin : tile.lo), end(r.end < tile.hi ? r.end : tile.hi) {}
  __device__ __forceinline__ bool has(int j) const { return j >= begin && j < end; }
};

// Scores to weights, the sums to the new maximum. `own` is the warp's first key of the tile;
// ragged: some row of the warp doesn't see all keys.
template <class F>
__device__ __forceinline__ void take_scores(const Call& call, const Tile& tile, int own,
                                            const Row* rows, const Numbers<F>& n,
                                            const float (&unit)[F::kTiles][2],
                                            float (&s)[F::kTiles][F::kColumns][4], bool ragged,
                                            uint32_t (&p)[F::kTiles][F::kColumns / 2][4],
                                            uint32_t (&rest)[F::kTiles][F::kColumns / 2][4],
                                            Sums<F>& t) {
  const int lane = threadIdx.x % 32, key = tile.key0 + own + lane % 4 * 2;
  const bool sigmoid_score = !F::kPlain && call.args.score == Score::sigmoid;
  if constexpr (!F::kPlain) {
    if (call.transform) take_options<F>(call, rows, tile.key0 + own, s);
  }
  if (ragged) {
#pragma unroll
    for (int i = 0; i < F::kTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Seen seen(rows[16 * i + 8 * h + lane / 4], tile);
#pragma unroll
        for (int c = 0; c < F::kColumns; ++c) {
          if (!seen.has(key + 8 * c)) s[i][c][2 * h] = -INFINITY;
          if (!seen.has(key + 8 * c + 1)) s[i][c][2 * h + 1] = -INFINITY;
        }
      }
    }
  }
  float ratio = 1.0f;
  if constexpr (F::kHalf && F::kCodes) {
    float most = t.most;
#pragma unroll
    for (int i = 0; i < F::kKeys / 16; ++i) most = fmaxf(most, n.most[i]);
    if (most > t.most) {
      // Weights are 2^14 at most.
      int up = 127 + 13 - static_cast<int>(__float_as_uint(most) >> 23);
      up = up < -60 ? -60 : up > 60 ? 60 : up;
      const float lift = __uint_as_float(static_cast<uint32_t>(127 + up) << 23);
      if (t.most > 0.0f) ratio = lift / t.lift;
      t.most = most;
      t.lift = lift;
    }
  }
  float next[F::kTiles][2];
  bool moved = ratio != 1.0f;
  if (!sigmoid_score) {
#pragma unroll
    for (int i = 0; i < F::kTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float most = fmaxf(s[i][0][2 * h], s[i][0][2 * h + 1]);
#pragma unroll
        for (int c = 1; c < F::kColumns; ++c) {
          most = fmaxf(most, fmaxf(s[i][c][2 * h], s[i][c][2 * h + 1]));
        }
        next[i][h] = most;
        moved = moved || most > t.max[i][h];
      }
    }
  }
  if (__any_sync(~0u, moved)) {
#pragma unroll
    for (int i = 0; i < F::kTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float factor = 1.0f;
        if (!sigmoid_score) {
          const float most = fmaxf(t.max[i][h], quad_max(next[i][h]));
          factor = t.max[i][h] == -INFINITY
                       ? 0.0f
                       : power_of_two(base_of(t.max[i][h], unit[i][h]) - base_of(most, unit[i][h]));
          t.max[i][h] = most;
        }
        t.sums[i][h] *= factor;
        if constexpr (F::kCodes) {
          t.weights[i][h] *= factor;
          factor *= ratio;
          t.zeros[i][h] *= factor;
        } else {
          t.ones[i][2 * h] *= factor;
        }
#pragma unroll
        for (int d = 0; d < F::kParts; ++d) {
          t.o[i][d][2 * h] *= factor;
          t.o[i][d][2 * h + 1] *= factor;
        }
      }
    }
  }
  [[maybe_unused]] const float drop = 1.0f / t.lift;
#pragma unroll
  for (int i = 0; i < F::kTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float of = unit[i][h], base = base_of(t.max[i][h], of);
#pragma unroll
      for (int c = 0; c < F::kColumns; ++c) {
        float x[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float score = s[i][c][2 * h + e];
          x[e] = power_of_two(fmaf(score, of, -base));
          if (sigmoid_score) x[e] = reciprocal(1.0f + power_of_two(-kLog2 * score));
        }
        t.sums[i][h] += x[0] + x[1];
        if constexpr (!F::kCodes) {
          p[i][c / 2][c % 2 * 2 + h] = pair_of<F::kHalf>(x[0], x[1]);
        } else {
          const int at = own + 8 * c + lane % 4 * 2;
          bool sees[2] = {true, true};
          if (ragged) {
            const Seen seen(rows[16 * i + 8 * h + lane / 4], tile);
            sees[0] = seen.has(key + 8 * c);
            sees[1] = seen.has(key + 8 * c + 1);
          }
          const float2 scale = *reinterpret_cast<const float2*>(n.v_scale + at);
          const float2 inverse = *reinterpret_cast<const float2*>(n.v_inverse + at);
          const float2 zero = *reinterpret_cast<const float2*>(n.v_zero + at);
          const float x0 = sees[0] ? x[0] * (scale.x * t.lift) : 0.0f;
          const float x1 = sees[1] ? x[1] * (scale.y * t.lift) : 0.0f;
          const uint32_t w = pair_of<F::kHalf>(x0, x1);
          p[i][c / 2][c % 2 * 2 + h] = w;
          float low = low_of<F::kHalf>(w), high = high_of<F::kHalf>(w);
          if constexpr (F::kTwo) {
            const uint32_t r = pair_of<F::kHalf>(x0 - low, x1 - high);
            rest[i][c / 2][c % 2 * 2 + h] = r;
            low += low_of<F::kHalf>(r);
            high += high_of<F::kHalf>(r);
          }
          if (sees[0]) t.weights[i][h] = fmaf(low, inverse.x * drop, t.weights[i][h]);
          if (sees[1]) t.weights[i][h] = fmaf(high, inverse.y * drop, t.weights[i][h]);
          if (sees[0]) t.zeros[i][h] = fmaf(low, zero.x, t.zeros[i][h]);
          if (sees[1]) t.zeros[i][h] = fmaf(high, zero.y, t.zeros[i][h]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
