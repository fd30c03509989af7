// Attention of many queries on Hopper: q, k and v of 16 bits, straight from device memory through
// the copy engine to the tensor cores.
//
// A block of one warpgroup that serves and kGroups that multiply works on items of 64 * kGroups
// queries of one head (prefill_items_sm90a.cuh): one warp finds items, one keeps rings of tiles of
// keys and of values filled, from the last tile that is seen to the first, and asks for the next
// item's queries meanwhile. A group has 64 rows: s = q k^T of the next tile and o += p v of this
// one are asked for together, and the softmax of the next tile runs while the second product is
// under way. Groups take turns at asking for products, so that the softmax of one meets the
// products of the others.
//
// Results leave through the shared memory of their queries. An item with a result that is no number
// is computed once more, with care (Care).
#pragma once

#include <cmath>

#include "csrc/attention/prefill_serve_sm90a.cuh"
#include "csrc/cuda/stmatrix.cuh"
#include "csrc/cuda/wgmma.cuh"

namespace lowbit {
namespace {

// head_dim up to kDim and head_dim_v up to kDimV: what is missing arrives as zeros.
template <DType kTypeOf, int kDimOf, int kDimVOf, int kGroupsOf, int kTileOf, int kStagesOf,
          int kQueriesOf>
struct Form {
  static constexpr DType kType = kTypeOf;
  static constexpr bool kHalf = kType == DType::f16;
  using Mma = std::conditional_t<kHalf, MmaF16, MmaBf16>;
  using MmaRows = std::conditional_t<kHalf, MmaF16Rows, MmaBf16Rows>;
  static constexpr int kDim = kDimOf, kDimV = kDimVOf, kGroups = kGroupsOf, kTile = kTileOf;
  static constexpr int kStages = kStagesOf, kQueries = kQueriesOf;
  static constexpr int kRows = 64 * kGroups, kThreads = 128 * (kGroups + 1);
  // Boxes of 64 elements, of which the last one may be used in part.
  static constexpr int kBoxes = (kDim + 63) / 64, kBoxesV = (kDimV + 63) / 64;
  // Tokens of a page that come at a time, at most: a tile has several.
  static constexpr int kPageBox = kTile & -kTile;
  static constexpr int kTileBox = kTile * kSwizzleRow, kGroupBox = 64 * kSwizzleRow;
  static constexpr int kGroupBytes = kBoxes * kGroupBox, kQueryBytes = kGroups * kGroupBytes;
  static constexpr int kKeyBytes = kBoxes * kTileBox, kValueBytes = kBoxesV * kTileBox;
  static constexpr size_t kShared =
      kQueries * kQueryBytes + kStages * (kKeyBytes + kValueBytes) + 1024;
  static_assert(kShared <= 232448, "shared memory of a multiprocessor");
  static_assert(kBoxesV <= kBoxes, "results leave through the room of queries");
  // Tiles of keys that are asked for before an item's queries.
  static constexpr int kAhead = kQueries == 1 ? 2 : 0;
  // A loop of its own for tiles that all rows see whole. At 256 it made full masks slower.
  static constexpr bool kEasyLoop = kDimV <= 128;
  // Elements of 2^x that are computed before the products of values are awaited.
  static constexpr int kBefore = kTile / 8;
  // Of 65536 registers: what serves needs 56 at most.
  static constexpr int kServe = kGroups == 3 ? 32 : kDimV > 128 ? 40 : 56;
  static constexpr int kWork = kGroups == 3 ? 160 : kDimV > 128 ? 232 : 224;
};

// How carefully a group computes an item: with products of whatever is in the values; with masked
// values that are no numbers cleared; with a look at the largest score of each tile, too.
enum Care { kNone, kValues, kScores };

// ---- work --------------------------------------------------------------------------------------

// Named barriers: 1 + group, on which a group waits for its turn; 4 + group, of its own threads.
template <class F>
__device__ __forceinline__ void await_turn(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}
template <class F>
__device__ __forceinline__ void pass_turn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(group + 1 == F::kGroups ? 1 : 2 + group) : "memory");
}
__device__ __forceinline__ void group_sync(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(4 + group) : "memory");
}
__device__ __forceinline__ void warp_arrive(uint64_t* bar) {
  if (threadIdx.x % 32 == 0) barrier_arrive(bar);
}

