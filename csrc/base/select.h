// select_row: the one way a row is chosen, for every op. Built without ISA flags: choosing looks at
// data only.
#pragma once

#include <cstring>

#include "csrc/base/kernel.h"

namespace lowbit {

// `fits(args, spec)` asks whether a row can do the call. A forced row must be one that the device
// can run and that fits; LB_KERNEL names a row of one op, so a name that this op does not have
// leaves the choice free.
template <class K, class Args, class Fits>
static Status select_row(const K* const* rows, int count, const Choice& choice, const Fits& fits,
                         const Args& args, const char* op, const K** row) {
  const char* forced = nullptr;
  for (int i = 0; i < count && choice.forced != nullptr; ++i) {
    if (std::strcmp(rows[i]->name, choice.forced) == 0) forced = choice.forced;
  }
  for (int i = 0; i < count; ++i) {
    const K* candidate = rows[i];
    if (forced != nullptr && std::strcmp(candidate->name, forced) != 0) continue;
    const bool has_arch = (candidate->arch & choice.arch) == candidate->arch;
    if (has_arch && fits(args, candidate->spec)) {
      *row = candidate;
      return ok();
    }
    if (forced != nullptr) {
      return error(Code::unsupported,
                   has_arch ? "%s: row %s can't serve this call"
                            : "%s: row %s needs an instruction set that this device lacks",
                   op, forced);
    }
  }
  return error(Code::unsupported, "%s: no kernel row of this device serves the call", op);
}

}  // namespace lowbit
