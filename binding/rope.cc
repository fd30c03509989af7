#include "csrc/rope/rope.h"

#include "binding/call.h"
#include "binding/export.h"

namespace lowbit::binding {
namespace {

struct Rope {
  using Args = RopeArgs;
  using Kernel = RopeKernel;
  static constexpr const char* kName = "rope";
  static constexpr auto check = rope_check;
  static constexpr auto select = rope_select;
  static constexpr auto workspace = rope_workspace;
  static constexpr auto run = rope_run;
  static Blame blame(const Args& a) {
    const Blame of = [](const void* args, int64_t at, int32_t value) {
      return rope_blame(*static_cast<const Args*>(args), at, value);
    };
    return present(a.positions) ? of : nullptr;
  }

  static void read(Reader& r, Args& a) {
    a.x = r.input("x");
    a.cos = r.input("cos");
    a.sin = r.input("sin");
    a.positions = r.optional("positions");
    a.offset = r.integer("offset");
    a.pairing = static_cast<Pairing>(r.word("pairing", 2));
    r.output("out", &a.out, rope_infer, a);
  }
};

}  // namespace

napi_value rope(napi_env env, napi_callback_info info) { return call_op<Rope>(env, info); }

}  // namespace lowbit::binding
