// Attention by mma.sync for few queries over codes: what attention_*_sm80 does where a sequence has
// few rows a kv head. Memory is all there is to wait for, so nothing but a warp waits.
//
// The warps of a block have the same 16 rows and take tiles of kKeys keys by turns. Each has a ring
// of stages of its own, which it fills and empties alone: keys, values and, of codes, their scales
// as they lie in memory, in rows 16 bytes apart from a multiple of 128 or as good. Queries stay in
// registers. At the end the sums of warps are added up in their order.
//
// Codes become operands in registers, without their scales: f16 whose low bits are the code, a
// number n as n times 2^-24, e4m3 as its value times 2^-8. Operands of two elements are bytes 0 and
// 2, or 1 and 3, of a word, so queries stand in that order in shared memory, and a product with
// values has the elements 16 m, 16 m + 2, ... in one half and those between in the other. int8's
// codes are taken as code + 128. Sums of codes without a sign are far larger than what is left once
// their middle is taken off, and tensor cores cut off what an addition leaves behind, so a tile's
// products begin at zero and are added to the sums by rounding additions.
#pragma once

#include "csrc/attention/attention_sm80.cuh"

namespace lowbit {
namespace {

inline constexpr float kTiny = 0x1p-24f;  // 1 in the low bits of f16

template <KvFormat kFormatOf, int kDimOf>
struct Few {
  static constexpr KvFormat kFormat = kFormatOf;
  static constexpr int kBits = kv_format_row(kFormat).bits;
  static constexpr bool kCodes = true, kHalf = true;
  static constexpr bool kZeros = kFormat == KvFormat::int4, kShifted = kFormat == KvFormat::int8;
  static constexpr int kDim = kDimOf, kTiles = 1, kRows = 16;
  static constexpr int kWarpsM = 1, kWarpsN = 4, kWarps = 4, kThreads = 128;
  // Fewer where a stage would leave room for one block a multiprocessor only.
  static constexpr int kKeys = kBits == 8 && kDim >= 128 ? 16 : 32, kOwn = kKeys;
  static constexpr int kColumns = kKeys / 8, kSteps = kDim / 16, kParts = kDim / 8;
  static constexpr int kStride = 2 * kDim + 16, kPassStride = kDim + 4;
  static constexpr int kQueryBytes = kRows * kStride;
  static constexpr int kChunks = kDim * kBits / 128;  // of 16 bytes, of a row
  static constexpr int kRowBytes = 16 * (kChunks + 1 + kChunks % 2);
  static constexpr int kScaleBytes = 2 * kKeys * (kZeros ? 4 : 2);
  static constexpr int kStage = 2 * kKeys * kRowBytes + kScaleBytes;
  static constexpr int kPassBytes = 4 * kWarps * kRows * kPassStride;
  static constexpr int kMostStages = 5;
};

// ---- stages ------------------------------------------------------------------------------------

// Numbers of 32 pages of a sequence that follow each other, one a lane.
struct Window {
  int first = -1, page = 0;
};

// Asks for a tile, by a warp.
template <class F>
__device__ __forceinline__ void bring_few(const Call& call, const Item& t, const Tile& tile,
                                          Window& window, uint8_t* stage) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32;
  const KvCache& k = a.kv;
  const int shift = 31 - __clz(static_cast<int>(k.page_size));
  const int first = tile.lo >> shift, last = (tile.hi - 1) >> shift;
  if (window.first < 0 || first < window.first || last >= window.first + 32) {
    window.first = first;
    window.page = -1;
    if (first + lane <= (t.end - 1) >> shift) {
      const int number = t.s.pages[first + lane];
      if (is_page(a, number)) window.page = number;
    }
  }
  // Lanes along a row, a power of two; what a row has more comes in further steps of as many.
  constexpr int kLow = F::kChunks & -F::kChunks, kAcross = kLow < 32 ? kLow : 32;
  constexpr int kPass = 32 / kAcross;
  static_assert(F::kKeys % kPass == 0);
  const int c = lane % kAcross;
  constexpr int kStep = F::kDim * F::kBits / 8;
  const int own = lane / kAcross;
  if (k.page_size >= F::kKeys) {
    const int page = __shfl_sync(~0u, window.page, first - window.first & 31);
    const uint8_t* from = kv_page(k, page < 0 ? 0 : page, t.head) +
                          ((tile.key0 & ((1 << shift) - 1)) + own) * kStep + 16 * c;
    const int low = tile.lo - tile.key0 - own;
    const unsigned count = page < 0 ? 0u : static_cast<unsigned>(tile.hi - tile.lo);
    uint32_t to = smem_address(stage) + own * F::kRowBytes + 16 * c;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
#pragma unroll
      for (int n = 0; n < F::kKeys / kPass; ++n) {
        const uint32_t bytes = static_cast<unsigned>(n * kPass - low) < count ? 16 : 0;
#pragma unroll
        for (int m = 0; m < F::kChunks / kAcross; ++m) {
          cp_async_16(to + n * kPass * F::kRowBytes + 16 * kAcross * m,
                      from + n * kPass * kStep + 16 * kAcross * m, bytes);
        }
      }
      from += k.page.v;
      to += F::kKeys * F::kRowBytes;
    }
  } else {
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
      const uint32_t to = smem_address(stage) + (which * F::kKeys + own) * F::kRowBytes + 16 * c;
#pragma unroll 1
      for (int n = 0; n < F::kKeys / kPass; ++n) {
        const int j = tile.key0 + own + n * kPass;
        const int page = __shfl_sync(~0u, window.page, (j >> shift) - window.first & 31);
        const bool there = j >= tile.lo && j < tile.hi && page >= 0;
        const uint8_t* from = kv_page(k, there ? page : 0, t.head) + (which == 1 ? k.page.v : 0) +
                              (j & ((1 << shift) - 1)) * kStep + 16 * c;
#pragma unroll
        for (int m = 0; m < F::kChunks / kAcross; ++m) {
          cp_async_16(to + n * kPass * F::kRowBytes + 16 * kAcross * m, from + 16 * kAcross * m,
                      there ? 16 : 0);
        }
      }
    }
  }
  // Of eight tokens 16 bytes: scales of keys, of values, then zeros of keys, of values.
  constexpr int kEights = F::kKeys / 8;
  const int array = lane / kEights, j = tile.key0 + 8 * (lane % kEights);
  const int page = __shfl_sync(~0u, window.page, (j >> shift) - window.first & 31);
  if (lane < F::kScaleBytes / 16) {
    const KvBlock& b = k.page;
    const int64_t at = array == 0   ? b.k_scale
                       : array == 1 ? b.v_scale
                       : array == 2 ? b.k_zero
                                    : b.v_zero;
    const bool there = j + 8 > tile.lo && j < tile.hi && page >= 0;
    cp_async_16(smem_address(stage) + 2 * F::kKeys * F::kRowBytes + 16 * lane,
                kv_page(k, there ? page : 0, t.head) + at + 2 * (j & ((1 << shift) - 1)),
                there ? 16 : 0);
  }
}

