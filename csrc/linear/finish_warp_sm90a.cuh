// The end of a tile of wgmma, each warp by itself: its 16 rows go through shared memory of its own
// to rows of out, so that no warp waits for another. All blocks end their tiles at about one time,
// so where results leave through the copy engine the next products need not wait for the writes.
#pragma once

#include "csrc/cuda/stmatrix.cuh"
#include "csrc/cuda/swizzle.cuh"
#include "csrc/cuda/tma.cuh"
#include "csrc/linear/finish.cuh"

namespace lowbit {
namespace {

inline constexpr int kWarpPatch = 2048;  // bytes of shared memory of a warp

// Where the scale of column c of a tile lies, and its bias two floats on: those of a pair of
// columns together, so that one load brings all four.
__device__ __forceinline__ float* column_slot(float* columns, int c) {
  return columns + c / 2 * 4 + c % 2;
}
__device__ __forceinline__ void set_column(float* columns, int c, float scale, float bias) {
  float* const to = column_slot(columns, c);
  to[0] = scale, to[2] = bias;
}

// Sums of 16 rows of 64 columns in 16 bits, from column 8 * first on, into the swizzled tile `to`.
template <DType kOut, class Scaled>
__device__ __forceinline__ void pack_warp(uint8_t* to, int first, int cols, const Scaled& scaled) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 4; ++j) {  // 16 columns each
    if (j * 16 >= cols) break;
    uint32_t words[4];
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      float v[4];
      scaled(first + j * 2 + q, v);
      words[2 * q] = pack_pair(kOut, v[0], v[1]);
      words[2 * q + 1] = pack_pair(kOut, v[2], v[3]);
    }
    stmatrix(to + swizzled(lane % 16, j * 32 + lane / 16 * 16), words);
  }
}

// Both ways to store 16 rows by kCols columns in 16 bits, from row `row` and column `col` of out
// on. scaled(i, v) gives the warp's sums of columns 8 * i to 8 * i + 7 with scales and bias: v[0]
// and v[1] of row lane / 4, v[2] and v[3] of the row 8 below. The dtype of out is a template value,
// because a choice for every pair of values takes more instructions than all else here.

// By the copy engine, kBoxes times 64 columns at a time; the warp's part of a box is 2 KB, boxes
// are 8 KB apart. `map` has boxes of 16 rows.
template <int kCols, int kBoxes, DType kOut, class Scaled>
__device__ __forceinline__ void send_warp(const CUtensorMap* map, uint8_t* boxes, int row, int col,
                                          const Scaled& scaled) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int at = 0; at < kCols; at += kBoxes * 64) {
    if (lane == 0) store_wait_read();
    __syncwarp();
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      if (at + box * 64 < kCols) pack_warp<kOut>(boxes + box * 8192, at / 8 + box * 8, 64, scaled);
    }
    async_fence();
    __syncwarp();
    if (lane == 0) {
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        if (at + box * 64 < kCols) tma_store(map, boxes + box * 8192, col + at + box * 64, row);
      }
      store_commit();
    }
  }
}

// By ordinary stores, for tiles that are no multiple of 64 columns.
template <int kCols, DType kOut, class Scaled>
__device__ __forceinline__ void store_warp(const Finish& f, uint8_t* patch, int row, int col,
                                           const Scaled& scaled) {
  const int lane = threadIdx.x % 32, r = lane / 8, c = lane % 8;
  uint8_t* out[4];  // of a lane: 16 bytes of rows r, r + 4, r + 8, r + 12
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<uint8_t*>(f.out) + ((row + r + i * 4) * f.out_stride + col + c * 8) * 2;
  }
  const int rows = f.m - row - r;
  const bool whole = col + kCols <= f.n;
#pragma unroll
  for (int at = 0; at < kCols; at += 64) {
    pack_warp<kOut>(patch, at / 8, kCols - at, scaled);
    __syncwarp();
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = *reinterpret_cast<const uint4*>(patch + swizzled(i * 4 + r, c * 16));
    }
    __syncwarp();
    if (whole) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i * 4 < rows && at + c * 8 < kCols) *reinterpret_cast<uint4*>(out[i] + at * 2) = v[i];
      }
    } else {
      const int left = min(kCols - at, f.n - col - at) - c * 8;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if (i * 4 < rows && e < left) {
            reinterpret_cast<uint16_t*>(out[i] + at * 2)[e] = words[e / 2] >> e % 2 * 16;
          }
        }
      }
    }
  }
}

// Any finish: 32 columns of f32 at a time.
template <int kCols, class Scaled>
__device__ __forceinline__ void walk_warp(const Finish& f, uint8_t* patch, int row, int col,
                                          const Scaled& scaled) {
  const int lane = threadIdx.x % 32;
  // Written as accumulators lie, read back in runs of 8 columns.
  float* const sums = reinterpret_cast<float*>(patch);
#pragma unroll
  for (int at = 0; at < kCols; at += 32) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (at + j * 8 >= kCols) break;
      float v[4];
      scaled(at / 8 + j, v);
      // Chunks of 16 bytes are XORed with the row, for the banks.
      const int r = lane / 4, c = (j * 2 + lane % 4 / 2) ^ (r & 7);
      float* const to = sums + r * 32 + c * 4 + lane % 2 * 2;
      *reinterpret_cast<float2*>(to) = float2{v[0], v[1]};
      *reinterpret_cast<float2*>(to + 8 * 32) = float2{v[2], v[3]};
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < 16 * 4; i += 32) {
      const int r = i / 4, c = i % 4;
      if (at + c * 8 >= kCols) continue;
      float v[8];
      *reinterpret_cast<float4*>(v) =
          *reinterpret_cast<const float4*>(sums + r * 32 + ((2 * c) ^ (r & 7)) * 4);
      *reinterpret_cast<float4*>(v + 4) =
          *reinterpret_cast<const float4*>(sums + r * 32 + ((2 * c + 1) ^ (r & 7)) * 4);
      finish_row(f, row + r, col + at + c * 8, v);
    }
    __syncwarp();
  }
}

}  // namespace
}  // namespace lowbit
