#include "binding/wait.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "binding/error.h"
#include "csrc/base/convert.h"

namespace lowbit::binding {

// On the executor thread: the elements leave the queue in their order, so later ops may overwrite
// the tensor at once.
static Status deliver(Pending* p) {
  if (p->storage == nullptr) return queue_take_failure(p->device->queue);
  if (const Status* why = p->storage->poison.load(std::memory_order_acquire)) {
    queue_take_failure(p->device->queue);  // said here, so sync() need not say it again
    return *why;
  }
  gather(p->to, p->to_dtype, p->view);
  return ok();
}

// CUDA, on any thread.
static void deliver_staged(Pending* p) {
  cuda_wait_block(p->device, &p->cuda);
  if (!is_ok(p->cuda.status) || p->cuda.staged == nullptr || p->to == nullptr) return;
  Tensor staged = p->view;
  staged.data = p->cuda.staged;
  gather(p->to, p->to_dtype, staged);
}

static void begin(Pending* p) {
  if (p->storage != nullptr) storage_retain(p->storage);
  cuda_wait_begin(p->device, p->storage, p->storage != nullptr ? &p->view : nullptr, &p->cuda);
}

// JavaScript thread. A device that was closed meanwhile took what the wait held with it.
static void end(Pending* p, bool open) {
  if (open) {
    const Status status = cuda_wait_end(p->device, &p->cuda, p->storage);
    if (is_ok(p->status)) p->status = status;
  }
  if (p->storage != nullptr) storage_drop(p->storage);
}

static bool push(Pending* p) {
  Task* task = task_new(p->device->queue);
  if (task == nullptr) return false;
  task->row_name = "read";
  std::memcpy(task->args, &p, sizeof p);
  const bool cuda = p->device->cuda != nullptr;
  // Held as an output: a poisoned input would keep the task from running.
  if (p->storage != nullptr && !cuda) {
    task->storages[0] = p->storage;
    task->writes = 1;
    storage_retain(p->storage);
  }
  task->run = [](Task& t, const Ctx&) {
    Pending* pending;
    std::memcpy(&pending, t.args, sizeof pending);
    if (pending->device->cuda != nullptr) {
      deliver_staged(pending);
    } else {
      pending->status = deliver(pending);
    }
    pending->done.store(true, std::memory_order_release);
    pending->reached(pending);
    return ok();
  };
  queue_push(p->device->queue, task);
  return true;
}

static void settle(napi_env env, napi_value, void*, void* data) {
  Pending* p = static_cast<Pending*>(data);
  DeviceHandle* handle = p->handle;
  handle->waiting.erase(std::find(handle->waiting.begin(), handle->waiting.end(), p));
  if (p->cuda_device) end(p, handle->device != nullptr);
  if (env != nullptr) {
    napi_handle_scope scope;
    napi_open_handle_scope(env, &scope);
    napi_value callback, receiver, argv[2], result;
    napi_get_reference_value(env, p->callback, &callback);
    napi_get_undefined(env, &receiver);
    size_t argc = 0;
    if (!is_ok(p->status)) {
      argc = 2;
      napi_create_string_utf8(env, code_name(p->status.code), NAPI_AUTO_LENGTH, &argv[0]);
      napi_create_string_utf8(env, p->status.text, NAPI_AUTO_LENGTH, &argv[1]);
    }
    napi_delete_reference(env, p->callback);
    if (p->buffer != nullptr) napi_delete_reference(env, p->buffer);
    if (handle->waiting.empty() && handle->wake != nullptr) {
      napi_unref_threadsafe_function(env, handle->wake);
    }
    napi_call_function(env, receiver, callback, argc, argv, &result);
    napi_close_handle_scope(env, scope);
  }
  device_handle_drop(handle);
  delete p;
}

napi_status open_wake(napi_env env, DeviceHandle* handle) {
  napi_value name;
  napi_create_string_utf8(env, "lowbit", NAPI_AUTO_LENGTH, &name);
  const napi_status status = napi_create_threadsafe_function(
      env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr, settle, &handle->wake);
  // A device alone does not keep the process alive; a promise that waits does.
  return status == napi_ok ? napi_unref_threadsafe_function(env, handle->wake) : status;
}

void wait_async(napi_env env, Pending* p, napi_value callback, napi_value buffer) {
  DeviceHandle* handle = p->handle;
  p->reached = [](Pending* pending) {
    napi_call_threadsafe_function(pending->handle->wake, pending, napi_tsfn_nonblocking);
  };
  napi_create_reference(env, callback, 1, &p->callback);
  if (buffer != nullptr) napi_create_reference(env, buffer, 1, &p->buffer);
  if (handle->waiting.empty()) napi_ref_threadsafe_function(env, handle->wake);
  handle->waiting.push_back(p);
  device_handle_retain(handle);
  p->cuda_device = p->device->cuda != nullptr;
  if (p->cuda_device) begin(p);
  if (push(p)) return;
  p->status = error(Code::memory, "read: out of memory");
  p->reached(p);
}

void wait_abandon(DeviceHandle* handle) {
  for (Pending* p : handle->waiting) {
    if (p->done.load(std::memory_order_acquire)) continue;  // on its way to settle()
    p->status = error(Code::disposed, "read: the device was closed before its queue came to this");
    p->reached(p);
  }
}

Status wait_sync(Pending* p) {
  if (p->device->cuda != nullptr) {
    begin(p);
    deliver_staged(p);
    end(p, true);
    return p->status;
  }
  struct Waiter {
    std::mutex lock;
    std::condition_variable done;
    bool reached = false;
  } waiter;
  p->waiter = &waiter;
  p->reached = [](Pending* pending) {
    Waiter* w = static_cast<Waiter*>(pending->waiter);
    std::lock_guard<std::mutex> lock(w->lock);
    w->reached = true;
    w->done.notify_one();
  };
  if (!push(p)) return error(Code::memory, "read: out of memory");
  std::unique_lock<std::mutex> lock(waiter.lock);
  waiter.done.wait(lock, [&] { return waiter.reached; });
  return p->status;
}

}  // namespace lowbit::binding
