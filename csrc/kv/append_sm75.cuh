// append where rows are whole: k and v of one dtype, aligned, head_dim = head_dim_v a multiple of
// 16 up to 512, RoPE of all dimensions or none. dtype and format are known to the compiler, and
// what a thread does besides its numbers is paid once for 32 of them.
//
// A group of `lanes` threads takes K and V of one token and head; a lane has eight elements of the
// first half of the dimensions and the eight that stand as far in the second: the pairs of RoPE by
// halves, and the nibbles of a byte of int4.
#pragma once

#include <type_traits>

#include "csrc/cuda/eight.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/kv/encode.h"
#include "csrc/kv/kv.h"

namespace lowbit {
namespace {

constexpr unsigned kAppendThreads = 256;

// Sizes in eights where they are lengths of tensors, in bytes where they are a cache's.
struct Whole {
  unsigned items;  // tokens * heads
  unsigned heads, log_lanes, log_page;
  unsigned eights;  // of half a row: head_dim / 16
  int64_t k_token, k_head, v_token, v_head, cos, sin;
  int32_t slots, page_slots;
  int64_t page_bytes;  // of all heads
  unsigned head_bytes, row_bytes;
  unsigned v, scale[2], zero[2];  // parts of a block; those of K, then of V
};

__device__ float turned_first(float x1, float x2, float c, float s) {
  return __fmaf_rn(x1, c, -__fmul_rn(x2, s));
}
__device__ float turned_second(float x1, float x2, float c, float s) {
  return __fmaf_rn(x2, c, __fmul_rn(x1, s));
}

__device__ void turn_neighbours(float (&x)[kEight], const float4& c, const float4& s) {
  const float cos[4] = {c.x, c.y, c.z, c.w}, sin[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
  for (int i = 0; i < kEight / 2; ++i) {
    const float x1 = x[2 * i], x2 = x[2 * i + 1];
    x[2 * i] = turned_first(x1, x2, cos[i], sin[i]);
    x[2 * i + 1] = turned_second(x1, x2, cos[i], sin[i]);
  }
}

__device__ void turn_whole(const KvArgs& a, const Whole& w, int64_t position, unsigned lane,
                           float (&low)[kEight], float (&high)[kEight]) {
  if (a.pairing == Pairing::half) {
    float c[kEight], s[kEight];
    unpack<DType::f32>(fetch<DType::f32>(a.cos.data, position * w.cos + lane), c);
    unpack<DType::f32>(fetch<DType::f32>(a.sin.data, position * w.sin + lane), s);
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      const float x1 = low[i], x2 = high[i];
      low[i] = turned_first(x1, x2, c[i], s[i]);
      high[i] = turned_second(x1, x2, c[i], s[i]);
    }
    return;
  }
  const auto* cos = reinterpret_cast<const float4*>(a.cos.data) + position * w.cos * 2;
  const auto* sin = reinterpret_cast<const float4*>(a.sin.data) + position * w.sin * 2;
  turn_neighbours(low, cos[lane], sin[lane]);
  turn_neighbours(high, cos[w.eights + lane], sin[w.eights + lane]);
}

// The low bytes of four words.
__device__ uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// Eight codes as the low bytes of words; what rounding leaves above them is cut off.
template <KvFormat F>
__device__ uint2 codes_of(const float (&x)[kEight], const KvScale& s) {
  if constexpr (F == KvFormat::fp8_e4m3) {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float y0 = __fmul_rn(x[2 * i], s.inverse), y1 = __fmul_rn(x[2 * i + 1], s.inverse);
#if __CUDA_ARCH__ >= 890
      uint16_t both;
      asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(y1), "f"(y0));
      pairs[i] = both;
#else
      pairs[i] = f32_to_e4m3(y0) | static_cast<uint32_t>(f32_to_e4m3(y1)) << 8;
#endif
    }
    return {pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
  } else {
    uint32_t words[kEight];
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      const float y = F == KvFormat::int8
                          ? fminf(fmaxf(__fmul_rn(x[i], s.inverse), -127.0f), 127.0f)
                          : fminf(fmaxf(__fmaf_rn(x[i], s.inverse, s.zero_point), 0.0f), 15.0f);
      words[i] = float_bits(__fadd_rn(y, 0x1.8p23f));
    }
    return {low_bytes(words[0], words[1], words[2], words[3]),
            low_bytes(words[4], words[5], words[6], words[7])};
  }
}