// Clears the values from `first` on, which may be no numbers: all groups do, and all write zeros.
template <class F>
__device__ __forceinline__ void clear_values(uint8_t* values, int first) {
  const int count = (F::kTile - first) * 8;  // chunks of a box
#pragma unroll 1
  for (int i = threadIdx.x % 128; i < F::kBoxesV * count; i += 128) {
    const int box = i / count;
    *reinterpret_cast<uint4*>(values + box * F::kTileBox + first * kSwizzleRow +
                              (i - box * count) * 16) = {};
  }
}

// Whether a word of two elements has an inf or a NaN: bits of an exponent of ones carry over.
template <class F>
__device__ __forceinline__ uint32_t bad_bits(uint32_t w) {
  constexpr uint32_t kExponents = F::kHalf ? 0x7c007c00u : 0x7f807f80u;
  constexpr uint32_t kLowest = F::kHalf ? 0x04000400u : 0x00800080u;
  return ((w & kExponents) + kLowest) & 0x80008000u;
}
// Of the values of keys first to last - 1 of a tile, which not all rows see: chunks that have an
// inf or a NaN are cleared, and the item is told between which keys, so that rows that see them
// look. The order matters to the other groups.
template <class F>
__device__ __forceinline__ void clean_values(Item* t, uint8_t* values, int key0, int first,
                                             int last) {
  const int count = (last - first) * 8;  // chunks of a box
  if (count <= 0) return;
#pragma unroll 1
  for (int box = 0; box < F::kBoxesV; ++box) {
    uint8_t* const from = values + box * F::kTileBox + first * kSwizzleRow;
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < count; i += 128) {
      const uint4 w = *reinterpret_cast<const uint4*>(from + i * 16);
      const uint32_t bad =
          bad_bits<F>(w.x) | bad_bits<F>(w.y) | bad_bits<F>(w.z) | bad_bits<F>(w.w);
      if (bad == 0) continue;
      atomicMin(&t->bad_first, key0 + first + i / 8);
      atomicMax(&t->bad_last, key0 + first + i / 8);
      __threadfence_block();
      *reinterpret_cast<uint4*>(from + i * 16) = {};
    }
  }
}

// A descriptor whose low word is the same in all lanes, and known to be: it stays in uniform
// registers, and further ones cost an addition each.
__device__ __forceinline__ uint64_t uniform(uint64_t descriptor) {
  return (descriptor >> 32 << 32) | __shfl_sync(~0u, static_cast<uint32_t>(descriptor), 0);
}
__device__ __forceinline__ uint64_t further(uint64_t descriptor, uint32_t by) {
  return (descriptor >> 32 << 32) | (static_cast<uint32_t>(descriptor) + by);
}

// s = q k^T.
template <class F>
__device__ __forceinline__ void multiply_keys(uint32_t (&s)[F::kTile / 2], const uint8_t* queries,
                                              const uint8_t* keys) {
  const uint64_t a = uniform(wgmma_tile(queries)), b = uniform(wgmma_tile(keys));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < F::kDim / 16; ++step) {
    const uint32_t box = step / 4, at = step % 4 * kTileStep;
    Wgmma<typename F::Mma, F::kTile>::ss(s, further(a, box * kTileSlab + at),
                                         further(b, box * (F::kTileBox >> 4) + at), step > 0);
  }
  wgmma_commit();
}
// o += p v.
template <class F>
__device__ __forceinline__ void multiply_values(uint32_t (&o)[F::kDimV / 2],
                                                const uint32_t (&p)[F::kTile / 16][4],
                                                const uint8_t* values) {
  const uint64_t b = uniform(wgmma_rows(values, F::kTileBox));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < F::kTile / 16; ++step) {
    Wgmma<typename F::MmaRows, F::kDimV>::rs(o, p[step], further(b, step * kRowsStep), 1);
  }
  wgmma_commit();
}

// Whether a phase has ended, without waiting for it.
__device__ __forceinline__ bool barrier_ended(uint64_t* bar, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(smem_address(bar)), "r"(parity)
      : "memory");
  return done != 0;
}
// 16 rows of results, as a box of 64 elements each.
__device__ __forceinline__ void box_store(const CUtensorMap* map, const void* from, int element,
                                          int token, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(
          map),
      "r"(element), "r"(token), "r"(head), "r"(batch), "r"(smem_address(from))
      : "memory");
}

