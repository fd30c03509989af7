// Few rows of x against int4 weights in frag64, by mma.sync, on Hopper: whole units of w stream
// past once.
//
// A unit of frag64 is 64 rows of w by 128 columns with their scales, one run of bytes that the copy
// engine brings by one instruction. A block of kWarps warps has a multiprocessor to itself and x in
// its shared memory, in the order in which lanes multiply it. A cluster of blocks shares K and
// takes some panels of 64 rows; a block's units, panel after panel, are cut evenly among its warps,
// and each warp keeps a ring of its own filled: nothing waits for another warp before the end. What
// is read of x serves four strips of 16 rows. Where a warp leaves a panel it lays its sums into
// shared memory; at the end a block adds those of its warps, then the cluster those of its blocks,
// in their order. How K is cut depends on N and K, and on M where x and sums do not fit.
#pragma once

#include "csrc/cuda/cluster.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/mma.cuh"
#include "csrc/cuda/tma.cuh"
#include "csrc/format/layout.h"
#include "csrc/linear/decode_int4.cuh"
#include "csrc/linear/finish.cuh"
#include "csrc/linear/x_rows_sm80.cuh"

namespace lowbit {
namespace {

inline constexpr int kUnitShared = 227 * 1024;
inline constexpr int kUnitTokens = 16;        // rows of x at a time
inline constexpr int kUnitColumns = 1 << 16;  // of x that surely fit
inline constexpr int kUnitStride =
    68;  // f32, of 64 sums of a row of x; 4 keeps a warp's writes apart

// What is multiplied: x and codes in f16 or bf16, or in whole numbers of eight bits.
enum class UnitX { f16, bf16, s8 };
// How x lies: as it is multiplied, or as codes of fp8, which are exact in f16.
enum class UnitFrom { same, e4m3, e5m2 };

struct Units {
  const void* x;     // rows begin at multiples of 16 bytes
  int64_t x_stride;  // in elements
  const uint8_t* w;
  const float* x_blocks;  // scales of 128 columns of x, or null
  int64_t x_blocks_stride;
  int32_t k, units, panels;  // units: along K
  int32_t unit_bytes;
  int32_t cluster_panels, more_panels, block_units, more_units;
  int32_t x_at, sums_at, blocks_at;  // in shared memory
  DType scale_dtype;                 // of the scales in a unit
  Finish finish;
};

// kParts: groups of K in a unit; 0: its scales are in Finish. kTiles: of 8 rows of x. kBlocks:
// scales of 128 columns of x.
template <UnitX kX_, int kParts_, UnitFrom kFrom_, int kTiles_, int kWarps_, bool kBlocks_>
struct UnitShape {
  static constexpr UnitX kX = kX_;
  static constexpr UnitFrom kFrom = kFrom_;
  static constexpr int kParts = kParts_, kTiles = kTiles_, kWarps = kWarps_;
  static constexpr bool kBlocks = kBlocks_;
  static constexpr bool kBytes = kX == UnitX::s8, kHalf = kX == UnitX::f16;
  static constexpr bool kScaled = kParts > 0 || kBlocks;  // inside of K
  static constexpr bool kInteger = kBytes && !kScaled;
  using Sum = std::conditional_t<kBytes, int32_t, float>;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kDepth = kWarps > 8 ? 2 : 3;
  static constexpr int kSlot = kFragCodes + kParts * 256;
  static constexpr int kRing = kWarps * kDepth * kSlot;
  static constexpr int kFirst = kRing + kWarps * kDepth * 8;  // bytes before sWarps and x
  static constexpr int kProducts = kBytes ? 4 : 8;            // of a strip and a unit
  static constexpr int kPieces = kProducts / 2;               // of x: 64 bytes of a row
  // What sums of the upper and lower rows are multiplied by.
  static constexpr float kUpper = kBytes ? 1.0f / 16 : 1.0f;
  static constexpr float kLower = kBytes ? 1.0f / 16 : kLowerRows<kHalf>;
};

// Two codes of fp8 as f16, exactly.
template <bool kE5m2>
__device__ __forceinline__ uint32_t fp8_as_f16(uint32_t two) {
  if constexpr (kE5m2) return __byte_perm(two, 0, 0x1404);
  uint32_t r;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(static_cast<uint16_t>(two)));
  return r;
}

// How a thread reads x: runs of eight columns of a row, of bytes sixteen.
template <class S>
struct UnitRun {
  static constexpr bool kWide = !S::kBytes && S::kFrom == UnitFrom::same;
  static constexpr int kColumns = S::kBytes ? 16 : 8;
  using Element = std::conditional_t<kWide, uint16_t, uint8_t>;
  using Vector = std::conditional_t<kWide || S::kBytes, uint4, uint2>;
};

// The run that ends the row, where K is no multiple of runs: zeros beyond the last column.
template <class S>
__device__ __forceinline__ typename UnitRun<S>::Vector unit_tail(
    const typename UnitRun<S>::Element* at, int count) {
  constexpr int kSize = sizeof(typename UnitRun<S>::Element), kEach = 4 / kSize;
  uint32_t words[4] = {};
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const uint32_t v = uint32_t{at[i]} << i % kEach * kSize * 8;
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] |= i / kEach == j ? v : 0;
  }
  if constexpr (sizeof(typename UnitRun<S>::Vector) == 16) {
    return {words[0], words[1], words[2], words[3]};
  } else {
    return {words[0], words[1]};
  }
}

