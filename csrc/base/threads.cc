#include "csrc/base/threads.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lowbit {

static void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// How long an idle worker spins. Ops of a decode step follow each other within a few microseconds,
// and a sleeping worker costs its waker 5 us or more; longer spinning takes the core from the
// JavaScript thread.
static constexpr std::chrono::microseconds kSpin{20};

using Range = void (*)(void* arg, int64_t begin, int64_t end, int thread);

static constexpr uint64_t kClosed = 0xffffffffu;  // in place of the next chunk: nothing to take

struct Pool {
  std::vector<std::thread> workers;
  int threads = 1;

  std::mutex turn;  // one job at a time

  // The job. `ticket` is closed before the fields change and opened after: a worker that took up an
  // old ticket, and may have read fields of the next job, finds another ticket when it tries to
  // claim its chunk, and drops what it read.
  std::atomic<Range> fn{nullptr};
  std::atomic<void*> arg{nullptr};
  std::atomic<int64_t> count{0}, grain{1};
  alignas(64) std::atomic<uint64_t> ticket{kClosed};  // job number << 32 | next chunk, or kClosed
  alignas(64) std::atomic<int64_t> done{0};           // chunks finished

  alignas(64) std::atomic<int> sleepers{0};
  std::mutex sleep;
  std::condition_variable wake;
  bool stop = false;
};

static void work(Pool* pool, uint64_t job, int thread) {
  for (;;) {
    uint64_t ticket = pool->ticket.load(std::memory_order_acquire);
    if (ticket >> 32 != job || (ticket & kClosed) == kClosed) return;
    const Range fn = pool->fn.load(std::memory_order_acquire);
    void* arg = pool->arg.load(std::memory_order_acquire);
    const int64_t count = pool->count.load(std::memory_order_acquire);
    const int64_t grain = pool->grain.load(std::memory_order_acquire);
    const int64_t begin = static_cast<int64_t>(ticket & kClosed) * grain;
    if (begin >= count) return;
    if (!pool->ticket.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel))
      continue;
    fn(arg, begin, begin + grain < count ? begin + grain : count, thread);
    pool->done.fetch_add(1, std::memory_order_release);
  }
}

static void worker(Pool* pool, int thread) {
  uint64_t seen = 0;
  auto idle_since = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      const uint64_t job = pool->ticket.load(std::memory_order_acquire) >> 32;
      if (job != seen) {
        work(pool, job, thread);
        seen = job;
        idle_since = std::chrono::steady_clock::now();
      }
      relax();
    }
    if (std::chrono::steady_clock::now() - idle_since < kSpin) continue;
    std::unique_lock<std::mutex> lock(pool->sleep);
    pool->sleepers.fetch_add(1, std::memory_order_seq_cst);
    pool->wake.wait(lock, [&] {
      return pool->stop || pool->ticket.load(std::memory_order_seq_cst) >> 32 != seen;
    });
    pool->sleepers.fetch_sub(1, std::memory_order_seq_cst);
    if (pool->stop) return;
    idle_since = std::chrono::steady_clock::now();
  }
}

Pool* pool_create(int threads) {
  Pool* pool = new (std::nothrow) Pool;
  if (pool == nullptr) return nullptr;
  pool->threads = threads < 1 ? 1 : threads;
  try {
    for (int i = 1; i < pool->threads; ++i) pool->workers.emplace_back(worker, pool, i);
  } catch (...) {  // the system is out of threads: those that started do the work
    pool->threads = static_cast<int>(pool->workers.size()) + 1;
  }
  for (std::thread& t : pool->workers) pthread_setname_np(t.native_handle(), "lowbit-worker");
  return pool;
}

void pool_destroy(Pool* pool) {
  if (pool == nullptr) return;
  {
    std::lock_guard<std::mutex> lock(pool->sleep);
    pool->stop = true;
  }
  pool->wake.notify_all();
  for (std::thread& t : pool->workers) t.join();
  delete pool;
}

int pool_threads(const Pool* pool) { return pool->threads; }

void pool_run(Pool* pool, int64_t count, int64_t grain, Range fn, void* arg) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  while (count / grain >= int64_t{1} << 31) grain *= 2;  // a chunk's number has 32 bits
  const int64_t chunks = (count + grain - 1) / grain;
  if (pool->threads == 1 || chunks == 1) {
    for (int64_t b = 0; b < count; b += grain) fn(arg, b, b + grain < count ? b + grain : count, 0);
    return;
  }
  std::lock_guard<std::mutex> turn(pool->turn);
  const uint64_t before = pool->ticket.load(std::memory_order_relaxed) >> 32;
  const uint64_t job = (before + 1) & 0xffffffffu;
  pool->ticket.store(before << 32 | kClosed, std::memory_order_seq_cst);
  pool->fn.store(fn, std::memory_order_release);
  pool->arg.store(arg, std::memory_order_release);
  pool->count.store(count, std::memory_order_release);
  pool->grain.store(grain, std::memory_order_release);
  pool->done.store(0, std::memory_order_relaxed);
  pool->ticket.store(job << 32, std::memory_order_seq_cst);
  if (pool->sleepers.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> lock(pool->sleep);
    pool->wake.notify_all();
  }
  work(pool, job, 0);
  for (int spins = 0; pool->done.load(std::memory_order_acquire) < chunks; ++spins) {
    if (spins < 4096) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace lowbit
