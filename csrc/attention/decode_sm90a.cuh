// Attention over a paged cache on Hopper, for few queries: keys and values are read once from
// memory for all rows of an item (decode_items_sm90a.cuh), products run on the tensor cores by
// mma.sync (decode_keys_sm90a.cuh).
//
// Of each block one warp asks the copy engine for tiles, one makes operands of the next segment's
// queries, eight multiply: four of them take a tile, a quarter of its keys each, the other four the
// next one. At the end of a segment they leave their sums in shared memory, where two more warps
// add them up, in the order of warps, while the next segment is under way. An item that has units
// in several blocks leaves parts in scratch, each announced by a number that no other call has; the
// block where the item ends adds them up when its own units are done, in the order of blocks. It
// waits for blocks of lower numbers only, which were there before it. So the bits depend on lengths
// and on the number of multiprocessors only.
//
// The cache is one column of lines of 128 bytes to the copy engine, so pages of any size arrive
// swizzled.
#pragma once

#include <cmath>

#include "csrc/attention/decode_keys_sm90a.cuh"

namespace lowbit {
namespace {

inline constexpr int kFinishers = 2;  // warps

// An item that ends in this block and began in block `from`; -1: none.
struct Join {
  Segment segment;
  int from;
};

template <class F>
struct Shared {
  uint8_t *stages, *queries;  // [kRing], [2][kQueryBytes]
  float* pass;                // [kWarps][kPassRows][kPassStride]
  float4* numbers;            // [kWarps][kPassRows]: base, sums of weights and of P
  uint64_t *full, *empty, *segment_full, *segment_empty, *pass_full, *pass_empty;
  Segment* segments;  // two: what prepares is one ahead
  Row* rows;          // [3][kRows], the last for the join
  Join* join;
};
template <class F>
__device__ __forceinline__ Shared<F> shared_of(uint8_t* raw) {
  Shared<F> s;
  s.stages = align_tile(raw);
  s.queries = s.stages + F::kRing;
  s.pass = reinterpret_cast<float*>(s.queries + 2 * F::kQueryBytes);
  s.numbers = reinterpret_cast<float4*>(s.pass + F::kPassBytes / sizeof(float));
  s.full = reinterpret_cast<uint64_t*>(s.numbers + kWarps * kPassRows);
  s.empty = s.full + F::kStagesMost;
  s.segment_full = s.empty + F::kStagesMost;
  s.segment_empty = s.segment_full + 2;
  s.pass_full = s.segment_empty + 2;
  s.pass_empty = s.pass_full + 1;
  s.segments = reinterpret_cast<Segment*>(s.pass_empty + 1);
  s.join = reinterpret_cast<Join*>(s.segments + 2);
  s.rows = reinterpret_cast<Row*>(s.join + 1);
  return s;
}

__device__ __forceinline__ void workers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kWorkers) : "memory");
}
__device__ __forceinline__ void finishers_sync() {
  asm volatile("bar.sync 2, %0;" ::"n"(32 * kFinishers) : "memory");
}
// The workers go on when the finishers are done.
__device__ __forceinline__ void finished_sync() {
  asm volatile("bar.sync 3, %0;" ::"n"(kWorkers + 32 * kFinishers) : "memory");
}
__device__ __forceinline__ void release(uint64_t* to, uint64_t x) {
  asm volatile("fence.acq_rel.gpu;\nst.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(x)
               : "memory");
}
__device__ __forceinline__ uint64_t acquire(const uint64_t* from) {
  uint64_t x;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(x) : "l"(from) : "memory");
  return x;
}

// A place in the ring of stages.
struct Stage {
  int slot = 0;
  uint32_t parity = 0;
};
__device__ __forceinline__ void advance(const Call& call, Stage& stage) {
  if (++stage.slot == call.stages) {
    stage.slot = 0;
    stage.parity ^= 1;
  }
}

// ---- tiles -------------------------------------------------------------------------------------

// Numbers of 32 pages of a sequence that follow each other, one a lane.
struct Window {
  int sequence = -1, first = 0, page = 0;
};

