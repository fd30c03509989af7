// peak: what this machine can do, measured. A bench holds kernels against these figures, taken in
// the same run: a data sheet knows neither the clock nor the neighbours of a shared machine.
//
//   read   bytes per second of a sequential read of memory that no cache holds; on a GPU this and
//          copy are all that is measured
//   copy   bytes per second, read and written together, of a copy of such memory
//   f32    operations per second of multiply-adds in f32, each two operations; data in registers
//   bf16   the same of pairs of bf16 summed in f32
//   int8   the same of u8 x s8 summed exactly in 32 bits
//   int4   the same of u4 x s8 summed exactly in 16 bits: codes of 4 bits leave room for 8 products
//
// A row is one way to reach one quantity with one instruction set. The peak of a machine is the
// best of its rows, for no single loop is the best everywhere.
#pragma once

#include <cstdint>

#include "csrc/base/device.h"
#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"

namespace lowbit {

// The words are those of lib/peaks.ts (`quantities`).
enum class Quantity : int32_t { read, copy, f32, bf16, int8, int4 };
inline constexpr int kQuantityCount = 6;
inline constexpr const char* kQuantityNames[] = {"read", "copy", "f32", "bf16", "int8", "int4"};
static inline bool of_memory(Quantity q) { return q == Quantity::read || q == Quantity::copy; }

// One pass: over `bytes` of memory, or `rounds` rounds of arithmetic.
struct PeakArgs {
  uint8_t* data;   // 64-byte aligned; a copy goes from its first half to its second
  int64_t bytes;   // a multiple of 2 * kPeakChunk
  int64_t rounds;  // a multiple of kPeakRounds
};

struct PeakSpec {
  Quantity quantity;
  int64_t operations;  // of one round; 0 for memory
};

using PeakKernel = Kernel<PeakArgs, PeakSpec>;

// What a thread takes at a time: large enough that the counter costs nothing and the hardware's
// prefetchers run on, small enough that a stolen core holds up little.
inline constexpr int64_t kPeakChunk = int64_t{1} << 20;  // bytes
inline constexpr int64_t kPeakRounds = 1024;             // a few microseconds

struct PeakTable {
  const PeakKernel* const* rows;
  int count;
};
PeakTable peak_table();

// Shape and dtype of the result: f32 [rows, 2], in units of 1e9 per second, for one thread and for
// all threads of the pool; 0 where the device lacks the row's instruction set.
Tensor peak_result();
Status peak_check(const Tensor& out, double seconds);
// Measures every row that `arch` allows, each of the two figures for about `seconds` (at least one
// pass), and keeps the best pass. Allocates four times the last cache for as long as it runs.
Status peak_measure(const Tensor& out, ArchSet arch, double seconds, const Ctx& ctx);
// The same for a GPU, behind what is queued there; returns when it is done. Takes 1 GiB meanwhile.
Status peak_measure_cuda(Device* device, const Tensor& out, double seconds);

}  // namespace lowbit
