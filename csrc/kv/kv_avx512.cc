// kv_avx512: append, read, copies, save and restore of a paged cache; see kv.h.
//
// Shapes    all of kv.h.
// Layout    any strides that the contract allows; csrc/attention/cache.h has the cache.
// Bound     memory: k and v read once, their codes written once.
// Method    body.h over the lanes of simd/lanes.h.
// Source    the formulas in kv.h and csrc/attention/cache.h.
// Measured  see NOTES.md.
#include "csrc/kv/body.h"

namespace lowbit {
namespace {

Status run(const KvArgs& args, const Ctx& ctx) { return kv_body(args, ctx); }

}  // namespace

extern const KvKernel kv_avx512;
const KvKernel kv_avx512 = {"kv_avx512", kArchAvx512, {kFloats}, nullptr, run};

}  // namespace lowbit
