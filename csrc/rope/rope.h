// rope: rotary position embedding. Su et al., RoFormer, 2021.
//
// The first R columns of every head are R / 2 pairs; pair i at position p is turned by the angle
// whose cosine and sine stand at [p, i] of the tables:
//   out_1 = x_1 * cos - x_2 * sin
//   out_2 = x_2 * cos + x_1 * sin
//   half         pairs columns i and i + R / 2    (GPT-NeoX, Llama in Hugging Face files)
//   interleaved  pairs columns 2i and 2i + 1      (RoFormer, GPT-J, Llama in its own files)
// The columns from R on are copied.
//
//   x          [tokens, heads, D] or [batch, seq, heads, D]; f32, f16 or bf16
//   cos, sin   f32 [positions, R / 2] with R / 2 >= 1 and R <= D; scaling is in the tables
//   positions  i32: [tokens], or [seq] or [batch, seq] for 4-D x; or absent: token t stands at
//              offset + t, in 4-D x counted anew in each batch
//   out        the shape of x; f32, f16 or bf16
//
// The last dimension of x, cos, sin and out is contiguous, all other strides are free. out may be x
// itself (the same view, elements as wide) and shares no memory otherwise. A position outside of
// the tables is refused: at the call where it comes from offset, else when the op runs.
#pragma once

#include "csrc/base/kernel.h"
#include "csrc/base/tensor.h"

namespace lowbit {

// The order is shared with lib/rope.ts (`pairings`).
enum class Pairing : int32_t { half, interleaved };

struct RopeArgs {
  Tensor x, cos, sin, positions, out;
  int64_t offset;
  Pairing pairing;
};

struct RopeSpec {
  DTypeSet dtypes;  // of x and out
};

using RopeKernel = Kernel<RopeArgs, RopeSpec>;
struct RopeTable {
  const RopeKernel* const* rows;
  int count;
};
RopeTable rope_table();

Status rope_infer(const RopeArgs& args, Tensor* out);
Status rope_check(const RopeArgs& args);
Status rope_select(const RopeArgs& args, const Choice& choice, const RopeKernel** row);
size_t rope_workspace(const RopeArgs& args, const RopeKernel& row, int threads);
// Why the position at `index` of positions, in row-major order, is refused.
Status rope_blame(const RopeArgs& args, int64_t index, int32_t position);
// Checks the values of positions, then runs the row; on CUDA the row's kernel checks them.
Status rope_run(const RopeArgs& args, const RopeKernel& row, const Ctx& ctx);

// Where token (batch, index within the batch) stands.
static constexpr int64_t rope_position(const RopeArgs& a, int64_t batch, int64_t index) {
  const Tensor& p = a.positions;
  if (!present(p)) return a.offset + index;
  const int64_t at =
      p.rank == 2 ? batch * p.strides[0] + index * p.strides[1] : index * p.strides[0];
  return static_cast<const int32_t*>(p.data)[at];
}

}  // namespace lowbit
