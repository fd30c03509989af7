// What the CPU rows of kv share: tokens and pages as bytes, which no instruction set makes faster
// than memcpy does.
#pragma once

#include <cstring>

#include "csrc/base/threads.h"
#include "csrc/kv/kv.h"

namespace lowbit {

static inline int32_t slot_of(const Tensor& slots, int64_t i) {
  return static_cast<const int32_t*>(slots.data)[i];
}

static inline Status kv_copy_pages(const KvArgs& a, const Ctx& ctx) {
  const KvCache c = a.cache;
  const Tensor from = a.slots, to = a.to;
  parallel_for(ctx.pool, from.shape[0] * c.kv_heads, 1, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t page = i / c.kv_heads, head = i % c.kv_heads;
      std::memmove(kv_page(c, slot_of(to, page), head), kv_page(c, slot_of(from, page), head),
                   static_cast<size_t>(c.page.bytes));
    }
  });
  return ok();
}

// One token's K or V of a head between its slot and the bytes `at`, where the next ones begin.
static inline uint8_t* move_row(const KvRow& row, int64_t dim, bool save, uint8_t* at) {
  const auto move = [&](uint8_t* stored, int64_t bytes) {
    std::memcpy(save ? at : stored, save ? stored : at, static_cast<size_t>(bytes));
    at += bytes;
  };
  move(row.codes, kv_row_bytes(row.format, dim));
  if (kv_format_row(row.format).scales) move(row.scale, 2);
  if (kv_format_row(row.format).zeros) move(row.zero, 2);
  return at;
}

static inline Status kv_save_restore(const KvArgs& a, const Ctx& ctx) {
  const KvArgs* args = &a;
  const int64_t width = kv_saved_bytes(a.cache);
  parallel_for(ctx.pool, a.slots.shape[0], 1 + 65536 / width, [=](int64_t begin, int64_t end, int) {
    const KvCache& c = args->cache;
    const bool save = args->op == KvOp::save;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slot = slot_of(args->slots, i);
      if (slot < 0) continue;
      auto* row = static_cast<uint8_t*>(args->bytes.data) + i * args->bytes.strides[0];
      uint8_t* at = row + kKvSavedHead;
      if (save) {
        const auto format = static_cast<int32_t>(kv_slot_format(c, slot));
        std::memset(row, 0, static_cast<size_t>(kKvSavedHead));
        std::memcpy(row, &format, sizeof format);
      }
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        at = move_row(kv_row_at(c, slot, h, false), c.head_dim, save, at);
        at = move_row(kv_row_at(c, slot, h, true), c.head_dim_v, save, at);
      }
      if (save) std::memset(at, 0, static_cast<size_t>(row + width - at));
    }
  });
  return ok();
}

}  // namespace lowbit
