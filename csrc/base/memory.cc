#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "csrc/base/arch.h"
#include "csrc/base/cuda_api.h"
#include "csrc/base/device.h"

namespace lowbit {

// Kept blocks are bounded: enough for the activations of a decode loop and of a prefill, small
// beside a model.
static constexpr int64_t kCacheLimit = int64_t{256} << 20;
// Blocks of this size and more are aligned to huge pages and ask for them: fewer TLB misses on
// streamed weights.
static constexpr int64_t kHuge = int64_t{2} << 20;

struct Region {
  Memory* memory = nullptr;
  int refs = 1;  // the graph's and one for each storage
  void* stream = nullptr;
  std::vector<std::pair<void*, int64_t>> blocks;
  std::map<int64_t, std::vector<void*>> kept;  // of them, free for the next storage
  std::vector<Storage*> storages;
};

struct Memory {
  Region* region = nullptr;                      // open
  std::vector<std::pair<void*, int64_t>> later;  // to be given once it closes
  std::atomic<int> refs{1};
  const CudaApi* cuda = nullptr;
  int cuda_index = 0;
  void* pool = nullptr;         // CUDA
  void* stream = nullptr;       // CUDA; null once the device is closed
  Storage* storages = nullptr;  // CUDA
  std::mutex lock;
  std::map<int64_t, std::vector<void*>> kept;  // by capacity
  bool guard = false;
  int64_t used = 0, cached = 0, peak = 0, limit = 0, guard_faults = 0;
};

// Size classes: eighths of a power of two, so that at most 12.5 % is lost and a small set of sizes
// is met again.
static int64_t size_class(int64_t bytes) {
  if (bytes <= 512) return 512;
  int64_t step = 64;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

static constexpr int64_t kPage = 4096;
static constexpr int64_t kGuardBytes = 64;  // at least, before a guarded block
static constexpr uint8_t kGuardByte = 0xa5;
static int64_t guard_span(int64_t bytes) {
  return (bytes + kGuardBytes + kPage - 1) / kPage * kPage;
}

void* guard_alloc(int64_t bytes) {
  const int64_t span = guard_span(bytes);
  void* base = mmap(nullptr, static_cast<size_t>(span + kPage), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  uint8_t* start = static_cast<uint8_t*>(base);
  mprotect(start + span, kPage, PROT_NONE);
  std::memset(start, kGuardByte, static_cast<size_t>(span - bytes));
  std::memset(start + span - bytes, 0xff, static_cast<size_t>(bytes));
  return start + span - bytes;
}

bool guard_free(void* p, int64_t bytes) {
  const int64_t span = guard_span(bytes);
  uint8_t* start = static_cast<uint8_t*>(p) + bytes - span;
  bool whole = true;
  for (int64_t i = 0; i < span - bytes; ++i) whole = whole && start[i] == kGuardByte;
  munmap(start, static_cast<size_t>(span + kPage));
  return whole;
}

static void* take(Memory* m, int64_t capacity) {
  if (m->guard) return guard_alloc(capacity);
  if (m->cuda != nullptr) {
    void* p = nullptr;
    m->cuda->use(m->cuda_index);
    void* stream = m->region != nullptr ? m->region->stream : m->stream;
    if (m->cuda->alloc(m->pool, capacity, stream, &p) != 0) return nullptr;
    if (m->region != nullptr) m->cuda->stream_sync(stream);
    return p;
  }
  void* p = nullptr;
  const int64_t align = capacity >= kHuge ? kHuge : 64;
  if (posix_memalign(&p, static_cast<size_t>(align), static_cast<size_t>(capacity)) != 0)
    return nullptr;
  if (capacity >= kHuge) madvise(p, static_cast<size_t>(capacity), MADV_HUGEPAGE);
  return p;
}

static void give(Memory* m, void* p, int64_t capacity) {
  if (m->guard) {
    if (!guard_free(p, capacity)) ++m->guard_faults;
  } else if (m->cuda != nullptr) {
    if (m->region != nullptr) {
      m->later.emplace_back(p, capacity);
      return;
    }
    m->cuda->use(m->cuda_index);
    m->cuda->free(p, m->stream);
  } else {
    std::free(p);
  }
}

static void trim_locked(Memory* m) {
  for (auto& entry : m->kept) {
    for (void* p : entry.second) give(m, p, entry.first);
  }
  m->kept.clear();
  m->cached = 0;
}

Memory* memory_create(int64_t limit, bool guard) {
  Memory* m = new (std::nothrow) Memory;
  if (m == nullptr) return nullptr;
  m->limit = limit;
  m->guard = guard;
  return m;
}

Memory* memory_create_cuda(const CudaApi* cuda, int cuda_index, void* stream, int64_t limit) {
  Memory* m = memory_create(limit, false);
  if (m == nullptr) return nullptr;
  m->cuda = cuda;
  m->cuda_index = cuda_index;
  m->stream = stream;
  if (cuda->use(cuda_index) == 0 && cuda->pool_create(cuda_index, &m->pool) == 0) return m;
  delete m;
  return nullptr;
}

void memory_detach(Memory* m) {
  std::lock_guard<std::mutex> lock(m->lock);
  trim_locked(m);
  m->stream = nullptr;
}

Status memory_take(Memory* m, int64_t bytes, void** out) {
  std::lock_guard<std::mutex> lock(m->lock);
  *out = take(m, bytes);
  return *out != nullptr ? ok()
                         : error(Code::memory, "out of memory: the device refused %lld bytes",
                                 static_cast<long long>(bytes));
}

void memory_poison(Memory* m, uint64_t check, uint64_t number, const Status& why) {
  std::lock_guard<std::mutex> lock(m->lock);
  for (Storage* s = m->storages; s != nullptr; s = s->next) {
    if ((s->checks & check) != 0 && s->last_check >= number) storage_poison(s, why);
  }
}

void memory_release(Memory* m) {
  if (m->refs.fetch_sub(1) != 1) return;
  trim_locked(m);
  if (m->cuda != nullptr) {
    m->cuda->use(m->cuda_index);
    m->cuda->pool_destroy(m->pool);
  }
  delete m;
}

MemoryUsage memory_usage(Memory* m) {
  std::lock_guard<std::mutex> lock(m->lock);
  return {m->used, m->cached, m->peak, m->limit, m->guard_faults};
}

void memory_trim(Memory* m) {
  std::lock_guard<std::mutex> lock(m->lock);
  trim_locked(m);
}

Status storage_create(Memory* m, int64_t bytes, Storage** out) {
  const int64_t capacity = m->guard ? bytes : size_class(bytes);
  void* p = nullptr;
  {
    std::lock_guard<std::mutex> lock(m->lock);
    if (m->limit > 0 && (capacity > m->limit || m->used > m->limit - capacity)) {
      return error(Code::memory,
                   "out of memory: %lld bytes asked for, %lld of the limit of %lld in use",
                   static_cast<long long>(bytes), static_cast<long long>(m->used),
                   static_cast<long long>(m->limit));
    }
    auto found = m->kept.find(capacity);
    Region* region = m->region;
    if (region != nullptr && !region->kept[capacity].empty()) {
      p = region->kept[capacity].back();
      region->kept[capacity].pop_back();
    } else if (found != m->kept.end() && !found->second.empty()) {
      p = found->second.back();
      found->second.pop_back();
      m->cached -= capacity;
    } else {
      if (m->limit > 0 && m->used + m->cached + capacity > m->limit) trim_locked(m);
      p = take(m, capacity);
      if (p == nullptr) {
        trim_locked(m);
        if (m->cuda != nullptr && m->stream != nullptr && m->region == nullptr) {
          m->cuda->stream_sync(m->stream);
          m->cuda->pool_trim(m->pool);
        }
        p = take(m, capacity);
      }
    }
    if (p != nullptr) {
      m->used += capacity;
      if (m->used > m->peak) m->peak = m->used;
    }
  }
  Storage* s = p == nullptr ? nullptr : new (std::nothrow) Storage;
  if (s == nullptr) {
    if (p != nullptr) {
      std::lock_guard<std::mutex> lock(m->lock);
      give(m, p, capacity);
      m->used -= capacity;
    }
    return error(Code::memory, "out of memory: the system refused %lld bytes",
                 static_cast<long long>(bytes));
  }
  m->refs.fetch_add(1);
  s->refs.store(1);
  s->handles.store(0);
  s->poison.store(nullptr);
  s->data = static_cast<uint8_t*>(p);
  s->bytes = bytes;
  s->capacity = capacity;
  s->memory = m;
  s->checks = s->last_check = 0;
  s->previous = s->next = nullptr;
  s->region = nullptr;
  if (m->cuda != nullptr) {
    std::lock_guard<std::mutex> lock(m->lock);
    if (Region* region = m->region; region != nullptr) {
      s->region = region;
      ++region->refs;
      region->storages.push_back(s);
      bool known = false;
      for (const auto& block : region->blocks) known = known || block.first == p;
      if (!known) region->blocks.emplace_back(p, capacity);
    }
    s->next = m->storages;
    if (s->next != nullptr) s->next->previous = s;
    m->storages = s;
  }
  *out = s;
  return ok();
}

void storage_retain(Storage* s) { s->refs.fetch_add(1, std::memory_order_relaxed); }

Status region_open(Memory* m, void* stream, Region** out) {
  Region* region = new (std::nothrow) Region;
  if (region == nullptr) return error(Code::memory, "capture: out of memory");
  std::lock_guard<std::mutex> lock(m->lock);
  region->memory = m;
  region->stream = stream;
  m->refs.fetch_add(1);
  *out = m->region = region;
  return ok();
}

void region_close(Region* region) {
  Memory* m = region->memory;
  std::lock_guard<std::mutex> lock(m->lock);
  m->region = nullptr;
  region->kept.clear();
  for (const auto& [p, capacity] : m->later) give(m, p, capacity);
  m->later.clear();
}

// Its blocks are the device's again. The count on the memory is left to the caller.
static bool region_drop_locked(Region* region) {
  if (--region->refs > 0) return false;
  Memory* m = region->memory;
  for (const auto& [p, capacity] : region->blocks) {
    if (m->stream != nullptr && m->cached + capacity <= kCacheLimit) {
      m->kept[capacity].push_back(p);
      m->cached += capacity;
    } else {
      give(m, p, capacity);
    }
  }
  delete region;
  return true;
}

void region_drop(Region* region) {
  Memory* m = region->memory;
  bool last;
  {
    std::lock_guard<std::mutex> lock(m->lock);
    last = region_drop_locked(region);
  }
  if (last) memory_release(m);
}

void region_each(Region* region, void (*f)(Storage* storage, void* arg), void* arg) {
  for (Storage* s : region->storages) f(s, arg);
}

void storage_drop(Storage* s) {
  if (s->refs.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  Memory* m = s->memory;
  bool last_of_region = false;
  {
    std::lock_guard<std::mutex> lock(m->lock);
    m->used -= s->capacity;
    if (s->next != nullptr) s->next->previous = s->previous;
    if (s->previous != nullptr) s->previous->next = s->next;
    if (m->storages == s) m->storages = s->next;
    const bool closed = m->cuda != nullptr && m->stream == nullptr;
    if (Region* region = s->region; region != nullptr) {
      std::erase(region->storages, s);
      if (m->region == region) region->kept[s->capacity].push_back(s->data);
      last_of_region = region_drop_locked(region);
    } else if (!m->guard && !closed && m->cached + s->capacity <= kCacheLimit) {
      m->kept[s->capacity].push_back(s->data);
      m->cached += s->capacity;
    } else {
      give(m, s->data, s->capacity);
    }
  }
  delete s->poison.load();
  delete s;
  if (last_of_region) memory_release(m);
  memory_release(m);
}

void storage_poison(Storage* s, const Status& why) {
  Status* expected = nullptr;
  Status* copy = new (std::nothrow) Status(why);
  // The first reason stays: later ones follow from it.
  if (copy != nullptr && !s->poison.compare_exchange_strong(expected, copy)) delete copy;
}

}  // namespace lowbit
