// quantize_avx2: quantize_rows and dequantize_rows for every dtype; see quantize.h.
//
// Method    the loops of body.h, which the compiler turns into AVX2 code; f16 by F16C.
#include "csrc/quantize/body.h"

namespace lowbit {
namespace {

Status run(const QuantizeArgs& args, const Ctx& ctx) { return quantize_rows_body(args, ctx); }

}  // namespace

extern const QuantizeKernel quantize_avx2;
const QuantizeKernel quantize_avx2 = {"quantize_avx2", kArchAvx2, kQuantizeAll, nullptr, run};

}  // namespace lowbit
