// flash: attention in one pass over tiles of keys, for any vector width. The rows of attention give
// the vector type V and its tile sizes; masks, states and the order of work are the same for all.
//
// Two ways through a tile: block.h for many rows, step.h for few. tile.h, state.h and keys.h (where
// keys come from) are what they share.
//
//   q   [rows / kMR][head_dim][kMR]           block, or [rows][head_dim_pad] in step
//   k   [keys / kNR][head_dim][kNR]           block; kNR = two vectors
//   v   [head_dim_v_pad / kNR][keys + 1][kNR] block; + 1: panels don't fall on the same cache sets
//   tile_k, tile_v                            a tile of a cache's keys and values, rows of f32
//   s   [rows][kBlockKeys]                    scores, then P in place
//   o   [rows][head_dim_v_pad]                not normalised, relative to m
//
// A row sees one interval [low, high) of a tile's keys (mask.h). Products skip what no row of a
// step sees; where rows differ, values are added row by row, because P = 0 times a NaN in a value
// that the row must not see would be NaN.
//
// V: F, kLanes, kMR, kBlockRows, kBlockKeys, kStepRows, step_keys, step_pairs and the functions
// that these headers call.
#pragma once

#include <cmath>

#include "csrc/attention/block.h"
#include "csrc/attention/step.h"
#include "csrc/base/threads.h"

namespace lowbit {

// Scratch of a call: first items and first states of the sequences, the states, and each thread's.
template <class V>
static size_t flash_workspace(const AttentionArgs& args, int threads) {
  const Plan p = make_plan(args, {V::kLanes, V::kBlockRows, V::kBlockKeys});
  const int64_t table = round_to(2 * (sequence_count(args) + 1) * 8, 64);
  const int64_t states = round_to(p.states_max * p.state_floats * 4, 64);
  return static_cast<size_t>(table + states) +
         static_cast<size_t>(threads) * carve<V>(p, nullptr, nullptr);
}

template <class V, class T, class Keys>
static void run_keys(const Call& c, const Item& item, const Scratch& t) {
  const Keys keys(c, item, t);
  if (item.rows <= V::kStepRows) {
    run_step<V, T>(c, item, keys, t);
  } else {
    run_block<V, T>(c, item, keys, t);
  }
}

// T is the type of q, and of k and v unless they are in a cache.
template <class V, class T>
static void run_item(const Call& c, const Item& item, const Scratch& t) {
  if (c.plan.paged) {
    run_keys<V, T, PagedKeys<V>>(c, item, t);
  } else {
    run_keys<V, T, TensorKeys<T>>(c, item, t);
  }
}

// Items that follow each other and differ in the kv head alone, one by one.
template <class V>
static void run_items(const Call& c, const Item* items, int count, const Scratch& t) {
  for (int i = 0; i < count; ++i) {
    switch (c.args->q.dtype) {
      case DType::f32: run_item<V, float>(c, items[i], t); break;
      case DType::f16: run_item<V, F16>(c, items[i], t); break;
      default: run_item<V, Bf16>(c, items[i], t); break;
    }
  }
}

// A call of fewer multiplications than this takes some 20 us on one core: waking others would cost
// more than they give.
inline constexpr int64_t kWorthThreads = 1 << 19;

// Items that a row takes at once, at most.
inline constexpr int kItemsAtOnce = 32;

// The items of a chunk. Where there are no blocks of positions (decode), a chunk holds the kv heads
// of consecutive splits, so that a thread walks K and V of packed tokens as they lie; four chunks a
// thread even out what neighbours take. The results do not depend on it.
static inline int64_t chunk_of(int64_t items, int64_t heads, bool blocks, int threads) {
  if (blocks) return 1;
  const int64_t share = ceil_divide(items, 4 * static_cast<int64_t>(threads));
  return share <= heads ? share : share / heads * heads;
}

// kRun goes through items that differ in the kv head alone.
template <class V, void (*kRun)(const Call&, const Item*, int, const Scratch&) = run_items<V>>
static Status flash_run(const AttentionArgs& args, const Ctx& ctx) {
  if (numel(args.o) == 0) return ok();
  Call call = {};
  call.args = &args;
  call.plan = make_plan(args, {V::kLanes, V::kBlockRows, V::kBlockKeys});
  const Plan& p = call.plan;
  const float scale = args.softmax_scale != 0
                          ? args.softmax_scale
                          : static_cast<float>(1 / std::sqrt(static_cast<double>(p.head_dim)));
  call.rule = make_rule(scale, args.softcap, present(args.alibi_slopes), present(args.bias),
                        args.score == Score::sigmoid);

  const int64_t batch = sequence_count(args);
  auto* bytes = static_cast<char*>(ctx.scratch);
  auto* first_item = reinterpret_cast<int64_t*>(bytes);
  int64_t* first_state = first_item + batch + 1;
  bytes += round_to(2 * (batch + 1) * 8, 64);
  call.states = reinterpret_cast<float*>(bytes);
  bytes += round_to(p.states_max * p.state_floats * 4, 64);
  int64_t items = 0, states = 0, work = 0;
  bool blocks = false;
  for (int64_t b = 0; b < batch; ++b) {
    const Share share = share_of(args, p, b);
    first_item[b] = items;
    first_state[b] = states;
    items += share.items;
    states += share.states;
    blocks = blocks || share.blocks > 1;
    work +=
        share.s.seq_q * (share.keys.end - share.keys.begin) * p.heads * (p.head_dim + p.head_dim_v);
  }
  first_item[batch] = items;
  if (states > p.states_max) return error(Code::internal, "attention: the plan has no room");

  const Call* c = &call;
  const size_t scratch_bytes = carve<V>(p, nullptr, nullptr);
  const bool alone = work < kWorthThreads;
  const int64_t heads = p.kv_heads * p.head_blocks;
  const int64_t chunk = alone ? items : chunk_of(items, heads, blocks, pool_threads(ctx.pool));
  parallel_for(ctx.pool, items, chunk, [=](int64_t begin, int64_t end, int thread) {
    Scratch t;
    carve<V>(c->plan, reinterpret_cast<float*>(bytes + static_cast<size_t>(thread) * scratch_bytes),
             &t);
    for (int64_t i = begin; i < end;) {
      int64_t b = 0, after = batch;  // sequence b has first_item[b] <= i < first_item[b + 1]
      while (after - b > 1) {
        const int64_t middle = b + (after - b) / 2;
        (first_item[middle] <= i ? b : after) = middle;
      }
      const Share share = share_of(*c->args, c->plan, b);
      Item run[kItemsAtOnce];
      int count = 0;
      do {
        run[count++] = item_at(c->plan, share, first_state[b], i++ - first_item[b]);
      } while (i < end && i < first_item[b + 1] && count < kItemsAtOnce &&
               c->plan.head_blocks == 1 && share.blocks == 1 &&
               (i - first_item[b]) % c->plan.kv_heads != 0);
      kRun(*c, run, count, t);
    }
  });
  if (states == 0) return ok();
  parallel_for(
      ctx.pool, batch * p.heads, alone ? batch * p.heads : 1,
      [=](int64_t begin, int64_t end, int thread) {
        Scratch t;
        carve<V>(c->plan,
                 reinterpret_cast<float*>(bytes + static_cast<size_t>(thread) * scratch_bytes), &t);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t b = i / c->plan.heads;
          const Share share = share_of(*c->args, c->plan, b);
          if (share.splits > 1) {
            merge<V>(*c, share, first_state[b], i % c->plan.heads, t.o);
          }
        }
      });
  return ok();
}

}  // namespace lowbit
