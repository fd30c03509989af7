// One row of x against codes of 8, 4 and 2 bits, by mma.sync in whole numbers, on Hopper.
//
// x becomes fixed point under one power of two, and each number four digits of a signed byte. The
// digits are four columns of a product whose eight columns one row of x would leave empty, so codes
// need no conversion: a mask puts them into bytes, times one, four, 16 or 64 by their place, and
// the digits they meet are those of x times 64, 16, four or one. Zero points enter as the first
// value of the sums. All these are whole numbers; what is rounded is x, by at most 2^-25 of its
// largest number, and the sums of groups in f32.
//
// A block of 16 warps has a multiprocessor to itself and takes some strips of 16 rows of w; the
// steps of these strips are cut evenly among its warps, and every lane keeps the codes of
// kOneDepth steps asked for in registers. Nothing waits for another warp between the digits and
// the end.
#pragma once

#include "csrc/cuda/launch.cuh"
#include "csrc/format/layout.h"
#include "csrc/linear/finish.cuh"
#include "csrc/linear/x_rows_sm80.cuh"

namespace lowbit {
namespace {

inline constexpr int kOneWarps = 16, kOneThreads = kOneWarps * 32;
inline constexpr int kOneDepth = 4;  // 64 KB a multiprocessor in flight
inline constexpr int kOneShared = 227 * 1024;
inline constexpr int kOneColumns = 48 * 1024;  // whose digits fit, and whose sums without groups do

struct One {
  const void* x;
  const uint8_t* w;
  const uint8_t*
      scales;  // of groups of K, in 16 bits, where they lie apart from the codes; or null
  int32_t k, steps, groups, group_shift;  // a group has 2^shift steps
  int32_t row_bytes;                      // of w; or of a unit
  int32_t block_strips, more_strips;      // the first `more` blocks have one strip more
  uint32_t by_steps;                      // 2^32 / steps, rounded up
  uint32_t last_at, last_scale_at;        // of the last row: codes in bytes, scales
  bool plain;                             // nothing but a scale of w, and 16 bits out
  DType scale_dtype;
  Finish finish;
};

// d = a * b + c, codes without sign by digits with one, or both with one.
template <bool kSigned>
__device__ __forceinline__ void multiply_codes(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
  if constexpr (kSigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

__device__ __forceinline__ uint4 load_once(const uint8_t* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}
__device__ __forceinline__ uint32_t word_in(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Codes as they are saved: a step of a warp is 16 rows by 64 bytes, of which a lane has 16 in two
// rows. kParts: groups in a step, 1 also where a group has several steps; 0: its scales are in
// Finish. Where there are two, lanes of the one multiply columns 0 to 3 and the others 4 to 7.
template <Kind kKind, bool kHalf_, int kParts_>
struct OneRows {
  static constexpr bool kHalf = kHalf_, kSigned = kKind == Kind::int8;
  static constexpr int kBits = kind_row(kKind).bits, kParts = kParts_;
  static constexpr int kPlaces = 8 / kBits;               // codes in a byte
  static constexpr int kStepK = 512 / kBits;              // columns
  static constexpr int kChunks = kPlaces;                 // of four words of digits of a lane
  static constexpr int kShift = 8 - kBits;                // of the digits of the first place
  static constexpr int kUpper = kShift, kLower = kShift;  // sums are so much too large
  static constexpr int kProducts = 2 * kPlaces;
  static constexpr bool kAlike = true;  // zeros of the upper and the lower rows
  static constexpr int kZero = kKind == Kind::ternary ? 1 : kind_row(kKind).mid;

  uint32_t at[2], scale_at[2];  // the upper and the lower row
  int from, group;              // in a row

  // Rows beyond the last are read as the last: nobody looks at those.
  __device__ __forceinline__ void begin(const One& p, int strip, int step, int lane) {
    go(step, p.group_shift, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t row = strip * 16 + lane / 4 + i * 8;
      at[i] = min(row * p.row_bytes, p.last_at);
      scale_at[i] = min(row * p.groups, p.last_scale_at);
    }
  }
  // To the first step of the next strip.
  __device__ __forceinline__ void next(const One& p, int lane) {
    go(0, p.group_shift, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      at[i] = min(at[i] + 16 * p.row_bytes, p.last_at);
      scale_at[i] = min(scale_at[i] + 16 * p.groups, p.last_scale_at);
    }
  }
  __device__ __forceinline__ void go(int step, int shift, int lane) {
    const int q = lane % 4;
    from = step * 64 + q * 16;
    group = kParts == 2 ? step * 2 + q / 2 : step << (20 - shift);
  }
  __device__ __forceinline__ void ask(const One& p, uint4 (&codes)[2], uint16_t (&scales)[2]) {
    // What lies beyond the last column meets digits that are zero.
    const uint32_t own = min(from, p.row_bytes - 16);
    const uint32_t of = kParts == 2 ? min(group, p.groups - 1) : group >> 20;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      codes[i] = load_once(p.w + (at[i] + own));
      if constexpr (kParts > 0) {
        scales[i] = __ldg(reinterpret_cast<const uint16_t*>(p.scales) + (scale_at[i] + of));
      }
    }
    from += 64;
    group += kParts == 2 ? 2 : 1 << (20 - p.group_shift);
  }
  // Product j is of words 2 j and the next of the digits: of codes of one word in two places, or of
  // two words where a byte has one place.
  static __device__ __forceinline__ constexpr int place_of(int word) { return word % kPlaces; }
  static __device__ __forceinline__ void fragments(const uint4 (&codes)[2], int j,
                                                   uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int word = j * 2 + i / 2;
      const uint32_t mask = (((1u << kBits) - 1) << place_of(word) * kBits) * 0x01010101u;
      a[i] = word_in(codes[i % 2], word / kPlaces) & mask;
    }
  }
  // What a digit of a word counts in the sums of zeros, of the upper or the lower rows.
  static __device__ __forceinline__ constexpr int zero_of(int half, int j, bool) {
    return 1 << place_of(half * 2 + j) * kBits;
  }

  // Eight columns of x, words 2 half and the next of a chunk, as pairs.
  static __device__ __forceinline__ void pairs_of(const One& p, int step_at, int q, int chunk,
                                                  int half, uint32_t (&pairs)[4]) {
    const int from = step_at * kStepK + (q * kPlaces + chunk) * 16;
    if (from >= p.k) return;
    const auto* const x = static_cast<const uint16_t*>(p.x) + from;
    if constexpr (kPlaces == 4) {
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        pairs[b] = *reinterpret_cast<const uint32_t*>(x + b * 4 + half * 2);
      }
    } else {
      *reinterpret_cast<uint4*>(pairs) = *reinterpret_cast<const uint4*>(x + half * 8);
    }
  }
  // Of the pairs, the element that is byte b of word j.
  static __device__ __forceinline__ constexpr int element(int j, int b) {
    return kPlaces == 1 ? j * 4 + b : b * 2 + j;
  }
  // How many times x is multiplied by four more for the digits of word 2 half + j, in bits.
  static __device__ __forceinline__ constexpr int lift(int half, int j) {
    return (kPlaces - 1 - (half * 2 + j) % kPlaces) * kBits;
  }

  // A code of a row times its scale and x, for x that holds NaN or inf.
  static __device__ __forceinline__ float product(const One& p, int row, int k) {
    const uint32_t byte = p.w[static_cast<uint32_t>(row) * p.row_bytes + k / kPlaces];
    float v;
    if constexpr (kSigned) {
      v = static_cast<float>(static_cast<int8_t>(byte));
    } else {
      const int code = byte >> k % kPlaces * kBits & ((1 << kBits) - 1);
      v = static_cast<float>(code - kZero);
    }
    if constexpr (kParts > 0) {
      const int group = kParts == 2 ? k / (kStepK / 2) : k / kStepK >> p.group_shift;
      v *= load_float(p.scales, p.scale_dtype, static_cast<uint32_t>(row) * p.groups + group);
    }
    const uint16_t x = static_cast<const uint16_t*>(p.x)[k];
    return v * (kHalf ? half_to_f32(x) : bf16_to_f32(x));
  }
};

// x times `by` is less than 2^30 and `unit` is 1 / by.
struct FixedPoint {
  float by, unit;
  bool finite;
};

// The largest of x's numbers without sign: 16-bit floats are ordered as their bits are. Its first
// rounds are asked for when it is made and looked at in fixed(), where all threads of the block
// come.
struct Largest {
  static constexpr int kRounds = 4;  // of 4096 columns
  uint4 run[kRounds];
  uint32_t more = 0;

