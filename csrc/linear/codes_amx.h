// What the two integer rows of AMX share: x quantised into tiles, and the walk over blocks, slices
// of K and groups.
//
// Sums stay in int32 for as long as one scale holds, and at most kMostSteps: 15 * 127 (127 * 127
// for int8) times 65536 columns stay below 2^31. A zero point that is an integer is taken off in
// int32 too, so the only roundings are that of a whole group's sum to f32 and those of the scales.
#pragma once

#include "csrc/linear/codes.h"
#include "csrc/linear/gemm_amx.h"
#include "csrc/linear/panel_avx512.h"

namespace lowbit::amx {

inline constexpr int64_t kStepK = 64;        // columns of a tile of bytes
inline constexpr int64_t kMostSteps = 1024;  // of sums in int32

struct TileScratch {
  TiledX x;         // (stage rounded up to 32)
  float* scale;     // (stage)
  int32_t* x_sums;  // (stage, periods)
  float* sums;      // (threads, kBlockM, kBlockN)
  float* floats;    // (threads, K): a row of x before it is quantised
  int8_t* codes;    // (threads, K rounded up to 64)
  uint8_t* w;       // (threads, two panels of a slice)
};

// A period is what one scale and the int32 sums allow: a group, or kMostSteps of a row without
// groups.
struct Periods {
  PanelBlock block;
  int64_t steps;   // of a row
  int64_t period;  // steps of one
  int64_t count;
  int64_t slice;  // steps that are multiplied at a time
  bool grouped;   // each period has a block of its own
};

static inline Periods periods_of(const Weight& w) {
  Periods p = {};
  p.block = panel_block(w.format, {w.n, w.k});
  p.steps = ceil_div(w.k, kStepK);
  p.grouped = p.block.groups > 1;
  p.period = p.grouped ? p.block.k / kStepK : p.steps < kMostSteps ? p.steps : kMostSteps;
  p.count = ceil_div(p.steps, p.period);
  p.slice = p.count > 1 ? p.period : kSliceSteps;
  return p;
}

static inline size_t carve_tiles(const LinearArgs& args, int threads, void* base, TileScratch* s) {
  const Periods p = periods_of(args.w);
  const int64_t rows = stage_rows(args.x.shape[0]), tiles = round_up(rows, kPairRows) / kTileRows;
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->x = {take<uint8_t>(&at, tiles * p.steps * kTileBytes), p.steps};
  s->scale = take<float>(&at, rows);
  s->x_sums = take<int32_t>(&at, rows * p.count);
  s->sums = take<float>(&at, threads * kBlockM * kBlockN);
  s->floats = take<float>(&at, threads * args.w.k);
  s->codes = take<int8_t>(&at, threads * p.steps * kStepK);
  s->w = take<uint8_t>(&at, threads * 2 * p.slice * kTileBytes);
  return at - reinterpret_cast<uintptr_t>(base);
}

static inline size_t workspace_tiles(const LinearArgs& args, int threads) {
  TileScratch s;
  return carve_tiles(args, threads, nullptr, &s);
}

static inline void stage_tiles(const LinearArgs& args, const Ctx& ctx, const Periods& p,
                               const TileScratch& s, int64_t first, int64_t rows) {
  const int64_t k = args.w.k, padded = p.steps * kStepK;
  parallel_for(ctx.pool, rows, kTileRows, [&](int64_t begin, int64_t end, int thread) {
    int8_t* codes = s.codes + thread * padded;
    for (int64_t i = k; i < padded; ++i) codes[i] = 0;
    for (int64_t m = begin; m < end; ++m) {
      s.scale[m] = stage_codes(args, first + m, s.floats + thread * k, codes);
      for (int64_t i = 0; i < p.count; ++i) {
        const int64_t k0 = i * p.period * kStepK;
        const int64_t k1 = k0 + p.period * kStepK < padded ? k0 + p.period * kStepK : padded;
        int32_t sum = 0;
        for (int64_t j = k0; j < k1; ++j) sum += codes[j];
        s.x_sums[m * p.count + i] = sum;
      }
      put_row(s.x, m, reinterpret_cast<const uint8_t*>(codes));
    }
  });
}

// to(rows, 16) (+)= scale * (from - zero * x_sum), row strides in words. `from` may be `to`.
static inline void scale_sums(const Format& f, const uint8_t* base, const PanelBlock& block,
                              int32_t middle, const int32_t* x_sums, int64_t x_sums_stride,
                              int64_t rows, const void* from, int64_t from_stride, float* to,
                              bool add) {
  const __m512 scale = avx512::load_scales(base + block.scales, f.scale_dtype);
  const bool whole = f.zero_type != ZeroType::f32;
  __m512i zero = _mm512_set1_epi32(middle);
  __m512 part = _mm512_setzero_ps();
  if (f.zero_type == ZeroType::u8) {
    zero =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(base + block.zeros)));
  } else if (f.zero_type == ZeroType::f32) {
    part = _mm512_loadu_ps(base + block.zeros);
  }
  for (int64_t m = 0; m < rows; ++m) {
    const __m512i sum = _mm512_loadu_si512(static_cast<const uint8_t*>(from) + m * from_stride * 4);
    const __m512i x_sum = _mm512_set1_epi32(x_sums[m * x_sums_stride]);
    __m512 value;
    if (whole) {
      value = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, x_sum)));
    } else {
      value = _mm512_fnmadd_ps(part, _mm512_cvtepi32_ps(x_sum), _mm512_cvtepi32_ps(sum));
    }
    float* at = to + m * kBlockN;
    const __m512 before = add ? _mm512_loadu_ps(at) : _mm512_setzero_ps();
    _mm512_storeu_ps(at, _mm512_fmadd_ps(value, scale, before));
  }
}

