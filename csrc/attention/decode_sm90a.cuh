// Attention over a paged cache on Hopper, for few queries: 16 rows a block of them, keys and values
// read once from memory, products on the tensor cores by mma.sync.
//
// A row is a query token and one of the query heads that share a kv head: row r of a sequence is
// token r / group and head r % group. An item is 16 consecutive rows of a sequence and one kv head,
// its keys cut into tiles of kTile. The tiles of all items, end to end, are dealt out evenly: block
// c of G takes tiles total * c / G to total * (c + 1) / G, whatever items they belong to. Where
// that is follows from the lengths in device memory, so a graph may be replayed with others.
//
//   tiles    |.......item 0.......|...item 1...|..item 2..|.............item 3.............|
//   blocks   |    0    |    1    |    2    |    3    |    4    |    5    |    6    |   7   |
//
// Of each block one warp finds the tiles and asks the copy engine for them, eight multiply: four of
// them take a tile, a quarter of its keys each, the other four the next one. At the end of an item
// they add up, in the order of warps; an item that has tiles in several blocks leaves parts in
// scratch, which join() adds up in the order of blocks. So the bits depend on lengths and on the
// number of multiprocessors only.
//
// The cache is one row of lines of 128 bytes to the copy engine, so pages of any size arrive
// swizzled and free of bank conflicts. Codes of 8 and 4 bits become operands without their scales:
//
//   K    times q in f16, scaled by a power of two a row; the scale meets the score, and for int4
//        the zero times the sum of q is taken off
//   V    bf16 times a power of two a format: int4 and e4m3 bits in the exponent's low end
//        P times the scale, in bf16, is the weight; the sum of weights divides each by its scale
//        again, so that they add up to one
//
// A masked key has p = 0, but 0 times a NaN or inf of its value is no number. In tiles that not
// every row sees whole, such values are added row by row and then cleared; int8, int4 and e4m3
// codes are finite.
#pragma once

#include <cmath>
#include <type_traits>

#include "csrc/attention/row_sm75.cuh"
#include "csrc/cuda/ldmatrix.cuh"
#include "csrc/cuda/mma.cuh"
#include "csrc/cuda/swizzle.cuh"
#include "csrc/cuda/tensor_map.cuh"
#include "csrc/cuda/tma.cuh"