  static __device__ __forceinline__ uint32_t of(const uint4& u) {
    const uint32_t a = __vmaxu2(u.x & 0x7FFF7FFFu, u.y & 0x7FFF7FFFu);
    const uint32_t b = __vmaxu2(u.z & 0x7FFF7FFFu, u.w & 0x7FFF7FFFu);
    return __vmaxu2(a, b);
  }
  __device__ __forceinline__ Largest(const void* x, int k) {
    const auto* const from = static_cast<const uint4*>(x);
    const int count = k / 8;
#pragma unroll 1
    for (int i = threadIdx.x + kRounds * kOneThreads; i < count; i += kOneThreads) {
      more = __vmaxu2(more, of(from[i]));
    }
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int i = threadIdx.x + r * kOneThreads;
      run[r] = {};
      if (i < count) {
        asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(run[r].x), "=r"(run[r].y), "=r"(run[r].z), "=r"(run[r].w)
                     : "l"(from + i));
      }
    }
  }
  // `room`: a word for each warp.
  template <bool kHalf, int kShift>
  __device__ __forceinline__ FixedPoint fixed(uint32_t* room) {
    uint32_t largest = more;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) largest = __vmaxu2(largest, of(run[r]));
    largest = __reduce_max_sync(~0u, max(largest & 0xFFFFu, largest >> 16));
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = largest;
    __syncthreads();
    largest = __reduce_max_sync(~0u, room[threadIdx.x % kOneWarps]);
    const auto bits = static_cast<uint16_t>(largest);
    const uint32_t top = __float_as_uint(kHalf ? half_to_f32(bits) : bf16_to_f32(bits));
    // Both stay normal numbers.
    const uint32_t up = min(283u - kShift - (top >> 23), 253u - kShift);
    return {__uint_as_float(up << 23), __uint_as_float((254u - up) << 23),
            largest < (kHalf ? 0x7C00u : 0x7F80u)};
  }
};

