#include <cstring>

#include "binding/args.h"
#include "binding/describe.h"
#include "binding/export.h"
#include "csrc/base/queue.h"
#include "csrc/peak/peak.h"

namespace lowbit::binding {

// peakRows(): name, quantity and instruction set of each row, in the order of the result.
napi_value peak_rows(napi_env env, napi_callback_info) {
  napi_value rows;
  napi_create_array(env, &rows);
  const PeakTable table = peak_table();
  for (int i = 0; i < table.count; ++i) {
    napi_value row;
    napi_create_object(env, &row);
    set_text(env, row, "name", table.rows[i]->name);
    set_text(env, row, "quantity", kQuantityNames[static_cast<int>(table.rows[i]->spec.quantity)]);
    const ArchRow* arch = find_arch(table.rows[i]->arch);
    set_text(env, row, "arch", arch != nullptr ? arch->name : "?");
    push(env, rows, row);
  }
  return rows;
}

// measurePeaks(out, seconds): queued like an op; the figures are there when `out` is read. On CUDA
// the call lasts as long as the measurement.
napi_value measure_peaks(napi_env env, napi_callback_info info) {
  Reader r(env, info, "measurePeaks");
  const TensorHandle* out = r.tensor("out");
  const double seconds = r.number("seconds");
  if (r.failed()) return nullptr;
  const Status status = peak_check(out->view, seconds);
  if (!is_ok(status)) return fail(env, status);
  Device* device = out->device->device;
  if (device->cuda != nullptr) {
    const Status measured = peak_measure_cuda(device, out->view, seconds);
    return is_ok(measured) ? nullptr : fail(env, measured);
  }
  Task* task = task_new(device->queue);
  if (task == nullptr) return fail(env, error(Code::memory, "measurePeaks: out of memory"));
  struct Peaks {
    Tensor out;
    ArchSet arch;
    double seconds;
  };
  const Peaks args = {out->view, device->arch, seconds};
  std::memcpy(task->args, &args, sizeof args);
  task->row_name = "measurePeaks";
  task->writes = 1;
  task->storages[0] = out->storage;
  storage_retain(out->storage);
  task->run = [](Task& t, const Ctx& ctx) {
    const Peaks& p = *reinterpret_cast<Peaks*>(t.args);
    return peak_measure(p.out, p.arch, p.seconds, ctx);
  };
  queue_push(device->queue, task);
  return nullptr;
}

}  // namespace lowbit::binding