// ---- queries -----------------------------------------------------------------------------------

// Queries as f16 for codes, by a power of two a row: the largest finite number comes to 2^14. Of
// each 16 elements, 4 n and 4 n + 2 stand at 2 n, the others eight behind; the high bits of int4's
// bytes are 16 times their number. `sums`: of what a code's middle or zero meets.
template <class F>
__device__ __forceinline__ void place_queries(const Call& call, const Item& t, uint8_t* to,
                                              Row* rows, float* sums) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32; i < F::kRows; i += F::kWarps) {
    const uint16_t* from = i < t.rows ? query_at(a, t, rows[i]) : nullptr;
    float x[F::kDim / 32], most = 0.0f;
#pragma unroll
    for (int k = 0; k < F::kDim / 32; ++k) {
      const int d = 32 * k + lane;
      x[k] = from == nullptr            ? 0.0f
             : a.q.dtype == DType::bf16 ? bf16_to_f32(from[d])
                                        : half_to_f32(from[d]);
      if (fabsf(x[k]) < INFINITY) most = fmaxf(most, fabsf(x[k]));
    }
    for (int step = 16; step > 0; step /= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    }
    int up = 127 + 14 - static_cast<int>(__float_as_uint(most) >> 23);
    up = up < -126 ? -126 : up > 126 ? 126 : up;
    const float lift = __uint_as_float(static_cast<uint32_t>(127 + up) << 23);
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < F::kDim / 32; ++k) {
      const int d = 32 * k + lane, m = d % 4;
      const float down = F::kZeros && d >= F::kDim / 2 ? 16.0f : 1.0f;
      const uint16_t w = f32_to_half(x[k] * lift / down);
      sum += half_to_f32(w) * down;
      const int place = d / 16 * 16 + m % 2 * 8 + d % 16 / 4 * 2 + m / 2;
      *reinterpret_cast<uint16_t*>(to + i * F::kStride + 2 * place) = w;
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) {
      rows[i].scale = call.scale * __uint_as_float(static_cast<uint32_t>(127 - up) << 23);
      sums[i] = sum * kTiny;
    }
  }
}

