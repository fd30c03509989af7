// Handles: what the JavaScript objects Device, Tensor, Weight and KvCache hold. Each object is
// wrapped with a type tag of its own, so a handle can't be taken for another, nor an object of
// another addon for a handle.
#pragma once

#include <node_api.h>

#include <vector>

#include "binding/env.h"
#include "csrc/attention/cache.h"
#include "csrc/base/device.h"
#include "csrc/base/queue.h"
#include "csrc/format/weight.h"

namespace lowbit::binding {

struct Pending;  // a promise that waits for the queue: wait.cc

// Lives as long as the JavaScript object or any tensor of the device.
struct DeviceHandle {
  int refs = 1;              // JavaScript thread only
  Device* device = nullptr;  // null once closed
  int cuda_index = -1;       // -1: a CPU
  Env* env = nullptr;
  napi_threadsafe_function wake = nullptr;
  std::vector<Pending*> waiting;  // promises not yet settled
};
void device_handle_retain(DeviceHandle* handle);
void device_handle_drop(DeviceHandle* handle);

struct TensorHandle {
  DeviceHandle* device;
  Storage* storage;  // null once disposed
  Tensor view;
};

struct WeightHandle {
  DeviceHandle* device;
  Storage* storage;  // null once disposed
  Weight weight;
};

struct CacheHandle {
  DeviceHandle* device;
  Storage* storage;  // null once disposed
  KvCache cache;
};

// The handle in `value`, or null if it holds none of that kind. Throws nothing.
DeviceHandle* unwrap_device(napi_env env, napi_value value);
TensorHandle* unwrap_tensor(napi_env env, napi_value value);
WeightHandle* unwrap_weight(napi_env env, napi_value value);
CacheHandle* unwrap_cache(napi_env env, napi_value value);

// Ties a new handle to `object`, an instance of the matching class that holds none yet. Takes over
// one count of the storage and reports its bytes to the garbage collector.
napi_status wrap_device(napi_env env, napi_value object, DeviceHandle* handle);
napi_status wrap_tensor(napi_env env, napi_value object, DeviceHandle* device, Storage* storage,
                        const Tensor& view);
napi_status wrap_weight(napi_env env, napi_value object, DeviceHandle* device, Storage* storage,
                        const Weight& weight);
napi_status wrap_cache(napi_env env, napi_value object, DeviceHandle* device, Storage* storage,
                       const KvCache& cache);
void dispose_tensor(napi_env env, TensorHandle* handle);
void dispose_weight(napi_env env, WeightHandle* handle);
void dispose_cache(napi_env env, CacheHandle* handle);

}  // namespace lowbit::binding
