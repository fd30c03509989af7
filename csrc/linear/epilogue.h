// What happens to a row of sums before it is stored: scale of x, bias, activation or gate,
// residual, dtype. One function for all rows; its choices are run time because it touches M * N
// values and not M * N * K. Kernels work on Lanes of f32; the reference row does it in
// double, with the C library's exp and erf.
#pragma once

#include <type_traits>

#include "csrc/linear/linear.h"
#include "csrc/simd/convert.h"
#include "csrc/simd/lanes.h"
#include "csrc/simd/math.h"

namespace lowbit {

// F is double, or Lanes.
template <class F>
static inline F gelu_tanh_of(F v) {
  using C = std::conditional_t<std::is_same_v<F, double>, double, float>;
  // (1 + tanh u) / 2 = 1 / (1 + e^(-2u)), which keeps its digits where tanh nears -1.
  const F u = C(0.79788456080286535588) * (v + C(0.044715) * v * v * v);
  return v * sigmoid_of(u + u);
}

// v[i] = step(v[i]) for i below count; floats by whole Lanes, which v has room for.
template <class Step>
static inline void each(double* v, int64_t count, Step step) {
  for (int64_t i = 0; i < count; ++i) v[i] = step(v[i]);
}
#if defined(__AVX2__)
template <class Step>
static inline void each(float* v, int64_t count, Step step) {
  for (int64_t i = 0; i < count; i += kLanes) store_lanes(v + i, step(load_lanes(v + i)));
}
#endif

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
    case Activation::geglu: return each(v, count, [](auto x) { return x * normal_cdf(x); });
    case Activation::gelu_tanh: return each(v, count, [](auto x) { return gelu_tanh_of(x); });
    case Activation::silu:
    case Activation::swiglu: return each(v, count, [](auto x) { return x * sigmoid_of(x); });
  }
}

static inline void widen(const float* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// For sums in double. v[0..count) holds the sums of row m of out for rows [n0, n0 + count) of w,
// without the scale of x. n0 and count are even where the activation is gated. v is used up.
static inline void epilogue(const LinearArgs& args, int64_t m, int64_t n0, int64_t count,
                            double row_scale, double* v) {
  constexpr int64_t kBlock = 64;  // columns at a time, so that the temporaries stay in L1
  const Tensor& out = args.out;
  const bool gated = is_gated(args.activation);
  float loaded[kBlock];
  double a[kBlock], b[kBlock];
  for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
    int64_t width = count - i0 < kBlock ? count - i0 : kBlock;
    double* block = v + i0;
    if (row_scale != 1.0) {
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

#if defined(__AVX2__)

// Every second lane of a and b, beginning with the first or the second one.
template <int kFirst>
static inline Lanes every_second(Lanes a, Lanes b) {
  constexpr int f = kFirst;
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, f, f + 2, f + 4, f + 6, f + 8, f + 10, f + 12, f + 14,
                                 f + 16, f + 18, f + 20, f + 22, f + 24, f + 26, f + 28, f + 30);
#else
  return __builtin_shufflevector(a, b, f, f + 2, f + 4, f + 6, f + 8, f + 10, f + 12, f + 14);
#endif
}

// For sums in f32, which stay as they are; the same arguments. Each step is a walk over 64 columns
// in L1: with choices of dtype and tails between them, activations took twice the time.
static inline void epilogue(const LinearArgs& args, int64_t m, int64_t n0, int64_t count,
                            float row_scale, const float* v) {
  constexpr int64_t kBlock = 64;
  const Lanes scale = Lanes{} + row_scale;
  const auto at = [](const Tensor& t, auto* type, int64_t first) {
    return static_cast<decltype(type)>(t.data) + first;
  };
  float block[kBlock] = {}, gates[kBlock / 2], values[kBlock / 2];
  for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
    int64_t width = count - i0 < kBlock ? count - i0 : kBlock, n = n0 + i0;
    if (present(args.bias)) {
      with_float_type(args.bias.dtype, [&](auto* type) {
        map_run(v + i0, at(args.bias, type, n), block, width,
                [&](Lanes sum, Lanes bias) { return sum * scale + bias; });
      });
    } else {
      map_run(v + i0, block, width, [&](Lanes sum) { return sum * scale; });
    }
    if (is_gated(args.activation)) {
      width /= 2;
      n /= 2;
      for (int64_t i = 0; i < width; i += kLanes) {
        const Lanes a = load_lanes(block + 2 * i), b = load_lanes(block + 2 * i + kLanes);
        store_lanes(gates + i, every_second<0>(a, b));
        store_lanes(values + i, every_second<1>(a, b));
      }
      activate(args.activation, gates, width);
      map_run(gates, values, block, width, [](Lanes gate, Lanes value) { return gate * value; });
    } else {
      activate(args.activation, block, width);
    }
    if (present(args.residual)) {
      with_float_type(args.residual.dtype, [&](auto* type) {
        map_run(block, at(args.residual, type, m * args.residual.strides[0] + n), block, width,
                [](Lanes value, Lanes residual) { return value + residual; });
      });
    }
    with_float_type(args.out.dtype, [&](auto* type) {
      map_run(block, at(args.out, type, m * args.out.strides[0] + n), width, [](Lanes value) {
        asm("" : "+x"(value));  // or GCC copies f32 by rep movs, slow for so few bytes
        return value;
      });
    });
  }
}

// `count` elements from `first` on, into L2.
static inline void prefetch_span(const Tensor& t, int64_t first, int64_t count) {
  const char* p = static_cast<const char*>(t.data) + first * dtype_bytes(t.dtype);
  for (int64_t i = 0; i < count * dtype_bytes(t.dtype); i += 64) _mm_prefetch(p + i, _MM_HINT_T1);
}

// The part of out, or of residual, that rows [m, m + rows) and columns [n0, n0 + count) of the sums
// become: the weights that stream through have pushed it out of L2, and neither the epilogue's
// loads nor, once the store buffer is full, its stores go on without it.
static inline void prefetch_rows(const LinearArgs& args, const Tensor& t, int64_t m, int64_t rows,
                                 int64_t n0, int64_t count) {
  const int64_t pair = is_gated(args.activation) ? 2 : 1;
  for (int64_t i = m; i < m + rows; ++i) {
    prefetch_span(t, i * t.strides[0] + n0 / pair, count / pair);
  }
}

// What the epilogue of those sums will read, asked for before the products.
static inline void prefetch_epilogue(const LinearArgs& args, int64_t m, int64_t rows, int64_t n0,
                                     int64_t count) {
  if (present(args.bias)) prefetch_span(args.bias, n0, count);
  if (present(args.residual)) prefetch_rows(args, args.residual, m, rows, n0, count);
}

#endif

}  // namespace lowbit
