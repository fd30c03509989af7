// Attention of e4m3 tensors on Hopper: prefill_sm90a.cuh's walk with products of eight bits.
//
// The tensor cores want both operands of such a product with K innermost. q and k are so; of v,
// whose K are keys, three warps of the warpgroup that serves make transposed tiles: a 16-bit
// transposition of keys by pairs of columns, which two byte permutations take apart. They leave the
// keys of each 32 in the order in which a thread holds weights, so that weights become operands by
// packing alone:
//
//   place 16 h + 4 c + i of 32   key 16 h + 8 (i / 2) + 2 c + i % 2
//
// Sums in two levels: the tensor cores keep 13 bits of a sum of eight-bit products, so those of a
// tile of 128 keys begin at zero and are added in f32, by the step that rescales what was there.
// Weights are 2^8 times 2^(x - most) with the largest score so far: they fill e4m3 from 256 down to
// 2^-9. The sum that divides is that of weights in f32, before they are rounded.
//
// Values that are no numbers: of tiles that not all rows see whole, NaN are cleared while they are
// transposed, and rows that see one are given it at the end. There is no inf in e4m3.
#pragma once

#include "csrc/attention/prefill_sm90a.cuh"
#include "csrc/cuda/codes.cuh"
#include "csrc/cuda/ldmatrix.cuh"

