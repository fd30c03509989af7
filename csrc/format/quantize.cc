// quantize() and dequantize(): float weights to canonical ones and back. What each kind does with a
// group stands on its page (float.h, int8.h, int4.h, ternary.h, fp8.h, codebook.h, mx.h, nvfp4.h);
// this file walks the groups.
//
// A region is the rectangle of values that share one scale. Its range is read, a scale is made of
// it, its codes are written: two passes over values that the second time come from a cache. Regions
// are independent, so threads take runs of them; a region that spans all rows (one scale per
// tensor) is instead cut into rows, whose ranges are joined in row order: the same bits for any
// number of threads.
#include <atomic>
#include <new>

#include "csrc/base/threads.h"
#include "csrc/format/bits.h"
#include "csrc/format/codebook.h"
#include "csrc/format/float.h"
#include "csrc/format/fp8.h"
#include "csrc/format/int4.h"
#include "csrc/format/int8.h"
#include "csrc/format/mx.h"
#include "csrc/format/nvfp4.h"
#include "csrc/format/pack.h"
#include "csrc/format/planes.h"
#include "csrc/format/ternary.h"

namespace lowbit {

namespace {

// Shrink factors that the clipping search tries; the first is the full range, so the search never
// does worse than no clipping. Scales made of a maximum shrink: 0.4 is where two-bit codes of a
// normal distribution stop to gain. A ternary scale is a mean and may grow: its threshold is half
// the scale, and for a normal distribution the best is 1.5 times the mean. The scale of int1
// already is the least-squares one.
constexpr int kShrinks = 25;
float shrink_of(Kind kind, int i) {
  if (kind == Kind::ternary) {
    return i == 0 ? 1.0f : static_cast<float>(i <= 16 ? 20 + i : 36 - i) / 20.0f;  // 0.6 .. 1.8
  }
  return static_cast<float>(40 - i) / 40.0f;  // 1 .. 0.4
}

// Values that one turn of parallel_for covers: about 10 us of work, so that the counter costs
// nothing.
constexpr int64_t kGrain = 1 << 15;

int64_t grain_of(int64_t each) { return each >= kGrain ? 1 : kGrain / (each > 0 ? each : 1); }

template <class F>
void for_each(Pool* pool, int64_t count, int64_t each, const F& f) {
  if (pool == nullptr) {
    if (count > 0) f(int64_t{0}, count, 0);
  } else {
    parallel_for(pool, count, grain_of(each), f);
  }
}

// Elements index .. index + count as f32. The 16-bit ones are copied first: canonical codes are
// bytes and may begin at any address.
void load_chunk(const void* values, DType dtype, int64_t index, int count, float* out) {
  const size_t size = static_cast<size_t>(dtype_bytes(dtype));
  const uint8_t* from = static_cast<const uint8_t*>(values) + index * static_cast<int64_t>(size);
  if (dtype == DType::f32) {
    std::memcpy(out, from, size * count);
    return;
  }
  uint16_t half[kChunk];
  std::memcpy(half, from, size * count);
  if (dtype == DType::bf16) {
    for (int i = 0; i < count; ++i) out[i] = bf16_to_f32(half[i]);
  } else {
    for (int i = 0; i < count; ++i) out[i] = f16_to_f32(half[i]);
  }
}

void store_chunk(void* out, DType dtype, int64_t index, int count, const float* values) {
  const size_t size = static_cast<size_t>(dtype_bytes(dtype));
  uint8_t* to = static_cast<uint8_t*>(out) + index * static_cast<int64_t>(size);
  if (dtype == DType::f32) {
    std::memcpy(to, values, size * count);
    return;
  }
  uint16_t half[kChunk];
  if (dtype == DType::bf16) {
    for (int i = 0; i < count; ++i) half[i] = f32_to_bf16(values[i]);
  } else {
    for (int i = 0; i < count; ++i) half[i] = f32_to_f16(values[i]);
  }
  std::memcpy(to, half, size * count);
}

// The values of codes that are no integers, as a table.
struct CodeTable {
  float value[256];
};
CodeTable code_table(Kind kind) {
  CodeTable t = {};
  const uint32_t codes = 1u << (kind_row(kind).bits < 8 ? kind_row(kind).bits : 8);
  for (uint32_t code = 0; code < codes; ++code) t.value[code] = decode_code(kind, code);
  return t;
}

// Kinds that are decoded by a table: all but those of whole numbers.
bool looks_up(Kind kind) { return kind >= Kind::fp8_e4m3; }

void decode_chunk(Kind kind, const float* table, float scale, float zero, const uint8_t* codes,
                  int count, float* out) {
  if (kind == Kind::int8) {
    for (int i = 0; i < count; ++i) {
      out[i] = scale * static_cast<float>(static_cast<int8_t>(codes[i]));
    }
  } else if (looks_up(kind)) {
    for (int i = 0; i < count; ++i) out[i] = scale * table[codes[i]];
  } else if (kind == Kind::int1) {
    for (int i = 0; i < count; ++i) out[i] = scale * (static_cast<float>(2 * codes[i]) - zero);
  } else {
    for (int i = 0; i < count; ++i) out[i] = scale * (static_cast<float>(codes[i]) - zero);
  }
}

// The smallest position [n, k], as n * K + k, of a value that quantize() refuses.
struct FirstBad {
  std::atomic<int64_t> at{INT64_MAX};
  void note(int64_t index) {
    int64_t seen = at.load(std::memory_order_relaxed);
    while (index < seen && !at.compare_exchange_weak(seen, index, std::memory_order_relaxed)) {
    }
  }
};

struct Rect {
  int64_t n0, n1, k0, k1;
};

struct Job {
  const void* values;
  DType dtype;
  int64_t n, k;
  Format format;
  bool clip_search;
  Buffers to;
  CodeTable table;
  Codebook book;       // of the matrix
  float tensor_scale;  // 1 for all kinds but nvfp4

