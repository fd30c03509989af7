// One row of x against int4 in frag64, by mma.sync in whole numbers, on Hopper: x as the digits of
// one_row_sm90a.cuh, w by the copy engine. And up to eight rows of x that are bytes already.
//
// A block of 16 warps has a multiprocessor to itself and takes some strips of 16 rows of w. Its
// warps cut K: each lays out its own run of x, keeps a ring of its own filled with the part of a
// unit that belongs to the block's strips, and meets no other warp before the end. Codes less 8
// become the upper four bits of bytes, so that nothing has to be subtracted afterwards. The copy
// engine moves what lies beyond the cache in less time than loads of the lanes do, by measurement
// (NOTES.md).
#pragma once

#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/tma.cuh"
#include "csrc/format/layout.h"
#include "csrc/linear/finish.cuh"
#include "csrc/linear/one_row_sm90a.cuh"
#include "csrc/linear/x_rows_sm80.cuh"

namespace lowbit {
namespace {

inline constexpr int kOneRing = 2;  // units of a warp in flight: 132 KB a multiprocessor

struct OneUnits {
  const void* x;
  const uint8_t* w;
  int32_t k, units, unit_bytes;             // units along K
  int32_t x_stride;                         // in bytes, of more rows than one
  int32_t block_strips, more_strips;        // the first `more` blocks have one strip more
  int32_t slices, slice_units, more_units;  // of K, as many with one unit more; each a warp's
  bool plain;                               // nothing but a scale of w, and 16 bits out
  DType scale_dtype;
  Finish finish;
};

// Both conversions and a choice: as a branch it costs more.
__device__ __forceinline__ float scale_of(bool half, uint32_t bits) {
  float v = __uint_as_float(bits << 16);
  const float h = half_to_f32(static_cast<uint16_t>(bits));
  asm("{.reg .pred p; setp.ne.s32 p, %2, 0; selp.f32 %0, %1, %0, p;}"
      : "+f"(v)
      : "f"(h), "r"(static_cast<int>(half)));
  return v;
}
// (a & mask) ^ flip, one instruction.
__device__ __forceinline__ uint32_t and_xor(uint32_t a, uint32_t mask, uint32_t flip) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=r"(r) : "r"(a), "r"(mask), "r"(flip));
  return r;
}

// 16 rows of w by the 128 columns of a unit, of which a lane has two times 16 bytes, its fragments;
// where they meet x.
template <bool kHalf_, int kParts_>
struct OneFrag {
  static constexpr bool kHalf = kHalf_, kSigned = true;
  static constexpr int kParts = kParts_;
  static constexpr int kUnitK = kFragColumns, kChunks = 2, kProducts = 4;
  static constexpr int kShift = 0;           // x needs no room above
  static constexpr float kOver = 1.0f / 16;  // codes are 16 times their value

  static __device__ __forceinline__ void fragments(const uint4 (&codes)[2], int j,
                                                   uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t w = word_in(codes[j / 2], j % 2 * 2 + i);
      a[i * 2] = and_xor(w << 4, 0xF0F0F0F0u, 0x80808080u);
      a[i * 2 + 1] = and_xor(w, 0xF0F0F0F0u, 0x80808080u);
    }
  }

  // Columns 2 q, 2 q + 1 and those 8 further, of two steps of 16.
  static __device__ __forceinline__ void pairs_of(const OneUnits& p, int step_at, int q, int chunk,
                                                  int half, uint32_t (&pairs)[4]) {
    const auto* const x =
        static_cast<const uint16_t*>(p.x) + step_at * kUnitK + chunk * 64 + half * 32 + q * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = *reinterpret_cast<const uint32_t*>(x + i * 8);
  }
  static __device__ __forceinline__ constexpr int element(int j, int b) {
    return (j * 2 + b % 2) * 2 + b / 2;
  }
  static __device__ __forceinline__ constexpr int lift(int, int) { return 0; }

