// The loops of elementwise, compiled once under the flags of each row's file.
//
// Method    one pass from memory to memory where the three dtypes are one; mixed ones as f32, 512
//           elements at a time through buffers. simd/math.h has the functions, without branches or
//           tables.
#pragma once

#include <type_traits>

#include "csrc/base/threads.h"
#include "csrc/elementwise/elementwise.h"
#include "csrc/simd/math.h"
#include "csrc/simd/run.h"

namespace lowbit {

// (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2 = 1 / (1 + exp(-2u)) with u the inner term.
static inline Lanes tanh_gate(Lanes x) {
  return sigmoid_of(x * (1.59576912f + 0.0713548163f * (x * x)));
}

// out may be a or b.
template <class T>
static inline void apply_run(Function f, const T* a, const T* b, T* out, int64_t count) {
  switch (f) {
    case Function::add: map_run(a, b, out, count, [](Lanes x, Lanes y) { return x + y; }); return;
    case Function::mul: map_run(a, b, out, count, [](Lanes x, Lanes y) { return x * y; }); return;
    case Function::silu_mul:
      map_run(a, b, out, count, [](Lanes x, Lanes y) { return x * sigmoid_of(x) * y; });
      return;
    case Function::gelu_mul:
      map_run(a, b, out, count, [](Lanes x, Lanes y) { return x * normal_cdf(x) * y; });
      return;
    case Function::gelu_tanh_mul:
      map_run(a, b, out, count, [](Lanes x, Lanes y) { return x * tanh_gate(x) * y; });
      return;
  }
}

static inline void elementwise_run_row(const ElementwiseArgs& args, int64_t a, int64_t b,
                                       int64_t out, int64_t count) {
  if (args.a.dtype == args.b.dtype && args.a.dtype == args.out.dtype) {
    with_float_type(args.a.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      apply_run(args.function, static_cast<const T*>(args.a.data) + a,
                static_cast<const T*>(args.b.data) + b, static_cast<T*>(args.out.data) + out,
                count);
    });
    return;
  }
  float buffer_a[kRun], buffer_b[kRun], buffer_out[kRun];
  for (int64_t i = 0; i < count; i += kRun) {
    const int64_t width = count - i < kRun ? count - i : kRun;
    const float* from_a = run_floats(args.a, a + i, width, buffer_a);
    const float* from_b = run_floats(args.b, b + i, width, buffer_b);
    float* to = run_room(args.out, out + i, buffer_out);
    apply_run(args.function, from_a, from_b, to, width);
    run_keep(args.out, out + i, width, to);
  }
}

// Elements of one piece of work: 3 to 8 us, so that a decode step's row stays on one thread.
inline constexpr int64_t kPiece = 16384;

static inline Status elementwise_body(const ElementwiseArgs& args, const Ctx& ctx) {
  const Walk walk = elementwise_walk(args);
  const int64_t pieces = (walk.length + kPiece - 1) / kPiece;
  const int64_t grain = row_grain(walk.length, kPiece);
  parallel_for(ctx.pool, walk.count * pieces, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t row = pieces == 1 ? p : p / pieces;
      const int64_t first = pieces == 1 ? 0 : p % pieces * kPiece;
      const int64_t count = walk.length - first < kPiece ? walk.length - first : kPiece;
      elementwise_run_row(args, walk_offset(walk, 0, row) + first,
                          walk_offset(walk, 1, row) + first, walk_offset(walk, 2, row) + first,
                          count);
    }
  });
  return ok();
}

}  // namespace lowbit
