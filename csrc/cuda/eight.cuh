// Eight elements whose dtype is known when a kernel is compiled, as they lie in memory: what the
// fast ways of the row ops hold in registers. Addresses are multiples of 16 bytes; elements.cuh has
// the accesses for all other views.
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

#include "csrc/cuda/elements.cuh"

namespace lowbit {

template <DType T>
struct Eight {
  uint4 words[T == DType::f32 ? 2 : 1];
};

// `index` counts runs of eight.
template <DType T>
static inline __device__ Eight<T> fetch(const void* base, int64_t index) {
  return static_cast<const Eight<T>*>(base)[index];
}
template <DType T>
static inline __device__ void put(void* base, int64_t index, const Eight<T>& v) {
  static_cast<Eight<T>*>(base)[index] = v;
}

// Elements of a word of 16 bytes.
template <DType T>
inline constexpr int kPerWord = T == DType::f32 ? 4 : 8;

template <DType T>
static inline __device__ void unpack_word(const uint4& from, float* to) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if constexpr (T == DType::f32) {
      to[j] = __uint_as_float(words[j]);
    } else if constexpr (T == DType::bf16) {
      to[2 * j] = __uint_as_float(words[j] << 16);
      to[2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
    } else {
      to[2 * j] = half_to_f32(static_cast<uint16_t>(words[j]));
      to[2 * j + 1] = half_to_f32(static_cast<uint16_t>(words[j] >> 16));
    }
  }
}

template <DType T>
static inline __device__ void unpack(const Eight<T>& from, float (&to)[kEight]) {
#pragma unroll
  for (int i = 0; i < kEight / kPerWord<T>; ++i) {
    unpack_word<T>(from.words[i], to + i * kPerWord<T>);
  }
}

// NaN is larger than every number.
static inline __device__ float larger(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
#else
  return a > b || a != a ? a : b;
#endif
}
// The same for the one f32 or the two 16-bit floats of four bytes.
template <DType T>
static inline __device__ uint32_t larger_of(uint32_t a, uint32_t b) {
  if constexpr (T == DType::f32) {
    return __float_as_uint(larger(__uint_as_float(a), __uint_as_float(b)));
  } else if constexpr (T == DType::bf16) {
    const __nv_bfloat162 two = __hmax2_nan(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                           *reinterpret_cast<const __nv_bfloat162*>(&b));
    return *reinterpret_cast<const uint32_t*>(&two);
  } else {
    const __half2 two =
        __hmax2_nan(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
    return *reinterpret_cast<const uint32_t*>(&two);
  }
}

// Two floats to the bits of two halves, the first in the low ones.
template <DType T>
static inline __device__ uint32_t pack_two(float a, float b) {
  if constexpr (T == DType::bf16) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&two);
  } else {
    const __half2 two = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
}

template <DType T>
static inline __device__ uint4 pack_word(const float* v) {
  if constexpr (T == DType::f32) {
    return {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
            __float_as_uint(v[3])};
  } else {
    return {pack_two<T>(v[0], v[1]), pack_two<T>(v[2], v[3]), pack_two<T>(v[4], v[5]),
            pack_two<T>(v[6], v[7])};
  }
}

template <DType T>
static inline __device__ Eight<T> pack(const float (&v)[kEight]) {
  Eight<T> to;
#pragma unroll
  for (int i = 0; i < kEight / kPerWord<T>; ++i) to.words[i] = pack_word<T>(v + i * kPerWord<T>);
  return to;
}

// Calls f with the dtype as a type. False: it is none of the three.
template <class F>
static inline bool with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32: f(std::integral_constant<DType, DType::f32>()); return true;
    case DType::f16: f(std::integral_constant<DType, DType::f16>()); return true;
    case DType::bf16: f(std::integral_constant<DType, DType::bf16>()); return true;
    default: return false;
  }
}

// Whether rows of eights may be read as such: the last dimension is contiguous by contract.
static inline bool in_eights(const Tensor& t) {
  bool even = (reinterpret_cast<uintptr_t>(t.data) & 15) == 0;
  for (int i = 0; i < t.rank; ++i) {
    const bool last = i == t.rank - 1;
    even = even && (t.shape[i] == 1 || (last ? t.shape[i] : t.strides[i]) % kEight == 0);
  }
  return even && t.rank > 0 && t.shape[t.rank - 1] % kEight == 0;
}

}  // namespace lowbit