namespace lowbit {
namespace {

// Rows of 128 bytes, which Form counts as 64 elements of 16 bits.
template <int kTurnedOf, int kStagesOf>
struct Form8 : Form<DType::e4m3, 64, 64, 2, 128, kStagesOf, 2> {
  using Base = Form<DType::e4m3, 64, 64, 2, 128, kStagesOf, 2>;
  using Mma = MmaE4m3;
  static constexpr int kDims = 128;  // of head_dim and head_dim_v
  static constexpr int kTurned = kTurnedOf, kTurnedBytes = kDims * kSwizzleRow;
  static constexpr int kTurners = 3;  // warps
  static constexpr size_t kShared = Base::kShared + kTurned * kTurnedBytes;
  static_assert(kShared <= 232448, "shared memory of a multiprocessor");
  // Of the 504 that three warpgroups were launched with.
  static constexpr int kServe = 40, kWork = 232;
  static_assert(kServe + 2 * kWork <= 504);
};
inline constexpr float kWeightBits = 8.0f;

template <class F>
struct Shared8 {
  Shared<F> ring;
  uint8_t* turned;
  uint64_t *t_full, *t_empty;
};
template <class F>
__device__ __forceinline__ Shared8<F> shared8_of(uint8_t* raw) {
  Shared8<F> s;
  s.turned = raw;
  s.ring = shared_of<F>(raw + F::kTurned * F::kTurnedBytes);
  s.t_full = reinterpret_cast<uint64_t*>(s.ring.items + F::kQueries);
  s.t_empty = s.t_full + F::kTurned;
  return s;
}

// ---- values ------------------------------------------------------------------------------------

// The high bit of each byte that is a NaN.
__device__ __forceinline__ uint32_t nan_bytes(uint32_t w) {
  return ((w & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
}

// A tile of values [key][column] to [column][key], by kTurners warps: 16 columns of a warp at a
// time, all loads before the first store. Lanes of columns 0 to 7 of 16 give even ones where those
// of 8 to 15 give odd ones: then the eight rows of a store differ in their numbers modulo 8, and so
// in their banks. True: a NaN was found, and cleared.
template <class F, bool kSearch>
__device__ __forceinline__ bool turn_tile(uint8_t* to, const uint8_t* from, int warp) {
  const int lane = threadIdx.x % 32, row = lane % 8;
  const uint32_t first = lane < 16 ? 0x6420u : 0x7531u, second = first ^ 0x1111u;
  // Matrix 2 h + s of a store is half h of 32 keys, columns by `first` or by `second`.
  const int half = lane / 16, column = 2 * row + ((lane / 8 % 2 == 0) == (row < 4) ? 0 : 1);
  uint32_t found = 0;
#pragma unroll 1
  for (int c = warp; c < F::kDims / 16; c += F::kTurners) {
    const uint32_t read = smem_address(from) + lane * kSwizzleRow + ((c ^ row) << 4);
    uint8_t* const write = to + (c * 16 + column) * kSwizzleRow;
    uint32_t m[F::kTile / 32][4];
#pragma unroll
    for (int k = 0; k < F::kTile / 32; ++k) {
      ldmatrix_across(read + k * 32 * kSwizzleRow, m[k][0], m[k][1], m[k][2], m[k][3]);
    }
    if (kSearch) {
#pragma unroll
      for (int i = 0; i < F::kTile / 8; ++i) {
        uint32_t& x = m[i / 4][i % 4];
        const uint32_t bad = nan_bytes(x);
        found |= bad;
        x &= ~((bad >> 7) * 0xffu);
      }
    }
#pragma unroll
    for (int k = 0; k < F::kTile / 32; ++k) {
      uint32_t w[4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        w[2 * h] = __byte_perm(m[k][2 * h], m[k][2 * h + 1], first);
        w[2 * h + 1] = __byte_perm(m[k][2 * h], m[k][2 * h + 1], second);
      }
      stmatrix(write + (((k * 2 + half) ^ (column & 7)) << 4), w);
    }
  }
  return kSearch && __any_sync(~0u, found != 0);
}

template <class F>
__device__ __forceinline__ void turn(const Call& call, const Shared8<F>& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 1;
  Ring<F::kQueries> q;
  Ring<F::kStages> v;
  Ring<F::kTurned> at;
  while (true) {
    barrier_wait(&s.ring.q_full[q.slot], q.parity);
    Item& t = s.ring.items[q.slot];
    if (t.seq_q < 0) break;
    const int shift = t.seq_kv - t.seq_q, first = t.first;
    // Keys that all rows of the block see.
    const int low = first_key(call, t.row + F::kRows - 1 + shift);
    const int high = end_key(call, t.row + shift, t.seq_kv);
#pragma unroll 1
    for (int tile = first + t.count - 1; tile >= first; --tile) {
      const int key = tile * F::kTile;
      barrier_wait(&s.ring.v_full[v.slot], v.parity);
      barrier_wait(&s.t_empty[at.slot], at.parity ^ 1);
      uint8_t* const to = s.turned + at.slot * F::kTurnedBytes;
      const uint8_t* const from = s.ring.values + v.slot * F::kValueBytes;
      if (key < low || key + F::kTile > high) {
        if (turn_tile<F, true>(to, from, warp) && lane == 0) {
          atomicMin(&t.bad_first, key);
          atomicMax(&t.bad_last, key + F::kTile - 1);
        }
      } else {
        turn_tile<F, false>(to, from, warp);
      }
      async_fence();
      __syncwarp();
      warp_arrive(&s.ring.v_empty[v.slot]);
      warp_arrive(&s.t_full[at.slot]);
      advance(v);
      advance(at);
    }
    __syncwarp();
    warp_arrive(&s.ring.q_empty[q.slot]);
    advance(q);
  }
}

// ---- work --------------------------------------------------------------------------------------

// t = p v.
template <class F>
__device__ __forceinline__ void multiply_turned(uint32_t (&t)[F::kDims / 2],
                                                const uint32_t (&p)[F::kTile / 32][4],
                                                const uint8_t* turned) {
  const uint64_t b = uniform(wgmma_tile(turned));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < F::kTile / 32; ++step) {
    Wgmma<MmaE4m3, F::kDims>::rs(t, p[step], further(b, step * kTileStep), step > 0);
  }
  wgmma_commit();
}

// Masked columns get what makes their weights 0: -inf, or inf where `unit` turns products around.
template <int kCount>
__device__ __forceinline__ void mask_products(const float (&unit)[2], const Rows& r, int key,
                                              uint32_t (&s)[kCount]) {
  const int lo[2] = {r.lo[0] - key, r.lo[1] - key};
  const unsigned count[2] = {static_cast<unsigned>(max(0, r.hi[0] - r.lo[0])),
                             static_cast<unsigned>(max(0, r.hi[1] - r.lo[1]))};
  const uint32_t none[2] = {unit[0] < 0.0f ? 0x7f800000u : 0xff800000u,
                            unit[1] < 0.0f ? 0x7f800000u : 0xff800000u};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int e = row_of(i);
    const bool seen = static_cast<unsigned>(column_of(i) - lo[e]) < count[e];
    s[i] = seen ? s[i] : none[e];
  }
}

// Products of which `unit` of its row makes scores in units of log2, to weights in place. factor:
// what sums of before have to be multiplied by. negative: some unit is.
template <int kCount>
__device__ __forceinline__ void weigh_products(const float (&unit)[2], bool negative, Rows& r,
                                               uint32_t (&s)[kCount], float (&factor)[2]) {
  float most[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float& m = most[row_of(i) * 2 + i % 2];
    m = fmaxf(m, __uint_as_float(s[i]));
  }
  if (negative) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (!(unit[e] < 0.0f)) continue;
      float least = INFINITY;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (row_of(i) == e) least = fminf(least, __uint_as_float(s[i]));
      }
      most[2 * e] = most[2 * e + 1] = least;
    }
  }
  float shift[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float m = fmaxf(quad_max(fmaxf(most[2 * e], most[2 * e + 1]) * unit[e]), r.base[e]);
    const float base = m == -INFINITY ? 0.0f : m;
    factor[e] = power_of_two(r.base[e] - base);
    r.base[e] = m;
    shift[e] = kWeightBits - base;
  }
  float sum[4] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int e = row_of(i);
    const float w = power_of_two(fmaf(__uint_as_float(s[i]), unit[e], shift[e]));
    sum[2 * e + i % 2] += w;
    s[i] = __float_as_uint(w);
  }
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    r.sum[e] = fmaf(r.sum[e], factor[e], sum[2 * e] + sum[2 * e + 1]);
  }
}
template <int kCount>
__device__ __forceinline__ void weigh_sigmoid_products(uint32_t (&s)[kCount], float (&factor)[2]) {
  factor[0] = factor[1] = 1.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    s[i] = __float_as_uint(256.0f * reciprocal(1.0f + power_of_two(-__uint_as_float(s[i]))));
  }
}

