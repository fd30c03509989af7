// The end of a tile of the tensor cores: epilogue_sm75.cuh for runs of eight columns, with the
// scales of rows of x and of w. Its choices are run time, because it touches M * N values and not
// M * N * K.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "csrc/linear/epilogue_sm75.cuh"

namespace lowbit {
namespace {

struct Finish {
  const float* x_scale;                 // [M], or null
  const void* w_scale;                  // one for group_n rows of w, or null
  const void* bias;                     // [N], or null
  const void* residual;                 // [M, columns], or null
  void* out;                            // [M, columns]
  int64_t residual_stride, out_stride;  // in elements
  int32_t m, n;                         // rows of x, rows of w; columns = n, or n / 2 where gated
  int32_t group_n;
  DType w_scale_dtype, bias_dtype, residual_dtype, out_dtype;
  Activation activation;
};

static inline Finish finish_of(const LinearArgs& a, const void* w_scale) {
  Finish f = {};
  f.x_scale = present(a.x_scale) ? static_cast<const float*>(a.x_scale.data) : nullptr;
  f.w_scale = w_scale;
  f.w_scale_dtype = a.w.format.scale_dtype;
  f.group_n = static_cast<int32_t>(a.w.format.group_n);
  f.m = static_cast<int32_t>(a.x.shape[0]);
  f.n = static_cast<int32_t>(a.w.n);
  if (present(a.bias)) f.bias = a.bias.data;
  f.bias_dtype = a.bias.dtype;
  if (present(a.residual)) {
    f.residual = a.residual.data;
    f.residual_stride = a.residual.strides[0];
  }
  f.residual_dtype = a.residual.dtype;
  f.out = a.out.data;
  f.out_stride = a.out.strides[0];
  f.out_dtype = a.out.dtype;
  f.activation = a.activation;
  return f;
}

// Scales that change along K, one for each 128 of it: they multiply sums of 128 products, before
// those are added up. Used by kernels that promote.
struct Blocks {
  const float* x;    // [M, k_blocks], or null: the scales of x are in Finish
  int64_t x_stride;  // in elements
  const void* w;     // [N / 128, k_blocks], or null: those of w are
  int32_t k_blocks;
  DType w_dtype;
};

// Nothing but scales and bias, in a 16-bit dtype: what tiles may store without this file's walk.
static inline bool is_plain(const Finish& f) {
  return f.activation == Activation::none && f.residual == nullptr && f.out_dtype != DType::f32;
}

// Nothing but scales and bias, in 16 bits, in rows of whole runs of 16 bytes: the copy engine
// writes such a run even where the matrix ends within it.
static inline bool stores_plainly(const Finish& f) {
  return is_plain(f) && f.n % 8 == 0 &&
         (reinterpret_cast<uintptr_t>(f.out) | f.out_stride * 2) % 16 == 0;
}

// The value of a float of one of the three dtypes, from its bits.
__device__ __forceinline__ float float_of(DType dtype, uint32_t bits) {
  if (dtype == DType::f32) return __uint_as_float(bits);
  const auto half = static_cast<uint16_t>(bits);
  return dtype == DType::f16 ? half_to_f32(half) : bf16_to_f32(half);
}
// What load_f32() gives for them, in fewer instructions: kernels ask inside their loops.
__device__ __forceinline__ float load_float(const void* base, DType dtype, int64_t i) {
  return float_of(dtype, dtype == DType::f32 ? static_cast<const uint32_t*>(base)[i]
                                             : static_cast<const uint16_t*>(base)[i]);
}

__device__ __forceinline__ float w_scale_of(const Finish& f, int n) {
  if (f.w_scale == nullptr) return 1.0f;
  return load_float(f.w_scale, f.w_scale_dtype, f.group_n == 1 ? n : n / f.group_n);
}
__device__ __forceinline__ float w_block_of(const Blocks& b, int n_block, int k_block) {
  if (b.w == nullptr) return 1.0f;
  return load_float(b.w, b.w_dtype, int64_t{n_block} * b.k_blocks + k_block);
}
__device__ __forceinline__ float bias_of(const Finish& f, int n) {
  return f.bias == nullptr ? 0.0f : load_float(f.bias, f.bias_dtype, n);
}

__device__ __forceinline__ void prefetch_run(const void* base, DType dtype, int64_t first,
                                             int64_t end) {
  const int size = dtype == DType::f32 ? 4 : 2;
  const char* p = static_cast<const char*>(base) + first * size + threadIdx.x * 128;
  if (p < static_cast<const char*>(base) + end * size)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
// Asks for the scales and bias of a tile long before its finish does, which otherwise waits for
// device memory with nothing else to do.
__device__ __forceinline__ void prefetch_finish(const Finish& f, int n, int rows, int m,
                                                int tokens) {
  if (f.w_scale != nullptr && f.group_n == 1) {
    prefetch_run(f.w_scale, f.w_scale_dtype, n, min(n + rows, f.n));
  }
  if (f.bias != nullptr) prefetch_run(f.bias, f.bias_dtype, n, min(n + rows, f.n));
  if (f.x_scale != nullptr) prefetch_run(f.x_scale, DType::f32, m, m + tokens);
}

__device__ __forceinline__ uint32_t pack_pair(DType dtype, float low, float high) {
  uint32_t word;
  if (dtype == DType::f16) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

__device__ __forceinline__ float2 unpack_pair(DType dtype, uint32_t word) {
  if (dtype == DType::f16) {
    __half2 h;
    std::memcpy(&h, &word, 4);
    return __half22float2(h);
  }
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xFFFF0000u)};
}

// kWidth elements from index i of a row, the first `count` of which exist. Whole vectors where the
// address allows it.
template <int kWidth>
__device__ __forceinline__ void load_row(const void* base, DType dtype, int64_t i, int count,
                                         float (&v)[kWidth]) {
  static_assert(kWidth == 4 || kWidth == 8);
  const uint8_t* p = static_cast<const uint8_t*>(base) + i * (dtype == DType::f32 ? 4 : 2);
  const bool whole = count == kWidth && (reinterpret_cast<uintptr_t>(p) & (kWidth * 2 - 1)) == 0;
  if (!whole) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) v[j] = j < count ? load_float(base, dtype, i + j) : 0.0f;
  } else if (dtype == DType::f32) {
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) {
      const float2 q = *reinterpret_cast<const float2*>(p + j * 4);
      v[j] = q.x, v[j + 1] = q.y;
    }
  } else {
    uint32_t words[kWidth / 2];
    if constexpr (kWidth == 8) {
      *reinterpret_cast<uint4*>(words) = *reinterpret_cast<const uint4*>(p);
    } else {
      *reinterpret_cast<uint2*>(words) = *reinterpret_cast<const uint2*>(p);
    }
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) {
      const float2 q = unpack_pair(dtype, words[j / 2]);
      v[j] = q.x, v[j + 1] = q.y;
    }
  }
}