// Asks for one tile, by all lanes: a box in one copy, or its K, its V and its scales in several,
// each lane some of them.
template <class F>
__device__ __forceinline__ void bring(const Call& call, const Item& t, const Window& window,
                                      const Tile& tile, uint8_t* stage, uint64_t* full,
                                      uint64_t policy) {
  const int lane = threadIdx.x % 32, box = 1 << call.box_shift;
  const bool whole = call.whole && !tile.prefix;
  const int first = tile.lo >> call.box_shift;
  const int count = tile.lo < tile.hi ? ((tile.hi - 1) >> call.box_shift) - first + 1 : 0;
  if (lane == 0) {
    if (count > 0) {
      barrier_expect(full,
                     count * (whole ? call.box_bytes : 2 * box * (F::kRowBytes + F::kScales)));
    } else {
      barrier_arrive(full);
    }
  }
  __syncwarp();
  constexpr int kCopies = 2 + F::kScales, kShift = F::kScales == 0 ? 1 : F::kScales == 2 ? 2 : 3;
  const int shift = whole ? 0 : kShift;  // log2 of the lanes of a box
  for (int i0 = 0; i0 < count << shift; i0 += 32) {
    const int i = i0 + lane, which = i >> shift, part = i & ((1 << shift) - 1);
    const int key = (first + which) << call.box_shift;
    const int page = __shfl_sync(~0u, window.page, ((key >> call.page_shift) - window.first) & 31);
    if (which >= count || part >= kCopies) continue;
    const int token = tile.prefix ? key : key & ((1 << call.page_shift) - 1);
    const int block = (tile.prefix ? t.of.prefix_row : page) * call.heads + t.head;
    const int line =
        tile.prefix ? call.prefix_start + block * call.prefix_lines : block * call.page_lines;
    uint8_t* to = stage + ((key - tile.key0) >> call.box_shift) * call.box_bytes;
    if (whole) {
      tma_load(to, &call.pages_map, 0, line, full, policy);
    } else if (part < 2) {
      const int values = tile.prefix ? call.prefix_value_lines : call.value_lines;
      tma_load(to + part * box * F::kRowBytes, &call.parts_map, 0,
               line + part * values + token * F::kRowBytes / kSwizzleRow, full, policy);
    } else if constexpr (F::kCodes) {  // whose prefixes have other forms
      const uint8_t* from = call.args.kv.data + int64_t{line} * kSwizzleRow +
                            call.args.kv.page.k_scale + (((part - 2) * 2) << call.page_shift) +
                            2 * token;
      bulk_load(to + 2 * box * F::kRowBytes + (part - 2) * 2 * box, from, 2 * box, full, policy);
    }
  }
}

template <class F>
__device__ __forceinline__ void produce(const Call& call, const Shared<F>& s) {
  const int lane = threadIdx.x % 32, shift = call.page_shift;
  Stage ring;
  Window window;
  each_segment<F>(call, [&](const Item& item, int first, int count, const Deal&) {
    // Keys that several blocks of rows see come again.
    const uint64_t policy = item.of.seq_q * call.group > F::kRows ? evict_last() : evict_first();
    for (int i = first; i < first + count;) {
      const Tile tile = tile_at<F>(item, i, first + count - i);
      i += tile.units;
      const int page = tile.lo >> shift, last = (tile.hi - 1) >> shift;
      if (!tile.prefix && tile.lo < tile.hi &&
          (window.sequence != item.sequence || page < window.first || last >= window.first + 32)) {
        window.sequence = item.sequence;
        window.first = page;
        window.page = 0;
        // Up to the sequence's last, for later items see more keys.
        if (page + lane <= (item.of.seq_kv - 1) >> shift) {
          const int number = call.table[item.sequence * call.table_stride + page + lane];
          if (number >= 0 && number < call.pages) window.page = number;
        }
      }
      barrier_wait(&s.empty[ring.slot], ring.parity ^ 1);
      bring<F>(call, item, window, tile, s.stages + ring.slot * call.stage_bytes,
               &s.full[ring.slot], policy);
      advance(call, ring);
    }
  });
}

// ---- queries -----------------------------------------------------------------------------------