// Weights as operands: of a row, two columns of one 8 and two of the next are four places.
template <int kCount>
__device__ __forceinline__ void pack_bytes(const uint32_t (&s)[kCount],
                                           uint32_t (&p)[kCount / 16][4]) {
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) {
    const int at = i / 2 * 8 + 2 * (i % 2);
    p[i / 4][i % 4] = fp8_four<DType::e4m3>(__uint_as_float(s[at]), __uint_as_float(s[at + 1]),
                                            __uint_as_float(s[at + 4]), __uint_as_float(s[at + 5]));
  }
}

// NaN where the values of keys that row `row` of the sequence sees have one, by a warp.
__device__ __forceinline__ void spread_nan(const Call& call, const Item& t, int row) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, dim_v = static_cast<int>(head_dim_v_of(a));
  const int position = row + t.seq_kv - t.seq_q;
  const int begin = max(first_key(call, position), t.bad_first);
  const int end = min(end_key(call, position, t.seq_kv), t.bad_last + 1);
  const int64_t from =
      (is_batched(a) ? t.batch : t.kv) * a.v.strides[0] + t.head / call.group * head_stride(a.v);
  const int64_t to = (is_batched(a) ? t.batch : t.q) * a.o.strides[0] + t.head * head_stride(a.o) +
                     row * token_stride(a.o);
#pragma unroll 1
  for (int d = lane; d < dim_v; d += 32) {
    bool bad = false;
#pragma unroll 1
    for (int j = begin; j < end; ++j) {
      const uint8_t v = static_cast<const uint8_t*>(a.v.data)[from + j * token_stride(a.v) + d];
      bad = bad || (v & 0x7f) == 0x7f;
    }
    if (bad) store_f32(a.o.data, a.o.dtype, to + d, NAN);
  }
}

