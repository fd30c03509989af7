// rope_ref: the formula of rope.h, pair by pair, the oracle of every kernel.
//
// Shapes    all of rope.h.
// Layout    any strides that the contract allows.
// Bound     arithmetic: one pair at a time.
// Method    products and sums in double, rounded once into out.
// Source    the formula in rope.h.
#include "csrc/base/rows.h"
#include "csrc/base/threads.h"
#include "csrc/rope/rope.h"

namespace lowbit {
namespace {

// Head `row` of all heads of all tokens.
void rotate(const RopeArgs& a, int64_t row, int64_t x, int64_t out) {
  const int64_t head_dim = a.x.shape[a.x.rank - 1], half = a.cos.shape[1];
  const int64_t token = row / a.x.shape[a.x.rank - 2];
  const int64_t seq = a.x.shape[a.x.rank - 3];
  const int64_t position = rope_position(a, token / seq, token % seq);
  const auto* cos = static_cast<const float*>(a.cos.data) + position * a.cos.strides[0];
  const auto* sin = static_cast<const float*>(a.sin.data) + position * a.sin.strides[0];
  const bool halves = a.pairing == Pairing::half;
  for (int64_t i = 0; i < half; ++i) {
    const int64_t first = halves ? i : 2 * i, second = halves ? i + half : 2 * i + 1;
    const double x1 = load_f32(a.x.data, a.x.dtype, x + first);
    const double x2 = load_f32(a.x.data, a.x.dtype, x + second);
    store_f32(a.out.data, a.out.dtype, out + first, static_cast<float>(x1 * cos[i] - x2 * sin[i]));
    store_f32(a.out.data, a.out.dtype, out + second, static_cast<float>(x2 * cos[i] + x1 * sin[i]));
  }
  for (int64_t i = 2 * half; i < head_dim; ++i) {
    store_f32(a.out.data, a.out.dtype, out + i, load_f32(a.x.data, a.x.dtype, x + i));
  }
}

Status run(const RopeArgs& args, const Ctx& ctx) {
  const RopeArgs* a = &args;
  const Rows x = rows_of(args.x), out = rows_of(args.out);
  parallel_for(ctx.pool, x.count, row_grain(x.length, 4096), [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      rotate(*a, i, row_offset(x, i), row_offset(out, i));
    }
  });
  return ok();
}

}  // namespace

extern const RopeKernel rope_ref;
const RopeKernel rope_ref = {"rope_ref", kArchCpu, {kFloats}, nullptr, run};

}  // namespace lowbit