// A run as four words, each of what one lane multiplies: columns 2 i and 2 i + 1, of bytes 2 i, +
// 8,
// + 1 and + 9.
template <class S>
__device__ __forceinline__ uint4 unit_words(const typename UnitRun<S>::Vector& run) {
  if constexpr (S::kBytes) {
    return {__byte_perm(run.x, run.z, 0x5140), __byte_perm(run.x, run.z, 0x7362),
            __byte_perm(run.y, run.w, 0x5140), __byte_perm(run.y, run.w, 0x7362)};
  } else if constexpr (S::kFrom == UnitFrom::same) {
    return run;
  } else {
    constexpr bool kE5m2 = S::kFrom == UnitFrom::e5m2;
    return {fp8_as_f16<kE5m2>(run.x & 0xFFFF), fp8_as_f16<kE5m2>(run.x >> 16),
            fp8_as_f16<kE5m2>(run.y & 0xFFFF), fp8_as_f16<kE5m2>(run.y >> 16)};
  }
}

// x from column `from` on, as [k / 32, or / 64 of bytes][m][4 lanes][16 bytes]: a lane's operands
// of two products. A thread takes a run to four lanes. `asked` is called once, when all of x has
// been asked for.
template <class S, class F>
__device__ __forceinline__ void unit_fill(const Units& p, int from, int units, uint8_t* sX,
                                          const F& asked) {
  using Run = UnitRun<S>;
  constexpr int kTogether = S::kTiles == 1 ? 4 : 8;  // that a thread asks for at a time
  const uint32_t m = p.finish.m, items = units * S::kPieces * 4 * m;
  // Every block begins elsewhere: all at one place would wait for the same few slices of L2.
  const uint32_t turned = items / 32 * blockIdx.x / gridDim.x * 32;
#pragma unroll 1
  for (uint32_t first = 0; first < items; first += S::kThreads * kTogether) {
    typename Run::Vector run[kTogether];
    const typename Run::Element* at[kTogether];
    int left[kTogether];  // columns
    uint32_t item[kTogether];
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      const uint32_t i = first + t * S::kThreads + threadIdx.x, there = i + turned;
      item[t] = there < items ? there : there - items;
      const uint32_t row = item[t] / 4, block = row / m, token = row - block * m;
      const int k = from + (block * 4 + item[t] % 4) * Run::kColumns;
      at[t] = static_cast<const typename Run::Element*>(p.x) + token * p.x_stride + k;
      left[t] = i < items ? p.k - k : -1;
      run[t] = {};
      // One instruction under a condition: a branch here would wait for one load after the other.
      if (left[t] >= Run::kColumns) {
        run[t] = *reinterpret_cast<const typename Run::Vector*>(at[t]);
      }
    }
    if (first + S::kThreads * kTogether >= items) asked();
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      if (first + t * S::kThreads + threadIdx.x >= items) break;
      if (left[t] > 0 && left[t] < Run::kColumns) run[t] = unit_tail<S>(at[t], left[t]);
      uint4 w = unit_words<S>(run[t]);
      // Threads whose rows would meet in one bank begin at another lane.
      const uint32_t i = item[t], turn = i / 8 % 4;
      if (turn & 1) w = {w.y, w.z, w.w, w.x};
      if (turn & 2) w = {w.z, w.w, w.x, w.y};
      const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        *reinterpret_cast<uint32_t*>(sX + i / 4 * 64 + (j + turn) % 4 * 16 + i % 4 * 4) = words[j];
      }
    }
  }
}

