// copy_ref: one element at a time, the oracle of every kernel.
//
// Shapes    all of copy.h.
// Layout    any strides.
// Bound     arithmetic: one element at a time.
// Method    equal dtypes as bytes, others by way of f32, which holds every floating dtype exactly.
// Source    copy.h.
#include <cstring>

#include "csrc/base/rows.h"
#include "csrc/base/threads.h"
#include "csrc/copy/copy.h"

namespace lowbit {
namespace {

Status run(const CopyArgs& args, const Ctx& ctx) {
  const Tensor* views[] = {&args.x, &args.out};
  const Walk walk = walk_of(views, 2);
  const Walk* w = &walk;
  const Tensor x = args.x, out = args.out;
  const auto bytes = static_cast<size_t>(dtype_bytes(x.dtype));
  parallel_for(ctx.pool, w->count * w->length, 4096, [=](int64_t begin, int64_t end, int) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t row = e / w->length, i = e % w->length;
      const int64_t from = walk_offset(*w, 0, row) + i * w->step[0];
      const int64_t to = walk_offset(*w, 1, row) + i * w->step[1];
      if (x.dtype == out.dtype) {
        std::memmove(element(out.data, out.dtype, to), element(x.data, x.dtype, from), bytes);
      } else {
        store_f32(out.data, out.dtype, to, load_f32(x.data, x.dtype, from));
      }
    }
  });
  return ok();
}

}  // namespace

extern const CopyKernel copy_ref;
const CopyKernel copy_ref = {
    "copy_ref", kArchCpu, {kFloats | bit(DType::e4m3) | bit(DType::e5m2)}, nullptr, run};

}  // namespace lowbit