  static __device__ __forceinline__ float product(const OneUnits& p, int row, int k) {
    const uint8_t* const unit = p.w + uint32_t(row / 64 * p.units + k / kUnitK) * p.unit_bytes;
    const int thread = row % 64 / 16 * 32 + row % 8 * 4 + k % 8 / 2;
    const int nibble = k % 2 * 4 + k % 16 / 8 * 2 + row % 16 / 8;
    const uint32_t byte = unit[k % 128 / 64 * 2048 + thread * 16 + k % 64 / 16 * 4 + nibble / 2];
    float v = static_cast<float>(static_cast<int>(byte >> nibble % 2 * 4 & 15) - 8);
    if constexpr (kParts > 0) v *= load_float(unit + kFragCodes, p.scale_dtype, row % 64);
    const uint16_t x = static_cast<const uint16_t*>(p.x)[k];
    return v * (kHalf ? half_to_f32(x) : bf16_to_f32(x));
  }
};

// The largest of the pairs' numbers without sign: 16-bit floats are ordered as their bits are.
__device__ __forceinline__ uint32_t largest_of(const uint32_t (&v)[4]) {
  const uint32_t a = __vmaxu2(v[0] & 0x7FFF7FFFu, v[1] & 0x7FFF7FFFu);
  const uint32_t b = __vmaxu2(v[2] & 0x7FFF7FFFu, v[3] & 0x7FFF7FFFu);
  return __vmaxu2(a, b);
}
template <bool kHalf, int kShift>
__device__ __forceinline__ FixedPoint fixed_point(uint32_t largest) {
  largest = __reduce_max_sync(~0u, max(largest & 0xFFFFu, largest >> 16));
  const auto bits = static_cast<uint16_t>(largest);
  const uint32_t top = __float_as_uint(kHalf ? half_to_f32(bits) : bf16_to_f32(bits));
  // Both stay normal numbers.
  const uint32_t up = min(283u - kShift - (top >> 23), 253u - kShift);
  return {__uint_as_float(up << 23), __uint_as_float((254u - up) << 23),
          largest < (kHalf ? 0x7C00u : 0x7F80u)};
}

// Item i of a warp's units: eight columns that a lane lays out.
template <class S>
struct OneItem {
  static constexpr int kEach = S::kChunks * 8;  // items of a unit
  int unit, q, chunk, half;
  __device__ __forceinline__ explicit OneItem(int i)
      : unit(static_cast<uint32_t>(i) / kEach),
        q(i / (2 * S::kChunks) % 4),
        chunk(i / 2 % S::kChunks),
        half(i % 2) {}
};
template <class S>
__device__ __forceinline__ void lay_item(const OneItem<S>& item, const uint32_t (&pairs)[4],
                                         float by, uint8_t* sX) {
  uint32_t digits[4][2];  // [digit][word]
  digits_of<S>(pairs, item.half, by, digits);
  uint8_t* const to = sX + (item.unit * S::kChunks + item.chunk) * 256 + item.half * 8;
#pragma unroll
  for (int d = 0; d < 4; ++d) {
    *reinterpret_cast<uint2*>(to + digit_place<S>(d, item.q, item.chunk) * 16) = {digits[d][0],
                                                                                  digits[d][1]};
  }
}

// A warp's run of x, some units from `first` on. Its numbers are asked for when it is made; lay()
// waits for them.
template <class S>
struct OneX {
  static constexpr int kRounds = 4, kEach = OneItem<S>::kEach;
  const int first, items;
  uint32_t pairs[kRounds][4];

  __device__ __forceinline__ OneX(const OneUnits& p, int first_unit, int units, int lane)
      : first(first_unit), items(units * kEach) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[r][i] = 0;
      if (lane + r * 32 < items) load(p, OneItem<S>(lane + r * 32), pairs[r]);
    }
  }
  __device__ __forceinline__ void load(const OneUnits& p, const OneItem<S>& item,
                                       uint32_t (&to)[4]) const {
    S::pairs_of(p, first + item.unit, item.q, item.chunk, item.half, to);
  }
  // Digits of numbers that are not finite mean nothing.
  __device__ __forceinline__ FixedPoint lay(const OneUnits& p, int lane, uint8_t* sX) const {
    uint32_t largest = 0;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) largest = __vmaxu2(largest, largest_of(pairs[r]));
#pragma unroll 1
    for (int i = lane + kRounds * 32; i < items; i += 32) {
      uint32_t more[4] = {};
      load(p, OneItem<S>(i), more);
      largest = __vmaxu2(largest, largest_of(more));
    }
    const FixedPoint fixed = fixed_point<S::kHalf, S::kShift>(largest);
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (lane + r * 32 < items) lay_item<S>(OneItem<S>(lane + r * 32), pairs[r], fixed.by, sX);
    }