// Word i of the four that a lane has of a strip and half a unit.
__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The fragments of product `j` of a strip and half a unit.
template <class S>
__device__ __forceinline__ void unit_fragments(const uint4& codes, int j, uint32_t (&a)[4]) {
  if constexpr (S::kBytes) {
    // Codes less 8 as the high bits of bytes: 16 times their value.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t w = word_of(codes, j * 2 + i);
      a[i * 2] = ((w << 4) & 0xF0F0F0F0u) ^ 0x80808080u;
      a[i * 2 + 1] = (w & 0xF0F0F0F0u) ^ 0x80808080u;
    }
  } else {
    decode_step<S::kHalf>(word_of(codes, j), minus_of<S::kHalf>(8, false),
                          minus_of<S::kHalf>(8, true), a);
  }
}

// Scales of rows quad, quad + 8 and so on of a group.
__device__ __forceinline__ void unit_scales(const uint8_t* at, DType dtype, int group, int quad,
                                            float (&scales)[8]) {
  const int first = group * 64 + quad;
  if (dtype == DType::f32) {
#pragma unroll
    for (int i = 0; i < 8; ++i) scales[i] = load_float(at, DType::f32, first + i * 8);
  } else {
    const auto* const half = reinterpret_cast<const uint16_t*>(at) + first;
#pragma unroll
    for (int i = 0; i < 8; ++i) scales[i] = float_of(dtype, half[i * 8]);
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) unit_kernel(const __grid_constant__ Units p) {
  using Sum = typename S::Sum;
  extern __shared__ __align__(128) uint8_t unit_shared[];
  uint8_t* const shared = unit_shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane / 4, q = lane % 4;
  const int blocks = gridDim.y, rank = blockIdx.y;  // of the cluster
  const int m = p.finish.m;
  // The first `more` clusters have one panel more than the others, as blocks have units.
  const int panels = p.cluster_panels + (static_cast<int>(blockIdx.x) < p.more_panels);
  const int panel_first =
      blockIdx.x * p.cluster_panels + min(static_cast<int>(blockIdx.x), p.more_panels);
  const int count = p.block_units + (rank < p.more_units);
  const int begin = rank * p.block_units + min(rank, p.more_units);
  const int total = panels * count;
  const uint32_t warps = max(1, min(S::kWarps, total));  // that have any
  const int mine = total * min(warp, warps) / warps, last = total * min(warp + 1, warps) / warps;
  const int start_panel =
      count > 0 ? static_cast<uint32_t>(mine) / static_cast<uint32_t>(count) : 0;
  const int start_unit = mine - start_panel * count;

  uint8_t* const ring = shared + warp * (S::kDepth * S::kSlot);
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + S::kRing) + warp * S::kDepth;
  uint8_t* const sX = shared + p.x_at;
  float* const sums = reinterpret_cast<float*>(shared + p.sums_at);       // [panel + warp][m][68]
  float* const sBlocks = reinterpret_cast<float*>(shared + p.blocks_at);  // [count][kTiles * 8]
  // The first and the last warp of a panel, a byte each.
  uint8_t* const sWarps = shared + S::kFirst;

  // The walk of the copies, of lane 0: bytes of the next unit, and how many are left in its panel.
  const uint8_t* ask_at =
      p.w + (int64_t{panel_first + start_panel} * p.units + begin + start_unit) * p.unit_bytes;
  const int64_t panel_step = int64_t{p.units - count} * p.unit_bytes;
  int ask_left = count - start_unit, ask_index = mine;
  const auto ask = [&](int slot) {
    if (ask_index < last) {
      barrier_expect(&full[slot], p.unit_bytes);
      bulk_load(ring + slot * S::kSlot, ask_at, p.unit_bytes, &full[slot], evict_first());
      ask_at += p.unit_bytes;
      if (--ask_left == 0) {
        ask_at += panel_step;
        ask_left = count;
      }
      ++ask_index;
    }
  };
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < S::kDepth; ++i) barrier_init(&full[i], 1);
    barrier_init_fence();
  }
  wait_for_others();
  // x is asked for before w: behind all that the rings ask for it would wait for some microseconds.
  unit_fill<S>(p, begin * 128, count, sX, [&] {
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < S::kDepth; ++i) ask(i);
    }
  });
  if constexpr (S::kBlocks) {
    constexpr int kTokens = S::kTiles * 8;
    for (int i = threadIdx.x; i < count * kTokens; i += S::kThreads) {
      const int token = i % kTokens;
      sBlocks[i] = token < m ? p.x_blocks[token * p.x_blocks_stride + begin + i / kTokens] : 0.0f;
    }
  }
  __syncthreads();

  // A lane's columns of x; beyond the last one it reads that again: nobody looks at those.
  const uint8_t* own_x[S::kTiles];
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) own_x[t] = sX + min(t * 8 + quad, m - 1) * 64 + q * 16;
  const int piece = m * 64;
  Ring<S::kDepth> at;
  int panel = start_panel, unit = start_unit;
  for (int index = mine; index < last;) {
    const int panel_end = (panel + 1) * count, run_end = min(last, panel_end);
    if (lane == 0) {
      if (index == panel_end - count) sWarps[panel * 2] = warp;
      if (run_end == panel_end) sWarps[panel * 2 + 1] = warp;
    }
    Sum part[4][S::kTiles][4] = {};
    float scaled[4][S::kTiles][4] = {};
    int x_at = unit * S::kPieces * piece;
    for (; index < run_end; ++index) {
      barrier_wait(&full[at.slot], at.parity);
      const uint8_t* const slot = ring + at.slot * S::kSlot;
      float factors[S::kTiles][2];  // of rows of x
      if constexpr (S::kBlocks) {
#pragma unroll
        for (int t = 0; t < S::kTiles; ++t) {
          const float2 two =
              *reinterpret_cast<const float2*>(sBlocks + (unit * S::kTiles + t) * 8 + q * 2);
          factors[t][0] = two.x, factors[t][1] = two.y;
        }
        ++unit;
      }
      const auto scale = [&](int group) {
        float scales[8];
        if constexpr (S::kParts > 0) {
          unit_scales(slot + kFragCodes, p.scale_dtype, group, quad, scales);
        }
#pragma unroll
        for (int s = 0; s < 4; ++s) {
#pragma unroll
          for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float by = 1.0f;
              if constexpr (S::kParts > 0) by = scales[s * 2 + i / 2];
              if constexpr (S::kBlocks) by *= factors[t][i % 2];
              scaled[s][t][i] = fmaf(static_cast<float>(part[s][t][i]), by, scaled[s][t][i]);
              part[s][t][i] = 0;
            }
          }
        }
      };
      // Halves one after the other: half as much code.
