#include "binding/env.h"

#include <cstdlib>

#include "binding/args.h"
#include "binding/describe.h"
#include "binding/export.h"
#include "csrc/base/probe.h"

namespace lowbit::binding {

Env* env_of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return static_cast<Env*>(data);
}

Pool* host_pool(napi_env env) {
  Env* state = env_of(env);
  if (state->host_pool == nullptr) state->host_pool = pool_create(cpu_info().cores);
  return state->host_pool;
}

static void drop_pool(void* data) {
  Env* state = static_cast<Env*>(data);
  pool_destroy(state->host_pool);
  state->host_pool = nullptr;
}

static std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

void open_env(napi_env env) {
  Env* state = new Env;
  state->env = env;
  state->forced_row = variable("LB_KERNEL");
  state->arch_cap = variable("LB_ARCH");
  state->log = variable("LB_LOG") == "1";
  state->guard = variable("LB_GUARD") == "1";
  napi_set_instance_data(
      env, state, [](napi_env, void* data, void*) { delete static_cast<Env*>(data); }, nullptr);
  napi_add_env_cleanup_hook(env, drop_pool, state);
}

// setError(make): the function of lib/errors.ts that makes every error thrown here.
napi_value set_error(napi_env env, napi_callback_info info) {
  Reader r(env, info, "setError");
  Env* state = env_of(env);
  if (state->make_error != nullptr) napi_delete_reference(env, state->make_error);
  napi_create_reference(env, r.value(), 1, &state->make_error);
  return nullptr;
}

// What bench/calls.ts holds the cost of an op against.
napi_value call_nothing(napi_env, napi_callback_info) { return nullptr; }

// What the garbage collector believes the library holds, in bytes; process.memoryUsage() does not
// say.
napi_value external_memory(napi_env env, napi_callback_info) {
  int64_t total = 0;
  napi_adjust_external_memory(env, 0, &total);
  napi_value out;
  napi_create_double(env, static_cast<double>(total), &out);
  return out;
}

// probe(library, driver): why CUDA can or can't be used.
napi_value probe(napi_env env, napi_callback_info info) {
  Reader r(env, info, "probe");
  char library[1024], driver[1024];
  r.text("library", library, sizeof library);
  const bool named = r.text("driver", driver, sizeof driver);
  if (r.failed()) return nullptr;
  const CudaProbe found = probe_cuda(library, named ? driver : nullptr);
  napi_value out, devices;
  napi_create_object(env, &out);
  set_text(env, out, "code", found.code);
  set_text(env, out, "reason", found.reason);
  set_number(env, out, "driver", found.driver);
  set_number(env, out, "runtime", found.api != nullptr ? found.api->runtime : 0);
  napi_create_array(env, &devices);
  for (int i = 0; found.api != nullptr && i < found.devices; ++i) {
    CudaDeviceInfo device = {};
    found.api->device_info(i, &device);  // zeros if it fails: a row that is not usable
    napi_value row;
    napi_create_object(env, &row);
    set_text(env, row, "name", device.name);
    set_number(env, row, "capability", device.major * 10 + device.minor);
    set_number(env, row, "multiprocessors", device.multiprocessors);
    set_number(env, row, "memory", static_cast<double>(device.memory));
    set_number(env, row, "l2", static_cast<double>(device.l2));
    set_number(env, row, "bandwidth", 2e3 * device.memory_clock_khz * device.bus_bits / 8);
    set_boolean(env, row, "usable", detect_gpu(device.major, device.minor) != 0);
    push(env, devices, row);
  }
  napi_set_named_property(env, out, "devices", devices);
  return out;
}

}  // namespace lowbit::binding