namespace lowbit {
namespace {

inline constexpr float kLog2 = 1.44269504f, kLn2 = 0.693147181f;

inline constexpr int kWarps = 8, kWorkers = 32 * kWarps;  // that multiply
inline constexpr int kThreads = kWorkers + 128;  // a warpgroup gives its registers to the others
inline constexpr int kRows = 16;                 // of an item
inline constexpr int kMostBlocks = 144;          // one a multiprocessor
inline constexpr int kPassRows = 4;              // that warps add up at a time
// Of weights of codes, so that products with the smallest bf16 stay in f32's range.
inline constexpr float kLift = 0x1p96f, kDrop = 0x1p-96f;

constexpr int log2_of(int64_t x) {
  int n = 0;
  while (int64_t{1} << n < x) ++n;
  return n;
}
constexpr int clamped(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// Head dims of kDim; q in f16 (kHalf) or bf16.
template <KvFormat kFormatOf, bool kHalfOf, int kDimOf>
struct Form {
  static constexpr KvFormat kFormat = kFormatOf;
  static constexpr bool kHalf = kHalfOf;
  static constexpr int kDim = kDimOf, kBits = kv_format_row(kFormat).bits;
  static constexpr bool kCodes = kBits < 16, kZeros = kFormat == KvFormat::int4;
  static constexpr int kRowBytes = kDim * kBits / 8;
  // Of a warp: 4 KiB of K, but no more scores than registers.
  static constexpr int kKeys = clamped(4096 / kRowBytes, 16, 64);
  static constexpr int kTile = 4 * kKeys;
  static constexpr int kScales = kCodes ? kZeros ? 4 : 2 : 0;  // f16 a token
  static constexpr int kPart = kTile * kRowBytes;              // bytes of K or of V
  static constexpr int kStageBytes = 2 * kPart + (kScales * 2 * kTile + 1023) / 1024 * 1024;
  static constexpr int kStages = clamped(196608 / kStageBytes, 2, 12);
  static constexpr int kSteps = kDim / 16, kColumns = kDim / 8;
  // Rows of a pass stand in different banks.
  static constexpr int kPassStride = kDim + 8;
  static constexpr size_t kPassBytes = sizeof(float) * kWarps * kPassRows * kPassStride;
  static constexpr size_t kShared = kSwizzleAlign + kStages * kStageBytes + kPassBytes + 2048 + 512;
  static_assert(kShared <= 232448, "shared memory of a multiprocessor");
};

// 16 rows of a sequence and one kv head.
struct Item {
  int sequence, head, row0, rows;
  int seq_q, seq_kv;
  int begin, end;  // keys that some row sees
  int low, high;   // keys that all rows see
  int prefix, prefix_row;
  int tiles;
};
// Tiles of an item that a block has; none: there is no more.
struct Segment {
  Item item;
  int first, count;
};
// An item that ends in this block and began in block `from`.
struct Join {
  Item item;  // 0 rows: none
  int from;
  int64_t total;
};

struct Call {
  CUtensorMap map;  // of all lines of the cache
  AttentionArgs args;
  float scale;
  int page_shift;  // log2 of the page's tokens
  unsigned long long* check;
  float* parts;  // in scratch, [blocks][2][kPartFloats<kDim>]
  Join* joins;   // [blocks]
};
// The weighted sums of values, then of each row the maximum in units of log2 and two sums of
// weights: of those that met values, and of P.
template <int kDim>
inline constexpr int kPartFloats = kRows*(kDim + 3);

__device__ __forceinline__ int group_of(const AttentionArgs& a) {
  return static_cast<int>(head_count(a) / kv_head_count(a));
}

// False where the lengths make no sense.
__device__ __forceinline__ bool sequence_of(const AttentionArgs& a, int b, Sequence* s) {
  if (has_prefix_fault(a, b)) return false;
  *s = sequence_at(a, b);
  if (s->seq_kv < 0 || s->seq_kv > seq_kv_bound(a)) return false;
  return s->token >= 0 && s->seq_q >= 0 && (is_batched(a) || s->token + s->seq_q <= a.q.shape[0]);
}

// Keys [lo, hi) of a tile whose first would be key0, in the pages or in a prefix.
struct Tile {
  int key0, lo, hi;
  bool prefix;
};
template <class F>
__device__ __forceinline__ int tiles_between(int lo, int hi) {
  return lo < hi ? (hi - 1) / F::kTile - lo / F::kTile + 1 : 0;
}
template <class F>
__device__ __forceinline__ Tile tile_at(const Item& t, int index) {
  const int cut = t.prefix < t.end ? t.prefix : t.end;
  const int before = tiles_between<F>(t.begin, cut);
  const bool prefix = index < before;
  const int lo = prefix || t.begin > t.prefix ? t.begin : t.prefix;
  return {(lo / F::kTile + index - (prefix ? 0 : before)) * F::kTile, lo, prefix ? cut : t.end,
          prefix};
}

template <class F>
__device__ __forceinline__ Item item_at(const AttentionArgs& a, const Sequence& s, int block) {
  const int group = group_of(a);
  Item t = {};
  t.sequence = static_cast<int>(s.index);
  t.row0 = block * kRows;
  t.seq_q = static_cast<int>(s.seq_q);
  t.seq_kv = static_cast<int>(s.seq_kv);
  const int left = t.seq_q * group - t.row0;
  t.rows = left < kRows ? left : kRows;
  const Mask mask = make_mask(a.causal, a.window_left, a.window_right);
  const int64_t position = s.seq_kv - s.seq_q;
  const int64_t first = position + t.row0 / group, last = position + (t.row0 + t.rows - 1) / group;
  const KeyRange any = visible_keys(mask, first, last, s.seq_kv);
  t.begin = static_cast<int>(any.begin);
  t.end = static_cast<int>(any.end);
  t.low = static_cast<int>(visible_keys(mask, last, s.seq_kv).begin);
  t.high = static_cast<int>(visible_keys(mask, first, s.seq_kv).end);
  t.prefix = static_cast<int>(s.prefix_len);
  t.prefix_row = static_cast<int>(s.prefix);
  const int cut = t.prefix < t.end ? t.prefix : t.end;
  t.tiles = tiles_between<F>(t.begin, cut) +
            tiles_between<F>(t.begin > t.prefix ? t.begin : t.prefix, t.end);
  if (t.tiles == 0) t.tiles = 1;  // rows without keys have results, too
  return t;
}
__device__ __forceinline__ int block_count(const AttentionArgs& a, const Sequence& s) {
  return (static_cast<int>(s.seq_q) * group_of(a) + kRows - 1) / kRows;
}

// Where a block's tiles begin.
struct Start {
  int64_t total;
  int sequence, block, head, tile;
};
__device__ __forceinline__ int64_t first_of(int64_t total, int block) {
  return total * block / gridDim.x;
}

// By all threads: counts the tiles of all sequences.
template <class F>
__device__ __forceinline__ void find_start(const AttentionArgs& a, Start* start) {
  __shared__ int64_t sums[kThreads / 32];
  const int count = static_cast<int>(sequence_count(a)), heads = static_cast<int>(a.kv.kv_heads);
  const int each = (count + kThreads - 1) / kThreads;
  const int b0 = threadIdx.x * each, b1 = b0 + each < count ? b0 + each : count;
  const auto walk = [&](const auto& f) {  // until f says that it has found what it looks for
    for (int b = b0; b < b1; ++b) {
      Sequence s;
      if (!sequence_of(a, b, &s)) continue;
      for (int block = 0, blocks = block_count(a, s); block < blocks; ++block) {
        if (f(b, block, item_at<F>(a, s, block).tiles)) return;
      }
    }
  };
  int64_t own = 0;
  walk([&](int, int, int tiles) {
    own += int64_t{heads} * tiles;
    return false;
  });
  int64_t upto = own;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int step = 1; step < 32; step *= 2) {
    const int64_t other = __shfl_up_sync(~0u, upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == 31) sums[warp] = upto;
  __syncthreads();
  int64_t total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == warp) upto += total;
    total += sums[w];
  }
  int64_t at = first_of(total, blockIdx.x) - (upto - own);
  if (threadIdx.x == 0) start->total = total;
  if (at >= 0 && at < own) {
    walk([&](int b, int block, int tiles) {
      if (at >= int64_t{heads} * tiles) {
        at -= int64_t{heads} * tiles;
        return false;
      }
      start->sequence = b;
      start->block = block;
      start->head = static_cast<int>(at / tiles);
      start->tile = static_cast<int>(at % tiles);
      return true;
    });
  }
  __syncthreads();
}

template <class F>
struct Shared {
  uint8_t* stages;
  float* pass;                   // [kWarps][kPassRows][kPassStride]
  float *base, *weights, *sums;  // [kWarps][kRows]
  uint64_t *full, *empty, *segment_full, *segment_empty;
  Segment* segments;  // two: the producer is one ahead
  Start* start;
};
template <class F>
__device__ __forceinline__ Shared<F> shared_of(uint8_t* raw) {
  Shared<F> s;
  s.stages = align_tile(raw);
  s.pass = reinterpret_cast<float*>(s.stages + F::kStages * F::kStageBytes);
  s.base = s.pass + F::kPassBytes / sizeof(float);
  s.weights = s.base + kWarps * kRows;
  s.sums = s.weights + kWarps * kRows;
  s.full = reinterpret_cast<uint64_t*>(s.sums + kWarps * kRows);
  s.empty = s.full + F::kStages;
  s.segment_full = s.empty + F::kStages;
  s.segment_empty = s.segment_full + 2;
  s.segments = reinterpret_cast<Segment*>(s.segment_empty + 2);
  s.start = reinterpret_cast<Start*>(s.segments + 2);
  return s;
}

// ---- the producer ------------------------------------------------------------------------------

// Asks for one tile, by all lanes: the boxes of K and V and the scales, each lane some of them.
template <class F>
__device__ __forceinline__ void bring(const Call& call, const Item& t, const int32_t* pages,
                                      const Tile& tile, uint8_t* stage, uint64_t* full,
                                      uint64_t policy) {
  const KvCache& c = call.args.kv;
  const int lane = threadIdx.x % 32, shift = call.page_shift, size = 1 << shift;
  const int box_shift = size < F::kTile ? shift : log2_of(F::kTile), box = 1 << box_shift;
  const int lo = tile.lo > tile.key0 ? tile.lo : tile.key0;
  const int hi = tile.hi < tile.key0 + F::kTile ? tile.hi : tile.key0 + F::kTile;
  const int first = lo >> box_shift;
  const int count = lo < hi ? ((hi - 1) >> box_shift) - first + 1 : 0;
  if (lane == 0) {
    if (count > 0) {
      barrier_expect(full, count * box * 2 * (F::kRowBytes + F::kScales));
    } else {
      barrier_arrive(full);
    }
  }
  __syncwarp();
  // The scales of a whole page stand together.
  const int copies = 2 + (F::kScales == 0 ? 0 : box == size ? 1 : F::kScales);
  for (int i = lane; i < count * copies; i += 32) {
    const int which = i / copies, part = i - which * copies;
    const int key = (first + which) << box_shift, token = tile.prefix ? key : key & (size - 1);
    const uint8_t* block;
    if (tile.prefix) {
      block = kv_prefix(c, t.prefix_row, t.head);
    } else {
      const int page = __ldg(pages + (key >> shift));
      block = kv_page(c, is_page(call.args, page) ? page : 0, t.head);
    }
    const KvBlock& form = tile.prefix ? c.prefix : c.page;
    const int to = key - tile.key0;
    if (part < 2) {
      const uint8_t* from = block + (part == 0 ? form.k : form.v) + token * F::kRowBytes;
      tma_load(stage + part * F::kPart + to * F::kRowBytes, &call.map, 0,
               static_cast<int>((from - c.data) / kSwizzleRow), full, policy);
    } else {
      const uint8_t* from = block + form.k_scale + (part - 2) * 2 * size + 2 * token;
      bulk_load(stage + 2 * F::kPart + to * 2 * F::kScales + (part - 2) * 2 * box, from,
                2 * box * (box == size ? F::kScales : 1), full, policy);
    }
  }
}

template <class F>
__device__ __forceinline__ void produce(const Call& call, const Shared<F>& s) {
  const AttentionArgs& a = call.args;
  const bool one = threadIdx.x % 32 == 0;
  const int heads = static_cast<int>(a.kv.kv_heads);
  const int64_t total = s.start->total;
  const int64_t begin = first_of(total, blockIdx.x);
  int64_t left = first_of(total, blockIdx.x + 1) - begin;
  int b = s.start->sequence, block = s.start->block, head = s.start->head, tile = s.start->tile;
  Ring<F::kStages> ring;
  Ring<2> next;
  Join join = {};
  const auto give = [&](const Segment& segment) {
    barrier_wait(&s.segment_empty[next.slot], next.parity ^ 1);
    if (one) {
      s.segments[next.slot] = segment;
      barrier_arrive(&s.segment_full[next.slot]);
    }
    advance(next);
  };
  for (; left > 0; ++b, block = 0) {
    Sequence sequence;
    if (!sequence_of(a, b, &sequence)) continue;
    const int blocks = block_count(a, sequence);
    // Keys that several blocks of rows see come again.
    const uint64_t policy = blocks > 1 ? evict_last() : evict_first();
    for (; block < blocks && left > 0; ++block, head = 0) {
      Item item = item_at<F>(a, sequence, block);
      for (; head < heads && left > 0; ++head, tile = 0) {
        item.head = head;
        const int rest = item.tiles - tile;
        const int count = left < rest ? static_cast<int>(left) : rest;
        left -= count;
        if (tile > 0 && count == rest) {
          join.item = item;
          join.total = total;
          const int64_t unit = begin - tile;  // the item's first of all
          int from = static_cast<int>(unit * gridDim.x / total);
          while (first_of(total, from + 1) <= unit) ++from;
          join.from = from;
        }
        give({item, tile, count});
        for (int i = tile; i < tile + count; ++i) {
          const Tile at = tile_at<F>(item, i);
          barrier_wait(&s.empty[ring.slot], ring.parity ^ 1);
          bring<F>(call, item, sequence.pages, at, s.stages + ring.slot * F::kStageBytes,
                   &s.full[ring.slot], policy);
          advance(ring);
        }
      }
    }
  }
  give({});
  if (one) call.joins[blockIdx.x] = join;
}

// ---- the workers -------------------------------------------------------------------------------

__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
template <bool kHalf>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
  uint32_t w;
  if constexpr (kHalf) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  }
  return w;
}
template <bool kHalf>
__device__ __forceinline__ float low_of(uint32_t w) {
  if constexpr (kHalf) return half_to_f32(static_cast<uint16_t>(w));
  return __uint_as_float(w << 16);
}
template <bool kHalf>
__device__ __forceinline__ float high_of(uint32_t w) {
  if constexpr (kHalf) return half_to_f32(static_cast<uint16_t>(w >> 16));
  return __uint_as_float(w & 0xffff0000u);
}
__device__ __forceinline__ uint32_t sub_f16(uint32_t a, uint32_t b) {
  uint32_t c;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}
