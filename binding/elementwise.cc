#include "csrc/elementwise/elementwise.h"

#include "binding/call.h"
#include "binding/export.h"

namespace lowbit::binding {
namespace {

struct Elementwise {
  using Args = ElementwiseArgs;
  using Kernel = ElementwiseKernel;
  static constexpr auto check = elementwise_check;
  static constexpr auto select = elementwise_select;
  static constexpr auto workspace = elementwise_workspace;
  static constexpr auto run = elementwise_run;
};

template <Function F>
struct Plain : Elementwise {
  static constexpr const char* kName = elementwise_op(F);
  static void read(Reader& r, Args& args) {
    args.function = F;
    args.a = r.input("a");
    args.b = r.input("b");
    r.output("out", &args.out, elementwise_infer, args);
  }
};

struct SiluMul : Elementwise {
  static constexpr const char* kName = "siluMul";
  static void read(Reader& r, Args& args) {
    args.function = Function::silu_mul;
    args.a = r.input("gate");
    args.b = r.input("up");
    r.output("out", &args.out, elementwise_infer, args);
  }
};

struct GeluMul : Elementwise {
  static constexpr const char* kName = "geluMul";
  static void read(Reader& r, Args& args) {
    args.a = r.input("gate");
    args.b = r.input("up");
    args.function = r.boolean("tanh") ? Function::gelu_tanh_mul : Function::gelu_mul;
    r.output("out", &args.out, elementwise_infer, args);
  }
};

}  // namespace

napi_value add(napi_env env, napi_callback_info info) {
  return call_op<Plain<Function::add>>(env, info);
}
napi_value mul(napi_env env, napi_callback_info info) {
  return call_op<Plain<Function::mul>>(env, info);
}
napi_value silu_mul(napi_env env, napi_callback_info info) { return call_op<SiluMul>(env, info); }
napi_value gelu_mul(napi_env env, napi_callback_info info) { return call_op<GeluMul>(env, info); }

}  // namespace lowbit::binding
