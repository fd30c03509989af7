// decode: tokens of a cache's block as rows of f32, for vector rows of attention and of kv.
#pragma once

#include "csrc/attention/cache.h"
#include "csrc/simd/codes.h"

namespace lowbit {

// Consecutive tokens of one part of a block, K or V.
struct KvTokens {
  KvFormat format;
  const uint8_t *codes, *scales, *zeros;
  int count;
};

static inline KvTokens kv_tokens(KvFormat f, const KvBlock& b, const uint8_t* block, int64_t token,
                                 int count, int64_t dim, bool of_values) {
  const KvRow row = kv_row(f, b, const_cast<uint8_t*>(block), token, dim, of_values);
  return {f, row.codes, row.scale, row.zero, count};
}

// f(p) makes lanes of what lies at p, `kBytes` an element. Not one byte past the row is touched.
template <int kBytes, class F>
static inline void decode_row(const uint8_t* codes, int64_t dim, float* out, const F& f) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store_lanes(out + d, f(codes + d * kBytes));
  if (d == dim) return;
  uint8_t rest[kLanes * kBytes] = {};
  std::memcpy(rest, codes + d * kBytes, static_cast<size_t>((dim - d) * kBytes));
  store_part(out + d, f(rest), dim - d);
}

static inline Lanes nibbles(IntLanes codes, float scale, float zero) {
  return (to_floats(codes) - zero) * scale;
}
static inline void decode_int4(const uint8_t* codes, int64_t dim, float scale, float zero,
                               float* out) {
  const int64_t half = dim / 2;
  int64_t d = 0;
  for (; d + kLanes <= half; d += kLanes) {
    const IntLanes both = load_u8(codes + d);
    store_lanes(out + d, nibbles(both & 15, scale, zero));
    store_lanes(out + half + d, nibbles(both >> 4, scale, zero));
  }
  if (d == half) return;
  uint8_t rest[kLanes] = {};
  std::memcpy(rest, codes + d, static_cast<size_t>(half - d));
  const IntLanes both = load_u8(rest);
  store_part(out + d, nibbles(both & 15, scale, zero), half - d);
  store_part(out + half + d, nibbles(both >> 4, scale, zero), half - d);
}

// out [count][stride]
static inline void kv_decode(const KvTokens& from, int64_t dim, float* out, int64_t stride) {
  const int64_t bytes = kv_row_bytes(from.format, dim);
  const auto each = [&](const auto& row) {
    const uint8_t* codes = from.codes;
    for (int i = 0; i < from.count; ++i, codes += bytes, out += stride) row(i, codes);
  };
  const auto half = [](const uint8_t* at, int i) { return f16_to_f32(kv_half(at + 2 * i)); };
  switch (from.format) {
    case KvFormat::f32:
      return each(
          [&](int, const uint8_t* codes) { std::memcpy(out, codes, static_cast<size_t>(bytes)); });
    case KvFormat::f16:
      return each([&](int, const uint8_t* codes) {
        decode_row<2>(codes, dim, out, [](const uint8_t* p) {
          return load_lanes(reinterpret_cast<const F16Bits*>(p));
        });
      });
    case KvFormat::bf16:
      return each([&](int, const uint8_t* codes) {
        decode_row<2>(codes, dim, out, [](const uint8_t* p) {
          return load_lanes(reinterpret_cast<const Bf16Bits*>(p));
        });
      });
    case KvFormat::fp8_e4m3:
      return each([&](int i, const uint8_t* codes) {
        const float scale = half(from.scales, i);
        decode_row<1>(codes, dim, out, [=](const uint8_t* p) { return load_e4m3(p) * scale; });
      });
    case KvFormat::int8:
      return each([&](int i, const uint8_t* codes) {
        const float scale = half(from.scales, i);
        decode_row<1>(codes, dim, out,
                      [=](const uint8_t* p) { return to_floats(load_i8(p)) * scale; });
      });
    case KvFormat::int4:
      return each([&](int i, const uint8_t* codes) {
        decode_int4(codes, dim, half(from.scales, i), half(from.zeros, i), out);
      });
  }
}

}  // namespace lowbit
