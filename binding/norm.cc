#include "csrc/norm/norm.h"

#include "binding/call.h"
#include "binding/export.h"

namespace lowbit::binding {
namespace {

struct Norm {
  using Args = NormArgs;
  using Kernel = NormKernel;
  static constexpr auto check = norm_check;
  static constexpr auto select = norm_select;
  static constexpr auto workspace = norm_workspace;
  static constexpr auto run = norm_run;
};

struct RmsNorm : Norm {
  static constexpr const char* kName = "rmsNorm";
  static void read(Reader& r, Args& a) {
    a.kind = NormKind::rms;
    a.x = r.input("x");
    a.weight = r.optional("weight");
    a.bias = absent_tensor();
    a.residual = r.optional("residual");
    r.output("out", &a.out, norm_infer, a);
    r.output("residualOut", &a.residual_out, norm_infer, a);
    a.eps = r.number("eps");
  }
};

struct LayerNorm : Norm {
  static constexpr const char* kName = "layerNorm";
  static void read(Reader& r, Args& a) {
    a.kind = NormKind::layer;
    a.x = r.input("x");
    a.weight = r.optional("weight");
    a.bias = r.optional("bias");
    a.residual = r.optional("residual");
    r.output("out", &a.out, norm_infer, a);
    r.output("residualOut", &a.residual_out, norm_infer, a);
    a.eps = r.number("eps");
  }
};

}  // namespace

napi_value rms_norm(napi_env env, napi_callback_info info) { return call_op<RmsNorm>(env, info); }
napi_value layer_norm(napi_env env, napi_callback_info info) {
  return call_op<LayerNorm>(env, info);
}

}  // namespace lowbit::binding
