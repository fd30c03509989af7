// Numbers of a cache on the device: rows of one token and head, eight elements or one at a time.
#pragma once

#include "csrc/attention/cache.h"
#include "csrc/cuda/elements.cuh"

namespace lowbit {

// A row with its scale and zero in registers; 1 and 0 where the format has none.
struct KvNumbers {
  KvFormat format;
  const uint8_t* codes;  // null: there is no such row
  float scale, zero;
};

static inline __device__ KvNumbers kv_numbers(const KvRow& row) {
  KvNumbers n = {row.format, row.codes, 1.0f, 0.0f};
  const auto half = [](const uint8_t* at) {
    return half_to_f32(*reinterpret_cast<const uint16_t*>(at));
  };
  if (row.format >= KvFormat::fp8_e4m3) n.scale = half(row.scale);
  if (row.format == KvFormat::int4) n.zero = half(row.zero);
  return n;
}

static inline __device__ float kv_number(const KvNumbers& n, int64_t dim, int64_t d) {
  switch (n.format) {
    case KvFormat::fp8_e4m3: return n.scale * e4m3_to_f32(n.codes[d]);
    case KvFormat::int8: return n.scale * static_cast<float>(static_cast<int8_t>(n.codes[d]));
    case KvFormat::int4: {
      const int64_t half = dim / 2;
      const int code = d < half ? n.codes[d] & 15 : n.codes[d - half] >> 4;
      return n.scale * (static_cast<float>(code) - n.zero);
    }
    default: return load_f32(n.codes, kv_dtype(n.format), d);
  }
}

// Elements d to d + 7, d a multiple of eight, of which `count` are there; zeros for the others.
static inline __device__ void kv_eight(const KvNumbers& n, int64_t dim, int64_t d, int count,
                                       float (&to)[kEight]) {
  if (n.format < KvFormat::fp8_e4m3) {
    load_eight(n.codes, kv_dtype(n.format), d, count, to);
    return;
  }
  const int64_t half = dim / 2;
  const bool int4 = n.format == KvFormat::int4, high = int4 && d >= half;
  const uint8_t* p = n.codes + (high ? d - half : d);
  const bool whole = count >= kEight && (reinterpret_cast<uintptr_t>(p) & 7) == 0;
  if (!whole || (int4 && half % kEight != 0)) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) to[i] = i < count ? kv_number(n, dim, d + i) : 0.0f;
    return;
  }
  const uint2 words = *reinterpret_cast<const uint2*>(p);
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const uint32_t code = (i < 4 ? words.x >> (8 * i) : words.y >> (8 * (i - 4))) & 0xffu;
    if (int4) {
      to[i] = n.scale * (static_cast<float>(high ? code >> 4 : code & 15u) - n.zero);
    } else if (n.format == KvFormat::int8) {
      to[i] = n.scale * static_cast<float>(static_cast<int8_t>(code));
    } else {
      to[i] = n.scale * e4m3_to_f32(static_cast<uint8_t>(code));
    }
  }
}

}  // namespace lowbit
