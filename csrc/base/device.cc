#include "csrc/base/device.h"

#include <cstring>
#include <new>

#include "csrc/base/cuda_api.h"
#include "csrc/base/cuda_queue.h"
#include "csrc/base/queue.h"

namespace lowbit {

static Status finish_open(Device* d, int threads, int64_t limit, Device** out) {
  if (d->cuda == nullptr) d->memory = memory_create(limit, d->guard);
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
  const Status status = cuda_queue_create(d, &d->cuda_queue);
  if (!is_ok(status)) {
    delete d;
    return status;
  }
  const int64_t limit = options.memory_limit > 0 ? options.memory_limit : info.memory;
  d->memory = memory_create_cuda(api, index, cuda_stream(d->cuda_queue), limit);
  return finish_open(d, cpu_info().cores, limit, out);
}

void device_close(Device* d) {
  if (d->queue != nullptr) queue_destroy(d->queue);
  if (d->pool != nullptr) pool_destroy(d->pool);
  if (d->cuda_queue != nullptr) cuda_queue_destroy(d);
  if (d->memory != nullptr) memory_release(d->memory);
  delete d;
}

Status device_write(Device* d, void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return ok();
  if (d->cuda == nullptr) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return ok();
  }
  return cuda_write(
      d, to, bytes,
      [](void* arg, void* block, int64_t offset, int64_t count) {
        std::memcpy(block, static_cast<const uint8_t*>(arg) + offset, static_cast<size_t>(count));
      },
      const_cast<void*>(from));
}

Status device_read(Device* d, void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return ok();
  if (d->cuda == nullptr) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return ok();
  }
  return cuda_read(d, to, from, bytes);
}

}  // namespace lowbit
