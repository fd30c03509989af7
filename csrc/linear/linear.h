// linear: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias[N]) + residual[M,N]
//
//   x          [M, K], rows contiguous; f32, f16, bf16, or i8 / e4m3 / e5m2 codes with x_scale
//   x_scale    f32 [M], or f32 [M, ceil(K/128)] (not with compute = int8); absent unless x is codes
//   w          [N, K], packed for x's device; any format, any layout. x meets each plane of int1
//   bias       [N], f32, f16 or bf16, contiguous; or absent
//   residual   the shape of out, f32, f16 or bf16, rows contiguous; or absent
//   out        [M, N], or [M, N/2] for the gated activations, rows contiguous and apart; f32, f16,
//              bf16; with out_scale: i8, e4m3 or e5m2
//   out_scale  f32 [M] or f32 [M, ceil(columns/128)], contiguous: out is re-quantised per row or
//              per block of 128 columns, as quantize_rows does it; or absent
//
// residual may be the very view that out is; any other overlap of out with an input is refused.
//
// Gated activations read w's rows in pairs: row 2i is the gate, row 2i + 1 the value;
// out[m, i] = act(gate) * value, with silu for swiglu and gelu for geglu. bias is added before the
// activation. gelu is the exact one (erf), gelu_tanh its tanh form, relu2 the square of relu.
//
// M = 0 and N = 0 give an empty result; K = 0 gives act(bias) + residual. NaN and inf in x spread
// as IEEE arithmetic has it. Planes of int1 are multiplied one by one: an inf of x that meets two
// of unlike signs gives NaN.
//
// compute says what the kernel may do to x, so that the same call means the same numbers on every
// machine:
//   floating   x is never rounded beyond its dtype (codes are used exactly); products and sums in
//              f32 or better
//   int8       x is quantised per row: scale = max(max|x| / 127, 1e-12), round to nearest even, all
//              in f32. Products of codes are exact, sums in f32 or better (exact within a group in
//              the integer rows). x may already be i8 codes with one scale a row
//   fp8        x is quantised per row to e4m3: scale = max(max|x| / 448, 1e-12); products and sums
//              in f32 or better, but for rows with fp8_sums: there up to 128 products are added as
//              the tensor cores for fp8 do it. x may already be e4m3 or e5m2 codes
//   fp8_unpromoted  as fp8, but rows with fp8_sums may add all of K that way where no scale changes
//              along it, in place of 128 products: faster, and further off the longer K is. All
//              other rows take it for fp8
// Where x is quantised, a row that holds NaN or inf becomes NaN.
#pragma once

#include <cstdint>

#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"
#include "csrc/format/weight.h"

namespace lowbit {

// The order of both is shared with lib/words.ts (`activations`, `computes`).
enum class Activation : int32_t { none, relu, relu2, gelu, gelu_tanh, silu, swiglu, geglu };
enum class Compute : int32_t { floating, int8, fp8, fp8_unpromoted };
inline constexpr const char* kActivationNames[] = {"none",      "relu", "relu2",  "gelu",
                                                   "gelu_tanh", "silu", "swiglu", "geglu"};
inline constexpr const char* kComputeNames[] = {"float", "int8", "fp8", "fp8_unpromoted"};
inline constexpr int kActivationCount = sizeof kActivationNames / sizeof kActivationNames[0];
inline constexpr int kComputeCount = sizeof kComputeNames / sizeof kComputeNames[0];
static constexpr bool is_gated(Activation a) {
  return a == Activation::swiglu || a == Activation::geglu;
}

struct LinearArgs {
  Tensor x;
  Tensor x_scale;
  Weight w;
  Tensor bias;
  Tensor residual;
  Tensor out;
  Tensor out_scale;
  Activation activation;
  Compute compute;
};

// What one row can do. Zero in m_max means any M; multiples of 1 mean any size. m_min and
// group_max keep calls away from a row that other rows, further down, serve better.
struct LinearSpec {
  KindSet kinds;
  uint32_t layouts;   // bit(Layout)
  DTypeSet x;         // dtypes of x that it reads
  uint32_t computes;  // bit(Compute)
  bool zeros;         // reads stored zero points
  int64_t m_max, n_multiple, k_multiple, group_multiple;
  int64_t m_min = 0;
  int64_t group_max = 0;    // of groups with more columns other rows serve better; 0: any
  bool float_zeros = true;  // of `zeros`, those in f32 too
  bool one_scale = false;   // each row of w, and of x where it is codes, has one scale (w: or all)
  bool codes_only = false;  // linear_run quantises an x of floats before the row sees it
  bool block_scales = false;  // with one_scale: or one for 128 columns (of w: by 128 rows)
  // Runs of 128 products, cut at multiples of 128, are added 32 at a time in fixed point: 13 bits
  // below the first bit of the largest product or of the sum so far; what is smaller is cut off,
  // and of the new sum what is 13 bits below its own first bit. Sums of runs are added in f32.
  // Where the caller allows it, a run may be all of K.
  bool fp8_sums = false;
  bool many_tables = true;  // tables for each row or group, not only one for the matrix
  bool planes = false;      // repeats the columns of x for w of more planes than one
};
static constexpr uint32_t bit(Compute c) { return 1u << static_cast<int>(c); }

using LinearKernel = Kernel<LinearArgs, LinearSpec>;

struct LinearTable {
  const LinearKernel* const* rows;
  int count;
};
LinearTable linear_table();

// Shape and dtype of out when the caller gives none: as wide as the call says, in x's dtype (f32
// for codes).
Status linear_infer(const LinearArgs& args, Tensor* out);
// Is the call legal? The same answer on every device.
Status linear_check(const LinearArgs& args);
Status linear_select(const LinearArgs& args, const Choice& choice, const LinearKernel** row);
// Bytes of scratch for linear_run, the row's own included.
size_t linear_workspace(const LinearArgs& args, const LinearKernel& row, int threads);
// Runs the row; before it, quantises x where the row takes codes only; after it, re-quantises the
// result where out_scale is present.
Status linear_run(const LinearArgs& args, const LinearKernel& row, const Ctx& ctx);

// Columns of out.
static constexpr int64_t out_columns(const LinearArgs& args) {
  return is_gated(args.activation) ? args.w.n / 2 : args.w.n;
}

}  // namespace lowbit
