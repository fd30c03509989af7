// What makes a format and a canonical weight legal. Every weight passes here once: from quantize(),
// from an importer, from a file or made by hand.
#include "csrc/format/fp8.h"
#include "csrc/format/int8.h"
#include "csrc/format/pack.h"
#include "csrc/format/ternary.h"

namespace lowbit {

namespace {

using ll = long long;

// Far beyond any machine's memory, and small enough that no size computed from it overflows.
constexpr int64_t kMaxValues = int64_t{1} << 44;

Status wrong_bytes(const char* what, int64_t expected, int64_t got) {
  return error(Code::shape, "weight: expected %lld bytes of %s but got %lld",
               static_cast<ll>(expected), what, static_cast<ll>(got));
}

// Bits behind the last code of each row are zero, so that two weights are equal where their bytes
// are.
Status check_tail(const Canonical& c) {
  const int64_t row_bytes = code_row_bytes(c.format.kind, c.k);
  const int64_t spare = row_bytes * 8 - c.k * kind_row(c.format.kind).bits;
  if (spare == 0) return ok();
  for (int64_t n = 0; n < c.n; ++n) {
    if (c.codes[(n + 1) * row_bytes - 1] >> (8 - spare) != 0) {
      return error(
          Code::argument,
          "weight: expected zero bits behind the last code of a row but row %lld has others",
          static_cast<ll>(n));
    }
  }
  return ok();
}

Status check_codes(const Canonical& c) {
  const Kind kind = c.format.kind;
  const int64_t row_bytes = code_row_bytes(kind, c.k), count = c.n * row_bytes;
  if (kind == Kind::int8) {
    const int64_t i = int8_invalid(c.codes, count);
    if (i == count) return ok();
    return error(Code::argument,
                 "weight: expected int8 codes of -127 to 127 but got -128 at [%lld, %lld]",
                 static_cast<ll>(i / row_bytes), static_cast<ll>(i % row_bytes));
  }
  if (kind != Kind::ternary) return ok();
  const int64_t i = ternary_invalid(c.codes, count);
  if (i == count) return ok();
  int64_t k = i % row_bytes * 4;
  for (uint32_t byte = c.codes[i]; (byte & 3) != 3; byte >>= 2) ++k;
  return error(Code::argument, "weight: expected ternary codes of 0 to 2 but got 3 at [%lld, %lld]",
               static_cast<ll>(i / row_bytes), static_cast<ll>(k));
}

Status check_finite(const char* what, const void* data, DType dtype, int64_t count, int64_t cols) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = load_f32(data, dtype, i);
    if ((float_bits(value) & 0x7f800000u) != 0x7f800000u) continue;
    return error(Code::argument, "weight: expected finite %s but got %s at [%lld, %lld]", what,
                 value != value ? "NaN" : "inf", static_cast<ll>(i / cols),
                 static_cast<ll>(i % cols));
  }
  return ok();
}

// Planes begin at whole groups and at whole vectors of their layouts.
Status check_planes(const Format& f, int64_t k) {
  if (f.planes < 1 || f.planes > kMaxPlanes) {
    return error(Code::argument, "format: expected 1 to %d planes but got %d", kMaxPlanes,
                 f.planes);
  }
  if (f.planes == 1) return ok();
  if (f.kind != Kind::int1) {
    return error(Code::argument,
                 "format: expected 1 plane, since only int1 has more, but got %d %s", f.planes,
                 kind_name(f.kind));
  }
  const int64_t columns = plane_columns(f, k);
  const int64_t multiple = f.group_k > 0 && f.group_k < columns ? f.group_k : 32;
  if (columns % multiple == 0) return ok();
  return error(Code::shape,
               "format: expected K to be a multiple of %lld for %d planes but got %lld",
               static_cast<ll>(multiple), f.planes, static_cast<ll>(columns));
}

}  // namespace