__device__ __forceinline__ uint32_t fma_f16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ uint32_t sub_bf16(uint32_t a, uint32_t b) {
  uint32_t c;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
__device__ __forceinline__ void workers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kWorkers) : "memory");
}

// Four consecutive codes of 8 bits of a key as f16: the first two, the others.
template <KvFormat kFormat>
__device__ __forceinline__ void key_codes(uint32_t w, uint32_t& first, uint32_t& second) {
  if constexpr (kFormat == KvFormat::fp8_e4m3) {
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.rn.f16x2.e4m3x2 %0, l;\n"
        "cvt.rn.f16x2.e4m3x2 %1, h;\n}"
        : "=r"(first), "=r"(second)
        : "r"(w));
  } else {
    // 1024 + u, u = code + 128, less 1152.
    w ^= 0x80808080u;
    first = sub_f16(__byte_perm(w, 0x64646464u, 0x4140), 0x64806480u);
    second = sub_f16(__byte_perm(w, 0x64646464u, 0x4342), 0x64806480u);
  }
}
// Eight codes of 4 bits of a key, less 8, as f16: of the four low halves the first and the third,
// the others; and the same of the high halves.
__device__ __forceinline__ void key_nibbles(uint32_t w, uint32_t (&to)[4]) {
  constexpr uint32_t kBase = 0x64006400u;  // 1024 + n, and 1024 + 16 n
  const uint32_t y = w >> 8;
  to[0] = sub_f16((w & 0x000f000fu) | kBase, 0x64086408u);
  to[1] = sub_f16((y & 0x000f000fu) | kBase, 0x64086408u);
  to[2] = fma_f16((w & 0x00f000f0u) | kBase, 0x2c002c00u, 0xd480d480u);  // / 16 - 72
  to[3] = fma_f16((y & 0x00f000f0u) | kBase, 0x2c002c00u, 0xd480d480u);
}
// Of two values the bytes 2n and 2n + 1, as pairs in bf16: byte 2n of both, byte 2n + 1 of both.
template <KvFormat kFormat>
__device__ __forceinline__ void value_codes(uint32_t w, uint32_t& even, uint32_t& odd) {
  if constexpr (kFormat == KvFormat::fp8_e4m3) {  // times 2^-120
    even = ((w << 8) & 0x80008000u) | ((w << 4) & 0x07f007f0u);
    odd = (w & 0x80008000u) | ((w >> 4) & 0x07f007f0u);
  } else {
    // 0x4300 and the low seven bits are 128 + b, the sign's bit alone 128 or 256.
    const auto whole = [](uint32_t t) { return sub_bf16(t & 0xff7fff7fu, t & 0xff80ff80u); };
    even = whole(__byte_perm(w, 0x43434343u, 0x4240));
    odd = whole(__byte_perm(w, 0x43434343u, 0x4341));
  }
}

