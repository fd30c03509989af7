#include "binding/args.h"
#include "binding/export.h"
#include "csrc/base/cuda_queue.h"

namespace lowbit::binding {

static constexpr napi_type_tag kGraphTag = {0x6c6f776269740004, 0x8d1f0c52a7e34b04};

struct GraphHandle {
  DeviceHandle* device;
  CudaGraph* graph;  // null once disposed
};

static void dispose(GraphHandle* handle) {
  if (handle->graph != nullptr) cuda_graph_drop(handle->graph);
  handle->graph = nullptr;
}

static void finalize(napi_env, void* data, void*) {
  GraphHandle* handle = static_cast<GraphHandle*>(data);
  dispose(handle);
  device_handle_drop(handle->device);
  delete handle;
}

static GraphHandle* unwrap_graph(napi_env env, napi_value value) {
  bool is = false;
  void* handle = nullptr;
  if (napi_check_object_type_tag(env, value, &kGraphTag, &is) != napi_ok || !is) return nullptr;
  return napi_unwrap(env, value, &handle) == napi_ok ? static_cast<GraphHandle*>(handle) : nullptr;
}

napi_value capture_begin(napi_env env, napi_callback_info info) {
  Reader r(env, info, "capture");
  const DeviceHandle* handle = r.device("device");
  if (r.failed()) return nullptr;
  if (handle->device->cuda == nullptr) {
    return fail(env, error(Code::unsupported,
                           "capture: only a GPU records graphs; call the "
                           "function itself on a CPU"));
  }
  const Status status = cuda_record_begin(handle->device);
  return is_ok(status) ? nullptr : fail(env, status);
}

// captureEnd(device, graph): undefined in place of a graph drops what was recorded.
napi_value capture_end(napi_env env, napi_callback_info info) {
  Reader r(env, info, "capture");
  DeviceHandle* device = r.device("device");
  const bool drop = r.absent();
  napi_value object = drop ? nullptr : r.object("graph");
  if (r.failed()) return nullptr;
  if (device->device->cuda == nullptr) return nullptr;
  CudaGraph* graph = nullptr;
  const Status status = cuda_record_end(device->device, drop ? nullptr : &graph);
  if (!is_ok(status)) return fail(env, status);
  if (drop) return nullptr;
  GraphHandle* handle = new GraphHandle{device, graph};
  if (napi_wrap(env, object, handle, finalize, nullptr, nullptr) != napi_ok) {
    dispose(handle);
    delete handle;
    return fail(env, error(Code::type, "capture: the object holds a handle already"));
  }
  device_handle_retain(device);
  napi_type_tag_object(env, object, &kGraphTag);
  return nullptr;
}

napi_value graph_replay(napi_env env, napi_callback_info info) {
  Reader r(env, info, "replay");
  napi_value object = r.object("graph");
  if (r.failed()) return nullptr;
  const GraphHandle* handle = unwrap_graph(env, object);
  if (handle == nullptr || handle->graph == nullptr) {
    return fail(env, error(Code::disposed, "replay: graph is disposed"));
  }
  if (handle->device->device == nullptr) {
    return fail(env, error(Code::disposed, "replay: the device of graph is closed"));
  }
  const Status status = cuda_graph_replay(handle->device->device, handle->graph);
  return is_ok(status) ? nullptr : fail(env, status);
}

napi_value graph_dispose(napi_env env, napi_callback_info info) {
  Reader r(env, info, "dispose");
  napi_value object = r.object("graph");
  if (r.failed()) return nullptr;
  if (GraphHandle* handle = unwrap_graph(env, object)) dispose(handle);
  return nullptr;
}

}  // namespace lowbit::binding
