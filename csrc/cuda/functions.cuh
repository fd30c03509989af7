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

// 2^x by one instruction; 0 where f32 would have a subnormal number.
static inline __device__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

static inline __device__ float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }
static inline __device__ float silu(float x) { return x * sigmoid(x); }
static inline __device__ float gelu(float x) { return x * normcdff(x); }
// The same within 2^-14, for results of 16 bits. The integral beyond z is e^(-z^2 / 2) times a
// polynomial in 1 / (1 + 0.38 z), fitted for z up to 14. Both factors are away from 1 by 2^32, or
// the power would leave the range of its instruction where the result is still in that of bf16.
static inline __device__ float gelu_of_half(float x) {
  const float z = fabsf(x), t = reciprocal(__fmaf_rn(0.38f, z, 1.0f));
  float p = -0.08993182f * 0x1p-32f;
  p = __fmaf_rn(p, t, 0.18888481f * 0x1p-32f);
  p = __fmaf_rn(p, t, 0.09197284f * 0x1p-32f);
  p = __fmaf_rn(p, t, 0.15783174f * 0x1p-32f);
  p = __fmaf_rn(p, t, 0.1512249f * 0x1p-32f);
  const float beyond = p * t * power_of_two(__fmaf_rn(z * z, -0.72134752f, 32.0f));
  return x * (x < 0.0f ? beyond : 1.0f - beyond);
}
// (1 + tanh u) / 2 = 1 / (1 + e^(-2u)), which keeps its digits where tanh nears -1.
static inline __device__ float gelu_tanh(float x) {
  const float u = 0.79788456f * (x + 0.044715f * x * x * x);
  return x * sigmoid(u + u);
}

}  // namespace lowbit
