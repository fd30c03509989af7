// Copies between element types and memory orders, for tensors that enter and leave the library.
#pragma once

#include "csrc/base/tensor.h"

namespace lowbit {

// count elements from one dtype to another. Equal dtypes: a plain copy. Between floating dtypes:
// round to nearest even. Between an integer and a floating dtype or another integer dtype: false,
// and nothing is written.
bool convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count);
bool convertible(DType to, DType from);

// The elements of a view in row-major order, converted; `to` holds numel(from) elements of
// to_dtype.
void gather(void* to, DType to_dtype, const Tensor& from);
// The inverse: fills a view from row-major elements.
void scatter(const Tensor& to, const void* from, DType from_dtype);

}  // namespace lowbit
