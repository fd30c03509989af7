// tile_sm80.cuh for weights that lie row-major as the tensor cores multiply them: bf16, f16, int8.
#pragma once

#include "csrc/format/layout.h"
#include "csrc/linear/tile_sm80.cuh"

namespace lowbit {
namespace {

enum class Dense { bf16, f16, int8 };

template <Dense kDense>
struct DenseW {
  using Sum = std::conditional_t<kDense == Dense::int8, int32_t, float>;
  static constexpr int kBytes = kTileRows * 128, kBeside = 0;
  static constexpr bool kScaled = false, kPrepares = false;
  struct Call {
    const uint8_t* data;  // rows begin at multiples of 16 bytes
    int64_t row_bytes;
    int32_t rows;
  };

  const Call& call;
  const int row0;

  __device__ __forceinline__ DenseW(const Call& c, int row, uint8_t*) : call(c), row0(row) {}

  __device__ __forceinline__ void load(int stage, uint8_t* sW) const {
    const int t = threadIdx.x;
    const int64_t from = int64_t{stage} * 128 + t % 8 * 16;
    const uint8_t* const at = call.data + (row0 + t / 8) * call.row_bytes + from;
#pragma unroll
    for (int r = 0; r < kTileRows; r += kTileThreads / 8) {
      const bool there = row0 + r + t / 8 < call.rows && from < call.row_bytes;
      cp_async_16(smem_address(sW) + swizzled(r + t / 8, t % 8 * 16),
                  there ? at + r * call.row_bytes : call.data, there ? 16 : 0);
    }
  }
  __device__ __forceinline__ void begin(const uint8_t*, int) {}
  __device__ __forceinline__ void fragment(const uint8_t* sW, int step, int strip, int,
                                           uint32_t (&a)[4]) const {
    const int lane = threadIdx.x % 32;
    ldmatrix(smem_address(sW) + swizzled(strip * 16 + lane % 16, step * 32 + lane / 16 * 16), a[0],
             a[1], a[2], a[3]);
  }
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
    if constexpr (kDense == Dense::int8) {
      mma_s8(d, a, b0, b1);
    } else {
      mma_16bit<kDense == Dense::f16>(d, a, b0, b1);
    }
  }
};

template <Dense kDense>
static Status run_dense_sm80(const LinearArgs& args, const Ctx& ctx) {
  const Weight& w = args.w;
  const bool scaled = kind_row(w.format.kind).scaled;
  const uint8_t* scales =
      scaled ? w.data + scale_at(w.layout, w.format, {w.n, w.k}, 0, 0) : nullptr;
  return run_tiles<DenseW<kDense>>(
      args, {w.data, code_row_bytes(w.format.kind, w.k), static_cast<int32_t>(w.n)},
      finish_of(args, scales), ctx);
}

}  // namespace
}  // namespace lowbit
