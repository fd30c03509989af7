// Pool: the threads that the kernels of one CPU device share, and parallel_for over them.
//
// The caller of parallel_for works too, so a pool of `threads` keeps threads - 1 workers. Chunks
// come from an atomic counter: a thread whose core was taken by a neighbour holds up one chunk, not
// a whole share. The partition into chunks depends on the sizes given and never on the number of
// threads, so results are the same bits for any number.
#pragma once

#include <cstdint>

#include "csrc/base/status.h"

namespace lowbit {

struct Pool;

// Spins for about 20 us after a job before its workers sleep. threads >= 1. Null if no thread could
// be started.
Pool* pool_create(int threads);
void pool_destroy(Pool* pool);  // no job may be running
int pool_threads(const Pool* pool);

// Calls fn(arg, begin, end, thread) for consecutive ranges of at most `grain` that cover [0,
// count); thread is in [0, threads). Returns when all are done. Several threads may call it at
// once: jobs take turns. Never nest it.
void pool_run(Pool* pool, int64_t count, int64_t grain,
              void (*fn)(void* arg, int64_t begin, int64_t end, int thread), void* arg);

template <class F>
static inline void parallel_for(Pool* pool, int64_t count, int64_t grain, const F& f) {
  pool_run(
      pool, count, grain,
      [](void* arg, int64_t begin, int64_t end, int thread) {
        (*static_cast<const F*>(arg))(begin, end, thread);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace lowbit
