// Device: where tensors live and ops run: its memory, its queue, its kernels' instruction sets.
//
// Storage is one reference-counted block of a device's memory. Tensor handles and queued ops hold
// counts on it, so a tensor may be disposed while an op that reads it is still waiting; the memory
// goes back when the last count does.
#pragma once

#include <atomic>
#include <cstdint>

#include "csrc/base/arch.h"
#include "csrc/base/status.h"
#include "csrc/base/tensor.h"
#include "csrc/base/threads.h"

namespace lowbit {

struct Queue;
struct Memory;
struct CudaApi;
struct CudaQueue;
struct Region;

struct Device {
  DeviceTag tag;
  ArchSet arch;
  int threads;  // of the pool; 0 on CUDA
  Pool* pool;   // CPU kernels; on CUDA the host pool that packs weights
  Memory* memory;
  Queue* queue;
  const CudaApi* cuda;  // null on a CPU
  int cuda_index;
  CudaQueue* cuda_queue;
  bool guard;
};

struct Storage {
  std::atomic<int32_t> refs;
  std::atomic<int32_t>
      handles;  // JavaScript objects among them; touched by the JavaScript thread alone
  std::atomic<Status*>
      poison;  // why the contents are not to be read: a failed op was to write them
  uint8_t* data;
  int64_t bytes;     // as asked for
  int64_t capacity;  // as taken from the device
  Memory* memory;
  // CUDA, see cuda_queue.h: the open checks that the contents depend on, as slots, and the last of
  // them by number; and the neighbours in the list of all storages.
  uint64_t checks, last_check;
  Storage *previous, *next;
  Region* region;  // whose block this is; null: the device's
};

// Memory of one device. Freed blocks are kept for reuse by size class, because fresh pages cost
// more than the op that fills them; `limit` (0: none) bounds what is in use, and blocks kept are
// given up before a request fails.
//
// `guard` (CPU, for tests): every block ends at a page that can't be touched, starts after bytes
// that are checked when it is freed, and is filled with bytes that read as NaN; nothing is kept.
struct MemoryUsage {
  int64_t used, cached, peak, limit;
  int64_t guard_faults;  // blocks whose leading guard bytes were overwritten
};
Memory* memory_create(int64_t limit, bool guard);
// CUDA: blocks come from a pool of the driver, in the order of `stream`.
Memory* memory_create_cuda(const CudaApi* cuda, int cuda_index, void* stream, int64_t limit);
void memory_detach(Memory* memory);  // the stream ends, storages may live on
Status memory_take(Memory* memory, int64_t bytes, void** out);  // a block that is not counted
// Poisons the storages that depend on this check.
void memory_poison(Memory* memory, uint64_t check, uint64_t number, const Status& why);
void memory_release(Memory* memory);  // freed with its last storage
MemoryUsage memory_usage(Memory* memory);
void memory_trim(Memory* memory);  // gives the kept blocks back

// CUDA: the blocks that a recorded graph writes whenever it is replayed. Storages made while a
// region is open lie in its blocks, which serve nobody else until the graph and all those storages
// are gone; among themselves they share blocks as usual. While a region is open no block goes back
// to the driver.
Status region_open(Memory* memory, void* stream, Region** out);  // `stream`: where blocks come from
void region_close(Region* region);                               // the recording ends
void region_drop(Region* region);
// The storages that live in its blocks.
void region_each(Region* region, void (*f)(Storage* storage, void* arg), void* arg);

// 64-byte aligned. `bytes` may be 0. The new storage has one count.
Status storage_create(Memory* memory, int64_t bytes, Storage** out);
void storage_retain(Storage* storage);
void storage_drop(Storage* storage);
void storage_poison(Storage* storage, const Status& why);

struct DeviceOptions {
  int threads;           // 0: every core that the process may use
  int64_t memory_limit;  // bytes; 0: none
  const char* cap;       // LB_ARCH, or null
  bool guard;            // LB_GUARD=1: guarded memory, for tests
};

Status device_open_cpu(const DeviceOptions& options, int32_t id, Device** out);
Status device_open_cuda(const CudaApi* api, int index, const DeviceOptions& options, int32_t id,
                        Device** out);
// Drops what is queued, waits for the op that runs, ends the threads. Storages may outlive the
// device.
void device_close(Device* device);

// Guarded blocks, for memory_create and for the scratch of a guarded device's queue. Null: out of
// memory.
void* guard_alloc(int64_t bytes);
bool guard_free(void* p, int64_t bytes);  // false: the guard bytes were overwritten

// Copies between host memory and storage; on CUDA in the order of the device's stream. When they
// return, `from` may be overwritten and `to`, on the host, is there.
Status device_write(Device* device, void* to, const void* from, int64_t bytes);
Status device_read(Device* device, void* to, const void* from, int64_t bytes);

}  // namespace lowbit