// What the operands of a format leave to the sums of values: their power of two.
template <class F>
__device__ __forceinline__ float value_unit(int pair) {
  switch (F::kFormat) {
    case KvFormat::fp8_e4m3: return 0x1p24f;
    case KvFormat::int8: return kDrop;
    case KvFormat::int4: return pair < F::kDim / 32 ? 0x1p37f : 0x1p33f;
    default: return 1.0f;
  }
}

// Column of q that stands at place `i` of 4 of a lane in step `step`: pairs (0, 1) and (2, 3).
template <class F>
__device__ __forceinline__ constexpr int q_column(int step, int i) {
  if (F::kBits == 16) return step * 16 + i / 2 * 8 + i % 2;  // + 2 (lane % 4)
  if (F::kBits == 8) return step * 16 + i;                   // + 4 (lane % 4)
  const int half = F::kDim / 32;
  const int place = i % 2 * 2 + i / 2;
  return step < half ? step * 16 + place : F::kDim / 2 + (step - half) * 16 + place;
}

// What the two rows of a lane carry from tile to tile, and what they see.
struct Rows {
  int begin[2], end[2];
  float position[2], slope[2];  // slope in units of log2
  float unit[2];                // log2(e) of one unit of a score
  float scale[2];               // of a product, before a transform
  float q_sum[2];
  float max[2], base[2];  // base: max in units of log2
  float weights[2], sums[2], zeros[2];
};

// The rows of q as operands a.
template <class F, bool kTransform>
__device__ __forceinline__ void load_q(const Call& call, const Item& t, const Sequence& s,
                                       Rows& rows, uint32_t (&q)[F::kSteps][4]) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, group = group_of(a);
  const Mask mask = make_mask(a.causal, a.window_left, a.window_right);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r, of = t.row0 + row, token = of / group;
    const int h = t.head * group + of % group;
    const bool there = row < t.rows;
    const int64_t position = token + s.seq_kv - s.seq_q;
    const KeyRange keys = visible_keys(mask, position, s.seq_kv);
    rows.begin[r] = there ? static_cast<int>(keys.begin) : 0;
    rows.end[r] = there ? static_cast<int>(keys.end) : 0;
    rows.position[r] = static_cast<float>(position);
    rows.slope[r] =
        there && present(a.alibi_slopes) ? static_cast<const float*>(a.alibi_slopes.data)[h] : 0.0f;
    rows.max[r] = -INFINITY;
    rows.base[r] = rows.weights[r] = rows.sums[r] = rows.zeros[r] = rows.q_sum[r] = 0.0f;
    const uint16_t* from = static_cast<const uint16_t*>(a.q.data) + s.q +
                           token * token_stride(a.q) + h * head_stride(a.q) +
                           lane % 4 * (F::kBits == 16 ? 2 : 4);
#pragma unroll
    for (int step = 0; step < F::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t w = 0;
        if (there) {
          w = from[q_column<F>(step, 2 * i)] |
              static_cast<uint32_t>(from[q_column<F>(step, 2 * i + 1)]) << 16;
        }
        q[step][2 * i + r] = w;
      }
    }
    float scale = 1.0f;
    if constexpr (F::kCodes) {
      // The largest finite number of the row comes to 2^14: f16 then holds what f32 sums see.
      float most = 0.0f;
      const auto take = [&](float x) {
        if (fabsf(x) < INFINITY) most = fmaxf(most, fabsf(x));
      };
#pragma unroll
      for (int step = 0; step < F::kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          take(low_of<false>(q[step][2 * i + r]));
          take(high_of<false>(q[step][2 * i + r]));
        }
      }
      const int exponent = static_cast<int>(__float_as_uint(quad_max(most)) >> 23);
      const int up = clamped(127 + 14 - exponent, -126, 126);
      const float lift = __uint_as_float(static_cast<uint32_t>(127 + up) << 23);
      scale = __uint_as_float(static_cast<uint32_t>(127 - up) << 23);
#pragma unroll
      for (int step = 0; step < F::kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t& w = q[step][2 * i + r];
          w = pair_of<true>(low_of<false>(w) * lift, high_of<false>(w) * lift);
          if constexpr (F::kZeros) rows.q_sum[r] += low_of<true>(w) + high_of<true>(w);
        }
      }
      if constexpr (F::kZeros) rows.q_sum[r] = quad_sum(rows.q_sum[r]);
    }
    rows.scale[r] = call.scale * scale;
    rows.unit[r] = kTransform ? kLog2 : rows.scale[r] * kLog2;
  }
}

