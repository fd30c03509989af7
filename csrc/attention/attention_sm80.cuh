// Attention by mma.sync (sm_80 and newer): what attention_bf16_sm80 and attention_f16_sm80 share.
//
// A block takes an item (tiles_sm80.cuh): s = q k^T, online softmax, o += p v with s and p in
// registers. For many rows its warps have 16 or 32 rows each and all keys of a tile; for few rows
// all of them have the same rows and a part of the keys, and their sums are added up in the order
// of warps at the end. Where items alone leave the GPU empty, the keys of each are split: every
// split leaves its sums in scratch, and a second kernel adds them up in their order. How keys are
// split depends on shapes and lengths alone, so a call gives the same bits on every GPU.
//
// While keys are multiplied the values of the tile are under way, while values are, the next keys.
//
// A masked key has p = 0, but 0 times a NaN or inf of its value is no number: in tiles that not
// every row sees whole, such values are added row by row and then cleared. Codes are finite, and a
// scale that is none reaches the weights of rows that see it alone.
//
// Weights are rounded to the operands' type, and their sum is that of the rounded ones. Of codes a
// weight is p times the scale of the value, and each is divided by that scale again for the sum, so
// that they add up to one; in f16 all of them are lifted by a power of two that keeps them away
// from its ends.
#pragma once

#include <cmath>

#include "csrc/attention/products_sm80.cuh"

