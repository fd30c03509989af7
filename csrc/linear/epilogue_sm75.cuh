// What happens to a sum before it is stored: epilogue.h for device code, a value or a gated pair at
// a time. Its choices are run time, shared by all threads.
#pragma once

#include "csrc/cuda/elements.cuh"
#include "csrc/cuda/functions.cuh"
#include "csrc/linear/linear.h"

namespace lowbit {

static inline __device__ float activated(Activation activation, float v) {
  switch (activation) {
    case Activation::none: return v;
    case Activation::relu: return v < 0.0f ? 0.0f : v;
    case Activation::relu2: return v < 0.0f ? 0.0f : v * v;
    case Activation::gelu:
    case Activation::geglu: return gelu(v);
    case Activation::gelu_tanh: return gelu_tanh(v);
    case Activation::silu:
    case Activation::swiglu: return silu(v);
  }
  return v;
}

static inline __device__ float bias_of(const LinearArgs& args, int64_t n) {
  return present(args.bias) ? load_f32(args.bias.data, args.bias.dtype, n) : 0.0f;
}

static inline __device__ void finish(const LinearArgs& args, int64_t m, int64_t column, float v) {
  if (present(args.residual)) {
    v += load_f32(args.residual.data, args.residual.dtype, m * args.residual.strides[0] + column);
  }
  store_f32(args.out.data, args.out.dtype, m * args.out.strides[0] + column, v);
}

// v is the sum of row m of x and row n of w, times the scale of x.
static inline __device__ void epilogue(const LinearArgs& args, int64_t m, int64_t n, float v) {
  finish(args, m, n, activated(args.activation, v + bias_of(args, n)));
}
// The gate is that of row n of w, the value that of row n + 1; n is even.
static inline __device__ void epilogue_gated(const LinearArgs& args, int64_t m, int64_t n,
                                             float gate, float value) {
  const float a = activated(args.activation, gate + bias_of(args, n));
  finish(args, m, n / 2, a * (value + bias_of(args, n + 1)));
}

}  // namespace lowbit
