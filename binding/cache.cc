// Paged caches of keys and values: their handles, and the op that fills and empties them.
#include "binding/call.h"
#include "binding/describe.h"
#include "binding/export.h"
#include "csrc/kv/kv.h"

namespace lowbit::binding {

// kvCache(device, cache, format, pages, pageSize, kvHeads, headDim, headDimV, prefix rows, prefix
// tokens, prefix format)
napi_value kv_cache(napi_env env, napi_callback_info info) {
  Reader r(env, info, "kvCache");
  DeviceHandle* owner = r.device("device");
  napi_value object = r.object("cache");
  KvCache c = {};
  c.format = static_cast<KvFormat>(r.word("format", kKvFormatCount));
  c.pages = r.integer("pages");
  c.page_size = r.integer("pageSize");
  c.kv_heads = r.integer("kvHeads");
  c.head_dim = r.integer("headDim");
  c.head_dim_v = r.integer("headDimV");
  c.prefix_rows = r.integer("prefix.rows");
  c.prefix_tokens = r.integer("prefix.tokens");
  c.prefix_format = static_cast<KvFormat>(r.word("prefix.dtype", kKvFormatCount));
  if (r.failed()) return nullptr;
  c.device = owner->device->tag;
  Storage* storage = nullptr;
  Status status = kv_cache_make(&c);
  if (is_ok(status)) {
    status = storage_create(owner->device->memory, kv_bytes(c), &storage);
    if (!is_ok(status)) status = error(status.code, "kvCache: %s", status.text);
  }
  if (!is_ok(status)) return fail(env, status);
  c.data = storage->data;
  if (wrap_cache(env, object, owner, storage, c) != napi_ok) {
    return fail(env, error(Code::type, "kvCache: the object holds a handle already"));
  }
  return nullptr;
}

napi_value cache_info(napi_env env, napi_callback_info info) {
  Reader r(env, info, "kvCache");
  const CacheHandle* handle = r.cache_handle("cache");
  if (r.failed()) return nullptr;
  napi_value out;
  napi_create_object(env, &out);
  set_number(env, out, "bytes", static_cast<double>(kv_bytes(handle->cache)));
  set_number(env, out, "savedBytes", static_cast<double>(kv_saved_bytes(handle->cache)));
  return out;
}

// Any object will do here: what holds no cache has none to give back.
napi_value cache_disposed(napi_env env, napi_callback_info info) {
  Reader r(env, info, "kvCache");
  const CacheHandle* handle = unwrap_cache(env, r.value());
  napi_value out;
  napi_get_boolean(env, handle == nullptr || handle->storage == nullptr, &out);
  return out;
}
napi_value cache_dispose(napi_env env, napi_callback_info info) {
  Reader r(env, info, "dispose");
  CacheHandle* handle = unwrap_cache(env, r.value());
  if (handle != nullptr) dispose_cache(env, handle);
  return nullptr;
}

}  // namespace lowbit::binding