// ---- codes -------------------------------------------------------------------------------------

// Bytes 0 and 2, and 1 and 3, of a word of codes as operands.
template <KvFormat kFormat>
__device__ __forceinline__ void code_pairs(uint32_t w, uint32_t& even, uint32_t& odd) {
  if constexpr (kFormat == KvFormat::fp8_e4m3) {
    even = (w << 8 & 0x80008000u) | (w << 7 & 0x3f803f80u);
    odd = (w & 0x80008000u) | (w >> 1 & 0x3f803f80u);
  } else {
    even = (w ^ 0x80808080u) & 0x00ff00ffu;
    odd = (w >> 8 & 0x00ff00ffu) ^ 0x00800080u;
  }
}
__device__ __forceinline__ float2 halves_of(const uint8_t* at) {
  const uint32_t w = *reinterpret_cast<const uint32_t*>(at);
  return {low_of<true>(w), high_of<true>(w)};
}
// An ulp off at most, of numbers that are no extremes.
__device__ __forceinline__ float inverse_of(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y * fmaf(-x, y, 2.0f);
}

template <class F>
__device__ __forceinline__ void take_codes(const Call& call, const Tile& tile, const Row* rows,
                                           bool ragged, const uint32_t (&q)[F::kSteps][4],
                                           const float (&unit)[1][2], const float (&query_sums)[2],
                                           uint8_t* stage, Sums<F>& t) {
  constexpr bool kInt4 = F::kZeros;
  constexpr int kHigh = F::kSteps / 2;  // int4: the first step of the high bits
  const int lane = threadIdx.x % 32, column = lane % 4 * 2;
  // 32 keys at one chunk, or 16 keys at two.
  constexpr bool kWide = F::kKeys == 32;
  const uint32_t k =
      smem_address(stage) +
      (kWide ? lane * F::kRowBytes : (lane / 16 * 8 + lane % 8) * F::kRowBytes + lane / 8 % 2 * 16);
  const uint32_t v = smem_address(stage) + F::kKeys * F::kRowBytes +
                     (kWide ? lane * F::kRowBytes : lane % 16 * F::kRowBytes + lane / 16 * 16);
  const uint8_t* const scales = stage + 2 * F::kKeys * F::kRowBytes + 2 * column;
  float s[1][F::kColumns][4];
#pragma unroll
  for (int i = 0; i < F::kColumns * 4; ++i) {
    s[0][i / 4][i % 4] = F::kShifted ? -128.0f * query_sums[i % 4 / 2] : 0.0f;
  }
#pragma unroll
  for (int c = 0; c < F::kChunks; c += kWide ? 1 : 2) {
    uint32_t w[4];  // of eight keys each
    ldmatrix(k + 16 * c, w[0], w[1], w[2], w[3]);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if constexpr (kInt4) {
        const uint32_t y = w[n] >> 8;
        mma_16bit<true>(s[0][n], q[c], w[n] & 0x000f000fu, y & 0x000f000fu);
        mma_16bit<true>(s[0][n], q[c + kHigh], w[n] & 0x00f000f0u, y & 0x00f000f0u);
      } else {
        uint32_t even, odd;
        code_pairs<F::kFormat>(w[n], even, odd);
        mma_16bit<true>(s[0][kWide ? n : n / 2], q[kWide ? c : c + n % 2], even, odd);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < F::kColumns; ++c) {
    const float2 scale = halves_of(scales + 16 * c);
    float2 zero = {};
    if constexpr (kInt4) zero = halves_of(scales + 4 * F::kKeys + 16 * c);
    constexpr float kUnit = F::kFormat == KvFormat::fp8_e4m3 ? 0x1p8f : 0x1p24f;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float& x = s[0][c][e];
      if constexpr (kInt4) x = fmaf(e % 2 == 0 ? -zero.x : -zero.y, query_sums[e / 2], x);
      x *= (e % 2 == 0 ? scale.x : scale.y) * kUnit;
    }
  }
  if (call.transform) take_options<F>(call, rows, tile.key0, s);
  Seen seen[2] = {Seen(rows[lane / 4], tile), Seen(rows[8 + lane / 4], tile)};
  if (ragged) {
#pragma unroll
    for (int i = 0; i < F::kColumns * 4; ++i) {
      const int j = tile.key0 + i / 4 * 8 + column + i % 2;
      if (!seen[i % 4 / 2].has(j)) s[0][i / 4][i % 4] = -INFINITY;
    }
  }

  // Weights are 2^14 at most, of the largest scale until now.
  float ratio = 1.0f;
  {
    const int j = tile.key0 + lane;
    // Stages may have fewer keys than a warp has lanes.
    const int own = lane % F::kKeys;
    const uint16_t bits = *reinterpret_cast<const uint16_t*>(stage + 2 * F::kKeys * F::kRowBytes +
                                                             2 * F::kKeys + 2 * own) &
                          0x7fff;
    const bool counts = lane == own && j >= tile.lo && j < tile.hi && bits < 0x7c00;
    const unsigned top = __reduce_max_sync(~0u, counts ? bits : 0u);
    const float most = half_to_f32(static_cast<uint16_t>(top));
    if (most > t.most) {
      const int up = 127 + 13 - static_cast<int>(__float_as_uint(most) >> 23);
      const float lift = __uint_as_float(static_cast<uint32_t>(127 + up) << 23);
      if (t.most > 0.0f) ratio = lift / t.lift;
      t.most = most;
      t.lift = lift;
    }
  }
  const bool sigmoid_score = call.args.score == Score::sigmoid;
  float factor[2] = {ratio, ratio};
  if (!sigmoid_score) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = -INFINITY;
#pragma unroll
      for (int c = 0; c < F::kColumns; ++c) {
        most = fmaxf(most, fmaxf(s[0][c][2 * h], s[0][c][2 * h + 1]));
      }
      most = fmaxf(t.max[0][h], quad_max(most));
      const float by =
          t.max[0][h] == -INFINITY
              ? 0.0f
              : power_of_two(base_of(t.max[0][h], unit[0][h]) - base_of(most, unit[0][h]));
      t.max[0][h] = most;
      t.sums[0][h] *= by;
      t.weights[0][h] *= by;
      factor[h] = by * ratio;
    }
  }
  t.zeros[0][0] *= factor[0];
  t.zeros[0][1] *= factor[1];
  uint32_t p[F::kKeys / 16][4];
