// The functions of simd/math.h for one f32 of device code.
#pragma once

#include <cuda_runtime.h>

namespace lowbit {

// An ulp off at most, where a division takes three times as long.
static inline __device__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

static inline __device__ float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }
static inline __device__ float silu(float x) { return x * sigmoid(x); }
static inline __device__ float gelu(float x) { return x * normcdff(x); }
// (1 + tanh u) / 2 = 1 / (1 + e^(-2u)), which keeps its digits where tanh nears -1.
static inline __device__ float gelu_tanh(float x) {
  const float u = 0.79788456f * (x + 0.044715f * x * x * x);
  return x * sigmoid(u + u);
}

}  // namespace lowbit
