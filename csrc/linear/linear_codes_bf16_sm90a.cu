// linear_codes_bf16_sm90a: linear_codes_f16_sm80 with few rows of x by few_sm90a.cuh, x in bf16.
//
// Shapes    M up to 16, K a multiple of 128, any N: int8, fp8, int4, int2, ternary and int1 without
//           zero points, in groups that are whole steps of a warp, or halves or quarters of one.
//           Everything else as linear_codes_bf16_sm80.
// Layout    rows: w as it is saved.
// Bound     memory: bits / 8 bytes a weight and its share of the scale.
// Method    few_codes_sm90a.cuh: codes of one word, half a word apart, become pairs of 16-bit
// floats
//           by a mask and one fma, which is exact; fp8 by conversion. M = 1 with 8, 4 and 2 bits:
//           one_row_sm90a.cuh, x as digits and codes by a mask alone.
// Source    Frantar et al., MARLIN, 2024 (codes in the fraction of a float); NVIDIA, PTX ISA: mma.
// Measured  NOTES.md.
#include "csrc/linear/codes_sm80.cuh"
#include "csrc/linear/few_rows_sm90a.cuh"

namespace lowbit {

extern const LinearKernel linear_codes_bf16_sm90a;
const LinearKernel linear_codes_bf16_sm90a = {
    "linear_codes_bf16_sm90a", kArchSm90a, codes_spec(DType::bf16), codes_workspace,
    run_codes_sm90a<false>,
};

}  // namespace lowbit