// A place of ldmatrix in a swizzled tile: `lane` is where the lane's row begins and `at` what is
// added to it, no bit of which `lane` has. Both are relative to a multiple of 1024.
__device__ __forceinline__ uint32_t lane_place(uint32_t lane) { return lane ^ (lane >> 3 & 0x70u); }
__device__ __forceinline__ uint32_t place_at(uint32_t base, uint32_t at) {
  return (base ^ ((at & 0x3ffu) ^ (at >> 3 & 0x70u))) + (at & ~0x3ffu);
}

// f16 number `array` of keys `key` and the next one, `key` even, of those in a stage.
template <class F>
__device__ __forceinline__ float2 scales_at(const uint8_t* scales, int box, int array, int key) {
  const int in = key & (box - 1);
  const uint32_t w = *reinterpret_cast<const uint32_t*>(scales + (key - in) * 2 * F::kScales +
                                                        array * 2 * box + 2 * in);
  return {low_of<true>(w), high_of<true>(w)};
}

// Values of a warp's 16 keys that aren't finite: each is added to the rows that see it and cleared.
template <class F>
__device__ __forceinline__ void clear_values(const Rows& rows, const Tile& tile, int key,
                                             const uint32_t (&p)[4], uint8_t* values,
                                             float (&o)[F::kColumns][4]) {
  constexpr uint32_t kMost = F::kHalf ? 0x7c00u : 0x7f80u;  // the exponent of NaN and inf
  const int lane = threadIdx.x % 32;
  unsigned bad = 0;
  for (int at = lane * 16; at < 16 * F::kRowBytes; at += 512) {
    const uint4 v = *reinterpret_cast<const uint4*>(values + lane_place(at));
    bool any = false;
    for (const uint32_t w : {v.x, v.y, v.z, v.w}) {
      any = any || (w & kMost) == kMost || (w >> 16 & kMost) == kMost;
    }
    if (any) bad |= 1u << at / F::kRowBytes;
  }
  bad = __reduce_or_sync(~0u, bad);
  if (bad == 0) return;
  for (int t = 0; t < 16; ++t) {
    if ((bad >> t & 1) == 0) continue;
    float weight[2];
    bool sees[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t pair = __shfl_sync(~0u, t < 8 ? p[r] : p[2 + r], (lane & ~3) | (t % 8 / 2));
      weight[r] = t % 2 == 0 ? low_of<F::kHalf>(pair) : high_of<F::kHalf>(pair);
      const int j = key + t;
      sees[r] = j >= rows.begin[r] && j < rows.end[r] && j >= tile.lo && j < tile.hi;
    }
#pragma unroll
    for (int n = 0; n < F::kColumns; ++n) {
      const uint32_t w = *reinterpret_cast<const uint32_t*>(
          values + lane_place(t * F::kRowBytes + 16 * n + 4 * (lane % 4)));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (!sees[r]) continue;
        o[n][2 * r] += weight[r] * low_of<F::kHalf>(w);
        o[n][2 * r + 1] += weight[r] * high_of<F::kHalf>(w);
      }
    }
    __syncwarp();
    for (int at = lane * 16; at < F::kRowBytes; at += 512) {
      *reinterpret_cast<uint4*>(values + lane_place(t * F::kRowBytes + at)) = {};
    }
    __syncwarp();
  }
  async_fence();  // the copy engine writes here next
}

