// The work of attention_decode_*_sm90a and how it is dealt out.
//
// A row is a query token and one of the query heads that share a kv head: row r of a sequence is
// token r / group and head r % group. An item is 16 consecutive rows of a sequence and one kv head,
// its keys cut into tiles of kTile. The tiles of all items, end to end, are dealt out evenly: block
// c of G takes tiles total * c / G to total * (c + 1) / G, whatever items they belong to. Where
// that is follows from the lengths in device memory, so a graph may be replayed with others.
//
//   tiles    |.......item 0.......|...item 1...|..item 2..|.............item 3.............|
//   blocks   |    0    |    1    |    2    |    3    |    4    |    5    |    6    |   7   |
#pragma once

#include "csrc/attention/row_sm75.cuh"
#include "csrc/cuda/swizzle.cuh"
#include "csrc/cuda/tensor_map.cuh"
#include "csrc/cuda/tma.cuh"

namespace lowbit {
namespace {

inline constexpr int kWarps = 8, kWorkers = 32 * kWarps;  // that multiply
inline constexpr int kThreads = kWorkers + 128;  // a warpgroup gives its registers to the others
inline constexpr int kRows = 16;                 // of an item
inline constexpr int kMostBlocks = 144;          // one a multiprocessor
inline constexpr int kPassRows = 4;              // that warps add up at a time

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

}  // namespace
}  // namespace lowbit
