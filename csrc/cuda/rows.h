// The kernel rows that this library holds, op by op: rows.cc.
#pragma once

#include "csrc/base/cuda_api.h"

namespace lowbit {

inline constexpr int32_t kCudaOpCount = 11;
extern const CudaRows kCudaOps[kCudaOpCount];

}  // namespace lowbit