// The digits of eight columns: [digit][word].
template <class S>
__device__ __forceinline__ void digits_of(const uint32_t (&pairs)[4], int half, float by,
                                          uint32_t (&digits)[4][2]) {
  float v[8];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 two = unpack_pair(S::kHalf ? DType::f16 : DType::bf16, pairs[j]);
    v[j * 2] = two.x, v[j * 2 + 1] = two.y;
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int bits = half == 0 ? S::lift(0, j) : S::lift(1, j);
    const float lifted = by * static_cast<float>(1 << bits);
    uint32_t fixed[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      // A carry from each digit to the next makes digits of -128 to 127.
      const int whole = __float2int_rn(v[S::element(j, b)] * lifted);
      fixed[b] = (static_cast<uint32_t>(whole) + 0x80808080u) ^ 0x80808080u;
    }
    const uint32_t low0 = __byte_perm(fixed[0], fixed[1], 0x5140);
    const uint32_t low1 = __byte_perm(fixed[2], fixed[3], 0x5140);
    const uint32_t high0 = __byte_perm(fixed[0], fixed[1], 0x7362);
    const uint32_t high1 = __byte_perm(fixed[2], fixed[3], 0x7362);
    digits[0][j] = __byte_perm(low0, low1, 0x5410);
    digits[1][j] = __byte_perm(low0, low1, 0x7632);
    digits[2][j] = __byte_perm(high0, high1, 0x5410);
    digits[3][j] = __byte_perm(high0, high1, 0x7632);
  }
}

