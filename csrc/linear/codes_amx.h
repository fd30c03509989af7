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
  uint8_t* w;       // (threads, a pair of panels of a slice)
};

// A period is what one scale and the int32 sums allow: a group, or kMostSteps of a row without
// groups.
struct Periods {
  PanelBlock block;
  Walk walk;
  int64_t count;
  bool grouped;  // each period has a block of its own
};

static inline Periods periods_of(const Weight& w) {
  Periods p = {};
  p.block = panel_block(w.format, {w.n, w.k});
  const int64_t steps = ceil_div(w.k, kStepK);
  p.grouped = p.block.groups > 1;
  int64_t period = p.grouped ? p.block.k / kStepK : steps < kMostSteps ? steps : kMostSteps;
  if (period == 0) period = 1;  // K = 0
  const int64_t slice = period >= steps        ? kSliceSteps
                        : period < kSliceSteps ? kSliceSteps / period * period
                                               : period;
  p.walk = {steps, period, slice};
  p.count = ceil_div(steps, period);
  return p;
}

static inline size_t carve_tiles(const LinearArgs& args, int threads, void* base, TileScratch* s) {
  const Periods p = periods_of(args.w);
  const int64_t rows = stage_rows(args.x.shape[0]), steps = p.walk.steps, slice = p.walk.slice;
  const int64_t bands = round_up(rows, kPairRows) / kTileRows;
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  s->x = {take<uint8_t>(&at, bands * steps * kTileBytes), steps, slice, bands};
  s->scale = take<float>(&at, rows);
  s->x_sums = take<int32_t>(&at, rows * p.count);
  s->sums = take<float>(&at, threads * block_words(rows));
  s->w = take<uint8_t>(&at, threads * kPairPanels * slice * kTileBytes);
  return at - reinterpret_cast<uintptr_t>(base);
}

static inline size_t workspace_tiles(const LinearArgs& args, int threads) {
  TileScratch s;
  return carve_tiles(args, threads, nullptr, &s);
}

// 16 values as codes: what codes_of() makes of them. `inverse` is 1 / scale: a product with it is
// less than 2^-15 from the quotient, so only one that is nearly between two codes has to be
// divided.
static inline __m128i codes_16(__m512 x, __m512 scale, __m512 inverse) {
  const __m512 magic = _mm512_set1_ps(0x1.8p23f), half = _mm512_set1_ps(0.5f - 0x1p-14f);
  const __m512 q = _mm512_mul_ps(x, inverse);
  __m512 r = _mm512_add_ps(q, magic);
  const __m512 off = _mm512_abs_ps(_mm512_sub_ps(q, _mm512_sub_ps(r, magic)));
  if (_mm512_cmp_ps_mask(off, half, _CMP_GT_OQ) != 0) {
    r = _mm512_add_ps(_mm512_div_ps(x, scale), magic);
  }
  return _mm512_cvtepi32_epi8(_mm512_castps_si512(r));
}

// Row m of x into tiles as row `to`, and the sums of its codes by period. Returns its scale.
static inline float stage_row(const LinearArgs& args, const Periods& p, const TiledX& tiled,
                              int64_t m, int64_t to, int32_t* sums) {
  const DType dtype = args.x.dtype;
  const int64_t k = args.w.k, bytes = dtype_bytes(dtype), whole = k / kStepK;
  const uint8_t* from = static_cast<const uint8_t*>(args.x.data) + m * args.x.strides[0] * bytes;
  alignas(64) uint8_t tail[kStepK * 4] = {};
  std::memcpy(tail, from + whole * kStepK * bytes,
              static_cast<size_t>((k - whole * kStepK) * bytes));
  const auto step_at = [&](int64_t step) {
    return step < whole ? from + step * kStepK * bytes : tail;
  };
  float scale;
  if (dtype == DType::i8) {
    scale = code_scale(args, m);
  } else {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i largest = _mm512_setzero_si512();
    for (int64_t step = 0; step < tiled.steps; ++step) {
      const uint8_t* x = step_at(step);
      for (int64_t i = 0; i < kStepK; i += 16) {
        const __m512i bits = _mm512_castps_si512(avx512::load_16(x + i * bytes, dtype));
        largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, magnitude));
      }
    }
    const uint32_t most = _mm512_reduce_max_epu32(largest);
    scale = scale_for(bits_float(most >= 0x7f800000u ? 0x7fc00000u : most), DType::i8);
  }
  const __m512 scales = _mm512_set1_ps(scale), inverse = _mm512_set1_ps(1.0f / scale);
  const bool nan = dtype != DType::i8 && scale != scale;
  __m512i sum = _mm512_setzero_si512();
  int64_t period_end = p.walk.period;
  uint8_t* at = nullptr;
  for (int64_t step = 0; step < tiled.steps; ++step, at += kTileBytes) {
    if (step % tiled.slice == 0) at = tiled.tiles(to, step) + to % kTileRows * 64;
    const uint8_t* x = step_at(step);
    __m512i codes = _mm512_setzero_si512();
    if (dtype == DType::i8) {
      codes = avx512::load_bytes(x);
    } else if (!nan) {
      const auto quarter = [&](int64_t i) {
        return codes_16(avx512::load_16(x + i * 16 * bytes, dtype), scales, inverse);
      };
      codes = _mm512_castsi128_si512(quarter(0));
      codes = _mm512_inserti32x4(codes, quarter(1), 1);
      codes = _mm512_inserti32x4(codes, quarter(2), 2);
      codes = _mm512_inserti32x4(codes, quarter(3), 3);
    }
    _mm512_store_si512(at, codes);
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), codes);
    if (step + 1 == period_end || step + 1 == tiled.steps) {
      *sums++ = _mm512_reduce_add_epi32(sum);
      sum = _mm512_setzero_si512();
      period_end += p.walk.period;
    }
  }
  return scale;
}

