// Weight: a matrix [N, K] in one format and one layout, packed for a device. Canonical: the same
// numbers as they are saved and exchanged: codes row-major, nothing device-specific. pack() makes
// the first from the second without loss.
#pragma once

#include <cstdint>

#include "csrc/base/status.h"
#include "csrc/base/tensor.h"
#include "csrc/format/format.h"

namespace lowbit {

struct Pool;

// The order is shared with lib/words.ts (`layouts`). layout.h says where the bytes of each lie.
enum class Layout : int32_t { rows, panel16, trits16, frag64 };
static constexpr uint32_t bit(Layout layout) { return 1u << static_cast<int>(layout); }

struct Weight {
  Format format;
  Layout layout;
  int64_t n, k;         // [N, K]; k counts the columns of all planes
  const uint8_t* data;  // codes, scales, zeros and tables in one block of layout_bytes(), 64-byte
                        // aligned
  DeviceTag device;
  float tensor_scale = 1.0f;  // multiplies every value; 1 for all kinds but nvfp4
};

// Row-major [N, K]. A row of codes takes ceil(K * bits / 8) bytes; the code of column k starts at
// bit k * bits, least significant bit first, and may cross into the next byte (int3). Scales and
// zeros: [scale_rows, scale_cols]. Planes stand side by side in each row, in k too.
struct Canonical {
  Format format;
  int64_t n, k;
  const uint8_t* codes;
  const void* scales;         // null for float kinds
  const void* zeros;          // null where zero_type is none
  const float* tables;        // [tables, 16]; null where table_type is none
  const float* tensor_scale;  // [1]; null for all kinds but nvfp4
};

// The same arrays, to be written.
struct Buffers {
  uint8_t* codes;
  void* scales;
  void* zeros;
  float* tables;
  float* tensor_scale;
};

// Bytes of the arrays of a canonical weight.
struct Sizes {
  int64_t codes, scales, zeros, tables, tensor_scale;
};

static constexpr int64_t code_row_bytes(Kind kind, int64_t k) {
  return (k * kind_row(kind).bits + 7) / 8;
}

static constexpr int64_t table_count(const Format& f, int64_t n, int64_t k) {
  switch (f.table_type) {
    case TableType::none: return 0;
    case TableType::tensor: return 1;
    case TableType::row: return n;
    case TableType::group: return scale_rows(f, n) * scale_cols(f, k);
  }
  return 0;
}

static constexpr Sizes canonical_sizes(const Format& f, int64_t n, int64_t k) {
  Sizes s = {};
  s.codes = n * code_row_bytes(f.kind, k);
  if (!kind_row(f.kind).scaled) return s;
  const int64_t count = scale_rows(f, n) * scale_cols(f, k);
  s.scales = count * dtype_bytes(f.scale_dtype);
  s.zeros = count * zero_bytes(f.zero_type);
  s.tables = table_count(f, n, k) * 64;
  s.tensor_scale = f.kind == Kind::nvfp4 ? 4 : 0;
  return s;
}

}  // namespace lowbit
