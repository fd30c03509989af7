#include "csrc/softmax/softmax.h"

#include "binding/call.h"
#include "binding/export.h"

namespace lowbit::binding {
namespace {

template <RowFunction kFunction>
struct Op {
  using Args = SoftmaxArgs;
  using Kernel = SoftmaxKernel;
  static constexpr const char* kName = kRowFunctionNames[static_cast<int>(kFunction)];
  static constexpr auto check = softmax_check;
  static constexpr auto select = softmax_select;
  static constexpr auto workspace = softmax_workspace;
  static constexpr auto run = softmax_run;
  static Blame blame(const Args& a) {
    const Blame of = [](const void* args, int64_t at, int32_t value) {
      return softmax_blame(*static_cast<const Args*>(args), at, value);
    };
    return a.function == RowFunction::cross_entropy ? of : nullptr;
  }

  static void read(Reader& r, Args& a) {
    constexpr bool kTargets = kFunction == RowFunction::cross_entropy;
    a.function = kFunction;
    a.x = r.input(kTargets ? "logits" : "x");
    a.targets = kTargets ? r.input("targets") : absent_tensor();
    r.output("out", &a.out, softmax_infer, a);
    if (kFunction == RowFunction::softmax) a.scale = static_cast<float>(r.number("scale"));
  }
};

}  // namespace

napi_value softmax(napi_env env, napi_callback_info info) {
  return call_op<Op<RowFunction::softmax>>(env, info);
}
napi_value argmax(napi_env env, napi_callback_info info) {
  return call_op<Op<RowFunction::argmax>>(env, info);
}
napi_value cross_entropy(napi_env env, napi_callback_info info) {
  return call_op<Op<RowFunction::cross_entropy>>(env, info);
}

}  // namespace lowbit::binding