// A warp's keys of a tile, from `key` on.
template <class F, bool kTransform>
__device__ __forceinline__ void take_keys(const Call& call, const Item& t, const Tile& tile,
                                          int key, int box, uint8_t* stage,
                                          const uint32_t (&q)[F::kSteps][4], Rows& rows,
                                          float (&o)[F::kColumns][4]) {
  constexpr int kKeys = F::kKeys, kRowBytes = F::kRowBytes, kChunks = kRowBytes / 16;
  const int lane = threadIdx.x % 32, part = key - tile.key0;
  const uint8_t* scales = stage + 2 * F::kPart;

  float s[kKeys / 8][4] = {};
  {
    const uint32_t base = smem_address(stage) + part * kRowBytes +
                          lane_place((lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * 16);
#pragma unroll
    for (int n = 0; n < kKeys / 8; n += 2) {
#pragma unroll
      for (int c = 0; c < kChunks; c += 2) {
        uint32_t w[4];  // keys n and chunks c and c + 1; the same of keys n + 1
        ldmatrix(place_at(base, n * 8 * kRowBytes + c * 16), w[0], w[1], w[2], w[3]);
        if constexpr (F::kBits == 16) {
          mma_16bit<F::kHalf>(s[n], q[c / 2], w[0], w[1]);
          mma_16bit<F::kHalf>(s[n + 1], q[c / 2], w[2], w[3]);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float(&to)[4] = s[n + i / 2];
            if constexpr (F::kBits == 8) {
              uint32_t b0, b1;
              key_codes<F::kFormat>(w[i], b0, b1);
              mma_16bit<true>(to, q[c + i % 2], b0, b1);
            } else {
              uint32_t b[4];
              key_nibbles(w[i], b);
              mma_16bit<true>(to, q[c + i % 2], b[0], b[1]);
              mma_16bit<true>(to, q[kChunks + c + i % 2], b[2], b[3]);
            }
          }
        }
      }
    }
  }

  const int column = key + 2 * (lane % 4);
  if constexpr (F::kCodes) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      const int at = part + 8 * n + 2 * (lane % 4);
      const float2 scale = scales_at<F>(scales, box, 0, at);
      float2 zero = {};
      if constexpr (F::kZeros) zero = scales_at<F>(scales, box, 1, at);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (F::kZeros) {
          s[n][2 * r] -= (zero.x - 8.0f) * rows.q_sum[r];
          s[n][2 * r + 1] -= (zero.y - 8.0f) * rows.q_sum[r];
        }
        s[n][2 * r] *= scale.x;
        s[n][2 * r + 1] *= scale.y;
      }
    }
  }
  if constexpr (kTransform) {
    const AttentionArgs& a = call.args;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x = s[n][i] * rows.scale[i / 2];
        if (a.softcap > 0) x = a.softcap * tanhf(x / a.softcap);
        const auto j = static_cast<float>(column + 8 * n + i % 2);
        s[n][i] = x + rows.slope[i / 2] * (j - rows.position[i / 2]);
      }
    }
  }
  const int low = tile.lo > t.low ? tile.lo : t.low, high = tile.hi < t.high ? tile.hi : t.high;
  const bool ragged = key < low || key + kKeys > high;
  uint64_t seen[2] = {~uint64_t{0}, ~uint64_t{0}};  // a bit for each key of a lane
  if (ragged) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int begin = (rows.begin[r] > tile.lo ? rows.begin[r] : tile.lo) - column;
      const int end = (rows.end[r] < tile.hi ? rows.end[r] : tile.hi) - column;
      seen[r] = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int j = 8 * n + i;
          const bool sees = j >= begin && j < end;
          if (sees) seen[r] |= uint64_t{1} << (2 * n + i);
          if (!sees) s[n][2 * r + i] = -INFINITY;
        }
      }
    }
  }

  bool moved = false;
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = rows.max[r];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    }
    most = quad_max(most);
    const float base = most == -INFINITY ? 0.0f : most * rows.unit[r];
    factor[r] = rows.max[r] == -INFINITY ? 0.0f : exp2_of(rows.base[r] - base);
    moved = moved || most != rows.max[r];
    rows.max[r] = most;
    rows.base[r] = base;
  }
  if (__any_sync(~0u, moved)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows.weights[r] *= factor[r];
      rows.sums[r] *= factor[r];
      rows.zeros[r] *= factor[r];
#pragma unroll
      for (int n = 0; n < F::kColumns; ++n) {
        o[n][2 * r] *= factor[r];
        o[n][2 * r + 1] *= factor[r];
      }
    }
  }

  uint32_t p[kKeys / 16][4];
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
    float2 scale = {1.0f, 1.0f}, inverse = {1.0f, 1.0f}, zero = {};
    if constexpr (F::kCodes) {
      const int at = part + 8 * n + 2 * (lane % 4);
      scale = scales_at<F>(scales, box, F::kZeros ? 2 : 1, at);
      scale = {scale.x * kLift, scale.y * kLift};
      inverse = {reciprocal(scale.x), reciprocal(scale.y)};
      if constexpr (F::kZeros) zero = scales_at<F>(scales, box, 3, at);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float x = exp2_of(fmaf(s[n][2 * r], rows.unit[r], -rows.base[r]));
      const float y = exp2_of(fmaf(s[n][2 * r + 1], rows.unit[r], -rows.base[r]));
      rows.sums[r] += x + y;
      if constexpr (!F::kCodes) {
        const uint32_t w = pair_of<F::kHalf>(x, y);
        p[n / 2][n % 2 * 2 + r] = w;
        rows.weights[r] += low_of<F::kHalf>(w) + high_of<F::kHalf>(w);
      } else {
        // What stands beside keys that a row doesn't see may be NaN.
        const bool first = !ragged || (seen[r] >> (2 * n) & 1) != 0;
        const bool second = !ragged || (seen[r] >> (2 * n + 1) & 1) != 0;
        const uint32_t w = pair_of<false>(first ? x * scale.x : 0.0f, second ? y * scale.y : 0.0f);
        p[n / 2][n % 2 * 2 + r] = w;
        const float u = low_of<false>(w), v = high_of<false>(w);
        rows.weights[r] += (first ? u * inverse.x : 0.0f) + (second ? v * inverse.y : 0.0f);
        if constexpr (F::kZeros) {
          rows.zeros[r] += (first ? u * zero.x : 0.0f) + (second ? v * zero.y : 0.0f);
        }
      }
    }
  }

  uint8_t* values = stage + F::kPart + part * kRowBytes;
  const uint32_t base =
      smem_address(values) + lane_place((lane / 8 % 2 * 8 + lane % 8) * kRowBytes + lane / 16 * 16);
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    if constexpr (!F::kCodes) {
      if (ragged) {
        clear_values<F>(rows, tile, key + 16 * k, p[k], values + k * 16 * kRowBytes, o);
      }
    }
#pragma unroll
    for (int c = 0; c < kChunks; c += 2) {
      uint32_t w[4];  // chunk c of values 0 to 7 and 8 to 15; the same of chunk c + 1
      ldmatrix_across(place_at(base, k * 16 * kRowBytes + c * 16), w[0], w[1], w[2], w[3]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t w0 = w[2 * i], w1 = w[2 * i + 1];
        if constexpr (F::kBits == 16) {
          mma_16bit<F::kHalf>(o[c + i], p[k], w0, w1);
        } else if constexpr (F::kBits == 8) {
          uint32_t even0, odd0, even1, odd1;
          value_codes<F::kFormat>(w0, even0, odd0);
          value_codes<F::kFormat>(w1, even1, odd1);
          mma_16bit<false>(o[2 * (c + i)], p[k], even0, even1);
          mma_16bit<false>(o[2 * (c + i) + 1], p[k], odd0, odd1);
        } else {
          // Four bits in bf16's low end: n times 2^-133, and 16 n.
          constexpr int kHigh = F::kColumns / 2;
          constexpr uint32_t kLow4 = 0x000f000fu, kHigh4 = 0x00f000f0u;
          const uint32_t y0 = w0 >> 8, y1 = w1 >> 8;
          mma_16bit<false>(o[2 * (c + i)], p[k], w0 & kLow4, w1 & kLow4);
          mma_16bit<false>(o[2 * (c + i) + 1], p[k], y0 & kLow4, y1 & kLow4);
          mma_16bit<false>(o[kHigh + 2 * (c + i)], p[k], w0 & kHigh4, w1 & kHigh4);
          mma_16bit<false>(o[kHigh + 2 * (c + i) + 1], p[k], y0 & kHigh4, y1 & kHigh4);
        }
      }
    }
  }
}

