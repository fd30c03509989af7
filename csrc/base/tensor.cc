#include "csrc/base/tensor.h"

#include <cstdio>

namespace lowbit {

ShapeText shape_text(const Tensor& t) {
  ShapeText s;
  int at = std::snprintf(s.text, sizeof s.text, "[");
  for (int i = 0; i < t.rank; ++i) {
    at += std::snprintf(s.text + at, sizeof s.text - at, i ? ", %lld" : "%lld",
                        static_cast<long long>(t.shape[i]));
  }
  std::snprintf(s.text + at, sizeof s.text - at, "]");
  return s;
}

Tensor make_tensor(void* data, DType dtype, DeviceTag device, const int64_t* shape, int rank) {
  Tensor t = {};
  t.data = data;
  t.dtype = dtype;
  t.device = device;
  t.rank = rank;
  int64_t stride = 1;
  for (int i = rank - 1; i >= 0; --i) {
    t.shape[i] = shape[i];
    t.strides[i] = stride;
    stride *= shape[i];
  }
  return t;
}

}  // namespace lowbit