// What a product of a row of q and a key has to be multiplied by, for the scales of their tensors.
__device__ __forceinline__ double scales_of(const Call& call, const Item& t, int row) {
  const AttentionArgs& a = call.args;
  const int token = min(row, t.seq_q - 1) + (is_batched(a) ? 0 : t.q);
  return static_cast<double>(scale_of(a.q_scales, t.batch, token, t.head)) *
         static_cast<double>(scale_of(a.k_scales, t.batch, 0, t.head / call.group));
}

// o and lse of a group's 64 rows.
template <class F, bool kOptions>
__device__ __forceinline__ void finish_rows(const Call& call, const Item& t, int group, Rows& r,
                                            const float (&unit)[2],
                                            const uint32_t (&o)[F::kDims / 2]) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int first = t.row + 64 * group + 16 * warp;  // row of the warp
  const bool sigmoid_score = kOptions && a.score == Score::sigmoid;
  const float sink = present(a.sinks) ? static_cast<const float*>(a.sinks.data)[t.head] : -INFINITY;
  const float of_values = scale_of(a.v_scales, t.batch, 0, t.head / call.group);
  const int dim_v = static_cast<int>(head_dim_v_of(a));
  const int64_t start = (is_batched(a) ? t.batch : t.q) * a.o.strides[0] +
                        t.head * head_stride(a.o) + first * token_stride(a.o);
  const int left = t.seq_q - first;  // rows of the warp that are there
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const bool empty = r.lo[e] >= r.hi[e];
    const float base = r.base[e] == -INFINITY ? 0.0f : r.base[e], sum = quad_sum(r.sum[e]);
    const float factor = sigmoid_score
                             ? of_values * 0x1p-8f
                             : of_values / (sum + power_of_two(sink * kLog2 + kWeightBits - base));
    const int row = lane / 4 + 8 * e;
    if (row >= left) continue;
    if (lane % 4 == 0 && present(a.lse)) {
      double lse = -INFINITY;
      if (!empty) {
        const double most = kOptions ? base * kLn2
                                     : static_cast<double>(base) / unit[e] *
                                           (call.scale * scales_of(call, t, first + row));
        lse = log(static_cast<double>(sum)) + (most - kWeightBits * kLn2);
      }
      if (sink != -INFINITY) {
        const double high = lse > sink ? lse : sink, low = lse > sink ? sink : lse;
        lse = high + log1p(exp(low - high));
      }
      const int64_t at = (is_batched(a) ? t.batch * a.lse.strides[0] : t.q * a.lse.strides[1]) +
                         t.head * a.lse.strides[a.lse.rank - 2] +
                         (first + row) * a.lse.strides[a.lse.rank - 1];
      static_cast<float*>(a.lse.data)[at] = static_cast<float>(lse);
    }
    const int64_t to = start + row * token_stride(a.o) + 2 * (lane % 4);
    const auto value = [&](int i) { return empty ? 0.0f : __uint_as_float(o[i]) * factor; };
    if (a.o.dtype == DType::f32) {
#pragma unroll
      for (int i = 2 * e; i < F::kDims / 2; i += 4) {
        if (column_of(i) + 2 * (lane % 4) >= dim_v) continue;
        static_cast<float*>(a.o.data)[to + column_of(i)] = value(i);
        static_cast<float*>(a.o.data)[to + column_of(i) + 1] = value(i + 1);
      }
      continue;
    }
    auto* const out = static_cast<uint16_t*>(a.o.data) + to;
    const bool even = (reinterpret_cast<uintptr_t>(out) & 3) == 0, half = a.o.dtype == DType::f16;
#pragma unroll
    for (int i = 2 * e; i < F::kDims / 2; i += 4) {
      if (column_of(i) + 2 * (lane % 4) >= dim_v) continue;
      const uint32_t two = half ? pack_two<DType::f16>(value(i), value(i + 1))
                                : pack_two<DType::bf16>(value(i), value(i + 1));
      if (even) {
        *reinterpret_cast<uint32_t*>(out + column_of(i)) = two;
      } else {
        out[column_of(i)] = static_cast<uint16_t>(two);
        out[column_of(i) + 1] = static_cast<uint16_t>(two >> 16);
      }
    }
  }
  __syncwarp();
  if (*const_cast<volatile const int*>(&t.bad_last) < 0) return;
