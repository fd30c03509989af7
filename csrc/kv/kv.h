// kv: what goes into a paged cache of keys and values and what comes out of it. The cache, its
// formats and the numbers of its slots stand in csrc/attention/cache.h; attention reads it.
//
//   append      k [tokens, kv_heads, head_dim] and v [tokens, kv_heads, head_dim_v], each f32, f16
//               or bf16, are quantised to the cache's format and written: token t to slots[t], none
//               for -1. With cos, sin and positions k is turned first, as rope.h says, in f32 and
//               without a rounding before it is quantised: first = fma(x1, cos, -(x2 * sin)),
//               second = fma(x2, cos, x1 * sin). positions is i32 [tokens]; that of a token which
//               is left out may be anything.
//   read        k and v, f32, receive the tokens of `slots`, each value rounded once per operation.
//   copy_pages  page slots[i] is copied to page to[i].
//   save        bytes u8 [n, kv_saved_bytes] receives the tokens of `slots` as they are stored.
//   restore     the inverse: token i goes to slots[i], none for -1. A token that was saved in
//               another format than its slot has is refused.
//
// slots, to and positions are i32 [n], contiguous. The last dimensions of k, v, cos, sin and bytes
// are contiguous, all other strides are free. All rows write the same bits. A slot or page that is
// written is named once in a call, and pages that are copied are not written by it: else what such
// a slot holds is one or the other. Numbers out of range are found when the op runs: on a
// CPU before anything is written, on CUDA by the kernel, which leaves their tokens alone. They
// poison the outputs.
//
// A saved token: the format as i32, 12 bytes of zeros, then head by head the codes of K and of V
// and, where the format has them, scale and zero of K and of V; zeros up to kv_saved_bytes.
#pragma once

#include "csrc/attention/cache.h"
#include "csrc/base/kernel.h"
#include "csrc/rope/rope.h"

namespace lowbit {

enum class KvOp : int32_t { append, read, copy_pages, save, restore };

struct KvArgs {
  KvOp op;
  KvCache cache;
  Tensor k, v;
  Tensor slots, to;
  Tensor bytes;
  Tensor cos, sin, positions;  // append; all three or none
  Pairing pairing;
};

struct KvSpec {
  DTypeSet dtypes;  // of k and v that are appended
};

using KvKernel = Kernel<KvArgs, KvSpec>;
struct KvTable {
  const KvKernel* const* rows;
  int count;
};
KvTable kv_table();

inline constexpr int64_t kKvSavedHead = 16;
// Bytes of one saved token's K and V of one head.
static constexpr int64_t kv_token_bytes(const KvCache& c, KvFormat f) {
  const KvFormatRow& row = kv_format_row(f);
  return kv_row_bytes(f, c.head_dim) + kv_row_bytes(f, c.head_dim_v) + (row.scales ? 4 : 0) +
         (row.zeros ? 4 : 0);
}
static constexpr int64_t kv_saved_bytes(const KvCache& c) {
  const int64_t own = kv_token_bytes(c, c.format);
  const int64_t prefix = c.prefix_rows > 0 ? kv_token_bytes(c, c.prefix_format) : 0;
  return kKvSavedHead + (c.kv_heads * (own > prefix ? own : prefix) + 15) / 16 * 16;
}
static constexpr KvFormat kv_slot_format(const KvCache& c, int64_t slot) {
  return slot < kv_page_slots(c) ? c.format : c.prefix_format;
}

// Whether a cache of these sizes can be; fills in what follows from them. `data` stays as it is.
Status kv_cache_make(KvCache* cache);

// What the caller leaves to the library: k and v of read, bytes of save.
Status kv_infer_k(const KvArgs& args, Tensor* k);
Status kv_infer_v(const KvArgs& args, Tensor* v);
Status kv_infer_bytes(const KvArgs& args, Tensor* bytes);
Status kv_check(const KvArgs& args);
Status kv_select(const KvArgs& args, const Choice& choice, const KvKernel** row);
size_t kv_workspace(const KvArgs& args, const KvKernel& row, int threads);
// Why an entry is refused. `place` is its index and, as bits, what it belongs to: slots if none.
inline constexpr int64_t kOfTo = int64_t{1} << 29, kOfPositions = int64_t{2} << 29;
inline constexpr int64_t kOfSavedFormat = int64_t{3} << 29;
Status kv_blame(const KvArgs& args, int64_t place, int32_t value);
// Checks the values of slots, to, positions and of what was saved, then runs the row; on CUDA the
// row's kernel checks them.
Status kv_run(const KvArgs& args, const KvKernel& row, const Ctx& ctx);

}  // namespace lowbit
