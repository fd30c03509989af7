// What serves a block of prefill_sm90a.cuh and of prefill_fp8_sm90a.cuh: a warp that finds items,
// one that keeps queries and rings of tiles of keys and of values filled through the copy engine.
//
// An item is handed from warp to warp in shared memory, behind an mbarrier each way.
#pragma once

#include "csrc/attention/prefill_rows_sm90a.cuh"

namespace lowbit {
namespace {

template <class F>
struct Shared {
  uint8_t *queries, *keys, *values;
  uint64_t *q_full, *q_empty, *k_full, *k_empty, *v_full, *v_empty, *found_full, *found_empty;
  Item* items;  // of each set of queries
  Item* found;  // the next one
  Item* more;   // one that has to be computed once more
};
template <class F>
__device__ __forceinline__ Shared<F> shared_of(uint8_t* raw) {
  Shared<F> s;
  s.queries = raw;
  s.keys = s.queries + F::kQueries * F::kQueryBytes;
  s.values = s.keys + F::kStages * F::kKeyBytes;
  s.q_full = reinterpret_cast<uint64_t*>(s.values + F::kStages * F::kValueBytes);
  s.q_empty = s.q_full + F::kQueries;
  s.k_full = s.q_empty + F::kQueries;
  s.k_empty = s.k_full + F::kStages;
  s.v_full = s.k_empty + F::kStages;
  s.v_empty = s.v_full + F::kStages;
  s.found_full = s.v_empty + F::kStages;
  s.found_empty = s.found_full + 1;
  s.items = reinterpret_cast<Item*>(s.found_empty + 1);
  s.found = s.items + F::kQueries;
  s.more = s.found + 1;
  return s;
}

// As many tiles of an item are still to be asked for when the next item is.
inline constexpr int kAskBefore = 3;

// The tile of keys from `key` on, by a warp: of tensors by its first lane; of pages, whose numbers
// lanes hold, each box by another one.
template <class F, int kBoxes>
__device__ __forceinline__ void bring(const Call& call, const Item& t, const CUtensorMap* map,
                                      uint8_t* to, int key, int page, uint64_t* full) {
  const int lane = threadIdx.x % 32, head = t.head / call.group;
  if (call.table == nullptr) {
    if (lane != 0) return;
    barrier_expect(full, kBoxes * F::kTileBox);
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      box_load(to + box * F::kTileBox, map, box * 64, t.kv + key, head, t.batch, full);
    }
    return;
  }
  const int size = min(F::kPageBox, 1 << call.page_shift), count = F::kTile / size;
  if (lane == 0) barrier_expect(full, kBoxes * F::kTileBox);
  __syncwarp();
  for (int i = lane; i - lane < kBoxes * count; i += 32) {
    const int which = i / kBoxes, box = i - which * kBoxes;
    const int number = __shfl_sync(~0u, page, which & 31);
    if (which >= count) continue;
    box_load(to + box * F::kTileBox + which * size * kSwizzleRow, map, box * 64,
             (key + which * size) & ((1 << call.page_shift) - 1), number * call.kv_heads + head, 0,
             full);
  }
}
// The pages of the boxes of a tile, one a lane. What is no page of the cache is the first one.
template <class F>
__device__ __forceinline__ int pages_of(const Call& call, const Item& t, int key) {
  if (call.table == nullptr) return 0;
  const int size = min(F::kPageBox, 1 << call.page_shift);
  const int at = key + static_cast<int>(threadIdx.x % 32) * size;
  if (at >= min(t.seq_kv, key + F::kTile)) return 0;
  const int page = call.table[int64_t{t.sequence} * call.table_stride + (at >> call.page_shift)];
  return page >= 0 && page < call.pages ? page : 0;
}

// How far a block has come with asking for items, by a warp.
struct Search {
  int64_t index = blockIdx.x;
  unsigned next = 0;
  bool asked = false, found = false;
  Walk walk;
};
__device__ __forceinline__ void open_search(const Call& call) {
  if (call.counter != nullptr && blockIdx.x == 0 && threadIdx.x % 32 == 0) open_counter(call);
}
// Asks for the item after the one that was found.
__device__ __forceinline__ void go_on(const Call& call, Search& at) {
  if (call.counter == nullptr) {
    at.index += gridDim.x;
    return;
  }
  if (threadIdx.x % 32 == 0) {
    if (!at.asked) await_counter(call);
    at.next = atomicAdd(&call.counter->next, 1u);
  }
  at.next = __shfl_sync(~0u, at.next, 0);
  at.asked = true;
  at.index = int64_t{gridDim.x} + at.next;
}
// The next item that can be computed; its seq_q is negative where there is none.
template <class F>
__device__ __forceinline__ void search(const Call& call, Search& at, Item& t) {
  while (find_item<F>(call, at.index, at.walk, t)) {
    at.found = true;
    if (t.count >= 0) return;
    go_on(call, at);
  }
  // Each item that is not a block's first is asked for, and each block asks once in vain.
  if (at.asked && int64_t{at.next} + 1 == at.walk.before && threadIdx.x % 32 == 0) {
    call.counter->call = 0;
  }
  t.seq_q = -1;
}
// Finds items, each while the last tiles of the one before are brought, by a warp: early enough
// that nobody waits for it, and late enough that no block has an item in hand that another one
// could begin with.
template <class F>
__device__ __forceinline__ void find(const Call& call, const Shared<F>& s) {
  Ring<1> ring;
  Search at;
  open_search(call);
  while (true) {
    Item t;
    search<F>(call, at, t);
    if (threadIdx.x % 32 == 0) {
      *s.found = t;
      barrier_arrive(s.found_full);
    }
    if (t.seq_q < 0) return;
    barrier_wait(s.found_empty, ring.parity);
    advance(ring);
    go_on(call, at);
  }
}

template <class F>
__device__ __forceinline__ void bring_queries(const Call& call, const Shared<F>& s, const Item& t,
                                              const Ring<F::kQueries>& q) {
  if (threadIdx.x % 32 != 0) return;
  uint64_t* const full = &s.q_full[q.slot];
  s.items[q.slot] = t;
  barrier_expect(full, F::kQueryBytes);
#pragma unroll 1
  for (int g = 0; g < F::kGroups; ++g) {
    uint8_t* const to = s.queries + q.slot * F::kQueryBytes + g * F::kGroupBytes;
#pragma unroll
    for (int box = 0; box < F::kBoxes; ++box) {
      box_load(to + box * F::kGroupBox, &call.q_map, box * 64, t.q + t.row + 64 * g, t.head,
               t.batch, full);
    }
  }
}
// Whether an item has to be computed once more; it is made ready then.
__device__ __forceinline__ bool once_more(Item& t, Item* to) {
  const int again = *const_cast<volatile const int*>(&t.again);
  if (again == 0) return false;
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
    const int some = (again | again >> 1) & 0x55;
    *to = t;
    to->care = (t.care & ~(some * 3)) | again;
    to->bad_first = 0x7fffffff;
    to->bad_last = -1;
    to->again = t.again = 0;
  }
  __syncwarp();
  return true;
}

