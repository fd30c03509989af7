// copy: out = x, whatever the strides of either, rounded to nearest even where out's dtype is
// narrower.
//
//   x      any shape, dtype and strides
//   out    the shape of x, any strides: a slice of a cache, for one. x's dtype, or any floating
//          dtype (f32, f16, bf16, e4m3, e5m2) where x's is floating. May be x itself (the same
//          view, elements as wide); shares no memory with x otherwise
//   dtype  of an out that the library makes; none: x's
//
// Between equal dtypes bits are kept; between different ones NaN stays NaN, e4m3 and e5m2 saturate.
#pragma once

#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"

namespace lowbit {

struct CopyArgs {
  Tensor x, out;
  DType dtype;
};

struct CopySpec {
  DTypeSet dtypes;  // of x and out, where they differ
};

using CopyKernel = Kernel<CopyArgs, CopySpec>;
struct CopyTable {
  const CopyKernel* const* rows;
  int count;
};
CopyTable copy_table();

Status copy_infer(const CopyArgs& args, Tensor* out);
Status copy_check(const CopyArgs& args);
Status copy_select(const CopyArgs& args, const Choice& choice, const CopyKernel** row);
size_t copy_workspace(const CopyArgs& args, const CopyKernel& row, int threads);
Status copy_run(const CopyArgs& args, const CopyKernel& row, const Ctx& ctx);

}  // namespace lowbit