namespace lowbit {
namespace {

inline constexpr int64_t kMostSplits = 64;  // of an item: two a lane where they are added up

// ---- results -----------------------------------------------------------------------------------

// What is known of a row's sums beside them: its base, the maximum in units of log2, as they have
// it; sums of rounded weights and of P; the maximum itself, from which lse has fewer roundings,
// less what rounding made of the base.
__device__ __forceinline__ float4 numbers_of(const Call& call, float max, float unit, float scale,
                                             float weights, float sums) {
  // A row of sigmoid scores has no maximum: its sums are added up as they are.
  if (call.args.score == Score::sigmoid) return {0.0f, weights, sums, 0.0f};
  if (max == -INFINITY) return {-INFINITY, weights, sums, -INFINITY};
  const float base = base_of(max, unit);
  return {base, weights, sums,
          fmaf(-kLn2, fmaf(max, unit, -base), call.transform ? max : max * scale)};
}

// What the sums of a row are multiplied by, and its lse.
struct End {
  float factor, lse;
};
__device__ __forceinline__ End end_of(const AttentionArgs& a, const Row& row, float4 n) {
  const bool empty = row.begin >= row.end;
  const float sink =
      present(a.sinks) ? static_cast<const float*>(a.sinks.data)[row.head] : -INFINITY;
  if (a.score == Score::sigmoid) return {empty ? 0.0f : 1.0f, 0.0f};
  if (empty) return {0.0f, sink};
  float factor = 1.0f;
  if (sink != -INFINITY) {
    const float own = sink * kLog2, most = fmaxf(n.x, own);
    factor = power_of_two(n.x - most);
    n.y = n.y * factor + power_of_two(own - most);
    n.z = n.z * factor + power_of_two(own - most);
    if (own > n.x) n.w = sink;
  }
  return {__fdiv_rn(factor, n.y), fmaf(kLn2, log2f(n.z), n.w)};
}
__device__ __forceinline__ void store_lse(const AttentionArgs& a, const Item& t, const Row& row,
                                          float lse) {
  if (!present(a.lse)) return;
  const int64_t at = t.s.lse + row.head * a.lse.strides[a.lse.rank - 2] +
                     row.token * a.lse.strides[a.lse.rank - 1];
  static_cast<float*>(a.lse.data)[at] = lse;
}
__device__ __forceinline__ int64_t out_at(const AttentionArgs& a, const Item& t, const Row& row) {
  return t.s.o + row.token * token_stride(a.o) + row.head * head_stride(a.o);
}
// `count` of a row's elements from d on.
template <int kCount>
__device__ __forceinline__ void store_out(const AttentionArgs& a, int64_t at, int d, int dim,
                                          const float (&x)[kCount]) {
  void* p = element(a.o.data, a.o.dtype, at + d);
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (d + kCount <= dim) {
    if (a.o.dtype == DType::f32 && address % (4 * kCount) == 0) {
      if constexpr (kCount == 4) *static_cast<float4*>(p) = {x[0], x[1], x[2], x[3]};
      if constexpr (kCount == 2) *static_cast<float2*>(p) = {x[0], x[1]};
      return;
    }
    if (a.o.dtype != DType::f32 && address % (2 * kCount) == 0) {
      uint32_t w[kCount / 2];
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        w[i] = a.o.dtype == DType::f16 ? pair_of<true>(x[2 * i], x[2 * i + 1])
                                       : pair_of<false>(x[2 * i], x[2 * i + 1]);
      }
      if constexpr (kCount == 4) *static_cast<uint2*>(p) = {w[0], w[1]};
      if constexpr (kCount == 2) *static_cast<uint32_t*>(p) = w[0];
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (d + i < dim) store_f32(a.o.data, a.o.dtype, at + d + i, x[i]);
  }
}

template <class F>
__device__ __forceinline__ float* part_of(const Call& call, const Item& t, int split) {
  const int64_t item = (int64_t{t.index} * call.heads + t.head) * call.splits + split;
  return call.parts + item * F::kRows * F::kPassStride;
}

// Four consecutive elements a lane of a row that a warp has together.
template <class F>
__device__ __forceinline__ void finish_row(const Call& call, const Item& t, const Row& row,
                                           const float4& numbers,
                                           const float (&o)[(F::kDim + 127) / 128][4]) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, dim = static_cast<int>(head_dim_v_of(a));
  const End end = end_of(a, row, numbers);
  const int64_t at = out_at(a, t, row);
#pragma unroll
  for (int k = 0; k < (F::kDim + 127) / 128; ++k) {
    const int d = 128 * k + 4 * lane;
    if (d >= dim) continue;
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = row.begin >= row.end ? 0.0f : o[k][i] * end.factor;
    store_out(a, at, d, dim, x);
  }
  if (lane == 0) store_lse(a, t, row, end.lse);
}

// Adds up `count` rows of sums, `step` floats from one to the next, and their numbers.
template <class F, class Rows, class Of>
__device__ __forceinline__ float4 add_rows(int count, const Of& numbers, const Rows& rows,
                                           float (&o)[(F::kDim + 127) / 128][4]) {
  const int lane = threadIdx.x % 32;
  float base = -INFINITY, max = -INFINITY;
  for (int k = 0; k < count; ++k) {
    const float4 own = numbers(k);
    if (own.x > base) base = own.x, max = own.w;
  }
  const float shift = base == -INFINITY ? 0.0f : base;
  float weights = 0.0f, sums = 0.0f;
#pragma unroll
  for (int i = 0; i < (F::kDim + 127) / 128 * 4; ++i) o[i / 4][i % 4] = 0.0f;
#pragma unroll 4
  for (int k = 0; k < count; ++k) {
    const float4 own = numbers(k);
    // A base that is no number stays one.
    const float factor = own.x == -INFINITY ? 0.0f : power_of_two(own.x - shift);
    weights += factor * own.y;
    sums += factor * own.z;
#pragma unroll
    for (int i = 0; i < (F::kDim + 127) / 128; ++i) {
      const int d = 128 * i + 4 * lane;
      if (d >= F::kDim) continue;
      const float4 x = *reinterpret_cast<const float4*>(rows(k) + d);
      o[i][0] += factor * x.x;
      o[i][1] += factor * x.y;
      o[i][2] += factor * x.z;
      o[i][3] += factor * x.w;
    }
  }
  return {base, weights, sums, max};
}

// The sums of warps that have the same 16 rows to o and lse, or to the block's part. put(to, h)
// leaves the elements of row lane / 4 + 8 h in shared memory.
template <class F, class Put>
__device__ __forceinline__ void leave_warps(const Call& call, const Item& item, float* pass,
                                            Beside<F>& beside, const float4 (&numbers)[2],
                                            const Put& put) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // nobody reads tiles any more
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = 8 * h + lane / 4;
    put(pass + (warp * F::kRows + r) * F::kPassStride, h);
    if (lane % 4 == 0) beside.sums[warp * F::kRows + r] = numbers[h];
  }
  __syncthreads();
  for (int r = warp; r < item.rows; r += F::kWarps) {
    float o[(F::kDim + 127) / 128][4];
    const float4 sum = add_rows<F>(
        F::kWarpsN, [&](int k) { return beside.sums[k * F::kRows + r]; },
        [&](int k) { return pass + (k * F::kRows + r) * F::kPassStride; }, o);
    if (item.splits == 1) {
      finish_row<F>(call, item, beside.rows[r], sum, o);
      continue;
    }
    float* to = part_of<F>(call, item, item.split) + r * F::kPassStride;
#pragma unroll
    for (int i = 0; i < (F::kDim + 127) / 128; ++i) {
      const int d = 128 * i + 4 * lane;
      if (d < F::kDim) {
        *reinterpret_cast<float4*>(to + d) = {o[i][0], o[i][1], o[i][2], o[i][3]};
      }
    }
    if (lane == 0) *reinterpret_cast<float4*>(to + F::kDim) = sum;
  }
}