// What a row's lanes know of its range. A number that is none makes `most` inf.
struct Span {
  float least, most;
};

template <KvFormat F>
__device__ Span span_of(const float (&low)[kEight], const float (&high)[kEight]) {
  Span s = {0.0f, 0.0f};
  float none = 0.0f;  // NaN once something is not finite
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    for (const float x : {low[i], high[i]}) {
      none = __fmaf_rn(x, 0.0f, none);
      if (F == KvFormat::int4) {
        s.least = fminf(s.least, x);
        s.most = fmaxf(s.most, x);
      } else {
        s.most = fmaxf(s.most, fabsf(x));
      }
    }
  }
  if (none != none) s.most = INFINITY;
  return s;
}

template <KvFormat F>
__device__ void span_across(Span& s, unsigned lanes, unsigned group) {
  for (unsigned step = lanes / 2; step > 0; step /= 2) {
    s.most = fmaxf(s.most, __shfl_xor_sync(group, s.most, step));
    if (F == KvFormat::int4) s.least = fminf(s.least, __shfl_xor_sync(group, s.least, step));
  }
}

// kv_scale_of() for finite rows, the same bits with fewer instructions: a quotient is off by an ulp
// at most before its remainder, which is exact, corrects it. Markstein, 1990. Where the range of
// f32 would make it inexact the scale is 2^-24 either way.
__device__ float quotient(float x, float by, float inverse) {
  const float q = __fmul_rn(x, inverse);
  return __fmaf_rn(__fmaf_rn(-by, q, x), inverse, q);
}
template <KvFormat F>
__device__ KvScale scale_of(const Span& span) {
  constexpr float kLimit = F == KvFormat::int4 ? 15.0f : F == KvFormat::int8 ? 127.0f : 448.0f;
  const float wanted = quotient(span.most - span.least, kLimit, 1.0f / kLimit);
  KvScale s = {};
  s.scale = f32_to_half(fminf(wanted, 65504.0f));
  if (s.scale == 0) s.scale = 1;
  const float scale = half_to_f32(s.scale);
  s.inverse = __frcp_rn(scale);
  if (F == KvFormat::int4) {
    s.zero = f32_to_half(fminf(quotient(-span.least, scale, s.inverse), 15.0f));
    s.zero_point = half_to_f32(s.zero);
  }
  return s;
}

// One row of K (part 0) or V (part 1) to its token of a block.
template <KvFormat F>
__device__ void store_row(const Whole& w, uint8_t* block, unsigned token, int part, unsigned lane,
                          unsigned group, const float (&low)[kEight], const float (&high)[kEight]) {
  uint8_t* codes = block + (part == 1 ? w.v : 0u) + token * w.row_bytes;
  const bool here = lane < w.eights;
  if constexpr (F < KvFormat::fp8_e4m3) {
    constexpr DType kTo = kv_dtype(F);
    if (!here) return;
    put<kTo>(codes, lane, pack<kTo>(low));
    put<kTo>(codes, w.eights + lane, pack<kTo>(high));
  } else {
    Span span = span_of<F>(low, high);
    span_across<F>(span, 1u << w.log_lanes, group);
    const bool finite = span.most < INFINITY;
    KvScale s = scale_of<F>(span);
    if (!finite) s.scale = 0x7e00, s.zero = 0;
    if (!here) return;
    uint2 a = codes_of<F>(low, s), b = codes_of<F>(high, s);
    if (!finite) a = b = {0, 0};
    auto* to = reinterpret_cast<uint2*>(codes);
    if constexpr (F == KvFormat::int4) {
      to[lane] = {a.x | b.x << 4, a.y | b.y << 4};
    } else {
      to[lane] = a;
      to[w.eights + lane] = b;
    }
    if (lane == 0) {
      reinterpret_cast<uint16_t*>(block + w.scale[part])[token] = s.scale;
      if (F == KvFormat::int4) reinterpret_cast<uint16_t*>(block + w.zero[part])[token] = s.zero;
    }
  }
}

