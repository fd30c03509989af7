// Runs of elements to f32 and back, for kernels that work in f32 whatever the dtype of their
// tensors. Plain loops that become vector code under the flags of the file that includes this one,
// but for f16, which has its own instructions.
#pragma once

#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "csrc/base/dtype.h"

namespace lowbit {

// to[0..count) = elements [first, first + count) of `from`, exactly.
static inline void load_floats(const void* from, DType dtype, int64_t first, int64_t count,
                               float* to) {
  if (count <= 0) return;
  switch (dtype) {
    case DType::f32:
      std::memcpy(to, static_cast<const float*>(from) + first, static_cast<size_t>(count) * 4);
      return;
    case DType::bf16: {
      const uint16_t* p = static_cast<const uint16_t*>(from) + first;
      for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_f32(p[i]);
      return;
    }
    case DType::f16: {
      const uint16_t* p = static_cast<const uint16_t*>(from) + first;
      int64_t i = 0;
#if defined(__F16C__)
      for (; i + 8 <= count; i += 8) {
        _mm256_storeu_ps(to + i,
                         _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i))));
      }
#endif
      for (; i < count; ++i) to[i] = f16_to_f32(p[i]);
      return;
    }
    case DType::i8: {
      const int8_t* p = static_cast<const int8_t*>(from) + first;
      for (int64_t i = 0; i < count; ++i) to[i] = p[i];
      return;
    }
    case DType::e4m3: {
      const uint8_t* p = static_cast<const uint8_t*>(from) + first;
      for (int64_t i = 0; i < count; ++i) to[i] = e4m3_to_f32(p[i]);
      return;
    }
    case DType::e5m2: {
      const uint8_t* p = static_cast<const uint8_t*>(from) + first;
      for (int64_t i = 0; i < count; ++i) to[i] = e5m2_to_f32(p[i]);
      return;
    }
    default:
      for (int64_t i = 0; i < count; ++i) to[i] = load_f32(from, dtype, first + i);
  }
}

// Elements [first, first + count) of `to` = from[0..count), rounded to nearest even. `to` is of a
// floating dtype.
static inline void store_floats(void* to, DType dtype, int64_t first, int64_t count,
                                const float* from) {
  if (count <= 0) return;
  switch (dtype) {
    case DType::f32:
      std::memcpy(static_cast<float*>(to) + first, from, static_cast<size_t>(count) * 4);
      return;
    case DType::bf16: {
      uint16_t* p = static_cast<uint16_t*>(to) + first;
      for (int64_t i = 0; i < count; ++i) p[i] = f32_to_bf16(from[i]);
      return;
    }
    case DType::f16: {
      uint16_t* p = static_cast<uint16_t*>(to) + first;
      int64_t i = 0;
#if defined(__F16C__)
      for (; i + 8 <= count; i += 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
      }
#endif
      for (; i < count; ++i) p[i] = f32_to_f16(from[i]);
      return;
    }
    default:
      for (int64_t i = 0; i < count; ++i) store_f32(to, dtype, first + i, from[i]);
  }
}
static inline void store_floats(void* to, DType dtype, int64_t first, int64_t count,
                                const double* from) {
  for (int64_t i = 0; i < count; ++i) store_f32(to, dtype, first + i, static_cast<float>(from[i]));
}

}  // namespace lowbit
