// Few rows of x against codes of any width, by mma.sync, on Hopper: w goes past once.
//
// A block of 16 warps has a multiprocessor to itself and x in its shared memory, in the order in
// which lanes multiply it. `slices` of its warps share K, the others take other strips of 16 rows
// of w; every warp walks over its strips, one slice of K after the other, and keeps its own ring of
// cp.async copies filled across them, so that nothing starts or ends but the block itself. At the
// end of a strip the slices' sums are added in their order and finished. Where x is larger than
// shared memory a cluster of blocks shares K too. How K is cut depends on N and K, and on M where x
// does not fit.
//
// FewW says how codes lie and how they become fragments: few_codes_sm90a.cuh.
#pragma once

#include "csrc/cuda/cluster.cuh"
#include "csrc/cuda/cp_async.cuh"
#include "csrc/cuda/launch.cuh"
#include "csrc/cuda/mma.cuh"
#include "csrc/linear/finish.cuh"
#include "csrc/linear/x_rows_sm80.cuh"

namespace lowbit {
namespace {

inline constexpr int kFewWarps = 16, kFewThreads = kFewWarps * 32;
inline constexpr int kFewShared = 227 * 1024;
inline constexpr int kFewStride = 20;  // of a column of 16 sums; keeps a warp's writes apart

struct Few {
  const void* x;     // rows begin at multiples of 16 bytes
  int64_t x_stride;  // in elements
  const uint8_t* w;
  int64_t w_stride;       // of a row
  const uint8_t* scales;  // of groups of K, where they lie apart from the codes; or null
  int32_t k, steps, strips;
  int32_t groups, group_shift;  // of a row of w; a group has 2^shift steps
  int32_t row_shift;            // 2^shift rows share scales
  int32_t slices;               // warps that share K; 16 is a multiple of it
  int32_t first_bytes;          // of shared memory before x
  DType scale_dtype;
  Finish finish;
};

// What is multiplied: x and codes in 16 bits.
enum class FewX { f16, bf16 };

// Of the warps that share K.
__device__ __forceinline__ void few_sync(int sub, int slices) {
  if (slices > 1) {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + sub), "r"(slices * 32) : "memory");
  } else {
    __syncwarp();
  }
}

// kTiles: of 8 rows of x.
template <class W_, int kTiles_>
struct FewShape {
  using W = W_;
  static constexpr int kTiles = kTiles_, kTokens = kTiles * 8;
  static constexpr int kFlight = kTiles == 1 ? 4096 : kTiles == 2 ? 3072 : 2048;  // of a warp
  static constexpr int kDepth = kFlight / W::kCodes + (kTiles == 2 && W::kCodes == 1024 ? 0 : 1);
  static constexpr int kStage = W::kCodes + W::kScales;
  static constexpr int kRing = kFewWarps * kDepth * kStage;
  static constexpr int kPart = kTokens * kFewStride * 4;  // bytes
  static constexpr int kTurns = kTiles == 1 ? 2 : 1;      // strips whose sums are kept at a time
  static constexpr int kParts = kFewWarps * kTurns * kPart;
  static constexpr int kStepX = W::kStepK * 2;  // bytes of x for a step and row
};