#pragma unroll 1
    for (int i = lane + kRounds * 32; i < items; i += 32) {
      uint32_t more[4] = {};
      load(p, OneItem<S>(i), more);
      lay_item<S>(OneItem<S>(i), more, fixed.by, sX);
    }
    __syncwarp();
    return fixed;
  }
  // Products as they stand, of x that is not finite: the sum of one row of w, in lane 0.
  __device__ __forceinline__ float product(const OneUnits& p, int row, int lane) const {
    float v = 0.0f;
#pragma unroll 1
    for (int i = lane; i < items * 8; i += 32) v += S::product(p, row, first * S::kUnitK + i);
#pragma unroll
    for (int s = 16; s > 0; s /= 2) v += __shfl_xor_sync(~0u, v, s);
    return v;
  }
};

// A strip of a unit by what a lane has of x.
template <class S>
__device__ __forceinline__ void multiply_strip(int32_t (&d)[4], const uint4 (&codes)[2],
                                               const uint4 (&x)[S::kChunks]) {
#pragma unroll
  for (int j = 0; j < S::kProducts; ++j) {
    uint32_t a[4];
    S::fragments(codes, j, a);
    multiply_codes<S::kSigned>(d, a, word_in(x[j / 2], j % 2 * 2),
                               word_in(x[j / 2], j % 2 * 2 + 1));
  }
}
// Sums of two digits: less than 2^31, because codes and columns of a unit are 2^14.
__device__ __forceinline__ float both_digits(int32_t low, int32_t high) {
  return static_cast<float>(low + high * 256);
}
// The scale of the row that a thread finishes first, asked for long before.
__device__ __forceinline__ float one_scale(const OneUnits& p, int first, int strips) {
  if (!p.plain) prefetch_finish(p.finish, first * 16, strips * 16, 0, 1);
  const int own = threadIdx.x;
  if (!p.plain || p.finish.w_scale == nullptr || own >= strips * 16) return 1.0f;
  return w_scale_of(p.finish, min(first * 16 + own, p.finish.n - 1));
}
// The block's rows, from the parts of its warps: [strip][slice, and one for the banks][16].
__device__ __forceinline__ void one_finish(const OneUnits& p, int first, int strips,
                                           const float* sParts, float own_scale) {
#pragma unroll 1
  for (int item = threadIdx.x; item < (strips * 16 + 31) / 32 * 32; item += kOneThreads) {
    float v = 0.0f;
    const int n = item < strips * 16 ? first * 16 + item : p.finish.n;
    if (item < strips * 16) {
      const float* const from = sParts + item / 16 * (p.slices + 1) * 16 + item % 16;
#pragma unroll 8
      for (int i = 0; i < p.slices; ++i) v += from[i * 16];
    }
    if (!p.plain) {
      finish_one(p.finish, n, v);
    } else if (n < p.finish.n) {
      if (item >= kOneThreads) own_scale = w_scale_of(p.finish, n);
      static_cast<uint16_t*>(p.finish.out)[n] =
          static_cast<uint16_t>(pack_pair(p.finish.out_dtype, v * own_scale, 0.0f));
    }
  }
}

// Where x is not finite, plain products take the place of a slice's sums.
template <class S>
__device__ __forceinline__ void plain_parts(const OneX<S>& x, const OneUnits& p, int first,
                                            int strips, int slice, float* sParts) {
#pragma unroll 1
  for (int row = 0; row < strips * 16; ++row) {
    const int n = first * 16 + row, lane = threadIdx.x % 32;
    const float v = n < p.finish.n ? x.product(p, n, lane) : 0.0f;
    if (lane == 0) sParts[(row / 16 * (p.slices + 1) + slice) * 16 + row % 16] = v;
  }
}

template <class S>
struct OneUnitPlaces {
  static constexpr int kSlot = kFragCodes + S::kParts * 128;
  static constexpr int kBarriers = kOneWarps * kOneRing * kSlot;
  static constexpr int kDigits = kBarriers + kOneWarps * kOneRing * 8;
  int parts, end;
  __host__ __device__ explicit OneUnitPlaces(const OneUnits& p) {
    parts = kDigits + kOneWarps * (p.slice_units + (p.more_units > 0)) * S::kChunks * 256;
    end = parts + (p.block_strips + 1) * (p.slices + 1) * 64;
  }
};

