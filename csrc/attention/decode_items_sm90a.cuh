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
  static constexpr int kKeys =
      clamped(4096 / kRowBytes, 16, kCodes && kRows == 16 && kDim == 128 ? 16 : 32);
  static constexpr int kTile = 4 * kKeys;
  static constexpr int kScales = kCodes ? kZeros ? 4 : 2 : 0;  // f16 a token
  static constexpr int kPart = kTile * kRowBytes;              // bytes of K or of V
  static constexpr int kStageBytes = 2 * kPart + (kScales * 2 * kTile + 1023) / 1024 * 1024;
  static constexpr int kStages = clamped(180224 / kStageBytes, 2, 12);
  static constexpr int kSteps = kDim / 16;
  // Rows of sums and of q stand in different banks.
  static constexpr int kPassStride = kDim + 4, kQueryStride = 2 * kDim + 16;  // floats, bytes
  static constexpr int kPassBytes = 4 * kWarps * 8 * kPassStride;
  static constexpr int kQueryBytes = kRows * kQueryStride;
  static constexpr size_t kShared = kSwizzleAlign + kStages * kStageBytes + kPassBytes +
                                    3 * 4 * kWarps * 8 + 2 * kQueryBytes + 3072;
  static_assert(kShared <= 232448, "shared memory of a multiprocessor");
};

// Rows of a sequence and one kv head.
struct Item {
  int sequence, head, row0, rows;
  int seq_q, seq_kv;
  int begin, end;  // keys that some row sees
  int low, high;   // keys that all rows see
  int prefix, prefix_row;
  int units;
};
// Units of an item that a block has; none: there is no more.
struct Segment {
  Item item;
  int first, count;
  int64_t o, lse;  // where the sequence's begin
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
  CUtensorMap map;  // of all lines of the cache
  AttentionArgs args;
  float scale;
  int page_shift;  // log2 of the page's tokens
  int group;       // query heads of a kv head
  int left, right;  // the mask's
  bool transform;  // scores are more than scaled products
  unsigned long long* check;
  float* parts;     // in scratch, [blocks][2][kPartFloats<kRows, kDim>]
  uint64_t* there;  // in scratch, [blocks]: `call` says that the block's part is
  uint64_t call;
};
// The weighted sums of values, then of each row the maximum in units of log2 and two sums of
// weights: of those that met values, and of P.
template <int kRows, int kDim>
inline constexpr int kPartFloats = kRows*(kDim + 3);

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

// False where the lengths make no sense.
__device__ __forceinline__ bool sequence_of(const AttentionArgs& a, int b, Sequence* s) {
  if (has_prefix_fault(a, b)) return false;
  *s = sequence_at(a, b);
  if (s->seq_kv < 0 || s->seq_kv > seq_kv_bound(a)) return false;
  return s->token >= 0 && s->seq_q >= 0 && (is_batched(a) || s->token + s->seq_q <= a.q.shape[0]);
}