template <class F>
__device__ __forceinline__ void prepare(const Call& call, const Shared<F>& s) {
  const int lane = threadIdx.x % 32;
  Ring<2> ring;
  const auto give = [&](const Segment& segment) {
    if (lane == 0) s.segments[ring.slot] = segment;
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.segment_full[ring.slot]);
    advance(ring);
  };
  if (lane == 0) s.join->from = -1;
  each_segment<F>(call, [&](const Item& item, int first, int count, const Deal& deal) {
    barrier_wait(&s.segment_empty[ring.slot], ring.parity ^ 1);
    Row* rows = s.rows + ring.slot * F::kRows;
    prepare_rows<F>(call, item, s.queries + ring.slot * F::kQueryBytes, rows);
    const Segment segment = {item, first, count};
    if (first > 0 && first + count == item.units) {
      __syncwarp();
      if (lane < F::kRows) s.rows[2 * F::kRows + lane] = rows[lane];
      if (lane == 0) {
        s.join->segment = segment;
        s.join->from = block_of(deal, first_of(deal, blockIdx.x) - first);  // of its first unit
      }
    }
    give(segment);
  });
  barrier_wait(&s.segment_empty[ring.slot], ring.parity ^ 1);
  give({});
}

// ---- results -----------------------------------------------------------------------------------

// A row of what a block has of an item that it has not whole: one that it begins, or another.
template <class F>
__device__ __forceinline__ float* part_of(const Call& call, int block, bool begins, int row) {
  const int part = 2 * block + (begins ? 1 : 0);
  return call.parts + (int64_t{part} * F::kRows + row) * kPartStride<F::kDim>;
}

// What a row has, by a warp: four elements a lane, of those there are.
struct Result {
  float o[4];
  float base, weights, sums;
};
// The sum of `count` results, whose numbers {base, weights, sums} and elements are asked for
// before any of them is there, kAtOnce of the elements at a time.
template <class F, int kAtOnce, class Numbers, class Elements>
__device__ __forceinline__ Result sum_of(int count, const Numbers& numbers,
                                         const Elements& elements) {
  const int lane = threadIdx.x % 32;
  Result r = {{}, -INFINITY, 0.0f, 0.0f};
  float factor = 0.0f;
  for (int k0 = 0; k0 < count; k0 += kAtOnce) {
    float4 x[kAtOnce], own = {-INFINITY, 0.0f, 0.0f, 0.0f};
    const bool next = k0 % 32 == 0;
    if (next && k0 + lane < count) own = numbers(k0 + lane);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      x[k] = {};
      if (k0 + k < count && 4 * lane < F::kDim) x[k] = elements(k0 + k);
    }
    if (next) {
      const float most = fmaxf(r.base, warp_max(own.x)), shift = most == -INFINITY ? 0.0f : most;
      const float before = power_of_two(r.base - shift);
      factor = power_of_two(own.x - shift);
      r.base = most;
      r.weights = r.weights * before + warp_sum(factor * own.y);
      r.sums = r.sums * before + warp_sum(factor * own.z);
#pragma unroll
      for (int i = 0; i < 4; ++i) r.o[i] *= before;
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const float of = __shfl_sync(~0u, factor, (k0 + k) % 32);
      r.o[0] += of * x[k].x;
      r.o[1] += of * x[k].y;
      r.o[2] += of * x[k].z;
      r.o[3] += of * x[k].w;
    }
  }
  return r;
}
// Of results in shared memory, at place `first` and each `step` on.
template <class F>
__device__ __forceinline__ Result sum_of_places(const Shared<F>& s, int first, int step,
                                                int count) {
  return sum_of<F, kWarps>(
      count, [&](int k) { return s.numbers[first + step * k]; },
      [&](int k) {
        return *reinterpret_cast<const float4*>(s.pass + (first + step * k) * F::kPassStride +
                                                4 * static_cast<int>(threadIdx.x % 32));
      });
}

template <class F>
__device__ __forceinline__ void store_result(float* o, float4* numbers, const Result& r) {
  const int lane = threadIdx.x % 32;
  if (4 * lane < F::kDim) {
    *reinterpret_cast<float4*>(o + 4 * lane) = {r.o[0], r.o[1], r.o[2], r.o[3]};
  }
  if (lane == 0) *numbers = {r.base, r.weights, r.sums, 0.0f};
}

