// The rows of every op's registry that are compiled into liblowbit_cuda.so: kernels.inc, read where
// LB_CUDA is set.
#include "csrc/cuda/rows.h"

#include "csrc/attention/attention.h"
#include "csrc/copy/copy.h"
#include "csrc/elementwise/elementwise.h"
#include "csrc/embedding/embedding.h"
#include "csrc/kv/kv.h"
#include "csrc/linear/linear.h"
#include "csrc/norm/norm.h"
#include "csrc/peak/peak.h"
#include "csrc/quantize/quantize.h"
#include "csrc/rope/rope.h"
#include "csrc/softmax/softmax.h"

namespace lowbit {

#define KERNEL(name) extern const LinearKernel name;
#include "csrc/linear/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const AttentionKernel name;
#include "csrc/attention/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const KvKernel name;
#include "csrc/kv/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const QuantizeKernel name;
#include "csrc/quantize/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const NormKernel name;
#include "csrc/norm/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const RopeKernel name;
#include "csrc/rope/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const EmbeddingKernel name;
#include "csrc/embedding/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const ElementwiseKernel name;
#include "csrc/elementwise/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const CopyKernel name;
#include "csrc/copy/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const SoftmaxKernel name;
#include "csrc/softmax/kernels.inc"
#undef KERNEL
#define KERNEL(name) extern const PeakKernel name;
#include "csrc/peak/kernels.inc"
#undef KERNEL

#define KERNEL(name) &name,
static constexpr const void* kLinear[] = {
#include "csrc/linear/kernels.inc"
};
static constexpr const void* kAttention[] = {
#include "csrc/attention/kernels.inc"
};
static constexpr const void* kKv[] = {
#include "csrc/kv/kernels.inc"
};
static constexpr const void* kQuantize[] = {
#include "csrc/quantize/kernels.inc"
};
static constexpr const void* kNorm[] = {
#include "csrc/norm/kernels.inc"
};
static constexpr const void* kRope[] = {
#include "csrc/rope/kernels.inc"
};
static constexpr const void* kEmbedding[] = {
#include "csrc/embedding/kernels.inc"
};
static constexpr const void* kElementwise[] = {
#include "csrc/elementwise/kernels.inc"
};
static constexpr const void* kCopy[] = {
#include "csrc/copy/kernels.inc"
};
static constexpr const void* kSoftmax[] = {
#include "csrc/softmax/kernels.inc"
};
static constexpr const void* kPeak[] = {
#include "csrc/peak/kernels.inc"
};
#undef KERNEL

template <int kCount>
static constexpr CudaRows list(const char* op, const void* const (&rows)[kCount]) {
  return {op, rows, kCount};
}

const CudaRows kCudaOps[kCudaOpCount] = {
    list("linear", kLinear),
    list("attention", kAttention),
    list("kv", kKv),
    list("quantize", kQuantize),
    list("norm", kNorm),
    list("rope", kRope),
    list("embedding", kEmbedding),
    list("elementwise", kElementwise),
    list("copy", kCopy),
    list("softmax", kSoftmax),
    list("peak", kPeak),
};

}  // namespace lowbit