// The same to the prefix region, which has a format of its own.
__device__ void store_prefix(const KvRow& row, const Whole& w, unsigned lane,
                             const float (&low)[kEight], const float (&high)[kEight]) {
  if (lane >= w.eights) return;
  const auto store = [&](auto dtype) {
    constexpr DType kTo = decltype(dtype)::value;
    put<kTo>(row.codes, lane, pack<kTo>(low));
    put<kTo>(row.codes, w.eights + lane, pack<kTo>(high));
  };
  switch (row.format) {
    case KvFormat::f32: return store(std::integral_constant<DType, DType::f32>());
    case KvFormat::f16: return store(std::integral_constant<DType, DType::f16>());
    default: return store(std::integral_constant<DType, DType::bf16>());
  }
}

// Five blocks of a multiprocessor keep 48 registers a thread: what waits is memory.
template <DType T, KvFormat F, bool kPrefix>
__global__ void __launch_bounds__(kAppendThreads, T == DType::f32 ? 3 : 5)
    append_whole(const __grid_constant__ KvArgs a, const __grid_constant__ Whole w,
                 unsigned long long* check) {
  wait_for_others();
  const unsigned at = blockIdx.x * kAppendThreads + threadIdx.x, item = at >> w.log_lanes;
  if (item >= w.items) return;  // whole groups: those who stay shuffle among themselves
  const unsigned lanes = 1u << w.log_lanes, lane = at & (lanes - 1);
  const unsigned group =
      lanes == 32 ? ~0u : ((1u << lanes) - 1) << (threadIdx.x & 31 & ~(lanes - 1));
  const unsigned token = item / w.heads, head = item - token * w.heads;
  const int64_t k = token * w.k_token + head * w.k_head, v = token * w.v_token + head * w.v_head;
  Eight<T> raw[4] = {};
  if (lane < w.eights) {
    raw[0] = fetch<T>(a.k.data, k + lane);
    raw[1] = fetch<T>(a.k.data, k + w.eights + lane);
    raw[2] = fetch<T>(a.v.data, v + lane);
    raw[3] = fetch<T>(a.v.data, v + w.eights + lane);
  }
  const int32_t slot = static_cast<const int32_t*>(a.slots.data)[token];
  if (slot < 0 || slot >= w.slots) {
    if (slot != -1 && check != nullptr && lane == 0 && head == 0) report(check, token, slot);
    return;
  }
  float low[kEight], high[kEight];
  unpack<T>(raw[0], low);
  unpack<T>(raw[1], high);
  if (present(a.cos)) {
    const int32_t position = static_cast<const int32_t*>(a.positions.data)[token];
    if (position < 0 || position >= a.cos.shape[0]) {
      if (check != nullptr && lane == 0 && head == 0) {
        report(check, kOfPositions + token, position);
      }
      return;
    }
    if (lane < w.eights) turn_whole(a, w, position, lane, low, high);
  }
  if (kPrefix && slot >= w.page_slots) {
    store_prefix(kv_row_at(a.cache, slot, head, false), w, lane, low, high);
    unpack<T>(raw[2], low);
    unpack<T>(raw[3], high);
    store_prefix(kv_row_at(a.cache, slot, head, true), w, lane, low, high);
    return;
  }
  const unsigned in_page = slot & ((1u << w.log_page) - 1);
  uint8_t* block = a.cache.data + (slot >> w.log_page) * w.page_bytes + head * w.head_bytes;
  store_row<F>(w, block, in_page, 0, lane, group, low, high);
  unpack<T>(raw[2], low);
  unpack<T>(raw[3], high);
  store_row<F>(w, block, in_page, 1, lane, group, low, high);
}