// Without its head.
template <class F>
__device__ __forceinline__ Item item_at(const Call& call, const Sequence& s, int block) {
  Item t = {};
  t.sequence = static_cast<int>(s.index);
  t.row0 = block * F::kRows;
  t.seq_q = static_cast<int>(s.seq_q);
  t.seq_kv = static_cast<int>(s.seq_kv);
  const int left = t.seq_q * call.group - t.row0;
  t.rows = left < F::kRows ? left : F::kRows;
  if (call.left < 0 && call.right < 0) {
    t.end = t.high = t.seq_kv;
  } else {
    const int position = t.seq_kv - t.seq_q;
    const Keys first = seen_keys(call, position + t.row0 / call.group, t.seq_kv);
    const Keys last = seen_keys(call, position + (t.row0 + t.rows - 1) / call.group, t.seq_kv);
    t.begin = first.begin;
    t.end = last.end < first.begin ? first.begin : last.end;
    t.low = last.begin;
    t.high = first.end;
  }
  t.prefix = static_cast<int>(s.prefix_len);
  t.prefix_row = static_cast<int>(s.prefix);
  const int cut = t.prefix < t.end ? t.prefix : t.end;
  t.units = units_between(t.begin, cut) +
            units_between(t.begin > t.prefix ? t.begin : t.prefix, t.end);
  if (t.units == 0) t.units = 1;  // rows without keys have results, too
  return t;
}
template <class F>
__device__ __forceinline__ int block_count(const Call& call, const Sequence& s) {
  return (static_cast<int>(s.seq_q) * call.group + F::kRows - 1) / F::kRows;
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
  const int cut = t.prefix < t.end ? t.prefix : t.end;
  const int before = units_between(t.begin, cut);
  const bool prefix = index < before;
  const int lo = prefix || t.begin > t.prefix ? t.begin : t.prefix, hi = prefix ? cut : t.end;
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

__device__ __forceinline__ int64_t quotient(int64_t x, int64_t by) {
  if ((x | by) >> 32 == 0) return static_cast<uint32_t>(x) / static_cast<uint32_t>(by);
  return x / by;
}
struct Deal {
  int64_t each;  // units of a block
  int rest;      // blocks that take one more
};
__device__ __forceinline__ Deal deal_of(int64_t total) {
  const int64_t each = quotient(total, gridDim.x);
  return {each, static_cast<int>(total - each * gridDim.x)};
}
__device__ __forceinline__ int64_t first_of(const Deal& d, int block) {
  return d.each * block + (block < d.rest ? block : d.rest);
}
// The block that has unit `unit`.
__device__ __forceinline__ int block_of(const Deal& d, int64_t unit) {
  const int64_t more = (d.each + 1) * d.rest;
  if (unit < more) return static_cast<int>(quotient(unit, d.each + 1));
  return d.rest + static_cast<int>(quotient(unit - more, d.each));
}

// Where a block's units begin.
struct Start {
  int64_t total;
  int sequence, block, head, unit;
};

// By all threads: counts the units of all sequences.
template <class F>
__device__ __forceinline__ void find_start(const Call& call, Start* start) {
  __shared__ int64_t sums[kThreads / 32];
  const AttentionArgs& a = call.args;
  const int count = static_cast<int>(sequence_count(a)), heads = static_cast<int>(a.kv.kv_heads);
  const int each = (count + kThreads - 1) / kThreads;
  const int b0 = threadIdx.x * each, b1 = b0 + each < count ? b0 + each : count;
  int64_t own = 0;
  int last = 0, blocks = 0;  // units of the last item, and blocks of rows of all
  for (int b = b0; b < b1; ++b) {
    Sequence s;
    if (!sequence_of(a, b, &s)) continue;
    for (int i = 0, n = block_count<F>(call, s); i < n; ++i, ++blocks) {
      last = item_at<F>(call, s, i).units;
      own += int64_t{heads} * last;
    }
  }
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
  int64_t at = first_of(deal_of(total), blockIdx.x) - (upto - own);
  if (threadIdx.x == 0) start->total = total;
  const auto found = [&](int b, int block, int units) {
    start->sequence = b;
    start->block = block;
    start->head = static_cast<int>(quotient(at, units));
    start->unit = static_cast<int>(at - int64_t{start->head} * units);
  };
  if (at >= 0 && at < own) {
    if (each == 1 && blocks == 1) {
      found(b0, 0, last);
    } else {
      bool looks = true;
      for (int b = b0; looks && b < b1; ++b) {
        Sequence s;
        if (!sequence_of(a, b, &s)) continue;
        for (int i = 0, n = block_count<F>(call, s); looks && i < n; ++i) {
          const int units = item_at<F>(call, s, i).units;
          if (at < int64_t{heads} * units) {
            found(b, i, units);
            looks = false;
          }
          at -= int64_t{heads} * units;
        }
      }
    }
  }
  __syncthreads();
}

// f(sequence, item, first, count) for each segment of the block.
template <class F, class Each>
__device__ __forceinline__ void each_segment(const Call& call, const Start& start, const Each& f) {
  const AttentionArgs& a = call.args;
  const int heads = static_cast<int>(a.kv.kv_heads);
  const Deal deal = deal_of(start.total);
  int64_t left = deal.each + (static_cast<int>(blockIdx.x) < deal.rest ? 1 : 0);
  int b = start.sequence, block = start.block, head = start.head, unit = start.unit;
  for (; left > 0; ++b, block = 0) {
    Sequence sequence;
    if (!sequence_of(a, b, &sequence)) continue;
    const int blocks = block_count<F>(call, sequence);
    for (; block < blocks && left > 0; ++block, head = 0) {
      Item item = item_at<F>(call, sequence, block);
      for (; head < heads && left > 0; ++head, unit = 0) {
        item.head = head;
        const int rest = item.units - unit;
        const int count = left < rest ? static_cast<int>(left) : rest;
        left -= count;
        f(sequence, item, unit, count);
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