// The sums of a block to o and lse, or to its part.
template <class F>
__device__ __forceinline__ void leave(const Call& call, const Item& item, uint8_t* shared,
                                      Beside<F>& beside, const float (&unit)[F::kTiles][2],
                                      Sums<F>& t) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int dim = static_cast<int>(head_dim_v_of(a));
  float4 numbers[F::kTiles][2];
  const float drop = 1.0f / t.lift;
#pragma unroll
  for (int i = 0; i < F::kTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = warp / F::kWarpsN * 16 * F::kTiles + 16 * i + 8 * h + lane / 4;
      numbers[i][h] = numbers_of(call, t.max[i][h], unit[i][h], beside.rows[r].scale,
                                 F::kCodes ? quad_sum(t.weights[i][h]) : t.ones[i][2 * h],
                                 quad_sum(t.sums[i][h]));
      const float zero = F::kCodes ? quad_sum(t.zeros[i][h]) : 0.0f;
      if constexpr (F::kCodes) {
#pragma unroll
        for (int d = 0; d < F::kParts; ++d) {
          t.o[i][d][2 * h] = (t.o[i][d][2 * h] - zero) * drop;
          t.o[i][d][2 * h + 1] = (t.o[i][d][2 * h + 1] - zero) * drop;
        }
      }
    }
  }
  if constexpr (F::kWarpsN == 1) {
    const int row0 = warp * 16 * F::kTiles;
#pragma unroll
    for (int i = 0; i < F::kTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = row0 + 16 * i + 8 * h + lane / 4;
        if (r >= item.rows) continue;
        const Row& row = beside.rows[r];
        if (item.splits > 1) {
          float* to = part_of<F>(call, item, item.split) + r * F::kPassStride;
#pragma unroll
          for (int d = 0; d < F::kParts; ++d) {
            *reinterpret_cast<float2*>(to + 8 * d + lane % 4 * 2) = {t.o[i][d][2 * h],
                                                                     t.o[i][d][2 * h + 1]};
          }
          if (lane % 4 == 0) *reinterpret_cast<float4*>(to + F::kDim) = numbers[i][h];
          continue;
        }
        const End end = end_of(a, row, numbers[i][h]);
        const bool empty = row.begin >= row.end;
        if (lane % 4 == 0) store_lse(a, item, row, end.lse);
#pragma unroll
        for (int d = 0; d < F::kParts; ++d) {
          const float x[2] = {empty ? 0.0f : t.o[i][d][2 * h] * end.factor,
                              empty ? 0.0f : t.o[i][d][2 * h + 1] * end.factor};
          if (!call.aligned_o) {
            store_out(a, out_at(a, item, row), 8 * d + lane % 4 * 2, dim, x);
            continue;
          }
          // The warp's own rows of q are no longer needed.
          *reinterpret_cast<uint32_t*>(shared + r * F::kStride + 16 * d + lane % 4 * 4) =
              a.o.dtype == DType::f16 ? pair_of<true>(x[0], x[1]) : pair_of<false>(x[0], x[1]);
        }
      }
    }
    if (item.splits > 1 || !call.aligned_o) return;
    __syncwarp();
    constexpr int kChunks = F::kDim / 8;
    for (int i = lane; i < 16 * F::kTiles * kChunks; i += 32) {
      const int r = row0 + i / kChunks, c = i % kChunks;
      if (r >= item.rows || 8 * c >= dim) continue;
      *reinterpret_cast<uint4*>(static_cast<uint8_t*>(a.o.data) +
                                2 * (out_at(a, item, beside.rows[r]) + 8 * c)) =
          *reinterpret_cast<const uint4*>(shared + r * F::kStride + 16 * c);
    }
  } else {
    leave_warps<F>(call, item, reinterpret_cast<float*>(shared + F::kQueryBytes), beside,
                   numbers[0], [&](float* to, int h) {
#pragma unroll
                     for (int d = 0; d < F::kParts; ++d) {
                       *reinterpret_cast<float2*>(to + 8 * d + lane % 4 * 2) = {
                           t.o[0][d][2 * h], t.o[0][d][2 * h + 1]};
                     }
                   });
  }
}