// decode(codes, bytes, begin, steps, to): steps [begin, begin + steps) of a block's codes as tiles,
// in `to` or where
//   they lie. `middle`: the zero point of a symmetric weight.
template <class Dot, class Decode>
static inline Status run_tiles(const LinearArgs& args, const Ctx& ctx, int32_t middle,
                               const Decode& decode) {
  const int64_t m_all = args.x.shape[0], stage = stage_rows(m_all);
  const Format& f = args.w.format;
  const Periods p = periods_of(args.w);
  TileScratch s;
  carve_tiles(args, pool_threads(ctx.pool), ctx.scratch, &s);
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    stage_tiles(args, ctx, p, s, first, rows);
    const auto block = [&](int thread, int64_t n0, int64_t panels, int64_t m0, int64_t height,
                           float* sums) {
      if (p.steps == 0) {
        for (int64_t i = 0; i < height * kBlockN; ++i) sums[i] = 0.0f;
        return;
      }
      alignas(64) int32_t products[kPairRows * kPairRows];
      uint8_t* buffer = s.w + thread * 2 * p.slice * kTileBytes;
      const auto base = [&](int64_t panel, int64_t period) {
        const int64_t group = p.grouped ? period : 0;
        return args.w.data + ((n0 / kPanel + panel) * p.block.groups + group) * p.block.bytes;
      };
      configure_tiles();
      for (int64_t step = 0; step < p.steps; step += p.slice) {
        const int64_t count = p.steps - step < p.slice ? p.steps - step : p.slice;
        const int64_t period = step / p.period;
        const int64_t begin = p.grouped ? 0 : step;
        for (int64_t panel = 0; panel < panels; panel += 2) {
          const auto tiles = [&](int64_t which) {
            return decode(base(panel + which, period), p.block.codes, begin, count,
                          buffer + which * p.slice * kTileBytes);
          };
          const PairW w = {tiles(0), panel + 1 < panels ? tiles(1) : nullptr};
          for (int64_t m = 0; m < height; m += kPairRows) {
            const int64_t left = height - m < kPairRows ? height - m : kPairRows;
            float* to = sums + m * kBlockN + panel * kPanel;
            if (p.count == 1) {
              multiply_pair<Dot>(s.x, m0 + m, left, step, count, w, to, kBlockN, step > 0);
              continue;
            }
            multiply_pair<Dot>(s.x, m0 + m, left, step, count, w, products, kPairRows, false);
            for (int64_t which = 0; which < (w.second == nullptr ? 1 : 2); ++which) {
              scale_sums(f, base(panel + which, period), p.block, middle,
                         s.x_sums + (m0 + m) * p.count + period, p.count, left,
                         products + which * kPanel, kPairRows, to + which * kPanel, period > 0);
            }
          }
        }
      }
      release_tiles();
      if (p.count > 1) return;
      for (int64_t panel = 0; panel < panels; ++panel) {
        float* to = sums + panel * kPanel;
        scale_sums(f, base(panel, 0), p.block, middle, s.x_sums + m0, 1, height, to, kBlockN, to,
                   false);
      }
    };
    for_blocks(args, ctx.pool, first, rows, kPairRows, s.scale, s.sums, block);
  }
  return ok();
}

static constexpr LinearSpec tile_spec(KindSet kinds) {
  LinearSpec spec = code_spec(kinds);
  spec.group_multiple = kStepK;
  spec.m_min = kLeastM;
  return spec;
}

}  // namespace lowbit::amx