// The walk of a warp's copies, of its first lane: parts of panels that the block has, and in each
// the units of the slice. What of a unit the block has comes to where it lies in a whole one.
template <class S>
struct UnitWalk {
  static constexpr int kSlot = OneUnitPlaces<S>::kSlot;
  const OneUnits& p;
  const int end, first, units;
  uint8_t* const ring;
  uint64_t* const full;
  int strip, unit = 0;

  __device__ __forceinline__ UnitWalk(const OneUnits& call, int from, int to, int first_unit,
                                      int count, uint8_t* slots, uint64_t* barriers)
      : p(call),
        end(to),
        first(first_unit),
        units(count),
        ring(slots),
        full(barriers),
        strip(from) {}
  __device__ __forceinline__ void ask(int slot) {
    if (strip >= end) return;
    const int own = strip % 4, count = min(4 - own, end - strip);
    const uint8_t* const from = p.w + (int64_t{strip / 4} * p.units + first + unit) * p.unit_bytes;
    uint8_t* const to = ring + slot * kSlot;
    if (count == 4) {
      barrier_expect(&full[slot], kSlot);
      bulk_load(to, from, kSlot, &full[slot], evict_first());
    } else {
      barrier_expect(&full[slot], count * (1024 + S::kParts * 32));
      const int at = own * 512;
      bulk_load(to + at, from + at, count * 512, &full[slot], evict_first());
      bulk_load(to + 2048 + at, from + 2048 + at, count * 512, &full[slot], evict_first());
      if constexpr (S::kParts > 0) {
        const int scale = kFragCodes + own * 32;
        bulk_load(to + scale, from + scale, count * 32, &full[slot], evict_first());
      }
    }
    if (++unit == units) {
      unit = 0;
      strip += count;
    }
  }
};

template <class S>
__global__ void __launch_bounds__(kOneThreads, 1)
    one_unit_kernel(const __grid_constant__ OneUnits p) {
  using Places = OneUnitPlaces<S>;
  extern __shared__ __align__(128) uint8_t one_shared[];
  const int lane = threadIdx.x % 32, quad = lane / 4, q = lane % 4, block = blockIdx.x;
  const int slice = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0);  // one for all lanes
  const int first = block * p.block_strips + min(block, p.more_strips);
  const int strips = p.block_strips + (block < p.more_strips), end = first + strips;
  const int unit_first = slice * p.slice_units + min(slice, p.more_units);
  const int units = slice < p.slices ? p.slice_units + (slice < p.more_units) : 0;
  const int most = p.slice_units + (p.more_units > 0);
  uint8_t* const ring = one_shared + slice * (kOneRing * Places::kSlot);
  uint64_t* const full =
      reinterpret_cast<uint64_t*>(one_shared + Places::kBarriers) + slice * kOneRing;
  uint8_t* const sX = one_shared + Places::kDigits + slice * most * S::kChunks * 256;
  // [strip][slice, and one for the banks][16]
  float* const sParts = reinterpret_cast<float*>(one_shared + Places(p).parts);

  wait_for_others();
  // x is asked for before w, behind which it would wait.
  const OneX<S> x(p, unit_first, units, lane);
  UnitWalk<S> walk(p, first, end, unit_first, units, ring, full);
  if (lane == 0 && units > 0) {
#pragma unroll
    for (int i = 0; i < kOneRing; ++i) barrier_init(&full[i], 1);
    barrier_init_fence();
#pragma unroll 1
    for (int i = 0; i < kOneRing; ++i) walk.ask(i);
  }
  const float own_scale = one_scale(p, first, strips);
  const FixedPoint fixed = x.lay(p, lane, sX);
  // Lane (quad, q) multiplies its columns by digit quad % 4.
  const uint8_t* own_x[S::kChunks];
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    own_x[c] = sX + c * 256 + digit_place<S>(quad % 4, q, c) * 16;
  }
  // What a lane's sums count: digits 2 q and the next, of the lanes that have any.
  const float worth = q < 2 ? fixed.unit * (q == 0 ? S::kOver : S::kOver * 65536.0f) : 0.0f;
  const bool scale_half = p.scale_dtype == DType::f16;
  float* to = sParts + slice * 16 + quad;
  Ring<kOneRing> at;
