#include "csrc/base/cuda_queue.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "csrc/base/cuda_api.h"

namespace lowbit {

// Bits of a storage's set. A 65th check that is open shares the slot of the first: both are found,
// and a failure of one then takes the outputs of the other along.
static constexpr int kSlots = 64;
static constexpr int64_t kSlotBytes = kSlots * 8;
static constexpr uint64_t kNoFault = ~uint64_t{0};
static constexpr size_t kCheckArgs = 2048;
// Large enough that a copy runs at the bus's speed, small beside the caches that a conversion
// passes through.
static constexpr int64_t kPiece = int64_t{4} << 20;
// A result is awaited awake for about as long as a decode step of a small model; a sleeper comes
// 20 to 50 us late.
static constexpr std::chrono::microseconds kSpin{200};

struct Check {
  uint64_t number = 0;  // counted from 1
  Blame blame = nullptr;
  const char* row = "";
  alignas(16) unsigned char args[kCheckArgs];
};

// Blocks of pinned memory, kept by size: the driver takes a millisecond to pin a new one.
struct Pinned {
  std::map<int64_t, std::vector<void*>> kept;
  struct Busy {
    void* block;
    int64_t bytes;
    void* event;
  };
  std::vector<Busy> busy;  // read by copies to the device, oldest first
  std::vector<void*> all;
};

struct CudaGraph {
  const CudaApi* api = nullptr;
  int cuda_index = 0;
  void* graph = nullptr;
  Region* region = nullptr;
  int64_t ops = 0;
  const char* last_row = "";
  // Storages from outside of the region, with a count each.
  std::vector<Storage*> reads, writes;
  struct Checked {
    int slot;
    Check check;
  };
  std::vector<Checked> checks;
};

struct CudaQueue {
  const CudaApi* api = nullptr;
  void* stream = nullptr;
  int32_t multiprocessors = 0;
  bool early = false;
  Storage* scratch = nullptr;
  uint64_t* slots = nullptr;  // device memory
  Check checks[kSlots];
  uint64_t checks_queued = 0, checks_settled = 0;
  Status failure = ok();  // the first since the last sync
  const char* last_row = "";
  int64_t queued = 0, failed = 0;
  Pinned pinned;
  std::vector<void*> events, all_events;
  CudaGraph* recording = nullptr;
  void* side = nullptr;  // stream from which memory comes during a recording
};

static CudaQueue* queue_of(Device* d) { return d->cuda_queue; }

// CUDA's errors of kernels stay: every later call of the process gives them again.
static Status cuda_error(const CudaQueue* q, const char* what, int code) {
  if (*q->last_row == 0) return error(Code::cuda, "%s: %s", what, q->api->error_text(code));
  return error(Code::cuda, "%s: %s (in %s, or an op before it)", what, q->api->error_text(code),
               q->last_row);
}

static Status refuse_recording(const CudaQueue* q, const char* what) {
  if (q->recording == nullptr) return ok();
  return error(Code::unsupported,
               "%s: the device records a graph, and what needs the host can't be captured: do it "
               "before or after capture()",
               what);
}

static Status use(Device* d) {
  const int code = d->cuda->use(d->cuda_index);
  return code == 0 ? ok() : cuda_error(queue_of(d), "CUDA", code);
}

Status cuda_queue_create(Device* d, CudaQueue** out) {
  CudaQueue* q = new (std::nothrow) CudaQueue;
  if (q == nullptr) return error(Code::memory, "openDevice: out of memory");
  q->api = d->cuda;
  CudaDeviceInfo info = {};
  int code = d->cuda->use(d->cuda_index);
  if (code == 0) code = d->cuda->device_info(d->cuda_index, &info);
  if (code == 0) code = d->cuda->stream_create(&q->stream);
  if (code != 0) {
    const Status status = cuda_error(q, "openDevice", code);
    delete q;
    return status;
  }
  q->multiprocessors = info.multiprocessors;
  q->early = info.major >= 9;
  *out = q;
  return ok();
}

void cuda_queue_destroy(Device* d) {
  CudaQueue* q = queue_of(d);
  q->api->use(d->cuda_index);
  if (q->recording != nullptr) cuda_record_end(d, nullptr);
  q->api->stream_sync(q->stream);
  if (q->scratch != nullptr) storage_drop(q->scratch);
  if (q->slots != nullptr) q->api->free(q->slots, q->stream);
  for (void* event : q->all_events) q->api->event_destroy(event);
  for (void* block : q->pinned.all) q->api->host_free(block);
  memory_detach(d->memory);
  q->api->stream_sync(q->stream);
  if (q->side != nullptr) q->api->stream_destroy(q->side);
  q->api->stream_destroy(q->stream);
  delete q;
}

void* cuda_stream(const CudaQueue* q) { return q->stream; }

// ---- pinned memory and events
// ----------------------------------------------------------------------------------------

static int64_t pinned_class(int64_t bytes) {
  int64_t size = 4096;
  while (size < bytes) size *= 2;
  return size;
}

static void* take_event(CudaQueue* q) {
  void* event = nullptr;
  if (!q->events.empty()) {
    event = q->events.back();
    q->events.pop_back();
  } else if (q->api->event_create(false, &event) == 0) {
    q->all_events.push_back(event);
  }
  return event;
}
static void give_event(CudaQueue* q, void* event) {
  if (event != nullptr) q->events.push_back(event);
}

static void give_pinned(CudaQueue* q, void* block, int64_t bytes) {
  q->pinned.kept[pinned_class(bytes)].push_back(block);
}

// Takes back what copies to the device have read; with `wait`, the oldest in any case.
static void reclaim(CudaQueue* q, bool wait) {
  std::vector<Pinned::Busy>& busy = q->pinned.busy;
  size_t done = 0;
  for (; done < busy.size(); ++done) {
    bool reached = false;
    if (wait && done == 0) {
      q->api->event_wait(busy[0].event);
    } else if (q->api->event_reached(busy[done].event, &reached) != 0 || !reached) {
      break;
    }
    give_pinned(q, busy[done].block, busy[done].bytes);
    give_event(q, busy[done].event);
  }
  busy.erase(busy.begin(), busy.begin() + static_cast<std::ptrdiff_t>(done));
}

static void* take_pinned(CudaQueue* q, int64_t bytes) {
  const int64_t size = pinned_class(bytes);
  std::vector<void*>& kept = q->pinned.kept[size];
  if (kept.empty()) reclaim(q, false);
  if (!kept.empty()) {
    void* block = kept.back();
    kept.pop_back();
    return block;
  }
  void* block = nullptr;
  if (q->api->host_alloc(size, &block) != 0) return nullptr;
  q->pinned.all.push_back(block);
  return block;
}

Status cuda_write(Device* d, void* to, int64_t bytes,
                  void (*produce)(void* arg, void* to, int64_t offset, int64_t count), void* arg) {
  CudaQueue* q = queue_of(d);
  LB_TRY(refuse_recording(q, "write"));
  LB_TRY(use(d));
  for (int64_t at = 0; at < bytes; at += kPiece) {
    const int64_t count = bytes - at < kPiece ? bytes - at : kPiece;
    // Two pieces on their way keep the bus busy while the third is made.
    while (count == kPiece && q->pinned.busy.size() > 2) reclaim(q, true);
    void* block = take_pinned(q, count);
    void* event = take_event(q);
    if (block == nullptr || event == nullptr) {
      if (block != nullptr) give_pinned(q, block, count);
      give_event(q, event);
      return error(Code::memory, "out of memory: the system refused %lld bytes of pinned memory",
                   static_cast<long long>(count));
    }
    produce(arg, block, at, count);
    int code = q->api->copy(static_cast<uint8_t*>(to) + at, block, count, q->stream);
    if (code == 0) code = q->api->event_record(event, q->stream);
    if (code != 0) {
      give_pinned(q, block, count);
      give_event(q, event);
      return cuda_error(q, "copy to the device", code);
    }
    q->pinned.busy.push_back({block, count, event});
  }
  return ok();
}

Status cuda_read(Device* d, void* to, const void* from, int64_t bytes) {
  CudaQueue* q = queue_of(d);
  LB_TRY(refuse_recording(q, "read"));
  LB_TRY(use(d));
  // Two blocks take turns: one is filled while the other is emptied.
  struct Half {
    void* block = nullptr;
    void* event = nullptr;
    int64_t at = 0, count = 0;
  } half[2];
  Status status = ok();
  int turn = 0;
  for (int64_t at = 0; at < bytes || half[0].count > 0 || half[1].count > 0; turn ^= 1) {
    Half& h = half[turn];
    if (h.count > 0) {
      if (const int code = q->api->event_wait(h.event)) {
        if (is_ok(status)) status = cuda_error(q, "copy from the device", code);
      } else {
        std::memcpy(static_cast<uint8_t*>(to) + h.at, h.block, static_cast<size_t>(h.count));
      }
      h.count = 0;
    }
    if (at >= bytes) continue;
    if (h.block == nullptr) h.block = take_pinned(q, kPiece);
    if (h.event == nullptr) h.event = take_event(q);
    if (h.block == nullptr || h.event == nullptr) {
      status = error(Code::memory, "out of memory: the system refused pinned memory");
      break;
    }
    const int64_t count = bytes - at < kPiece ? bytes - at : kPiece;
    int code = q->api->copy(h.block, static_cast<const uint8_t*>(from) + at, count, q->stream);
    if (code == 0) code = q->api->event_record(h.event, q->stream);
    if (code != 0) {
      if (is_ok(status)) status = cuda_error(q, "copy from the device", code);
      break;
    }
    h.at = at;
    h.count = count;
    at += count;
  }
  for (const Half& h : half) {
    if (h.count > 0) q->api->event_wait(h.event);
    if (h.block != nullptr) give_pinned(q, h.block, kPiece);
    give_event(q, h.event);
  }
  return status;
}

// ---- ops
// -------------------------------------------------------------------------------------------------------------

// Ops of one stream run one after the other, so they share one block. It grows to the largest
// request; the old block goes back in stream order.
static Status reserve(Device* d, size_t bytes, void** out) {
  CudaQueue* q = queue_of(d);
  if (q->scratch == nullptr || q->scratch->bytes < static_cast<int64_t>(bytes)) {
    if (q->scratch != nullptr) storage_drop(q->scratch);
    q->scratch = nullptr;
    LB_TRY(storage_create(d->memory, static_cast<int64_t>(bytes), &q->scratch));
  }
  *out = q->scratch->data;
  return ok();
}

static bool is_open(const CudaQueue* q, const Storage* s) {
  return s->checks != 0 && s->last_check > q->checks_settled;
}

static Status open_slots(Device* d) {
  CudaQueue* q = queue_of(d);
  if (q->slots != nullptr) return ok();
  void* p = nullptr;
  LB_TRY(memory_take(d->memory, kSlotBytes, &p));
  q->slots = static_cast<uint64_t*>(p);
  const int code = q->api->fill(q->slots, 0xff, kSlotBytes, q->stream);
  return code == 0 ? ok() : cuda_error(q, "CUDA", code);
}

Status cuda_launch_begin(Device* d, size_t scratch_bytes, Blame blame, const void* args,
                         size_t args_bytes, CudaLaunch* launch) {
  CudaQueue* q = queue_of(d);
  launch->slot = -1;
  launch->inherited = ok();
  for (int i = 0; i < launch->read_count; ++i) {
    if (const Status* why = launch->reads[i]->poison.load(std::memory_order_acquire)) {
      launch->inherited = *why;
      return ok();
    }
  }
  LB_TRY(use(d));
  launch->ctx = {nullptr, nullptr, q->stream, q->multiprocessors, nullptr, q->early};
  if (scratch_bytes > 0) LB_TRY(reserve(d, scratch_bytes, &launch->ctx.scratch));
  if (blame != nullptr) {
    LB_TRY(open_slots(d));
    launch->slot = static_cast<int>(++q->checks_queued % kSlots);
    Check& check = q->checks[launch->slot];
    check.number = q->checks_queued;
    check.blame = blame;
    if (args_bytes <= kCheckArgs) std::memcpy(check.args, args, args_bytes);
    launch->ctx.check = reinterpret_cast<unsigned long long*>(q->slots + launch->slot);
  }
  return ok();
}

// A storage of the region lives in blocks that the graph holds; all others are held one by one.
static void record(CudaQueue* q, const CudaLaunch& launch) {
  CudaGraph* g = q->recording;
  const auto hold = [&](std::vector<Storage*>* list, Storage* s) {
    if (s->region == g->region || std::find(list->begin(), list->end(), s) != list->end()) return;
    storage_retain(s);
    list->push_back(s);
  };
  for (int i = 0; i < launch.read_count; ++i) hold(&g->reads, launch.reads[i]);
  for (int i = 0; i < launch.write_count; ++i) hold(&g->writes, launch.writes[i]);
  if (launch.ctx.scratch != nullptr) hold(&g->reads, q->scratch);
  if (launch.slot >= 0) g->checks.push_back({launch.slot, q->checks[launch.slot]});
  ++g->ops;
}

void cuda_launch_end(Device* d, const CudaLaunch& launch, const char* row, Status status) {
  CudaQueue* q = queue_of(d);
  ++q->queued;
  q->last_row = row;
  if (launch.slot >= 0) q->checks[launch.slot].row = row;
  if (q->recording != nullptr && is_ok(launch.inherited)) record(q, launch);
  uint64_t checks = 0, last = 0;
  for (int i = 0; i < launch.read_count; ++i) {
    const Storage* s = launch.reads[i];
    if (!is_open(q, s)) continue;
    checks |= s->checks;
    last = s->last_check > last ? s->last_check : last;
  }
  if (launch.slot >= 0) {
    checks |= uint64_t{1} << launch.slot;
    last = q->checks[launch.slot].number;
  }
  const bool inherited = !is_ok(launch.inherited);
  if (inherited) {
    status = launch.inherited;
  } else if (!is_ok(status)) {
    status = error(status.code, "%s (in %s)", status.text, row);
    ++q->failed;
    if (is_ok(q->failure)) q->failure = status;
  }
  for (int i = 0; i < launch.write_count; ++i) {
    Storage* s = launch.writes[i];
    if (!is_ok(status)) storage_poison(s, status);
    s->checks = checks | (is_open(q, s) ? s->checks : 0);
    s->last_check = last > s->last_check ? last : s->last_check;
  }
}

// ---- graphs
// ------------------------------------------------------------------------------------------------------------

Status cuda_record_begin(Device* d) {
  CudaQueue* q = queue_of(d);
  if (q->recording != nullptr) {
    return error(Code::argument, "capture: the device records a graph already");
  }
  LB_TRY(use(d));
  LB_TRY(open_slots(d));
  if (q->side == nullptr) {
    if (const int code = q->api->stream_create(&q->side)) return cuda_error(q, "capture", code);
  }
  CudaGraph* g = new (std::nothrow) CudaGraph;
  if (g == nullptr) return error(Code::memory, "capture: out of memory");
  g->api = q->api;
  g->cuda_index = d->cuda_index;
  Status status = region_open(d->memory, q->side, &g->region);
  if (is_ok(status)) {
    const int code = q->api->record_begin(q->stream);
    if (code != 0) {
      status = cuda_error(q, "capture", code);
      region_close(g->region);
      region_drop(g->region);
    }
  }
  if (!is_ok(status)) {
    delete g;
    return status;
  }
  // The scratch of ops outside must not be that of the graph's: it gets a block of its own.
  if (q->scratch != nullptr) storage_drop(q->scratch);
  q->scratch = nullptr;
  q->recording = g;
  return ok();
}

Status cuda_record_end(Device* d, CudaGraph** out) {
  CudaQueue* q = queue_of(d);
  CudaGraph* g = q->recording;
  if (g == nullptr) return error(Code::argument, "capture: the device records no graph");
  q->api->use(d->cuda_index);
  const int code = q->api->record_end(q->stream, out != nullptr ? &g->graph : nullptr);
  q->recording = nullptr;
  if (q->scratch != nullptr) storage_drop(q->scratch);
  q->scratch = nullptr;
  region_close(g->region);
  g->last_row = q->last_row;
  if (out != nullptr && code == 0) {
    *out = g;
    return ok();
  }
  cuda_graph_drop(g);
  return out == nullptr ? ok() : cuda_error(q, "capture", code);
}

Status cuda_graph_replay(Device* d, CudaGraph* g) {
  CudaQueue* q = queue_of(d);
  LB_TRY(refuse_recording(q, "replay"));
  LB_TRY(use(d));
  const Status* poison = nullptr;
  uint64_t checks = 0, last = 0;
  for (const Storage* s : g->reads) {
    if (poison == nullptr) poison = s->poison.load(std::memory_order_acquire);
    if (!is_open(q, s)) continue;
    checks |= s->checks;
    last = s->last_check > last ? s->last_check : last;
  }
  struct Outcome {
    const CudaQueue* q;
    Status status;
    uint64_t checks, last;
  } outcome = {q, poison != nullptr ? *poison : ok(), checks, last};
  if (poison == nullptr && g->graph != nullptr) {
    for (const CudaGraph::Checked& c : g->checks) {
      q->checks[c.slot] = c.check;
      q->checks[c.slot].number = ++q->checks_queued;
      outcome.checks |= uint64_t{1} << c.slot;
      outcome.last = q->checks_queued;
    }
    const int code = q->api->graph_launch(g->graph, q->stream);
    q->last_row = g->last_row;
    q->queued += g->ops;
    if (code != 0) {
      outcome.status = cuda_error(q, "replay", code);
      if (is_ok(q->failure)) q->failure = outcome.status;
    }
  }
  const auto mark = [](Storage* s, void* arg) {
    const Outcome& o = *static_cast<Outcome*>(arg);
    if (!is_ok(o.status)) storage_poison(s, o.status);
    s->checks = o.checks | (is_open(o.q, s) ? s->checks : 0);
    s->last_check = o.last > s->last_check ? o.last : s->last_check;
  };
  for (Storage* s : g->writes) mark(s, &outcome);
  region_each(g->region, mark, &outcome);
  return ok();
}

int64_t cuda_graph_ops(const CudaGraph* g) { return g->ops; }

void cuda_graph_drop(CudaGraph* g) {
  g->api->use(g->cuda_index);
  if (g->graph != nullptr) g->api->graph_destroy(g->graph);
  for (Storage* s : g->reads) storage_drop(s);
  for (Storage* s : g->writes) storage_drop(s);
  region_drop(g->region);
  delete g;
}

CudaStats cuda_stats(const CudaQueue* q) {
  return {q->queued, q->failed, q->scratch != nullptr ? q->scratch->capacity : 0};
}

// ---- waits
// -----------------------------------------------------------------------------------------------------------

void cuda_wait_begin(Device* d, const Storage* storage, const Tensor* view, CudaWait* w) {
  CudaQueue* q = queue_of(d);
  *w = {};
  w->status = ok();
  w->checks = q->checks_queued;
  w->status = refuse_recording(q, view != nullptr ? "read" : "sync");
  if (!is_ok(w->status)) return;
  if (storage != nullptr && storage->poison.load(std::memory_order_acquire) != nullptr) return;
  w->status = use(d);
  if (!is_ok(w->status)) return;
  const bool checked = q->slots != nullptr && q->checks_queued > q->checks_settled;
  const int64_t bytes = view != nullptr ? span_bytes(*view) : 0;
  const int64_t aligned = (bytes + 15) / 16 * 16;
  w->event = take_event(q);
  if (bytes > 0 || checked) {
    w->staged_bytes = aligned + (checked ? kSlotBytes : 0);
    w->staged = static_cast<uint8_t*>(take_pinned(q, w->staged_bytes));
  }
  if (w->event == nullptr || (w->staged_bytes > 0 && w->staged == nullptr)) {
    w->status = error(Code::memory, "read: out of memory for %lld bytes of pinned memory",
                      static_cast<long long>(w->staged_bytes));
    return;
  }
  int code = 0;
  if (bytes > 0) code = q->api->copy(w->staged, view->data, bytes, q->stream);
  if (code == 0 && checked) {
    w->slots = reinterpret_cast<uint64_t*>(w->staged + aligned);
    code = q->api->copy(w->slots, q->slots, kSlotBytes, q->stream);
  }
  if (code == 0) code = q->api->event_record(w->event, q->stream);
  if (code != 0) w->status = cuda_error(q, view != nullptr ? "read" : "sync", code);
}

void cuda_wait_block(Device* d, CudaWait* w) {
  if (!is_ok(w->status) || w->event == nullptr) return;
  const CudaApi* api = d->cuda;
  int code = api->use(d->cuda_index);
  const auto start = std::chrono::steady_clock::now();
  bool reached = false;
  while (code == 0 && !reached && std::chrono::steady_clock::now() - start < kSpin) {
    code = api->event_reached(w->event, &reached);
    if (!reached) std::this_thread::yield();
  }
  if (code == 0 && !reached) code = api->event_wait(w->event);
  if (code != 0) w->status = cuda_error(queue_of(d), "CUDA", code);
}

// A fault is rare: everything queued is awaited, so that the slots are at rest when they are read
// and cleared.
static void settle_faults(Device* d) {
  CudaQueue* q = queue_of(d);
  uint64_t slots[kSlots];
  if (!is_ok(cuda_read(d, slots, q->slots, kSlotBytes))) return;
  for (int i = 0; i < kSlots; ++i) {
    if (slots[i] == kNoFault) continue;
    const Check& check = q->checks[i];
    Status why = check.blame(check.args, static_cast<int64_t>(slots[i] >> 32),
                             static_cast<int32_t>(slots[i] & 0xffffffffu));
    why = error(why.code, "%s (in %s)", why.text, check.row);
    ++q->failed;
    if (is_ok(q->failure)) q->failure = why;
    memory_poison(d->memory, uint64_t{1} << i, check.number, why);
  }
  q->api->fill(q->slots, 0xff, kSlotBytes, q->stream);
  q->checks_settled = q->checks_queued;
}

Status cuda_wait_end(Device* d, CudaWait* w, const Storage* storage) {
  CudaQueue* q = queue_of(d);
  if (w->slots != nullptr && is_ok(w->status)) {
    bool faults = false;
    for (int i = 0; i < kSlots; ++i) faults = faults || w->slots[i] != kNoFault;
    if (faults) {
      q->api->use(d->cuda_index);
      settle_faults(d);
    } else if (w->checks > q->checks_settled) {
      q->checks_settled = w->checks;
    }
  }
  if (w->staged != nullptr) give_pinned(q, w->staged, w->staged_bytes);
  give_event(q, w->event);
  w->staged = nullptr;
  w->event = nullptr;
  if (!is_ok(w->status)) return w->status;
  const Status* poison = storage == nullptr ? nullptr : storage->poison.load();
  if (storage != nullptr && poison == nullptr) return ok();
  const Status said = storage == nullptr ? q->failure : *poison;
  q->failure = ok();  // said here, so sync() need not say it again
  return said;
}

}  // namespace lowbit
