#include "binding/args.h"
#include "binding/export.h"
#include "binding/wait.h"
#include "csrc/base/probe.h"

namespace lowbit::binding {

// When the environment ends, queued ops are dropped and the one that runs is waited for.
static void on_exit(void* data) {
  DeviceHandle* handle = static_cast<DeviceHandle*>(data);
  if (handle->device != nullptr) device_close(handle->device);
  handle->device = nullptr;
  napi_release_threadsafe_function(handle->wake, napi_tsfn_abort);
  handle->wake = nullptr;
}

static void close(DeviceHandle* handle) {
  if (handle->device == nullptr) return;
  device_close(handle->device);  // joins the executor
  handle->device = nullptr;
  wait_abandon(handle);
}

void device_handle_retain(DeviceHandle* handle) { ++handle->refs; }

void device_handle_drop(DeviceHandle* handle) {
  if (--handle->refs > 0) return;
  close(handle);
  if (handle->wake != nullptr) {
    napi_remove_env_cleanup_hook(handle->env->env, on_exit, handle);
    napi_release_threadsafe_function(handle->wake, napi_tsfn_abort);
  }
  delete handle;
}

static napi_value adopt(napi_env env, napi_value object, const Status& status, Device* device) {
  if (!is_ok(status)) return fail(env, status);
  DeviceHandle* handle = new DeviceHandle;
  handle->device = device;
  if (device->cuda != nullptr) handle->cuda_index = device->cuda_index;
  handle->env = env_of(env);
  if (open_wake(env, handle) != napi_ok) {
    device_close(device);
    delete handle;
    return fail(env, error(Code::internal, "openDevice: Node refused a thread-safe function"));
  }
  napi_add_env_cleanup_hook(env, on_exit, handle);
  if (wrap_device(env, object, handle) == napi_ok) return nullptr;
  device_handle_drop(handle);
  return fail(env, error(Code::type, "openDevice: the object holds a handle already"));
}

napi_value open_cpu(napi_env env, napi_callback_info info) {
  Reader r(env, info, "openDevice");
  napi_value object = r.object("device");
  const int64_t threads = r.integer("threads"), limit = r.integer("memoryLimit");
  if (r.failed()) return nullptr;
  if (threads < 0 || threads > 1024) {
    return fail(env,
                error(Code::argument, "openDevice: expected threads from 1 to 1024 but got %lld",
                      static_cast<long long>(threads)));
  }
  if (limit < 0) {
    return fail(
        env, error(Code::argument, "openDevice: expected memoryLimit to be positive but got %lld",
                   static_cast<long long>(limit)));
  }
  Env* state = env_of(env);
  const DeviceOptions options = {static_cast<int>(threads), limit, state->arch_cap.c_str(),
                                 state->guard};
  Device* device = nullptr;
  const Status status = device_open_cpu(options, state->next_device++, &device);
  return adopt(env, object, status, device);
}

napi_value open_cuda(napi_env env, napi_callback_info info) {
  Reader r(env, info, "openDevice");
  napi_value object = r.object("device");
  char library[1024], driver[1024];
  r.text("library", library, sizeof library);
  const bool named = r.text("driver", driver, sizeof driver);
  const int64_t index = r.integer("index"), limit = r.integer("memoryLimit");
  if (r.failed()) return nullptr;
  const CudaProbe probe = probe_cuda(library, named ? driver : nullptr);
  if (probe.api == nullptr) return fail(env, error(Code::device, "%s", probe.reason));
  if (index < 0 || index >= probe.devices) {
    return fail(env, error(Code::argument, "openDevice: there is no cuda:%lld, %d found",
                           static_cast<long long>(index), probe.devices));
  }
  Env* state = env_of(env);
  const DeviceOptions options = {0, limit < 0 ? 0 : limit, state->arch_cap.c_str(), false};
  Device* device = nullptr;
  const Status status =
      device_open_cuda(probe.api, static_cast<int>(index), options, state->next_device++, &device);
  return adopt(env, object, status, device);
}

napi_value close_device(napi_env env, napi_callback_info info) {
  Reader r(env, info, "close");
  DeviceHandle* handle = unwrap_device(env, r.object("device"));
  if (handle != nullptr) close(handle);
  return nullptr;
}

napi_value sync_async(napi_env env, napi_callback_info info) {
  Reader r(env, info, "sync");
  DeviceHandle* handle = r.device("device");
  napi_value callback = r.value();
  if (r.failed()) return nullptr;
  Pending* p = new Pending;
  p->handle = handle;
  p->device = handle->device;
  wait_async(env, p, callback, nullptr);
  return nullptr;
}

napi_value sync_blocking(napi_env env, napi_callback_info info) {
  Reader r(env, info, "syncSync");
  DeviceHandle* handle = r.device("device");
  if (r.failed()) return nullptr;
  Pending p;
  p.handle = handle;
  p.device = handle->device;
  const Status status = wait_sync(&p);
  return is_ok(status) ? nullptr : fail(env, status);
}

}  // namespace lowbit::binding
