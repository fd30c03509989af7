// kv: check, choice and run. Built without ISA flags.
#include "csrc/kv/kv.h"

#include <cstring>
#include <initializer_list>

#include "csrc/base/check.h"
#include "csrc/base/rows.h"
#include "csrc/base/select.h"

namespace lowbit {

#define KERNEL(name) extern const KvKernel name;
#include "csrc/kv/kernels.inc"
#undef KERNEL

static const KvKernel* const kRows[] = {
#define KERNEL(name) &name,
#include "csrc/kv/kernels.inc"
#undef KERNEL
};

KvTable kv_table() {
  const RowList<KvKernel> all = all_rows("kv", kRows);
  return {all.rows, all.count};
}

static constexpr const char* kOps[] = {"append", "read", "copyPages", "save", "restore"};
static const char* op_name(const KvArgs& a) { return kOps[static_cast<int>(a.op)]; }

static Status check_between(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return ok();
  return error(Code::argument, "kvCache: expected %s from %lld to %lld but got %lld", name,
               ll(least), ll(most), ll(value));
}

Status kv_cache_make(KvCache* c) {
  // What slots of 32 bits can number; products stay far from 64 bits.
  constexpr int64_t kMost = INT32_MAX;
  LB_TRY(check_between("pages", c->pages, 0, kMost));
  LB_TRY(check_between("page_size", c->page_size, kKvPageLeast, kKvPageMost));
  if ((c->page_size & (c->page_size - 1)) != 0) {
    return error(Code::argument, "kvCache: expected page_size to be a power of two but got %lld",
                 ll(c->page_size));
  }
  LB_TRY(check_between("kv_heads", c->kv_heads, 1, kMost));
  LB_TRY(check_between("head_dim", c->head_dim, 1, kKvHeadDimMost));
  LB_TRY(check_between("head_dim_v", c->head_dim_v, 1, kKvHeadDimMost));
  LB_TRY(check_between("prefix.rows", c->prefix_rows, 0, kMost));
  if (c->prefix_rows > 0) LB_TRY(check_between("prefix.tokens", c->prefix_tokens, 1, kMost));
  if (c->prefix_rows == 0) c->prefix_tokens = 0;
  if (c->format == KvFormat::int4 && (c->head_dim % 2 != 0 || c->head_dim_v % 2 != 0)) {
    return error(Code::argument,
                 "kvCache: expected head_dim and head_dim_v to be even for int4 but got %lld and "
                 "%lld",
                 ll(c->head_dim), ll(c->head_dim_v));
  }
  if (!is_float(c->prefix_format)) {
    return error(Code::argument, "kvCache: expected prefix.dtype to be f32, f16 or bf16 but got %s",
                 kv_format_name(c->prefix_format));
  }
  if (kv_slots(*c) > kMost) {
    return error(Code::argument, "kvCache: expected at most %lld tokens but got %lld", ll(kMost),
                 ll(kv_slots(*c)));
  }
  c->page = kv_block(c->format, c->page_size, c->head_dim, c->head_dim_v);
  c->prefix = kv_block(c->prefix_format, c->prefix_tokens, c->head_dim, c->head_dim_v);
  const double bytes = static_cast<double>(c->kv_heads) *
                       (static_cast<double>(c->pages) * static_cast<double>(c->page.bytes) +
                        static_cast<double>(c->prefix_rows) * static_cast<double>(c->prefix.bytes));
  if (bytes > 281474976710656.0) {  // 2^48, as for tensors
    return error(Code::memory, "kvCache: the cache would take %g bytes", bytes);
  }
  return ok();
}

// A list of slots or pages; its length is `length` unless that is negative.
static Status check_list(const KvArgs& a, const Named& n, int64_t length, const char* why) {
  const char* op = op_name(a);
  const Tensor& t = *n.tensor;
  LB_TRY(check_present(op, n));
  LB_TRY(check_dtype(op, n, bit(DType::i32)));
  if (length >= 0) return check_vector(op, n, length, why);
  if (t.rank == 1) return check_rows(op, n);
  return error(Code::shape, "%s: expected %s of shape [n] but got %s", op, n.name,
               shape_text(t).text);
}

static Tensor expected_kv(const KvArgs& a, int64_t dim) {
  const int64_t shape[] = {a.slots.shape[0], a.cache.kv_heads, dim};
  return make_tensor(nullptr, DType::f32, a.cache.device, shape, 3);
}
Status kv_infer_k(const KvArgs& a, Tensor* k) {
  LB_TRY(check_list(a, {"slots", &a.slots}, -1, ""));
  *k = expected_kv(a, a.cache.head_dim);
  return ok();
}
Status kv_infer_v(const KvArgs& a, Tensor* v) {
  LB_TRY(check_list(a, {"slots", &a.slots}, -1, ""));
  *v = expected_kv(a, a.cache.head_dim_v);
  return ok();
}
Status kv_infer_bytes(const KvArgs& a, Tensor* bytes) {
  LB_TRY(check_list(a, {"slots", &a.slots}, -1, ""));
  const int64_t shape[] = {a.slots.shape[0], kv_saved_bytes(a.cache)};
  *bytes = make_tensor(nullptr, DType::u8, a.cache.device, shape, 2);
  return ok();
}

// k or v, of `tokens` tokens.
static Status check_kv(const KvArgs& a, const Named& n, DTypeSet dtypes, int64_t tokens,
                       int64_t dim) {
  const char* op = op_name(a);
  const Tensor& t = *n.tensor;
  LB_TRY(check_present(op, n));
  LB_TRY(check_dtype(op, n, dtypes));
  if (t.rank != 3 || t.shape[0] != tokens || t.shape[1] != a.cache.kv_heads || t.shape[2] != dim) {
    return error(Code::shape,
                 "%s: expected %s of shape [%lld, %lld, %lld] (tokens, and kv_heads and head dim "
                 "of the cache) but got %s",
                 op, n.name, ll(tokens), ll(a.cache.kv_heads), ll(dim), shape_text(t).text);
  }
  return check_rows(op, n);
}

static Status check_rope(const KvArgs& a) {
  const Named cos = {"cos", &a.cos}, sin = {"sin", &a.sin}, positions = {"positions", &a.positions};
  if (!present(a.cos) && !present(a.sin) && !present(a.positions)) return ok();
  for (const Named& n : {cos, sin}) {
    LB_TRY(check_present("append", n));
    LB_TRY(check_dtype("append", n, bit(DType::f32)));
    LB_TRY(check_rows("append", n));
  }
  if (a.cos.rank != 2 || a.cos.shape[1] < 1 || 2 * a.cos.shape[1] > a.cache.head_dim) {
    return error(Code::shape,
                 "append: expected cos of shape [positions, rotaryDim / 2] with rotaryDim from 2 "
                 "to headDim = %lld but got %s",
                 ll(a.cache.head_dim), shape_text(a.cos).text);
  }
  LB_TRY(check_shape("append", sin, a.cos, "as cos"));
  return check_list(a, positions, a.k.shape[0], "the tokens of k");
}

static Status check_append(const KvArgs& a) {
  const Named k = {"k", &a.k}, v = {"v", &a.v}, slots = {"slots", &a.slots};
  LB_TRY(check_present("append", k));
  const int64_t tokens = a.k.rank > 0 ? a.k.shape[0] : 0;
  LB_TRY(check_kv(a, k, kFloats, tokens, a.cache.head_dim));
  LB_TRY(check_kv(a, v, kFloats, tokens, a.cache.head_dim_v));
  LB_TRY(check_list(a, slots, tokens, "the tokens of k"));
  return check_rope(a);
}

static Status check_read(const KvArgs& a) {
  const Named k = {"k", &a.k}, v = {"v", &a.v}, slots = {"slots", &a.slots};
  LB_TRY(check_list(a, slots, -1, ""));
  LB_TRY(check_kv(a, k, bit(DType::f32), a.slots.shape[0], a.cache.head_dim));
  LB_TRY(check_kv(a, v, bit(DType::f32), a.slots.shape[0], a.cache.head_dim_v));
  for (const Named& n : {k, v}) {
    LB_TRY(check_injective("read", n));
    LB_TRY(check_apart("read", n, slots));
  }
  return check_apart("read", k, v);
}

static Status check_bytes(const KvArgs& a) {
  const char* op = op_name(a);
  const Named bytes = {"bytes", &a.bytes}, slots = {"slots", &a.slots};
  LB_TRY(check_list(a, slots, -1, ""));
  Tensor expected;
  LB_TRY(kv_infer_bytes(a, &expected));
  LB_TRY(check_present(op, bytes));
  LB_TRY(check_dtype(op, bytes, bit(DType::u8)));
  LB_TRY(check_shape(op, bytes, expected, "a row of bytes for each slot of this cache"));
  LB_TRY(check_rows(op, bytes));
  if (a.op == KvOp::restore) return ok();
  LB_TRY(check_injective(op, bytes));
  return check_apart(op, bytes, slots);
}

Status kv_check(const KvArgs& a) {
  switch (a.op) {
    case KvOp::append: LB_TRY(check_append(a)); break;
    case KvOp::read: LB_TRY(check_read(a)); break;
    case KvOp::copy_pages:
      LB_TRY(check_list(a, {"from", &a.slots}, -1, ""));
      LB_TRY(check_list(a, {"to", &a.to}, a.slots.shape[0], "the pages of from"));
      break;
    default: LB_TRY(check_bytes(a)); break;
  }
  const Named all[] = {
      {"k", &a.k},         {"v", &a.v},     {"slots", &a.slots}, {"to", &a.to},
      {"bytes", &a.bytes}, {"cos", &a.cos}, {"sin", &a.sin},     {"positions", &a.positions}};
  for (const Named& n : all) {
    if (!present(*n.tensor) || same_device(n.tensor->device, a.cache.device)) continue;
    return error(Code::device, "%s: %s is on another device than the cache", op_name(a), n.name);
  }
  return ok();
}

static bool fits(const KvArgs& a, const KvSpec& spec) {
  if (a.op != KvOp::append) return true;
  return has(spec.dtypes, a.k.dtype) && has(spec.dtypes, a.v.dtype);
}

Status kv_select(const KvArgs& args, const Choice& choice, const KvKernel** row) {
  const KvTable table = kv_table();
  return select_row(table.rows, table.count, choice, fits, args, "kv", row);
}

size_t kv_workspace(const KvArgs& args, const KvKernel& row, int threads) {
  return row.workspace == nullptr ? 0 : row.workspace(args, threads);
}

Status kv_blame(const KvArgs& a, int64_t place, int32_t value) {
  const char* op = op_name(a);
  const int64_t i = place & (kOfTo - 1);
  switch (place & ~(kOfTo - 1)) {
    case kOfPositions:
      return error(Code::argument,
                   "%s: positions[%lld] = %d is outside the tables of %lld positions", op, ll(i),
                   value, ll(a.cos.shape[0]));
    case kOfSavedFormat:
      return error(Code::argument,
                   "%s: expected token %lld to be saved in the format of its slot but the word of "
                   "its format is %d",
                   op, ll(i), value);
    case kOfTo:
      return error(Code::argument, "%s: to[%lld] = %d is no page of the cache, 0 to %lld", op,
                   ll(i), value, ll(a.cache.pages - 1));
    default: break;
  }
  if (a.op == KvOp::copy_pages) {
    return error(Code::argument, "%s: from[%lld] = %d is no page of the cache, 0 to %lld", op,
                 ll(i), value, ll(a.cache.pages - 1));
  }
  return error(Code::argument, "%s: slots[%lld] = %d is no slot of the cache, 0 to %lld", op, ll(i),
               value, ll(kv_slots(a.cache) - 1));
}

static int32_t saved_format(const KvArgs& a, int64_t i) {
  int32_t word;
  std::memcpy(&word, static_cast<const uint8_t*>(a.bytes.data) + i * a.bytes.strides[0],
              sizeof word);
  return word;
}

static Status check_values(const KvArgs& a) {
  const auto* slots = static_cast<const int32_t*>(a.slots.data);
  const auto* to = static_cast<const int32_t*>(a.to.data);
  const auto* positions = static_cast<const int32_t*>(a.positions.data);
  const bool pages = a.op == KvOp::copy_pages,
             writes = a.op == KvOp::append || a.op == KvOp::restore;
  const int64_t least = writes ? -1 : 0, end = pages ? a.cache.pages : kv_slots(a.cache);
  for (int64_t i = 0; i < a.slots.shape[0]; ++i) {
    const int32_t slot = slots[i];
    if (slot < least || slot >= end) return kv_blame(a, i, slot);
    if (pages && (to[i] < 0 || to[i] >= end)) return kv_blame(a, kOfTo + i, to[i]);
    if (slot < 0) continue;
    if (present(a.positions) && (positions[i] < 0 || positions[i] >= a.cos.shape[0])) {
      return kv_blame(a, kOfPositions + i, positions[i]);
    }
    if (a.op == KvOp::restore &&
        saved_format(a, i) != static_cast<int32_t>(kv_slot_format(a.cache, slot))) {
      return kv_blame(a, kOfSavedFormat + i, saved_format(a, i));
    }
  }
  return ok();
}

Status kv_run(const KvArgs& args, const KvKernel& row, const Ctx& ctx) {
  if (args.slots.shape[0] == 0) return ok();
  if (ctx.check == nullptr) LB_TRY(check_values(args));
  return row.run(args, ctx);
}

}  // namespace lowbit
