// linear_codes_bf16_sm80: linear_codes_f16_sm80 with x in bf16.
//
// Measured  NOTES.md.
#include "csrc/linear/codes_sm80.cuh"

namespace lowbit {

extern const LinearKernel linear_codes_bf16_sm80;
const LinearKernel linear_codes_bf16_sm80 = {
    "linear_codes_bf16_sm80", kArchSm80, codes_spec(DType::bf16), tile_workspace,
    run_codes_sm80<false>,
};

}  // namespace lowbit
