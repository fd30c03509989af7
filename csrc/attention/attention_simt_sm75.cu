// attention_simt_sm75: every option of attention.h, one block a query row and head; the GPU's
// fallback and what its other rows are held against.
//
// Shapes    head_dim and head_dim_v to 4096: q and o of one row stand in shared memory.
// Layout    any strides that the contract allows; caches of every format.
// Bound     arithmetic, far off: each key is read once a query head.
// Method    row_sm75.cuh.
// Source    Milakov and Gimelshein, Online normalizer calculation for softmax, 2018.
// Measured  NOTES.md.
#include "csrc/attention/row_sm75.cuh"

namespace lowbit {

extern const AttentionKernel attention_simt_sm75;
const AttentionKernel attention_simt_sm75 = {
    "attention_simt_sm75",
    kArchSm75,
    {kFloats | bit(DType::e4m3), 4096, 1, kAllKvFormats, true},
    nullptr,
    run_rows};

}  // namespace lowbit
