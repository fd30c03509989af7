#include "binding/call.h"
#include "binding/export.h"
#include "csrc/quantize/quantize.h"

namespace lowbit::binding {
namespace {

struct Wanted {
  const Tensor& floats;
  DType dtype;
  bool by_block;
};

Status infer_codes(const Wanted& wanted, Tensor* codes) {
  Tensor scale;
  return quantize_infer(wanted.floats, wanted.dtype, wanted.by_block, codes, &scale);
}
Status infer_scale(const Wanted& wanted, Tensor* scale) {
  Tensor codes;
  return quantize_infer(wanted.floats, wanted.dtype, wanted.by_block, &codes, scale);
}
Status infer_floats(const Wanted& wanted, Tensor* floats) {
  *floats = make_tensor(nullptr, wanted.dtype, wanted.floats.device, wanted.floats.shape,
                        wanted.floats.rank);
  return ok();
}

struct Quantize {
  using Args = QuantizeArgs;
  using Kernel = QuantizeKernel;
  static constexpr auto check = quantize_check;
  static constexpr auto select = quantize_select;
  static constexpr auto workspace = quantize_workspace;
  static Status run(const Args& args, const Kernel& row, const Ctx& ctx) {
    return quantize_run(args, row, ctx);
  }
};

struct QuantizeRows : Quantize {
  static constexpr const char* kName = "quantizeRows";
  static void read(Reader& r, Args& args) {
    args.floats = r.input("x");
    const DType dtype = r.optional_dtype("dtype");
    const bool says_per = !r.absent(), by_block = says_per && r.boolean("block");
    const Wanted wanted = {args.floats, dtype == DType::none ? DType::i8 : dtype, by_block};
    r.output("out.codes", &args.codes, infer_codes, wanted);
    r.agree("out.codes", args.codes, "dtype", dtype);
    r.output("out.scales", &args.scale, infer_scale, wanted);
    if (says_per) r.agree_scales("out.scales", args.scale, "per", by_block);
  }
};

struct DequantizeRows : Quantize {
  static constexpr const char* kName = "dequantizeRows";
  static void read(Reader& r, Args& args) {
    args.inverse = true;
    args.codes = r.input("x.codes");
    args.scale = r.input("x.scales");
    const DType dtype = r.optional_dtype("dtype");
    const Wanted wanted = {args.codes, dtype == DType::none ? DType::f32 : dtype, false};
    r.output("out", &args.floats, infer_floats, wanted);
    r.agree("out", args.floats, "dtype", dtype);
  }
};

}  // namespace

napi_value quantize_rows(napi_env env, napi_callback_info info) {
  return call_op<QuantizeRows>(env, info);
}
napi_value dequantize_rows(napi_env env, napi_callback_info info) {
  return call_op<DequantizeRows>(env, info);
}

}  // namespace lowbit::binding