// ---- kernels -----------------------------------------------------------------------------------

// The item of this block, found by one warp, so that others need no registers for it; whether there
// is one.
template <class F>
__device__ __forceinline__ bool find_item(const Call& call, Beside<F>& beside) {
  if (threadIdx.x < 32) {
    Item found;
    const bool any = item_at<F>(call, blockIdx.x, &found);
    if (threadIdx.x == 0) {
      beside.item = found;
      beside.any = any;
    }
  }
  __syncthreads();
  return beside.any;
}

template <class F>
__global__ void __launch_bounds__(F::kThreads) attend_tiles(const __grid_constant__ Call call) {
  extern __shared__ __align__(128) uint8_t room[];
  __shared__ Beside<F> beside;
  const AttentionArgs& a = call.args;
  const int warp = threadIdx.x / 32;
  wait_for_others();
  if (call.check != nullptr) {
    check_lens(a, call.check, int64_t{blockIdx.x} * F::kThreads + threadIdx.x,
               int64_t{gridDim.x} * F::kThreads);
  }
  if (!find_item<F>(call, beside)) return;
  const Item& item = beside.item;

  uint8_t* const queries = room;
  uint8_t* const keys = room + F::kQueryBytes;
  uint8_t* const values = F::kCodes ? keys : keys + F::kTileBytes;
  uint8_t* const raw_keys = keys + F::kTileBytes;
  uint8_t* const raw_values = raw_keys + F::kRawBytes;
  const int row0 = warp / F::kWarpsN * 16 * F::kTiles, own = warp % F::kWarpsN * F::kOwn;

  int window = -1;
  const auto bring = [&](const Tile& tile, bool of_values) {
    if constexpr (!F::kCodes) {
      bring_numbers<F>(call, item, tile, beside.pages, window, of_values ? values : keys,
                       of_values);
    } else if (!tile.prefix) {
      bring_codes<F>(call, item, tile, beside.pages, window, of_values ? raw_values : raw_keys,
                     of_values);
    }
    cp_async_commit();
  };
  if (item.first < item.last) {
    const Tile tile = tile_at<F>(item, item.first);
    look_up<F>(call, item, tile, beside.pages, &window);
    bring(tile, false);
  }
  prepare_rows<F>(call, item, beside.rows);
  if constexpr (F::kCodes) {
    for (int i = threadIdx.x; i < F::kTileBytes / 16; i += F::kThreads) {
      reinterpret_cast<uint4*>(keys)[i] = {};
    }
  }
  __syncthreads();
  if (call.narrow) {
    take_narrow<F>(call, item, queries, beside.rows);
  } else {
    bring_rows<F>(queries, F::kRows, static_cast<int>(head_dim_of(a)), call.aligned_q, [&](int r) {
      const Row& row = beside.rows[r < item.rows ? r : 0];
      const auto* p = reinterpret_cast<const uint8_t*>(query_at(a, item, row));
      return p;
    });
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const uint32_t q = rows_from<F>(queries, row0), k = columns_from<F>(keys, own),
                 v = rows_from<F>(values, own);
  const Row* const rows = beside.rows + row0;
  float unit[F::kTiles][2], query_sums[F::kTiles][2] = {};
#pragma unroll
  for (int i = 0; i < 2 * F::kTiles; ++i) {
    const float scale = rows[16 * (i / 2) + 8 * (i % 2) + threadIdx.x % 32 / 4].scale;
    unit[i / 2][i % 2] = !F::kPlain && call.transform ? kLog2 : scale * kLog2;
  }
  if constexpr (F::kCodes) sum_queries<F>(q, query_sums);
  // The warp's last row; those behind it have no keys.
  int last = item.rows - row0 - 1;
  last = last < 0 ? 0 : last < 16 * F::kTiles ? last : 16 * F::kTiles - 1;
  Sums<F> t;
  for (int index = item.first; index < item.last; ++index) {
    const Tile tile = tile_at<F>(item, index);
    cp_async_wait<0>();
    __syncthreads();  // keys are there, values of before are no longer needed
    bring(tile, true);
    if constexpr (F::kCodes) {
      take_numbers<F>(call, tile, raw_keys, false, beside.numbers);
      take_codes<F>(call, item, tile, beside.pages, window, raw_keys, keys, false);
      __syncthreads();
    }
    const int first = tile.key0 + own;
    const bool idle = first >= rows[last].end || first + F::kOwn <= rows[0].begin;
    float s[F::kTiles][F::kColumns][4];
    if (!idle) {
      multiply_keys<F>(q, k, s);
      if constexpr (F::kCodes) {
        const int at = own + threadIdx.x % 4 * 2;
#pragma unroll
        for (int c = 0; c < F::kColumns; ++c) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float scale = beside.numbers.k_scale[at + 8 * c + e % 2];
            const float zero = beside.numbers.k_zero[at + 8 * c + e % 2];
#pragma unroll
            for (int i = 0; i < F::kTiles; ++i) {
              s[i][c][e] = fmaf(-zero, query_sums[i][e / 2], s[i][c][e]) * scale;
            }
          }
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // values are there, keys are no longer needed
    if constexpr (F::kCodes) {
      take_numbers<F>(call, tile, raw_values, true, beside.numbers);
      take_codes<F>(call, item, tile, beside.pages, window, raw_values, values, true);
      __syncthreads();
    }
    if (index + 1 < item.last) {
      const Tile next = tile_at<F>(item, index + 1);
      look_up<F>(call, item, next, beside.pages, &window);
      bring(next, false);
    }
    uint32_t p[F::kTiles][F::kColumns / 2][4] = {}, rest[F::kTiles][F::kColumns / 2][4];
    if (!idle) {
      const bool ragged = first < rows[last].begin || first + F::kOwn > rows[0].end ||
                          first < tile.lo || first + F::kOwn > tile.hi;
      take_scores<F>(call, tile, own, rows, beside.numbers, unit, s, ragged, p, rest, t);
    }
    if constexpr (!F::kCodes) {
      if (tile.key0 < item.low || tile.key0 + F::kKeys > item.high) {
        clear_values<F>(tile, rows, own, p, values, &beside.bad, t);
      }
    }
    if (!idle) multiply_values<F>(v, p, rest, t);
  }
  leave<F>(call, item, room, beside, unit, t);
}

// A row of an item's splits, by a warp: their numbers are asked for at once, one or two a lane, and
// elements of several before one is used.
template <class F>
__device__ __forceinline__ float4 add_parts(const float* from, int count,
                                            float (&o)[(F::kDim + 127) / 128][4]) {
  constexpr int kStep = F::kRows * F::kPassStride, kWords = (F::kDim + 127) / 128;
  constexpr int kAtOnce = 16 / kWords;
  const int lane = threadIdx.x % 32;
  static_assert(kMostSplits == 64);
  float4 own[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int k = lane + 32 * i;
    own[i] = {-INFINITY, 0.0f, 0.0f, -INFINITY};
    if (k < count) own[i] = *reinterpret_cast<const float4*>(from + k * kStep + F::kDim);
  }
  const auto over_lanes = [](float x, const auto& f) {
    for (int step = 16; step > 0; step /= 2) x = f(x, __shfl_xor_sync(~0u, x, step));
    return x;
  };
  const auto larger = [](float x, float y) { return fmaxf(x, y); };
  const auto plus = [](float x, float y) { return x + y; };
  const float base = over_lanes(fmaxf(own[0].x, own[1].x), larger);
  const float max = over_lanes(
      fmaxf(own[0].x == base ? own[0].w : -INFINITY, own[1].x == base ? own[1].w : -INFINITY),
      larger);
  const float shift = base == -INFINITY ? 0.0f : base;
  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // A base that is no number stays one.
    factor[i] = own[i].x == -INFINITY ? 0.0f : power_of_two(own[i].x - shift);
  }
  const float weights = over_lanes(factor[0] * own[0].y + factor[1] * own[1].y, plus);
  const float sums = over_lanes(factor[0] * own[0].z + factor[1] * own[1].z, plus);
#pragma unroll
  for (int i = 0; i < kWords * 4; ++i) o[i / 4][i % 4] = 0.0f;
  for (int k0 = 0; k0 < count; k0 += kAtOnce) {
    float4 x[kAtOnce][kWords];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const int d = 128 * i + 4 * lane;
        x[k][i] = {};
        if (k0 + k < count && d < F::kDim) {
          x[k][i] = *reinterpret_cast<const float4*>(from + (k0 + k) * kStep + d);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const float by = __shfl_sync(~0u, k0 < 32 ? factor[0] : factor[1], (k0 + k) % 32);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        o[i][0] += by * x[k][i].x;
        o[i][1] += by * x[k][i].y;
        o[i][2] += by * x[k][i].z;
        o[i][3] += by * x[k][i].w;
      }
    }
  }
  return {base, weights, sums, max};
}