// o and lse of a group's 64 rows.
template <class F, bool kOptions>
__device__ __forceinline__ void finish(const Call& call, Item& t, int group, int care, Rows& r,
                                       uint32_t (&o)[F::kDimV / 2], uint8_t* room) {
  const AttentionArgs& a = call.args;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int first = t.row + 64 * group + 16 * warp;  // row of the warp
  const bool sigmoid_score = kOptions && a.score == Score::sigmoid;
  const float sink = present(a.sinks) ? static_cast<const float*>(a.sinks.data)[t.head] : -INFINITY;
  float sum[2], inverse[2], check[4];  // check: no numbers if some element is none
  bool empty[2], mend[2], passed[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    empty[e] = r.lo[e] >= r.hi[e];
    sum[e] = quad_sum(r.sum[e]);
    inverse[e] = 1.0f;
    if (!sigmoid_score) {
      const float base = r.base[e] == -INFINITY ? 0.0f : r.base[e];
      inverse[e] = reciprocal(sum[e] + power_of_two(sink * kLog2 - base));
    }
    if (empty[e]) inverse[e] = 0.0f;
    check[2 * e] = inverse[e] * 0.0f;
    check[2 * e + 1] = sum[e] * 0.0f;
  }
  if (__any_sync(~0u, empty[0] || empty[1])) {
#pragma unroll
    for (int i = 0; i < F::kDimV / 2; ++i) o[i] = empty[row_of(i)] ? 0 : o[i];
  }
#pragma unroll
  for (int i = 0; i < F::kDimV / 2; ++i) {
    const int e = row_of(i);
    const float x = __uint_as_float(o[i]) * inverse[e];
    check[2 * e + i % 2] = fmaf(x, 0.0f, check[2 * e + i % 2]);
    o[i] = __float_as_uint(x);
  }
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int row = first + lane / 4 + 8 * e;
    mend[e] = !(quad_sum(check[2 * e] + check[2 * e + 1]) == 0.0f) && row < t.seq_q;
    passed[e] = sum[e] == INFINITY && row < t.seq_q;
  }
  if (present(a.lse)) {
#pragma unroll 1
    for (int e = 0; e < 2; ++e) {
      const int row = first + lane / 4 + 8 * e;
      if (lane % 4 != 0 || row >= t.seq_q) continue;
      double lse = -INFINITY;
      if (!(e == 0 ? empty[0] : empty[1])) {
        const float own = e == 0 ? r.base[0] : r.base[1], base = own == -INFINITY ? 0.0f : own;
        const double most = static_cast<double>(base) / call.unit;
        lse = log(static_cast<double>(e == 0 ? sum[0] : sum[1])) +
              (kOptions ? base * kLn2 : most * call.scale);
      }
      if (sink != -INFINITY) {
        const double high = lse > sink ? lse : sink, low = lse > sink ? sink : lse;
        lse = high + log1p(exp(low - high));
      }
      const int64_t at = (is_batched(a) ? t.batch * a.lse.strides[0] : t.q * a.lse.strides[1]) +
                         t.head * a.lse.strides[a.lse.rank - 2] +
                         row * a.lse.strides[a.lse.rank - 1];
      static_cast<float*>(a.lse.data)[at] = static_cast<float>(lse);
    }
  }
  const int dim_v = static_cast<int>(head_dim_v_of(a));
  const int64_t start = (is_batched(a) ? t.batch : t.q) * a.o.strides[0] +
                        t.head * head_stride(a.o) + first * token_stride(a.o);
  const int left = t.seq_q - first;  // rows of the warp that are there
  if (a.o.dtype == DType::f32) {
    float* const to = static_cast<float*>(a.o.data) + start;
#pragma unroll
    for (int i = 0; i < F::kDimV / 2; ++i) {
      const int row = lane / 4 + 8 * row_of(i), column = column_of(i) + 2 * (lane % 4);
      if (row < left && column < dim_v)
        to[row * token_stride(a.o) + column] = __uint_as_float(o[i]);
    }
  } else {
    group_sync(group);  // all warps are done with the queries
#pragma unroll
    for (int j = 0; j < F::kDimV / 16; ++j) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = pack_two<F::kType>(__uint_as_float(o[8 * j + 2 * i]),
                                      __uint_as_float(o[8 * j + 2 * i + 1]));
      }
      const int row = warp * 16 + lane / 8 % 2 * 8 + lane % 8;
      stmatrix(room + j / 4 * 8192 + swizzled(row, j % 4 * 32 + lane / 16 * 16), words);
    }
    if (call.stores && left >= 16) {
      async_fence();
      __syncwarp();
      if (lane == 0) {
#pragma unroll
        for (int box = 0; box < F::kBoxesV; ++box) {
          box_store(&call.o_map, room + box * 8192 + warp * 2048, box * 64, t.q + first, t.head,
                    t.batch);
        }
        store_commit();
      }
    } else {
      __syncwarp();
      auto* const to = static_cast<uint16_t*>(a.o.data) + start;
      const bool even = (reinterpret_cast<uintptr_t>(to) & 15) == 0 && token_stride(a.o) % 8 == 0;
      const auto from = [&](int row, int c) {  // the chunk c of a row
        return reinterpret_cast<const uint4*>(room + c / 8 * 8192 +
                                              swizzled(warp * 16 + row, c % 8 * 16));
      };
      constexpr int kChunks = F::kDimV / 8;
#pragma unroll 1
      for (int i = lane; i < 16 * kChunks; i += 32) {
        const int row = i / kChunks, c = i % kChunks;
        if (row >= left || c * 8 >= dim_v) continue;
        uint16_t* const at = to + row * token_stride(a.o) + c * 8;
        if (even) {
          *reinterpret_cast<uint4*>(at) = *from(row, c);
        } else {
#pragma unroll 1
          for (int e = 0; e < 8; ++e) at[e] = reinterpret_cast<const uint16_t*>(from(row, c))[e];
        }
      }
      async_fence();
    }
  }
  __syncwarp();
  // Once more where a row is no number: with masked values that are none cleared, then with a look
  // at every score. What is none then is computed key by key.
  const bool any = __any_sync(~0u, mend[0] || mend[1]);
  const bool far = __any_sync(~0u, passed[0] || passed[1]);
  const bool bad = care != kNone && *const_cast<volatile const int*>(&t.bad_last) >= 0;
  if (!any && !bad) return;
  if (lane == 0) store_wait_all();  // before others write there
  __syncwarp();
  if (any && (care == kNone || (care == kValues && far))) {
    if (lane == 0) atomicOr(&t.again, (far ? kScores : kValues) << 2 * group);
    return;
  }