#pragma unroll 1
  for (int strip = first; strip < end && units > 0;) {
    const int own = strip % 4, count = min(4 - own, end - strip);
    float sums[4][2] = {};
    int32_t part[4][4] = {};
    int x_at = 0;
#pragma unroll 1
    for (int unit = 0; unit < units; ++unit) {
      uint4 digits[S::kChunks];
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        digits[c] = *reinterpret_cast<const uint4*>(own_x[c] + x_at);
      }
      x_at += S::kChunks * 256;
      barrier_wait(&full[at.slot], at.parity);
      const uint8_t* const slot = ring + at.slot * Places::kSlot;
      const uint8_t* const codes_at = slot + own * 512 + lane * 16;
      const uint8_t* const scales_at = slot + kFragCodes + own * 32 + quad * 2;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        if (s >= count) break;
        const uint4 codes[2] = {*reinterpret_cast<const uint4*>(codes_at + s * 512),
                                *reinterpret_cast<const uint4*>(codes_at + s * 512 + 2048)};
        if constexpr (S::kParts > 0) part[s][0] = part[s][1] = part[s][2] = part[s][3] = 0;
        multiply_strip<S>(part[s], codes, digits);
        if constexpr (S::kParts > 0) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint32_t bits = *reinterpret_cast<const uint16_t*>(scales_at + s * 32 + i * 16);
            sums[s][i] = fmaf(both_digits(part[s][i * 2], part[s][i * 2 + 1]),
                              scale_of(scale_half, bits), sums[s][i]);
          }
        }
      }
      __syncwarp();
      if (lane == 0) walk.ask(at.slot);  // into the slot that was just read
      advance(at);
    }
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (s >= count) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float v = sums[s][i];
        if constexpr (S::kParts == 0) {
          v = fmaf(static_cast<float>(part[s][i * 2 + 1]), 256.0f,
                   static_cast<float>(part[s][i * 2]));
        }
        v *= worth;
        v += __shfl_xor_sync(~0u, v, 1);
        if (q == 0) to[i * 8] = v;
      }
      to += (p.slices + 1) * 16;
    }
    strip += count;
  }
  if (!fixed.finite && slice < p.slices) plain_parts(x, p, first, strips, slice, sParts);
  __syncthreads();

  one_finish(p, first, strips, sParts, own_scale);
}

// Up to eight rows of x in bytes against units with a scale for each group of 128: the same walk,
// with a row of x in the place of a digit.
template <class S>
__global__ void __launch_bounds__(kOneThreads, 1)
    few_unit_kernel(const __grid_constant__ OneUnits p) {
  using Places = OneUnitPlaces<S>;
  extern __shared__ __align__(128) uint8_t one_shared[];
  const int lane = threadIdx.x % 32, quad = lane / 4, q = lane % 4, block = blockIdx.x;
  const int slice = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0);  // one for all lanes
  const int first = block * p.block_strips + min(block, p.more_strips), m = p.finish.m;
  const int strips = p.block_strips + (block < p.more_strips), end = first + strips;
  const int unit_first = slice * p.slice_units + min(slice, p.more_units);
  const int units = slice < p.slices ? p.slice_units + (slice < p.more_units) : 0;
  const int most = p.slice_units + (p.more_units > 0);
  uint8_t* const ring = one_shared + slice * (kOneRing * Places::kSlot);
  uint64_t* const full =
      reinterpret_cast<uint64_t*>(one_shared + Places::kBarriers) + slice * kOneRing;
  // [half a unit][m][lane of four][16 bytes]: a lane's operands of two products
  uint8_t* const sX = one_shared + Places::kDigits + slice * most * m * 128;
  // [strip][slice][m][16]
  float* const sParts =
      reinterpret_cast<float*>(one_shared + Places::kDigits + kOneWarps * most * m * 128);

  wait_for_others();
  UnitWalk<S> walk(p, first, end, unit_first, units, ring, full);
  if (lane == 0 && units > 0) {
#pragma unroll
    for (int i = 0; i < kOneRing; ++i) barrier_init(&full[i], 1);
    barrier_init_fence();
  }
  // x is asked for before w, behind which it would wait; of many rows, all in one go.
  constexpr int kTogether = 8;
  const int items = units * 8 * m;
  bool asked = false;