  // Calls f(chunk, count, n, k) for each run of at most kChunk values of the rectangle, in row
  // order.
  template <class F>
  void chunks(const Rect& r, const F& f) const {
    float w[kChunk];
    for (int64_t row = r.n0; row < r.n1; ++row) {
      for (int64_t col = r.k0; col < r.k1; col += kChunk) {
        const int count = static_cast<int>(r.k1 - col < kChunk ? r.k1 - col : kChunk);
        load_chunk(values, dtype, row * k + col, count, w);
        f(w, count, row, col);
      }
    }
  }

  Range range(const Rect& r, FirstBad* bad) const {
    Range whole = empty_range();
    const bool mean = format.kind == Kind::ternary || format.kind == Kind::int1;
    chunks(r, [&](const float* w, int count, int64_t row, int64_t col) {
      Range part = range_of(w, count);
      if (!is_finite(part)) {
        int i = 0;
        while ((float_bits(w[i]) & 0x7f800000u) != 0x7f800000u) ++i;
        bad->note(row * k + col + i);
      }
      if (mean) part.sum_abs = sum_abs_of(w, count);
      whole = join(whole, part);
    });
    return whole;
  }

  Uniform scheme(const Range& r, float shrink, const Codebook& book_of_region) const {
    const DType scale_dtype = format.scale_dtype;
    switch (format.kind) {
      case Kind::nf4:
      case Kind::fp4:
      case Kind::codebook4: return codebook_group(book_of_region, r, shrink, scale_dtype);
      case Kind::mxfp8_e4m3:
      case Kind::mxfp8_e5m2:
      case Kind::mxfp6_e2m3:
      case Kind::mxfp6_e3m2:
      case Kind::mxfp4:
      case Kind::mxint8: return {mx_group(format.kind, r), 0, 0, 0, 0, 0, 0, 0};
      case Kind::nvfp4: return {nvfp4_group(tensor_scale, r, shrink), 0, 0, 0, 0, 0, 0, 0};
      case Kind::int8: return int8_group(r, shrink, scale_dtype);
      case Kind::ternary: return ternary_group(r, shrink, scale_dtype);
      case Kind::int1: return {mean_scale(r, shrink, scale_dtype), 0, 0, 0, 0, 0, 0, 0};
      case Kind::fp8_e4m3:
      case Kind::fp8_e5m2:
        return {fp8_group(format.kind, r, shrink, scale_dtype), 0, 0, 0, 0, 0, 0, 0};
      default: return affine_group(format.kind, format.zero_type, r, shrink, scale_dtype);
    }
  }

