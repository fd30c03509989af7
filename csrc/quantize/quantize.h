// quantize_rows: activations [M, K] to codes with a scale for each row or each block of 128
// columns. dequantize_rows: back.
//
//   floats  [M, K], rows contiguous; f32, f16 or bf16
//   codes   [M, K], rows contiguous; i8, e4m3 or e5m2
//   scale   f32 [M], or f32 [M, ceil(K / 128)]; rows contiguous
//
// quantize_rows    scale = max(max|x| / limit, 1e-12), code = x / scale rounded to nearest even, in
//                  f32; limit is 127 for i8, 448 for e4m3, 57344 for e5m2. A run that holds NaN or
//                  inf gets a NaN scale and codes 0; an empty one the scale 1e-12.
// dequantize_rows  x = code * scale in f32, rounded to x's dtype
// M = 0 and K = 0 are fine. The outputs may not share memory with the input.
#pragma once

#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"
#include "csrc/quantize/rows.h"

namespace lowbit {

struct QuantizeArgs {
  Tensor floats;
  Tensor codes;
  Tensor scale;
  bool inverse;  // dequantize_rows: floats is the output
};

struct QuantizeSpec {
  DTypeSet floats, codes;
};

using QuantizeKernel = Kernel<QuantizeArgs, QuantizeSpec>;
struct QuantizeTable {
  const QuantizeKernel* const* rows;
  int count;
};
QuantizeTable quantize_table();

// Shapes of codes and scale for given floats; `codes` is the dtype asked for, `by_block` the kind
// of scale.
Status quantize_infer(const Tensor& floats, DType codes, bool by_block, Tensor* out_codes,
                      Tensor* out_scale);
Status quantize_check(const QuantizeArgs& args);
Status quantize_select(const QuantizeArgs& args, const Choice& choice, const QuantizeKernel** row);
size_t quantize_workspace(const QuantizeArgs& args, const QuantizeKernel& row, int threads);
Status quantize_run(const QuantizeArgs& args, const QuantizeKernel& row, const Ctx& ctx);

}  // namespace lowbit
