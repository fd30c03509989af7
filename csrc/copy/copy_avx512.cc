// copy_avx512: any view to any view, with a change of dtype; see copy.h.
//
// Shapes    all of copy.h.
// Layout    any strides that the contract allows.
// Bound     memory: x read and out written once.
// Method    body.h: memcpy, the conversions of simd/convert.h, tiles for turned views.
// Source    copy.h.
// Measured  see NOTES.md.
#include "csrc/copy/body.h"

namespace lowbit {
namespace {

Status run(const CopyArgs& args, const Ctx& ctx) { return copy_body(args, ctx); }

}  // namespace

extern const CopyKernel copy_avx512;
const CopyKernel copy_avx512 = {
    "copy_avx512", kArchAvx512, {kFloats | bit(DType::e4m3) | bit(DType::e5m2)}, nullptr, run};

}  // namespace lowbit
