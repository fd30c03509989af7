#include <cstdlib>
#include <cstring>

#include "binding/args.h"
#include "binding/export.h"
#include "binding/wait.h"
#include "csrc/base/convert.h"
#include "csrc/base/cuda_queue.h"
#include "csrc/copy/copy.h"

namespace lowbit::binding {

// A typed array as elements of a dtype.
struct Source {
  const void* data;
  DType dtype;
};

// What the elements are taken for. 16-bit and 8-bit unsigned arrays are what the caller says they
// are.
static DType array_dtype(napi_typedarray_type type, DType wanted) {
  switch (static_cast<int>(type)) {
    case napi_float32_array: return DType::f32;
    case napi_int32_array: return DType::i32;
    case napi_int8_array: return DType::i8;
    case napi_uint8_array:
    case napi_uint8_clamped_array:
      return wanted == DType::e4m3 || wanted == DType::e5m2 || wanted == DType::e8m0 ? wanted
                                                                                     : DType::u8;
    case napi_uint16_array: return wanted == DType::bf16 ? wanted : DType::f16;
    case 11: return DType::f16;  // Float16Array, which newer versions of Node have
    default: return DType::none;
  }
}

// Reads `data` for a tensor of this dtype and number of elements. A f32 tensor takes f16 from a
// 16-bit array only if it is a Float16Array: plain 16-bit words could be either half format.
static Source read_source(Reader& r, const char* name, DType wanted, int64_t count) {
  int64_t bytes = 0;
  napi_typedarray_type type = napi_uint8_array;
  napi_value given = r.peek();
  const void* data = r.bytes(name, &bytes, &type);
  if (data == nullptr) r.fail_type(name, "a typed array", given);
  if (r.failed()) return {};
  const DType from = array_dtype(type, wanted);
  const bool ambiguous = type == napi_uint16_array && wanted != DType::f16 && wanted != DType::bf16;
  if (from == DType::none || ambiguous || !convertible(wanted, from)) {
    static constexpr const char* kArrays[] = {
        "Int8Array",    "Uint8Array",    "Uint8ClampedArray", "Int16Array",
        "Uint16Array",  "Int32Array",    "Uint32Array",       "Float32Array",
        "Float64Array", "BigInt64Array", "BigUint64Array",    "Float16Array"};
    r.fail(error(Code::dtype, "%s: expected %s to hold elements of %s but got a %s", r.op(), name,
                 dtype_name(wanted), kArrays[static_cast<int>(type) < 12 ? type : 0]));
    return {};
  }
  const int64_t got = bytes / dtype_bytes(from);
  if (got != count) {
    r.fail(error(Code::shape, "%s: expected %s to have %lld elements but got %lld", r.op(), name,
                 static_cast<long long>(count), static_cast<long long>(got)));
    return {};
  }
  return {data, from};
}

static int64_t product(const int64_t* shape, int rank) {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

// CUDA: converts piece by piece on the way.
static Status write_converted(Device* device, const Tensor& to, const Source& from) {
  struct Pieces {
    DType to, from;
    const uint8_t* data;
  } pieces = {to.dtype, from.dtype, static_cast<const uint8_t*>(from.data)};
  return cuda_write(
      device, to.data, numel(to) * dtype_bytes(to.dtype),
      [](void* arg, void* block, int64_t offset, int64_t count) {
        const Pieces& p = *static_cast<const Pieces*>(arg);
        const int64_t first = offset / dtype_bytes(p.to);
        convert(block, p.to, p.data + first * dtype_bytes(p.from), p.from,
                count / dtype_bytes(p.to));
      },
      &pieces);
}

// A contiguous tensor around `object`, filled from `source` if there is one.
static void create(Reader& r, DeviceHandle* owner, napi_value object, DType dtype,
                   const int64_t* shape, int rank, const Source* source) {
  Device* device = owner->device;
  Tensor t = make_tensor(nullptr, dtype, device->tag, shape, rank);
  const int64_t count = numel(t), bytes = count * dtype_bytes(dtype);
  Storage* storage = nullptr;
  Status status = storage_create(device->memory, bytes, &storage);
  if (!is_ok(status)) return r.fail(error(status.code, "%s: %s", r.op(), status.text));
  t.data = storage->data;
  if (source != nullptr && device->cuda == nullptr) {
    convert(t.data, dtype, source->data, source->dtype, count);
  } else if (source != nullptr) {
    status = write_converted(device, t, *source);
    if (!is_ok(status)) status = error(status.code, "%s: %s", r.op(), status.text);
  }
  if (is_ok(status) && wrap_tensor(r.env(), object, owner, storage, t) != napi_ok) {
    return r.fail(error(Code::type, "%s: the object holds a handle already", r.op()));
  }
  if (!is_ok(status)) {
    storage_drop(storage);
    r.fail(status);
  }
}

napi_value empty(napi_env env, napi_callback_info info) {
  Reader r(env, info, "empty");
  DeviceHandle* owner = r.device("device");
  napi_value object = r.object("tensor");
  int64_t shape[kMaxRank];
  const int rank = r.shape("shape", shape);
  const DType dtype = static_cast<DType>(r.word("dtype", kDTypeCount));
  if (!r.failed()) create(r, owner, object, dtype, shape, rank, nullptr);
  return nullptr;
}

napi_value tensor_from(napi_env env, napi_callback_info info) {
  Reader r(env, info, "tensor");
  DeviceHandle* owner = r.device("device");
  napi_value object = r.object("tensor");
  int64_t shape[kMaxRank];
  const int rank = r.shape("shape", shape);
  const DType dtype = static_cast<DType>(r.word("dtype", kDTypeCount));
  if (r.failed()) return nullptr;
  const Source source = read_source(r, "data", dtype, product(shape, rank));
  if (!r.failed()) create(r, owner, object, dtype, shape, rank, &source);
  return nullptr;
}

// Elements of a view with gaps come as a whole first, then the device copies them to their places.
static Status write_cuda(Device* device, Storage* storage, const Tensor& view,
                         const Source& source) {
  if (numel(view) == 0) return ok();
  if (is_contiguous(view)) return write_converted(device, view, source);
  Storage* whole = nullptr;
  LB_TRY(storage_create(device->memory, numel(view) * dtype_bytes(view.dtype), &whole));
  const Tensor x = make_tensor(whole->data, view.dtype, view.device, view.shape, view.rank);
  const CopyArgs args = {x, view, DType::none};
  const CopyKernel* row = nullptr;
  Status status = write_converted(device, x, source);
  if (is_ok(status)) status = copy_select(args, {device->arch, nullptr}, &row);
  CudaLaunch launch = {};
  launch.reads = &whole;
  launch.writes = &storage;
  launch.read_count = launch.write_count = 1;
  if (is_ok(status)) status = cuda_launch_begin(device, 0, nullptr, nullptr, 0, &launch);
  if (is_ok(status)) cuda_launch_end(device, launch, row->name, copy_run(args, *row, launch.ctx));
  storage_drop(whole);
  return status;
}

// Queued: ops called before it still see the old elements. The data is copied at once.
napi_value write(napi_env env, napi_callback_info info) {
  Reader r(env, info, "write");
  const TensorHandle* handle = r.tensor("tensor");
  if (handle == nullptr) return nullptr;
  const Tensor& view = handle->view;
  const Source source = read_source(r, "data", view.dtype, numel(view));
  if (r.failed()) return nullptr;
  Device* device = handle->device->device;
  if (device->cuda != nullptr) {
    const Status status = write_cuda(device, handle->storage, view, source);
    return is_ok(status) ? nullptr : fail(env, error(status.code, "write: %s", status.text));
  }
  const int64_t bytes = numel(view) * dtype_bytes(view.dtype);
  void* staged = std::malloc(static_cast<size_t>(bytes) + 1);
  Task* task = staged != nullptr ? task_new(device->queue) : nullptr;
  if (task == nullptr) {
    std::free(staged);
    return fail(env, error(Code::memory, "write: out of memory for %lld bytes",
                           static_cast<long long>(bytes)));
  }
  convert(staged, view.dtype, source.data, source.dtype, numel(view));
  struct Write {
    void* staged;
    Tensor view;
  };
  const Write args = {staged, view};
  std::memcpy(task->args, &args, sizeof args);
  task->row_name = "write";
  task->writes = 1;
  task->storages[0] = handle->storage;
  storage_retain(handle->storage);
  task->dropped = [](Task& t) { std::free(reinterpret_cast<Write*>(t.args)->staged); };
  task->run = [](Task& t, const Ctx&) {
    const Write& w = *reinterpret_cast<Write*>(t.args);
    scatter(w.view, w.staged, w.view.dtype);
    return ok();
  };
  queue_push(device->queue, task);
  return nullptr;
}

// The array was made by lib/tensor.ts for this read, so nobody else can reach it before the promise
// settles.
static bool prepare_read(Reader& r, Pending* p, napi_value* buffer) {
  const TensorHandle* handle = r.tensor("tensor");
  p->to_dtype = static_cast<DType>(r.word("dtype", kDTypeCount));
  *buffer = r.peek();
  int64_t bytes = 0;
  p->to = r.bytes("to", &bytes);
  if (r.failed()) return false;
  p->handle = handle->device;
  p->device = handle->device->device;
  p->storage = handle->storage;
  p->view = handle->view;
  if (!convertible(p->to_dtype, p->view.dtype)) {
    r.fail(error(Code::dtype, "read: %s can't be read as %s", dtype_name(p->view.dtype),
                 dtype_name(p->to_dtype)));
  } else if (bytes != numel(p->view) * dtype_bytes(p->to_dtype)) {
    r.fail(error(Code::internal, "read: the array has %lld bytes", static_cast<long long>(bytes)));
  }
  return !r.failed();
}

napi_value read_async(napi_env env, napi_callback_info info) {
  Reader r(env, info, "read");
  Pending* p = new Pending;
  napi_value buffer;
  if (!prepare_read(r, p, &buffer)) {
    delete p;
    return nullptr;
  }
  wait_async(env, p, r.value(), buffer);
  return nullptr;
}

napi_value read_blocking(napi_env env, napi_callback_info info) {
  Reader r(env, info, "readSync");
  Pending p;
  napi_value buffer;
  if (!prepare_read(r, &p, &buffer)) return nullptr;
  const Status status = wait_sync(&p);
  return is_ok(status) ? nullptr : fail(env, status);
}

}  // namespace lowbit::binding