#pragma unroll 1
      for (int h = 0; h < 2; ++h) {
        uint4 codes[4], x[S::kTiles][S::kPieces / 2];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          codes[s] = *reinterpret_cast<const uint4*>(slot + h * 2048 + s * 512 + lane * 16);
        }
#pragma unroll
        for (int i = 0; i < S::kPieces / 2; ++i) {
#pragma unroll
          for (int t = 0; t < S::kTiles; ++t) {
            x[t][i] = *reinterpret_cast<const uint4*>(own_x[t] + x_at);
          }
          x_at += piece;
        }
#pragma unroll
        for (int j = 0; j < S::kProducts / 2; ++j) {
#pragma unroll
          for (int s = 0; s < 4; ++s) {
            uint32_t a[4];
            unit_fragments<S>(codes[s], j, a);
#pragma unroll
            for (int t = 0; t < S::kTiles; ++t) {
              const uint32_t b0 = word_of(x[t][j / 2], j % 2 * 2);
              const uint32_t b1 = word_of(x[t][j / 2], j % 2 * 2 + 1);
              if constexpr (S::kBytes) {
                mma_s8(part[s][t], a, b0, b1);
              } else {
                mma_16bit<S::kHalf>(part[s][t], a, b0, b1);
              }
            }
          }
          if constexpr (S::kParts > 1) {
            constexpr int kPer = S::kProducts / S::kParts;  // products of a part
            if ((j + 1) % kPer == 0) scale(h * S::kParts / 2 + j / kPer);
          }
        }
      }
      if constexpr (S::kScaled && S::kParts <= 1) scale(0);
      __syncwarp();
      if (lane == 0) ask(at.slot);  // into the slot that was just read
      advance(at);
    }
    float* const to = sums + (panel + warp) * m * kUnitStride;
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int token = t * 8 + q * 2 + h;
        if (token >= m) continue;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float v;
            if constexpr (S::kInteger) {
              v = __int_as_float(part[s][t][i * 2 + h]);
            } else {
              v = S::kScaled ? scaled[s][t][i * 2 + h] : static_cast<float>(part[s][t][i * 2 + h]);
              v *= i == 0 ? S::kUpper : S::kLower;
            }
            to[token * kUnitStride + s * 16 + i * 8 + quad] = v;
          }
        }
      }
    }
    ++panel;
    unit = 0;
  }
  __syncthreads();

  // The sums of the block's warps, into the place of the first of them.
  const auto add = [](float a, float b) {
    return S::kInteger ? __int_as_float(__float_as_int(a) + __float_as_int(b)) : a + b;
  };
  if (count > 0) {
#pragma unroll 1
    for (int item = threadIdx.x; item < panels * m * 16; item += S::kThreads) {
      const uint32_t row = item / 16, of = row / m, token = row - of * m;
      const int first = sWarps[of * 2], end = sWarps[of * 2 + 1];
      float* const to =
          sums + ((of + first) * m + token) * kUnitStride + static_cast<uint32_t>(item) % 16 * 4;
      float4 v = *reinterpret_cast<const float4*>(to);
#pragma unroll 4
      for (int w = first + 1; w <= end; ++w) {
        const float4 u = *reinterpret_cast<const float4*>(to + (w - first) * m * kUnitStride);
        v = {add(v.x, u.x), add(v.y, u.y), add(v.z, u.z), add(v.w, u.w)};
      }
      if (first != end) *reinterpret_cast<float4*>(to) = v;
    }
  }
  if (blocks == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }
#pragma unroll 1
  for (int item = threadIdx.x * blocks + rank; item < panels * m * 8;
       item += S::kThreads * blocks) {
    const uint32_t row = item / 8, of = row / m, token = row - of * m, c = item % 8 * 8;
    const int n = (panel_first + of) * 64 + c;
    if (n >= p.finish.n) continue;
    float v[8];
    const auto of_peer = [&](int r, float(&u)[8]) {
      // Blocks with as many units have cut them alike.
      const bool alike = p.block_units + (r < p.more_units) == count;
      const int own = sWarps[of * 2];
      const int first =
          alike ? own : cluster_load_byte(cluster_address(smem_address(sWarps + of * 2), r));
      const uint32_t address =
          cluster_address(smem_address(sums + ((of + first) * m + token) * kUnitStride + c), r);
      *reinterpret_cast<float4*>(u) = cluster_load(address);
      *reinterpret_cast<float4*>(u + 4) = cluster_load(address + 16);
    };
    if (blocks == 1) {
      const float* const at = sums + ((of + sWarps[of * 2]) * m + token) * kUnitStride + c;
      *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(at);
      *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(at + 4);
    } else {
      of_peer(0, v);
#pragma unroll 1
      for (int r = 1; r < blocks; r += 2) {  // two at a time, of which there is an odd number left
        float u[2][8];
        of_peer(r, u[0]);
        if (r + 1 < blocks) of_peer(r + 1, u[1]);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          v[j] = add(v[j], u[0][j]);
          if (r + 1 < blocks) v[j] = add(v[j], u[1][j]);
        }
      }
    }
    if (count == 0) {
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = 0.0f;
    }
    if constexpr (S::kInteger) {
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = static_cast<float>(__float_as_int(v[j])) * S::kUpper;
    }
    scale_row(p.finish, token, n, v);
    finish_row(p.finish, token, n, v);
  }
  if (blocks > 1) cluster_sync_read();  // peers may still read this block's sums
}

// How a call is cut; cluster 0: it does not fit.
struct UnitPlan {
  int cluster, clusters, shared;
};

