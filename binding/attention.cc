#include "csrc/attention/attention.h"

#include "binding/call.h"
#include "binding/export.h"

namespace lowbit::binding {
namespace {

struct Attention {
  using Args = AttentionArgs;
  using Kernel = AttentionKernel;
  static constexpr const char* kName = "attention";
  static constexpr auto check = attention_check;
  static constexpr auto select = attention_select;
  static constexpr auto workspace = attention_workspace;
  static constexpr auto run = attention_run;
  static Blame blame(const Args& a) {
    const Blame of = [](const void* args, int64_t at, int32_t value) {
      return attention_blame(*static_cast<const Args*>(args), at, value);
    };
    return attention_has_values(a) ? of : nullptr;
  }
  static void read(Reader& r, AttentionArgs& args) {
    args.q = r.input("q");
    const bool paged = r.at_cache();
    if (paged) args.kv = r.cache("kv", false);
    args.k = paged ? absent_tensor() : r.input("k");
    args.v = paged ? r.optional("v") : r.input("v");
    args.cu_seqlens_q = r.optional("cuSeqlensQ");
    args.cu_seqlens_kv = r.optional("cuSeqlensKv");
    args.kv_lens = r.optional("kvLens");
    args.alibi_slopes = r.optional("alibiSlopes");
    args.sinks = r.optional("sinks");
    args.bias = r.optional("bias");
    args.page_table = r.optional("pageTable");
    args.prefix_rows = r.optional("prefixRows");
    args.prefix_lens = r.optional("prefixLens");
    args.softmax_scale = static_cast<float>(r.number("softmaxScale"));
    args.softcap = static_cast<float>(r.number("softcap"));
    args.window_left = r.integer("window[0]");
    args.window_right = r.integer("window[1]");
    args.causal = r.boolean("causal");
    args.score = static_cast<Score>(r.word("score", 2));
    args.q_scales = r.optional("q.scales");
    args.k_scales = r.optional("k.scales");
    args.v_scales = r.optional("v.scales");
    r.output("out", &args.o, attention_infer, args);
    r.output("lse", &args.lse, attention_infer_lse, args);
  }
};

}  // namespace

napi_value attention(napi_env env, napi_callback_info info) {
  return call_op<Attention>(env, info);
}

}  // namespace lowbit::binding