template <int kWidth>
__device__ __forceinline__ void store_row(void* base, DType dtype, int64_t i, int count,
                                          const float (&v)[kWidth]) {
  uint8_t* p = static_cast<uint8_t*>(base) + i * (dtype == DType::f32 ? 4 : 2);
  const bool whole = count == kWidth && (reinterpret_cast<uintptr_t>(p) & (kWidth * 2 - 1)) == 0;
  if (!whole) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (j >= count) break;
      if (dtype == DType::f32) {
        reinterpret_cast<float*>(p)[j] = v[j];
      } else {
        reinterpret_cast<uint16_t*>(p)[j] = static_cast<uint16_t>(pack_pair(dtype, v[j], 0.0f));
      }
    }
  } else if (dtype == DType::f32) {
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) {
      *reinterpret_cast<float2*>(p + j * 4) = float2{v[j], v[j + 1]};
    }
  } else {
    uint32_t words[kWidth / 2];
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) words[j / 2] = pack_pair(dtype, v[j], v[j + 1]);
    if constexpr (kWidth == 8) {
      *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(words);
    } else {
      *reinterpret_cast<uint2*>(p) = *reinterpret_cast<const uint2*>(words);
    }
  }
}

// Scales of row m of x and of rows n to n + 7 of w, and bias.
__device__ __forceinline__ void scale_row(const Finish& f, int m, int n, float (&v)[8]) {
  const int count = min(8, f.n - n);
  float scale[8], bias[8] = {};
  if (f.w_scale != nullptr && f.group_n == 1) {
    load_row(f.w_scale, f.w_scale_dtype, n, count, scale);
  } else {
    const float one = w_scale_of(f, n);
#pragma unroll
    for (int j = 0; j < 8; ++j) scale[j] = one;
  }
  if (f.bias != nullptr) load_row(f.bias, f.bias_dtype, n, count, bias);
  const float x_scale = f.x_scale == nullptr ? 1.0f : f.x_scale[m];
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] = fmaf(v[j], x_scale * scale[j], bias[j]);
}

// Columns n to n + 7 (rows of w; n is a multiple of 8) of row m, scaled and with bias already.
__device__ __forceinline__ void finish_row(const Finish& f, int m, int n, float (&v)[8]) {
  if (m >= f.m || n >= f.n) return;
  const int count = f.n - n < 8 ? f.n - n : 8;
  if (is_gated(f.activation)) {
    float g[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) g[i] = activated(f.activation, v[2 * i]) * v[2 * i + 1];
    if (f.residual != nullptr) {
      float r[4];
      load_row(f.residual, f.residual_dtype, m * f.residual_stride + n / 2, count / 2, r);
#pragma unroll
      for (int i = 0; i < 4; ++i) g[i] += r[i];
    }
    store_row(f.out, f.out_dtype, m * f.out_stride + n / 2, count / 2, g);
    return;
  }
  if (f.activation != Activation::none) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = activated(f.activation, v[i]);
  }
  if (f.residual != nullptr) {
    float r[8];
    load_row(f.residual, f.residual_dtype, m * f.residual_stride + n, count, r);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += r[i];
  }
  store_row(f.out, f.out_dtype, m * f.out_stride + n, count, v);
}

}  // namespace
}  // namespace lowbit
