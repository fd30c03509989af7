// KvCache: keys and values in pages, so that sequences of any length share one piece of memory.
// Kwon et al., PagedAttention, 2023. Known to the op `kv` (which fills it) and to attention.
//
// Memory is [pages][kv_heads][block]: a block is one page of one kv head, contiguous, its size a
// multiple of 128 bytes, so that one bulk copy or one walk brings all of it. After the pages come
// the blocks of the prefix rows, [prefix_rows][kv_heads][block], with prefix_tokens tokens each and
// in a float format: the first tokens of a sequence, never quantised (outlier tokens, sinks).
//
//   block   K codes [tokens][head_dim]        V codes [tokens][head_dim_v]
//           K scales f16 [tokens]             K zeros f16 [tokens]
//           V scales f16 [tokens]             V zeros f16 [tokens]
//   each part begins at a multiple of 16 bytes; int8 and fp8_e4m3 have no zeros, floats no scales.
//
//   format     code                                     value
//   f32 f16 bf16   the element, rounded to nearest even     the element
//   fp8_e4m3   e4m3 of x / scale, saturating            scale * code      scale = max|x| / 448
//   int8       -127..127, x / scale to nearest even     scale * code      scale = max|x| / 127
//   int4       0..15, x / scale + zero to nearest even  scale * (code - zero)
//                  scale = (max - min) / 15 and zero = -min / scale in [0, 15], where min <= 0 and
//                  max >= 0: the range takes in 0
//   int4's byte b of a token holds element b in its low and element b + D / 2 in its high bits.
//
// A scale belongs to one token and head. It is rounded to f16 first, within 2^-24 (all zeros, too)
// and 65504; codes are made with 1 / scale in f32, so what lies beyond saturates. A token whose
// head holds NaN or inf has the scale NaN and codes 0: all of it reads as NaN.
//
// Slots number the tokens of one cache: token t of page p is p * page_size + t, token t of prefix
// row r is pages * page_size + r * prefix_tokens + t. Functions that say "head" mean a kv head.
#pragma once

#include <cstdint>

#include "csrc/base/tensor.h"