static inline void stage_tiles(const LinearArgs& args, const Ctx& ctx, const Periods& p,
                               const TileScratch& s, int64_t first, int64_t rows) {
  parallel_for(ctx.pool, rows, kStagedRows, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      s.scale[m] = stage_row(args, p, s.x, first + m, m, s.x_sums + m * p.count);
    }
  });
}

// to(rows, 16) (+)= scale * (from - zero * x_sum). `from` may be `to`. `middle` is the zero point
// of a weight that stores none; 0 where the codes are signed.
static inline void scale_sums(const Format& f, const uint8_t* base, const PanelBlock& block,
                              int32_t middle, const int32_t* x_sums, int64_t x_sums_stride,
                              int64_t rows, const uint8_t* from, uint8_t* to, int64_t to_stride,
                              bool add) {
  const __m512 scale = avx512::load_scales(base + block.scales, f.scale_dtype);
  const auto each = [&](const auto& value_of) {
    for (int64_t m = 0; m < rows; ++m) {
      const __m512i sum = _mm512_load_si512(from + m * 64);
      const __m512 before = add ? _mm512_load_ps(to + m * to_stride) : _mm512_setzero_ps();
      _mm512_store_ps(to + m * to_stride, _mm512_fmadd_ps(value_of(m, sum), scale, before));
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

// decode(codes, bytes, begin, steps, to, align): steps [begin, begin + steps) of a block's codes as
// tiles, in `to` or where they lie. `in_place`: they mostly lie where they are.
template <class Dot, class Decode>
static inline Status run_tiles(const LinearArgs& args, const Ctx& ctx, bool in_place,
                               int32_t middle, const Decode& decode) {
  const int64_t m_all = args.x.shape[0], stage = stage_rows(m_all);
  const Format& f = args.w.format;
  const Periods p = periods_of(args.w);
  const int64_t slice_bytes = p.walk.slice * kTileBytes, period = p.walk.period;
  TileScratch s;
  carve_tiles(args, pool_threads(ctx.pool), ctx.scratch, &s);
  const auto base = [&](int64_t panel, int64_t step) {
    const int64_t group = p.grouped ? step / period : 0;
    return args.w.data + (panel * p.block.groups + group) * p.block.bytes;
  };
  const auto raw = [&](int64_t panel, int64_t step) {
    return !in_place ? nullptr : base(panel, step) + (p.grouped ? 0 : step * kTileBytes);
  };
  for (int64_t first = 0; first < m_all; first += stage) {
    const int64_t rows = m_all - first < stage ? m_all - first : stage;
    stage_tiles(args, ctx, p, s, first, rows);
    const auto scale = [&](int64_t panel, int64_t step, int64_t m, int64_t count,
                           const uint8_t* from, uint8_t* to, bool add) {
      scale_sums(f, base(panel, step), p.block, middle, s.x_sums + m * p.count + step / period,
                 p.count, count, from, to, 64, add);
    };
    const auto products = [&](int thread, const Block& b, float* sums) {
      uint8_t* buffer = s.w + thread * kPairPanels * slice_bytes;
      // All of one period of the panel, or a part of it, or some of them.
      const auto tiles = [&](int64_t panel, int64_t step, int64_t count, int64_t which,
                             bool align) {
        uint8_t* to = buffer + which * slice_bytes;
        if (!p.grouped) return decode(base(panel, 0), p.block.codes, step, count, to, align);
        if (count <= period) return decode(base(panel, step), p.block.codes, 0, count, to, align);
        for (int64_t i = 0; i < count; i += period) {
          const int64_t part = count - i < period ? count - i : period;
          uint8_t* at = to + i * kTileBytes;
          const uint8_t* from = decode(base(panel, step + i), p.block.codes, 0, part, at, false);
          if (from != at) std::memcpy(at, from, static_cast<size_t>(part * kTileBytes));
        }
        return static_cast<const uint8_t*>(to);
      };
      multiply_block<Dot>(p.walk, s.x, b, sums, tiles, raw, scale);
    };
    const auto finish = [&](int64_t panel, int64_t m, int64_t count, const uint8_t* tile,
                            uint8_t* to) {
      if (p.count != 1) return copy_sums(tile, count, to);
      scale_sums(f, base(panel, 0), p.block, middle, s.x_sums + m, 1, count, tile, to, kRowBytes,
                 false);
    };
    for_amx_blocks(args, ctx.pool, first, rows, s.scale, s.sums, products, finish);
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
