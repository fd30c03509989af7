// Kernel: one row of an op's registry, and how a row is chosen.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/base/arch.h"
#include "csrc/base/status.h"

namespace lowbit {

struct Pool;

// What a kernel may use besides its arguments. Nothing here outlives the call.
struct Ctx {
  Pool* pool;     // CPU
  void* scratch;  // as many bytes as the row's workspace() asked for, 64-byte aligned; contents
                  // undefined
  void* stream;   // CUDA: where the row puts its kernels; the device is current
  int32_t multiprocessors = 0;  // CUDA
  // CUDA, in device memory: where a kernel that finds a value out of range leaves the first one, as
  // index << 32 | value, by an atomic minimum. Null for ops that check no values.
  unsigned long long* check = nullptr;
  bool early = false;  // CUDA: kernels may be launched to begin before their predecessor has ended
};

// Args is the op's call, Spec what the row can do: plain data that tests, benches and documents
// read too.
template <class Args, class Spec>
struct Kernel {
  const char* name;
  ArchSet arch;  // bits that the device must have
  Spec spec;
  size_t (*workspace)(const Args& args, int threads);  // bytes of scratch; null: none
  Status (*run)(const Args& args, const Ctx& ctx);
};

// How select() chooses: the first row of the table whose bits the device has and that fits the
// call. `forced` (LB_KERNEL, tests, benches) leaves only the row of that name; null leaves all.
// `preferred` (a table of measurements) is the name of a row that comes first if it fits; or null.
struct Choice {
  ArchSet arch;
  const char* forced;
  const char* preferred = nullptr;
};

}  // namespace lowbit