// A row of an item to o and lse, by a warp.
template <class F>
__device__ __forceinline__ void finish(const AttentionArgs& a, const Segment& g, const Row& row,
                                       Result r) {
  const int lane = threadIdx.x % 32;
  const bool empty = row.begin == row.end;
  const int64_t start = is_batched(a) ? g.item.sequence : g.item.of.token;
  const float sink =
      present(a.sinks) ? static_cast<const float*>(a.sinks.data)[row.head] : -INFINITY;
  if (sink != -INFINITY) {
    const float most = fmaxf(r.base, sink * kLog2);
    const float factor = power_of_two(r.base - most), own = power_of_two(sink * kLog2 - most);
#pragma unroll
    for (int i = 0; i < 4; ++i) r.o[i] *= factor;
    r.weights = r.weights * factor + own;
    r.sums = r.sums * factor + own;
    r.base = most;
  }
  if (4 * lane < F::kDim) {
    const float inverse = reciprocal(r.weights);
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = empty ? 0.0f : r.o[i] * inverse;
    const int64_t to = start * a.o.strides[0] + row.token * token_stride(a.o) +
                       row.head * head_stride(a.o) + 4 * lane;
    void* p = element(a.o.data, a.o.dtype, to);
    if (a.o.dtype == DType::f32 && (reinterpret_cast<uintptr_t>(p) & 15) == 0) {
      *static_cast<float4*>(p) = {x[0], x[1], x[2], x[3]};
    } else if (a.o.dtype != DType::f32 && (reinterpret_cast<uintptr_t>(p) & 7) == 0) {
      *static_cast<uint2*>(p) = {pair_of<F::kHalf>(x[0], x[1]), pair_of<F::kHalf>(x[2], x[3])};
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) store_f32(a.o.data, a.o.dtype, to + i, x[i]);
    }
  }
  if (lane != 0 || !present(a.lse)) return;
  const int64_t to = start * a.lse.strides[is_batched(a) ? 0 : 1] +
                     row.head * a.lse.strides[a.lse.rank - 2] +
                     row.token * a.lse.strides[a.lse.rank - 1];
  const float shift = r.base == -INFINITY ? 0.0f : r.base;
  static_cast<float*>(a.lse.data)[to] = empty ? sink : (shift + log2f(r.sums)) * kLn2;
}

// The two warps that add up what workers leave of each segment.
template <class F>
__device__ __forceinline__ void finish_segments(const Call& call, const Shared<F>& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kFinishers;
  Ring<2> ring;
  Ring<1> pass;
  while (true) {
    barrier_wait(&s.segment_full[ring.slot], ring.parity);
    const Segment& g = s.segments[ring.slot];
    if (g.count == 0) break;
    const bool whole = g.count == g.item.units;
    for (int row0 = 0; row0 < g.item.rows; row0 += kPassRows) {
      const int left = g.item.rows - row0, count = left < kPassRows ? left : kPassRows;
      barrier_wait(s.pass_full, pass.parity);
      for (int i = warp; i < count; i += kFinishers) {
        const Result r = sum_of_places<F>(s, i, kPassRows, kWarps);
        const int row = row0 + i;
        if (whole) {
          finish<F>(call.args, g, s.rows[ring.slot * F::kRows + row], r);
          continue;
        }
        float* part = part_of<F>(call, blockIdx.x, g.first == 0, row);
        store_result<F>(part, reinterpret_cast<float4*>(part + F::kDim), r);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(s.pass_empty);
      advance(pass);
    }
    if (!whole && g.first + g.count < g.item.units) {
      finishers_sync();
      if (warp == 0 && lane == 0) release(call.there + blockIdx.x, call.call);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.segment_empty[ring.slot]);
    advance(ring);
  }
  finished_sync();
}

// ---- the workers -------------------------------------------------------------------------------

// What a warp has of a segment's rows, for the finishers.
template <class F>
__device__ __forceinline__ void leave_sums(const Shared<F>& s, int rows, Ring<1>& pass,
                                           Sums<F>& t) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int g = 0; g < F::kGroups; ++g) {
    if (8 * g >= rows) break;
    float weights[2], sums[2], zero[2] = {};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      weights[e] = column_sum(t.weights[g][e]);
      sums[e] = column_sum(t.sums[g][e]);
      if constexpr (F::kZeros || F::kShifted) {
        zero[e] = column_sum(t.zeros[g][e]) * (F::kShifted ? 128.0f * kDrop : kDrop);
      }
    }
    for (int row0 = 0; row0 < 8 && 8 * g + row0 < rows; row0 += kPassRows) {
      barrier_wait(s.pass_empty, pass.parity ^ 1);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = 2 * (lane % 4) + e, at = warp * kPassRows + row - row0;
        if (row < row0 || row >= row0 + kPassRows || 8 * g + row >= rows) continue;
        float* to = s.pass + at * F::kPassStride;
#pragma unroll
        for (int m = 0; m < F::kSteps; ++m) {
          const float x = t.o[m][g][e], y = t.o[m][g][2 + e];
          if constexpr (F::kCodes) {
            const float unit = value_unit<F>(m);
            *reinterpret_cast<float2*>(to + 16 * m + 2 * (lane / 4)) = {x * unit - zero[e],
                                                                        y * unit - zero[e]};
          } else {
            to[16 * m + lane / 4] = x;
            to[16 * m + 8 + lane / 4] = y;
          }
        }
        if (lane < 4) {
          const float base = t.max[g][e] == -INFINITY ? -INFINITY : t.base[g][e];
          s.numbers[at] = {base, weights[e], sums[e], 0.0f};
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(s.pass_full);
      advance(pass);
    }
  }
}