// Adds up the splits of items, a row a warp.
template <class F>
__global__ void __launch_bounds__(128) add_splits(const __grid_constant__ Call call) {
  wait_for_others();
  const AttentionArgs& a = call.args;
  Item item;
  const int64_t index = int64_t{blockIdx.x} / call.heads * call.splits * call.heads +
                        blockIdx.x % call.heads;  // its first split
  if (!item_at<F>(call, index, &item) || item.splits == 1) return;
  const Mask mask = make_mask(a.causal, a.window_left, a.window_right);
  for (int r = threadIdx.x / 32; r < item.rows; r += 4) {
    Row row = {};
    row.token = (item.row0 + r) / call.group;
    row.head = item.head * call.group + item.row0 + r - row.token * call.group;
    const KeyRange seen =
        visible_keys(mask, row.token + item.s.seq_kv - item.s.seq_q, item.s.seq_kv);
    row.begin = static_cast<int>(seen.begin);
    row.end = static_cast<int>(seen.end);
    float o[(F::kDim + 127) / 128][4];
    const float4 sum = add_parts<F>(part_of<F>(call, item, 0) + r * F::kPassStride, item.splits, o);
    finish_row<F>(call, item, row, sum, o);
  }
}

// ---- host --------------------------------------------------------------------------------------