  void encode_chunk(const Uniform& u, const float* w, int count, uint8_t* out) const {
    switch (format.kind) {
      case Kind::int1: return int1_encode(w, count, out);
      case Kind::fp8_e4m3:
      case Kind::fp8_e5m2: return fp8_encode(format.kind, u.scale, w, count, out);
      case Kind::nvfp4: return nvfp4_encode(u.scale * tensor_scale, w, count, out);
      default: break;
    }
    if (u.book != nullptr) return codebook_encode(*u.book, u.scale, w, count, out);
    if (is_mx(format.kind)) return mx_encode(format.kind, u.scale, w, count, out);
    encode_uniform(u, w, count, out);
  }

  double squared_error(const Rect& r, const Uniform& u) const {
    const float* values = u.book != nullptr ? u.book->table : table.value;
    double total = 0.0;
    chunks(r, [&](const float* w, int count, int64_t, int64_t) {
      float value[kChunk];
      if (looks_up(format.kind)) {
        uint8_t code[kChunk];
        encode_chunk(u, w, count, code);
        for (int i = 0; i < count; ++i) value[i] = u.scale * values[code[i]] * tensor_scale;
      } else {
        round_trip_uniform(u, w, count, value);
      }
      total += squared_distance(value, w, count);
    });
    return total;
  }

  // Of the region with scale number `index`.
  const Codebook& book_of(const Rect& r, int64_t index, Codebook* own) const {
    if (format.table_type != TableType::row && format.table_type != TableType::group) return book;
    const int64_t table = format.table_type == TableType::row ? r.n0 : index;
    *own = codebook_of(to.tables + table * 16);
    return *own;
  }

  bool searches() const { return clip_search && format.kind != Kind::int1; }

  void write_codes(const Rect& r, const Uniform& u) const {
    const int bits = kind_row(format.kind).bits;
    const int64_t row_bytes = code_row_bytes(format.kind, k);
    chunks(r, [&](const float* w, int count, int64_t row, int64_t col) {
      uint8_t code[kChunk];
      encode_chunk(u, w, count, code);
      pack_bits(bits, code, count, to.codes + row * row_bytes + col * bits / 8);
    });
  }

  void write_scale(int64_t index, const Uniform& u) const {
    store_f32(to.scales, format.scale_dtype, index, u.scale);
    if (format.zero_type == ZeroType::u8) {
      static_cast<uint8_t*>(to.zeros)[index] = static_cast<uint8_t>(u.zero);
    } else if (format.zero_type == ZeroType::f32) {
      static_cast<float*>(to.zeros)[index] = u.zero;
    }
  }
};

// One region after the other, on one thread each.
void quantize_regions(const Job& job, Pool* pool, FirstBad* bad) {
  const Format& f = job.format;
  const int64_t across = scale_cols(f, job.k), count = scale_rows(f, job.n) * across;
  for_each(pool, count, f.group_n * f.group_k, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      Rect r = {i / across * f.group_n, (i / across + 1) * f.group_n, i % across * f.group_k,
                (i % across + 1) * f.group_k};
      r.n1 = r.n1 < job.n ? r.n1 : job.n;
      r.k1 = r.k1 < job.k ? r.k1 : job.k;
      const Range range = job.range(r, bad);
      if (!is_finite(range)) continue;
      Codebook own;
      const Codebook& book = job.book_of(r, i, &own);
      Uniform best = job.scheme(range, 1.0f, book);
      if (job.searches()) {
        double least = job.squared_error(r, best);
        for (int c = 1; c < kShrinks; ++c) {
          const Uniform u = job.scheme(range, shrink_of(f.kind, c), book);
          const double e = job.squared_error(r, u);
          if (e < least) least = e, best = u;
        }
      }
      job.write_codes(r, best);
      job.write_scale(i, best);
    }
  });
}