#pragma unroll 1
  for (int row = 0; row < min(16, left); ++row) spread_nan(call, t, first + row);
}

template <class F, bool kOptions>
__device__ __forceinline__ void work8(const Call& call, const Shared8<F>& all) {
  const Shared<F>& s = all.ring;
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128 - 1;
  Ring<F::kQueries> q;
  Ring<F::kStages> k;
  Ring<F::kTurned> v;
  const bool sigmoid_score = kOptions && a.score == Score::sigmoid;
  if (group + 1 == F::kGroups) pass_turn<F>(group);
  while (true) {
    barrier_wait(&s.q_full[q.slot], q.parity);
    const Item& t = s.items[q.slot];
    if (t.seq_q < 0) break;
    const int first = t.first;
    uint8_t* const queries = s.queries + q.slot * F::kQueryBytes + group * F::kGroupBytes;
    const int row0 = t.row + 64 * group, shift = t.seq_kv - t.seq_q;
    const int row = row0 + 16 * warp + lane / 4;
    Rows rows = rows_of<F>(call, t, row);
    float own[2], unit[2];  // own: of products, from the tensors' scales
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const double scales = scales_of(call, t, row + 8 * e);
      own[e] = static_cast<float>(scales);
      const auto log2 = static_cast<float>(call.scale * scales * 1.4426950408889634);
      // -inf times it is -inf.
      unit[e] = kOptions ? 1.0f : log2 == 0.0f ? 0x1p-100f : log2;
      // Or ptxas keeps the factors instead, and multiplies doubles for each tile.
      asm volatile("" : "+f"(own[e]), "+f"(unit[e]));
    }
    const bool negative = !kOptions && __any_sync(~0u, unit[0] < 0.0f || unit[1] < 0.0f);
    // Keys that all rows of the group see.
    const int low = first_key(call, row0 + 63 + shift);
    const int high = end_key(call, row0 + shift, t.seq_kv);
    uint32_t o[F::kDims / 2], x[F::kTile / 2] = {}, y[F::kDims / 2] = {}, p[F::kTile / 32][4];
    float factor[2];
#pragma unroll
    for (uint32_t& e : o) e = 0;
    const auto soften = [&](int tile) {
      const int key0 = tile * F::kTile, key = key0 + 2 * (lane % 4);
      if constexpr (kOptions) {
#pragma unroll
        for (int i = 0; i < F::kTile / 2; ++i) {
          x[i] = __float_as_uint(__uint_as_float(x[i]) * own[row_of(i)]);
        }
        score(call, rows, key, x);
      }
      if (key0 < low || key0 + F::kTile > high) mask_products(unit, rows, key, x);
      if (kOptions && sigmoid_score) {
        weigh_sigmoid_products(x, factor);
      } else {
        weigh_products(unit, negative, rows, x, factor);
      }
    };
    const auto pin_weights = [&] {
#pragma unroll
      for (int i = 0; i < F::kTile / 32; ++i) pin(p[i]);
    };
    const auto add_values = [&](const float(&factor)[2]) {
#pragma unroll
      for (int i = 0; i < F::kDims / 2; ++i) {
        o[i] =
            __float_as_uint(fmaf(__uint_as_float(o[i]), factor[row_of(i)], __uint_as_float(y[i])));
      }
      warp_arrive(&all.t_empty[v.slot]);
      advance(v);
    };
    if (t.count > 0) {
      int tile = first + t.count - 1;
      barrier_wait(&s.k_full[k.slot], k.parity);
      await_turn<F>(group);
      pin(x);
      multiply_keys<F>(x, queries, s.keys + k.slot * F::kKeyBytes);
      pass_turn<F>(group);
      wgmma_wait<0>();
      pin(x);
      warp_arrive(&s.k_empty[k.slot]);
      advance(k);
      soften(tile);
      pack_bytes(x, p);
#pragma unroll 1
      for (--tile; tile >= first; --tile) {
        barrier_wait(&all.t_full[v.slot], v.parity);
        barrier_wait(&s.k_full[k.slot], k.parity);
        await_turn<F>(group);
        pin_weights();
        pin(y);
        pin(x);
        multiply_turned<F>(y, p, all.turned + v.slot * F::kTurnedBytes);
        multiply_keys<F>(x, queries, s.keys + k.slot * F::kKeyBytes);
        pass_turn<F>(group);
        wgmma_wait<1>();
        pin(y);
        add_values(factor);
        wgmma_wait<0>();
        pin(x);
        warp_arrive(&s.k_empty[k.slot]);
        advance(k);
        soften(tile);
        pack_bytes(x, p);
      }
      barrier_wait(&all.t_full[v.slot], v.parity);
      await_turn<F>(group);
      pin_weights();
      pin(y);
      multiply_turned<F>(y, p, all.turned + v.slot * F::kTurnedBytes);
      pass_turn<F>(group);
      wgmma_wait<0>();
      pin(y);
      add_values(factor);
    }
    finish_rows<F, kOptions>(call, t, group, rows, unit, o);
    __syncwarp();
    warp_arrive(&s.q_empty[q.slot]);
    advance(q);
  }
}