#pragma unroll
  for (int c = 0; c < F::kColumns; ++c) {
    float2 scale = halves_of(scales + 2 * F::kKeys + 16 * c), zero = {128.0f, 128.0f};
    scale.x *= t.lift;
    scale.y *= t.lift;
    const float2 inverse = {inverse_of(scale.x), inverse_of(scale.y)};
    if constexpr (kInt4) zero = halves_of(scales + 6 * F::kKeys + 16 * c);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float base = base_of(t.max[0][h], unit[0][h]);
      float x[2];
      bool sees[2] = {true, true};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float score = s[0][c][2 * h + e];
        x[e] = power_of_two(fmaf(score, unit[0][h], -base));
        if (sigmoid_score) x[e] = reciprocal(1.0f + power_of_two(-kLog2 * score));
        if (ragged) sees[e] = seen[h].has(tile.key0 + 8 * c + column + e);
      }
      t.sums[0][h] += x[0] + x[1];
      const uint32_t w =
          pair_of<true>(sees[0] ? x[0] * scale.x : 0.0f, sees[1] ? x[1] * scale.y : 0.0f);
      p[c / 2][c % 2 * 2 + h] = w;
      const float low = low_of<true>(w), high = high_of<true>(w);
      if (sees[0]) t.weights[0][h] = fmaf(low, inverse.x, t.weights[0][h]);
      if (sees[1]) t.weights[0][h] = fmaf(high, inverse.y, t.weights[0][h]);
      if constexpr (F::kZeros || F::kShifted) {
        if (sees[0]) t.zeros[0][h] = fmaf(low, zero.x, t.zeros[0][h]);
        if (sees[1]) t.zeros[0][h] = fmaf(high, zero.y, t.zeros[0][h]);
      }
    }
  }
  const auto add = [&](int part, const uint32_t* w) {
    float own[4] = {};
#pragma unroll
    for (int i = 0; i < F::kKeys / 16; ++i) mma_16bit<true>(own, p[i], w[2 * i], w[2 * i + 1]);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      t.o[0][part][e] = fmaf(t.o[0][part][e], factor[e / 2], own[e]);
    }
  };
