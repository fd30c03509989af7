// One pass of a peak row over the pool. Included by files of every instruction set: static free
// functions only.
#pragma once

#include "csrc/base/threads.h"
#include "csrc/peak/peak.h"

namespace lowbit {

// body(first byte, bytes)
template <class F>
static inline Status read_pass(const PeakArgs& args, const Ctx& ctx, const F& body) {
  parallel_for(ctx.pool, args.bytes, kPeakChunk,
               [&](int64_t begin, int64_t end, int) { body(args.data + begin, end - begin); });
  return ok();
}

// body(to, from, bytes)
template <class F>
static inline Status copy_pass(const PeakArgs& args, const Ctx& ctx, const F& body) {
  const int64_t half = args.bytes / 2;
  parallel_for(ctx.pool, half, kPeakChunk, [&](int64_t begin, int64_t end, int) {
    body(args.data + half + begin, args.data + begin, end - begin);
  });
  return ok();
}

// body(rounds)
template <class F>
static inline Status round_pass(const PeakArgs& args, const Ctx& ctx, const F& body) {
  parallel_for(ctx.pool, args.rounds, kPeakRounds,
               [&](int64_t begin, int64_t end, int) { body(end - begin); });
  return ok();
}

}  // namespace lowbit