namespace lowbit {

// The order is shared with lib/words.ts (`kvFormats`).
enum class KvFormat : int32_t { f32, f16, bf16, fp8_e4m3, int8, int4 };

struct KvFormatRow {
  const char* name;
  int32_t bits;  // of a code
  bool scales, zeros;
};
static LB_TABLE constexpr KvFormatRow kKvFormats[] = {
    {"f32", 32, false, false},    {"f16", 16, false, false}, {"bf16", 16, false, false},
    {"fp8_e4m3", 8, true, false}, {"int8", 8, true, false},  {"int4", 4, true, true},
};
inline constexpr int kKvFormatCount = 6;
static constexpr const KvFormatRow& kv_format_row(KvFormat f) {
  return kKvFormats[static_cast<int>(f)];
}
static constexpr const char* kv_format_name(KvFormat f) { return kv_format_row(f).name; }

// A set of formats as bits, for the specs of kernel rows.
using KvFormatSet = uint32_t;
static constexpr KvFormatSet bit(KvFormat f) { return 1u << static_cast<int>(f); }
static constexpr bool has(KvFormatSet set, KvFormat f) {
  return (set >> static_cast<int>(f) & 1u) != 0;
}
inline constexpr KvFormatSet kAllKvFormats = (1u << kKvFormatCount) - 1;
static constexpr bool is_float(KvFormat f) { return !kv_format_row(f).scales; }
// Of a float format.
static constexpr DType kv_dtype(KvFormat f) {
  return f == KvFormat::f32 ? DType::f32 : f == KvFormat::f16 ? DType::f16 : DType::bf16;
}

inline constexpr int64_t kKvHeadDimMost = 1024;  // a head has room on the stack of a thread
inline constexpr int64_t kKvPageLeast = 8, kKvPageMost = 256;

// Bytes of one token's codes.
static constexpr int64_t kv_row_bytes(KvFormat f, int64_t dim) {
  return dim * kv_format_row(f).bits / 8;
}

// Where the parts of a block begin, in bytes.
struct KvBlock {
  int64_t k, v, k_scale, k_zero, v_scale, v_zero;
  int64_t bytes;
};

static constexpr KvBlock kv_block(KvFormat f, int64_t tokens, int64_t head_dim,
                                  int64_t head_dim_v) {
  const auto up = [](int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; };
  const int64_t scales = kv_format_row(f).scales ? up(2 * tokens, 16) : 0;
  const int64_t zeros = kv_format_row(f).zeros ? up(2 * tokens, 16) : 0;
  KvBlock b = {};
  b.v = up(tokens * kv_row_bytes(f, head_dim), 16);
  b.k_scale = b.v + up(tokens * kv_row_bytes(f, head_dim_v), 16);
  b.k_zero = b.k_scale + scales;
  b.v_scale = b.k_zero + zeros;
  b.v_zero = b.v_scale + scales;
  b.bytes = up(b.v_zero + zeros, 128);
  return b;
}

struct KvCache {
  uint8_t* data;
  DeviceTag device;
  KvFormat format, prefix_format;  // the latter f32, f16 or bf16
  int64_t pages, page_size;        // page_size a power of two from 8 to 256
  int64_t kv_heads;                // 0: there is no cache
  int64_t head_dim, head_dim_v;
  int64_t prefix_rows, prefix_tokens;
  KvBlock page, prefix;  // of one kv head
};

static constexpr bool present(const KvCache& c) { return c.kv_heads > 0; }
static constexpr int64_t kv_page_slots(const KvCache& c) { return c.pages * c.page_size; }
static constexpr int64_t kv_slots(const KvCache& c) {
  return kv_page_slots(c) + c.prefix_rows * c.prefix_tokens;
}
static constexpr int64_t kv_bytes(const KvCache& c) {
  return c.kv_heads * (c.pages * c.page.bytes + c.prefix_rows * c.prefix.bytes);
}

// The blocks of a page or a prefix row, for one head.
static constexpr uint8_t* kv_page(const KvCache& c, int64_t page, int64_t head) {
  return c.data + (page * c.kv_heads + head) * c.page.bytes;
}
static constexpr uint8_t* kv_prefix(const KvCache& c, int64_t row, int64_t head) {
  return kv_page(c, c.pages, 0) + (row * c.kv_heads + head) * c.prefix.bytes;
}

// The key or the value of one token and head.
struct KvRow {
  KvFormat format;
  uint8_t* codes;
  uint8_t *scale, *zero;  // f16, where the format has them
};

static constexpr KvRow kv_row(KvFormat f, const KvBlock& b, uint8_t* block, int64_t token,
                              int64_t dim, bool of_values) {
  return {f, block + (of_values ? b.v : b.k) + token * kv_row_bytes(f, dim),
          block + (of_values ? b.v_scale : b.k_scale) + 2 * token,
          block + (of_values ? b.v_zero : b.k_zero) + 2 * token};
}

// Of a slot from 0 to kv_slots() - 1.
static constexpr KvRow kv_row_at(const KvCache& c, int64_t slot, int64_t head, bool of_values) {
  const int64_t dim = of_values ? c.head_dim_v : c.head_dim, paged = kv_page_slots(c);
  if (slot < paged) {
    return kv_row(c.format, c.page, kv_page(c, slot / c.page_size, head), slot % c.page_size, dim,
                  of_values);
  }
  const int64_t row = (slot - paged) / c.prefix_tokens, token = (slot - paged) % c.prefix_tokens;
  return kv_row(c.prefix_format, c.prefix, kv_prefix(c, row, head), token, dim, of_values);
}

static constexpr uint16_t kv_half(const uint8_t* at) {
  return static_cast<uint16_t>(at[0] | at[1] << 8);
}

// Element d of a row of `dim`, computed in T.
template <class T = float>
static constexpr T kv_at(const KvRow& row, int64_t dim, int64_t d) {
  switch (row.format) {
    case KvFormat::f32: return load_f32(row.codes, DType::f32, d);
    case KvFormat::f16: return load_f32(row.codes, DType::f16, d);
    case KvFormat::bf16: return load_f32(row.codes, DType::bf16, d);
    default: break;
  }
  const T scale = f16_to_f32(kv_half(row.scale));
  if (row.format == KvFormat::fp8_e4m3) return scale * e4m3_to_f32(row.codes[d]);
  if (row.format == KvFormat::int8) {
    return scale * static_cast<float>(static_cast<int8_t>(row.codes[d]));
  }
  const int64_t half = dim / 2;
  const int code = d < half ? row.codes[d] & 15 : row.codes[d - half] >> 4;
  const T zero = f16_to_f32(kv_half(row.zero));
  return scale * (static_cast<float>(code) - zero);
}

}  // namespace lowbit
