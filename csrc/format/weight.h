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
enum class Layout : int32_t { rows, panel16, trits16 };
static constexpr uint32_t bit(Layout layout) { return 1u << static_cast<int>(layout); }

struct Weight {
  Format format;
  Layout layout;
  int64_t n, k;         // [N, K]
  const uint8_t* data;  // codes, scales and zeros in one block of layout_bytes(), 64-byte aligned
  DeviceTag device;
};

// Row-major [N, K]. A row of codes takes ceil(K * bits / 8) bytes; the code of column k starts at
// bit k * bits, least significant bit first, and may cross into the next byte (int3). Scales and
// zeros: [scale_rows, scale_cols].
struct Canonical {
  Format format;
  int64_t n, k;
  const uint8_t* codes;
  const void* scales;  // null for float kinds
  const void* zeros;   // null where zero_type is none
};

static constexpr int64_t code_row_bytes(Kind kind, int64_t k) {
  return (k * kind_row(kind).bits + 7) / 8;
}

}  // namespace lowbit
