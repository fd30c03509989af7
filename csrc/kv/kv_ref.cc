// kv_ref: append, read, copies, save and restore of a paged cache, number by number; the oracle of
// every kernel.
//
// Shapes    all of kv.h.
// Layout    any strides that the contract allows; csrc/attention/cache.h has the cache.
// Bound     memory: k and v read once, their codes written once.
// Method    a row in f32 on the stack: turned, its range found, encoded.
// Source    the formulas in kv.h and csrc/attention/cache.h.
#include <initializer_list>

#include "csrc/base/rows.h"
#include "csrc/kv/encode.h"
#include "csrc/kv/move.h"

namespace lowbit {
namespace {

void turn(const KvArgs& a, int64_t position, float* x) {
  const int64_t half = a.cos.shape[1];
  const auto* cos = static_cast<const float*>(a.cos.data) + position * a.cos.strides[0];
  const auto* sin = static_cast<const float*>(a.sin.data) + position * a.sin.strides[0];
  const bool halves = a.pairing == Pairing::half;
  for (int64_t i = 0; i < half; ++i) {
    float& first = x[halves ? i : 2 * i];
    float& second = x[halves ? i + half : 2 * i + 1];
    const float x1 = first, x2 = second;
    first = __builtin_fmaf(x1, cos[i], -(x2 * sin[i]));
    second = __builtin_fmaf(x2, cos[i], x1 * sin[i]);
  }
}

void put_half(uint8_t* at, uint16_t bits) {
  at[0] = static_cast<uint8_t>(bits);
  at[1] = static_cast<uint8_t>(bits >> 8);
}

void encode(const float* x, int64_t dim, const KvRow& row) {
  if (is_float(row.format)) {
    for (int64_t d = 0; d < dim; ++d) store_f32(row.codes, kv_dtype(row.format), d, x[d]);
    return;
  }
  float low = 0, high = 0;
  bool finite = true;
  for (int64_t d = 0; d < dim; ++d) {
    low = x[d] < low ? x[d] : low;
    high = x[d] > high ? x[d] : high;
    finite = finite && (float_bits(x[d]) & 0x7fffffffu) < 0x7f800000u;
  }
  const KvScale s = kv_scale_of(row.format, low, high, finite);
  put_half(row.scale, s.scale);
  const auto code = [&](int64_t d) -> uint8_t {
    if (!finite) return 0;
    switch (row.format) {
      case KvFormat::int8: return kv_int8(x[d], s);
      case KvFormat::int4: return kv_int4(x[d], s);
      default: return kv_fp8(x[d], s);
    }
  };
  if (row.format != KvFormat::int4) {
    for (int64_t d = 0; d < dim; ++d) row.codes[d] = code(d);
    return;
  }
  put_half(row.zero, s.zero);
  for (int64_t d = 0; d < dim / 2; ++d) {
    row.codes[d] = static_cast<uint8_t>(code(d) | code(d + dim / 2) << 4);
  }
}

Status append(const KvArgs& args, const Ctx& ctx) {
  const KvArgs* a = &args;
  const int64_t heads = args.cache.kv_heads, tokens = args.slots.shape[0];
  const int64_t grain = row_grain(args.cache.head_dim, 4096);
  parallel_for(ctx.pool, tokens * heads, grain, [=](int64_t begin, int64_t end, int) {
    float x[kKvHeadDimMost];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / heads, head = i % heads, slot = slot_of(a->slots, token);
      if (slot < 0) continue;
      for (const bool of_values : {false, true}) {
        const Tensor& t = of_values ? a->v : a->k;
        const int64_t at = token * t.strides[0] + head * t.strides[1];
        for (int64_t d = 0; d < t.shape[2]; ++d) x[d] = load_f32(t.data, t.dtype, at + d);
        if (!of_values && present(a->cos)) turn(*a, slot_of(a->positions, token), x);
        encode(x, t.shape[2], kv_row_at(a->cache, slot, head, of_values));
      }
    }
  });
  return ok();
}

Status read(const KvArgs& args, const Ctx& ctx) {
  const KvArgs* a = &args;
  const int64_t heads = args.cache.kv_heads, tokens = args.slots.shape[0];
  const int64_t grain = row_grain(args.cache.head_dim, 4096);
  parallel_for(ctx.pool, tokens * heads, grain, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / heads, head = i % heads, slot = slot_of(a->slots, token);
      for (const bool of_values : {false, true}) {
        const Tensor& t = of_values ? a->v : a->k;
        const KvRow row = kv_row_at(a->cache, slot, head, of_values);
        float* out = static_cast<float*>(t.data) + token * t.strides[0] + head * t.strides[1];
        for (int64_t d = 0; d < t.shape[2]; ++d) out[d] = kv_at(row, t.shape[2], d);
      }
    }
  });
  return ok();
}

Status run(const KvArgs& args, const Ctx& ctx) {
  switch (args.op) {
    case KvOp::append: return append(args, ctx);
    case KvOp::read: return read(args, ctx);
    case KvOp::copy_pages: return kv_copy_pages(args, ctx);
    default: return kv_save_restore(args, ctx);
  }
}

}  // namespace

extern const KvKernel kv_ref;
const KvKernel kv_ref = {"kv_ref", kArchCpu, {kFloats}, nullptr, run};

}  // namespace lowbit
