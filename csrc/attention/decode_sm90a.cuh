// Attention over a paged cache on Hopper, for few queries: keys and values are read once from
// memory for all rows of an item (decode_items_sm90a.cuh), products run on the tensor cores by
// mma.sync (decode_keys_sm90a.cuh).
//
// Of each block one warp finds its tiles and asks the copy engine for them, eight multiply: four of
// them take a tile, a quarter of its keys each, the other four the next one. At the end of an item
// they add up, in the order of warps; an item that has tiles in several blocks leaves parts in
// scratch, which join_parts() adds up in the order of blocks. So the bits depend on lengths and on
// the number of multiprocessors only.
//
// The cache is one column of lines of 128 bytes to the copy engine, so pages of any size arrive
// swizzled.
#pragma once

#include <cmath>
#include <type_traits>

#include "csrc/attention/decode_keys_sm90a.cuh"

namespace lowbit {
namespace {

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
      const int page = pages[key >> shift];
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

__device__ __forceinline__ void workers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kWorkers) : "memory");
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