// Element d of row `row` of an item, from sums relative to 2^base, to o; and once a row to lse.
__device__ __forceinline__ void finish(const AttentionArgs& a, const Item& t, const Sequence& s,
                                       int row, int d, float o, float base, float weights,
                                       float sums) {
  const int group = group_of(a), of = t.row0 + row, token = of / group;
  const int h = t.head * group + of % group;
  const KeyRange keys = visible_keys(make_mask(a.causal, a.window_left, a.window_right),
                                     token + s.seq_kv - s.seq_q, s.seq_kv);
  const bool empty = keys.begin == keys.end;
  const float sink = present(a.sinks) ? static_cast<const float*>(a.sinks.data)[h] : -INFINITY;
  if (sink != -INFINITY) {
    const float most = fmaxf(base, sink * kLog2);
    const float factor = exp2_of(base - most), own = exp2_of(sink * kLog2 - most);
    o *= factor;
    weights = weights * factor + own;
    sums = sums * factor + own;
    base = most;
  }
  store_f32(a.o.data, a.o.dtype, s.o + token * token_stride(a.o) + h * head_stride(a.o) + d,
            empty ? 0.0f : o / weights);
  if (d != 0 || !present(a.lse)) return;
  const int64_t to =
      s.lse + h * a.lse.strides[a.lse.rank - 2] + token * a.lse.strides[a.lse.rank - 1];
  const float shift = base == -INFINITY ? 0.0f : base;
  static_cast<float*>(a.lse.data)[to] = empty ? sink : (shift + log2f(sums)) * kLn2;
}

// All workers: what their warps have of a segment's rows, added up, goes to o and lse or, where
// other blocks have tiles of the item too, to scratch.
template <class F>
__device__ __forceinline__ void merge(const Call& call, const Shared<F>& shared, const Segment& g,
                                      const Sequence& s, Rows& rows, float (&o)[F::kColumns][4]) {
  const Item& t = g.item;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool whole = g.count == t.tiles;
  float* part = call.parts + (2 * static_cast<int64_t>(blockIdx.x) + (g.first == 0 ? 1 : 0)) *
                                 kPartFloats<F::kDim>;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float weights = quad_sum(rows.weights[r]), sums = quad_sum(rows.sums[r]);
    if constexpr (F::kZeros) rows.zeros[r] = quad_sum(rows.zeros[r]) * kDrop;
    if (lane % 4 == 0) {
      const int at = warp * kRows + lane / 4 + 8 * r;
      shared.base[at] = rows.max[r] == -INFINITY ? -INFINITY : rows.base[r];
      shared.weights[at] = weights;
      shared.sums[at] = sums;
    }
  }
  for (int row0 = 0; row0 < t.rows; row0 += kPassRows) {
    const int place = lane / 4 - row0 % 8;
    if (place >= 0 && place < kPassRows) {
      float* to = shared.pass + (warp * kPassRows + place) * F::kPassStride;
      const auto write = [&](auto half) {
        constexpr int r = decltype(half)::value;
        if constexpr (!F::kCodes) {
#pragma unroll
          for (int n = 0; n < F::kColumns; ++n) {
            *reinterpret_cast<float2*>(to + 8 * n + 2 * (lane % 4)) = {o[n][2 * r],
                                                                       o[n][2 * r + 1]};
          }
        } else {
#pragma unroll
          for (int n = 0; n < F::kColumns; n += 2) {
            const float unit = value_unit<F>(n / 2), zero = F::kZeros ? rows.zeros[r] : 0.0f;
            *reinterpret_cast<float4*>(to + 8 * n + 4 * (lane % 4)) = {
                o[n][2 * r] * unit - zero, o[n + 1][2 * r] * unit - zero,
                o[n][2 * r + 1] * unit - zero, o[n + 1][2 * r + 1] * unit - zero};
          }
        }
      };
      if (row0 < 8) {
        write(std::integral_constant<int, 0>());
      } else {
        write(std::integral_constant<int, 1>());
      }
    }
    workers_sync();
    for (int i = threadIdx.x; i < kPassRows * F::kDim; i += kWorkers) {
      const int in = i / F::kDim, row = row0 + in, d = i % F::kDim;
      if (row >= t.rows) break;
      float most = -INFINITY;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) most = fmaxf(most, shared.base[w * kRows + row]);
      const float shift = most == -INFINITY ? 0.0f : most;
      float sum = 0.0f, weights = 0.0f, sums = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float factor = exp2_of(shared.base[w * kRows + row] - shift);
        sum += factor * shared.pass[(w * kPassRows + in) * F::kPassStride + d];
        weights += factor * shared.weights[w * kRows + row];
        sums += factor * shared.sums[w * kRows + row];
      }
      if (whole) {
        finish(call.args, t, s, row, d, sum, most, weights, sums);
      } else {
        part[row * F::kDim + d] = sum;
        if (d == 0) {
          float* of = part + kRows * F::kDim + row;
          of[0] = most;
          of[kRows] = weights;
          of[2 * kRows] = sums;
        }
      }
    }
    workers_sync();
  }
}

template <class F, bool kTransform>
__device__ __forceinline__ void work(const Call& call, const Shared<F>& shared) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int size = 1 << call.page_shift, box = size < F::kTile ? size : F::kTile;
  Ring<F::kStages> ring;
  Ring<2> next;
  int turn = warp / 4;
  while (true) {
    barrier_wait(&shared.segment_full[next.slot], next.parity);
    const Segment g = shared.segments[next.slot];
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.segment_empty[next.slot]);
    advance(next);
    if (g.count == 0) return;
    const Sequence s = sequence_at(a, g.item.sequence);
    Rows rows;
    uint32_t q[F::kSteps][4];
    load_q<F, kTransform>(call, g.item, s, rows, q);
    float o[F::kColumns][4] = {};
    for (int i = g.first; i < g.first + g.count; ++i, turn ^= 1) {
      if (turn == 0) {
        const Tile tile = tile_at<F>(g.item, i);
        const int key = tile.key0 + warp % 4 * F::kKeys;
        barrier_wait(&shared.full[ring.slot], ring.parity);
        if (key < tile.hi && key + F::kKeys > tile.lo) {
          take_keys<F, kTransform>(call, g.item, tile, key, box,
                                   shared.stages + ring.slot * F::kStageBytes, q, rows, o);
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&shared.empty[ring.slot]);
      }
      advance(ring);
    }
    merge<F>(call, shared, g, s, rows, o);
  }
}

