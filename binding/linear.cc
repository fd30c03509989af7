#include "csrc/linear/linear.h"

#include "binding/call.h"
#include "binding/export.h"
#include "csrc/quantize/quantize.h"

namespace lowbit::binding {
namespace {

// What the caller asks of outputs that the library makes.
struct Wanted {
  const LinearArgs& args;
  DType dtype;    // none: not said; linear_infer knows
  bool by_block;  // out_scale has one value for each 128 columns
};

Status infer_out(const Wanted& wanted, Tensor* out) {
  LB_TRY(linear_infer(wanted.args, out));
  if (wanted.dtype != DType::none) out->dtype = wanted.dtype;
  return ok();
}

Status infer_scale(const Wanted& wanted, Tensor* scale) {
  Tensor codes, floats = wanted.args.out;
  floats.dtype = DType::f32;  // what the row writes before it is re-quantised
  return quantize_infer(floats, wanted.dtype, wanted.by_block, &codes, scale);
}

struct Linear {
  using Args = LinearArgs;
  using Kernel = LinearKernel;
  static constexpr const char* kName = "linear";
  static constexpr auto check = linear_check;
  static constexpr auto select = linear_select;
  static constexpr auto workspace = linear_workspace;
  static constexpr auto run = linear_run;
  static const char* preferred(const Env& env, const LinearArgs& args) {
    return env.tuned.calls.empty() ? nullptr : linear_tuned_row(env.tuned, args);
  }
  static void read(Reader& r, LinearArgs& args) {
    args.x = r.input("x");
    args.x_scale = r.optional("x.scales");
    args.w = r.weight("w");
    args.bias = r.optional("bias");
    args.residual = r.optional("residual");
    args.activation = static_cast<Activation>(r.word("activation", 8));
    args.compute = static_cast<Compute>(r.word("compute", kComputeCount));
    const DType dtype = r.optional_dtype("dtype");
    const bool says_per = !r.absent(), by_block = says_per && r.boolean("block");
    const Wanted wanted = {args, dtype, by_block};
    r.output("out", &args.out, infer_out, wanted);
    r.agree("out", args.out, is_code_dtype(dtype) ? "outQuant.dtype" : "dtype", dtype);
    r.output("out.scales", &args.out_scale, infer_scale, wanted);
    if (says_per) r.agree_scales("out.scales", args.out_scale, "outQuant.per", by_block);
  }
};

}  // namespace

napi_value linear(napi_env env, napi_callback_info info) { return call_op<Linear>(env, info); }

}  // namespace lowbit::binding
