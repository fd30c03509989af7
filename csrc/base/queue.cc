#include "csrc/base/queue.h"

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lowbit {

// Between the ops of a burst the JavaScript thread needs a microsecond or two; waking a sleeper
// costs it more than that.
static constexpr std::chrono::microseconds kSpin{50};

struct Queue {
  Device* device = nullptr;
  std::thread executor;

  // A linked list with one task of slack: `head` is the task that ran last, its successor runs
  // next.
  Task* head = nullptr;  // executor
  Task* tail = nullptr;  // JavaScript thread

  std::atomic<Task*> free{
      nullptr};  // pushed by the executor, popped by the JavaScript thread alone: no ABA

  std::atomic<bool> asleep{false};
  std::atomic<bool> stop{false};
  std::mutex sleep;
  std::condition_variable wake;

  Status failure = ok();  // executor
  void* scratch = nullptr;
  size_t scratch_bytes = 0;

  std::atomic<int64_t> queued{0}, finished{0}, failed{0};
};

static void recycle(Queue* q, Task* t) {
  Task* top = q->free.load(std::memory_order_relaxed);
  do {
    t->next.store(top, std::memory_order_relaxed);
  } while (
      !q->free.compare_exchange_weak(top, t, std::memory_order_release, std::memory_order_relaxed));
}

static void drop_holds(Task* t) {
  if (t->dropped != nullptr) t->dropped(*t);
  t->dropped = nullptr;
  for (int i = 0; i < t->reads + t->writes; ++i) storage_drop(t->storages[i]);
  t->reads = t->writes = 0;
}

// The arena grows to the largest request and stays; a long-lived device settles after its first
// prefill.
static bool reserve(Queue* q, size_t bytes) {
  if (q->device->guard) {  // an exact block for each op
    if (q->scratch != nullptr) guard_free(q->scratch, static_cast<int64_t>(q->scratch_bytes));
    q->scratch_bytes = (bytes + 63) / 64 * 64;
    q->scratch = guard_alloc(static_cast<int64_t>(q->scratch_bytes));
    return q->scratch != nullptr;
  }
  if (bytes <= q->scratch_bytes) return true;
  std::free(q->scratch);
  q->scratch = nullptr;
  q->scratch_bytes = 0;
  const size_t rounded = (bytes + 4095) / 4096 * 4096;
  if (rounded < bytes || posix_memalign(&q->scratch, 64, rounded) != 0) {
    q->scratch = nullptr;
    return false;
  }
  q->scratch_bytes = rounded;
  return true;
}

static Status poisoned_input(const Task& t) {
  for (int i = 0; i < t.reads; ++i) {
    if (const Status* why = t.storages[i]->poison.load(std::memory_order_acquire)) return *why;
  }
  return ok();
}

static void execute(Queue* q, Task* t) {
  Status status = poisoned_input(*t);
  const bool inherited = !is_ok(status);
  if (!inherited) {
    Ctx ctx = {q->device->pool, nullptr, nullptr, 0, nullptr};
    const size_t bytes = t->workspace != nullptr ? t->workspace(*t, q->device->threads) : 0;
    if (bytes > 0 && !reserve(q, bytes)) {
      status = error(Code::memory, "out of memory for %llu bytes of scratch",
                     static_cast<unsigned long long>(bytes));
    } else {
      ctx.scratch = q->scratch;
      status = t->run(*t, ctx);
    }
    if (!is_ok(status)) {
      status = error(status.code, "%s (in %s)", status.text, t->row_name);
      q->failed.fetch_add(1, std::memory_order_relaxed);
      if (is_ok(q->failure)) q->failure = status;
    }
  }
  if (!is_ok(status)) {
    for (int i = t->reads; i < t->reads + t->writes; ++i) storage_poison(t->storages[i], status);
  }
  drop_holds(t);
  q->finished.fetch_add(1, std::memory_order_release);
}

static void executor(Queue* q) {
  auto idle_since = std::chrono::steady_clock::now();
  while (!q->stop.load(std::memory_order_acquire)) {
    Task* next = q->head->next.load(std::memory_order_acquire);
    if (next != nullptr) {
      recycle(q, q->head);
      q->head = next;
      execute(q, next);
      idle_since = std::chrono::steady_clock::now();
      continue;
    }
    for (int i = 0; i < 32 && q->head->next.load(std::memory_order_relaxed) == nullptr; ++i) {
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
    if (q->head->next.load(std::memory_order_relaxed) != nullptr) continue;
    if (std::chrono::steady_clock::now() - idle_since < kSpin) continue;
    std::unique_lock<std::mutex> lock(q->sleep);
    q->asleep.store(true, std::memory_order_seq_cst);
    q->wake.wait(lock, [&] {
      return q->stop.load(std::memory_order_acquire) ||
             q->head->next.load(std::memory_order_seq_cst) != nullptr;
    });
    q->asleep.store(false, std::memory_order_relaxed);
  }
}

static Task* allocate() {
  Task* t = static_cast<Task*>(std::malloc(sizeof(Task)));
  if (t != nullptr) {
    new (&t->next) std::atomic<Task*>(nullptr);
    t->reads = t->writes = 0;
    t->dropped = nullptr;
  }
  return t;
}

Queue* queue_create(Device* device) {
  Queue* q = new (std::nothrow) Queue;
  if (q == nullptr) return nullptr;
  q->device = device;
  q->head = q->tail = allocate();
  if (q->head == nullptr) {
    delete q;
    return nullptr;
  }
  try {
    q->executor = std::thread(executor, q);
    pthread_setname_np(q->executor.native_handle(), "lowbit-queue");
  } catch (...) {
    std::free(q->head);
    delete q;
    return nullptr;
  }
  return q;
}

void queue_destroy(Queue* q) {
  q->stop.store(true, std::memory_order_release);
  { std::lock_guard<std::mutex> lock(q->sleep); }
  q->wake.notify_all();
  q->executor.join();
  for (Task* t = q->head; t != nullptr;) {
    Task* next = t->next.load(std::memory_order_acquire);
    drop_holds(t);
    std::free(t);
    t = next;
  }
  for (Task* t = q->free.load(); t != nullptr;) {
    Task* next = t->next.load();
    std::free(t);
    t = next;
  }
  if (q->device->guard && q->scratch != nullptr) {
    guard_free(q->scratch, static_cast<int64_t>(q->scratch_bytes));
  } else {
    std::free(q->scratch);
  }
  delete q;
}

Task* task_new(Queue* q) {
  Task* t = q->free.load(std::memory_order_acquire);
  while (t != nullptr && !q->free.compare_exchange_weak(t, t->next.load(std::memory_order_relaxed),
                                                        std::memory_order_acquire)) {
  }
  if (t == nullptr) t = allocate();
  if (t == nullptr) return nullptr;
  t->next.store(nullptr, std::memory_order_relaxed);
  t->run = nullptr;
  t->workspace = nullptr;
  t->dropped = nullptr;
  t->row = nullptr;
  t->row_name = "";
  t->reads = t->writes = 0;
  return t;
}

void queue_push(Queue* q, Task* t) {
  q->queued.fetch_add(1, std::memory_order_relaxed);
  Task* previous = q->tail;
  q->tail = t;
  previous->next.store(t, std::memory_order_seq_cst);
  if (q->asleep.load(std::memory_order_seq_cst)) {
    std::lock_guard<std::mutex> lock(q->sleep);
    q->wake.notify_one();
  }
}

void task_abandon(Queue* q, Task* t) {
  drop_holds(t);
  recycle(q, t);
}

Status queue_take_failure(Queue* q) {
  const Status failure = q->failure;
  q->failure = ok();
  return failure;
}

QueueStats queue_stats(const Queue* q) {
  return {q->queued.load(), q->finished.load(), q->failed.load()};
}

}  // namespace lowbit
