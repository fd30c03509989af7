// append where rows are whole: k and v of one dtype, aligned, head_dim = head_dim_v a multiple of
// 16 up to 512, RoPE of all dimensions or none. dtype and format are known to the compiler, and
// what a thread does besides its numbers is paid once for 32 of them.
//
// A group of lanes takes K and V of one token and head, groups that are neighbours the heads of one
// token: they share a reading of the tables of cosines. Of codes a block takes up to eight heads of
// some tokens.
// A lane has eight elements of the first half of the dimensions and the eight that stand as far in
// the second: the pairs of RoPE by halves, and the nibbles of a byte of int4. Half of a group's
// lanes find K's scale, the other half V's.
//
// Scales and zeros wait in shared memory until the block has those of all its tokens. Tokens that
// are neighbours in a page then go there side by side: an access of two bytes costs as much as one
// of 32.
#pragma once

#include <type_traits>

#include "csrc/cuda/codes.cuh"
#include "csrc/cuda/eight.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/kv/encode.h"
#include "csrc/kv/kv.h"

namespace lowbit {
namespace {

// Scales of one kind that a block may have: groups times at most two.
constexpr unsigned kAppendItems = 256;
// log2 of the tokens that a block takes where there are many: whole sectors of scales.
constexpr unsigned kLogAppendTokens = 4;
constexpr bool has_scales(KvFormat f) { return f >= KvFormat::fp8_e4m3; }
constexpr unsigned append_threads(DType t, KvFormat f) {
  return t == DType::f32 && has_scales(f) ? 256 : 128;
}
// What waits is memory. Codes keep 64 registers a thread, others 48, in f32 72.
constexpr unsigned append_blocks(DType t, KvFormat f) {
  return has_scales(f) ? 1024 / append_threads(t, f) : t == DType::f32 ? 7 : 10;
}

// Sizes in eights where they are lengths of tensors, in lines of 128 bytes where they are a
// cache's.
struct Whole {
  unsigned tokens, heads, log_lanes, log_page;
  unsigned log_run, chunk, inverse;  // tokens and heads of a block, 2^16 / chunk rounded up
  unsigned step;                     // tokens of a block at a time
  unsigned positions;                // that the tables have
  unsigned eights;                   // of half a row: head_dim / 16
  unsigned k_token, k_head, v_token, v_head, cos, sin;
  int32_t slots, page_slots;
  unsigned page_lines, head_lines, row_bytes;
  unsigned v, numbers[4];  // parts of a block: V; scales of K and V, zeros of K and V
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

__device__ void turn_whole(const KvArgs& a, const Whole& w, unsigned eights, unsigned position,
                           unsigned lane, float (&low)[kEight], float (&high)[kEight]) {
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
  const auto* cos = static_cast<const float4*>(a.cos.data) + 2 * position * w.cos;
  const auto* sin = static_cast<const float4*>(a.sin.data) + 2 * position * w.sin;
  turn_neighbours(low, cos[lane], sin[lane]);
  turn_neighbours(high, cos[eights + lane], sin[eights + lane]);
}

// Of eight numbers, two words of codes; of int4 those of the eight that stand in its high bits,
// too. `kBound`: codes may leave their range, which rounding of the scale alone does not make them.
template <KvFormat F, bool kBound>
__device__ uint2 codes_of(const float (&low)[kEight], const float (&high)[kEight], float inverse,
                          float zero_point) {
  // Rounded to the low bits of a word; what is above them is cut off.
  const auto whole = [&](float x) {
    float y = F == KvFormat::int8 ? __fmul_rn(x, inverse) : __fmaf_rn(x, inverse, zero_point);
    if (kBound && F == KvFormat::int8) y = fminf(fmaxf(y, -127.0f), 127.0f);
    if (kBound && F == KvFormat::int4) y = fminf(fmaxf(y, 0.0f), 15.0f);
    return float_bits(__fadd_rn(y, 0x1.8p23f));
  };
  uint32_t word[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float *x = low + 4 * i, *z = high + 4 * i;
    if constexpr (F == KvFormat::fp8_e4m3) {
      word[i] = fp8_four<DType::e4m3>(__fmul_rn(x[0], inverse), __fmul_rn(x[1], inverse),
                                      __fmul_rn(x[2], inverse), __fmul_rn(x[3], inverse));
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

template <DType T>
__device__ void unpack_pair(uint32_t w, float (&to)[2]) {
  if constexpr (T == DType::bf16) {
    to[0] = bits_float(w << 16);
    to[1] = bits_float(w & 0xffff0000u);
  } else {
    to[0] = half_to_f32(static_cast<uint16_t>(w));
    to[1] = half_to_f32(static_cast<uint16_t>(w >> 16));
  }
}

// What a row's lanes know of its range: the largest number and the largest of their negatives, at
// least 0; of int8 and fp8 the largest magnitude. NaN is larger than all.
struct Span {
  float most, down;
};

// Bits of floats are in the order of floats, those of negative ones among themselves in the
// inverse; three at a time where the GPU knows how.
template <KvFormat F>
__device__ Span span_of(const float (&low)[kEight], const float (&high)[kEight]) {
  uint32_t most = 0, down = 0x80000000u;
#pragma unroll
  for (int i = 0; i < kEight; i += 2) {
    if (F == KvFormat::int4) {
      for (const float* x : {low, high}) {
        const uint32_t a = float_bits(x[i]), b = float_bits(x[i + 1]);
        most = static_cast<uint32_t>(
            __vimax3_s32(static_cast<int>(most), static_cast<int>(a), static_cast<int>(b)));
        down = __vimax3_u32(down, a, b);
      }
    } else {
      most = __vimax3_u32(most, float_bits(larger(fabsf(low[i]), fabsf(low[i + 1]))),
                          float_bits(larger(fabsf(high[i]), fabsf(high[i + 1]))));
    }
  }
  return {bits_float(most), bits_float(down ^ 0x80000000u)};
}
// The same of elements as they lie in memory.
template <KvFormat F, DType T>
__device__ Span span_of(const Eight<T>& low, const Eight<T>& high) {
  if constexpr (T == DType::f32) {
    float a[kEight], b[kEight];
    unpack<T>(low, a);
    unpack<T>(high, b);
    return span_of<F>(a, b);
  } else {
    constexpr uint32_t kSigns = 0x80008000u;
    uint32_t most = 0, down = kSigns;
    for (const Eight<T>* eight : {&low, &high}) {
      const uint4& w = eight->words[0];
      most = __vimax3_s16x2(__vimax3_s16x2(most, w.x, w.y), w.z, w.w);
      down = __vimax3_u16x2(__vimax3_u16x2(down, w.x, w.y), w.z, w.w);
    }
    down ^= kSigns;
    float a[2], b[2] = {};
    if (F != KvFormat::int4) most = __vmaxu2(most, down);
    unpack_pair<T>(most, a);
    if (F == KvFormat::int4) unpack_pair<T>(down, b);
    return {larger(a[0], a[1]), larger(b[0], b[1])};
  }
}

// `own` with what the lane that stands `step` away gives.
template <KvFormat F>
__device__ Span span_with(Span own, const Span& given, unsigned step) {
  own.most = larger(own.most, __shfl_xor_sync(~0u, given.most, step));
  if (F == KvFormat::int4) own.down = larger(own.down, __shfl_xor_sync(~0u, given.down, step));
  return own;
}

// kv_scale_of(), the same bits with fewer instructions: a quotient is off by an ulp at most before
// its remainder, which is exact, corrects it and leaves -0 its sign. Markstein, 1990. Where the
// range of f32 would make it inexact the scale is 2^-24 either way.
__device__ float quotient(float x, float by, float inverse) {
  const float q = __fmul_rn(x, inverse);
  return __fmaf_rn(-inverse, __fmaf_rn(by, q, -x), q);
}

// 1 / x of a scale, correctly rounded: nothing of it leaves the range of f32.
__device__ float inverse_of_scale(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return __fmaf_rn(y, -__fmaf_rn(x, y, -1.0f), y);
}

struct Coding {
  uint32_t scale, zero;  // f16
  float inverse, zero_point;
  bool finite;
  bool bound;  // the scale is not within half an ulp of what was wanted
};
template <KvFormat F>
__device__ Coding coding_of(const Span& span) {
  constexpr float kLimit = F == KvFormat::int4 ? 15.0f : F == KvFormat::int8 ? 127.0f : 448.0f;
  const auto half_of = [](float x) { return pack_two<DType::f16>(x, 0.0f); };
  const auto number_of = [](uint32_t x) { return half_to_f32(static_cast<uint16_t>(x)); };
  Coding c = {};
  c.finite = span.most < INFINITY && (F != KvFormat::int4 || span.down < INFINITY);
  const float wanted =
      quotient(F == KvFormat::int4 ? span.most + span.down : span.most, kLimit, 1.0f / kLimit);
  c.bound = !(wanted >= 0x1p-14f && wanted <= 65504.0f);
  c.scale = half_of(fminf(wanted, 65504.0f));
  if (c.scale == 0) c.scale = 1;
  const float scale = number_of(c.scale);
  c.inverse = inverse_of_scale(scale);
  if (F == KvFormat::int4) {
    const float down = span.down > 0.0f ? span.down : -0.0f;
    c.zero = half_of(fminf(quotient(down, scale, c.inverse), 15.0f));
    c.zero_point = number_of(c.zero);
  }
  if (!c.finite) c.scale = 0x7e00, c.zero = 0;
  return c;
}

// One row of K or V to `to`, its place in a block.
template <KvFormat F>
__device__ void store_codes(unsigned eights, uint8_t* to, unsigned lane, float inverse,
                            float zero_point, bool plain, bool finite, const float (&low)[kEight],
                            const float (&high)[kEight]) {
  uint2 first, second = {};
  if (plain) {
    first = codes_of<F, false>(low, high, inverse, zero_point);
    if constexpr (F != KvFormat::int4) second = codes_of<F, false>(high, low, inverse, zero_point);
  } else {
    first = codes_of<F, true>(low, high, inverse, zero_point);
    if constexpr (F != KvFormat::int4) second = codes_of<F, true>(high, low, inverse, zero_point);
    if (!finite) first = second = {};
  }
  reinterpret_cast<uint2*>(to)[lane] = first;
  if constexpr (F != KvFormat::int4) reinterpret_cast<uint2*>(to)[eights + lane] = second;
}
template <KvFormat F>
__device__ void store_floats(unsigned eights, uint8_t* to, unsigned lane,
                             const float (&low)[kEight], const float (&high)[kEight]) {
  constexpr DType kTo = kv_dtype(F);
  put<kTo>(to, lane, pack<kTo>(low));
  put<kTo>(to, eights + lane, pack<kTo>(high));
}

// The same to the prefix region, which has a format of its own.
__device__ void store_prefix(const KvRow& row, const Whole& w, unsigned lane,
                             const float (&low)[kEight], const float (&high)[kEight]) {
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

// All lanes of a warp go through everything: what a lane or a group has not is read elsewhere and
// not written. kEights: of half a row; 0: the call says it.
template <DType T, KvFormat F, bool kPrefix, unsigned kEights>
__global__ void __launch_bounds__(append_threads(T, F), append_blocks(T, F))
    append_codes(const __grid_constant__ KvArgs a, const __grid_constant__ Whole w,
                 unsigned long long* check) {
  constexpr unsigned kNumbers = F == KvFormat::int4 ? 4 : 2;
  // [kNumbers][chunk][tokens], and slots of tokens.
  __shared__ uint16_t numbers[kNumbers * kAppendItems];
  __shared__ int32_t places[kAppendItems];
  wait_for_others();
  const unsigned eights = kEights == 0 ? w.eights : kEights;
  const unsigned log_lanes = kEights == 16 ? 4 : kEights == 8 ? 3 : kEights == 4 ? 2 : w.log_lanes;
  const unsigned row_bytes =
      kEights == 0 ? w.row_bytes : 2 * kEights * static_cast<unsigned>(kv_format_row(F).bits);
  const unsigned lanes = 1u << log_lanes, lane = threadIdx.x & (lanes - 1);
  const unsigned group = threadIdx.x >> log_lanes, run = 1u << w.log_run;
  const unsigned of_step = group * w.inverse >> 16, in_chunk = group - of_step * w.chunk;
  const unsigned token0 = blockIdx.x << w.log_run, head = blockIdx.y * w.chunk + in_chunk;
  const bool takes = of_step < w.step && head < w.heads, of_v = lane >= lanes / 2;
  const bool turns = present(a.cos);
  const unsigned mine = kEights == 0 ? min(lane, eights - 1) : lane,
                 head_at = min(head, w.heads - 1);
  const auto* slots = static_cast<const int32_t*>(a.slots.data);
  const auto* positions = static_cast<const int32_t*>(a.positions.data);
  const unsigned k_from = head_at * w.k_head + mine, v_from = head_at * w.v_head + mine;
  const unsigned upto = min(w.tokens, token0 + run);  // tokens of the block end here
  unsigned token = token0 + of_step;
  unsigned at = min(token, w.tokens - 1);
  int32_t position = turns ? positions[at] : 0, slot = slots[at];
  // Steps are the warp's: all its groups take as many.
  for (unsigned n = 0; n < run && token0 + n < w.tokens; n += w.step, token += w.step) {
    const bool there = takes && token < upto;
    const unsigned k = at * w.k_token + k_from, v = at * w.v_token + v_from;
    const Eight<T> raw[4] = {fetch<T>(a.k.data, k), fetch<T>(a.k.data, k + uint64_t{eights}),
                             fetch<T>(a.v.data, v), fetch<T>(a.v.data, v + uint64_t{eights})};
    const int32_t slot_here = slot, position_here = position;
    at = min(token + w.step, w.tokens - 1);
    slot = slots[at];
    if (turns) position = positions[at];
    bool good = static_cast<unsigned>(slot_here) < static_cast<unsigned>(w.slots);
    auto turn = static_cast<unsigned>(position_here);
    if (!good || (turns && turn >= w.positions)) {
      if (there && lane == 0 && head == 0 && check != nullptr) {
        if (good) report(check, kOfPositions + token, position_here);
        if (!good && slot_here != -1) report(check, token, slot_here);
      }
      good = false;
      turn = 0;
    }
    good = good && there;
    if (there && lane == 0) places[token - token0] = good ? slot_here : -1;
    float low[kEight], high[kEight];
    unpack<T>(raw[0], low);
    unpack<T>(raw[1], high);
    if (turns) turn_whole(a, w, eights, turn, mine, low, high);
    float inverse[2] = {}, zero[2] = {};
    bool finite[2];
    // Half of a group's lanes find out about K, the others about V.
    const Span of_k = span_of<F>(low, high), of_values = span_of<F, T>(raw[2], raw[3]);
    const Span own = {of_v ? of_values.most : of_k.most, of_v ? of_values.down : of_k.down};
    const Span other = {of_v ? of_k.most : of_values.most, of_v ? of_k.down : of_values.down};
    Span span = span_with<F>(own, other, lanes / 2);
    for (unsigned step = lanes / 4; step > 0; step /= 2) span = span_with<F>(span, span, step);
    const Coding c = coding_of<F>(span);
    const bool plain = __all_sync(~0u, c.finite && !c.bound);
    const unsigned first = threadIdx.x % 32 - lane;
    const unsigned good_ones = plain ? ~0u : __ballot_sync(~0u, c.finite);
#pragma unroll
    for (unsigned part = 0; part < 2; ++part) {
      const unsigned from = first + part * (lanes / 2);
      inverse[part] = __shfl_sync(~0u, c.inverse, from);
      if (F == KvFormat::int4) zero[part] = __shfl_sync(~0u, c.zero_point, from);
      finite[part] = (good_ones >> from & 1) != 0;
    }
    if (there && (lane & (lanes / 2 - 1)) == 0) {
      uint16_t* to =
          numbers + (of_v ? kAppendItems : 0) + (in_chunk << w.log_run) + (token - token0);
      to[0] = static_cast<uint16_t>(c.scale);
      if constexpr (kNumbers == 4) to[2 * kAppendItems] = static_cast<uint16_t>(c.zero);
    }
    if (!good || (kEights == 0 && lane >= eights)) continue;
    if (kPrefix && slot_here >= w.page_slots) {
      store_prefix(kv_row_at(a.cache, slot_here, head, false), w, lane, low, high);
      unpack<T>(raw[2], low);
      unpack<T>(raw[3], high);
      store_prefix(kv_row_at(a.cache, slot_here, head, true), w, lane, low, high);
      continue;
    }
    const unsigned page = static_cast<unsigned>(slot_here) >> w.log_page;
    const unsigned in_page = static_cast<unsigned>(slot_here) & ((1u << w.log_page) - 1);
    uint8_t* row = a.cache.data + uint64_t{128} * (page * w.page_lines + head * w.head_lines) +
                   in_page * row_bytes;
    store_codes<F>(eights, row, lane, inverse[0], zero[0], plain, finite[0], low, high);
    unpack<T>(raw[2], low);
    unpack<T>(raw[3], high);
    store_codes<F>(eights, row + w.v, lane, inverse[1], zero[1], plain, finite[1], low, high);
  }
  // Scales and zeros, tokens of one head beside each other.
  __syncthreads();
  const unsigned items = w.chunk << w.log_run;
  for (unsigned n = threadIdx.x; n < items * kNumbers; n += append_threads(T, F)) {
    const unsigned in_run = n & (run - 1), rest = n >> w.log_run;
    const unsigned which = rest * w.inverse >> 16, of = rest - which * w.chunk;
    const unsigned of_head = blockIdx.y * w.chunk + of;
    if (token0 + in_run >= w.tokens || of_head >= w.heads) continue;
    const int32_t place = places[in_run];
    if (place < 0 || (kPrefix && place >= w.page_slots)) continue;
    const unsigned page = static_cast<unsigned>(place) >> w.log_page;
    uint8_t* block = a.cache.data + uint64_t{128} * (page * w.page_lines + of_head * w.head_lines) +
                     w.numbers[which];
    reinterpret_cast<uint16_t*>(block)[static_cast<unsigned>(place) & ((1u << w.log_page) - 1)] =
        numbers[which * kAppendItems + (of << w.log_run) + in_run];
  }
}

// Numbers without scales: a group each K and V of a token and head.
template <DType T, KvFormat F, bool kPrefix>
__global__ void __launch_bounds__(append_threads(T, F), append_blocks(T, F))
    append_floats(const __grid_constant__ KvArgs a, const __grid_constant__ Whole w,
                  unsigned long long* check) {
  wait_for_others();
  const unsigned lanes = 1u << w.log_lanes, lane = threadIdx.x & (lanes - 1);
  const unsigned item = (blockIdx.x * append_threads(T, F) + threadIdx.x) >> w.log_lanes;
  const unsigned token = item / w.heads, head = item - token * w.heads;
  if (token >= w.tokens) return;
  const bool turns = present(a.cos);
  // First, for more waits for them than for k and v.
  const int32_t position = turns ? static_cast<const int32_t*>(a.positions.data)[token] : 0;
  const int32_t slot = static_cast<const int32_t*>(a.slots.data)[token];
  const unsigned k = token * w.k_token + head * w.k_head, v = token * w.v_token + head * w.v_head;
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
  if (turns && static_cast<unsigned>(position) >= w.positions) {
    if (reports) report(check, kOfPositions + token, position);
    return;
  }
  if (lane >= w.eights) return;
  float low[kEight], high[kEight];
  unpack<T>(raw[0], low);
  unpack<T>(raw[1], high);
  if (turns) turn_whole(a, w, w.eights, static_cast<unsigned>(position), lane, low, high);
  if (kPrefix && slot >= w.page_slots) {
    store_prefix(kv_row_at(a.cache, slot, head, false), w, lane, low, high);
    unpack<T>(raw[2], low);
    unpack<T>(raw[3], high);
    store_prefix(kv_row_at(a.cache, slot, head, true), w, lane, low, high);
    return;
  }
  const unsigned page = static_cast<unsigned>(slot) >> w.log_page;
  const unsigned in_page = static_cast<unsigned>(slot) & ((1u << w.log_page) - 1);
  uint8_t* row = a.cache.data + uint64_t{128} * (page * w.page_lines + head * w.head_lines) +
                 in_page * w.row_bytes;
  store_floats<F>(w.eights, row, lane, low, high);
  unpack<T>(raw[2], low);
  unpack<T>(raw[3], high);
  store_floats<F>(w.eights, row + w.v, lane, low, high);
}

bool is_whole(const KvArgs& a) {
  const KvCache& c = a.cache;
  const bool turned = present(a.cos);
  // What is reckoned in 32 bits.
  const auto fits = [](const Tensor& t) {
    int64_t last = 0;
    for (int i = 0; i < t.rank; ++i) {
      if (t.strides[i] < 0) return false;
      last += t.shape[i] * t.strides[i];
    }
    return last / kEight < INT32_MAX / 2;
  };
  return a.k.dtype == a.v.dtype && c.head_dim == c.head_dim_v && c.head_dim % 16 == 0 &&
         c.head_dim <= 512 && in_eights(a.k) && in_eights(a.v) && fits(a.k) && fits(a.v) &&
         (!turned || (2 * a.cos.shape[1] == c.head_dim && in_eights(a.cos) && in_eights(a.sin) &&
                      fits(a.cos) && fits(a.sin) && a.cos.shape[0] <= INT32_MAX)) &&
         a.slots.shape[0] * c.kv_heads * 32 < INT32_MAX && kv_bytes(c) / 128 < INT32_MAX;
}

template <DType T, KvFormat F>
Status append_format(const KvArgs& a, const Whole& w, dim3 blocks, const Ctx& ctx) {
  const auto go = [&](auto* kernel) {
    return launch(ctx, kernel, blocks, append_threads(T, F), 0, a, w, ctx.check);
  };
  const bool prefix = a.cache.prefix_rows > 0;
  if constexpr (has_scales(F)) {
    if (prefix) return go(append_codes<T, F, true, 0>);
    // The usual head dims have forms of their own: what the compiler knows is a fifth of the
    // instructions.
    switch (w.eights) {
      case 4: return go(append_codes<T, F, false, 4>);
      case 8: return go(append_codes<T, F, false, 8>);
      case 16: return go(append_codes<T, F, false, 16>);
      default: return go(append_codes<T, F, false, 0>);
    }
  } else {
    return prefix ? go(append_floats<T, F, true>) : go(append_floats<T, F, false>);
  }
}
template <DType T>
Status append_dtype(const KvArgs& a, const Whole& w, dim3 blocks, const Ctx& ctx) {
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
  w.log_lanes = w.eights > 1 ? log_of(w.eights) : 1;  // half for K and half for V
  w.log_page = log_of(c.page_size);
  const auto eights = [](int64_t n) { return static_cast<unsigned>(n / kEight); };
  w.k_token = eights(a.k.strides[0]), w.k_head = eights(a.k.strides[1]);
  w.v_token = eights(a.v.strides[0]), w.v_head = eights(a.v.strides[1]);
  if (present(a.cos)) {
    w.cos = eights(a.cos.strides[0]), w.sin = eights(a.sin.strides[0]);
    w.positions = static_cast<unsigned>(a.cos.shape[0]);
  }
  w.slots = static_cast<int32_t>(kv_slots(c));
  w.page_slots = static_cast<int32_t>(kv_page_slots(c));
  w.head_lines = static_cast<unsigned>(c.page.bytes / 128);
  w.page_lines = w.heads * w.head_lines;
  w.row_bytes = static_cast<unsigned>(kv_row_bytes(c.format, c.head_dim));
  w.v = static_cast<unsigned>(c.page.v);
  w.numbers[0] = static_cast<unsigned>(c.page.k_scale);
  w.numbers[1] = static_cast<unsigned>(c.page.v_scale);
  w.numbers[2] = static_cast<unsigned>(c.page.k_zero);
  w.numbers[3] = static_cast<unsigned>(c.page.v_zero);
  const unsigned threads = append_threads(a.k.dtype, c.format);
  dim3 blocks(grid_for(int64_t{w.tokens} * w.heads << w.log_lanes, threads, INT32_MAX));
  if (has_scales(c.format)) {
    // Up to eight heads a block; tokens for all its groups, more of them where there are many.
    const unsigned chunks = (w.heads + 7) / 8, groups = threads >> w.log_lanes;
    w.chunk = (w.heads + chunks - 1) / chunks;
    if (w.chunk > groups) w.chunk = groups;
    w.inverse = (65536 + w.chunk - 1) / w.chunk;
    w.step = groups / w.chunk;
    w.log_run = log_of(w.step);
    const auto most = 4 * static_cast<unsigned>(ctx.multiprocessors);
    while (w.log_run < kLogAppendTokens && (2 * w.chunk << w.log_run) <= kAppendItems &&
           (w.tokens >> (w.log_run + 1)) * chunks >= most) {
      ++w.log_run;
    }
    blocks = dim3(((w.tokens - 1) >> w.log_run) + 1, (w.heads + w.chunk - 1) / w.chunk);
  }
  Status status = ok();
  with_dtype(a.k.dtype,
             [&](auto dtype) { status = append_dtype<decltype(dtype)::value>(a, w, blocks, ctx); });
  return status;
}

}  // namespace
}  // namespace lowbit
