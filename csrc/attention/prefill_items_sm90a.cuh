// The work of attention_*_sm90a and how blocks come by it.
//
// An item is kRows queries of a sequence and one head. Items are numbered sequence by sequence; of
// a sequence in sections of heads whose keys and values fit in L2 together, of a section the last
// queries first, which see the most keys where masks are causal, and for each all heads, those of
// one kv head side by side. The batched form, whose sequences have equally many queries, is one
// sequence of batch * heads heads.
//
// The first item of a block is its own number, further ones come from a counter in scratch: whoever
// is done first takes the next, an item ahead of its work. Which block computes an item changes
// nothing of it. The counter is set by block 0, and announced by a number that no other call has;
// who asks last clears that number, so that a graph may be replayed.
#pragma once

#include "csrc/attention/row_sm75.cuh"
#include "csrc/cuda/box_map.cuh"
#include "csrc/cuda/swizzle.cuh"

namespace lowbit {
namespace {

// Tokens, heads and items are below: sums of two of them fit int.
inline constexpr int64_t kMostItems = int64_t{1} << 30;
inline constexpr int64_t kSectionBytes = 32 << 20;  // of 50 MiB of L2

struct Counter {
  unsigned long long call;  // whose number stands in `next`; 0: nobody's
  unsigned int next;
};

struct Call {
  CUtensorMap q_map, k_map, v_map, o_map;
  AttentionArgs args;
  double scale;      // of a product
  float unit;        // log2(e) * scale in f32
  int heads, group;  // of q; of q to one of kv
  int left, right;   // the mask's
  bool stores;       // the copy engine can write results
  bool ragged;       // there may be other numbers behind a sequence's last key
  // Lengths, as the args have them, and their limits.
  const int32_t *cu_q, *cu_kv, *kv_lens;  // packed, packed, batched; or null
  int sequences, seq_q, seq_kv;           // one sequence of all heads where nothing is packed
  int tokens_q, tokens_kv;
  int all_heads;  // of such a sequence
  int section;    // heads, of such a sequence
  int key_bytes;  // of a key and its value
  // Of a cache, else null: its page table, whose rows are `table_stride` apart.
  const int32_t* table;
  int table_stride, pages, kv_heads, page_shift;
  Counter* counter;  // null: there are no more items than blocks
  unsigned long long call, *check;
};

struct Item {
  int seq_q, seq_kv;  // seq_q < 0: there are no more items
  int q, kv, batch;   // where the sequence begins
  int sequence;
  int row, head;     // its first query; the head of q
  int first, count;  // tiles of keys that some row sees
  // Keys whose values were cleared, the first and the last: rows that see them are made good.
  int bad_first, bad_last;
  // How carefully each group computes it (Care), two bits each; and, of groups that have to compute
  // it once more, how carefully then.
  int care, again;
};

// How far the items of packed sequences have been counted, by a warp.
struct Walk {
  int sequence = 0;  // the first of 32
  int64_t before = 0;
};

struct Place {
  int sequence, seq_q, seq_kv, q, kv;
  int64_t index;  // among the items of the sequence
};

template <class F>
__device__ __forceinline__ int blocks_of(int seq_q) {
  return (seq_q + F::kRows - 1) / F::kRows;
}

// Finds item `index`, which is not below those looked for before, of packed sequences; false: there
// are `walk.before` items. Sequences whose lengths make no sense have none.
template <class F>
__device__ __forceinline__ bool find_place(const Call& call, int64_t index, Walk& walk, Place& p) {
  const int lane = threadIdx.x % 32;
  for (; walk.sequence < call.sequences; walk.sequence += 32) {
    const int b = walk.sequence + lane;
    int q0 = 0, q1 = 0, kv0 = 0, kv1 = 0;
    if (b < call.sequences) {
      q0 = call.cu_q == nullptr ? 0 : call.cu_q[b];
      q1 = call.cu_q == nullptr ? call.tokens_q : call.cu_q[b + 1];
      kv0 = call.cu_kv == nullptr ? 0 : call.cu_kv[b];
      kv1 = call.cu_kv == nullptr ? call.tokens_kv : call.cu_kv[b + 1];
    }
    const bool good = 0 <= q0 && q0 <= q1 && q1 <= call.tokens_q && 0 <= kv0 && kv0 <= kv1 &&
                      kv1 <= call.tokens_kv;
    const int64_t mine = good ? int64_t{blocks_of<F>(q1 - q0)} * call.heads : 0;
    int64_t sum = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int64_t other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    const unsigned found = __ballot_sync(~0u, walk.before + sum > index);
    if (found != 0) {
      const int at = __ffs(found) - 1;
      const auto of = [&](auto x) { return __shfl_sync(~0u, x, at); };
      p = {walk.sequence + at, of(q1 - q0), of(kv1 - kv0), of(q0), of(kv0), 0};
      p.index = index - walk.before - of(sum - mine);
      return true;
    }
    walk.before += __shfl_sync(~0u, sum, 31);
  }
  return false;
}

// The keys that rows `first` to `last` of a sequence see.
__device__ __forceinline__ int first_key(const Call& call, int position) {
  return call.left < 0 ? 0 : max(0, position - call.left);
}
__device__ __forceinline__ int end_key(const Call& call, int position, int seq_kv) {
  return call.right < 0 ? seq_kv : max(0, min(seq_kv, position + call.right + 1));
}

// Item `index`, by a warp; false: there is none. An item of a sequence whose length makes no sense
// has a negative count.
template <class F>
__device__ __forceinline__ bool find_item(const Call& call, int64_t index, Walk& walk, Item& t) {
  Place p = {0, call.seq_q, call.seq_kv, 0, 0, index};
  int heads = call.all_heads, section = call.section;
  if (call.all_heads == 0) {
    if (!find_place<F>(call, index, walk, p)) return false;
    heads = call.heads;
    const int64_t bytes = int64_t{p.seq_kv} * call.key_bytes;
    const int64_t fit = bytes == 0 ? heads : kSectionBytes / bytes * call.group;
    section = static_cast<int>(fit < call.group ? call.group : fit < heads ? fit : heads);
  } else if (index >= int64_t{blocks_of<F>(call.seq_q)} * heads) {
    walk.before = int64_t{blocks_of<F>(call.seq_q)} * heads;
    return false;
  }
  const int blocks = blocks_of<F>(p.seq_q), i = static_cast<int>(p.index);
  const int s = i / (section * blocks), in_section = i - s * (section * blocks);
  const int wide = min(section, heads - s * section);
  const int block = in_section / wide, head = s * section + in_section - block * wide;
  const int b = call.all_heads == 0 ? 0 : head / call.heads;
  t.batch = b;
  t.sequence = p.sequence + b;
  t.head = head - b * call.heads;
  t.seq_q = p.seq_q;
  t.seq_kv = call.kv_lens == nullptr ? p.seq_kv : call.kv_lens[t.sequence];
  t.q = p.q;
  t.kv = p.kv;
  t.row = (blocks - 1 - block) * F::kRows;
  if (t.seq_kv < 0 || t.seq_kv > p.seq_kv) {
    t.count = -1;
    return true;
  }
  const int shift = t.seq_kv - t.seq_q;
  const int begin = first_key(call, t.row + shift);
  const int end = end_key(call, min(t.row + F::kRows, t.seq_q) - 1 + shift, t.seq_kv);
  t.first = begin / F::kTile;
  t.count = begin < end ? (end + F::kTile - 1) / F::kTile - t.first : 0;
  return true;
}

// Called by block 0 before it asks for anything.
__device__ __forceinline__ void open_counter(const Call& call) {
  call.counter->next = 0;
  asm volatile("fence.acq_rel.gpu;\nst.relaxed.gpu.global.u64 [%0], %1;" ::"l"(&call.counter->call),
               "l"(call.call)
               : "memory");
}
// Waits until the counter is open, by one thread.
__device__ __forceinline__ void await_counter(const Call& call) {
  unsigned long long at;
  do {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];"
                 : "=l"(at)
                 : "l"(&call.counter->call)
                 : "memory");
  } while (at != call.call);
}

}  // namespace
}  // namespace lowbit
