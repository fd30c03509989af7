// The float GEMM that the vector rows share, whatever their instruction set: a panel of w is turned
// to f32 a slice of K at a time and multiplied with every row of x in the block before the next
// slice. With one row of x the kernel's own product of packed weights and a vector is used instead.
#pragma once

#include "csrc/linear/panels.h"

namespace lowbit {

inline constexpr int64_t kSliceK = 256;  // 16 KiB of f32 panel: half of L1, the rest is for x
// Floats of x that a block may read again and again from L2: a quarter of 1 MiB. With more, all
// panels take a slice of K before the next slice.
inline constexpr int64_t kRowsInL2 = 64 * 1024;

struct FloatScratch {
  float* x;      // (stage, K rounded up to 8)
  float* scale;  // (stage)
  float* sums;   // (threads, kBlockM, kBlockN)
  float* slice;  // (threads, kSliceK, 16)
};

static inline size_t carve_f32(const LinearArgs& args, int threads, void* base, FloatScratch* s) {
  const int64_t m = args.x.shape[0], rows = stage_rows(m);
  const bool direct = m > 1 && is_plain_f32(args);
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->x = take<float>(&at, direct ? 0 : rows * round_up(args.w.k, 8));
  s->scale = take<float>(&at, direct ? 0 : rows);
  s->sums = take<float>(&at, threads * kBlockM * kBlockN);
  s->slice = take<float>(&at, threads * kSliceK * kPanel);
  return at - reinterpret_cast<uintptr_t>(base);
}

static inline size_t workspace_f32(const LinearArgs& args, int threads) {
  FloatScratch s;
  return carve_f32(args, threads, nullptr, &s);
}

// tiles(w, x, x_stride, rows, kc, sums, sums_stride, add): sums(rows, 16) (+)= x(rows, kc) *
//   w(kc, 16), strides in floats. `tile` is the most rows that it takes at a time.
// decode(panel, k0, kc, to): columns [k0, k0 + kc) of a panel as f32 (kc, 16): in `to`, or where
//   they lie already. k0 is a multiple of kSliceK.
// prepare(x): what the kernel does to a single x before `vector` reads it, on one thread; false
//   where `vector` can't serve this x, which is then as it was.
// vector(panel, x, sums): sums[0..16) = the panel times one x, which is padded with zeros to a
//   multiple of 8.
template <class Tiles, class Decode, class Prepare, class Vector>
static inline Status run_slices(const LinearArgs& args, const Ctx& ctx, int64_t tile,
                                const Tiles& tiles, const Decode& decode, const Prepare& prepare,
                                const Vector& vector) {
  const int64_t m_all = args.x.shape[0], k = args.w.k, padded = round_up(k, 8);
  FloatScratch s;
  carve_f32(args, pool_threads(ctx.pool), ctx.scratch, &s);
  bool vector_serves = false;
  if (m_all == 1) {
    for (int64_t i = k; i < padded; ++i) s.x[i] = 0.0f;
    s.scale[0] = stage_floats(args, 0, s.x);
    vector_serves = prepare(s.x);
  }
  if (vector_serves) {
    for_blocks(args, ctx.pool, 0, 1, 1, s.scale, s.sums,
               [&](int, int64_t n0, int64_t panels, int64_t, int64_t, float* sums) {
                 for (int64_t p = 0; p < panels; ++p) {
                   vector(n0 / kPanel + p, s.x, sums + p * kPanel);
                 }
               });
    return ok();
  }
  const bool direct = is_plain_f32(args);
  const int64_t stage = stage_rows(m_all);
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    const float* x = s.x;
    int64_t x_stride = padded;
    if (direct) {
      x_stride = args.x.strides[0];
      x = static_cast<const float*>(args.x.data) + first * x_stride;
    } else {
      parallel_for(ctx.pool, rows, 8, [&](int64_t begin, int64_t end, int) {
        for (int64_t m = begin; m < end; ++m) {
          s.scale[m] = stage_floats(args, first + m, s.x + m * padded);
        }
      });
    }
    for_blocks(
        args, ctx.pool, first, rows, tile, direct ? nullptr : s.scale, s.sums,
        [&](int thread, int64_t n0, int64_t panels, int64_t m0, int64_t height, float* sums) {
          float* slice = s.slice + thread * kSliceK * kPanel;
          if (k == 0) {
            for (int64_t i = 0; i < height * kBlockN; ++i) sums[i] = 0.0f;
          }
          const auto multiply = [&](int64_t p, int64_t k0) {
            const int64_t kc = k - k0 < kSliceK ? k - k0 : kSliceK;
            const float* w = decode(n0 / kPanel + p, k0, kc, slice);
            tiles(w, x + m0 * x_stride + k0, x_stride, height, kc, sums + p * kPanel, kBlockN,
                  k0 > 0);
          };
          if (height * k <= kRowsInL2) {  // front to back through each panel
            for (int64_t p = 0; p < panels; ++p) {
              for (int64_t k0 = 0; k0 < k; k0 += kSliceK) multiply(p, k0);
            }
          } else {
            for (int64_t k0 = 0; k0 < k; k0 += kSliceK) {
              for (int64_t p = 0; p < panels; ++p) multiply(p, k0);
            }
          }
        });
  }
  return ok();
}

}  // namespace lowbit
