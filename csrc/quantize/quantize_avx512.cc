// quantize_avx512: quantize_rows and dequantize_rows for every dtype; see quantize.h.
//
// Method    the loops of body.h, which the compiler turns into AVX-512 code; f16 by F16C.
#include "csrc/quantize/body.h"

namespace lowbit {
namespace {

Status run(const QuantizeArgs& args, const Ctx& ctx) { return quantize_rows_body(args, ctx); }

}  // namespace

extern const QuantizeKernel quantize_avx512;
const QuantizeKernel quantize_avx512 = {"quantize_avx512", kArchAvx512, kQuantizeAll, nullptr, run};

}  // namespace lowbit
