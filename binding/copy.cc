#include "csrc/copy/copy.h"

#include "binding/call.h"
#include "binding/export.h"

namespace lowbit::binding {
namespace {

struct Copy {
  using Args = CopyArgs;
  using Kernel = CopyKernel;
  static constexpr const char* kName = "copy";
  static constexpr auto check = copy_check;
  static constexpr auto select = copy_select;
  static constexpr auto workspace = copy_workspace;
  static constexpr auto run = copy_run;

  static void read(Reader& r, Args& a) {
    a.x = r.input("x");
    a.dtype = r.optional_dtype("dtype");
    r.output("out", &a.out, copy_infer, a);
  }
};

}  // namespace

napi_value copy(napi_env env, napi_callback_info info) { return call_op<Copy>(env, info); }

}  // namespace lowbit::binding