template <class S>
__global__ void __launch_bounds__(kFewThreads, 1) few_kernel(const __grid_constant__ Few p) {
  using W = typename S::W;
  extern __shared__ __align__(128) uint8_t few_shared[];
  uint8_t* const shared = few_shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane / 4, q = lane % 4;
  const int blocks = gridDim.y, rank = blockIdx.y;  // of the cluster
  const int slices = p.slices, slice = warp % slices, sub = warp / slices;
  const int groups = gridDim.x * (kFewWarps / slices);
  const int group = blockIdx.x * (kFewWarps / slices) + sub;
  const auto strip_of = [&](int i) {  // strips * groups < 2^32: few_plan()
    return static_cast<int>(static_cast<uint32_t>(p.strips) * static_cast<uint32_t>(i) /
                            static_cast<uint32_t>(groups));
  };
  const int first = strip_of(group), last = strip_of(group + 1);
  const int cuts = blocks * slices, cut = rank * slices + slice;
  const int begin = p.steps * cut / cuts, end = p.steps * (cut + 1) / cuts;
  const int own_begin = p.steps * rank / blocks, own_end = p.steps * (rank + 1) / blocks;
  const int m = p.finish.m;

  uint8_t* const ring = shared + warp * (S::kDepth * S::kStage);
  float* const parts = reinterpret_cast<float*>(shared + S::kRing);
  float* const sums = reinterpret_cast<float*>(shared + S::kRing + S::kParts);  // of a cluster
  uint8_t* const sX = shared + p.first_bytes;  // [k / 32][m][4 lanes][16 bytes]

  // The walk of the copies: strips, and steps inside.
  int ask_strip = begin < end ? first : last, ask_step = begin;
  int ask_slot = 0;
  const auto ask = [&] {
    if (ask_strip < last) {
      W::copy(p, ask_strip, ask_step, smem_address(ring) + ask_slot * S::kStage, lane);
      if (++ask_step == end) {
        ask_step = begin;
        ++ask_strip;
      }
    }
    cp_async_commit();
    if (++ask_slot == S::kDepth) ask_slot = 0;
  };
  wait_for_others();
  // x is asked for before w: behind all that the rings ask for it would wait for some microseconds.
  W::fill(p, own_begin * W::kStepK, own_end * W::kStepK, sX, [&] {
#pragma unroll
    for (int i = 0; i < S::kDepth - 1; ++i) ask();
  });
  __syncthreads();

  // A lane's columns of x; beyond the last one it reads that again: nobody looks at those.
  const uint8_t* mine[S::kTiles];
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) mine[t] = sX + min(t * 8 + quad, m - 1) * 64 + q * 16;
  const int block_x = m * 64;  // bytes of 32 columns of x
  int slot = 0;
  for (int strip = first; strip < last; ++strip) {
    float part[S::kTiles][4] = {};
    float total[S::kTiles][4] = {};
    for (int step = begin; step < end; ++step) {
      cp_async_wait<S::kDepth - 2>();
      __syncwarp();
      ask();  // into the slot that was read last
      const uint8_t* const at = ring + slot * S::kStage;
      if (++slot == S::kDepth) slot = 0;
      int x_at = (step - own_begin) * (S::kStepX / 64) * block_x;
      W codes(at, lane);
      unrolled<W::kBlocks>([&](auto index) {
        constexpr int kBlock = decltype(index)::value;
        uint32_t a[2][4];
        codes.template fragments<kBlock>(a);
        uint4 x[S::kTiles];
#pragma unroll
        for (int t = 0; t < S::kTiles; ++t) x[t] = *reinterpret_cast<const uint4*>(mine[t] + x_at);
        x_at += block_x;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int t = 0; t < S::kTiles; ++t) {
            mma_16bit<W::kX == FewX::f16>(part[t], a[h], h == 0 ? x[t].x : x[t].z,
                                          h == 0 ? x[t].y : x[t].w);
          }
          if constexpr (W::kParts > 0) {
            constexpr int kPer = W::kBlocks * 2 / W::kParts;  // products of a part
            const int done = kBlock * 2 + h + 1;
            if (done % kPer != 0) continue;
            float scale[2];
            codes.scales(p, strip, step, done / kPer - 1, scale);
#pragma unroll
            for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                total[t][i] = fmaf(part[t][i], scale[i / 2], total[t][i]);
                part[t][i] = 0.0f;
              }
            }
          }
        }
      });
    }
    // The slices' sums of a strip, [token][row], of kTurns strips in turn.
    const int turn = (strip - first) % S::kTurns;
    float* const own = parts + (warp * S::kTurns + turn) * (S::kPart / 4);
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        own[(t * 8 + q * 2 + i % 2) * kFewStride + quad + i / 2 * 8] =
            W::kParts > 0 ? total[t][i] : part[t][i];
      }
    }
    few_sync(sub, slices);
    if (slice == ((strip - first) & (slices - 1)))
      for (int item = lane; item < 2 * m; item += 32) {
        const int token = item / 2, c = item % 2 * 8;
        float v[8] = {};
        for (int r = 0; r < slices; ++r) {
          const float* const from = parts +
                                    ((sub * slices + r) * S::kTurns + turn) * (S::kPart / 4) +
                                    token * kFewStride + c;
          float u[8];
          *reinterpret_cast<float4*>(u) = *reinterpret_cast<const float4*>(from);
          *reinterpret_cast<float4*>(u + 4) = *reinterpret_cast<const float4*>(from + 4);
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            v[j] += u[j];
          }
        }
        if (blocks == 1) {
          if (strip * 16 + c < p.finish.n) {
            scale_row(p.finish, token, strip * 16 + c, v);
            finish_row(p.finish, token, strip * 16 + c, v);
          }
        } else {
          float* const to = sums + ((strip - strip_of(group - sub)) * S::kTokens + token) * 16 + c;
#pragma unroll
          for (int j = 0; j < 8; ++j) to[j] = v[j];
        }
      }
    if (S::kTurns == 1) few_sync(sub, slices);
    if (S::kTurns == 2 && slices == 1) __syncwarp();
  }
  if (blocks == 1) return;
  cluster_sync();
  const int cluster_first = strip_of(group - sub);
  const int items = (strip_of(group - sub + kFewWarps / slices) - cluster_first) * m * 2;
  for (int i = threadIdx.x * blocks + rank; i < items; i += kFewThreads * blocks) {
    const int strip = i / (m * 2), token = i / 2 % m, c = i % 2 * 8;
    const uint32_t at = smem_address(sums + (strip * S::kTokens + token) * 16 + c);
    float v[8] = {};
    for (int r = 0; r < blocks; ++r) {
      float u[8];
      *reinterpret_cast<float4*>(u) = cluster_load(cluster_address(at, r));
      *reinterpret_cast<float4*>(u + 4) = cluster_load(cluster_address(at + 16, r));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        v[j] += u[j];
      }
    }
    const int n = (cluster_first + strip) * 16 + c;
    if (n >= p.finish.n) continue;
    scale_row(p.finish, token, n, v);
    finish_row(p.finish, token, n, v);
  }
  cluster_sync_read();
}