// Alone: without a warp that finds items, and without items that are computed once more.
template <class F, bool kAlone = true>
__device__ __forceinline__ void serve(const Call& call, const Shared<F>& s) {
  Ring<F::kQueries> q;
  Ring<F::kStages> k, v;
  Ring<1> found;
  Search place;
  bool has_more = false, ended = false;
  if (kAlone) open_search(call);
  while (true) {
    Item t;
    bool ask = false;
    if (!ended && !has_more) {
      if (kAlone) {
        if (place.found) go_on(call, place);
        search<F>(call, place, t);
      } else {
        barrier_wait(s.found_full, found.parity);
        t = *s.found;
        __syncwarp();
        advance(found);
        ask = true;
      }
      t.care = t.again = 0;
      t.bad_first = 0x7fffffff;
      t.bad_last = -1;
      ended = t.seq_q < 0;
    }
    if (ended && !has_more) {  // the groups' last words on all items
      Ring<F::kQueries> at = q;
#pragma unroll 1
      for (int i = 0; i < F::kQueries && !has_more; ++i) {
        barrier_wait(&s.q_empty[at.slot], at.parity ^ 1);
        has_more = !kAlone && once_more(s.items[at.slot], s.more);
        advance(at);
      }
      if (!has_more) break;
    }
    if (has_more) t = *s.more;
    has_more = false;
    int page = pages_of<F>(call, t, (t.first + t.count - 1) * F::kTile), page_v = 0;
#pragma unroll 1
    for (int n = t.count; n >= 0; --n) {
      if (ask && n == min(t.count, kAskBefore) && threadIdx.x % 32 == 0) {
        barrier_arrive(s.found_empty);
      }
      // Where there is room for one item's queries, some keys and values come before them.
      if (n == max(t.count - F::kAhead, 0)) {
        barrier_wait(&s.q_empty[q.slot], q.parity ^ 1);
        has_more = !kAlone && once_more(s.items[q.slot], s.more);
        bring_queries<F>(call, s, t, q);
        advance(q);
      }
      if (n > 0) {
        barrier_wait(&s.k_empty[k.slot], k.parity ^ 1);
        bring<F, F::kBoxes>(call, t, &call.k_map, s.keys + k.slot * F::kKeyBytes,
                            (t.first + n - 1) * F::kTile, page, &s.k_full[k.slot]);
        advance(k);
      }
      if (n < t.count) {
        barrier_wait(&s.v_empty[v.slot], v.parity ^ 1);
        bring<F, F::kBoxesV>(call, t, &call.v_map, s.values + v.slot * F::kValueBytes,
                             (t.first + n) * F::kTile, page_v, &s.v_full[v.slot]);
        advance(v);
      }
      page_v = page;
      if (n > 1) page = pages_of<F>(call, t, (t.first + n - 2) * F::kTile);
    }
  }
  if (threadIdx.x % 32 == 0) {
    s.items[q.slot].seq_q = -1;
    barrier_arrive(&s.q_full[q.slot]);
  }
}

}  // namespace
}  // namespace lowbit
