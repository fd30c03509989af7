#include "csrc/kv/kv.h"

#include "binding/call.h"
#include "binding/export.h"

namespace lowbit::binding {
namespace {

struct Kv {
  using Args = KvArgs;
  using Kernel = KvKernel;
  static constexpr auto check = kv_check;
  static constexpr auto select = kv_select;
  static constexpr auto workspace = kv_workspace;
  static constexpr auto run = kv_run;
  static Blame blame(const Args&) {
    return [](const void* args, int64_t at, int32_t value) {
      return kv_blame(*static_cast<const Args*>(args), at, value);
    };
  }
  static void begin(KvArgs& a, KvOp op) {
    a.op = op;
    a.k = a.v = a.slots = a.to = a.bytes = a.cos = a.sin = a.positions = absent_tensor();
  }
};

struct Append : Kv {
  static constexpr const char* kName = "append";
  static void read(Reader& r, KvArgs& a) {
    begin(a, KvOp::append);
    a.cache = r.cache("cache", true);
    a.k = r.input("k");
    a.v = r.input("v");
    a.slots = r.input("slots");
    a.cos = r.optional("rope.cos");
    a.sin = r.optional("rope.sin");
    a.positions = r.optional("rope.positions");
    a.pairing = static_cast<Pairing>(r.word("rope.pairing", 2));
  }
};

struct Read : Kv {
  static constexpr const char* kName = "read";
  static void read(Reader& r, KvArgs& a) {
    begin(a, KvOp::read);
    a.cache = r.cache("cache", false);
    a.slots = r.input("slots");
    r.output("k", &a.k, kv_infer_k, a);
    r.output("v", &a.v, kv_infer_v, a);
  }
};

struct CopyPages : Kv {
  static constexpr const char* kName = "copyPages";
  static void read(Reader& r, KvArgs& a) {
    begin(a, KvOp::copy_pages);
    a.cache = r.cache("cache", true);
    a.slots = r.input("from");
    a.to = r.input("to");
  }
};

struct Save : Kv {
  static constexpr const char* kName = "save";
  static void read(Reader& r, KvArgs& a) {
    begin(a, KvOp::save);
    a.cache = r.cache("cache", false);
    a.slots = r.input("slots");
    r.output("bytes", &a.bytes, kv_infer_bytes, a);
  }
};

struct Restore : Kv {
  static constexpr const char* kName = "restore";
  static void read(Reader& r, KvArgs& a) {
    begin(a, KvOp::restore);
    a.cache = r.cache("cache", true);
    a.bytes = r.input("bytes");
    a.slots = r.input("slots");
  }
};

}  // namespace

napi_value kv_append(napi_env env, napi_callback_info info) { return call_op<Append>(env, info); }
napi_value kv_read(napi_env env, napi_callback_info info) { return call_op<Read>(env, info); }
napi_value kv_copy(napi_env env, napi_callback_info info) { return call_op<CopyPages>(env, info); }
napi_value kv_save(napi_env env, napi_callback_info info) { return call_op<Save>(env, info); }
napi_value kv_restore(napi_env env, napi_callback_info info) { return call_op<Restore>(env, info); }

}  // namespace lowbit::binding