// How a call is cut.
struct FewPlan {
  int cluster, slices, blocks, first_bytes, shared;  // cluster 0: it does not fit
};

template <class S>
static FewPlan few_plan(const Few& p, int places) {
  using W = typename S::W;
  FewPlan plan = {};
  const int m = p.finish.m;
  for (int cluster = 1; cluster <= 8; cluster *= 2) {
    const int clusters = places / cluster;
    if (clusters == 0) return plan;
    const int steps = static_cast<int>(ceil_div(p.steps, cluster));
    // As few slices as keep all places as busy as the best number does: fewer sums to add.
    int slices = 16;
    int64_t best = 0;
    for (int s = 16; s >= 1; s /= 2) {
      const int64_t groups = int64_t{clusters} * (16 / s);
      const int64_t busy = 1000 * p.strips / (groups * ceil_div(p.strips, groups));
      if (s < 16 && busy + 20 < best) continue;
      best = busy > best ? busy : best;
      slices = s;
    }
    const int64_t groups = int64_t{clusters} * (16 / slices);
    if (p.strips * groups >= int64_t{1} << 32) return plan;
    const int64_t own = ceil_div(p.strips, clusters) + 1;
    const int sums = cluster == 1 ? 0 : static_cast<int>(own) * S::kTokens * 64;
    const int first = static_cast<int>(round_up(S::kRing + S::kParts + sums, 128));
    const int64_t shared = first + int64_t{steps} * m * S::kStepX;
    if (shared > kFewShared) continue;
    const int64_t wanted = ceil_div(p.strips, 16 / slices);
    plan = {cluster, slices, static_cast<int>(wanted < clusters ? wanted : clusters), first,
            static_cast<int>(shared)};
    return plan;
  }
  return plan;
}

template <class S>
static Status launch_few(Few p, const FewPlan& plan, const Ctx& ctx) {
  static std::atomic<uint64_t> asked = 0;
  LB_TRY(launched(allow_shared(few_kernel<S>, kFewShared, asked)));
  p.slices = plan.slices;
  p.first_bytes = plan.first_bytes;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {1, static_cast<unsigned>(plan.cluster), 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  const int skip = plan.cluster > 1 ? 0 : 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.cluster));
  config.blockDim = dim3(kFewThreads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared);
  config.stream = static_cast<cudaStream_t>(ctx.stream);
  config.attrs = attributes + skip;
  config.numAttrs = (ctx.early ? 2 : 1) - skip;
  return launched(cudaLaunchKernelEx(&config, few_kernel<S>, p));
}

// Rows [from, from + count) of x.
static inline Few few_part(Few p, int from, int count) {
  const Finish& f = p.finish;
  p.x = static_cast<const uint8_t*>(p.x) + from * p.x_stride * 2;
  if (f.x_scale != nullptr) p.finish.x_scale = f.x_scale + from;
  const auto size = [](DType t) { return t == DType::f32 ? 4 : 2; };
  if (f.residual != nullptr) {
    p.finish.residual =
        static_cast<const uint8_t*>(f.residual) + from * f.residual_stride * size(f.residual_dtype);
  }
  p.finish.out = static_cast<uint8_t*>(f.out) + from * f.out_stride * size(f.out_dtype);
  p.finish.m = count;
  return p;
}

template <class W, int kTiles>
static bool few_launched(const Few& p, const Ctx& ctx, Status* status) {
  using S = FewShape<W, kTiles>;
  const FewPlan plan = few_plan<S>(p, ctx.multiprocessors);
  if (plan.cluster > 0) *status = launch_few<S>(p, plan, ctx);
  return plan.cluster > 0;
}

// Up to 16 rows of x; those that do not fit together go in halves.
template <class W>
static Status run_few(const Few& p, const Ctx& ctx) {
  const int m = p.finish.m;
  Status status = ok();
  if (m <= 8 ? few_launched<W, 1>(p, ctx, &status) : few_launched<W, 2>(p, ctx, &status)) {
    return status;
  }
  if (m == 1) return error(Code::unsupported, "linear: K = %d is too long", p.k);
  const int half = (m + 1) / 2;
  LB_TRY((run_few<W>(few_part(p, 0, half), ctx)));
  return run_few<W>(few_part(p, half, m - half), ctx);
}

}  // namespace
}  // namespace lowbit