template <class F, bool kOptions>
__global__ void __launch_bounds__(F::kThreads, 1) attend_bytes(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) uint8_t raw[];
  const Shared8<F> s = shared8_of<F>(raw);
  if (threadIdx.x == 0) {
    for (int i = 0; i < F::kQueries; ++i) {
      barrier_init(&s.ring.q_full[i], 1);
      barrier_init(&s.ring.q_empty[i], 4 * F::kGroups + F::kTurners);
    }
    for (int i = 0; i < F::kStages; ++i) {
      barrier_init(&s.ring.k_full[i], 1);
      barrier_init(&s.ring.k_empty[i], 4 * F::kGroups);
      barrier_init(&s.ring.v_full[i], 1);
      barrier_init(&s.ring.v_empty[i], F::kTurners);
    }
    for (int i = 0; i < F::kTurned; ++i) {
      barrier_init(&s.t_full[i], F::kTurners);
      barrier_init(&s.t_empty[i], 4 * F::kGroups);
    }
    barrier_init_fence();
    tma_prefetch(&call.q_map);
    tma_prefetch(&call.k_map);
    tma_prefetch(&call.v_map);
  }
  __syncthreads();
  wait_for_others();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(F::kServe));
    if (threadIdx.x < 32) {
      if (call.check != nullptr && blockIdx.x == 0) {
        check_lens(call.args, call.check, threadIdx.x, 32);
      }
      serve<F>(call, s.ring);
    } else {
      turn<F>(call, s);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(F::kWork));
    work8<F, kOptions>(call, s);
  }
}

// ---- host --------------------------------------------------------------------------------------

static inline bool has_even_bytes(const Tensor& t) {
  if ((reinterpret_cast<uintptr_t>(t.data) & 15) != 0 || t.shape[t.rank - 1] % 16 != 0) {
    return false;
  }
  for (int i = 0; i < t.rank - 1; ++i) {
    if (t.shape[i] > 1 && (t.strides[i] % 16 != 0 || t.strides[i] >= int64_t{1} << 39))
      return false;
  }
  return true;
}
// One scale for all tokens.
static inline bool has_one_scale(const Tensor& scales) {
  return !present(scales) || scales.shape[scales.rank - 2] == 1;
}
static inline bool takes_bytes(const AttentionArgs& a) {
  if (is_paged(a) || head_dim_of(a) > 128 || head_dim_v_of(a) > 128) return false;
  if (numel(a.q) == 0 || numel(a.k) == 0) return false;
  if (!has_even_bytes(a.q) || !has_even_bytes(a.k) || !has_even_bytes(a.v)) return false;
  if (!has_one_scale(a.k_scales) || !has_one_scale(a.v_scales)) return false;
  const int64_t batch = is_batched(a) ? a.q.shape[0] : 1;
  if (query_tokens(a) * head_count(a) >= kMostItems || sequence_count(a) >= kMostItems)
    return false;
  return a.k.shape[a.k.rank - 3] * batch < kMostItems;
}

