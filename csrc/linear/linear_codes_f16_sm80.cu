// linear_codes_f16_sm80: out[M,N] = act(x[M,K] * deq(w)[N,K]^T + bias) + residual; weights of 1 to
// 8 bits whose codes are numbers of few bits, x in f16.
//
// Shapes    K a multiple of 128; any M and N.
// Layout    rows: w as it is saved; groups of 16 and more, zero points of whole steps.
// Bound     few rows of x: memory, bits / 8 bytes a weight; the decoding takes about 4 instructions
//           a weight, so narrow codes stay below it. Many rows: as linear_f16_sm80.
// Method    codes_sm80.cuh: a table of 2^bits values makes tiles of f16, which are multiplied as
//           weights of 16 bits are.
// Source    NVIDIA, PTX ISA: mma, ldmatrix, cp.async.
// Measured  NOTES.md.
#include "csrc/linear/codes_sm80.cuh"

namespace lowbit {

extern const LinearKernel linear_codes_f16_sm80;
const LinearKernel linear_codes_f16_sm80 = {
    "linear_codes_f16_sm80", kArchSm80, codes_spec(DType::f16), tile_workspace,
    run_codes_sm80<true>,
};

}  // namespace lowbit
