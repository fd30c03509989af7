#include "binding/handle.h"

namespace lowbit::binding {

static constexpr napi_type_tag kDeviceTag = {0x6c6f776269740001, 0x8d1f0c52a7e34b01};
static constexpr napi_type_tag kTensorTag = {0x6c6f776269740002, 0x8d1f0c52a7e34b02};
static constexpr napi_type_tag kWeightTag = {0x6c6f776269740003, 0x8d1f0c52a7e34b03};
static constexpr napi_type_tag kCacheTag = {0x6c6f776269740004, 0x8d1f0c52a7e34b04};

template <class T>
static T* unwrap(napi_env env, napi_value value, const napi_type_tag& tag) {
  bool is = false;
  void* handle = nullptr;
  napi_valuetype type = napi_undefined;  // null and undefined would make the check below throw
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_object) return nullptr;
  if (napi_check_object_type_tag(env, value, &tag, &is) != napi_ok || !is) return nullptr;
  return napi_unwrap(env, value, &handle) == napi_ok ? static_cast<T*>(handle) : nullptr;
}

DeviceHandle* unwrap_device(napi_env env, napi_value value) {
  return unwrap<DeviceHandle>(env, value, kDeviceTag);
}
TensorHandle* unwrap_tensor(napi_env env, napi_value value) {
  return unwrap<TensorHandle>(env, value, kTensorTag);
}
WeightHandle* unwrap_weight(napi_env env, napi_value value) {
  return unwrap<WeightHandle>(env, value, kWeightTag);
}
CacheHandle* unwrap_cache(napi_env env, napi_value value) {
  return unwrap<CacheHandle>(env, value, kCacheTag);
}

// External memory goes up once when a storage gets its first JavaScript object, and down once when
// it loses its last.
static void add_handle(napi_env env, Storage* storage) {
  int64_t total;
  if (storage->handles++ == 0) napi_adjust_external_memory(env, storage->capacity, &total);
}
template <class T>
static void dispose(napi_env env, T* handle) {
  Storage* storage = handle->storage;
  if (storage == nullptr) return;
  handle->storage = nullptr;
  int64_t total;
  if (--storage->handles == 0) napi_adjust_external_memory(env, -storage->capacity, &total);
  storage_drop(storage);
}
void dispose_tensor(napi_env env, TensorHandle* handle) { dispose(env, handle); }
void dispose_weight(napi_env env, WeightHandle* handle) { dispose(env, handle); }
void dispose_cache(napi_env env, CacheHandle* handle) { dispose(env, handle); }

template <class T>
static void finalize(napi_env env, void* data, void*) {
  T* handle = static_cast<T*>(data);
  dispose(env, handle);
  device_handle_drop(handle->device);
  delete handle;
}

template <class T>
static napi_status wrap(napi_env env, napi_value object, T* handle, const napi_type_tag& tag) {
  const napi_status status = napi_wrap(env, object, handle, finalize<T>, nullptr, nullptr);
  if (status != napi_ok) {
    storage_drop(handle->storage);
    delete handle;
    return status;
  }
  device_handle_retain(handle->device);
  add_handle(env, handle->storage);
  return napi_type_tag_object(env, object, &tag);
}

napi_status wrap_tensor(napi_env env, napi_value object, DeviceHandle* device, Storage* storage,
                        const Tensor& view) {
  return wrap(env, object, new TensorHandle{device, storage, view}, kTensorTag);
}
napi_status wrap_weight(napi_env env, napi_value object, DeviceHandle* device, Storage* storage,
                        const Weight& weight) {
  return wrap(env, object, new WeightHandle{device, storage, weight}, kWeightTag);
}
napi_status wrap_cache(napi_env env, napi_value object, DeviceHandle* device, Storage* storage,
                       const KvCache& cache) {
  return wrap(env, object, new CacheHandle{device, storage, cache}, kCacheTag);
}

napi_status wrap_device(napi_env env, napi_value object, DeviceHandle* handle) {
  const napi_finalize finalize_device = [](napi_env, void* data, void*) {
    device_handle_drop(static_cast<DeviceHandle*>(data));
  };
  const napi_status status = napi_wrap(env, object, handle, finalize_device, nullptr, nullptr);
  return status == napi_ok ? napi_type_tag_object(env, object, &kDeviceTag) : status;
}

}  // namespace lowbit::binding