// How a call is cut.
struct Plan {
  bool few;
  int dim, rows, keys;
  int64_t blocks, count, splits;
};

inline constexpr int kFewRows = 16;
// Blocks that a call is cut into where it has fewer: two a multiprocessor of large GPUs.
inline constexpr int64_t kPlaces = 264;

static inline int bucket_of(const AttentionArgs& a) {
  const int64_t k = head_dim_of(a), v = head_dim_v_of(a), dim = k > v ? k : v;
  return dim <= 64 ? 64 : dim <= 96 ? 96 : dim <= 128 ? 128 : dim <= 192 ? 192 : 256;
}

static inline Plan plan_of(const AttentionArgs& a) {
  Plan p = {};
  const int64_t sequences = sequence_count(a), group = head_count(a) / kv_head_count(a);
  const int64_t seq_q = a.q.shape[a.q.rank - 3];
  const bool known = is_batched(a) || !present(a.cu_seqlens_q);
  const int64_t rows =
      known ? seq_q * group : a.q.shape[0] * group / (sequences > 0 ? sequences : 1);
  p.few = rows <= 2 * kFewRows;
  p.dim = bucket_of(a);
  const bool codes = is_paged(a) && !is_float(a.kv.format);
  p.rows = p.few ? kFewRows : p.dim > 128 || codes ? 64 : 128;
  p.keys = 64;
  const auto over = [](int64_t x, int64_t y) { return (x + y - 1) / y; };
  int64_t likely;
  if (known) {
    p.blocks = over(seq_q * group, p.rows);
    likely = p.count = p.blocks * sequences;
  } else {
    const int64_t tokens = a.q.shape[0], whole = tokens * group / p.rows;
    p.count = whole + (sequences < tokens ? sequences : tokens);
    likely = whole > sequences ? whole : sequences;
  }
  likely *= kv_head_count(a);
  const int64_t tiles = over(seq_kv_bound(a), p.keys) + 1;
  const int64_t places = p.few && !codes ? 2 * kPlaces : p.dim > 128 ? kPlaces / 2 : kPlaces;
  p.splits = likely > 0 ? places / likely : 1;
  if (p.splits > tiles / 2) p.splits = tiles / 2;
  if (p.splits > kMostSplits) p.splits = kMostSplits;
  if (p.splits < 1) p.splits = 1;
  return p;
}

