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
  float* sums;      // (threads, rows, columns of a block)
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
  int64_t slice;  // steps that are walked at a time: whole periods, or a part of the only one
  bool grouped;   // each period has a block of its own
};

static inline Periods periods_of(const Weight& w) {
  Periods p = {};
  p.block = panel_block(w.format, {w.n, w.k});
  p.steps = ceil_div(w.k, kStepK);
  p.grouped = p.block.groups > 1;
  p.period = p.grouped ? p.block.k / kStepK : p.steps < kMostSteps ? p.steps : kMostSteps;
  p.count = ceil_div(p.steps, p.period);
  p.slice = p.count == 1             ? kSliceSteps
            : p.period < kSliceSteps ? kSliceSteps / p.period * p.period
                                     : p.period;
  return p;
}

static inline size_t carve_tiles(const LinearArgs& args, int threads, void* base, TileScratch* s) {
  const Periods p = periods_of(args.w);
  const int64_t rows = stage_rows(args.x.shape[0]), tiles = round_up(rows, kPairRows) / kTileRows;
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->x = {take<uint8_t>(&at, tiles * p.steps * kTileBytes), p.steps};
  s->scale = take<float>(&at, rows);
  s->x_sums = take<int32_t>(&at, rows * p.count);
  s->sums = take<float>(&at, threads * block_words(rows));
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

// to(rows, 16) (+)= scale * (from - zero * x_sum), strides in words. `from` may be `to`. `middle`
// is the zero point of a weight that stores none; 0 where the codes are signed.
static inline void scale_sums(const Format& f, const uint8_t* base, const PanelBlock& block,
                              int32_t middle, const int32_t* x_sums, int64_t x_sums_stride,
                              int64_t rows, const void* from, int64_t from_stride, float* to,
                              int64_t to_stride, bool add) {
  const __m512 scale = avx512::load_scales(base + block.scales, f.scale_dtype);
  const auto each = [&](const auto& value_of) {
    for (int64_t m = 0; m < rows; ++m) {
      const __m512i sum =
          _mm512_loadu_si512(static_cast<const uint8_t*>(from) + m * from_stride * 4);
      float* at = to + m * to_stride;
      const __m512 before = add ? _mm512_loadu_ps(at) : _mm512_setzero_ps();
      _mm512_storeu_ps(at, _mm512_fmadd_ps(value_of(m, sum), scale, before));
    }
  };
  const auto x_sum = [&](int64_t m) { return _mm512_set1_epi32(x_sums[m * x_sums_stride]); };
  if (f.zero_type == ZeroType::f32) {
    const __m512 zero = _mm512_loadu_ps(base + block.zeros);
    each([&](int64_t m, __m512i sum) {
      return _mm512_fnmadd_ps(zero, _mm512_cvtepi32_ps(x_sum(m)), _mm512_cvtepi32_ps(sum));
    });
  } else if (f.zero_type == ZeroType::u8 || middle != 0) {
    const __m512i zero = f.zero_type == ZeroType::none
                             ? _mm512_set1_epi32(middle)
                             : _mm512_cvtepu8_epi32(_mm_loadu_si128(
                                   reinterpret_cast<const __m128i*>(base + block.zeros)));
    each([&](int64_t m, __m512i sum) {
      return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, x_sum(m))));
    });
  } else {
    each([](int64_t, __m512i sum) { return _mm512_cvtepi32_ps(sum); });
  }
}

