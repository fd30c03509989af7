// peak: the table, and the clock around its rows. Built without ISA flags.
#include "csrc/peak/peak.h"

#include <sys/mman.h>

#include <chrono>
#include <cstring>

#include "csrc/base/cuda_api.h"
#include "csrc/base/cuda_queue.h"
#include "csrc/base/select.h"
#include "csrc/base/threads.h"

namespace lowbit {

#define KERNEL(name) extern const PeakKernel name;
#include "csrc/peak/kernels.inc"
#undef KERNEL

static const PeakKernel* const kRows[] = {
#define KERNEL(name) &name,
#include "csrc/peak/kernels.inc"
#undef KERNEL
};

PeakTable peak_table() {
  const RowList<PeakKernel> all = all_rows("peak", kRows);
  return {all.rows, all.count};
}

Tensor peak_result() {
  Tensor t = {};
  t.rank = 2;
  t.shape[0] = peak_table().count;
  t.shape[1] = 2;
  t.strides[0] = 2;
  t.strides[1] = 1;
  t.dtype = DType::f32;
  return t;
}

Status peak_check(const Tensor& out, double seconds) {
  if (!(seconds > 0 && seconds <= 10)) {
    return error(Code::argument, "measurePeaks: expected seconds above 0 and up to 10 but got %g",
                 seconds);
  }
  if (out.dtype != DType::f32) {
    return error(Code::dtype, "measurePeaks: expected out as f32 but got %s",
                 dtype_name(out.dtype));
  }
  if (!same_shape(out, peak_result())) {
    return error(Code::shape, "measurePeaks: expected out as [%d, 2] but got %s",
                 peak_table().count, shape_text(out).text);
  }
  if (!is_contiguous(out)) return error(Code::strides, "measurePeaks: expected out contiguous");
  return ok();
}

// A figure is the best of several passes, for on a shared machine some lose their core. A pass
// lasts long enough that waking the pool does not count, and over memory longer, so that a moment
// in which the neighbours are silent does not make the figure of a machine.
struct Passes {
  int count;     // at most
  double share;  // of the time that a figure is given: the least length of one
};
static constexpr Passes kMemoryPasses = {5, 0.15};         // 12 ms of 80
static constexpr Passes kArithmeticPasses = {16, 0.0375};  // 3 ms of 80
// Below this size a large last cache of a neighbour's core, or a memory-side cache, still answers.
static constexpr int64_t kLeastBytes = int64_t{256} << 20;

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One pass: as many sweeps over the memory, or one sweep of as many rounds, as it takes.
static double pass_seconds(const PeakKernel& row, const PeakArgs& args, int sweeps,
                           const Ctx& ctx) {
  const double begin = now();
  for (int i = 0; i < sweeps; ++i) row.run(args, ctx);
  return now() - begin;
}

// Units of 1e9 per second.
static float best_rate(const PeakKernel& row, PeakArgs args, double budget, const Ctx& ctx) {
  const bool memory = of_memory(row.spec.quantity);
  const Passes passes = memory ? kMemoryPasses : kArithmeticPasses;
  int sweeps = 1;
  args.rounds = kPeakRounds * 8 * pool_threads(ctx.pool);
  // The first passes wake the workers, too.
  while (pass_seconds(row, args, sweeps, ctx) < passes.share * budget) {
    if (memory) {
      sweeps *= 2;
    } else {
      args.rounds *= 2;
    }
  }
  const double work = memory ? static_cast<double>(args.bytes) * sweeps
                             : static_cast<double>(args.rounds) * row.spec.operations;
  double least = 1e30, total = 0;
  for (int i = 0; i < passes.count && total < 1.5 * budget; ++i) {
    const double seconds = pass_seconds(row, args, sweeps, ctx);
    total += seconds;
    if (seconds < least) least = seconds;
  }
  return static_cast<float>(work / least * 1e-9);
}

static int64_t buffer_bytes() {
  const CpuInfo info = cpu_info();
  int64_t bytes = 4 * info.l3 > kLeastBytes ? 4 * info.l3 : kLeastBytes;
  if (bytes > info.memory / 4) bytes = info.memory / 4;
  const int64_t step = 4 * kPeakChunk;  // whole chunks in either half, and whole huge pages
  return bytes < step ? step : bytes / step * step;
}

Status peak_measure(const Tensor& out, ArchSet arch, double seconds, const Ctx& ctx) {
  PeakArgs args = {};
  args.bytes = buffer_bytes();
  const size_t size = static_cast<size_t>(args.bytes);
  void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Pool* one = block != MAP_FAILED ? pool_create(1) : nullptr;
  if (one == nullptr) {
    if (block != MAP_FAILED) munmap(block, size);
    return error(Code::memory, "measurePeaks: out of memory for %lld bytes",
                 static_cast<long long>(args.bytes));
  }
  // Weights ask for huge pages too. Each page is written once: pages never written are all the
  // same page of zeros, which a cache holds.
  madvise(block, size, MADV_HUGEPAGE);
  args.data = static_cast<uint8_t*>(block);
  parallel_for(ctx.pool, args.bytes, kPeakChunk, [&](int64_t begin, int64_t end, int) {
    std::memset(args.data + begin, 1, static_cast<size_t>(end - begin));
  });
  const bool several = pool_threads(ctx.pool) > 1;
  const PeakTable table = peak_table();
  for (int i = 0; i < table.count; ++i) {
    float* rate = static_cast<float*>(out.data) + 2 * i;
    rate[0] = rate[1] = 0;
    if ((table.rows[i]->arch & arch) != table.rows[i]->arch) continue;
    rate[0] = best_rate(*table.rows[i], args, seconds, {one, nullptr, nullptr});
    const float all = several ? best_rate(*table.rows[i], args, seconds, ctx) : 0;
    rate[1] = all > rate[0] ? all : rate[0];  // on a busy machine one thread may fare better
  }
  pool_destroy(one);
  munmap(block, size);
  return ok();
}

// On CUDA a figure is that of all multiprocessors; a thread of its own has no meaning.
static Status best_rate_cuda(Device* d, const PeakKernel& row, const PeakArgs& args, double budget,
                             const Ctx& ctx, void* const (&events)[2], float* rate) {
  double total = 0;
  // The first pass wakes the clock.
  for (int sweeps = 1, passes = 0; passes < 6 && (passes < 2 || total < budget); ++passes) {
    int code = d->cuda->event_record(events[0], ctx.stream);
    for (int i = 0; i < sweeps; ++i) LB_TRY(row.run(args, ctx));
    float ms = 0;
    if (code == 0) code = d->cuda->event_record(events[1], ctx.stream);
    if (code == 0) code = d->cuda->event_elapsed(events[0], events[1], &ms);
    if (code != 0) return error(Code::cuda, "measurePeaks: %s", d->cuda->error_text(code));
    const double seconds = ms * 1e-3;
    total += seconds;
    const auto now = static_cast<float>(static_cast<double>(args.bytes) * sweeps / seconds * 1e-9);
    if (passes > 0 && now > *rate) *rate = now;
    if (passes == 0) sweeps += static_cast<int>(budget / 5 / seconds);
  }
  return ok();
}

Status peak_measure_cuda(Device* d, const Tensor& out, double seconds) {
  const PeakTable table = peak_table();
  CudaLaunch launch = {};
  LB_TRY(cuda_launch_begin(d, 0, nullptr, nullptr, 0, &launch));
  PeakArgs args = {};
  args.bytes = int64_t{1} << 30;  // twenty times the last cache of the largest chip
  Storage* room = nullptr;
  LB_TRY(storage_create(d->memory, args.bytes, &room));
  args.data = room->data;
  void* events[2] = {};
  int code = d->cuda->event_create(true, &events[0]);
  if (code == 0) code = d->cuda->event_create(true, &events[1]);
  if (code == 0) code = d->cuda->fill(args.data, 1, args.bytes, launch.ctx.stream);
  Status status =
      code == 0 ? ok() : error(Code::cuda, "measurePeaks: %s", d->cuda->error_text(code));
  float rates[128][2] = {};
  for (int i = 0; i < table.count && i < 128 && is_ok(status); ++i) {
    const PeakKernel& row = *table.rows[i];
    if ((row.arch & d->arch) != row.arch) continue;
    status = best_rate_cuda(d, row, args, seconds, launch.ctx, events, &rates[i][1]);
    rates[i][0] = rates[i][1];
  }
  for (void* event : events) {
    if (event != nullptr) d->cuda->event_destroy(event);
  }
  storage_drop(room);
  if (!is_ok(status)) return status;
  return device_write(d, out.data, rates, int64_t{table.count} * 8);
}

}  // namespace lowbit
