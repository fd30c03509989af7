// tile_sm80.cuh for int4 weights in frag64: a stage is half a unit of two panels of 64 rows, of
// which a lane's 16 bytes are its fragments of four steps. Codes become floats in registers
// (decode_int4.cuh); products of a group of K are added in the tensor core, their sum enters the
// total times its scale.
#pragma once

#include "csrc/format/layout.h"
#include "csrc/linear/decode_int4.cuh"
#include "csrc/linear/few_int4_sm80.cuh"
#include "csrc/linear/tile_sm80.cuh"

namespace lowbit {
namespace {

template <bool kHalf>
struct FragmentW {
  using Sum = float;
  static constexpr int kCodes = kFragCodes / 2, kScales = 2 * kFragRows * 4;  // of a panel
  static constexpr int kPanel = kCodes + kScales, kBytes = 2 * kPanel, kBeside = 0;
  static constexpr bool kScaled = true, kPrepares = false;
  struct Call {
    const uint8_t* data;
    int64_t panel_bytes;
    int32_t unit_bytes, panels;
    int32_t groups;     // of K in a unit; 0: the scales are in Finish
    int32_t row_bytes;  // of the scales of 64 rows
    DType scale_dtype;
  };

  const Call& call;
  const int panel0;
  uint4 codes[2];  // of a stage, for two strips

  __device__ __forceinline__ FragmentW(const Call& c, int row, uint8_t*)
      : call(c), panel0(row / kFragRows) {}

  __device__ __forceinline__ void load(int stage, uint8_t* sW) const {
    const int p = threadIdx.x / 128, i = threadIdx.x % 128, half = stage % 2;
    if (panel0 + p >= call.panels) return;
    const uint8_t* const unit =
        call.data + (panel0 + p) * call.panel_bytes + int64_t{stage / 2} * call.unit_bytes;
    const uint32_t to = smem_address(sW) + p * kPanel;
    cp_async_16(to + i * 16, unit + half * kCodes + i * 16, 16);
    // A group of all of the unit comes with both halves.
    const int inside = call.groups == 4 ? 2 : min(call.groups, 1);
    if (i * 16 < inside * call.row_bytes) {
      const int first = call.groups > 1 ? half * (call.groups / 2) : 0;
      cp_async_16(to + kCodes + i * 16, unit + kFragCodes + first * call.row_bytes + i * 16, 16);
    }
  }
  static __device__ __forceinline__ const uint8_t* panel_of(const uint8_t* sW, int strip) {
    return sW + strip / 4 * kPanel;
  }
  __device__ __forceinline__ void begin(const uint8_t* sW, int strip) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      // Of one strip the second load is never used, and the compiler leaves it out.
      const int at = min(strip + s, 7);
      codes[s] =
          *reinterpret_cast<const uint4*>(panel_of(sW, at) + at % 4 * 512 + threadIdx.x % 32 * 16);
    }
  }
  __device__ __forceinline__ void fragment(const uint8_t*, int step, int, int s,
                                           uint32_t (&a)[4]) const {
    const uint32_t words[4] = {codes[s].x, codes[s].y, codes[s].z, codes[s].w};
    decode_step<kHalf>(words[step], minus_of<kHalf>(8, false), minus_of<kHalf>(8, true), a);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    mma_16bit<kHalf>(d, a, b0, b1);
  }
  __device__ __forceinline__ bool ends(int step) const {
    return step == kTileSteps - 1 || (step == 1 && call.groups == 4);
  }
  __device__ __forceinline__ void scale(const uint8_t* sW, int step, int strip,
                                        float (&scale)[2]) const {
    scale[0] = scale[1] = 1.0f;
    if (call.groups > 0) {
      const int group = call.groups == 4 ? step / 2 : 0;
      const uint8_t* const scales = panel_of(sW, strip) + kCodes;
      const int row = group * kFragRows + strip % 4 * 16 + threadIdx.x % 32 / 4;
      scale[0] = load_float(scales, call.scale_dtype, row);
      scale[1] = load_float(scales, call.scale_dtype, row + 8);
    }
    scale[1] *= kLowerRows<kHalf>;
  }
};

template <bool kHalf>
static Status run_tile_int4(const LinearArgs& args, const Ctx& ctx) {
  const Weight& w = args.w;
  const FragUnit unit = frag_unit(w.format, {w.n, w.k});
  typename FragmentW<kHalf>::Call call = {};
  call.data = w.data;
  call.panel_bytes = unit.units * unit.bytes;
  call.unit_bytes = static_cast<int32_t>(unit.bytes);
  call.panels = static_cast<int32_t>(ceil_div(w.n, kFragRows));
  call.groups = static_cast<int32_t>(unit.groups);
  call.row_bytes = static_cast<int32_t>(kFragRows * dtype_bytes(w.format.scale_dtype));
  call.scale_dtype = w.format.scale_dtype;
  return run_tiles<FragmentW<kHalf>>(
      args, call, finish_of(args, unit.groups > 0 ? nullptr : w.data + unit.end), ctx);
}

template <bool kHalf>
static Status run_int4_sm80(const LinearArgs& args, const Ctx& ctx) {
  return args.x.shape[0] <= 16 ? run_few_int4<kHalf>(args, ctx) : run_tile_int4<kHalf>(args, ctx);
}

}  // namespace
}  // namespace lowbit