bool is_whole(const KvArgs& a) {
  const KvCache& c = a.cache;
  const bool turned = present(a.cos);
  return a.k.dtype == a.v.dtype && c.head_dim == c.head_dim_v && c.head_dim % 16 == 0 &&
         c.head_dim <= 512 && in_eights(a.k) && in_eights(a.v) &&
         (!turned || (2 * a.cos.shape[1] == c.head_dim && in_eights(a.cos) && in_eights(a.sin))) &&
         a.slots.shape[0] * c.kv_heads * 32 < INT32_MAX && c.kv_heads * c.page.bytes < INT32_MAX;
}

template <DType T, KvFormat F>
Status append_format(const KvArgs& a, const Whole& w, unsigned blocks, const Ctx& ctx) {
  return launch(ctx, a.cache.prefix_rows > 0 ? append_whole<T, F, true> : append_whole<T, F, false>,
                blocks, kAppendThreads, 0, a, w, ctx.check);
}
template <DType T>
Status append_dtype(const KvArgs& a, const Whole& w, unsigned blocks, const Ctx& ctx) {
  switch (a.cache.format) {
    case KvFormat::f32: return append_format<T, KvFormat::f32>(a, w, blocks, ctx);
    case KvFormat::f16: return append_format<T, KvFormat::f16>(a, w, blocks, ctx);
    case KvFormat::bf16: return append_format<T, KvFormat::bf16>(a, w, blocks, ctx);
    case KvFormat::fp8_e4m3: return append_format<T, KvFormat::fp8_e4m3>(a, w, blocks, ctx);
    case KvFormat::int8: return append_format<T, KvFormat::int8>(a, w, blocks, ctx);
    default: return append_format<T, KvFormat::int4>(a, w, blocks, ctx);
  }
}

Status run_whole(const KvArgs& a, const Ctx& ctx) {
  const KvCache& c = a.cache;
  const auto log_of = [](int64_t n) {
    unsigned log = 0;
    while ((int64_t{1} << log) < n) ++log;
    return log;
  };
  Whole w = {};
  w.heads = static_cast<unsigned>(c.kv_heads);
  w.items = static_cast<unsigned>(a.slots.shape[0] * c.kv_heads);
  w.eights = static_cast<unsigned>(c.head_dim / 16);
  w.log_lanes = log_of(w.eights);
  w.log_page = log_of(c.page_size);
  w.k_token = a.k.strides[0] / kEight, w.k_head = a.k.strides[1] / kEight;
  w.v_token = a.v.strides[0] / kEight, w.v_head = a.v.strides[1] / kEight;
  w.slots = static_cast<int32_t>(kv_slots(c));
  w.page_slots = static_cast<int32_t>(kv_page_slots(c));
  w.page_bytes = c.kv_heads * c.page.bytes;
  w.head_bytes = static_cast<unsigned>(c.page.bytes);
  w.row_bytes = static_cast<unsigned>(kv_row_bytes(c.format, c.head_dim));
  w.v = static_cast<unsigned>(c.page.v);
  w.scale[0] = static_cast<unsigned>(c.page.k_scale);
  w.scale[1] = static_cast<unsigned>(c.page.v_scale);
  w.zero[0] = static_cast<unsigned>(c.page.k_zero);
  w.zero[1] = static_cast<unsigned>(c.page.v_zero);
  if (present(a.cos)) w.cos = a.cos.strides[0] / kEight, w.sin = a.sin.strides[0] / kEight;
  const unsigned blocks = grid_for(int64_t{w.items} << w.log_lanes, kAppendThreads, INT32_MAX);
  Status status = ok();
  with_dtype(a.k.dtype,
             [&](auto dtype) { status = append_dtype<decltype(dtype)::value>(a, w, blocks, ctx); });
  return status;
}

}  // namespace
}  // namespace lowbit