// The digits of x as lanes multiply them: [step][chunk][digit and lane of four][four words], the
// places of 16 bytes in an order in which neither writers nor readers meet in a bank. And what the
// sums of a step, or of its two groups, begin with: those of digits times zero points, of digits 0
// and 1, then of 2 and 3, each for the upper and the lower rows.
template <class S>
__device__ __forceinline__ int digit_place(int digit, int q, int chunk) {
  return (digit * 4 + q) ^ (chunk * (8 / S::kChunks));
}
template <class S>
__device__ __forceinline__ void lay_digits(const One& p, float by, uint8_t* sX, int4* sBases) {
  constexpr int kItems = S::kChunks * 8;  // of a step, eight columns each
  const int items = p.steps * kItems;
#pragma unroll 1
  for (int first = 0; first < items; first += kOneThreads) {
    const int i = first + threadIdx.x;
    const int step = static_cast<uint32_t>(i) / kItems, half = i % 2;
    const int chunk = i / 2 % S::kChunks, q = i / (2 * S::kChunks) % 4;
    uint32_t pairs[4] = {};
    S::pairs_of(p, step, q, chunk, half, pairs);
    uint32_t digits[4][2];  // [digit][word]
    digits_of<S>(pairs, half, by, digits);
    uint8_t* const to = sX + (step * S::kChunks + chunk) * 256 + half * 8;
    if (i < items) {
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        *reinterpret_cast<uint2*>(to + digit_place<S>(d, q, chunk) * 16) = {digits[d][0],
                                                                            digits[d][1]};
      }
    }
    if constexpr (S::kZero != 0) {
      // Of the lanes that share a group, or a step.
      constexpr int kRun = S::kParts == 2 ? kItems / 2 : kItems;
      int sum[4];
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        sum[d] = 0;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int counts = half == 0 ? S::zero_of(0, j, true) : S::zero_of(1, j, true);
          sum[d] = __dp4a(static_cast<int>(digits[d][j]), counts * 0x01010101, sum[d]);
        }
#pragma unroll
        for (int s = 1; s < kRun; s *= 2) sum[d] += __shfl_xor_sync(~0u, sum[d], s);
        sum[d] *= -S::kZero;
      }
      constexpr int kLower = S::kAlike ? 1 : 16;
      if (threadIdx.x % kRun == 0 && i < items) {
        sBases[i / kRun * 2] = {sum[0], sum[1], sum[0] * kLower, sum[1] * kLower};
        sBases[i / kRun * 2 + 1] = {sum[2], sum[3], sum[2] * kLower, sum[3] * kLower};
      }
    }
  }
}

// Column n of the only row, from its sum; neighbours in the warp have neighbouring columns. All
// lanes come here.
__device__ __forceinline__ void finish_one(const Finish& f, int n, float v) {
  const bool there = n < f.n;
  if (there) {
    const float x_scale = f.x_scale == nullptr ? 1.0f : f.x_scale[0];
    v = fmaf(v, x_scale * w_scale_of(f, n), bias_of(f, n));
  }
  const bool gated = is_gated(f.activation);
  if (gated) {
    const float factor = __shfl_down_sync(~0u, v, 1);
    v = activated(f.activation, v) * factor;
  } else if (f.activation != Activation::none) {
    v = activated(f.activation, v);
  }
  if (!there || (gated && n % 2 != 0)) return;
  const int column = gated ? n / 2 : n;
  if (f.residual != nullptr) v += load_float(f.residual, f.residual_dtype, column);
  if (f.out_dtype == DType::f32) {
    static_cast<float*>(f.out)[column] = v;
  } else {
    static_cast<uint16_t*>(f.out)[column] = static_cast<uint16_t>(pack_pair(f.out_dtype, v, 0.0f));
  }
}

