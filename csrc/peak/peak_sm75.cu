// peak_read_sm75, peak_copy_sm75: the bandwidth of a GPU's memory.
//
// Shapes    16-byte words of either half of the buffer.
// Bound     memory, by definition.
// Method    each thread asks for eight words before it waits for the first. What is read is folded
//           and compared, or the compiler would leave it out.
// Source    none.
// Measured  NOTES.md.
#include "csrc/cuda/launch.cuh"
#include "csrc/peak/peak.h"

namespace lowbit {
namespace {

constexpr int kThreads = 256, kWords = 8;

__global__ void __launch_bounds__(kThreads)
    read_all(const uint4* from, uint32_t* to, int64_t count) {
  wait_for_others();
  const int64_t first = int64_t{blockIdx.x} * (kThreads * kWords) + threadIdx.x;
  uint4 words[kWords] = {};
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if (first + i * kThreads < count) words[i] = from[first + i * kThreads];
  }
  uint32_t folded = 0;
#pragma unroll
  for (int i = 0; i < kWords; ++i) folded ^= words[i].x ^ words[i].y ^ words[i].z ^ words[i].w;
  if (folded == 0x10b17u) *to = folded;  // never: the buffer holds one byte throughout
}

__global__ void __launch_bounds__(kThreads) copy_half(const uint4* from, uint4* to, int64_t count) {
  wait_for_others();
  const int64_t first = int64_t{blockIdx.x} * (kThreads * kWords) + threadIdx.x;
  uint4 words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if (first + i * kThreads < count) words[i] = from[first + i * kThreads];
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if (first + i * kThreads < count) to[first + i * kThreads] = words[i];
  }
}

Status run_read(const PeakArgs& args, const Ctx& ctx) {
  const int64_t count = args.bytes / 16;
  return launch(ctx, read_all, grid_for(count, kThreads * kWords, INT32_MAX), kThreads, 0,
                reinterpret_cast<const uint4*>(args.data), reinterpret_cast<uint32_t*>(args.data),
                count);
}

Status run_copy(const PeakArgs& args, const Ctx& ctx) {
  const int64_t half = args.bytes / 2, count = half / 16;
  return launch(ctx, copy_half, grid_for(count, kThreads * kWords, INT32_MAX), kThreads, 0,
                reinterpret_cast<const uint4*>(args.data),
                reinterpret_cast<uint4*>(args.data + half), count);
}

}  // namespace

extern const PeakKernel peak_read_sm75, peak_copy_sm75;
const PeakKernel peak_read_sm75 = {
    "peak_read_sm75", kArchSm75, {Quantity::read, 0}, nullptr, run_read};
const PeakKernel peak_copy_sm75 = {
    "peak_copy_sm75", kArchSm75, {Quantity::copy, 0}, nullptr, run_copy};

}  // namespace lowbit
