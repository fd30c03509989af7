// What happens to a row of sums before it is stored: scale of x, bias, activation or gate,
// residual, dtype. One function for all rows; its choices are run time because it touches M * N
// values and not M * N * K. F is f32 in kernels; double in the reference row, whose exp and erf are
// the C library's.
#pragma once

#include "csrc/linear/linear.h"
#include "csrc/simd/convert.h"
#include "csrc/simd/math.h"

namespace lowbit {

template <class F>
static inline F gelu_tanh_of(F v) {
  // (1 + tanh u) / 2 = 1 / (1 + e^(-2u)), which keeps its digits where tanh nears -1.
  const F u = F(0.79788456080286535588) * (v + F(0.044715) * v * v * v);
  return v * sigmoid_of(u + u);
}

template <class F>
static inline void activate(Activation activation, F* v, int64_t count) {
  switch (activation) {
    case Activation::none: return;
    case Activation::relu:
      for (int64_t i = 0; i < count; ++i) v[i] = v[i] < F(0) ? F(0) : v[i];
      return;
    case Activation::relu2:
      for (int64_t i = 0; i < count; ++i) {
        const F positive = v[i] < F(0) ? F(0) : v[i];
        v[i] = positive * positive;
      }
      return;
    case Activation::gelu:
    case Activation::geglu:
      for (int64_t i = 0; i < count; ++i) v[i] = v[i] * normal_cdf(v[i]);
      return;
    case Activation::gelu_tanh:
      for (int64_t i = 0; i < count; ++i) v[i] = gelu_tanh_of(v[i]);
      return;
    case Activation::silu:
    case Activation::swiglu:
      for (int64_t i = 0; i < count; ++i) v[i] = v[i] * sigmoid_of(v[i]);
      return;
  }
}

static inline void widen(const float* from, int64_t count, float* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * 4);
}
static inline void widen(const float* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// v[0..count) holds the sums of row m of out for rows [n0, n0 + count) of w, without the scale of
// x. n0 and count are even where the activation is gated. v is used up.
template <class F>
static inline void epilogue(const LinearArgs& args, int64_t m, int64_t n0, int64_t count,
                            F row_scale, F* v) {
  constexpr int64_t kBlock = 64;  // columns at a time, so that the temporaries stay in L1
  const Tensor& out = args.out;
  const bool gated = is_gated(args.activation);
  float loaded[kBlock];
  F a[kBlock], b[kBlock];
  for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
    int64_t width = count - i0 < kBlock ? count - i0 : kBlock;
    F* block = v + i0;
    if (row_scale != F(1)) {
      for (int64_t i = 0; i < width; ++i) block[i] *= row_scale;
    }
    if (present(args.bias)) {
      load_floats(args.bias.data, args.bias.dtype, n0 + i0, width, loaded);
      widen(loaded, width, b);
      for (int64_t i = 0; i < width; ++i) block[i] += b[i];
    }
    int64_t n = n0 + i0;
    if (gated) {
      width /= 2;
      n /= 2;
      for (int64_t i = 0; i < width; ++i) {
        a[i] = block[2 * i];
        b[i] = block[2 * i + 1];
      }
      activate(args.activation, a, width);
      for (int64_t i = 0; i < width; ++i) a[i] *= b[i];
      block = a;
    } else {
      activate(args.activation, block, width);
    }
    if (present(args.residual)) {
      load_floats(args.residual.data, args.residual.dtype, m * args.residual.strides[0] + n, width,
                  loaded);
      widen(loaded, width, b);
      for (int64_t i = 0; i < width; ++i) block[i] += b[i];
    }
    store_floats(out.data, out.dtype, m * out.strides[0] + n, width, block);
  }
}

}  // namespace lowbit