// Clusters of so many blocks that the device holds at one time, with a multiprocessor for a block.
template <class S>
static Status unit_clusters(int cluster, int processors, int* count) {
  if (cluster == 1) {
    *count = processors;
    return ok();
  }
  static std::atomic<int> known[16][4];
  int device = 0;
  LB_TRY(launched(cudaGetDevice(&device)));
  std::atomic<int>& mine = known[device & 15][cluster / 4];  // 2, 4, 8: 0, 1, 2
  if (device < 16 && mine.load(std::memory_order_relaxed) > 0) {
    *count = mine.load(std::memory_order_relaxed);
    return ok();
  }
  cudaLaunchAttribute shape = {};
  shape.id = cudaLaunchAttributeClusterDimension;
  shape.val.clusterDim = {1, static_cast<unsigned>(cluster), 1};
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(static_cast<unsigned>(processors / cluster), static_cast<unsigned>(cluster));
  config.blockDim = dim3(S::kThreads);
  config.dynamicSmemBytes = kUnitShared;
  config.attrs = &shape;
  config.numAttrs = 1;
  LB_TRY(launched(cudaOccupancyMaxActiveClusters(count, unit_kernel<S>, &config)));
  if (device < 16) mine.store(*count, std::memory_order_relaxed);
  return ok();
}

// What the busiest block does, in units; the exchange of a cluster takes about as long as 6 of them
// in pairs of blocks, and as 30 in larger ones, by measurement.
template <class S>
static Status unit_plan(Units* p, int processors, UnitPlan* plan) {
  *plan = {};
  const int m = p->finish.m;
  int64_t best = 0;
  for (int cluster = 1; cluster <= 8; cluster *= 2) {
    if (cluster > 1 && cluster > p->units) break;
    int clusters = 0;
    LB_TRY(unit_clusters<S>(cluster, processors, &clusters));
    if (clusters > p->panels) clusters = p->panels;
    if (clusters == 0) break;
    const int64_t panels = ceil_div(p->panels, clusters), count = ceil_div(p->units, cluster);
    const int64_t x_at = round_up(S::kFirst + panels * 2, 128);
    const int64_t sums_at = x_at + count * S::kPieces * 64 * m;
    const int64_t blocks_at = sums_at + (panels + S::kWarps - 1) * m * kUnitStride * 4;
    const int64_t shared = blocks_at + (S::kBlocks ? count * S::kTiles * 32 : 0);
    if (shared > kUnitShared) continue;
    const int64_t cost = panels * count + (cluster == 1 ? 0 : cluster == 2 ? 6 : 30);
    if (plan->cluster > 0 && cost >= best) continue;
    best = cost;
    *plan = {cluster, clusters, static_cast<int>(shared)};
    p->x_at = static_cast<int32_t>(x_at);
    p->sums_at = static_cast<int32_t>(sums_at);
    p->blocks_at = static_cast<int32_t>(blocks_at);
    p->cluster_panels = p->panels / clusters;
    p->more_panels = p->panels % clusters;
    p->block_units = p->units / cluster;
    p->more_units = p->units % cluster;
  }
  return ok();
}

template <class S>
static Status launch_units(const Units& p, const UnitPlan& plan, const Ctx& ctx) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {1, static_cast<unsigned>(plan.cluster), 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  const int skip = plan.cluster > 1 ? 0 : 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.clusters), static_cast<unsigned>(plan.cluster));
  config.blockDim = dim3(S::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared);
  config.stream = static_cast<cudaStream_t>(ctx.stream);
  config.attrs = attributes + skip;
  config.numAttrs = (ctx.early ? 2 : 1) - skip;
  return launched(cudaLaunchKernelEx(&config, unit_kernel<S>, p));
}

// Rows [from, from + count) of x.
static inline Units unit_part(Units p, int from, int count, int x_size) {
  const Finish& f = p.finish;
  p.x = static_cast<const uint8_t*>(p.x) + from * p.x_stride * x_size;
  if (p.x_blocks != nullptr) p.x_blocks += from * p.x_blocks_stride;
  if (f.x_scale != nullptr) p.finish.x_scale = f.x_scale + from;
  const auto size = [](DType t) { return t == DType::f32 ? 4 : 2; };
  if (f.residual != nullptr) {
    p.finish.residual =
        static_cast<const uint8_t*>(f.residual) + from * f.residual_stride * size(f.residual_dtype);
  }
  p.finish.out = static_cast<uint8_t*>(f.out) + from * f.out_stride * size(f.out_dtype);
  p.finish.m = count;
  return p;
}

