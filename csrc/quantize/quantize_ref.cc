// quantize_ref: quantize_rows and dequantize_rows for every dtype; see quantize.h.
//
// Method    the loops of body.h under the baseline flags: the oracle of the other rows, which give
// the same bits.
#include "csrc/quantize/body.h"

namespace lowbit {
namespace {

Status run(const QuantizeArgs& args, const Ctx& ctx) { return quantize_rows_body(args, ctx); }

}  // namespace

extern const QuantizeKernel quantize_ref;
const QuantizeKernel quantize_ref = {"quantize_ref", kArchCpu, kQuantizeAll, nullptr, run};

}  // namespace lowbit
