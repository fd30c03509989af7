// Where the keys and values of an item come from, tile by tile: tensors, which are read in place,
// or a cache, whose tokens are decoded to scratch for all rows of the block.
#pragma once

#include "csrc/attention/decode.h"
#include "csrc/attention/state.h"
#include "csrc/attention/tile.h"

namespace lowbit {

template <class T>
struct Source {
  const T *k, *v;  // the tile's first key and value
  int64_t k_stride, v_stride;
  int count;
};

template <class T>
struct TensorKeys {
  using Element = T;
  static constexpr bool kInPlace = true;
  const T *k, *v;
  int64_t k_stride, v_stride;

  TensorKeys(const Call& c, const Item& item, const Scratch&) {
    const Tensor &of_k = c.args->k, &of_v = c.args->v;
    k = static_cast<const T*>(of_k.data) + item.s.k + item.kv_head * head_stride(of_k);
    v = static_cast<const T*>(of_v.data) + item.s.v + item.kv_head * head_stride(of_v);
    k_stride = token_stride(of_k);
    v_stride = token_stride(of_v);
  }
  Source<T> tile(int64_t first, int count) const {
    return {k + first * k_stride, v + first * v_stride, k_stride, v_stride, count};
  }
};

template <class V>
struct PagedKeys {
  using Element = float;
  static constexpr bool kInPlace = false;
  const Call& c;
  const Item& item;
  const Scratch& t;

  PagedKeys(const Call& call, const Item& of, const Scratch& scratch)
      : c(call), item(of), t(scratch) {}
  Source<float> tile(int64_t first, int count) const {
    const AttentionArgs& a = *c.args;
    const Plan& p = c.plan;
    for (int j = 0; j < count;) {
      const KeyRun run = key_run(a, item.s, item.kv_head, first + j, count - j);
      const auto part = [&](int64_t dim, bool of_values, float* to, int64_t stride) {
        kv_decode(kv_tokens(run.format, *run.form, run.block, run.token, run.count, dim, of_values),
                  dim, to + j * stride, stride);
      };
      part(p.head_dim, false, t.tile_k, p.head_dim_pad);
      part(p.head_dim_v, true, t.tile_v, p.head_dim_v_pad);
      j += run.count;
    }
    return {t.tile_k, t.tile_v, p.head_dim_pad, p.head_dim_v_pad, count};
  }
};

}  // namespace lowbit
