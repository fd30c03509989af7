// linear_int4_bf16_sm90a: linear_int4_f16_sm90a with x in bf16. The decoding takes 36 instructions
// for 32 weights in place of 20, because each code is shifted to the foot of its lane.
//
// Measured  NOTES.md.
#include "csrc/linear/int4_sm90a.cuh"

namespace lowbit {

extern const LinearKernel linear_int4_bf16_sm90a;
const LinearKernel linear_int4_bf16_sm90a = {
    "linear_int4_bf16_sm90a", kArchSm90a, int4_spec(DType::bf16), x_workspace, run_int4<MmaBf16>,
};

}  // namespace lowbit