#pragma unroll 1
  for (int e = 0; e < 2; ++e) {
    // Where values were cleared, every row is looked at.
    const unsigned known = __ballot_sync(~0u, e == 0 ? mend[0] : mend[1]);
    unsigned rows = bad ? 0x11111111u : known;
    while (rows != 0) {
      const int at = (__ffs(rows) - 1) / 4, row = at + 8 * e;
      rows &= ~(15u << at * 4);
      if (row >= left) continue;
      mend_row<F>(call, t, first + row, (known >> at * 4 & 15) != 0);
    }
  }
}

template <class F, bool kOptions>
__device__ __forceinline__ void work(const Call& call, const Shared<F>& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128 - 1;
  Ring<F::kQueries> q;
  Ring<F::kStages> k, v;
  // bf16 has weights of any size, f16 none of 2^16.
  constexpr bool kOn = !kOptions && !F::kHalf;
  const bool sigmoid_score = kOptions && call.args.score == Score::sigmoid;
  const float unit = kOptions ? 1.0f : call.unit;
  if (group + 1 == F::kGroups) pass_turn<F>(group);
  bool owed = false;  // the queries of the item before are still to be let go
  const auto let_go = [&] {
    if (lane == 0) {
      store_wait_read();
      barrier_arrive(&s.q_empty[(q.slot + F::kQueries - 1) % F::kQueries]);
    }
    owed = false;
  };
  while (true) {
    // At once where the next item's are not there yet, or it would wait for them in vain.
    if (owed && !__shfl_sync(~0u, barrier_ended(&s.q_full[q.slot], q.parity), 0)) let_go();
    barrier_wait(&s.q_full[q.slot], q.parity);
    Item& t = s.items[q.slot];
    if (t.seq_q < 0) break;
    const int first = t.first;
    uint8_t* const queries = s.queries + q.slot * F::kQueryBytes + group * F::kGroupBytes;
    const int row0 = t.row + 64 * group, shift = t.seq_kv - t.seq_q;
    Rows rows = rows_of<F>(call, t, row0 + 16 * warp + lane / 4);
    // Keys that all rows of the group see.
    const int low = first_key(call, row0 + 63 + shift);
    const int high = end_key(call, row0 + shift, t.seq_kv);
    const auto care = [&] { return t.care >> 2 * group & 3; };
    // Tiles before this key are computed without a look at their largest scores: all rows have seen
    // keys, so that their bases stand. It does not depend on what is in the keys, as rows have the
    // same bits whatever others see.
    const int before = kOn && low < high && care() < kScores ? high : 0;
    const auto is_masked = [&](int tile) {
      return tile * F::kTile < low || (tile + 1) * F::kTile > high;
    };
    uint32_t o[F::kDimV / 2], x[F::kTile / 2] = {}, p[F::kTile / 16][4];
    float sum[2] = {};  // of a tile, until the next one's products are under way
#pragma unroll
    for (uint32_t& e : o) e = 0;
    const auto score_and_mask = [&](int tile) {
      const int key = tile * F::kTile + 2 * (lane % 4);
      if constexpr (kOptions) score(call, rows, key, x);
      if (is_masked(tile)) mask(rows, key, x);
    };
    const auto soften = [&] {
      if (kOptions && sigmoid_score) {
        weigh_sigmoid(x);
      } else {
        weigh(unit, rows, x);
      }
    };
    const auto rescale = [&] {
#pragma unroll
      for (int i = 0; i < F::kDimV / 2; ++i) {
        o[i] = __float_as_uint(__uint_as_float(o[i]) * rows.factor[row_of(i)]);
      }
      rows.factor[0] = rows.factor[1] = 1.0f;
    };
    // Before the values of a tile are met that not all rows see whole.
    const auto clean = [&](int tile) {
      const int key0 = tile * F::kTile, end = min(t.seq_kv - key0, F::kTile);
      const int from = min(max(low - key0, 0), end), to = max(high - key0, from);
      const bool clear = call.ragged && end < F::kTile;
      const bool careful = care() != kNone;
      if ((!careful || (from == 0 && to >= end)) && !clear) return;
      uint8_t* const values = s.values + v.slot * F::kValueBytes;
      barrier_wait(&s.v_full[v.slot], v.parity);
#pragma unroll 1
      for (int part = 0; careful && part < 2; ++part) {
        clean_values<F>(s.items + q.slot, values, key0, part == 0 ? 0 : to, part == 0 ? from : end);
      }
      if (clear) clear_values<F>(values, end);
      async_fence();
      group_sync(group);
    };
    if (t.count > 0) {
      int tile = first + t.count - 1;
      barrier_wait(&s.k_full[k.slot], k.parity);
      pin(x);
      multiply_keys<F>(x, queries, s.keys + k.slot * F::kKeyBytes);
      if (owed) let_go();
      wgmma_wait<0>();
      pin(x);
      warp_arrive(&s.k_empty[k.slot]);
      advance(k);
      score_and_mask(tile);
      soften();
      rows.factor[0] = rows.factor[1] = 1.0f;  // there are no results of before
      pack_weights<F::kType>(x, p);
      if (is_masked(tile)) clean(tile);
      // kEasy: of a tile that all rows see whole and that needs no look at its largest scores.
      const auto step = [&](int tile, auto easy) {
        constexpr bool kEasy = decltype(easy)::value;
        barrier_wait(&s.k_full[k.slot], k.parity);
        await_turn<F>(group);
#pragma unroll
        for (int i = 0; i < F::kTile / 16; ++i) pin(p[i]);
        pin(o);
        pin(x);
        multiply_keys<F>(x, queries, s.keys + k.slot * F::kKeyBytes);
        barrier_wait(&s.v_full[v.slot], v.parity);
        multiply_values<F>(o, p, s.values + v.slot * F::kValueBytes);
        pass_turn<F>(group);
        const bool moved = kOn && follow(rows, sum);
        wgmma_wait<1>();
        pin(x);
        warp_arrive(&s.k_empty[k.slot]);
        advance(k);
        const bool on = kEasy || (kOn && (tile + 1) * F::kTile < before);
        if (!kEasy) score_and_mask(tile);
        if (on) {
          weigh_on<0, F::kBefore>(unit, rows, x, sum);
        } else {
          soften();
        }
        pin(x);
        // The wait stands behind a branch, or ptxas moves it before the exponentials.
        const bool behind = kEasy ? moved : rows.factor[0] != 1.0f || rows.factor[1] != 1.0f;
        if (kEasy ? behind : __any_sync(~0u, behind) != 0) {
          wgmma_wait<0>();
          pin(o);
          rescale();
        }
        wgmma_wait<0>();
        pin(o);
        warp_arrive(&s.v_empty[v.slot]);
        advance(v);
        if (on) {
          weigh_on<F::kBefore, F::kTile / 2>(unit, rows, x, sum);
          pack_weights<F::kType>(x, p);
        } else {
          pack_weights<F::kType>(x, p);
        }
        if (!kEasy && is_masked(tile)) clean(tile);
      };
      --tile;
      while (tile >= first) {
        if constexpr (kOn && F::kEasyLoop) {
          const int last = max(first, (low + F::kTile - 1) / F::kTile);  // of those seen whole
          if ((tile + 1) * F::kTile < before) {
#pragma unroll 1
            for (; tile >= last; --tile) step(tile, std::true_type());
            if (tile < first) break;
          }
        }
        step(tile--, std::false_type());
      }
      barrier_wait(&s.v_full[v.slot], v.parity);
#pragma unroll
      for (int i = 0; i < F::kTile / 16; ++i) pin(p[i]);
      pin(o);
      multiply_values<F>(o, p, s.values + v.slot * F::kValueBytes);
      if (kOn) follow(rows, sum);
      wgmma_wait<0>();
      pin(o);
      warp_arrive(&s.v_empty[v.slot]);
      advance(v);
      if (kOn && __any_sync(~0u, rows.factor[0] != 1.0f || rows.factor[1] != 1.0f)) rescale();
    }
    if (owed) let_go();
    finish<F, kOptions>(call, t, group, care(), rows, o, queries);
    __syncwarp();
    owed = true;
    advance(q);
  }
}

