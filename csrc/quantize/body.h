// The loops of quantize_rows and dequantize_rows, compiled once under the flags of each row's file.
//
// Bound     memory: 4 bytes of f32 read (twice, the second time from L1 or L2) and 1 written.
// Method    a row or a block of 128 columns at a time; floats of other dtypes pass through a short
//           buffer.
#pragma once

#include "csrc/base/threads.h"
#include "csrc/format/format.h"
#include "csrc/quantize/quantize.h"

namespace lowbit {

inline constexpr int64_t kTaskElements =
    16384;                               // about 10 us of work, far above the cost of a task
inline constexpr int64_t kBuffer = 512;  // floats of a buffer on the stack, 2 KiB of L1

// One run of one row whose floats are not f32: the maximum of all its pieces first, then the codes.
static inline float quantize_converted(const Tensor& from, int64_t first, int64_t count,
                                       DType dtype, uint8_t* codes) {
  float buffer[kBuffer];
  float largest = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < count; i += kBuffer) {
    const int64_t width = count - i < kBuffer ? count - i : kBuffer;
    load_floats(from.data, from.dtype, first + i, width, buffer);
    const float piece = largest_of(buffer, width);
    finite = finite && piece == piece;
    largest = piece > largest ? piece : largest;
  }
  const float scale = finite ? scale_for(largest, dtype) : bits_float(0x7fc00000u);
  for (int64_t i = 0; i < count; i += kBuffer) {
    const int64_t width = count - i < kBuffer ? count - i : kBuffer;
    load_floats(from.data, from.dtype, first + i, width, buffer);
    codes_of(buffer, width, scale, dtype, codes + i);
  }
  return scale;
}

static inline void dequantize_piece(const QuantizeArgs& args, int64_t m, int64_t k0, int64_t count,
                                    float scale) {
  float buffer[kBuffer];
  for (int64_t i = 0; i < count; i += kBuffer) {
    const int64_t width = count - i < kBuffer ? count - i : kBuffer;
    load_floats(args.codes.data, args.codes.dtype, m * args.codes.strides[0] + k0 + i, width,
                buffer);
    for (int64_t j = 0; j < width; ++j) buffer[j] *= scale;
    store_floats(args.floats.data, args.floats.dtype, m * args.floats.strides[0] + k0 + i, width,
                 buffer);
  }
}

static inline void quantize_row(const QuantizeArgs& args, int64_t m) {
  const int64_t k = args.codes.shape[1];
  const bool by_block = args.scale.rank == 2;
  const int64_t runs = by_block ? args.scale.shape[1] : 1;
  float* scale = static_cast<float*>(args.scale.data) + m * args.scale.strides[0];
  for (int64_t r = 0; r < runs; ++r) {
    const int64_t k0 = r * kScaleBlock;
    const int64_t count = by_block && k - k0 > kScaleBlock ? kScaleBlock : k - k0;
    if (args.inverse) {
      dequantize_piece(args, m, k0, count, scale[r]);
      continue;
    }
    const int64_t first = m * args.floats.strides[0] + k0;
    uint8_t* codes = static_cast<uint8_t*>(args.codes.data) + m * args.codes.strides[0] + k0;
    scale[r] = args.floats.dtype == DType::f32
                   ? quantize_span(static_cast<const float*>(args.floats.data) + first, count,
                                   args.codes.dtype, codes)
                   : quantize_converted(args.floats, first, count, args.codes.dtype, codes);
  }
}

static inline Status quantize_rows_body(const QuantizeArgs& args, const Ctx& ctx) {
  const int64_t m = args.codes.shape[0], k = args.codes.shape[1];
  const int64_t grain = k == 0 ? 64 : kTaskElements / k + 1;
  parallel_for(ctx.pool, m, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) quantize_row(args, i);
  });
  return ok();
}

inline constexpr QuantizeSpec kQuantizeAll = {kFloats, kCodeDTypes};

}  // namespace lowbit
