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
  if (format->group_n == 0 || !row.scaled) format->group_n = n;
  if (format->group_k == 0 || !row.scaled) format->group_k = k;
  if (!row.scaled) {
    format->scale_dtype = DType::none;
    format->zero_type = ZeroType::none;
    return ok();
  }
  if (!has(kFloats, format->scale_dtype)) {
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
  if (!(gk == k || fixed)) {
    return error(Code::argument,
                 "format: expected a group of 32, 64, 128 or K = %lld columns but got %lld",
                 static_cast<ll>(k), static_cast<ll>(gk));
  }
  if (!(gn == 1 || square || (gn == n && gk == k))) {
    return error(
        Code::argument,
        "format: expected %s groups inside a row%s or one of the matrix but got %lld x %lld",
        row.name, row.bits == 8 ? ", 128 x 128 blocks" : "", static_cast<ll>(gn),
        static_cast<ll>(gk));
  }
  return ok();
}

Status check_sizes(const Canonical& c, int64_t codes_bytes, int64_t scales_bytes,
                   int64_t zeros_bytes) {
  Format f = c.format;
  LB_TRY(check_format(&f, c.n, c.k));
  const int64_t codes = c.n * code_row_bytes(f.kind, c.k);
  if (codes_bytes != codes) return wrong_bytes("codes", codes, codes_bytes);
  const int64_t count = kind_row(f.kind).scaled ? scale_rows(f, c.n) * scale_cols(f, c.k) : 0;
  const int64_t scales = count > 0 ? count * dtype_bytes(f.scale_dtype) : 0;
  if (scales_bytes != scales) return wrong_bytes("scales", scales, scales_bytes);
  const int64_t zeros = count * zero_bytes(f.zero_type);
  if (zeros_bytes != zeros) return wrong_bytes("zeros", zeros, zeros_bytes);
  return ok();
}

Status check_canonical(const Canonical& c, int64_t codes_bytes, int64_t scales_bytes,
                       int64_t zeros_bytes) {
  LB_TRY(check_sizes(c, codes_bytes, scales_bytes, zeros_bytes));
  if (codes_bytes == 0) return ok();
  Format f = c.format;
  LB_TRY(check_format(&f, c.n, c.k));
  const KindRow& row = kind_row(f.kind);
  LB_TRY(check_tail(c));
  LB_TRY(check_codes(c));
  if (!row.scaled) return ok();
  const int64_t cols = scale_cols(f, c.k), count = scale_rows(f, c.n) * cols;
  LB_TRY(check_finite("scales", c.scales, f.scale_dtype, count, cols));
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
