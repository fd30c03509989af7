// Rows that measurement on this machine prefers to the order of the registry: what `lowbit tune`
// found. A row that is named here is taken first if it fits the call; all else is as without.
#pragma once

#include <vector>

#include "csrc/linear/linear.h"

namespace lowbit {

// A call that was measured, and the row that was fastest.
struct TunedCall {
  Format format;
  Layout layout;
  DType x;
  Compute compute;
  int64_t n, k, m;
  const LinearKernel* row;
};

// The calls of one table, in order. A call with other rows of x takes what was measured with the
// most rows that are not more than its own.
struct LinearTuned {
  std::vector<TunedCall> calls;
};

// Adds a call, or replaces what is known of it.
void linear_tuned_add(LinearTuned* tuned, const TunedCall& call);
// The name of the row for a call like this, or null.
const char* linear_tuned_row(const LinearTuned& tuned, const LinearArgs& args);

}  // namespace lowbit
