// Rows in registers, in words of 16 bytes as they lie in memory. A row is that of blockDim.x
// threads, of which neighbours hold neighbouring words; blockDim.y rows are worked on beside each
// other, and short ones kRows at a time, so that every thread has 64 bytes under way.
#pragma once

#include "csrc/cuda/eight.cuh"

namespace lowbit {

struct Held {
  dim3 block;
  unsigned blocks;
  int words, rows;  // of a thread; 0: rows are too long, or there are none
};

// 128 threads have 8 KiB under way, and sixteen such blocks share a multiprocessor; longer rows
// have a block of their own.
inline constexpr unsigned kHeldLeast = 128, kHeldMost = 512;
template <int kWords>
inline constexpr int kHeldThreads = kWords < 4 ? kHeldLeast : kHeldMost;
// At least: what leaves a thread 64 registers.
template <int kWords>
inline constexpr int kHeldBlocks = 1024 / kHeldThreads<kWords>;

static inline Held held(int64_t rows, int64_t words) {
  Held h = {};
  if (words == 0 || words > int64_t{kHeldMost} * 8 || rows == 0) return h;
  h.words = words <= 32 ? 1 : words <= 64 ? 2 : words <= int64_t{kHeldMost} * 4 ? 4 : 8;
  h.rows = h.words < 4 ? 4 / h.words : 1;
  const auto wanted = static_cast<unsigned>((words + h.words - 1) / h.words);
  unsigned lanes = 1;
  while (lanes < 32 && lanes < wanted) lanes *= 2;
  if (lanes < wanted) lanes = (wanted + 31) / 32 * 32;
  h.block = dim3(lanes, lanes > 32 ? 1 : kHeldLeast / lanes);
  const int64_t each = int64_t{h.block.y} * h.rows, blocks = (rows + each - 1) / each;
  if (blocks > INT32_MAX) return {};
  h.blocks = static_cast<unsigned>(blocks);
  return h;
}

// Calls f with the words and the rows of a thread as types.
template <class F>
static inline void with_held(const Held& h, const F& f) {
  const auto go = [&](auto words, auto rows) { f(words, rows); };
  if (h.words == 1) go(std::integral_constant<int, 1>(), std::integral_constant<int, 4>());
  if (h.words == 2) go(std::integral_constant<int, 2>(), std::integral_constant<int, 2>());
  if (h.words == 4) go(std::integral_constant<int, 4>(), std::integral_constant<int, 1>());
  if (h.words == 8) go(std::integral_constant<int, 8>(), std::integral_constant<int, 1>());
}

// The r-th row of this thread.
template <int kRows>
static __device__ __forceinline__ int64_t held_row(int r) {
  return (int64_t{blockIdx.x} * kRows + r) * blockDim.y + threadIdx.y;
}

// Calls f(r, w, row, at) for the words that this thread holds: word `at` of `words` of each row.
template <int kWords, int kRows, class F>
static __device__ __forceinline__ void each_held(int64_t rows, int words, const F& f) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = held_row<kRows>(r);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int at = static_cast<int>(threadIdx.x + w * blockDim.x);
      if (row < rows && at < words) f(r, w, row, at);
    }
  }
}

// Hides from the compiler that words are what they were, so that it unpacks them again in place of
// keeping all their elements in registers.
template <int kWords, int kRows>
static __device__ __forceinline__ void forget(uint4 (&word)[kRows][kWords]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      uint4& v = word[r][w];
      asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
    }
  }
}

// What another lane has. Structs of an op that are reduced have a from_lane of their own.
template <class T>
static __device__ __forceinline__ T from_lane(const T& value, unsigned step) {
  return __shfl_xor_sync(~0u, value, step);
}

// Over the threads of each row; every one gets the result. `room` is shared memory for 16 values
// that nothing else in the kernel uses.
template <class T, int kRows, class Op>
static __device__ __forceinline__ void reduce_held(T (&value)[kRows], T none, const Op& op,
                                                   T* room) {
  const unsigned lanes = blockDim.x;
#pragma unroll
  for (unsigned step = 16; step > 0; step /= 2) {
    if (step >= lanes) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) value[r] = op(value[r], from_lane(value[r], step));
  }
  if (kRows > 1 || lanes <= 32) return;
  const unsigned warps = lanes / 32, lane = threadIdx.x % 32;
  if (lane == 0) room[threadIdx.x / 32] = value[0];
  __syncthreads();
  value[0] = lane % 16 < warps ? room[lane % 16] : none;
#pragma unroll
  for (unsigned step = 8; step > 0; step /= 2) {
    value[0] = op(value[0], from_lane(value[0], step));
  }
}

// 16 bytes at a time.
static __device__ __forceinline__ uint4 word_at(const void* base, int64_t at) {
  return static_cast<const uint4*>(base)[at];
}
static __device__ __forceinline__ uint4& word_at(void* base, int64_t at) {
  return static_cast<uint4*>(base)[at];
}

}  // namespace lowbit
