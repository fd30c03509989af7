// Rows in registers, in words of 16 bytes as they lie in memory. A row is that of blockDim.x
// threads, of which neighbours hold neighbouring words, four each where there are as many: what a
// thread does once for its row is little beside what it does for 64 bytes. blockDim.y rows are
// worked on beside each other.
#pragma once

#include "csrc/cuda/eight.cuh"

namespace lowbit {

struct Held {
  dim3 block;
  unsigned blocks;
  int words;  // of a thread; 0: rows are too long, or there are none
};

// Short rows share a block of 128 threads, longer ones have their own.
inline constexpr unsigned kHeldLeast = 128, kHeldMost = 512;

// Rows of more than `by_eight` words have eight of them in a thread.
static inline Held held(int64_t rows, int64_t words, int64_t by_eight = int64_t{kHeldMost} * 4) {
  Held h = {};
  if (words == 0 || words > int64_t{kHeldMost} * 8 || rows == 0) return h;
  h.words = words > by_eight ? 8 : 4;
  const auto wanted = static_cast<unsigned>((words + h.words - 1) / h.words);
  unsigned lanes = 1;
  while (lanes < 32 && lanes < wanted) lanes *= 2;
  if (lanes < wanted) lanes = (wanted + 31) / 32 * 32;
  h.block = dim3(lanes, lanes > 32 ? 1 : kHeldLeast / lanes);
  const int64_t blocks = (rows + h.block.y - 1) / h.block.y;
  if (blocks > INT32_MAX) return {};
  h.blocks = static_cast<unsigned>(blocks);
  return h;
}

// Calls f with the words of a thread as a type.
template <class F>
static inline void with_held(const Held& h, const F& f) {
  if (h.words == 4) f(std::integral_constant<int, 4>());
  if (h.words == 8) f(std::integral_constant<int, 8>());
}

static __device__ __forceinline__ int64_t held_row() {
  return int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
}

// Calls f(w, at) for the words that this thread holds: word `at` of the row's `words`.
template <int kWords, class F>
static __device__ __forceinline__ void each_held(int words, const F& f) {
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const int at = static_cast<int>(threadIdx.x + w * blockDim.x);
    if (at < words) f(w, at);
  }
}

// Hides from the compiler that words are what they were, so that it unpacks them again in place of
// keeping all their elements in registers.
template <int kWords>
static __device__ __forceinline__ void forget(uint4 (&word)[kWords]) {
#pragma unroll
  for (uint4& v : word) asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
}

// What another lane has. Structs of an op that are reduced have a from_lane of their own.
template <class T>
static __device__ __forceinline__ T from_lane(const T& value, unsigned step) {
  return __shfl_xor_sync(~0u, value, step);
}

// Over the threads of each row; every one gets the result. `room` is shared memory for 16 values
// that nothing else in the kernel uses.
template <class T, class Op>
static __device__ __forceinline__ T reduce_held(T value, T none, const Op& op, T* room) {
  const unsigned lanes = blockDim.x;
#pragma unroll
  for (unsigned step = 16; step > 0; step /= 2) {
    if (step < lanes) value = op(value, from_lane(value, step));
  }
  if (lanes <= 32) return value;
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) room[threadIdx.x / 32] = value;
  __syncthreads();
  value = lane % 16 < lanes / 32 ? room[lane % 16] : none;
#pragma unroll
  for (unsigned step = 8; step > 0; step /= 2) value = op(value, from_lane(value, step));
  return value;
}

// 16 bytes at a time.
static __device__ __forceinline__ uint4 word_at(const void* base, int64_t at) {
  return static_cast<const uint4*>(base)[at];
}
static __device__ __forceinline__ uint4& word_at(void* base, int64_t at) {
  return static_cast<uint4*>(base)[at];
}

}  // namespace lowbit