template <class F, bool kOptions>
__global__ void __launch_bounds__(F::kThreads, 1) attend_tiles(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) uint8_t raw[];
  const Shared<F> s = shared_of<F>(raw);
  if (threadIdx.x == 0) {
    for (int i = 0; i < F::kQueries; ++i) {
      barrier_init(&s.q_full[i], 1);
      barrier_init(&s.q_empty[i], 4 * F::kGroups);
      s.items[i].again = 0;
    }
    barrier_init(s.found_full, 1);
    barrier_init(s.found_empty, 1);
    for (int i = 0; i < F::kStages; ++i) {
      barrier_init(&s.k_full[i], 1);
      barrier_init(&s.k_empty[i], 4 * F::kGroups);
      barrier_init(&s.v_full[i], 1);
      barrier_init(&s.v_empty[i], 4 * F::kGroups);
    }
    barrier_init_fence();
    tma_prefetch(&call.q_map);
    tma_prefetch(&call.k_map);
    tma_prefetch(&call.v_map);
  }
  __syncthreads();
  wait_for_others();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(F::kServe));
    if (threadIdx.x < 32) {
      serve<F, false>(call, s);
    } else if (threadIdx.x < 64) {
      find<F>(call, s);
    } else if (threadIdx.x < 96 && call.check != nullptr && blockIdx.x == 0) {
      check_lens(call.args, call.check, threadIdx.x - 64, 32);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(F::kWork));
    work<F, kOptions>(call, s);
  }
}