// The same bytes as elements of 16 bits.
static inline Tensor as_pairs(Tensor t) {
  t.shape[t.rank - 1] /= 2;
  for (int i = 0; i < t.rank - 1; ++i) t.strides[i] /= 2;
  return t;
}

template <class F, bool kOptions>
static Status run_bytes(const AttentionArgs& args, const Ctx& ctx) {
  static std::atomic<uint64_t> asked{0};
  const auto limit = [](int64_t window) {
    return static_cast<int>(window < 0 ? -1 : window < kMostItems ? window : kMostItems - 1);
  };
  const auto numbers = [](const Tensor& t) {
    return present(t) ? static_cast<const int32_t*>(t.data) : nullptr;
  };
  const Mask mask = make_mask(args.causal, args.window_left, args.window_right);
  const bool batched = is_batched(args), packed = present(args.cu_seqlens_q);
  Call call = {};
  call.args = args;
  call.scale = args.softmax_scale != 0 ? static_cast<double>(args.softmax_scale)
                                       : 1.0 / std::sqrt(static_cast<double>(head_dim_of(args)));
  call.heads = static_cast<int>(head_count(args));
  call.group = static_cast<int>(head_count(args) / kv_head_count(args));
  call.left = limit(mask.left);
  call.right = limit(mask.right);
  call.cu_q = numbers(args.cu_seqlens_q);
  call.cu_kv = present(args.cu_seqlens_kv) ? numbers(args.cu_seqlens_kv) : call.cu_q;
  call.kv_lens = numbers(args.kv_lens);
  call.sequences = static_cast<int>(sequence_count(args));
  call.tokens_q = static_cast<int>(args.q.shape[0]);
  call.tokens_kv = static_cast<int>(args.k.shape[0]);
  call.seq_q = static_cast<int>(args.q.shape[args.q.rank - 3]);
  call.seq_kv = static_cast<int>(seq_kv_bound(args));
  call.key_bytes = static_cast<int>(head_dim_of(args) + head_dim_v_of(args));
  call.all_heads = packed ? 0 : static_cast<int>(batched ? args.q.shape[0] : 1) * call.heads;
  const int64_t fit = kSectionBytes / (int64_t{call.seq_kv} * call.key_bytes) * call.group;
  call.section = static_cast<int>(fit < call.group       ? call.group
                                  : fit < call.all_heads ? fit
                                                         : call.all_heads);
  call.check = ctx.check;
  const int64_t blocks = int64_t{(call.seq_q + F::kRows - 1) / F::kRows} +
                         (packed ? call.sequences : 0);  // no fewer than there are
  const int64_t items = blocks * (packed ? call.heads : call.all_heads);
  if (items > ctx.multiprocessors) {
    call.counter = static_cast<Counter*>(ctx.scratch);
    call.call = number_of_call();
  }
  cudaError_t code = map_of(as_pairs(args.q), 64, &call.q_map);
  if (code == cudaSuccess) code = map_of(as_pairs(args.k), F::kTile, &call.k_map);
  if (code == cudaSuccess) code = map_of(as_pairs(args.v), F::kTile, &call.v_map);
  if (code == cudaSuccess) code = allow_shared(attend_bytes<F, kOptions>, F::kShared, asked);
  LB_TRY(launched(code));
  const auto grid =
      static_cast<unsigned>(items < ctx.multiprocessors ? items : ctx.multiprocessors);
  return launch(ctx, attend_bytes<F, kOptions>, grid, F::kThreads, F::kShared, call);
}

static inline size_t workspace_bytes(const AttentionArgs& args, int) {
  return takes_bytes(args) ? sizeof(Counter) : 0;
}
static inline Status run_prefill_bytes(const AttentionArgs& args, const Ctx& ctx) {
  using F = Form8<2, 3>;
  if (!takes_bytes(args)) return run_rows(args, ctx);
  const bool plain = args.softcap == 0 && !present(args.alibi_slopes) && !present(args.bias) &&
                     args.score == Score::softmax;
  return plain ? run_bytes<F, false>(args, ctx) : run_bytes<F, true>(args, ctx);
}

}  // namespace
}  // namespace lowbit
