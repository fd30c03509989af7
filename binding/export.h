// Every function that the addon exports: one line here, one in addon.cc, one in lib/native.ts.
#pragma once

#include <node_api.h>

namespace lowbit::binding {

using Callback = napi_value(napi_env, napi_callback_info);

Callback describe, host_info, device_info, set_error, call_nothing, external_memory;
Callback capture_begin, capture_end, graph_replay, graph_dispose;
Callback open_cpu, open_cuda, close_device, sync_async, sync_blocking, probe;
Callback peak_rows, measure_peaks, chosen_row, select_linear, select_attention;
Callback tune_linear, forget_tuned;
Callback empty, tensor_from, write, read_async, read_blocking;
Callback tensor_info, tensor_disposed, tensor_dispose;
Callback tensor_slice, tensor_reshape, tensor_transpose;
Callback format_sizes, quantize_weight, dequantize_weight, check_weight;
Callback load, unpack_weight, packed_bytes, weight_info, weight_disposed, weight_dispose;
Callback kv_cache, cache_info, cache_disposed, cache_dispose;
Callback kv_append, kv_read, kv_copy, kv_save, kv_restore;
Callback add, mul, silu_mul, gelu_mul, copy, embedding, rms_norm, layer_norm, rope;
Callback softmax, argmax, cross_entropy;

Callback linear, quantize_rows, dequantize_rows, attention;

}  // namespace lowbit::binding
