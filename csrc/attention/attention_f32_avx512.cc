// attention_f32_avx512: o = score(softmax_scale * q k^T + bias) v; f32, f16 and bf16 in, f32
// arithmetic.
//
// Shapes    all of attention.h up to head_dim 1024.
// Layout    any strides that the contract allows; flash.h has the tiles in scratch.
// Bound     prefill: f32 FMA, 2 * (head_dim + head_dim_v) operations a visible pair. Decode: one
//           read of the visible K and V.
// Method    flash.h with vectors of sixteen: what attention_f32_avx2 does, with twice the lanes and
//           twice the registers.
// Source    Dao, FlashAttention-2, 2023; Hong et al., FlashDecoding++, 2023 (split keys).
// Measured  see NOTES.md.
// GCC 12 warns of its own header, whose _mm512_undefined functions read what nobody wrote.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "csrc/attention/attention.h"
#include "csrc/attention/flash.h"
#include "csrc/attention/lanes_avx512.h"

namespace lowbit {

extern const AttentionKernel attention_f32_avx512;
const AttentionKernel attention_f32_avx512 = {
    "attention_f32_avx512",  kArchAvx512,       {kFloats, 1024, 1, kAllKvFormats, true},
    flash_workspace<Avx512>, flash_run<Avx512>,
};

}  // namespace lowbit
