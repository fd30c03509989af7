// Tensor maps: how the copy engine sees a row-major matrix in device memory. Made on the host; a
// kernel takes them by value as __grid_constant__ parameters.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace lowbit {
namespace {

struct MapKey {
  const void* data;
  int64_t rows, columns, row_bytes;
  int32_t element;  // bytes: 1, 2 or 4. The engine moves bits, so the type behind them is no matter
  int32_t box_rows;
  int64_t one_line;  // 1: what is missing in L2 comes by lines of 128 bytes, not by pairs of them
};

using MapEncode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                               const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                               const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                               CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The encoder is a function of the driver, asked for through the runtime so that nothing links
// against the driver.
static inline MapEncode map_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                       &result) != cudaSuccess) {
    return nullptr;
  }
  return reinterpret_cast<MapEncode>(found);
}

// The map of `key`, by make(encode, key, map) where it is not known. Encoding takes about a
// microsecond, and the same few tensors come again and again: each thread remembers the maps that
// it made last, in kPlaces places of each kind of key. `hashed` are the parts of a key, beside its
// address, that tell maps apart.
template <uint32_t kPlaces, class Key, class Make>
static inline cudaError_t remembered_map(const Key& key, std::initializer_list<int64_t> hashed,
                                         const Make& make, CUtensorMap* map) {
  struct Place {
    Key key;
    CUtensorMap map;
  };
  static thread_local Place* places = nullptr;
  static const MapEncode encode = map_encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  if (places == nullptr) places = new Place[kPlaces]();
  uint64_t hash = reinterpret_cast<uint64_t>(key.data);
  for (const int64_t v : hashed) hash = (hash ^ static_cast<uint64_t>(v)) * 0x9E3779B97F4A7C15ull;
  Place& place = places[hash >> 32 & (kPlaces - 1)];
  if (std::memcmp(&place.key, &key, sizeof key) != 0) {
    if (make(encode, key, &place.map) != CUDA_SUCCESS) {
      place.key = {};
      return cudaErrorInvalidValue;
    }
    place.key = key;
  }
  *map = place.map;
  return cudaSuccess;
}

static inline CUresult make_tile_map(MapEncode encode, const MapKey& key, CUtensorMap* map) {
  const CUtensorMapDataType type = key.element == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : key.element == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_UINT32;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(key.columns),
                              static_cast<cuuint64_t>(key.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(key.row_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(128 / key.element),
                            static_cast<cuuint32_t>(key.box_rows)};
  const cuuint32_t steps[] = {1, 1};
  return encode(
      map, type, 2, const_cast<void*>(key.data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      key.one_line != 0 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Boxes of box_rows rows by 128 bytes in the swizzled tile of swizzle.cuh. `data` and row_bytes are
// multiples of 16, box_rows is at most 256.
static inline cudaError_t tile_map(const MapKey& key, CUtensorMap* map) {
  return remembered_map<512>(key, {key.rows, key.columns, key.row_bytes, key.box_rows},
                             make_tile_map, map);
}

}  // namespace
}  // namespace lowbit
