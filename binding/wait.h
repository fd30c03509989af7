// Waiting for the queue: promises for await, a condition variable for the ...Sync forms. On CUDA
// the elements are on their way to pinned memory when the wait is queued, and the queue's thread
// waits for the event behind them.
#pragma once

#include <atomic>

#include "binding/handle.h"
#include "csrc/base/cuda_queue.h"

namespace lowbit::binding {

// A task that stands in the queue like an op and reports when the executor reaches it.
struct Pending {
  DeviceHandle* handle = nullptr;
  Device* device = nullptr;
  Storage* storage = nullptr;  // the tensor's, with a count; null: sync of the whole queue
  Tensor view = absent_tensor();
  void* to = nullptr;  // where the elements go, in JavaScript's memory
  DType to_dtype = DType::none;
  Status status = ok();
  bool cuda_device = false;
  CudaWait cuda = {};
  std::atomic<bool> done{false};        // the executor came to it
  napi_ref callback = nullptr;          // (code?, text?) => void
  napi_ref buffer = nullptr;            // keeps `to` alive
  void (*reached)(Pending*) = nullptr;  // on the executor thread
  void* waiter = nullptr;
};

// Made with the device, before its exit hook: hooks run last in, first out, so the executor ends
// before this does.
napi_status open_wake(napi_env env, DeviceHandle* handle);
// Queues it and calls back on the JavaScript thread.
void wait_async(napi_env env, Pending* pending, napi_value callback, napi_value buffer);
// Queues it and blocks until it is reached.
Status wait_sync(Pending* pending);
// After the executor has ended: tells those that it did not come to.
void wait_abandon(DeviceHandle* handle);

}  // namespace lowbit::binding