#pragma unroll
  for (int c = 0; c < F::kChunks; c += kWide ? 1 : 2) {
    uint32_t w[4];
    ldmatrix_across(v + 16 * c, w[0], w[1], w[2], w[3]);
    if constexpr (kInt4) {
      constexpr uint32_t kLow4 = 0x000f000fu, kHigh4 = 0x00f000f0u;
      uint32_t x[4][4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const uint32_t y = w[n] >> 8;
        x[0][n] = w[n] & kLow4;
        x[1][n] = y & kLow4;
        x[2][n] = w[n] & kHigh4;
        x[3][n] = y & kHigh4;
      }
      add(2 * c, x[0]);
      add(2 * c + 1, x[1]);
      add(2 * (c + kHigh), x[2]);
      add(2 * (c + kHigh) + 1, x[3]);
    } else {
      uint32_t even[4], odd[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) code_pairs<F::kFormat>(w[n], even[n], odd[n]);
      add(2 * c, even);
      add(2 * c + 1, odd);
      if constexpr (!kWide) {
        add(2 * c + 2, even + 2);
        add(2 * c + 3, odd + 2);
      }
    }
  }
}

// ---- the kernel --------------------------------------------------------------------------------

template <int kPending>
__device__ __forceinline__ void wait_most(int pending) {
  if constexpr (kPending > 0) {
    if (pending < kPending) return wait_most<kPending - 1>(pending);
  }
  cp_async_wait<kPending>();
}