// Adds up the parts of the item that ends in this block, by all workers: of few rows several warps
// take one, each some of the parts.
template <class F>
__device__ __forceinline__ void join_parts(const Call& call, const Shared<F>& s) {
  constexpr int kAtOnce = 16;  // more than most calls have
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Segment& segment = s.join->segment;
  const int block = static_cast<int>(blockIdx.x), from = s.join->from, rows = segment.item.rows;
  const int shift = rows > 4 ? 0 : rows > 2 ? 1 : rows > 1 ? 2 : 3;  // log2 of the warps of a row
  const int share = warp & ((1 << shift) - 1), first = from + share;
  const int count = first > block ? 0 : ((block - first) >> shift) + 1;
  for (int k = lane; k < count; k += 32) {
    const int other = first + (k << shift);
    if (other == block) continue;
    while (acquire(call.there + other) != call.call) {
    }
  }
  __syncwarp();
  for (int row = warp >> shift; row < rows; row += kWarps >> shift) {
    const auto part = [&](int k) {
      const int of = first + (k << shift);
      return part_of<F>(call, of, of == from, row);
    };
    const Result r = sum_of<F, kAtOnce>(
        count, [&](int k) { return __ldcg(reinterpret_cast<const float4*>(part(k) + F::kDim)); },
        [&](int k) { return __ldcg(reinterpret_cast<const float4*>(part(k) + 4 * lane)); });
    const int place = (row << shift) + share;
    store_result<F>(s.pass + place * F::kPassStride, s.numbers + place, r);
  }
  workers_sync();
  for (int row = warp; row < rows; row += kWarps) {
    finish<F>(call.args, segment, s.rows[2 * F::kRows + row],
              sum_of_places<F>(s, row << shift, 1, 1 << shift));
  }
  for (int k = from + static_cast<int>(threadIdx.x); k < block; k += kWorkers) call.there[k] = 0;
}

template <class F>
__device__ __forceinline__ void work(const Call& call, const Shared<F>& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Places<F> places(call, warp % 4 * F::kKeys);
  Stage ring;
  Ring<2> next;
  Ring<1> pass;
  int turn = warp / 4;
  while (true) {
    barrier_wait(&s.segment_full[next.slot], next.parity);
    const Segment& g = s.segments[next.slot];
    if (g.count == 0) break;
    const Row* rows = s.rows + next.slot * F::kRows;
    Queries<F> q;
    load_queries<F>(s.queries + next.slot * F::kQueryBytes, rows, q);
    Sums<F> sums;
    for (int i = g.first; i < g.first + g.count; turn ^= 1) {
      const Tile tile = tile_at<F>(g.item, i, g.first + g.count - i);
      i += tile.units;
      if (turn == 0) {
        const int key = tile.key0 + warp % 4 * F::kKeys;
        barrier_wait(&s.full[ring.slot], ring.parity);
        if (key < tile.hi && key + F::kKeys > tile.lo) {
          take_keys<F>(call, g.item, tile, key, s.stages + ring.slot * call.stage_bytes, places,
                       rows, q, sums);
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&s.empty[ring.slot]);
      }
      advance(call, ring);
    }
    leave_sums<F>(s, g.item.rows, pass, sums);
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.segment_empty[next.slot]);
    advance(next);
  }
  finished_sync();
  if (s.join->from >= 0) join_parts<F>(call, s);
}

