// append where rows are whole: k and v of one dtype, aligned, head_dim = head_dim_v a multiple of
// 16 up to 512, RoPE of all dimensions or none. dtype and format are known to the compiler, and
// what a thread does besides its numbers is paid once for 32 of them.
//
// A group of `lanes` threads takes K and V of one token and head. Groups that are neighbours take
// the heads of a token, or where it was measured to be better the tokens of one head, as many as a
// warp has groups: their scales are neighbours in a page and go there by one access in place of
// many of two bytes. A lane has eight elements of the first half of the dimensions and the eight
// that stand as far in the second: the pairs of RoPE by halves, and the nibbles of a byte of int4.
#pragma once

#include <type_traits>

#include "csrc/cuda/codes.cuh"
#include "csrc/cuda/eight.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/kv/encode.h"
#include "csrc/kv/kv.h"

namespace lowbit {
namespace {

constexpr unsigned kAppendThreads = 128;

// Sizes in eights where they are lengths of tensors, in bytes where they are a cache's.
struct Whole {
  unsigned tokens, heads, log_lanes, log_page;
  unsigned log_run;  // of tokens of one head that are neighbours
  unsigned eights;   // of half a row: head_dim / 16
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

// Of eight numbers, two words of codes; of int4 those of the eight that stand in its high bits,
// too. `kBound`: codes may leave their range, which rounding of the scale alone does not make them.
template <KvFormat F, bool kBound>
__device__ uint2 codes_of(const float (&low)[kEight], const float (&high)[kEight],
                          const KvScale& s) {
  // Rounded to the low bits of a word; what is above them is cut off.
  const auto whole = [&](float x) {
    float y = F == KvFormat::int8 ? __fmul_rn(x, s.inverse) : __fmaf_rn(x, s.inverse, s.zero_point);
    if (kBound && F == KvFormat::int8) y = fminf(fmaxf(y, -127.0f), 127.0f);
    if (kBound && F == KvFormat::int4) y = fminf(fmaxf(y, 0.0f), 15.0f);
    return float_bits(__fadd_rn(y, 0x1.8p23f));
  };
  uint32_t word[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float *x = low + 4 * i, *z = high + 4 * i;
    if constexpr (F == KvFormat::fp8_e4m3) {
      word[i] = fp8_four<DType::e4m3>(__fmul_rn(x[0], s.inverse), __fmul_rn(x[1], s.inverse),
                                      __fmul_rn(x[2], s.inverse), __fmul_rn(x[3], s.inverse));
    } else {
      uint32_t one[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        one[j] = whole(x[j]);
        if (F == KvFormat::int4) one[j] += whole(z[j]) << 4;
      }
      word[i] = low_bytes(one[0], one[1], one[2], one[3]);
    }
  }
  return {word[0], word[1]};
}

// What a row's lanes know of its range: the largest number and the largest of their negatives, at
// least 0; of int8 and fp8 the largest magnitude. NaN is larger than all.
struct Span {
  float most, down;
};

template <KvFormat F>
__device__ Span span_of(const float (&low)[kEight], const float (&high)[kEight]) {
  Span s = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    for (const float x : {low[i], high[i]}) {
      s.most = larger(s.most, F == KvFormat::int4 ? x : fabsf(x));
      if (F == KvFormat::int4) s.down = larger(s.down, -x);
    }
  }
  return s;
}
// The same of elements as they lie in memory.
template <KvFormat F, DType T>
__device__ Span span_of(const Eight<T>& low, const Eight<T>& high) {
  constexpr uint32_t kSigns = T == DType::f32 ? 0x80000000u : 0x80008000u;
  uint32_t most = 0, down = 0;
  for (const Eight<T>* eight : {&low, &high}) {
#pragma unroll
    for (int i = 0; i < kEight / kPerWord<T>; ++i) {
      const uint4& w = eight->words[i];
      for (const uint32_t x : {w.x, w.y, w.z, w.w}) {
        most = larger_of<T>(most, F == KvFormat::int4 ? x : x & ~kSigns);
        if (F == KvFormat::int4) down = larger_of<T>(down, x ^ kSigns);
      }
    }
  }
  float a[kPerWord<T>], b[kPerWord<T>];
  unpack_word<T>({most, 0, 0, 0}, a);
  unpack_word<T>({down, 0, 0, 0}, b);
  return {larger(a[0], a[1]), larger(b[0], b[1])};
}

template <KvFormat F>
__device__ void span_across(Span& s, unsigned step, unsigned group) {
  s.most = larger(s.most, __shfl_xor_sync(group, s.most, step));
  if (F == KvFormat::int4) s.down = larger(s.down, __shfl_xor_sync(group, s.down, step));
}

// kv_scale_of(), the same bits with fewer instructions: a quotient is off by an ulp at most before
// its remainder, which is exact, corrects it and leaves -0 its sign. Markstein, 1990. Where the
// range of f32 would make it inexact the scale is 2^-24 either way.
__device__ float quotient(float x, float by, float inverse) {
  const float q = __fmul_rn(x, inverse);
  return __fmaf_rn(-inverse, __fmaf_rn(by, q, -x), q);
}

struct Coding {
  KvScale s;
  bool finite;
  bool bound;  // the scale is not within half an ulp of what was wanted
};
template <KvFormat F>
__device__ Coding coding_of(const Span& span) {
  constexpr float kLimit = F == KvFormat::int4 ? 15.0f : F == KvFormat::int8 ? 127.0f : 448.0f;
  Coding c = {};
  c.finite = span.most < INFINITY && (F != KvFormat::int4 || span.down < INFINITY);
  const float wanted = quotient(span.most + span.down, kLimit, 1.0f / kLimit);
  c.bound = !(wanted >= 0x1p-14f && wanted <= 65504.0f);
  c.s.scale = f32_to_half(fminf(wanted, 65504.0f));
  if (c.s.scale == 0) c.s.scale = 1;
  const float scale = half_to_f32(c.s.scale);
  c.s.inverse = __frcp_rn(scale);
  if (F == KvFormat::int4) {
    const float down = span.down > 0.0f ? span.down : -0.0f;
    c.s.zero = f32_to_half(fminf(quotient(down, scale, c.s.inverse), 15.0f));
    c.s.zero_point = half_to_f32(c.s.zero);
  }
  if (!c.finite) c.s.scale = 0x7e00, c.s.zero = 0;
  return c;
}

// One row of K (part 0) or V (part 1) to its token of a block.
template <KvFormat F>
__device__ void store_row(const Whole& w, uint8_t* block, unsigned token, int part, unsigned lane,
                          const Coding& c, const float (&low)[kEight],
                          const float (&high)[kEight]) {
  uint8_t* codes = block + (part == 1 ? w.v : 0u) + token * w.row_bytes;
  if (lane >= w.eights) return;
  if constexpr (F < KvFormat::fp8_e4m3) {
    constexpr DType kTo = kv_dtype(F);
    put<kTo>(codes, lane, pack<kTo>(low));
    put<kTo>(codes, w.eights + lane, pack<kTo>(high));
  } else {
    auto* to = reinterpret_cast<uint2*>(codes);
    const auto code = [&](auto&& x, auto&& z) -> uint2 {
      if (!c.finite) return {0, 0};
      return F != KvFormat::fp8_e4m3 && c.bound ? codes_of<F, true>(x, z, c.s)
                                                : codes_of<F, false>(x, z, c.s);
    };
    to[lane] = code(low, high);
    if constexpr (F != KvFormat::int4) to[w.eights + lane] = code(high, low);
    if (lane == 0) {
      reinterpret_cast<uint16_t*>(block + w.scale[part])[token] = c.s.scale;
      if (F == KvFormat::int4) reinterpret_cast<uint16_t*>(block + w.zero[part])[token] = c.s.zero;
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

// Ten blocks of a multiprocessor keep 48 registers a thread: what waits is memory.
template <DType T, KvFormat F, bool kPrefix>
__global__ void __launch_bounds__(kAppendThreads, T == DType::f32 ? 7 : 10)
    append_whole(const __grid_constant__ KvArgs a, const __grid_constant__ Whole w,
                 unsigned long long* check) {
  wait_for_others();
  const unsigned lanes = 1u << w.log_lanes, lane = threadIdx.x & (lanes - 1);
  const unsigned item = (blockIdx.x * kAppendThreads + threadIdx.x) >> w.log_lanes;
  const unsigned run = item >> w.log_run, runs = run / w.heads, head = run - runs * w.heads;
  const unsigned token = (runs << w.log_run) + (item & ((1u << w.log_run) - 1));
  if (token >= w.tokens) return;  // whole groups: those who stay shuffle among themselves
  const unsigned group =
      lanes == 32 ? ~0u : ((1u << lanes) - 1) << (threadIdx.x & 31 & ~(lanes - 1));
  const bool turns = present(a.cos);
  // First, for more waits for them than for k and v.
  const int32_t position = turns ? static_cast<const int32_t*>(a.positions.data)[token] : 0;
  const int32_t slot = static_cast<const int32_t*>(a.slots.data)[token];
  const int64_t k = token * w.k_token + head * w.k_head, v = token * w.v_token + head * w.v_head;
  Eight<T> raw[4] = {};
  if (lane < w.eights) {
    raw[0] = fetch<T>(a.k.data, k + lane);
    raw[1] = fetch<T>(a.k.data, k + w.eights + lane);
    raw[2] = fetch<T>(a.v.data, v + lane);
    raw[3] = fetch<T>(a.v.data, v + w.eights + lane);
  }
  const bool reports = check != nullptr && lane == 0 && head == 0;
  if (slot < 0 || slot >= w.slots) {
    if (slot != -1 && reports) report(check, token, slot);
    return;
  }
  if (turns && (position < 0 || position >= a.cos.shape[0])) {
    if (reports) report(check, kOfPositions + token, position);
    return;
  }
  float low[kEight], high[kEight];
  unpack<T>(raw[0], low);
  unpack<T>(raw[1], high);
  if (turns && lane < w.eights) turn_whole(a, w, position, lane, low, high);
  if (kPrefix && slot >= w.page_slots) {
    store_prefix(kv_row_at(a.cache, slot, head, false), w, lane, low, high);
    unpack<T>(raw[2], low);
    unpack<T>(raw[3], high);
    store_prefix(kv_row_at(a.cache, slot, head, true), w, lane, low, high);
    return;
  }
  Coding coding[2] = {};
  if constexpr (F >= KvFormat::fp8_e4m3) {
    Span span[2] = {span_of<F>(low, high), span_of<F, T>(raw[2], raw[3])};
    for (unsigned step = lanes / 2; step > 0; step /= 2) {
      span_across<F>(span[0], step, group);
      span_across<F>(span[1], step, group);
    }
    coding[0] = coding_of<F>(span[0]);
    coding[1] = coding_of<F>(span[1]);
  }
  const unsigned in_page = slot & ((1u << w.log_page) - 1);
  uint8_t* block = a.cache.data + (slot >> w.log_page) * w.page_bytes + head * w.head_bytes;
  store_row<F>(w, block, in_page, 0, lane, coding[0], low, high);
  unpack<T>(raw[2], low);
  unpack<T>(raw[3], high);
  store_row<F>(w, block, in_page, 1, lane, coding[1], low, high);
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
  w.tokens = static_cast<unsigned>(a.slots.shape[0]);
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
  if (kv_format_row(c.format).scales && (w.log_lanes <= 2 || a.k.dtype == DType::f32)) {
    w.log_run = 5 - w.log_lanes;
  }
  const int64_t runs = ((w.tokens - int64_t{1}) >> w.log_run) + 1;
  const int64_t items = runs * w.heads << w.log_run;
  const unsigned blocks = grid_for(items << w.log_lanes, kAppendThreads, INT32_MAX);
  Status status = ok();
  with_dtype(a.k.dtype,
             [&](auto dtype) { status = append_dtype<decltype(dtype)::value>(a, w, blocks, ctx); });
  return status;
}

}  // namespace
}  // namespace lowbit