// What planes.h asks of the values of a rectangle.
void pass_over(const Job& job, const Rect& r, const float* scales, int done, PlaneSums* sums) {
  const int planes = job.format.planes;
  sums->abs = sums->error = 0.0;
  if (done < planes) {
    uint8_t codes[kChunk];
    job.chunks(r, [&](float* w, int count, int64_t, int64_t) {
      take_planes(scales, done, count, w, codes);
      sums->abs += sum_abs_of(w, count);
    });
    return;
  }
  for (int c = 0; c < 1 << planes; ++c) sums->sum[c] = sums->count[c] = 0.0;
  const PlaneLevels levels = plane_levels(scales, planes);
  job.chunks(r, [&](const float* w, int count, int64_t, int64_t) {
    for (int i = 0; i < count; ++i) {
      const double value = static_cast<double>(w[i]);
      const int at = nearest_level(levels, value);
      const double d = value - levels.level[at];
      sums->error += d * d;
      sums->sum[levels.code[at]] += value;
      sums->count[levels.code[at]] += 1.0;
    }
  });
}

void write_planes(const Job& job, const Rect& r, int64_t index, const float* scales) {
  const int planes = job.format.planes;
  const int64_t row_bytes = code_row_bytes(job.format.kind, planes * job.k);
  PlaneLevels levels;
  if (job.clip_search) levels = plane_levels(scales, planes);
  job.chunks(r, [&](float* w, int count, int64_t row, int64_t col) {
    uint8_t codes[kChunk], bit[kChunk];
    if (job.clip_search) {
      for (int i = 0; i < count; ++i) {
        codes[i] = levels.code[nearest_level(levels, static_cast<double>(w[i]))];
      }
    } else {
      take_planes(scales, planes, count, w, codes);
    }
    for (int p = 0; p < planes; ++p) {
      for (int i = 0; i < count; ++i) bit[i] = codes[i] >> p & 1;
      pack_bits(1, bit, count, job.to.codes + row * row_bytes + (p * job.k + col) / 8);
    }
  });
  if (r.n0 % job.format.group_n != 0) return;
  const int64_t across = ceil_div(job.k, job.format.group_k);
  const int64_t first = index / across * across * planes + index % across;
  for (int p = 0; p < planes; ++p) {
    store_f32(job.to.scales, job.format.scale_dtype, first + p * across, scales[p]);
  }
}

void quantize_planes(const Job& job, Pool* pool, FirstBad* bad) {
  const Format& f = job.format;
  const int64_t across = ceil_div(job.k, f.group_k), count = job.n * across;
  for_each(pool, count, f.group_k * f.planes, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      Rect r = {i / across, i / across + 1, i % across * f.group_k, (i % across + 1) * f.group_k};
      if (!is_finite(job.range(r, bad))) continue;
      float scales[kMaxPlanes];
      plane_scales(
          f.planes, f.scale_dtype, static_cast<double>(f.group_k), job.clip_search,
          [&](const float* of, int done, PlaneSums* sums) { pass_over(job, r, of, done, sums); },
          scales);
      write_planes(job, r, i, scales);
    }
  });
}

// f(n, the rectangle of row n) for all rows.
template <class F>
void for_rows(const Job& job, Pool* pool, const F& f) {
  for_each(pool, job.n, job.k, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) f(n, Rect{n, n + 1, 0, job.k});
  });
}

