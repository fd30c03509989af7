#include "csrc/embedding/embedding.h"

#include "binding/call.h"
#include "binding/export.h"

namespace lowbit::binding {
namespace {

struct Embedding {
  using Args = EmbeddingArgs;
  using Kernel = EmbeddingKernel;
  static constexpr const char* kName = "embedding";
  static constexpr auto check = embedding_check;
  static constexpr auto select = embedding_select;
  static constexpr auto workspace = embedding_workspace;
  static constexpr auto run = embedding_run;
  static Blame blame(const Args&) {
    return [](const void* args, int64_t at, int32_t value) {
      return embedding_blame(*static_cast<const Args*>(args), at, value);
    };
  }

  static void read(Reader& r, Args& a) {
    a.table = r.input("table");
    a.ids = r.input("ids");
    r.output("out", &a.out, embedding_infer, a);
  }
};

}  // namespace

napi_value embedding(napi_env env, napi_callback_info info) {
  return call_op<Embedding>(env, info);
}

}  // namespace lowbit::binding