// Where things lie in shared memory; bytes.
template <class S>
struct OnePlaces {
  int digits, bases, parts, warps, end;
  __host__ __device__ OnePlaces(int steps, int strips) {
    digits = 128;  // behind the largest numbers of warps and 16 zeros
    bases = digits + steps * S::kChunks * 256;
    parts = bases + (S::kZero == 0 ? 0 : steps * (S::kParts == 2 ? 64 : 32));
    warps = parts + (strips + kOneWarps) * 64;
    end = warps + (strips * 2 + 15) / 16 * 16;
  }
};

// A warp's steps of a block. No warp between two that have any has none.
struct OneShare {
  int first, count;
  __device__ __forceinline__ OneShare(int total, int warp) {
    const bool few = total < kOneWarps;
    first = few ? min(warp, total) : total * warp / kOneWarps;
    count = (few ? min(warp + 1, total) : total * (warp + 1) / kOneWarps) - first;
  }
};

template <class S>
__global__ void __launch_bounds__(kOneThreads, 1) one_kernel(const __grid_constant__ One p) {
  extern __shared__ __align__(128) uint8_t one_shared[];
  const int lane = threadIdx.x % 32, quad = lane / 4, q = lane % 4, block = blockIdx.x;
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0);  // one for all lanes
  const int first = block * p.block_strips + min(block, p.more_strips);
  const int strips = p.block_strips + (block < p.more_strips);
  const OneShare share(strips * p.steps, warp);
  const OnePlaces<S> places(p.steps, p.block_strips + 1);
  uint8_t* const sX = one_shared + places.digits;
  int4* const sBases = reinterpret_cast<int4*>(one_shared + places.bases);
  float* const sParts = reinterpret_cast<float*>(one_shared + places.parts);  // [strip + warp][16]
  uint8_t* const sWarps = one_shared + places.warps;  // the first and the last of a strip

  wait_for_others();
  // x is asked for before w, behind which it would wait.
  Largest largest(p.x, p.k);
  int strip = __umulhi(share.first, p.by_steps), step = share.first - strip * p.steps;
  int left = share.count, ask_left = left, ask_step = step;
  S walk;
  uint4 codes[kOneDepth][2];
  uint16_t scales[kOneDepth][2];
  const auto ask = [&](int slot) {
    if (ask_left <= 0) return;
    --ask_left;
    walk.ask(p, codes[slot], scales[slot]);
    if (++ask_step == p.steps) {
      ask_step = 0;
      walk.next(p, lane);
    }
  };
  walk.begin(p, first + strip, step, lane);