template <class F, bool kTransform>
__global__ void __launch_bounds__(kThreads, 1) attend_pages(const __grid_constant__ Call call) {
  extern __shared__ uint8_t raw[];
  const Shared<F> s = shared_of<F>(raw);
  if (threadIdx.x == 0) {
    for (int i = 0; i < F::kStages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 4);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(&s.segment_full[i], 1);
      barrier_init(&s.segment_empty[i], kWarps);
    }
    barrier_init_fence();
    tma_prefetch(&call.map);
  }
  wait_for_others();
  find_start<F>(call.args, s.start);
  // 64512 registers of 65536.
  if (threadIdx.x >= kWorkers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (threadIdx.x < kWorkers + 32) produce<F>(call, s);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    if (call.check != nullptr) {
      check_lens(call.args, call.check, blockIdx.x * kWorkers + threadIdx.x, gridDim.x * kWorkers);
    }
    work<F, kTransform>(call, s);
  }
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Adds up the parts of the item that ends in block blockIdx.x, if it began in another one.
template <int kDim>
__global__ void __launch_bounds__(kWorkers) join_parts(const __grid_constant__ Call call) {
  __shared__ float factors[kMostBlocks][kRows], base[kRows], weights[kRows], sums[kRows];
  __shared__ const float* parts[kMostBlocks];  // null: a block without tiles
  wait_for_others();
  const Join join = call.joins[blockIdx.x];
  const Item& t = join.item;
  if (t.rows == 0) return;
  const int count = static_cast<int>(blockIdx.x) - join.from + 1;
  for (int i = threadIdx.x; i < count; i += kWorkers) {
    const int block = join.from + i;
    const bool there = first_of(join.total, block) < first_of(join.total, block + 1);
    const int64_t at = 2 * static_cast<int64_t>(block) + (i == 0 ? 1 : 0);
    parts[i] = there ? call.parts + at * kPartFloats<kDim> : nullptr;
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < t.rows; row += kWarps) {
    const auto number = [&](int i, int which) { return parts[i][kRows * (kDim + which) + row]; };
    float most = -INFINITY;
    for (int i = lane; i < count; i += 32) {
      const float x = parts[i] == nullptr ? -INFINITY : number(i, 0);
      factors[i][row] = x;
      most = fmaxf(most, x);
    }
    for (int step = 16; step > 0; step /= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    }
    const float shift = most == -INFINITY ? 0.0f : most;
    float weight = 0.0f, sum = 0.0f;
    for (int i = lane; i < count; i += 32) {
      const float factor = exp2_of(factors[i][row] - shift);
      factors[i][row] = factor;
      if (parts[i] == nullptr) continue;
      weight += factor * number(i, 1);
      sum += factor * number(i, 2);
    }
    weight = warp_sum(weight);
    sum = warp_sum(sum);
    if (lane == 0) {
      base[row] = most;
      weights[row] = weight;
      sums[row] = sum;
    }
  }
  __syncthreads();
  const Sequence s = sequence_at(call.args, t.sequence);
  for (int i = threadIdx.x; i < t.rows * kDim; i += kWorkers) {
    const int row = i / kDim;
    float o = 0.0f;
#pragma unroll 8
    for (int k = 0; k < count; ++k) {
      if (parts[k] != nullptr) o += factors[k][row] * parts[k][i];
    }
    finish(call.args, t, s, row, i % kDim, o, base[row], weights[row], sums[row]);
  }
}

// ---- host --------------------------------------------------------------------------------------

static inline bool takes_pages(const AttentionArgs& a) {
  constexpr int64_t kMost = int64_t{1} << 30;  // positions and rows are int
  if (!is_paged(a) || present(a.bias) || a.score != Score::softmax) return false;
  if (head_dim_of(a) != head_dim_v_of(a)) return false;
  if (head_dim_of(a) != 64 && head_dim_of(a) != 128) return false;
  if (present(a.prefix_rows) && a.kv.prefix_format != a.kv.format) return false;
  if (a.q.shape[a.q.rank - 3] * head_count(a) > kMost || seq_kv_bound(a) > kMost) return false;
  if (sequence_count(a) > kMost) return false;
  return kv_bytes(a.kv) / kSwizzleRow < 2 * kMost && a.kv.pages > 0 &&
         (reinterpret_cast<uintptr_t>(a.kv.data) & 127) == 0;
}

// The same for all head dims.
static inline size_t pages_workspace(const AttentionArgs& args, int) {
  if (!takes_pages(args)) return 0;
  return kMostBlocks * (2 * sizeof(float) * kPartFloats<128> + sizeof(Join));
}

template <class F, bool kTransform>
static Status run_form(const AttentionArgs& args, const Ctx& ctx) {
  static std::atomic<uint64_t> asked{0};
  const int blocks = ctx.multiprocessors < kMostBlocks ? ctx.multiprocessors : kMostBlocks;
  Call call;
  call.args = args;
  call.scale =
      args.softmax_scale != 0 ? args.softmax_scale : 1.0f / std::sqrt(static_cast<float>(F::kDim));
  call.page_shift = log2_of(args.kv.page_size);
  call.check = ctx.check;
  call.joins = static_cast<Join*>(ctx.scratch);
  call.parts = reinterpret_cast<float*>(call.joins + kMostBlocks);
  const int box = static_cast<int>(args.kv.page_size < F::kTile ? args.kv.page_size : F::kTile);
  MapKey key = {};
  key.data = args.kv.data;
  key.rows = kv_bytes(args.kv) / kSwizzleRow;
  key.columns = key.row_bytes = kSwizzleRow;
  key.element = 1;
  key.box_rows = box * F::kRowBytes / kSwizzleRow;
  cudaError_t code = tile_map(key, &call.map);
  if (code == cudaSuccess) code = allow_shared(attend_pages<F, kTransform>, F::kShared, asked);
  LB_TRY(launched(code));
  LB_TRY(launch(ctx, attend_pages<F, kTransform>, blocks, kThreads, F::kShared, call));
  return launch(ctx, join_parts<F::kDim>, blocks, kWorkers, 0, call);
}

template <KvFormat kFormat, bool kHalf>
static Status run_format(const AttentionArgs& args, const Ctx& ctx) {
  // A maximum in units of q . k needs a positive scale.
  const bool plain = args.softcap == 0 && !present(args.alibi_slopes) &&
                     (args.softmax_scale == 0 || args.softmax_scale > 0x1p-60f);
  const auto run = [&](auto form) {
    using F = decltype(form);
    return plain ? run_form<F, false>(args, ctx) : run_form<F, true>(args, ctx);
  };
  if (head_dim_of(args) == 64) return run(Form<kFormat, kHalf, 64>());
  return run(Form<kFormat, kHalf, 128>());
}

}  // namespace
}  // namespace lowbit
