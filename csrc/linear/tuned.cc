#include "csrc/linear/tuned.h"

#include <algorithm>
#include <tuple>

namespace lowbit {

// What tells calls apart, the rows of x last.
static auto key(const TunedCall& c) {
  return std::make_tuple(c.n, c.k, c.format.kind, c.format.group_n, c.format.group_k,
                         c.format.scale_dtype, c.format.zero_type, c.format.table_type,
                         c.format.planes, c.layout, c.x, c.compute, c.m);
}

static bool before(const TunedCall& a, const TunedCall& b) { return key(a) < key(b); }

void linear_tuned_add(LinearTuned* tuned, const TunedCall& call) {
  const auto at = std::lower_bound(tuned->calls.begin(), tuned->calls.end(), call, before);
  if (at != tuned->calls.end() && key(*at) == key(call)) {
    *at = call;
  } else {
    tuned->calls.insert(at, call);
  }
}

const char* linear_tuned_row(const LinearTuned& tuned, const LinearArgs& args) {
  const Weight& w = args.w;
  TunedCall call = {w.format, w.layout, args.x.dtype,    args.compute,
                    w.n,      w.k,      args.x.shape[0], nullptr};
  const auto after = std::upper_bound(tuned.calls.begin(), tuned.calls.end(), call, before);
  if (after == tuned.calls.begin()) return nullptr;
  const TunedCall& known = *(after - 1);
  call.m = known.m;
  return key(known) == key(call) ? known.row->name : nullptr;
}

}  // namespace lowbit