Status check_format(Format* format, int64_t n, int64_t k) {
  const int kind_index = static_cast<int>(format->kind);
  if (kind_index < 0 || kind_index >= kKindCount) {
    return error(Code::argument, "format: expected a known format but got number %d", kind_index);
  }
  if (n < 0 || k < 0 || n > kMaxValues || k > kMaxValues || (k > 0 && n > kMaxValues / k)) {
    return error(Code::shape,
                 "format: expected a shape [N, K] of at most 2^44 values but got [%lld, %lld]",
                 static_cast<ll>(n), static_cast<ll>(k));
  }
  const KindRow& row = kind_row(format->kind);
  LB_TRY(check_planes(*format, k));
  const int64_t columns = plane_columns(*format, k);
  if (format->group_n == 0 || !row.scaled) format->group_n = n;
  if (format->group_k == 0 || !row.scaled) format->group_k = columns;
  // A group ends with its plane.
  if (format->planes > 1 && format->group_k > columns) format->group_k = columns;
  if (!row.scaled) {
    format->scale_dtype = DType::none;
    format->zero_type = ZeroType::none;
    format->table_type = TableType::none;
    return ok();
  }
  if ((format->kind == Kind::codebook4) != (format->table_type != TableType::none)) {
    return error(Code::argument,
                 format->kind == Kind::codebook4
                     ? "format: expected a table for the tensor, each row or each group of %s"
                     : "format: expected no tables, which codebook4 alone stores, for %s",
                 row.name);
  }
  if (row.scale != DType::none && format->scale_dtype != row.scale) {
    return error(Code::dtype, "format: expected scales of %s, which %s has, but got %s",
                 dtype_name(row.scale), row.name, dtype_name(format->scale_dtype));
  }
  if (row.scale == DType::none && !has(kFloats, format->scale_dtype)) {
    return error(Code::dtype, "format: expected scales of f32, f16 or bf16 but got %s",
                 dtype_name(format->scale_dtype));
  }
  if (format->zero_type != ZeroType::none && !row.affine) {
    return error(Code::argument, "format: expected no zero points, since %s is symmetric",
                 row.name);
  }
  const int64_t gn = format->group_n, gk = format->group_k;
  const bool fixed = gk == 32 || gk == 64 || gk == 128;
  const bool square = row.bits == 8 && gn == 128 && gk == 128;
  if (format->table_type == TableType::row && gn != 1) {
    return error(Code::argument, "format: expected one table where rows share a scale");
  }
  if (row.block > 0) {
    if (gn == 1 && gk == row.block) return ok();
    return error(Code::argument,
                 "format: expected groups of 1 x %d, which %s has, but got %lld x %lld", row.block,
                 row.name, static_cast<ll>(gn), static_cast<ll>(gk));
  }
  if (!(gk == columns || fixed)) {
    return error(Code::argument,
                 "format: expected a group of 32, 64, 128 or K = %lld columns but got %lld",
                 static_cast<ll>(columns), static_cast<ll>(gk));
  }
  if (!(gn == 1 || square || (gn == n && gk == columns))) {
    return error(
        Code::argument,
        "format: expected %s groups inside a row%s or one of the matrix but got %lld x %lld",
        row.name, row.bits == 8 ? ", 128 x 128 blocks" : "", static_cast<ll>(gn),
        static_cast<ll>(gk));
  }
  return ok();
}

Status check_sizes(const Format& format, int64_t n, int64_t k, const Sizes& got) {
  Format f = format;
  LB_TRY(check_format(&f, n, k));
  const Sizes want = canonical_sizes(f, n, k);
  if (got.codes != want.codes) return wrong_bytes("codes", want.codes, got.codes);
  if (got.scales != want.scales) return wrong_bytes("scales", want.scales, got.scales);
  if (got.zeros != want.zeros) return wrong_bytes("zeros", want.zeros, got.zeros);
  if (got.tables != want.tables) return wrong_bytes("table", want.tables, got.tables);
  if (got.tensor_scale != want.tensor_scale) {
    return wrong_bytes("tensor_scale", want.tensor_scale, got.tensor_scale);
  }
  return ok();
}

Status check_tables(const Format& format, int64_t n, int64_t k, const float* tables) {
  return check_finite("table", tables, DType::f32, table_count(format, n, k) * 16, 16);
}

Status check_canonical(const Canonical& c, const Sizes& got) {
  LB_TRY(check_sizes(c.format, c.n, c.k, got));
  if (got.tensor_scale > 0) LB_TRY(check_finite("tensor_scale", c.tensor_scale, DType::f32, 1, 1));
  LB_TRY(check_tables(c.format, c.n, c.k, c.tables));
  if (got.codes == 0) return ok();
  Format f = c.format;
  LB_TRY(check_format(&f, c.n, c.k));
  const KindRow& row = kind_row(f.kind);
  LB_TRY(check_tail(c));
  LB_TRY(check_codes(c));
  if (!row.scaled) return ok();
  const int64_t cols = scale_cols(f, c.k), count = scale_rows(f, c.n) * cols;
  if (f.scale_dtype != DType::e8m0) {
    LB_TRY(check_finite("scales", c.scales, f.scale_dtype, count, cols));
  }
  if (f.zero_type == ZeroType::f32) return check_finite("zeros", c.zeros, DType::f32, count, cols);
  if (f.zero_type == ZeroType::none) return ok();
  const int largest = 1 << row.bits;
  for (int64_t i = 0; i < count; ++i) {
    const int zero = static_cast<const uint8_t*>(c.zeros)[i];
    if (zero <= largest) continue;
    return error(Code::argument,
                 "weight: expected zeros of 0 to %d for %s but got %d at [%lld, %lld]", largest,
                 row.name, zero, static_cast<ll>(i / cols), static_cast<ll>(i % cols));
  }
  return ok();
}

}  // namespace lowbit