// Whether a call goes by tiles: operands in f16, else in bf16.
template <bool kHalf>
static inline bool takes_tiles(const AttentionArgs& a) {
  constexpr DType kOperand = kHalf ? DType::f16 : DType::bf16;
  constexpr KvFormat kOwn = kHalf ? KvFormat::f16 : KvFormat::bf16;
  if (a.q.dtype != kOperand && !(kHalf && a.q.dtype == DType::bf16)) return false;
  if (head_dim_of(a) > 256 || head_dim_v_of(a) > 256 || shows_cut_sums(a)) return false;
  const int64_t tokens = is_batched(a) ? a.q.shape[0] * a.q.shape[1] : a.q.shape[0];
  constexpr int64_t kMost = int64_t{1} << 30;
  if (tokens * head_count(a) == 0 || tokens * head_count(a) >= kMost) return false;
  if (seq_kv_bound(a) >= kMost - 64) return false;
  const Plan p = plan_of(a);
  if (p.count * p.splits * kv_head_count(a) >= kMost) return false;
  if (!is_paged(a)) return a.k.dtype == kOperand;
  if (present(a.prefix_rows) && a.kv.prefix_format != kOwn) return false;
  if (is_float(a.kv.format)) return a.kv.format == kOwn;
  // Codes go to operands in f16, but beside a prefix in bf16.
  if (!kHalf && !present(a.prefix_rows)) return false;
  const int multiple = a.kv.format == KvFormat::int4 ? 16 : 8;
  return a.kv.head_dim % multiple == 0 && a.kv.head_dim_v % multiple == 0;
}

template <bool kHalf>
static inline size_t tiles_workspace(const AttentionArgs& a, int) {
  if (!takes_tiles<kHalf>(a)) return 0;
  const Plan p = plan_of(a);
  if (p.splits == 1) return 0;
  return static_cast<size_t>(p.count * kv_head_count(a) * p.splits * p.rows * (p.dim + 4)) *
         sizeof(float);
}

