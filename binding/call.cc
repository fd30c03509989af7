#include "binding/call.h"

#include <cstdio>

namespace lowbit::binding {

bool make_outputs(Reader& reader) {
  DeviceHandle* owner = reader.owner();
  for (int i = 0; i < reader.shells; ++i) {
    Tensor* slot = reader.shell[i].slot;
    Storage* storage = nullptr;
    const Status status =
        storage_create(owner->device->memory, numel(*slot) * dtype_bytes(slot->dtype), &storage);
    if (!is_ok(status)) {
      reader.fail(error(status.code, "%s: %s", reader.op(), status.text));
      return false;
    }
    slot->data = storage->data;
    if (wrap_tensor(reader.env(), reader.shell[i].object, owner, storage, *slot) != napi_ok) {
      reader.fail(error(Code::type, "%s: expected the output to be a Tensor", reader.op()));
      return false;
    }
    reader.written[reader.writes++] = storage;
  }
  return true;
}

void log_choice(Env* env, const char* op, const char* row) {
  if (env->logged.insert(row).second) std::fprintf(stderr, "lowbit: %s -> %s\n", op, row);
}

bool begin_launch(Reader& reader, size_t scratch_bytes, Blame blame, const void* args,
                  size_t args_bytes, CudaLaunch* launch) {
  launch->reads = reader.read;
  launch->read_count = reader.reads;
  launch->writes = reader.written;
  launch->write_count = reader.writes;
  const Status status =
      cuda_launch_begin(reader.owner()->device, scratch_bytes, blame, args, args_bytes, launch);
  if (is_ok(status)) return true;
  reader.fail(error(status.code, "%s: %s", reader.op(), status.text));
  return false;
}

void hold_storages(const Reader& reader, Task* task) {
  task->reads = reader.reads;
  task->writes = reader.writes;
  for (int i = 0; i < reader.reads; ++i) task->storages[i] = reader.read[i];
  for (int i = 0; i < reader.writes; ++i) task->storages[reader.reads + i] = reader.written[i];
  for (int i = 0; i < reader.reads + reader.writes; ++i) storage_retain(task->storages[i]);
}

}  // namespace lowbit::binding