template <class F>
__global__ void __launch_bounds__(F::kThreads)
    attend_few(const __grid_constant__ Call call, int stages) {
  extern __shared__ __align__(128) uint8_t room[];
  __shared__ Beside<F> beside;
  __shared__ float sums_of_queries[F::kRows];
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  wait_for_others();
  if (call.check != nullptr) {
    check_lens(a, call.check, int64_t{blockIdx.x} * F::kThreads + threadIdx.x,
               int64_t{gridDim.x} * F::kThreads);
  }
  if (!find_item<F>(call, beside)) return;
  const Item& item = beside.item;
  uint8_t* const queries = room;
  uint8_t* const ring = room + F::kQueryBytes + warp * stages * F::kStage;
  Window window;
  int ahead = item.first + warp;  // the next tile to ask for
  const auto bring = [&](int slot) {
    if (ahead < item.last) {
      bring_few<F>(call, item, tile_at<F>(item, ahead), window, ring + slot * F::kStage);
    }
    ahead += F::kWarps;
    cp_async_commit();
  };
  for (int i = 0; i < stages - 1; ++i) bring(i);

  prepare_rows<F>(call, item, beside.rows);
  __syncthreads();
  place_queries<F>(call, item, queries, beside.rows, sums_of_queries);
  __syncthreads();
  uint32_t q[F::kSteps][4];
  const uint32_t from = rows_from<F>(queries, 0);
#pragma unroll
  for (int step = 0; step < F::kSteps; ++step) {
    ldmatrix(from + 32 * step, q[step][0], q[step][1], q[step][2], q[step][3]);
  }
  float unit[1][2], query_sums[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    unit[0][h] = call.transform ? kLog2 : beside.rows[8 * h + lane / 4].scale * kLog2;
    query_sums[h] = sums_of_queries[8 * h + lane / 4];
  }

  Sums<F> t;
  int slot = 0;
  for (int index = item.first + warp; index < item.last; index += F::kWarps) {
    wait_most<F::kMostStages - 2>(stages - 2);
    __syncwarp();  // the tile is there for all lanes, and none reads the one before any more
    bring(slot == 0 ? stages - 1 : slot - 1);
    uint8_t* const stage = ring + slot * F::kStage;
    const Tile tile = tile_at<F>(item, index);
    const bool ragged = tile.key0 < item.low || tile.key0 + F::kKeys > item.high ||
                        tile.key0 < tile.lo || tile.key0 + F::kKeys > tile.hi;
    take_codes<F>(call, tile, beside.rows, ragged, q, unit, query_sums, stage, t);
    slot = slot == stages - 1 ? 0 : slot + 1;
  }
  cp_async_wait<0>();

  float4 numbers[2];
  float zero[2];
  const float drop = 1.0f / t.lift;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    numbers[h] = numbers_of(call, t.max[0][h], unit[0][h], beside.rows[8 * h + lane / 4].scale,
                            quad_sum(t.weights[0][h]), quad_sum(t.sums[0][h]));
    zero[h] = quad_sum(t.zeros[0][h]);
  }
  leave_warps<F>(call, item, reinterpret_cast<float*>(room + F::kQueryBytes), beside, numbers,
                 [&](float* to, int h) {
#pragma unroll
                   for (int m = 0; m < F::kSteps; ++m) {
                     const float by = F::kFormat == KvFormat::fp8_e4m3  ? 0x1p8f
                                      : F::kZeros && m >= F::kSteps / 2 ? 0x1p20f
                                                                        : 0x1p24f;
                     const float* x = t.o[0][2 * m];
                     const float* y = t.o[0][2 * m + 1];
                     *reinterpret_cast<float4*>(to + 16 * m + lane % 4 * 4) = {
                         (x[2 * h] * by - zero[h]) * drop, (y[2 * h] * by - zero[h]) * drop,
                         (x[2 * h + 1] * by - zero[h]) * drop,
                         (y[2 * h + 1] * by - zero[h]) * drop};
                   }
                 });
}

// Whether a plan for few rows of codes goes here: rows that are copied as they lie.
static inline bool takes_few(const AttentionArgs& a, const Plan& plan) {
  return plan.few && is_aligned(a.kv.data) && a.kv.head_dim == plan.dim &&
         a.kv.head_dim_v == plan.dim && !present(a.prefix_rows);
}

// Stages of a warp, two at least: two blocks on a multiprocessor, three where keys are few; 0:
// there is no room.
template <class F>
static Status stages_of(int* stages) {
  int most = 0;
  LB_TRY(most_shared(&most));
  constexpr int kOther = F::kQueryBytes + static_cast<int>(sizeof(Beside<F>)) + 1280;
  constexpr int kRing = F::kWarps * F::kStage;
  *stages = 0;
  for (int blocks = F::kKeys == 16 ? 3 : 2; blocks > 0 && *stages == 0; --blocks) {
    const int room = most / blocks - kOther, fit = room / kRing;
    if (fit >= blocks && fit >= 2 && room >= F::kPassBytes) *stages = fit;
  }
  if (*stages > F::kMostStages) *stages = F::kMostStages;
  return ok();
}

template <class F>
static Status run_few(const AttentionArgs& args, const Plan& plan, int stages, const Ctx& ctx) {
  static std::atomic<uint64_t> asked{0};
  const Call call = call_of<F>(args, plan, ctx);
  const int ring = stages * F::kWarps * F::kStage;
  const int shared = F::kQueryBytes + (ring > F::kPassBytes ? ring : F::kPassBytes);
  LB_TRY(launched(allow_shared(attend_few<F>, shared, asked)));
  const auto items = static_cast<unsigned>(plan.count * call.heads);
  LB_TRY(launch(ctx, attend_few<F>, dim3(items * static_cast<unsigned>(call.splits)), F::kThreads,
                static_cast<size_t>(shared), call, stages));
  return add_up<F>(call, items, ctx);
}

}  // namespace
}  // namespace lowbit
