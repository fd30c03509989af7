#include <cstdio>

#include "binding/args.h"
#include "binding/describe.h"
#include "binding/export.h"

namespace lowbit::binding {

static void set_sizes(napi_env env, napi_value object, const char* name, const int64_t* sizes,
                      int rank) {
  napi_value array, number;
  napi_create_array_with_length(env, static_cast<size_t>(rank), &array);
  for (int i = 0; i < rank; ++i) {
    napi_create_double(env, static_cast<double>(sizes[i]), &number);
    napi_set_element(env, array, static_cast<uint32_t>(i), number);
  }
  napi_set_named_property(env, object, name, array);
}

napi_value tensor_info(napi_env env, napi_callback_info info) {
  Reader r(env, info, "tensor");
  napi_value object = r.value(), out;
  const TensorHandle* handle = unwrap_tensor(env, object);
  if (handle == nullptr) return fail_type(env, "tensor", "this", "a Tensor", object);
  napi_create_object(env, &out);
  set_sizes(env, out, "shape", handle->view.shape, handle->view.rank);
  set_sizes(env, out, "strides", handle->view.strides, handle->view.rank);
  set_number(env, out, "dtype", static_cast<double>(handle->view.dtype));
  set_boolean(env, out, "contiguous", is_contiguous(handle->view));
  char device[24] = "cpu";
  const int index = handle->device->cuda_index;
  if (index >= 0) std::snprintf(device, sizeof device, "cuda:%d", index);
  set_text(env, out, "device", device);
  return out;
}

napi_value tensor_disposed(napi_env env, napi_callback_info info) {
  Reader r(env, info, "disposed");
  const TensorHandle* handle = unwrap_tensor(env, r.value());
  napi_value out;
  napi_get_boolean(env, handle == nullptr || handle->storage == nullptr, &out);
  return out;
}

napi_value tensor_dispose(napi_env env, napi_callback_info info) {
  Reader r(env, info, "dispose");
  TensorHandle* handle = unwrap_tensor(env, r.value());
  if (handle != nullptr) dispose_tensor(env, handle);
  return nullptr;
}

// A second handle on the same storage.
static napi_value share(Reader& r, const TensorHandle* from, napi_value object,
                        const Tensor& view) {
  if (r.failed()) return nullptr;
  storage_retain(from->storage);
  if (wrap_tensor(r.env(), object, from->device, from->storage, view) != napi_ok) {
    r.fail(error(Code::type, "%s: the object holds a handle already", r.op()));
  }
  return nullptr;
}

napi_value tensor_slice(napi_env env, napi_callback_info info) {
  Reader r(env, info, "slice");
  const TensorHandle* from = r.tensor("tensor");
  napi_value object = r.object("view");
  const int64_t dim = r.integer("dim"), begin = r.integer("begin"), end = r.integer("end");
  if (r.failed()) return nullptr;
  Tensor view = from->view;
  if (dim < 0 || dim >= view.rank) {
    return fail(env, error(Code::argument, "slice: expected dim from 0 to %d but got %lld",
                           view.rank - 1, static_cast<long long>(dim)));
  }
  if (begin < 0 || end < begin || end > view.shape[dim]) {
    return fail(
        env, error(Code::argument, "slice: expected 0 <= begin <= end <= %lld but got %lld, %lld",
                   static_cast<long long>(view.shape[dim]), static_cast<long long>(begin),
                   static_cast<long long>(end)));
  }
  view.shape[dim] = end - begin;
  if (numel(view) > 0) {
    view.data =
        static_cast<uint8_t*>(view.data) + begin * view.strides[dim] * dtype_bytes(view.dtype);
  }
  return share(r, from, object, view);
}

napi_value tensor_reshape(napi_env env, napi_callback_info info) {
  Reader r(env, info, "reshape");
  const TensorHandle* from = r.tensor("tensor");
  napi_value object = r.object("view");
  int64_t shape[kMaxRank];
  const int rank = r.shape("shape", shape);
  if (r.failed()) return nullptr;
  const Tensor view =
      make_tensor(from->view.data, from->view.dtype, from->view.device, shape, rank);
  if (numel(view) != numel(from->view)) {
    return fail(env, error(Code::shape, "reshape: %s has %lld elements, %s has %lld",
                           shape_text(from->view).text, static_cast<long long>(numel(from->view)),
                           shape_text(view).text, static_cast<long long>(numel(view))));
  }
  if (!is_contiguous(from->view)) {
    return fail(env,
                error(Code::strides, "reshape: expected a contiguous tensor; copy() makes one"));
  }
  return share(r, from, object, view);
}

napi_value tensor_transpose(napi_env env, napi_callback_info info) {
  Reader r(env, info, "transpose");
  const TensorHandle* from = r.tensor("tensor");
  napi_value object = r.object("view");
  const int64_t a = r.integer("a"), b = r.integer("b");
  if (r.failed()) return nullptr;
  Tensor view = from->view;
  if (a < 0 || b < 0 || a >= view.rank || b >= view.rank) {
    return fail(env, error(Code::argument,
                           "transpose: expected dimensions from 0 to %d but got %lld and %lld",
                           view.rank - 1, static_cast<long long>(a), static_cast<long long>(b)));
  }
  std::swap(view.shape[a], view.shape[b]);
  std::swap(view.strides[a], view.strides[b]);
  return share(r, from, object, view);
}

}  // namespace lowbit::binding
