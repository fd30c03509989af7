// select_row: the one way a row is chosen, for every op. Built without ISA flags: choosing looks at
// data only.
#pragma once

#include <cstring>
#include <mutex>

#include "csrc/base/cuda_api.h"
#include "csrc/base/kernel.h"

namespace lowbit {

template <class K>
struct RowList {
  const K* const* rows;
  int count;
};

// The rows of an op that are compiled into the addon and, once liblowbit_cuda.so is loaded, those
// of that library before them. No device has the instruction sets of both.
template <class K, int kOwn>
static RowList<K> all_rows(const char* op, const K* const (&own)[kOwn]) {
  if (cuda_library() == nullptr) return {own, kOwn};
  static constexpr int kMost = 64;  // of the library
  static const K* all[kMost + kOwn];
  static int count = 0;
  static std::once_flag once;
  std::call_once(once, [&] {
    const CudaRows found = cuda_rows(op);
    for (int i = 0; i < found.count && i < kMost; ++i) {
      all[count++] = static_cast<const K*>(found.rows[i]);
    }
    for (const K* row : own) all[count++] = row;
  });
  return {all, count};
}

// Whether the device has what a row needs.
template <class K>
static bool can_run(const K& row, ArchSet arch) {
  return (row.arch & arch) == row.arch;
}

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
  for (int i = 0; i < count && forced == nullptr && choice.preferred != nullptr; ++i) {
    if (std::strcmp(rows[i]->name, choice.preferred) != 0) continue;
    if (!can_run(*rows[i], choice.arch) || !fits(args, rows[i]->spec)) break;
    *row = rows[i];
    return ok();
  }
  for (int i = 0; i < count; ++i) {
    const K* candidate = rows[i];
    if (forced != nullptr && std::strcmp(candidate->name, forced) != 0) continue;
    const bool has_arch = can_run(*candidate, choice.arch);
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