#pragma unroll
  for (int i = 0; i < kOneDepth; ++i) ask(i);
  float own_scale = 1.0f;  // of the row that the thread finishes first
  if (p.plain && p.finish.w_scale != nullptr && static_cast<int>(threadIdx.x) < strips * 16) {
    own_scale =
        w_scale_of(p.finish, min(first * 16 + static_cast<int>(threadIdx.x), p.finish.n - 1));
  }
  if (!p.plain) prefetch_finish(p.finish, first * 16, strips * 16, 0, 1);

  if (threadIdx.x < 4) reinterpret_cast<uint32_t*>(one_shared)[16 + threadIdx.x] = 0;
  const FixedPoint fixed =
      largest.fixed<S::kHalf, S::kShift>(reinterpret_cast<uint32_t*>(one_shared));
  if (fixed.finite) {
    lay_digits<S>(p, fixed.by, sX, sBases);
    // The first and the last warp of a strip.
    if (lane == 0 && left > 0 && step == 0) sWarps[strip * 2] = warp;
  } else {
    // Plain products, a row a warp, as the sums of a strip's only warp.
    left = 0;
#pragma unroll 1
    for (int row = warp; row < strips * 16; row += kOneWarps) {
      float v = 0.0f;
#pragma unroll 1
      for (int k = lane; k < p.k; k += 32) {
        if (first * 16 + row < p.finish.n) v += S::product(p, first * 16 + row, k);
      }
#pragma unroll
      for (int s = 16; s > 0; s /= 2) v += __shfl_xor_sync(~0u, v, s);
      if (lane == 0) {
        sParts[row] = v;
        sWarps[row / 16 * 2] = sWarps[row / 16 * 2 + 1] = 0;
      }
    }
  }
  __syncthreads();

  // Lane (quad, q) multiplies its columns by digit quad % 4, or by zeros where its group has the
  // other four columns.
  const bool active = S::kParts != 2 || quad / 4 == q / 2;
  const uint8_t* own_x[S::kChunks];
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    own_x[c] = active ? sX + c * 256 + digit_place<S>(quad % 4, q, c) * 16 : one_shared + 64;
  }
  const int x_step = active ? S::kChunks * 256 : 0;
  int x_at = step * x_step;
  const int4* base = sBases + q % 2 + (S::kParts == 2 ? q / 2 * 2 : 0);
  constexpr int kBases = S::kParts == 2 ? 4 : 2;  // of a step
  // What its two sums of a row count: digits 2 q and the next, of lanes that have none nothing.
  const bool counts = S::kParts == 2 || q < 2;
  const float worth = counts ? fixed.unit * (q % 2 == 0 ? 1.0f : 65536.0f) : 0.0f;
  float sums[4] = {};
  int32_t part[4] = {};
  while (left > 0) {
#pragma unroll
    for (int d = 0; d < kOneDepth; ++d) {
      if (left <= 0) break;
      uint4 digits[S::kChunks];
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        digits[c] = *reinterpret_cast<const uint4*>(own_x[c] + x_at);
      }
      int4 zeros = {};
      if constexpr (S::kZero != 0) zeros = base[step * kBases];
      const int begins[4] = {zeros.x, zeros.y, zeros.z, zeros.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) part[i] = S::kParts > 0 ? begins[i] : part[i] + begins[i];
#pragma unroll
      for (int j = 0; j < S::kProducts; ++j) {
        uint32_t a[4];
        S::fragments(codes[d], j, a);
        multiply_codes<S::kSigned>(part, a, word_in(digits[j / 2], j % 2 * 2),
                                   word_in(digits[j / 2], j % 2 * 2 + 1));
      }
      if constexpr (S::kParts > 0) {
        const float by[2] = {float_of(p.scale_dtype, scales[d][0]),
                             float_of(p.scale_dtype, scales[d][1])};
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] = fmaf(static_cast<float>(part[i]), by[i / 2], sums[i]);
      }
      ask(d);
      --left;
      x_at += x_step;
      if (++step < p.steps && left > 0) continue;
      if constexpr (S::kParts == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[i] = static_cast<float>(part[i]);
          part[i] = 0;
        }
      }
      float upper = fmaf(sums[1], 256.0f, sums[0]) * (worth / (1 << S::kUpper));
      float lower = fmaf(sums[3], 256.0f, sums[2]) * (worth / (1 << S::kLower));
#pragma unroll
      for (int s = 1; s < 4; s *= 2) {
        upper += __shfl_xor_sync(~0u, upper, s);
        lower += __shfl_xor_sync(~0u, lower, s);
      }
      if (q == 0) {
        sParts[(strip + warp) * 16 + quad] = upper;
        sParts[(strip + warp) * 16 + quad + 8] = lower;
      }
      if (lane == 0 && step == p.steps) {
        sWarps[strip * 2 + 1] = warp;
        if (left > 0) sWarps[strip * 2 + 2] = warp;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = 0.0f;
      step = x_at = 0;
      ++strip;
    }
  }
  __syncthreads();

