// Tensor maps of [batch, heads, tokens, elements] in any order of memory: boxes of rows of one
// head.
#pragma once

#include "csrc/cuda/tensor_map.cuh"
#include "csrc/cuda/tma.cuh"

namespace lowbit {
namespace {

struct BoxKey {
  const void* data;
  int64_t elements, tokens, heads, batch;  // sizes, none 0; elements of 16 bits
  int64_t token_bytes, head_bytes, batch_bytes;
  int64_t rows;  // of a box: tokens
};

static inline CUresult make_box_map(MapEncode encode, const BoxKey& key, CUtensorMap* map) {
  const auto u64 = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const cuuint64_t sizes[] = {u64(key.elements), u64(key.tokens), u64(key.heads), u64(key.batch)};
  // The stride of a dimension of size 1 may be anything; the engine wants one it can hold.
  const auto stride = [&](int64_t size, int64_t bytes) { return u64(size == 1 ? 16 : bytes); };
  const cuuint64_t strides[] = {stride(key.tokens, key.token_bytes),
                                stride(key.heads, key.head_bytes),
                                stride(key.batch, key.batch_bytes)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(key.rows), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(key.data), sizes, strides,
                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Boxes of 64 elements of `rows` tokens in the swizzled tile of swizzle.cuh. `data` and all strides
// are multiples of 16.
static inline cudaError_t box_map(const BoxKey& key, CUtensorMap* map) {
  return remembered_map<128>(key, {key.tokens, key.token_bytes, key.head_bytes, key.rows},
                             make_box_map, map);
}

// The box at element x of token y of a head.
__device__ __forceinline__ void box_load(void* to, const CUtensorMap* map, int x, int y, int head,
                                         int batch, uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4, %5}], [%6];" ::"r"(smem_address(to)),
      "l"(map), "r"(x), "r"(y), "r"(head), "r"(batch), "r"(smem_address(bar))
      : "memory");
}

}  // namespace
}  // namespace lowbit
