// The module's table: a name in JavaScript for every function of export.h.
#include "binding/env.h"
#include "binding/export.h"

namespace lowbit::binding {

struct Export {
  const char* name;
  napi_callback function;
};

static constexpr Export kExports[] = {
    {"describe", describe},
    {"hostInfo", host_info},
    {"deviceInfo", device_info},
    {"setError", set_error},
    {"callNothing", call_nothing},
    {"externalMemory", external_memory},
    {"probe", probe},
    {"chosenRow", chosen_row},
    {"selectLinear", select_linear},
    {"selectAttention", select_attention},
    {"tuneLinear", tune_linear},
    {"forgetTuned", forget_tuned},
    {"peakRows", peak_rows},
    {"measurePeaks", measure_peaks},
    {"openCpu", open_cpu},
    {"openCuda", open_cuda},
    {"closeDevice", close_device},
    {"captureBegin", capture_begin},
    {"captureEnd", capture_end},
    {"graphReplay", graph_replay},
    {"graphDispose", graph_dispose},
    {"sync", sync_async},
    {"syncSync", sync_blocking},
    {"empty", empty},
    {"tensor", tensor_from},
    {"write", write},
    {"read", read_async},
    {"readSync", read_blocking},
    {"tensorInfo", tensor_info},
    {"tensorDisposed", tensor_disposed},
    {"tensorDispose", tensor_dispose},
    {"slice", tensor_slice},
    {"reshape", tensor_reshape},
    {"transpose", tensor_transpose},
    {"formatSizes", format_sizes},
    {"quantizeWeight", quantize_weight},
    {"dequantizeWeight", dequantize_weight},
    {"checkWeight", check_weight},
    {"load", load},
    {"unpackWeight", unpack_weight},
    {"packedBytes", packed_bytes},
    {"weightInfo", weight_info},
    {"weightDisposed", weight_disposed},
    {"weightDispose", weight_dispose},
    {"kvCache", kv_cache},
    {"cacheInfo", cache_info},
    {"cacheDisposed", cache_disposed},
    {"cacheDispose", cache_dispose},
    {"kvAppend", kv_append},
    {"kvRead", kv_read},
    {"kvCopyPages", kv_copy},
    {"kvSave", kv_save},
    {"kvRestore", kv_restore},
    {"add", add},
    {"mul", mul},
    {"siluMul", silu_mul},
    {"geluMul", gelu_mul},
    {"copy", copy},
    {"embedding", embedding},
    {"rmsNorm", rms_norm},
    {"layerNorm", layer_norm},
    {"rope", rope},
    {"softmax", softmax},
    {"argmax", argmax},
    {"crossEntropy", cross_entropy},
    {"linear", linear},
    {"quantizeRows", quantize_rows},
    {"dequantizeRows", dequantize_rows},
    {"attention", attention},
};

}  // namespace lowbit::binding

NAPI_MODULE_INIT() {
  using namespace lowbit::binding;
  open_env(env);
  for (const Export& e : kExports) {
    napi_value function;
    napi_create_function(env, e.name, NAPI_AUTO_LENGTH, e.function, nullptr, &function);
    napi_set_named_property(env, exports, e.name, function);
  }
  return exports;
}