#pragma unroll 1
  for (int item = threadIdx.x; item < (strips * 16 + 31) / 32 * 32; item += kOneThreads) {
    float v = 0.0f;
    const int n = item < strips * 16 ? first * 16 + item : p.finish.n;
    if (item < strips * 16) {
      const int of = item / 16, end = sWarps[of * 2 + 1];
#pragma unroll 8
      for (int w = sWarps[of * 2]; w <= end; ++w) v += sParts[(of + w) * 16 + item % 16];
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

template <class S>
static bool one_launched(One p, const Ctx& ctx, Status* status) {
  const int64_t strips = ceil_div(p.finish.n, 16);
  const int64_t blocks = ctx.multiprocessors < strips ? ctx.multiprocessors : strips;
  p.steps = static_cast<int32_t>(ceil_div(p.k, S::kStepK));
  p.block_strips = static_cast<int32_t>(strips / blocks);
  p.more_strips = static_cast<int32_t>(strips % blocks);
  // Walks and offsets are numbers of 32 bits, and so are the sums of a row without groups.
  const int64_t most = int64_t{1} << 31, steps = (p.block_strips + 1) * int64_t{p.steps};
  if (p.k == 0 || p.k > kOneColumns || steps * p.steps >= most || steps * kOneWarps >= most)
    return false;
  if (strips * 16 * p.row_bytes >= most || strips * 16 * p.groups >= most) return false;
  const OnePlaces<S> places(p.steps, p.block_strips + 1);
  if (places.end > kOneShared) return false;
  p.last_at = static_cast<uint32_t>((p.finish.n - 1) * int64_t{p.row_bytes});
  p.last_scale_at = static_cast<uint32_t>((p.finish.n - 1) * int64_t{p.groups});
  p.plain = is_plain(p.finish) && p.finish.bias == nullptr && p.finish.x_scale == nullptr;
  p.by_steps = static_cast<uint32_t>(((int64_t{1} << 32) + p.steps - 1) / p.steps);
  static std::atomic<uint64_t> asked = 0;
  *status = launched(allow_shared(one_kernel<S>, kOneShared, asked));
  if (is_ok(*status)) {
    *status = launch(ctx, one_kernel<S>, dim3(static_cast<unsigned>(blocks)), kOneThreads,
                     static_cast<size_t>(places.end), p);
  }
  return true;
}

// Whether it took the call: K that fits, and scales of groups in 16 bits.
template <Kind kKind, bool kHalf>
static bool run_one(const LinearArgs& args, const Matrix& x, const Ctx& ctx, Status* status) {
  constexpr int kStepK = OneRows<kKind, kHalf, 0>::kStepK;
  const Weight& w = args.w;
  const Format& f = w.format;
  const bool grouped = f.group_k < w.k;
  const uint8_t* const scales = w.data + scale_at(w.layout, f, {w.n, w.k}, 0, 0);
  One p = {};
  p.x = x.data;
  p.w = w.data;
  p.k = static_cast<int32_t>(w.k);
  p.row_bytes = static_cast<int32_t>(code_row_bytes(f.kind, w.k));
  p.groups = static_cast<int32_t>(scale_cols(f, w.k));
  while (kStepK << p.group_shift < f.group_k && p.group_shift < 20) ++p.group_shift;
  p.scale_dtype = f.scale_dtype;
  p.scales = grouped ? scales : nullptr;
  p.finish = finish_of(args, grouped ? nullptr : scales);
  if (!grouped) return one_launched<OneRows<kKind, kHalf, 0>>(p, ctx, status);
  if (f.group_n != 1 || f.scale_dtype == DType::f32) return false;
  if (f.group_k >= kStepK) return one_launched<OneRows<kKind, kHalf, 1>>(p, ctx, status);
  if constexpr (kKind != Kind::int8) {
    if (f.group_k == kStepK / 2) return one_launched<OneRows<kKind, kHalf, 2>>(p, ctx, status);
  }
  return false;
}

}  // namespace
}  // namespace lowbit