// decode(codes, bytes, begin, steps, to): steps [begin, begin + steps) of a block's codes as tiles,
// in `to` or where
//   they lie. `in_place`: they mostly lie where they are.
template <class Dot, class Decode>
static inline Status run_tiles(const LinearArgs& args, const Ctx& ctx, bool in_place,
                               int32_t middle, const Decode& decode) {
  const int64_t m_all = args.x.shape[0], stage = stage_rows(m_all);
  const Format& f = args.w.format;
  const Periods p = periods_of(args.w);
  TileScratch s;
  carve_tiles(args, pool_threads(ctx.pool), ctx.scratch, &s);
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    stage_tiles(args, ctx, p, s, first, rows);
    const auto block = [&](int thread, int64_t panel0, int64_t panels, int64_t m0, int64_t height,
                           float* sums, int64_t stride) {
      if (p.steps == 0) {
        for (int64_t i = 0; i < height * stride; ++i) sums[i] = 0.0f;
        return;
      }
      alignas(64) int32_t products[kPairRows * kPairRows];
      uint8_t* buffer = s.w + thread * 2 * p.slice * kTileBytes;
      const auto base = [&](int64_t panel, int64_t period) {
        const int64_t group = p.grouped ? period : 0;
        return args.w.data + ((panel0 + panel) * p.block.groups + group) * p.block.bytes;
      };
      // Tiles of panel + which for `count` steps: all of one block of the panel, or a few of them.
      const auto tiles = [&](int64_t panel, int64_t which, int64_t step, int64_t count) {
        uint8_t* to = buffer + which * p.slice * kTileBytes;
        if (!p.grouped) return decode(base(panel + which, 0), p.block.codes, step, count, to);
        if (count <= p.period) {
          return decode(base(panel + which, step / p.period), p.block.codes, 0, count, to);
        }
        for (int64_t i = 0; i < count; i += p.period) {
          const int64_t part = count - i < p.period ? count - i : p.period;
          uint8_t* at = to + i * kTileBytes;
          const uint8_t* from =
              decode(base(panel + which, (step + i) / p.period), p.block.codes, 0, part, at);
          if (from != at) std::memcpy(at, from, static_cast<size_t>(part * kTileBytes));
        }
        return static_cast<const uint8_t*>(to);
      };
      configure_tiles();
      for (int64_t step = 0; step < p.steps; step += p.slice) {
        const int64_t count = p.steps - step < p.slice ? p.steps - step : p.slice;
        const int64_t next = step + p.slice < p.steps ? step + p.slice : step;
        for (int64_t panel = 0; panel < panels; panel += 2) {
          const PairW w = {tiles(panel, 0, step, count),
                           panel + 1 < panels ? tiles(panel, 1, step, count) : nullptr};
          const bool last = panel + 2 >= panels;
          const uint8_t* soon =
              base(last ? 0 : panel + 2, 0) + (p.grouped ? 0 : (last ? next : step) * kTileBytes);
          const PairW next_w = {soon, soon + p.block.groups * p.block.bytes};
          const int64_t calls = in_place && !p.grouped ? ceil_div(height, kPairRows) : 0;
          for (int64_t m = 0; m < height; m += kPairRows) {
            const int64_t left = height - m < kPairRows ? height - m : kPairRows;
            float* to = sums + m * stride + panel * kPanel;
            Ahead ahead = ahead_of(s.x, m0, m, panel / 2, next, next_w, calls);
            if (p.count == 1) {
              multiply_pair<Dot>(s.x, m0 + m, left, step, w, count, to, stride, step > 0, ahead);
              continue;
            }
            for (int64_t i = 0; i < count; i += p.period) {
              const int64_t part = count - i < p.period ? count - i : p.period;
              const int64_t period = (step + i) / p.period;
              const PairW at = {w.first + i * kTileBytes,
                                w.second == nullptr ? nullptr : w.second + i * kTileBytes};
              multiply_pair<Dot>(s.x, m0 + m, left, step + i, at, part, products, kPairRows, false,
                                 ahead);
              for (int64_t which = 0; which < (w.second == nullptr ? 1 : 2); ++which) {
                scale_sums(f, base(panel + which, period), p.block, middle,
                           s.x_sums + (m0 + m) * p.count + period, p.count, left,
                           products + which * kPanel, kPairRows, to + which * kPanel, stride,
                           step + i > 0);
              }
              ahead.upper += part * kXLines * 64;
              ahead.lower += part * kXLines * 64;
            }
          }
        }
      }
      release_tiles();
      if (p.count > 1) return;
      for (int64_t panel = 0; panel < panels; ++panel) {
        float* to = sums + panel * kPanel;
        scale_sums(f, base(panel, 0), p.block, middle, s.x_sums + m0, 1, height, to, stride, to,
                   stride, false);
      }
    };
    for_amx_blocks(args, ctx.pool, first, rows, s.scale, s.sums, block);
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