// Of the matrix: the ranges of its rows, joined in row order.
Status range_of_matrix(const Job& job, Pool* pool, FirstBad* bad, Range* range) {
  Range* ranges = new (std::nothrow) Range[job.n];
  if (ranges == nullptr) return error(Code::memory, "quantize: no memory for the row ranges");
  for_rows(job, pool, [&](int64_t n, const Rect& row) { ranges[n] = job.range(row, bad); });
  *range = empty_range();
  for (int64_t n = 0; n < job.n; ++n) *range = join(*range, ranges[n]);
  delete[] ranges;
  return ok();
}

// One scale a plane for the matrix: passes over blocks of rows, which are joined in their order.
Status quantize_planes_of_matrix(const Job& job, Pool* pool, FirstBad* bad) {
  Range range;
  LB_TRY(range_of_matrix(job, pool, bad, &range));
  if (!is_finite(range)) return ok();
  constexpr int64_t kRows = 64;
  const int64_t blocks = ceil_div(job.n, kRows);
  PlaneSums* parts = new (std::nothrow) PlaneSums[blocks];
  if (parts == nullptr) return error(Code::memory, "quantize: no memory for the sums of planes");
  float scales[kMaxPlanes];
  const int planes = job.format.planes;
  plane_scales(
      planes, job.format.scale_dtype, static_cast<double>(job.n) * static_cast<double>(job.k),
      job.clip_search,
      [&](const float* of, int done, PlaneSums* sums) {
        for_each(pool, blocks, kRows * job.k, [&](int64_t begin, int64_t end, int) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t n1 = (i + 1) * kRows < job.n ? (i + 1) * kRows : job.n;
            pass_over(job, {i * kRows, n1, 0, job.k}, of, done, &parts[i]);
          }
        });
        *sums = parts[0];
        for (int64_t i = 1; i < blocks; ++i) join(sums, parts[i], done < planes ? 0 : 1 << planes);
      },
      scales);
  delete[] parts;
  for_rows(job, pool, [&](int64_t, const Rect& row) { write_planes(job, row, 0, scales); });
  return ok();
}

// One region of all rows: each pass is cut into rows.
Status quantize_tensor(const Job& job, Pool* pool, FirstBad* bad) {
  Range range;
  LB_TRY(range_of_matrix(job, pool, bad, &range));
  if (!is_finite(range)) return ok();
  Codebook own;
  const Codebook& book = job.book_of({0, job.n, 0, job.k}, 0, &own);
  Uniform best = job.scheme(range, 1.0f, book);
  if (job.searches()) {
    double* errors = new (std::nothrow) double[job.n];
    if (errors == nullptr) return error(Code::memory, "quantize: no memory for the row errors");
    double least = 0.0;
    for (int c = 0; c < kShrinks; ++c) {
      const Uniform u = job.scheme(range, shrink_of(job.format.kind, c), book);
      for_rows(job, pool,
               [&](int64_t n, const Rect& row) { errors[n] = job.squared_error(row, u); });
      double e = 0.0;
      for (int64_t n = 0; n < job.n; ++n) e += errors[n];
      if (c == 0 || e < least) least = e, best = u;
    }
    delete[] errors;
  }
  for_rows(job, pool, [&](int64_t, const Rect& row) { job.write_codes(row, best); });
  job.write_scale(0, best);
  return ok();
}

