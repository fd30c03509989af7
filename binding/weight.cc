// Weights on a device: packed once, read by any number of ops, and turned back without loss.
#include <cstdlib>

#include "binding/canonical.h"
#include "binding/describe.h"
#include "binding/export.h"

namespace lowbit::binding {

// Packs into the device's memory; through host memory where that is another.
static Status pack_into(napi_env env, Device* device, const Canonical& c, Layout layout,
                        Storage* storage) {
  if (device->cuda == nullptr) {
    pack(c, layout, storage->data, host_pool(env));
    return ok();
  }
  void* staged = std::malloc(static_cast<size_t>(storage->bytes) + 1);
  if (staged == nullptr) return error(Code::memory, "load: out of memory on the host");
  pack(c, layout, static_cast<uint8_t*>(staged), host_pool(env));
  const Status status = device_write(device, storage->data, staged, storage->bytes);
  std::free(staged);
  return status;
}

// load(device, weight, layout, ...canonical); layout -1: what the device's kernels read fastest
napi_value load(napi_env env, napi_callback_info info) {
  Reader r(env, info, "load");
  DeviceHandle* owner = r.device("device");
  napi_value object = r.object("weight");
  const int64_t wanted = r.integer("layout");
  const Canonical c = read_canonical(r);
  if (r.failed()) return nullptr;
  Device* device = owner->device;
  const Shape shape = {c.n, c.k};
  const Layout layout =
      wanted < 0 ? preferred_layout(device->arch, c.format, shape) : static_cast<Layout>(wanted);
  if (wanted >= kLayoutCount || !layout_serves(layout, c.format, shape)) {
    return fail(env, error(Code::argument, "load: the layout %s does not hold this %s weight",
                           layout_name(layout), kind_name(c.format.kind)));
  }
  Storage* storage = nullptr;
  Status status = storage_create(device->memory, layout_bytes(layout, c.format, shape), &storage);
  if (!is_ok(status)) return fail(env, status);
  status = pack_into(env, device, c, layout, storage);
  if (!is_ok(status)) {
    storage_drop(storage);
    return fail(env, status);
  }
  Weight weight = {c.format, layout, c.n, c.k, storage->data, device->tag};
  if (c.tensor_scale != nullptr) weight.tensor_scale = *c.tensor_scale;
  if (wrap_weight(env, object, owner, storage, weight) != napi_ok) {
    return fail(env, error(Code::type, "load: the object holds a handle already"));
  }
  return nullptr;
}

// The packed bytes on the host: the device's own on a CPU, else a copy that `free_after` names.
static Status host_bytes(const WeightHandle* handle, const uint8_t** data, void** free_after) {
  Device* device = handle->device->device;
  *data = handle->storage->data;
  *free_after = nullptr;
  if (device->cuda == nullptr) return ok();
  *free_after = std::malloc(static_cast<size_t>(handle->storage->bytes) + 1);
  if (*free_after == nullptr) return error(Code::memory, "unpack: out of memory on the host");
  *data = static_cast<const uint8_t*>(*free_after);
  return device_read(device, *free_after, handle->storage->data, handle->storage->bytes);
}

// unpackWeight(weight, codes, scales, zeros, table, tensorScale)
napi_value unpack_weight(napi_env env, napi_callback_info info) {
  Reader r(env, info, "unpack");
  const WeightHandle* handle = r.weight_handle("weight");
  if (r.failed()) return nullptr;
  Weight w = handle->weight;
  const CanonicalBytes c = read_arrays(r, w.format, w.n, w.k);
  if (r.failed()) return nullptr;
  void* free_after = nullptr;
  const Status status = host_bytes(handle, &w.data, &free_after);
  if (is_ok(status)) unpack(w, c.buffers, host_pool(env));
  std::free(free_after);
  return is_ok(status) ? nullptr : fail(env, status);
}

// packedBytes(weight, to): the bytes as they lie, for tests and for people who write kernels.
napi_value packed_bytes(napi_env env, napi_callback_info info) {
  Reader r(env, info, "packedBytes");
  const WeightHandle* handle = r.weight_handle("weight");
  int64_t bytes = 0;
  void* to = r.bytes("to", &bytes);
  if (r.failed()) return nullptr;
  if (bytes != handle->storage->bytes) {
    return fail(
        env, error(Code::shape, "packedBytes: expected room for %lld bytes but got %lld",
                   static_cast<long long>(handle->storage->bytes), static_cast<long long>(bytes)));
  }
  const uint8_t* data = nullptr;
  void* free_after = nullptr;
  const Status status = host_bytes(handle, &data, &free_after);
  if (is_ok(status)) std::memcpy(to, data, static_cast<size_t>(bytes));
  std::free(free_after);
  return is_ok(status) ? nullptr : fail(env, status);
}

napi_value weight_info(napi_env env, napi_callback_info info) {
  Reader r(env, info, "weight");
  const WeightHandle* handle = r.weight_handle("weight");
  if (r.failed()) return nullptr;
  napi_value out;
  napi_create_object(env, &out);
  set_number(env, out, "layout", static_cast<int>(handle->weight.layout));
  set_number(env, out, "bytes", static_cast<double>(handle->storage->bytes));
  return out;
}

// Any object will do here: what holds no weight has none to give back.
napi_value weight_disposed(napi_env env, napi_callback_info info) {
  Reader r(env, info, "weight");
  const WeightHandle* handle = unwrap_weight(env, r.value());
  napi_value out;
  napi_get_boolean(env, handle == nullptr || handle->storage == nullptr, &out);
  return out;
}
napi_value weight_dispose(napi_env env, napi_callback_info info) {
  Reader r(env, info, "dispose");
  WeightHandle* handle = unwrap_weight(env, r.value());
  if (handle != nullptr) dispose_weight(env, handle);
  return nullptr;
}

}  // namespace lowbit::binding