template <class S>
static Status try_units(Units p, const Ctx& ctx, bool* done) {
  static std::atomic<uint64_t> asked = 0;
  LB_TRY(launched(allow_shared(unit_kernel<S>, kUnitShared, asked)));
  UnitPlan plan;
  LB_TRY(unit_plan<S>(&p, ctx.multiprocessors, &plan));
  *done = plan.cluster > 0;
  return *done ? launch_units<S>(p, plan, ctx) : ok();
}

// Rows of x that are more than kMost or do not fit together go in parts.
template <UnitX kX, int kParts, UnitFrom kFrom, bool kBlocks, int kMost>
static Status run_units(const Units& p, int x_size, const Ctx& ctx) {
  const int m = p.finish.m;
  bool done = false;
  if (m <= 8) {
    LB_TRY((try_units<UnitShape<kX, kParts, kFrom, 1, 16, kBlocks>>(p, ctx, &done)));
  } else if (m <= kMost) {
    if constexpr (kMost > 8) {
      LB_TRY((try_units<UnitShape<kX, kParts, kFrom, 2, 12, kBlocks>>(p, ctx, &done)));
      // Fewer warps have fewer sums to lay down.
      if (!done) LB_TRY((try_units<UnitShape<kX, kParts, kFrom, 2, 8, kBlocks>>(p, ctx, &done)));
    }
  }
  if (done) return ok();
  if (m == 1) return error(Code::unsupported, "linear: K = %d is too long", p.k);
  const int half = m > kMost ? (m - 1) / kMost * kMost : (m + 1) / 2;
  const Units first = unit_part(p, 0, half, x_size), rest = unit_part(p, half, m - half, x_size);
  LB_TRY((run_units<kX, kParts, kFrom, kBlocks, kMost>(first, x_size, ctx)));
  return run_units<kX, kParts, kFrom, kBlocks, kMost>(rest, x_size, ctx);
}

// A call with int4 weights in frag64.
template <UnitX kX, int kMost, UnitFrom kFrom = UnitFrom::same>
static Status run_unit_call(const LinearArgs& args, const Matrix& x, const Ctx& ctx) {
  const Weight& w = args.w;
  const FragUnit unit = frag_unit(w.format, {w.n, w.k});
  const int size = static_cast<int>(dtype_bytes(args.x.dtype));
  Units p = {};
  p.x = x.data;
  p.x_stride = x.row_bytes / size;
  p.w = w.data;
  p.k = static_cast<int32_t>(w.k);
  p.units = static_cast<int32_t>(unit.units);
  p.panels = static_cast<int32_t>(ceil_div(w.n, kFragRows));
  p.unit_bytes = static_cast<int32_t>(unit.bytes);
  p.scale_dtype = w.format.scale_dtype;
  p.finish = finish_of(args, unit.groups > 0 ? nullptr : w.data + unit.end);
  if constexpr (kFrom != UnitFrom::same) {
    if (args.x_scale.rank == 2) {
      p.x_blocks = p.finish.x_scale;
      p.x_blocks_stride = args.x_scale.strides[0];
      p.finish.x_scale = nullptr;
      switch (unit.groups) {
        case 0: return run_units<kX, 0, kFrom, true, kMost>(p, size, ctx);
        case 1: return run_units<kX, 1, kFrom, true, kMost>(p, size, ctx);
        case 2: return run_units<kX, 2, kFrom, true, kMost>(p, size, ctx);
        default: return run_units<kX, 4, kFrom, true, kMost>(p, size, ctx);
      }
    }
  }
  switch (unit.groups) {
    case 0: return run_units<kX, 0, kFrom, false, kMost>(p, size, ctx);
    case 1: return run_units<kX, 1, kFrom, false, kMost>(p, size, ctx);
    case 2: return run_units<kX, 2, kFrom, false, kMost>(p, size, ctx);
    default: return run_units<kX, 4, kFrom, false, kMost>(p, size, ctx);
  }
}

}  // namespace
}  // namespace lowbit
