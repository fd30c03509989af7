// linear_int4_f16_sm90a: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; symmetric int4
// weights, x in f16.
//
// Shapes    any. An x whose rows do not begin at multiples of 16 bytes is copied first.
// Layout    frag64: groups of 32, 64 or 128, or one scale a row, or one for all.
// Bound     M up to about 46: memory, half a byte a weight and its share of the scale; the decoding
//           takes about 20 instructions for 32 weights. Beyond: 2048 products a cycle and
//           multiprocessor.
// Method    M = 1: one_unit_sm90a.cuh where it takes the call, x as digits. M <= 8:
//           units_sm90a.cuh where w has more than 128 rows a multiprocessor, else, and for M <= 16
//           where w has few rows, few_int4_sm80.cuh; then stream_int4_sm90a.cuh up to M =
//           64, of groups of 64 and a scale a row up to 32; then tile_int4_sm90a.cuh. Codes become
//           floats exactly, a group's products add up in the tensor cores, groups in f32.
// Source    Frantar et al., MARLIN, 2024 (codes in the order of fragments); NVIDIA, PTX ISA: wgmma.
// Measured  NOTES.md.
#include "csrc/linear/int4_sm90a.cuh"

namespace lowbit {

extern const LinearKernel linear_int4_f16_sm90a;
const LinearKernel linear_int4_f16_sm90a = {
    "linear_int4_f16_sm90a", kArchSm90a, int4_spec(DType::f16), x_workspace, run_int4<MmaF16>,
};

}  // namespace lowbit