// f32, f16 and bf16 weights: a conversion. A finite number that the narrower type can't hold is
// refused as NaN is.
void convert_values(const void* values, DType from, uint8_t* out, DType to, int64_t count,
                    Pool* pool, FirstBad* bad, FirstBad* large) {
  const int64_t turns = ceil_div(count, kChunk);
  for_each(pool, turns, kChunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t turn = begin; turn < end; ++turn) {
      float w[kChunk];
      const int64_t at = turn * kChunk;
      const int size = static_cast<int>(count - at < kChunk ? count - at : kChunk);
      load_chunk(values, from, at, size, w);
      const Range range = range_of(w, size);
      if (!is_finite(range)) {
        int i = 0;
        while ((float_bits(w[i]) & 0x7f800000u) != 0x7f800000u) ++i;
        bad->note(at + i);
        continue;
      }
      const float limit = float_overflow(to);
      if (max_abs(range) >= limit) {
        int i = 0;
        while (bits_float(float_bits(w[i]) & 0x7fffffffu) < limit) ++i;
        large->note(at + i);
        continue;
      }
      store_chunk(out, to, at, size, w);
    }
  });
}

}  // namespace

Status quantize(const void* values, DType dtype, int64_t n, int64_t k, const Scheme& scheme,
                const Buffers& to, Pool* pool) {
  Job job = {};
  job.format = scheme.format;
  LB_TRY(check_format(&job.format, n, k));
  if (!has(kFloats, dtype)) {
    return error(Code::dtype, "quantize: expected weights of f32, f16 or bf16 but got %s",
                 dtype_name(dtype));
  }
  const Kind kind = job.format.kind;
  if (scheme.clip_search && is_mx(kind)) {
    return error(Code::argument,
                 "quantize: expected no clip, since the scales of %s follow from the largest number"
                 " of each group",
                 kind_name(kind));
  }
  if (kind == Kind::int1 && job.format.zero_type != ZeroType::none) {
    return error(Code::argument, "quantize: expected no zero points for int1, which become signs");
  }
  LB_TRY(check_tables(job.format, n, k, to.tables));
  if (kind == Kind::nvfp4) *to.tensor_scale = 1.0f;
  if (n == 0 || k == 0) return ok();
  FirstBad bad, large;
  if (!kind_row(kind).scaled) {
    convert_values(values, dtype, to.codes, float_dtype(kind), n * k, pool, &bad, &large);
  } else {
    job.values = values;
    job.dtype = dtype;
    job.n = n;
    job.k = plane_columns(job.format, k);
    job.clip_search = scheme.clip_search;
    job.to = to;
    job.table = code_table(kind);
    job.tensor_scale = 1.0f;
    if (kind_row(kind).table) {
      job.book = codebook_of(kind == Kind::codebook4 ? to.tables : kind_table(kind));
    }
    if (kind == Kind::nvfp4) {
      Range whole;
      LB_TRY(range_of_matrix(job, pool, &bad, &whole));
      if (is_finite(whole)) *to.tensor_scale = job.tensor_scale = nvfp4_tensor_scale(whole);
    }
    if (job.format.planes > 1 && job.format.group_n > 1) {
      LB_TRY(quantize_planes_of_matrix(job, pool, &bad));
    } else if (job.format.planes > 1) {
      quantize_planes(job, pool, &bad);
    } else if (job.format.group_n > 128) {
      LB_TRY(quantize_tensor(job, pool, &bad));
    } else {
      quantize_regions(job, pool, &bad);
    }
  }
  const int64_t first = bad.at.load(), big = large.at.load();
  if (first == INT64_MAX && big == INT64_MAX) return ok();
  const int64_t at = first < big ? first : big;
  const double value = load_f32(values, dtype, at);
  k = plane_columns(job.format, k);
  if (first < big) {
    return error(Code::argument, "quantize: expected finite weights but got %s at [%lld, %lld]",
                 value != value ? "NaN"
                 : value > 0    ? "inf"
                                : "-inf",
                 static_cast<long long>(at / k), static_cast<long long>(at % k));
  }
  return error(
      Code::argument, "quantize: expected weights that %s can hold but got %g at [%lld, %lld]",
      kind_name(kind), value, static_cast<long long>(at / k), static_cast<long long>(at % k));
}

