#include "csrc/base/device.h"

#include <cstring>
#include <new>

#include "csrc/base/cuda_api.h"
#include "csrc/base/queue.h"

namespace lowbit {

static Status finish_open(Device* d, int threads, int64_t limit, Device** out) {
  d->memory = memory_create(d->cuda, d->cuda_index, limit, d->guard);
  d->pool = pool_create(threads);
  d->queue = d->memory != nullptr && d->pool != nullptr ? queue_create(d) : nullptr;
  if (d->queue == nullptr) {
    device_close(d);
    return error(Code::memory, "openDevice: the system refused a thread or its memory");
  }
  *out = d;
  return ok();
}

Status device_open_cpu(const DeviceOptions& options, int32_t id, Device** out) {
  const CpuInfo info = cpu_info();
  Device* d = new (std::nothrow) Device{};
  if (d == nullptr) return error(Code::memory, "openDevice: out of memory");
  d->tag = {DeviceKind::cpu, id};
  d->arch = cap_arch(detect_cpu(), options.cap);
  d->guard = options.guard;
  const int threads = options.threads > 0 ? options.threads : info.cores;
  LB_TRY(
      finish_open(d, threads, options.memory_limit > 0 ? options.memory_limit : info.memory, out));
  d->threads = pool_threads(d->pool);
  return ok();
}

Status device_open_cuda(const CudaApi* api, int index, const DeviceOptions& options, int32_t id,
                        Device** out) {
  CudaDeviceInfo info;
  if (const int code = api->device_info(index, &info)) {
    return error(Code::cuda, "openDevice: cuda:%d: %s", index, api->error_text(code));
  }
  Device* d = new (std::nothrow) Device{};
  if (d == nullptr) return error(Code::memory, "openDevice: out of memory");
  d->tag = {DeviceKind::cuda, id};
  d->arch = cap_arch(detect_gpu(info.major, info.minor), options.cap);
  d->cuda = api;
  d->cuda_index = index;
  if (const int code = api->stream_create(index, &d->cuda_stream)) {
    delete d;
    return error(Code::cuda, "openDevice: cuda:%d: %s", index, api->error_text(code));
  }
  return finish_open(d, cpu_info().cores,
                     options.memory_limit > 0 ? options.memory_limit : info.memory, out);
}

void device_close(Device* d) {
  if (d->queue != nullptr) queue_destroy(d->queue);
  if (d->pool != nullptr) pool_destroy(d->pool);
  if (d->cuda_stream != nullptr) d->cuda->stream_destroy(d->cuda_index, d->cuda_stream);
  if (d->memory != nullptr) memory_release(d->memory);
  delete d;
}

Status device_write(Device* d, void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return ok();
  if (d->cuda == nullptr) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return ok();
  }
  const int code = d->cuda->copy_in(d->cuda_index, to, from, bytes, d->cuda_stream);
  return code == 0 ? ok() : error(Code::cuda, "copy to the device: %s", d->cuda->error_text(code));
}

Status device_read(Device* d, void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return ok();
  if (d->cuda == nullptr) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return ok();
  }
  const int code = d->cuda->copy_out(d->cuda_index, to, from, bytes, d->cuda_stream);
  return code == 0 ? ok()
                   : error(Code::cuda, "copy from the device: %s", d->cuda->error_text(code));
}

}  // namespace lowbit