// Whether scores are more than products by a positive scale, in whose units a maximum can be.
static inline bool has_options(const AttentionArgs& a) {
  return a.softcap != 0 || present(a.alibi_slopes) || present(a.bias) ||
         a.score == Score::sigmoid || !(a.softmax_scale == 0 || a.softmax_scale > 0x1p-60f);
}

// Whether rows of a tensor begin at multiples of 16 bytes and are as long.
static inline bool has_aligned_rows(const Tensor& t, int64_t batch_stride) {
  return is_aligned(t.data) && token_stride(t) % 8 == 0 && head_stride(t) % 8 == 0 &&
         batch_stride % 8 == 0 && t.shape[t.rank - 1] % 8 == 0;
}

template <class F>
static Call call_of(const AttentionArgs& args, const Plan& plan, const Ctx& ctx) {
  Call call = {};
  call.args = args;
  call.scale = args.softmax_scale != 0 ? args.softmax_scale
                                       : 1.0f / std::sqrt(static_cast<float>(head_dim_of(args)));
  call.heads = static_cast<int>(kv_head_count(args));
  call.group = static_cast<int>(head_count(args)) / call.heads;
  call.blocks = static_cast<int>(plan.blocks);
  call.count = static_cast<int>(plan.count);
  call.splits = static_cast<int>(plan.splits);
  call.transform = has_options(args);
  call.narrow = F::kHalf && args.q.dtype == DType::bf16;
  call.aligned_q = has_aligned_rows(args.q, is_batched(args) ? args.q.strides[0] : 0);
  if (is_paged(args)) {
    call.aligned_k = args.kv.head_dim % 8 == 0 && is_aligned(args.kv.data);
    call.aligned_v = args.kv.head_dim_v % 8 == 0 && is_aligned(args.kv.data);
  } else {
    call.aligned_k = has_aligned_rows(args.k, is_batched(args) ? args.k.strides[0] : 0);
    call.aligned_v = has_aligned_rows(args.v, is_batched(args) ? args.v.strides[0] : 0);
  }
  call.aligned_o = args.o.dtype != DType::f32 &&
                   has_aligned_rows(args.o, is_batched(args) ? args.o.strides[0] : 0);
  call.parts = static_cast<float*>(ctx.scratch);
  call.check = ctx.check;
  return call;
}

// Of a block, in bytes: 99 KiB on sm_86, sm_89 and sm_120, more on others.
static inline Status most_shared(int* bytes) {
  int device = 0;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess) {
    code = cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  return launched(code);
}

template <class F>
static Status add_up(const Call& call, unsigned items, const Ctx& ctx) {
  return call.splits == 1 ? ok() : launch(ctx, add_splits<F>, dim3(items), 128, 0, call);
}

template <class F>
static Status run_form(const AttentionArgs& args, const Plan& plan, const Ctx& ctx) {
  static std::atomic<uint64_t> asked{0};
  const Call call = call_of<F>(args, plan, ctx);
  LB_TRY(launched(allow_shared(attend_tiles<F>, F::kShared, asked)));
  const auto items = static_cast<unsigned>(plan.count * call.heads);
  LB_TRY(launch(ctx, attend_tiles<F>, dim3(items * static_cast<unsigned>(call.splits)), F::kThreads,
                F::kShared, call));
  return add_up<F>(call, items, ctx);
}

// The form of many queries, with tiles of half as many keys where 64 have no room.
template <bool kHalf, int kDim, int kTiles, bool kCodes, bool kPlain>
static Status run_many(const AttentionArgs& args, const Plan& plan, const Ctx& ctx) {
  using F = Form<kHalf, kDim, kTiles, 4, 1, 64, kCodes, kPlain>;
  if constexpr (F::kShared + sizeof(Beside<F>) > 98 * 1024) {
    int most = 0;
    LB_TRY(most_shared(&most));
    if (most < F::kShared + static_cast<int>(sizeof(Beside<F>)) + 1024) {
      return run_form<Form<kHalf, kDim, kTiles, 4, 1, 32, kCodes, kPlain>>(args, plan, ctx);
    }
  }
  return run_form<F>(args, plan, ctx);
}

}  // namespace
}  // namespace lowbit