template <class F>
__global__ void __launch_bounds__(kThreads, 1) attend_pages(const __grid_constant__ Call call) {
  extern __shared__ uint8_t raw[];
  const Shared<F> s = shared_of<F>(raw);
  if (threadIdx.x == 0) {
    for (int i = 0; i < call.stages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 4);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(&s.segment_full[i], 1);
      barrier_init(&s.segment_empty[i], kWarps + kFinishers);
    }
    barrier_init(s.pass_full, kWarps);
    barrier_init(s.pass_empty, kFinishers);
    barrier_init_fence();
    tma_prefetch(call.whole ? &call.pages_map : &call.parts_map);
  }
  __syncthreads();
  wait_for_others();
  // Numbers of pages are asked for once lengths are known: they come closer meanwhile.
  if (static_cast<int>(threadIdx.x) * 32 < call.table_size) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(call.table + threadIdx.x * 32));
  }
  // 64512 registers of 65536.
  if (threadIdx.x >= kWorkers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 104;");
    switch (threadIdx.x / 32 - kWarps) {
      case 0: produce<F>(call, s); break;
      case 1: prepare<F>(call, s); break;
      default:
        if (call.check != nullptr) {
          const int thread = threadIdx.x - (kThreads - 32 * kFinishers);
          check_lens(call.args, call.check, blockIdx.x * 32 * kFinishers + thread,
                     gridDim.x * 32 * kFinishers);
        }
        finish_segments<F>(call, s);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
    work<F>(call, s);
  }
}

// ---- host --------------------------------------------------------------------------------------

static inline bool takes_pages(const AttentionArgs& a) {
  if (!is_paged(a) || present(a.bias) || a.score != Score::softmax) return false;
  if (shows_cut_sums(a)) return false;
  if (head_dim_of(a) != head_dim_v_of(a)) return false;
  if (head_dim_of(a) != 64 && head_dim_of(a) != 128) return false;
  if (present(a.prefix_rows) && a.kv.prefix_format != a.kv.format) return false;
  if (a.q.shape[a.q.rank - 3] * head_count(a) >= kMostRows) return false;
  if (seq_kv_bound(a) >= kMostRows || sequence_count(a) >= kMostRows) return false;
  // Units of all are int.
  const auto d = [](int64_t x) { return static_cast<double>(x); };
  const int64_t tokens = is_batched(a) ? a.q.shape[0] * a.q.shape[1] : a.q.shape[0];
  const double items = d(tokens) * d(head_count(a)) / 8 + d(sequence_count(a) * a.kv.kv_heads);
  if (items * d(seq_kv_bound(a) / kUnit + 2) >= 0x1p31) return false;
  return kv_bytes(a.kv) / kSwizzleRow < 2 * kMostRows && a.kv.pages > 0 &&
         (reinterpret_cast<uintptr_t>(a.kv.data) & 127) == 0;
}

