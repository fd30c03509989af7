// linear_int4_bf16_sm80: linear_int4_f16_sm80 with x in bf16. The decoding takes 44 instructions
// for 32 weights in place of 36.
//
// Measured  NOTES.md.
#include "csrc/linear/tile_int4_sm80.cuh"

namespace lowbit {

extern const LinearKernel linear_int4_bf16_sm80;
const LinearKernel linear_int4_bf16_sm80 = {
    "linear_int4_bf16_sm80", kArchSm80, few_int4_spec(DType::bf16), tile_workspace,
    run_int4_sm80<false>,
};

}  // namespace lowbit
