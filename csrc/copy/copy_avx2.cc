// copy_avx2: any view to any view, with a change of dtype; see copy.h.
//
// Shapes    all of copy.h.
// Layout    any strides that the contract allows.
// Bound     memory: x read and out written once.
// Method    body.h: memcpy, the conversions of simd/convert.h, tiles for turned views.
// Source    copy.h.
// Measured  EPYC (Zen 4), one thread, 32 MB of f32: 1.8 ms; turned, 10.7 ms; see NOTES.md.
#include "csrc/copy/body.h"

namespace lowbit {
namespace {

Status run(const CopyArgs& args, const Ctx& ctx) { return copy_body(args, ctx); }

}  // namespace

extern const CopyKernel copy_avx2;
const CopyKernel copy_avx2 = {
    "copy_avx2", kArchAvx2, {kFloats | bit(DType::e4m3) | bit(DType::e5m2)}, nullptr, run};

}  // namespace lowbit
