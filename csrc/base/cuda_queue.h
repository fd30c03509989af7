// CudaQueue: the stream of one CUDA device handle, and what goes with it: pinned memory for copies,
// events, scratch, and the bookkeeping of values that kernels find out of range.
//
// Ops go from the JavaScript thread straight to the stream. Nothing needs to be held for them:
// memory that is given back is taken again by later work of the same stream only. What waits, waits
// for an event: the queue of queue.h, in which nothing but waits stands on CUDA, runs them on its
// thread. All functions but cuda_wait_block() belong to the JavaScript thread.
//
// A kernel can't refuse its call. Values that are checked when an op runs (ids, positions, targets,
// lengths) are checked by the kernel, which leaves the first bad one in a slot of device memory;
// the slots come to the host with the next wait, and then the op fails as it does on a CPU: its
// outputs and everything computed from them are poisoned. To know what that is, each storage
// carries a set of the slots that it depends on.
#pragma once

#include <cstdint>

#include "csrc/base/device.h"
#include "csrc/base/kernel.h"

namespace lowbit {

struct CudaQueue;

Status cuda_queue_create(Device* device, CudaQueue** out);
void cuda_queue_destroy(Device* device);  // waits for the stream
void* cuda_stream(const CudaQueue* queue);

// The sentence for what a kernel found: the element's index in row-major order and its value.
using Blame = Status (*)(const void* args, int64_t index, int32_t value);

// One op: begin, the row's run() with `ctx`, end. The storages are those that the op reads and
// writes.
struct CudaLaunch {
  Ctx ctx;
  int slot;          // of a check; -1: none
  Status inherited;  // an input is poisoned: the row must not run
  Storage* const* reads;
  Storage* const* writes;
  int read_count, write_count;
};
Status cuda_launch_begin(Device* device, size_t scratch_bytes, Blame blame, const void* args,
                         size_t args_bytes, CudaLaunch* launch);
// `status` is what the row returned. Poisons the outputs if it failed.
void cuda_launch_end(Device* device, const CudaLaunch& launch, const char* row, Status status);

// Elements on their way into JavaScript's memory, or the end of everything queued so far.
struct CudaWait {
  void* event;
  uint8_t* staged;  // span of the view; null: nothing to bring
  int64_t staged_bytes;
  uint64_t* slots;  // null: no check is open
  uint64_t checks;  // how many were queued before
  Status status;
};
// Queues the copy of `view`, or nothing but the event.
void cuda_wait_begin(Device* device, const Storage* storage, const Tensor* view, CudaWait* wait);
// Any thread. Spins for a moment, then sleeps, until the event is reached.
void cuda_wait_block(Device* device, CudaWait* wait);
// What the wait says: the first failure of the device for a sync (`storage` null), else why this
// storage can't be read.
Status cuda_wait_end(Device* device, CudaWait* wait, const Storage* storage);

// Bytes that `produce(arg, to, offset, count)` makes go to the device piece by piece through pinned
// memory; returns once the last piece is queued.
Status cuda_write(Device* device, void* to, int64_t bytes,
                  void (*produce)(void* arg, void* to, int64_t offset, int64_t count), void* arg);
// Blocks until they are here.
Status cuda_read(Device* device, void* to, const void* from, int64_t bytes);

// Recording: between begin and end ops are checked and recorded, not run. What needs the host
// meanwhile (reads, writes, waits) is refused.
//
// A graph holds the memory of every storage that its ops use. Each replay opens its checks of
// values anew; if a check fails, everything that the graph writes is poisoned.
struct CudaGraph;
Status cuda_record_begin(Device* device);
// Null `out`: what was recorded is dropped.
Status cuda_record_end(Device* device, CudaGraph** out);
// Queues the recorded ops.
Status cuda_graph_replay(Device* device, CudaGraph* graph);
int64_t cuda_graph_ops(const CudaGraph* graph);
// The device may be closed.
void cuda_graph_drop(CudaGraph* graph);

struct CudaStats {
  int64_t queued, failed;
  int64_t scratch;  // bytes
};
CudaStats cuda_stats(const CudaQueue* queue);

}  // namespace lowbit
