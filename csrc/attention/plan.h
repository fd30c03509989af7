// Plan: how a call is cut into items for the threads. Fixed by the shapes, the lengths and the
// window alone, never by the number of threads, so results are the same bits for any number.
//
// An item is a block of query rows against a range of keys of one kv head. Rows of a block are
// (position, query head) pairs, position major; all query heads that share the kv head are in one
// block, so its keys and values are read once for all of them.
//
//   long sequences   several blocks of positions; each walks all keys that it sees
//   short sequences  one block (a decode step, a draft, a short prompt); the keys that it sees are
//                    cut into splits of `split_keys`, each with a state (m, l, o) of its own in
//                    scratch, and merge() adds the states up in order
#pragma once

#include "csrc/attention/mask.h"
#include "csrc/attention/sequence.h"

namespace lowbit {

struct Blocking {
  int lanes;  // of a vector of f32
  int rows;   // most rows of a block
  int keys;   // keys of a tile; splits are multiples of it
};

struct Plan {
  int64_t heads, kv_heads, group, head_dim, head_dim_v;
  int64_t head_dim_pad, head_dim_v_pad;  // up to two whole vectors
  int64_t block_heads, block_positions;  // of one block
  int64_t head_blocks;                   // blocks that the query heads of one kv head make
  int64_t split_keys;
  int64_t state_floats;  // one row of a split's state: o, then m, l and l for lse
  int64_t states_max;    // rows of state that a call may need
  Mask mask;
  bool paged;
};

static inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_to(int64_t a, int64_t b) { return ceil_divide(a, b) * b; }

// A split is long enough to outweigh the state it leaves (256 keys of head_dim 128 in bf16 are 128
// KiB, its state 2 KiB for four query heads), and a call has no more than about 512 of them, which
// keeps the largest machines busy.
inline constexpr int64_t kSplitKeys = 256;
inline constexpr int64_t kSplitItems = 512;

static inline Plan make_plan(const AttentionArgs& a, const Blocking& blocking) {
  Plan p = {};
  p.heads = head_count(a);
  p.kv_heads = kv_head_count(a);
  p.group = p.heads / p.kv_heads;
  p.head_dim = head_dim_of(a);
  p.head_dim_v = head_dim_v_of(a);
  p.head_dim_pad = round_to(p.head_dim, 2 * blocking.lanes);
  p.head_dim_v_pad = round_to(p.head_dim_v, 2 * blocking.lanes);
  p.block_heads = p.group < blocking.rows ? p.group : blocking.rows;
  if (p.block_heads < 1) p.block_heads = 1;
  p.head_blocks = ceil_divide(p.group, p.block_heads);
  p.block_positions = blocking.rows / p.block_heads;
  p.mask = make_mask(a.causal, a.window_left, a.window_right);
  p.paged = is_paged(a);

  const int64_t keys = keys_bound(a);
  const int64_t blocks = p.kv_heads * (p.head_blocks > 0 ? p.head_blocks : 1);
  const int64_t wanted = ceil_divide(kSplitItems, blocks);
  const int64_t split = ceil_divide(keys, wanted);
  p.split_keys = round_to(split > kSplitKeys ? split : kSplitKeys, blocking.keys);
  p.state_floats = p.head_dim_v_pad + 2 * blocking.lanes;
  // Sequences that are cut have more than split_keys keys, so the splits of all of them are fewer
  // than twice the whole splits that the keys would make end to end.
  const int64_t seq_q = a.q.shape[a.q.rank - 3];
  const bool one_length = is_batched(a) || sequence_count(a) == 1;
  const bool never = keys <= p.split_keys || (one_length && seq_q > p.block_positions);
  const int64_t positions = seq_q < p.block_positions ? seq_q : p.block_positions;
  p.states_max = never ? 0 : 2 * ceil_divide(keys, p.split_keys) * positions * p.heads;
  return p;
}

// One sequence's share of the plan.
struct Share {
  Sequence s;
  int64_t blocks;  // blocks of positions
  KeyRange keys;   // seen by any position
  int64_t splits;  // of `keys`; 1 unless blocks is 1
  int64_t items;
  int64_t states;  // rows of state: 0 where splits is 1
};

static inline int64_t position_of(const Sequence& s, int64_t i) { return i + s.seq_kv - s.seq_q; }

static inline Share share_of(const AttentionArgs& a, const Plan& p, int64_t b) {
  Share share = {};
  share.s = sequence_at(a, b);
  const Sequence& s = share.s;
  share.blocks = ceil_divide(s.seq_q, p.block_positions);
  if (share.blocks == 0) return share;
  share.keys = visible_keys(p.mask, position_of(s, 0), position_of(s, s.seq_q - 1), s.seq_kv);
  const int64_t keys = share.keys.end - share.keys.begin;
  share.splits = share.blocks == 1 && keys > p.split_keys ? ceil_divide(keys, p.split_keys) : 1;
  share.items = p.kv_heads * p.head_blocks * share.blocks * share.splits;
  share.states = share.splits > 1 ? share.splits * s.seq_q * p.heads : 0;
  return share;
}

// A block of rows against a range of keys. Row r is position first + r / heads_here, query head
// head + r % heads_here.
struct Item {
  Sequence s;
  int64_t kv_head, head, heads_here;
  int64_t first, positions;
  KeyRange keys;
  int64_t split, splits;
  int64_t state;  // index of the block's first row of state
  int rows;
};

static inline Item item_at(const Plan& p, const Share& share, int64_t first_state, int64_t index) {
  Item item = {};
  item.s = share.s;
  item.splits = share.splits;
  int64_t head_block;
  if (share.blocks > 1) {
    // The last positions first: under a causal mask they see most, and the short ones even out the
    // threads at the end.
    const int64_t block = share.blocks - 1 - index % share.blocks;
    head_block = index / share.blocks;
    item.first = block * p.block_positions;
  } else {
    // The heads of one range of keys follow each other: they lie side by side in memory.
    head_block = index % (p.kv_heads * p.head_blocks);
    item.split = index / (p.kv_heads * p.head_blocks);
  }
  item.kv_head = head_block / p.head_blocks;
  const int64_t within = head_block % p.head_blocks * p.block_heads;
  item.head = item.kv_head * p.group + within;
  item.heads_here = p.group - within < p.block_heads ? p.group - within : p.block_heads;
  const int64_t left = share.s.seq_q - item.first;
  item.positions = left < p.block_positions ? left : p.block_positions;
  item.rows = static_cast<int>(item.positions * item.heads_here);
  item.keys = visible_keys(p.mask, position_of(item.s, item.first),
                           position_of(item.s, item.first + item.positions - 1), item.s.seq_kv);
  if (item.splits > 1) {
    const int64_t end = item.keys.end;
    item.keys.begin += item.split * p.split_keys;
    item.keys.end = item.keys.begin + p.split_keys < end ? item.keys.begin + p.split_keys : end;
    // States lie as [split][query head][position], so a block's rows are found from any of them.
    item.state = first_state + (item.split * p.heads + item.head) * share.s.seq_q;
  }
  return item;
}

// Where row r of an item keeps its state.
static inline int64_t state_row(const Item& item, int64_t r) {
  return item.state + r % item.heads_here * item.s.seq_q + r / item.heads_here;
}

}  // namespace lowbit
