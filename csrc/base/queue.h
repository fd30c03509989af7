// Queue: the ops of one device handle, first in, first out, run by one executor thread in front of
// the pool.
//
// The JavaScript thread is the only producer, the executor the only consumer. push() costs no
// system call while the executor is awake; after about 50 us without work it sleeps.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "csrc/base/device.h"
#include "csrc/base/kernel.h"

namespace lowbit {

inline constexpr int kTaskStorages = 16;
inline constexpr size_t kTaskArgs = 2048;

struct Task {
  std::atomic<Task*> next;
  Status (*run)(Task& task, const Ctx& ctx);
  size_t (*workspace)(Task& task, int threads);  // null: none
  void (*dropped)(Task& task);                   // frees what args own, run or not; null: nothing
  const void* row;                               // the op's kernel row
  const char* row_name;                          // for the text of a failure
  int32_t reads, writes;             // storages[0..reads) are inputs, the next `writes` outputs
  Storage* storages[kTaskStorages];  // each with a count that the task owns
  alignas(16) unsigned char args[kTaskArgs];
};

Queue* queue_create(Device* device);
void queue_destroy(Queue* queue);

Task* task_new(Queue* queue);  // null: out of memory
void queue_push(Queue* queue, Task* task);
void task_abandon(Queue* queue, Task* task);  // instead of push: drops its counts

// The first failure since the last call, or ok: what sync() reports. Called on the executor thread
// by fences.
Status queue_take_failure(Queue* queue);

struct QueueStats {
  int64_t queued, finished, failed;
};
QueueStats queue_stats(const Queue* queue);

}  // namespace lowbit