// The same for all head dims.
static inline size_t pages_workspace(const AttentionArgs& args, int) {
  if (!takes_pages(args)) return 0;
  return kMostBlocks * (2 * sizeof(float) * 16 * kPartStride<128> + sizeof(uint64_t));
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

template <class F>
static Status run_form(const AttentionArgs& args, const Ctx& ctx) {
  static std::atomic<uint64_t> asked{0};
  const int blocks = ctx.multiprocessors < kMostBlocks ? ctx.multiprocessors : kMostBlocks;
  const auto limit = [](int64_t window) {
    return static_cast<int>(window < 0 ? -1 : window < kMostRows ? window : kMostRows - 1);
  };
  const Mask mask = make_mask(args.causal, args.window_left, args.window_right);
  Call call;
  call.args = args;
  call.scale =
      args.softmax_scale != 0 ? args.softmax_scale : 1.0f / std::sqrt(static_cast<float>(F::kDim));
  call.group = static_cast<int>(head_count(args) / kv_head_count(args));
  call.left = limit(mask.left);
  call.right = limit(mask.right);
  // A maximum in units of q . k needs a positive scale.
  call.transform = args.softcap != 0 || present(args.alibi_slopes) ||
                   !(args.softmax_scale == 0 || args.softmax_scale > 0x1p-60f);
  const KvCache& c = args.kv;
  const auto numbers = [](const Tensor& t) {
    return present(t) ? static_cast<const int32_t*>(t.data) : nullptr;
  };
  const auto lines = [](int64_t bytes) { return static_cast<int>(bytes / kSwizzleRow); };
  call.sequences = static_cast<int>(sequence_count(args));
  call.heads = static_cast<int>(c.kv_heads);
  call.kv_lens = numbers(args.kv_lens);
  call.cu_seqlens = is_batched(args) ? nullptr : numbers(args.cu_seqlens_q);
  call.prefix_rows = numbers(args.prefix_rows);
  call.prefix_lens = numbers(args.prefix_lens);
  call.tokens = static_cast<int>(args.q.shape[0]);
  call.seq_q = static_cast<int>(args.q.shape[args.q.rank - 3]);
  call.most_keys = static_cast<int>(seq_kv_bound(args));
  call.most_rows = static_cast<int>(c.prefix_rows);
  call.most_prefix = static_cast<int>(c.prefix_tokens);
  call.inverse = static_cast<unsigned>((int64_t{1} << 32) / blocks + (blocks > 1 ? 1 : -1));
  call.pages = static_cast<int>(c.pages);
  call.page_shift = log2_of(c.page_size);
  call.page_lines = lines(c.page.bytes);
  call.value_lines = lines(c.page.v);
  call.prefix_start = lines(kv_prefix(c, 0, 0) - c.data);
  call.prefix_lines = lines(c.prefix.bytes);
  call.prefix_value_lines = lines(c.prefix.v);
  call.whole = c.page_size <= kUnit;
  call.box_shift = log2_of(call.whole ? c.page_size : kUnit);
  call.box_bytes =
      static_cast<int>(kv_block(F::kFormat, int64_t{1} << call.box_shift, F::kDim, F::kDim).bytes);
  call.stage_bytes = ((F::kTile >> call.box_shift) * call.box_bytes + 1023) / 1024 * 1024;
  // An even number: what stands in a stage is always read by the same warps, who meet its tiles in
  // order.
  call.stages = clamped(F::kRing / call.stage_bytes, 2, F::kStagesMost) / 2 * 2;
  call.swizzled_scales = call.whole ? 0x70 : 0;
  call.table = numbers(args.page_table);
  call.table_stride = args.page_table.strides[0];
  const int64_t size =
      (args.page_table.shape[0] - 1) * call.table_stride + args.page_table.shape[1];
  call.table_size = static_cast<int>(size < kMostRows ? size : kMostRows);
  call.check = ctx.check;
  call.there = static_cast<uint64_t*>(ctx.scratch);
  call.parts = reinterpret_cast<float*>(call.there + kMostBlocks);
  call.call = number_of_call();
  MapKey key = {};
  key.data = c.data;
  key.rows = kv_bytes(c) / kSwizzleRow;
  key.columns = key.row_bytes = kSwizzleRow;
  key.element = 1;
  key.one_line = 1;
  key.box_rows = (F::kRowBytes << call.box_shift) / kSwizzleRow;
  cudaError_t code = tile_map(key, &call.parts_map);
  key.box_rows = call.box_bytes / kSwizzleRow;
  if (code == cudaSuccess && call.whole) code = tile_map(key, &call.pages_map);
  if (code == cudaSuccess) code = allow_shared(attend_pages<F>, F::kShared, asked);
  LB_TRY(launched(code));
  return launch(ctx, attend_pages<F>, blocks, kThreads, F::kShared, call);
}

template <KvFormat kFormat, bool kHalf>
static Status run_format(const AttentionArgs& args, const Ctx& ctx) {
  // Rows of most sequences in one item: a product has eight columns.
  const int64_t tokens = is_batched(args) ? args.q.shape[0] * args.q.shape[1] : args.q.shape[0];
  const int64_t rows = tokens * head_count(args) / kv_head_count(args);
  const bool few = rows <= 8 * sequence_count(args);
  const auto run = [&](auto form) { return run_form<decltype(form)>(args, ctx); };
  if (head_dim_of(args) == 64) {
    return few ? run(Form<kFormat, kHalf, 64, 8>()) : run(Form<kFormat, kHalf, 64, 16>());
  }
  return few ? run(Form<kFormat, kHalf, 128, 8>()) : run(Form<kFormat, kHalf, 128, 16>());
}

}  // namespace
}  // namespace lowbit