// Planes are added in their order, in f32.
static void dequantize_planes(const Canonical& c, const Format& f, void* out, DType dtype,
                              Pool* pool) {
  const int64_t k = plane_columns(f, c.k), row_bytes = code_row_bytes(f.kind, c.k);
  for_each(pool, c.n, c.k, [&](int64_t begin, int64_t end, int) {
    uint8_t code[kChunk];
    float value[kChunk], sum[kChunk];
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t col = 0; col < k;) {
        const int64_t g = col / f.group_k, group_end = (g + 1) * f.group_k;
        const int64_t stop = col + kChunk < group_end ? col + kChunk : group_end;
        const int count = static_cast<int>(stop - col);
        for (int p = 0; p < f.planes; ++p) {
          const int64_t at = p * k + col;
          const int64_t index = row / f.group_n * scale_cols(f, c.k) + at / f.group_k;
          const float zero =
              f.zero_type == ZeroType::u8    ? static_cast<const uint8_t*>(c.zeros)[index]
              : f.zero_type == ZeroType::f32 ? static_cast<const float*>(c.zeros)[index]
                                             : 1.0f;
          unpack_bits(1, c.codes + row * row_bytes + at / 8, count, code);
          decode_chunk(f.kind, nullptr, load_f32(c.scales, f.scale_dtype, index), zero, code, count,
                       p == 0 ? sum : value);
          for (int i = 0; i < count && p > 0; ++i) sum[i] += value[i];
        }
        store_chunk(out, dtype, row * k + col, count, sum);
        col = stop;
      }
    }
  });
}

Status dequantize(const Canonical& c, void* out, DType dtype, Pool* pool) {
  Format f = c.format;
  LB_TRY(check_format(&f, c.n, c.k));
  if (!has(kFloats, dtype)) {
    return error(Code::dtype, "dequantize: expected f32, f16 or bf16 but got %s",
                 dtype_name(dtype));
  }
  if (f.planes > 1) {
    dequantize_planes(c, f, out, dtype, pool);
    return ok();
  }
  const int bits = kind_row(f.kind).bits;
  const int64_t row_bytes = code_row_bytes(f.kind, c.k);
  const bool scaled = kind_row(f.kind).scaled;
  const CodeTable own = code_table(f.kind);
  const float tensor_scale = f.kind == Kind::nvfp4 ? *c.tensor_scale : 1.0f;
  for_each(pool, c.n, c.k, [&](int64_t begin, int64_t end, int) {
    uint8_t code[kChunk];
    float value[kChunk];
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t col = 0; col < c.k;) {
        int64_t stop = col + kChunk < c.k ? col + kChunk : c.k;
        if (!scaled) {
          load_chunk(c.codes, float_dtype(f.kind), row * c.k + col, static_cast<int>(stop - col),
                     value);
        } else {
          const int64_t g = col / f.group_k;
          if ((g + 1) * f.group_k < stop) stop = (g + 1) * f.group_k;
          const int64_t index = row / f.group_n * scale_cols(f, c.k) + g;
          const float scale = load_f32(c.scales, f.scale_dtype, index);
          const float zero =
              f.zero_type == ZeroType::u8    ? static_cast<const uint8_t*>(c.zeros)[index]
              : f.zero_type == ZeroType::f32 ? static_cast<const float*>(c.zeros)[index]
                                             : static_cast<float>(kind_row(f.kind).mid);
          const int count = static_cast<int>(stop - col);
          unpack_bits(bits, c.codes + row * row_bytes + col * bits / 8, count, code);
          const float* table = f.table_type == TableType::none     ? own.value
                               : f.table_type == TableType::tensor ? c.tables
                               : f.table_type == TableType::row    ? c.tables + row * 16
                                                                   : c.tables + index * 16;
          decode_chunk(f.kind, table, scale, zero, code, count, value);
          if (f.kind == Kind::nvfp4) {
            for (int i = 0; i < count; ++i) value[i] *= tensor_scale;
          }
        }
        store_chunk(out, dtype, row * c.k + col, static_cast<int>(stop - col), value);
        col = stop;
      }
    }
  });
  return ok();
}

}  // namespace lowbit