// ---- host --------------------------------------------------------------------------------------

// Rows that the copy engine can read: strides of multiples of 16 bytes.
static inline bool has_even_rows(const Tensor& t) {
  if ((reinterpret_cast<uintptr_t>(t.data) & 15) != 0 || t.shape[t.rank - 1] % 8 != 0) return false;
  for (int i = 0; i < t.rank - 1; ++i) {
    if (t.shape[i] > 1 && (t.strides[i] % 8 != 0 || t.strides[i] >= int64_t{1} << 38)) return false;
  }
  return true;
}
static inline int64_t query_tokens(const AttentionArgs& a) {
  return is_batched(a) ? a.q.shape[0] * a.q.shape[1] : a.q.shape[0];
}
// Queries of a sequence of which a group's 64 rows would be less than half full.
inline constexpr int64_t kFewQueries = 32;

static inline bool takes_tensors(const AttentionArgs& a) {
  if (head_dim_of(a) > 256 || head_dim_v_of(a) > 256) return false;
  if (shows_cut_sums(a)) return false;
  if (numel(a.q) == 0 || !has_even_rows(a.q)) return false;
  if (is_paged(a)) {
    const KvCache& c = a.kv;
    if (c.format != (a.q.dtype == DType::f16 ? KvFormat::f16 : KvFormat::bf16)) return false;
    if (present(a.prefix_rows) || c.head_dim % 8 != 0 || c.head_dim_v % 8 != 0) return false;
    if ((reinterpret_cast<uintptr_t>(c.data) & 15) != 0 || c.pages == 0) return false;
    return query_tokens(a) * head_count(a) < kMostItems && sequence_count(a) < kMostItems &&
           c.pages * c.kv_heads < kMostItems && seq_kv_bound(a) < kMostItems;
  }
  if (numel(a.k) == 0 || !has_even_rows(a.k) || !has_even_rows(a.v)) return false;
  const int64_t batch = is_batched(a) ? a.q.shape[0] : 1;
  if (query_tokens(a) * head_count(a) >= kMostItems || sequence_count(a) >= kMostItems)
    return false;
  return a.k.shape[a.k.rank - 3] * batch < kMostItems;
}