#pragma unroll 1
  for (int start = 0; start < items || !asked; start += kTogether * 32) {
    uint4 run[kTogether];
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      const uint32_t i = start + t * 32 + lane, row = i / 4, piece = row / m;
      run[t] = {};
      if (static_cast<int>(i) < items) {
        run[t] = *reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(p.x) +
                                                 (row - piece * m) * int64_t{p.x_stride} +
                                                 (unit_first * 2 + piece) * 64 + i % 4 * 16);
      }
    }
    if (start + kTogether * 32 >= items) {
      asked = true;
      if (lane == 0 && units > 0) {
#pragma unroll 1
        for (int i = 0; i < kOneRing; ++i) walk.ask(i);
      }
    }
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      const int i = start + t * 32 + lane;
      if (i >= items) break;
      // Columns 2 q, + 8, + 1 and + 9 of a run, as codes have them.
      const uint4 v = run[t];
      const uint32_t words[4] = {__byte_perm(v.x, v.z, 0x5140), __byte_perm(v.x, v.z, 0x7362),
                                 __byte_perm(v.y, v.w, 0x5140), __byte_perm(v.y, v.w, 0x7362)};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        *reinterpret_cast<uint32_t*>(sX + i / 4 * 64 + j * 16 + i % 4 * 4) = words[j];
      }
    }
  }
  prefetch_finish(p.finish, first * 16, strips * 16, 0, m);
  __syncwarp();

  // Beyond the last row of x it is read again: nobody looks at those.
  const uint8_t* const own_x = sX + min(quad, m - 1) * 64 + q * 16;
  const bool scale_half = p.scale_dtype == DType::f16;
  float* to = sParts + slice * m * 16;
  Ring<kOneRing> at;
#pragma unroll 1
  for (int strip = first; strip < end && units > 0;) {
    const int own = strip % 4, count = min(4 - own, end - strip);
    float sums[4][4] = {};
    int x_at = 0;
#pragma unroll 1
    for (int unit = 0; unit < units; ++unit) {
      const uint4 x[2] = {*reinterpret_cast<const uint4*>(own_x + x_at),
                          *reinterpret_cast<const uint4*>(own_x + x_at + m * 64)};
      x_at += m * 128;
      barrier_wait(&full[at.slot], at.parity);
      const uint8_t* const slot = ring + at.slot * Places::kSlot;
      const uint8_t* const codes_at = slot + own * 512 + lane * 16;
      const uint8_t* const scales_at = slot + kFragCodes + own * 32 + quad * 2;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        if (s >= count) break;
        const uint4 codes[2] = {*reinterpret_cast<const uint4*>(codes_at + s * 512),
                                *reinterpret_cast<const uint4*>(codes_at + s * 512 + 2048)};
        int32_t part[4] = {};
        multiply_strip<S>(part, codes, x);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t bits = *reinterpret_cast<const uint16_t*>(scales_at + s * 32 + i / 2 * 16);
          sums[s][i] = fmaf(static_cast<float>(part[i]), scale_of(scale_half, bits), sums[s][i]);
        }
      }
      __syncwarp();
      if (lane == 0) walk.ask(at.slot);  // into the slot that was just read
      advance(at);
    }
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (s >= count) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = q * 2 + i % 2;
        if (token < m) to[token * 16 + quad + i / 2 * 8] = sums[s][i] * S::kOver;
      }
      to += p.slices * m * 16;
    }
    strip += count;
  }
  __syncthreads();

#pragma unroll 1
  for (int item = threadIdx.x; item < strips * m * 2; item += kOneThreads) {
    const uint32_t row = item / 2, of = row / m, token = row - of * m, c = item % 2 * 8;
    const int n = (first + of) * 16 + c;
    if (n >= p.finish.n) continue;
    float v[8] = {};
    const float* from = sParts + (of * p.slices * m + token) * 16 + c;
#pragma unroll 4
    for (int i = 0; i < p.slices; ++i, from += m * 16) {
      const float4 low = *reinterpret_cast<const float4*>(from);
      const float4 high = *reinterpret_cast<const float4*>(from + 4);
      v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
      v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
    }
    scale_row(p.finish, token, n, v);
    finish_row(p.finish, token, n, v);
  }
}

