// linear_int4_f16_sm80: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; symmetric int4
// weights, x in f16.
//
// Shapes    any. An x whose rows do not begin at multiples of 16 bytes is copied first.
// Layout    frag64: groups of 32, 64 or 128, or one scale a row, or one for all.
// Bound     M up to about 46: memory, half a byte a weight and its share of the scale. Beyond: 1024
//           products a cycle and multiprocessor (sm_80; 680 of mma.sync on sm_90).
// Method    M <= 16: few_int4_sm80.cuh; more: tile_int4_sm80.cuh. Codes become floats exactly, a
//           group's products add up in the tensor cores, groups in f32.
// Source    Frantar et al., MARLIN, 2024 (codes in the order of fragments); NVIDIA, PTX ISA: mma.
// Measured  NOTES.md.
#include "csrc/linear/tile_int4_sm80.cuh"

namespace lowbit {

extern const LinearKernel linear_int4_f16_sm80;
const LinearKernel linear_int4_f16_sm80 = {
    "linear_int4_f16_sm80", kArchSm80,           few_int4_spec(DType::f16),
    tile_workspace,         run_int4_sm80<true>,
};

}  // namespace lowbit
