// The work of attention_decode_*_sm90a and how it is dealt out.
//
// A row is a query token and one of the query heads that share a kv head: row r of a sequence is
// token r / group and head r % group. An item is kRows consecutive rows of a sequence and one kv
// head, its keys cut into units of 64. The units of all items, end to end, are dealt out evenly:
// each of G blocks takes total / G of them, the first total % G one more, whatever items they
// belong to. Where that is follows from the lengths in device memory, so a graph may be replayed
// with others.
//
//   units    |.......item 0.......|...item 1...|..item 2..|.............item 3.............|
//   blocks   |    0    |    1    |    2    |    3    |    4    |    5    |    6    |   7   |
//
// A segment is what a block has of an item. A tile is up to kTile keys of a segment: one stage of
// shared memory.
#pragma once

#include "csrc/attention/row_sm75.cuh"
#include "csrc/cuda/swizzle.cuh"
#include "csrc/cuda/tensor_map.cuh"
#include "csrc/cuda/tma.cuh"

namespace lowbit {
namespace {

inline constexpr int kWarps = 8, kWorkers = 32 * kWarps;  // that multiply
inline constexpr int kThreads = kWorkers + 128;           // and a warpgroup that serves them
inline constexpr int kMostBlocks = 144;                   // one a multiprocessor
inline constexpr int kUnit = 64;                          // keys
inline constexpr int kPassRows = 4;                       // that warps add up at a time
// Rows and positions are below: sums of two of them fit int.
inline constexpr int64_t kMostRows = int64_t{1} << 30;

constexpr int log2_of(int64_t x) {
  int n = 0;
  while (int64_t{1} << n < x) ++n;
  return n;
}
constexpr int clamped(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// Head dims of kDim; q in f16 (kHalf) or bf16; items of 8 or 16 rows.
template <KvFormat kFormatOf, bool kHalfOf, int kDimOf, int kRowsOf>
struct Form {
  static constexpr KvFormat kFormat = kFormatOf;
  static constexpr bool kHalf = kHalfOf;
  static constexpr int kDim = kDimOf, kBits = kv_format_row(kFormat).bits;
  static constexpr int kRows = kRowsOf, kGroups = kRows / 8;
  static constexpr bool kCodes = kBits < 16, kZeros = kFormat == KvFormat::int4;
  // Codes without a sign, whose middle is taken off at the end.
  static constexpr bool kShifted = kFormat == KvFormat::int8;
  static constexpr int kRowBytes = kDim * kBits / 8;
  // Of a warp: 4 KiB of K, but no more scores than registers.
  static constexpr int kKeys = clamped(4096 / kRowBytes, 16,
                                       !kCodes || kDim == 64 ? 32
                                       : kRows == 16         ? 16
                                                             : 64);
  static constexpr int kTile = 4 * kKeys;
  static constexpr int kScales = kCodes ? kZeros ? 4 : 2 : 0;                   // f16 a token
  static constexpr int kStagesMost = 12, kRing = kRows == 8 ? 204800 : 196608;  // bytes
  static constexpr int kSteps = kDim / 16;
  // Rows of sums and of q stand in different banks.
  static constexpr int kPassStride = kDim + 4, kQueryStride = 2 * kDim + 16;  // floats, bytes
  static constexpr int kPassBytes = 4 * kWarps * kPassRows * kPassStride;
  static constexpr int kQueryBytes = kRows * kQueryStride;
  static constexpr size_t kShared =
      kSwizzleAlign + kRing + kPassBytes + 16 * kWarps * kPassRows + 2 * kQueryBytes + 3072;
  static_assert(kShared <= 232448, "shared memory of a multiprocessor");
};

// What a call says of a sequence.
struct Lens {
  int token, seq_q;  // its first query of all, where they are packed
  int seq_kv;
  int prefix, prefix_row;  // tokens there
};
// Rows of a sequence and one kv head.
struct Item {
  Lens of;
  int sequence, head, row0, rows;
  int begin, end;  // keys that some row sees
  int low, high;   // keys that all rows see
  int units;
};
// Units of an item that a block has; none: there is no more.
struct Segment {
  Item item;
  int first, count;
};
// One of an item.
struct Row {
  int begin, end;  // keys that it sees
  int token, head;
  float position, slope;  // slope in units of log2
  float scale, unit;      // of a product; log2(e) of one unit of a score
  float shift;            // int8: where a product begins; int4: sum of q
};

struct Call {
  // Of all lines of the cache: boxes of K or of V, and whole pages.
  CUtensorMap parts_map, pages_map;
  AttentionArgs args;
  float scale;
  int group;        // query heads of a kv head
  int left, right;  // the mask's
  bool transform;   // scores are more than scaled products
  // Lengths, as the args have them, and their limits.
  int sequences, heads;  // of kv
  const int32_t *kv_lens, *cu_seqlens, *prefix_rows, *prefix_lens;
  int tokens, seq_q, most_keys, most_rows, most_prefix;
  unsigned inverse;  // 2^32 / blocks
  // The cache's blocks in lines of 128 bytes.
  int pages, page_shift;  // log2 of its tokens
  int page_lines, value_lines, prefix_start, prefix_lines, prefix_value_lines;
  // A stage has boxes of some tokens: K, V, scales.
  bool whole;     // a page is one box and comes in one copy
  int box_shift;  // log2 of its tokens
  int box_bytes, stage_bytes, stages;
  uint32_t swizzled_scales;  // 0x70: as K and V are; 0: not
  const int32_t* table;      // of pages, and how many numbers there are
  int64_t table_stride;
  int table_size;
  unsigned long long* check;
  float* parts;     // in scratch, [blocks][2][kRows][kPartStride<kDim>]
  uint64_t* there;  // in scratch, [blocks]: `call` says that the block's part is
  uint64_t call;
};
// A row of a part: the weighted sums of values, then the maximum in units of log2 and two sums of
// weights, of those that met values and of P; floats.
template <int kDim>
inline constexpr int kPartStride = kDim + 4;

// ---- keys and units ----------------------------------------------------------------------------

// visible_keys() of mask.h in 32 bits.
struct Keys {
  int begin, end;
};
__device__ __forceinline__ Keys seen_keys(const Call& call, int position, int seq_kv) {
  Keys k = {0, seq_kv};
  if (call.left >= 0) k.begin = position - call.left < 0 ? 0 : position - call.left;
  if (call.right >= 0 && position + call.right + 1 < seq_kv) k.end = position + call.right + 1;
  if (k.begin > seq_kv) k.begin = seq_kv;
  if (k.end < k.begin) k.end = k.begin;
  return k;
}
__device__ __forceinline__ int units_between(int lo, int hi) {
  return lo < hi ? (hi - 1) / kUnit - lo / kUnit + 1 : 0;
}

// False where they make no sense or there is no such sequence.
__device__ __forceinline__ bool lens_of(const Call& call, int b, Lens* s) {
  if (b >= call.sequences) return false;
  s->seq_kv = call.kv_lens[b];
  s->token = 0;
  s->seq_q = call.seq_q;
  if (call.cu_seqlens != nullptr) {
    s->token = call.cu_seqlens[b];
    s->seq_q = call.cu_seqlens[b + 1] - s->token;
    if (s->token < 0 || s->seq_q < 0 || s->token + s->seq_q > call.tokens) return false;
  }
  s->prefix = s->prefix_row = 0;
  if (call.prefix_rows != nullptr) {
    const int row = call.prefix_rows[b];
    if (row >= 0) {
      s->prefix_row = row;
      s->prefix = call.prefix_lens == nullptr ? call.most_prefix : call.prefix_lens[b];
    }
    if (row < -1 || row >= call.most_rows) return false;
    if (s->prefix < 0 || s->prefix > call.most_prefix) return false;
  }
  return s->seq_kv >= 0 && s->seq_kv <= call.most_keys;
}

// Without its sequence and head.
template <class F>
__device__ __forceinline__ Item item_at(const Call& call, const Lens& s, int block) {
  Item t = {};
  t.of = s;
  t.row0 = block * F::kRows;
  const int left = s.seq_q * call.group - t.row0;
  t.rows = left < F::kRows ? left : F::kRows;
  t.end = t.high = s.seq_kv;
  if (call.left >= 0 || call.right >= 0) {
    const int position = s.seq_kv - s.seq_q;
    const Keys first = seen_keys(call, position + t.row0 / call.group, s.seq_kv);
    const Keys last = seen_keys(call, position + (t.row0 + t.rows - 1) / call.group, s.seq_kv);
    t.begin = first.begin;
    t.end = last.end < first.begin ? first.begin : last.end;
    t.low = last.begin;
    t.high = first.end;
  }
  if (s.prefix == 0) {
    t.units = units_between(t.begin, t.end);
  } else {
    t.units = units_between(t.begin, s.prefix < t.end ? s.prefix : t.end) +
              units_between(t.begin > s.prefix ? t.begin : s.prefix, t.end);
  }
  if (t.units == 0) t.units = 1;  // rows without keys have results, too
  return t;
}
template <class F>
__device__ __forceinline__ int block_count(const Call& call, const Lens& s) {
  return (s.seq_q * call.group + F::kRows - 1) / F::kRows;
}
// Of a sequence and all kv heads.
template <class F>
__device__ __forceinline__ int units_of(const Call& call, int b) {
  Lens s;
  if (!lens_of(call, b, &s)) return 0;
  int units = 0;
  for (int i = 0, n = block_count<F>(call, s); i < n; ++i) units += item_at<F>(call, s, i).units;
  return units * call.heads;
}

// Keys [lo, hi) of a tile whose first would be key0, in the pages or in a prefix; its units.
struct Tile {
  int key0, lo, hi;
  int units;
  bool prefix;
};
// The tile that begins with unit `index` of an item; `most` units are wanted.
template <class F>
__device__ __forceinline__ Tile tile_at(const Item& t, int index, int most) {
  const int start = t.of.prefix, cut = start < t.end ? start : t.end;
  const int before = units_between(t.begin, cut);
  const bool prefix = index < before;
  const int lo = prefix || t.begin > start ? t.begin : start, hi = prefix ? cut : t.end;
  Tile tile;
  tile.key0 = (lo / kUnit + index - (prefix ? 0 : before)) * kUnit;
  tile.lo = lo > tile.key0 ? lo : tile.key0;
  tile.units = clamped(prefix ? before - index : most, 1, F::kTile / kUnit);
  if (tile.units > most) tile.units = most;
  const int end = tile.key0 + tile.units * kUnit;
  tile.hi = hi < end ? hi : end;
  tile.prefix = prefix;
  return tile;
}

// ---- the deal ----------------------------------------------------------------------------------

struct Deal {
  int each;  // units of a block
  int rest;  // blocks that take one more
};
__device__ __forceinline__ Deal deal_of(const Call& call, int total) {
  const int blocks = static_cast<int>(gridDim.x);
  // At most one too many: inverse is less than 1 too large.
  Deal d = {static_cast<int>(__umulhi(static_cast<unsigned>(total), call.inverse)), 0};
  if (d.each * blocks > total) --d.each;
  d.rest = total - d.each * blocks;
  return d;
}
__device__ __forceinline__ int first_of(const Deal& d, int block) {
  return d.each * block + (block < d.rest ? block : d.rest);
}
// The block that has unit `unit`.
__device__ __forceinline__ int block_of(const Deal& d, int unit) {
  const int more = (d.each + 1) * d.rest;
  return unit < more ? unit / (d.each + 1) : d.rest + (unit - more) / d.each;
}

// f(item, first, count, deal) for each segment of the block, by a warp.
template <class F, class Each>
__device__ __forceinline__ void each_segment(const Call& call, const Each& f) {
  const int lane = threadIdx.x % 32;
  int total = 0, units = 0;
  for (int b0 = 0; b0 < call.sequences; b0 += 32) {
    units = units_of<F>(call, b0 + lane);
    total += static_cast<int>(__reduce_add_sync(~0u, static_cast<unsigned>(units)));
  }
  const Deal deal = deal_of(call, total);
  int left = deal.each + (static_cast<int>(blockIdx.x) < deal.rest ? 1 : 0);
  if (left == 0) return;

  int at = first_of(deal, blockIdx.x);  // and then within what is left of the call
  int b = 0;
  while (call.sequences > 1) {
    if (call.sequences > 32) units = units_of<F>(call, b + lane);
    int upto = units;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, upto, step);
      if (lane >= step) upto += other;
    }
    const unsigned behind = __ballot_sync(~0u, at < upto);
    const int who = behind != 0 ? __ffs(static_cast<int>(behind)) - 1 : 31;
    at -= __shfl_sync(~0u, behind != 0 ? upto - units : upto, who);
    if (behind != 0) {
      b += who;
      break;
    }
    b += 32;
  }
  for (; left > 0 && b < call.sequences; ++b) {
    Lens s;
    if (!lens_of(call, b, &s)) continue;
    for (int block = 0, n = block_count<F>(call, s); block < n && left > 0; ++block) {
      Item item = item_at<F>(call, s, block);
      if (at >= item.units * call.heads) {
        at -= item.units * call.heads;
        continue;
      }
      item.sequence = b;
      item.head = at / item.units;
      int first = at - item.units * item.head;
      at = 0;
      for (; item.head < call.heads && left > 0; ++item.head, first = 0) {
        const int rest = item.units - first, count = left < rest ? left : rest;
        left -= count;
        f(item, first, count, deal);
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