template <class S>
static bool one_unit_launched(OneUnits p, const Ctx& ctx, Status* status) {
  const int64_t strips = ceil_div(p.finish.n, 16);
  const int64_t blocks = ctx.multiprocessors < strips ? ctx.multiprocessors : strips;
  p.units = static_cast<int32_t>(p.k / kFragColumns);
  p.block_strips = static_cast<int32_t>(strips / blocks);
  p.more_strips = static_cast<int32_t>(strips % blocks);
  p.slices = p.units < kOneWarps ? p.units : kOneWarps;
  p.slice_units = p.units / p.slices;
  p.more_units = p.units % p.slices;
  const OneUnitPlaces<S> places(p);
  if (places.end > kOneShared) return false;
  p.plain = is_plain(p.finish) && p.finish.bias == nullptr && p.finish.x_scale == nullptr;
  static std::atomic<uint64_t> asked = 0;
  *status = launched(allow_shared(one_unit_kernel<S>, kOneShared, asked));
  if (is_ok(*status)) {
    *status = launch(ctx, one_unit_kernel<S>, dim3(static_cast<unsigned>(blocks)), kOneThreads,
                     static_cast<size_t>(places.end), p);
  }
  return true;
}

// Whether it took the call: rows of x in bytes that fit with their sums, groups of 128.
template <int kMost>
static bool run_few_unit(const LinearArgs& args, const Matrix& x, const Ctx& ctx, Status* status) {
  static_assert(kMost <= 8);
  using S = OneFrag<false, 1>;
  const Weight& w = args.w;
  const FragUnit unit = frag_unit(w.format, {w.n, w.k});
  const int64_t m = args.x.shape[0];
  if (w.k == 0 || w.k % kFragColumns != 0 || w.k > kOneColumns || unit.groups != 1) return false;
  if (w.format.scale_dtype == DType::f32 || m > kMost) return false;
  OneUnits p = {};
  p.x = x.data;
  p.x_stride = static_cast<int32_t>(x.row_bytes);
  if (x.row_bytes >= int64_t{1} << 31) return false;
  p.w = w.data;
  p.k = static_cast<int32_t>(w.k);
  p.unit_bytes = static_cast<int32_t>(unit.bytes);
  p.scale_dtype = w.format.scale_dtype;
  p.finish = finish_of(args, nullptr);
  const int64_t strips = ceil_div(w.n, 16);
  const int64_t blocks = ctx.multiprocessors < strips ? ctx.multiprocessors : strips;
  p.units = static_cast<int32_t>(w.k / kFragColumns);
  p.block_strips = static_cast<int32_t>(strips / blocks);
  p.more_strips = static_cast<int32_t>(strips % blocks);
  p.slices = p.units < kOneWarps ? p.units : kOneWarps;
  p.slice_units = p.units / p.slices;
  p.more_units = p.units % p.slices;
  const int64_t end = OneUnitPlaces<S>::kDigits +
                      kOneWarps * (p.slice_units + int64_t{p.more_units > 0}) * m * 128 +
                      (p.block_strips + int64_t{p.more_strips > 0}) * p.slices * m * 64;
  if (end > kOneShared) return false;
  static std::atomic<uint64_t> asked = 0;
  *status = launched(allow_shared(few_unit_kernel<S>, kOneShared, asked));
  if (is_ok(*status)) {
    *status = launch(ctx, few_unit_kernel<S>, dim3(static_cast<unsigned>(blocks)), kOneThreads,
                     static_cast<size_t>(end), p);
  }
  return true;
}

// Whether it took the call: groups of 128 or none, whole units of x.
template <bool kHalf>
static bool run_one_unit(const LinearArgs& args, const Matrix& x, const Ctx& ctx, Status* status) {
  const Weight& w = args.w;
  const FragUnit unit = frag_unit(w.format, {w.n, w.k});
  if (w.k == 0 || w.k % kFragColumns != 0 || w.k > kOneColumns || unit.groups > 1) return false;
  if (unit.groups == 1 && w.format.scale_dtype == DType::f32) return false;
  if (unit.end >= int64_t{1} << 31) return false;
  OneUnits p = {};
  p.x = x.data;
  p.w = w.data;
  p.k = static_cast<int32_t>(w.k);
  p.unit_bytes = static_cast<int32_t>(unit.bytes);
  p.scale_dtype = w.format.scale_dtype;
  p.finish = finish_of(args, unit.groups > 0 ? nullptr : w.data + unit.end);
  if (unit.groups == 0) return one_unit_launched<OneFrag<kHalf, 0>>(p, ctx, status);
  return one_unit_launched<OneFrag<kHalf, 1>>(p, ctx, status);
}

}  // namespace
}  // namespace lowbit