// A number that no other call of this process has, and memory that was not written by one of them
// hardly ever: each step is one to one (Steele, Lea, Flood, SplitMix, 2014).
static inline uint64_t number_of_call() {
  static std::atomic<uint64_t> calls{0};
  uint64_t x = (calls.fetch_add(1, std::memory_order_relaxed) + 1) * 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

static inline cudaError_t map_of(const Tensor& t, int64_t rows, CUtensorMap* map) {
  const bool batched = t.rank == 4;
  BoxKey key = {};
  key.data = t.data;
  key.elements = t.shape[t.rank - 1];
  key.tokens = t.shape[t.rank - 3];
  key.heads = t.shape[t.rank - 2];
  key.batch = batched ? t.shape[0] : 1;
  key.token_bytes = 2 * token_stride(t);
  key.head_bytes = 2 * head_stride(t);
  key.batch_bytes = batched ? 2 * t.strides[0] : 0;
  key.rows = rows;
  return box_map(key, map);
}

// Blocks of pages as heads.
static inline cudaError_t map_of_pages(const KvCache& c, bool of_values, int64_t rows,
                                       CUtensorMap* map) {
  BoxKey key = {};
  key.data = c.data + (of_values ? c.page.v : c.page.k);
  key.elements = of_values ? c.head_dim_v : c.head_dim;
  key.tokens = c.page_size;
  key.heads = c.pages * c.kv_heads;
  key.batch = 1;
  key.token_bytes = 2 * key.elements;
  key.head_bytes = c.page.bytes;
  key.rows = rows < c.page_size ? rows : c.page_size;
  return box_map(key, map);
}

template <class F, bool kOptions>
static Status run_form(const AttentionArgs& args, const Ctx& ctx) {
  static std::atomic<uint64_t> asked{0};
  const auto limit = [](int64_t window) {
    return static_cast<int>(window < 0 ? -1 : window < kMostItems ? window : kMostItems - 1);
  };
  const auto numbers = [](const Tensor& t) {
    return present(t) ? static_cast<const int32_t*>(t.data) : nullptr;
  };
  const Mask mask = make_mask(args.causal, args.window_left, args.window_right);
  const bool batched = is_batched(args), packed = present(args.cu_seqlens_q),
             paged = is_paged(args);
  Call call = {};
  call.args = args;
  call.scale = args.softmax_scale != 0 ? static_cast<double>(args.softmax_scale)
                                       : 1.0 / std::sqrt(static_cast<double>(head_dim_of(args)));
  call.unit = static_cast<float>(call.scale * 1.4426950408889634);
  call.heads = static_cast<int>(head_count(args));
  call.group = static_cast<int>(head_count(args) / kv_head_count(args));
  call.left = limit(mask.left);
  call.right = limit(mask.right);
  call.ragged = packed || present(args.kv_lens);
  call.cu_q = numbers(args.cu_seqlens_q);
  call.cu_kv = present(args.cu_seqlens_kv) ? numbers(args.cu_seqlens_kv)
               : paged                     ? nullptr
                                           : call.cu_q;
  call.kv_lens = numbers(args.kv_lens);
  call.sequences = static_cast<int>(sequence_count(args));
  call.tokens_q = static_cast<int>(args.q.shape[0]);
  call.tokens_kv = static_cast<int>(paged ? seq_kv_bound(args) : args.k.shape[0]);
  call.seq_q = static_cast<int>(args.q.shape[args.q.rank - 3]);
  call.seq_kv = static_cast<int>(seq_kv_bound(args));
  if (paged) {
    call.table = numbers(args.page_table);
    call.table_stride = static_cast<int>(args.page_table.strides[0]);
    call.pages = static_cast<int>(args.kv.pages);
    call.kv_heads = static_cast<int>(args.kv.kv_heads);
    while (int64_t{1} << call.page_shift < args.kv.page_size) ++call.page_shift;
  }
  call.key_bytes = static_cast<int>(2 * (head_dim_of(args) + head_dim_v_of(args)));
  call.all_heads = packed ? 0 : static_cast<int>(batched ? args.q.shape[0] : 1) * call.heads;
  const int64_t fit = kSectionBytes / (int64_t{call.seq_kv} * call.key_bytes) * call.group;
  call.section = static_cast<int>(fit < call.group       ? call.group
                                  : fit < call.all_heads ? fit
                                                         : call.all_heads);
  call.check = ctx.check;
  const int64_t blocks = int64_t{(call.seq_q + F::kRows - 1) / F::kRows} +
                         (packed ? call.sequences : 0);  // no fewer than there are
  const int64_t items = blocks * (packed ? call.heads : call.all_heads);
  if (items > ctx.multiprocessors) {
    call.counter = static_cast<Counter*>(ctx.scratch);
    call.call = number_of_call();
  }
  cudaError_t code = map_of(args.q, 64, &call.q_map);
  for (const bool of_values : {false, true}) {
    CUtensorMap* const map = of_values ? &call.v_map : &call.k_map;
    if (code != cudaSuccess) break;
    code = paged ? map_of_pages(args.kv, of_values, F::kPageBox, map)
                 : map_of(of_values ? args.v : args.k, F::kTile, map);
  }
  call.stores = args.o.dtype == F::kType && has_even_rows(args.o);
  if (code == cudaSuccess && call.stores) code = map_of(args.o, 16, &call.o_map);
  if (code == cudaSuccess) code = allow_shared(attend_tiles<F, kOptions>, F::kShared, asked);
  LB_TRY(launched(code));
  const auto grid =
      static_cast<unsigned>(items < ctx.multiprocessors ? items : ctx.multiprocessors);
  return launch(ctx, attend_tiles<F, kOptions>, grid, F::kThreads, F::kShared, call);
}

// Weights of products without more than a scale, which is positive.
static inline bool is_plain(const AttentionArgs& args) {
  return args.softcap == 0 && !present(args.alibi_slopes) && !present(args.bias) &&
         args.score == Score::softmax && (args.softmax_scale == 0 || args.softmax_scale > 0x1p-60f);
}
template <class F>
static Status run_options(const AttentionArgs& args, const Ctx& ctx) {
  return is_plain(args) ? run_form<F, false>(args, ctx) : run_form<F, true>(args, ctx);
}

static inline size_t workspace_beside(const AttentionArgs& args, int threads,
                                      const AttentionKernel& other) {
  return takes_tensors(args) ? sizeof(Counter) : other.workspace(args, threads);
}

// `other` is the row for calls that takes_tensors() refuses.
template <DType kType>
static Status run_beside(const AttentionArgs& args, const Ctx& ctx, const AttentionKernel& other) {
  if (!takes_tensors(args)) return other.run(args, ctx);
  const int64_t dim = head_dim_of(args), dim_v = head_dim_v_of(args),
                most = dim > dim_v ? dim : dim_v;
  if (most <= 64 && args.causal && is_batched(args) && args.q.shape[1] <= 1024 && is_plain(args)) {
    return run_form<Form<kType, 64, 64, 2, 128, 4, 2>, false>(args, ctx);
  }
  if (most <= 64) return run_options<Form<kType, 64, 64, 3, 128, 4, 2>>(args, ctx);
  if (most <= 96) return run_options<Form<kType, 96, 96, 2, 128, 2, 2>>(args, ctx);
  if (most <= 128) return run_options<Form<kType, 128, 128, 2, 128, 2, 2>>(args, ctx);
  if (dim <= 192 && dim_v <= 128) {
    return run_options<Form<kType, 192, 128, 2, 128, 2, 1>>(args, ctx);
  }
  if (most <= 192) return run_options<Form<kType, 192, 192, 2, 96, 2, 1>>(args, ctx);
  return run_options<Form<kType, 256, 256, 2, 80, 2, 1>>(args, ctx);
}

}  // namespace
}  // namespace lowbit
